//! A profile: the facts of one kernel build that cannot be found in guest memory (layouts of structures, addresses of
//! symbols), as JSON.
//!
//! Used by the Windows layer to read structures and by the built-in guest to lay them out. Numbers are JSON numbers or
//! hexadecimal strings.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Deserializer};

use super::{addr::Va, error::VmiError, snapshot::clean};

/// The facts of one kernel build.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Where the facts come from, in a sentence.
    pub source: String,
    /// Build number ("19041").
    pub build: u32,
    /// Size of the kernel image in bytes.
    #[serde(deserialize_with = "number")]
    pub image_size: u64,
    types: BTreeMap<String, Type>,
    symbols: BTreeMap<String, Number>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Type {
    #[serde(deserialize_with = "number")]
    size: u64,
    fields: BTreeMap<String, Number>,
}

/// A number written as one or as a hexadecimal string.
#[derive(Clone, Copy, Debug)]
struct Number(u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Plain(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Plain(value) => Ok(Self(value)),
            Form::Text(text) => Va::from_str(&text)
                .map(|va| Self(va.0))
                .map_err(|_| serde::de::Error::custom(format!("{text:?} is not a hexadecimal number"))),
        }
    }
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Number::deserialize(deserializer).map(|number| number.0)
}

impl Profile {
    /// The profile that is compiled in: Windows 10 19041, the build that the built-in guest is laid out as.
    ///
    /// # Errors
    /// When the file in the source tree was spoiled.
    pub fn builtin() -> Result<Self, VmiError> {
        Self::parse(include_str!("os/windows/profiles/19041.json"))
    }

    /// A profile out of the text of a file.
    ///
    /// # Errors
    /// [`VmiError::Os`] in one line: what is wrong and where.
    pub fn parse(text: &str) -> Result<Self, VmiError> {
        let profile: Self = serde_json::from_str(text).map_err(|error| {
            VmiError::os(format!("the Windows profile cannot be read: {}", clean(&error.to_string(), 300)))
        })?;
        // Offsets and symbols are added to addresses all over; absurd ones are refused once, here.
        let absurd = |value: u64| value > 1 << 32;
        let fields = profile.types.values().flat_map(|t| t.fields.values());
        if fields.chain(profile.symbols.values()).any(|&Number(value)| absurd(value)) || absurd(profile.image_size) {
            return Err(VmiError::os("the Windows profile holds an offset of more than 4 GiB"));
        }
        Ok(profile)
    }

    /// Where a field lies in its type, in bytes.
    ///
    /// # Errors
    /// [`VmiError::Os`] naming the fact that is missing.
    pub fn field(&self, of: &str, field: &str) -> Result<u64, VmiError> {
        let missing = || VmiError::os(format!("the Windows profile (build {}) lacks {of}.{field}", self.build));
        self.types.get(of).and_then(|t| t.fields.get(field)).map(|number| number.0).ok_or_else(missing)
    }

    /// Size of a type in bytes.
    ///
    /// # Errors
    /// As [`Profile::field`].
    pub fn size(&self, of: &str) -> Result<u64, VmiError> {
        let missing = || VmiError::os(format!("the Windows profile (build {}) lacks the size of {of}", self.build));
        self.types.get(of).map(|t| t.size).ok_or_else(missing)
    }

    /// Where a symbol lies in the kernel image, in bytes from its base.
    ///
    /// # Errors
    /// As [`Profile::field`].
    pub fn symbol(&self, name: &str) -> Result<u64, VmiError> {
        let missing = || VmiError::os(format!("the Windows profile (build {}) lacks the symbol {name}", self.build));
        self.symbols.get(name).map(|number| number.0).ok_or_else(missing)
    }

    /// All symbols: name and distance from the image's base, in order of name.
    pub fn symbols(&self) -> impl Iterator<Item = (&str, u64)> {
        self.symbols.iter().map(|(name, number)| (name.as_str(), number.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_profile_has_the_documented_offsets() {
        let profile = Profile::builtin().expect("compiled in");
        for (of, field, at) in [
            ("_EPROCESS", "UniqueProcessId", 0x440),
            ("_EPROCESS", "ActiveProcessLinks", 0x448),
            ("_EPROCESS", "Token", 0x4b8),
            ("_EPROCESS", "Peb", 0x550),
            ("_EPROCESS", "ImageFileName", 0x5a8),
            ("_EPROCESS", "VadRoot", 0x7d8),
            ("_KPROCESS", "DirectoryTableBase", 0x28),
        ] {
            assert_eq!(profile.field(of, field).ok(), Some(at), "{of}.{field}");
        }
        assert!(profile.symbols().count() > 400);
    }

    #[test]
    fn a_broken_profile_is_refused_in_one_line() {
        let message = |text: &str| Profile::parse(text).map(|_| ()).expect_err("broken").to_string();
        assert!(message("{").starts_with("the Windows profile cannot be read: "));
        assert!(message("{\"\x7f\u{9b}2J\": 1}").contains("unknown field `\u{2421}\u{fffd}2J`"));
        let odd = r#"{"source": "", "build": 1, "image_size": 0, "types": {}, "symbols": {"x": "zz"}}"#;
        assert!(message(odd).contains("\"zz\" is not a hexadecimal number"), "{}", message(odd));
        let huge = r#"{"source": "", "build": 1, "image_size": 0, "types": {}, "symbols": {"x": "0xffffffffffff"}}"#;
        assert!(message(huge).contains("4 GiB") && !message(huge).contains('\n'));
        let empty = r#"{"source": "", "build": 1, "image_size": 0, "types": {}, "symbols": {}}"#;
        let empty = Profile::parse(empty).expect("well formed");
        let error = empty.field("_EPROCESS", "Peb").expect_err("not there").to_string();
        assert_eq!(error, "the Windows profile (build 1) lacks _EPROCESS.Peb");
    }
}
