//! The kernel's type information (BTF): where the members of its structures lie.
//!
//! The format is documented in `Documentation/bpf/btf.rst` of the kernel's source: a header, the types one behind the
//! other (numbered from 1), and their strings. Only structures, unions and what their members are made of matter here.
//! A pure function of bytes that a guest wrote: every reference is checked and every walk has a budget.

use std::{cell::Cell, collections::HashMap};

use super::bytes::{string_at, u32_at};

/// The first bytes of little-endian BTF of version 1 with the usual header of 24 bytes.
pub const MAGIC: [u8; 8] = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0];

const KIND_INT: u32 = 1;
const KIND_POINTER: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNCTION_PROTOTYPE: u32 = 13;
const KIND_VARIABLE: u32 = 14;
const KIND_DATA_SECTION: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECLARATION_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Members and types looked at for one question: structures have some hundred, anonymous ones nest a few levels.
const BUDGET: u32 = 100_000;
/// The same for all questions together: those that are asked of a kernel need some 100,000.
const BUDGET_IN_ALL: u32 = 1 << 24;
/// Types that are read, and structures among them that have names: kernels have 150,000 and 20,000.
const MOST_TYPES: usize = 1 << 20;
const MOST_STRUCTURES: usize = 1 << 18;
/// How deep anonymous structures may nest, and how long a chain of typedefs and qualifiers may be.
const DEPTH: u32 = 32;
/// Longest name of a type or member.
const LONGEST: usize = 512;

/// Where a member lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Bytes from the structure's start.
    pub offset: u64,
    /// Its size in bytes; 0 where its type has none.
    pub size: u64,
}

/// Where a bit field lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitField {
    /// Bytes from the structure's start to the byte that holds its lowest bit.
    pub offset: u64,
    /// The lowest bit in that byte, 0 to 7.
    pub shift: u32,
    /// How many bits it has, 1 to 255.
    pub width: u32,
}

/// A member on the way to it: bits from the start of its structure, bits of a bit field or 0, its type.
struct Found {
    bits: u64,
    width: u32,
    id: u32,
}

/// Type information with an index of its structures.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Position in `types` of each type, from type 1 on.
    positions: Vec<u32>,
    /// Named structures and unions.
    structures: HashMap<&'a [u8], u32>,
    /// What is left of [`BUDGET_IN_ALL`].
    budget: Cell<u32>,
}

/// A type's common part (`struct btf_type`).
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    /// Size in bytes, or the type referred to.
    size_or_type: u32,
    /// Position of what follows.
    rest: usize,
}

impl Type {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    fn count(self) -> usize {
        self.info as usize & 0xffff
    }

    fn is_structure(self) -> bool {
        matches!(self.kind(), KIND_STRUCT | KIND_UNION)
    }

    /// Whether it only gives another type a name or a quality.
    fn is_alias(self) -> bool {
        matches!(self.kind(), KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG)
    }

    /// Bytes that follow the common part.
    fn rest_bytes(self) -> usize {
        match self.kind() {
            KIND_INT | KIND_VARIABLE | KIND_DECLARATION_TAG => 4,
            KIND_ARRAY => 12,
            KIND_STRUCT | KIND_UNION | KIND_DATA_SECTION | KIND_ENUM64 => 12 * self.count(),
            KIND_ENUM | KIND_FUNCTION_PROTOTYPE => 8 * self.count(),
            _ => 0,
        }
    }
}

