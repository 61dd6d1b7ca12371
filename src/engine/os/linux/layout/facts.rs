//! Where members lie, by the kernel's own type information or by a file of facts.

use std::collections::HashMap;

use serde::Deserialize;

use super::super::btf::Btf;
use crate::engine::{error::VmiError, snapshot::clean};

/// Offsets in bytes by structure and member path: the kernel's own type information, overruled by a profile.
pub(in super::super) struct Facts<'a> {
    btf: Option<Btf<'a>>,
    profile: Profile,
}

type Profile = HashMap<String, HashMap<String, Number>>;

/// A number as JSON has it, or as a string with `0x`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "RawNumber")]
struct Number(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum RawNumber {
    Plain(u64),
    Text(String),
}

impl TryFrom<RawNumber> for Number {
    type Error = String;

    fn try_from(raw: RawNumber) -> Result<Self, String> {
        let value = match raw {
            RawNumber::Plain(value) => value,
            RawNumber::Text(text) => {
                let number = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
                number.ok_or_else(|| format!("\"{text}\" is not a number like 0x1f"))?
            }
        };
        // No structure of the kernel is larger; so sums of offsets never overflow.
        if value > 1 << 24 {
            return Err(format!("{value:#x} is no offset in a structure of the kernel"));
        }
        Ok(Self(value))
    }
}

impl<'a> Facts<'a> {
    /// Facts from type information, from the text of a profile, or from both.
    pub(in super::super) fn new(btf: Option<Btf<'a>>, profile: Option<&str>) -> Result<Self, VmiError> {
        let profile = match profile {
            Some(text) => serde_json::from_str(text).map_err(|error| {
                VmiError::os(format!(
                    "the profile is not of the form {{\"task_struct\": {{\"tasks\": \"0x4a8\"}}}}: {}",
                    clean(&error.to_string(), 300)
                ))
            })?,
            None => Profile::new(),
        };
        Ok(Self { btf, profile })
    }

    /// The offset of a member, if it exists.
    pub(super) fn at(&self, structure: &str, path: &str) -> Option<u64> {
        let known = self.profile.get(structure).and_then(|members| members.get(path)).map(|number| number.0);
        known.or_else(|| self.btf.as_ref()?.member(structure, path).map(|member| member.offset))
    }

    /// A number of whole bytes or of some bits, by where its lowest byte is, how far its lowest bit is up, and what is
    /// left of it then.
    pub(super) fn number(&self, structure: &str, path: &str) -> Option<(u64, u32, u32)> {
        let bits = || self.btf.as_ref()?.bit_field(structure, path).filter(|field| field.shift + field.width <= 32);
        let mask = |width: u32| u32::MAX >> 32u32.saturating_sub(width).min(31);
        let field = || bits().map(|field| (field.offset, field.shift, mask(field.width)));
        self.at(structure, path).map(|offset| (offset, 0, u32::MAX)).or_else(field)
    }

    /// The size of a structure in bytes, where it is known.
    pub(super) fn size_of(&self, structure: &str) -> Option<u64> {
        self.btf.as_ref()?.size_of(structure)
    }

    /// Whether the kernel has an enumerator of this name, where its own type information tells.
    pub(super) fn has_enumerator(&self, name: &str) -> Option<bool> {
        self.btf.as_ref().map(|btf| btf.has_enumerator(name))
    }

    /// The size of a member in bytes, where it is known.
    pub(super) fn bytes(&self, structure: &str, path: &str) -> Option<u64> {
        self.btf.as_ref()?.member(structure, path).map(|member| member.size)
    }

    /// The offset of the first of several members that exists: names change from kernel to kernel.
    pub(super) fn any(&self, structure: &str, paths: &[&str]) -> Option<u64> {
        paths.iter().find_map(|path| self.at(structure, path))
    }

    pub(super) fn need(&self, structure: &str, path: &str) -> Result<u64, VmiError> {
        self.at(structure, path).ok_or_else(|| {
            let source = if self.btf.is_some() { "the kernel's type information" } else { "the profile" };
            VmiError::os(format!(
                "{source} does not say where {structure}.{path} is: give its offset with --profile FILE (docs/linux.md)"
            ))
        })
    }
}