impl<'a> Btf<'a> {
    /// Reads the header and finds the types. `None` where it is no BTF. Types behind a damaged one are left out.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..4)? != MAGIC.get(..4)? {
            return None;
        }
        let number = |at: usize| u32_at(bytes, at).map(|value| value as usize);
        let header = number(4)?;
        let section = |offset: usize, length: usize| {
            let start = header.checked_add(offset)?;
            bytes.get(start..start.checked_add(length)?)
        };
        let types = section(number(8)?, number(12)?)?;
        let strings = section(number(16)?, number(20)?)?;
        let mut btf = Self {
            types,
            strings,
            positions: Vec::with_capacity((types.len() / 24).min(MOST_TYPES)),
            structures: HashMap::with_capacity((types.len() / 256).min(MOST_STRUCTURES)),
            budget: Cell::new(BUDGET_IN_ALL),
        };
        let mut at = 0;
        while let (Ok(position), Some(found)) = (u32::try_from(at), type_at(types, at)) {
            if btf.positions.len() >= MOST_TYPES {
                break;
            }
            btf.positions.push(position);
            let is_named = found.is_structure() && found.name != 0 && btf.structures.len() < MOST_STRUCTURES;
            if is_named && let Some(name) = string_at(strings, found.name as usize, LONGEST) {
                btf.structures.entry(name).or_insert(btf.positions.len() as u32);
            }
            at = found.rest + found.rest_bytes();
        }
        (!btf.structures.is_empty()).then_some(btf)
    }

    fn type_of(&self, id: u32) -> Option<Type> {
        self.budget.set(self.budget.get().checked_sub(1)?);
        let position = *self.positions.get(id.checked_sub(1)? as usize)?;
        type_at(self.types, position as usize)
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, id: u32) -> Option<Type> {
        let mut found = self.type_of(id)?;
        for _ in 0..DEPTH {
            if !found.is_alias() {
                return Some(found);
            }
            found = self.type_of(found.size_or_type)?;
        }
        None
    }

    /// The size of a type in bytes.
    fn size(&self, id: u32, depth: u32) -> Option<u64> {
        let found = self.resolve(id)?;
        match found.kind() {
            KIND_POINTER => Some(8),
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_ENUM64 | KIND_FLOAT => {
                Some(u64::from(found.size_or_type))
            }
            KIND_ARRAY => {
                let element = self.size(u32_at(self.types, found.rest)?, depth.checked_sub(1)?)?;
                element.checked_mul(u64::from(u32_at(self.types, found.rest + 8)?))
            }
            _ => None,
        }
    }

    /// The size in bytes of a structure or union by its name.
    pub fn size_of(&self, structure: &str) -> Option<u64> {
        let id = *self.structures.get(structure.as_bytes())?;
        self.type_of(id).map(|found| u64::from(found.size_or_type))
    }

    /// Whether some enumeration has a value of this name.
    pub fn has_enumerator(&self, name: &str) -> bool {
        let is_it = |at: usize| {
            let text = u32_at(self.types, at).and_then(|text| self.strings.get(text as usize..));
            text.and_then(|text| text.strip_prefix(name.as_bytes())).is_some_and(|rest| rest.first() == Some(&0))
        };
        self.positions.iter().filter_map(|&at| type_at(self.types, at as usize)).any(|found| {
            let bytes = match found.kind() {
                KIND_ENUM => 8,
                KIND_ENUM64 => 12,
                _ => return false,
            };
            (0..found.count()).any(|nth| is_it(found.rest + nth * bytes))
        })
    }

    /// A member by its path (`"se.cfs_rq"`). Members of anonymous structures are found by their own name; in an array
    /// the path goes on in the first element. `None` where it does not exist or is a bit field.
    pub fn member(&self, structure: &str, path: &str) -> Option<Member> {
        let found = self.walk(structure, path)?;
        let is_whole = found.width == 0 && found.bits.is_multiple_of(8);
        is_whole.then(|| Member { offset: found.bits / 8, size: self.size(found.id, DEPTH).unwrap_or(0) })
    }

    /// A bit field by its path, as [`Btf::member`]. `None` where it does not exist or is a member of whole bytes.
    pub fn bit_field(&self, structure: &str, path: &str) -> Option<BitField> {
        let found = self.walk(structure, path)?;
        let field = BitField { offset: found.bits / 8, shift: (found.bits % 8) as u32, width: found.width };
        (found.width != 0).then_some(field)
    }

    fn walk(&self, structure: &str, path: &str) -> Option<Found> {
        let mut reached = Found { bits: 0, width: 0, id: *self.structures.get(structure.as_bytes())? };
        for name in path.split('.') {
            let id = reached.id;
            let mut holder = self.resolve(id)?;
            for _ in 0..DEPTH {
                if holder.kind() != KIND_ARRAY {
                    break;
                }
                holder = self.resolve(u32_at(self.types, holder.rest)?)?;
            }
            let found = self.find(holder, name.as_bytes(), DEPTH, &mut BUDGET.clone())?;
            reached = Found { bits: reached.bits.checked_add(found.bits)?, ..found };
        }
        Some(reached)
    }

    /// A member of a structure, or of an anonymous one in it.
    fn find(&self, structure: Type, name: &[u8], depth: u32, budget: &mut u32) -> Option<Found> {
        if !structure.is_structure() {
            return None;
        }
        let depth = depth.checked_sub(1)?;
        for i in 0..structure.count() {
            *budget = budget.checked_sub(1)?;
            self.budget.set(self.budget.get().checked_sub(1)?);
            let at = structure.rest + i * 12;
            let (text, id) = (u32_at(self.types, at)? as usize, u32_at(self.types, at + 4)?);
            let place = u32_at(self.types, at + 8)?;
            // With the kind flag the upper byte is the width of a bit field.
            let (bits, width) = if structure.info >> 31 != 0 { (place & 0xff_ffff, place >> 24) } else { (place, 0) };
            let bits = u64::from(bits);
            let own = self.strings.get(text..)?;
            if text == 0 || own.first() == Some(&0) {
                let inner = self.resolve(id).and_then(|inner| self.find(inner, name, depth, budget));
                if let Some(inner) = inner {
                    return Some(Found { bits: bits.checked_add(inner.bits)?, ..inner });
                }
            } else if own.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0)) {
                return Some(Found { bits, width, id });
            }
        }
        None
    }
}

fn type_at(types: &[u8], at: usize) -> Option<Type> {
    let found = Type {
        name: u32_at(types, at)?,
        info: u32_at(types, at + 4)?,
        size_or_type: u32_at(types, at + 8)?,
        rest: at + 12,
    };
    // A kind from the future has a length that nobody here knows.
    (matches!(found.kind(), 1..=KIND_ENUM64) && found.rest + found.rest_bytes() <= types.len()).then_some(found)
}
