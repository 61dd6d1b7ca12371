//! Addresses of a virtual machine, each kind a type of its own so that one cannot be taken for another.
//!
//! Arithmetic with `+` and `-` wraps, as address arithmetic on the machine does, and so cannot panic on a
//! hostile pointer; `checked_add` and `checked_sub` are there where a wrap would be a mistake.

use std::{
    fmt,
    num::ParseIntError,
    ops::{Add, AddAssign, Sub},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Parses `0x1f`, `1f` and WinDbg's `fffff803`1c2a41f0` form as a hexadecimal number.
fn parse_hex(text: &str) -> Result<u64, ParseIntError> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let digits: String = digits.chars().filter(|&c| c != '`' && c != '_').collect();
    // `from_str_radix` takes a sign, an address has none.
    if digits.starts_with(['+', '-']) {
        return u64::from_str_radix("", 16);
    }
    u64::from_str_radix(&digits, 16)
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The sum, or `None` where it would wrap.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }

            /// The difference, or `None` where it would wrap.
            pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
                match self.0.checked_sub(bytes) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }

            /// Whether the value is zero.
            pub const fn is_null(self) -> bool {
                self.0 == 0
            }
        }

        impl Add<u64> for $name {
            type Output = Self;
            fn add(self, rhs: u64) -> Self {
                Self(self.0.wrapping_add(rhs))
            }
        }

        impl AddAssign<u64> for $name {
            fn add_assign(&mut self, rhs: u64) {
                *self = *self + rhs;
            }
        }

        impl Sub<u64> for $name {
            type Output = Self;
            fn sub(self, rhs: u64) -> Self {
                Self(self.0.wrapping_sub(rhs))
            }
        }

        impl Sub for $name {
            type Output = u64;
            fn sub(self, rhs: Self) -> u64 {
                self.0.wrapping_sub(rhs.0)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> u64 {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

address! {
    /// A guest-virtual address: what the guest's code uses, meaningful only together with a translation root.
    Va
}

address! {
    /// A guest-physical address, in bytes.
    Pa
}

address! {
    /// A guest frame number: a guest-physical address in units of pages.
    Gfn
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(transparent)]
        pub struct $name(pub u16);

        impl From<u16> for $name {
            fn from(value: u16) -> Self {
                Self(value)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;
            /// Parses the decimal number that it is displayed as.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.trim().parse().map(Self)
            }
        }
    };
}

number! {
    /// The index of a virtual CPU, from 0.
    VcpuId
}

number! {
    /// A view: one complete set of guest-physical mappings and permissions (Xen: altp2m index; Intel: EPTP).
    /// 0 is the default view on every driver.
    View
}

/// A virtual address in one address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AddressContext {
    /// The virtual address.
    pub va: Va,
    /// The physical address of the top page table (on AMD64: CR3 without its PCID; where the kernel isolates its page
    /// tables, the one that the OS layer's `process_root` answers).
    pub root: Pa,
}

impl AddressContext {
    /// A virtual address under the given translation root.
    pub fn new(va: impl Into<Va>, root: impl Into<Pa>) -> Self {
        Self { va: va.into(), root: root.into() }
    }
}

impl From<(Va, Pa)> for AddressContext {
    fn from((va, root): (Va, Pa)) -> Self {
        Self { va, root }
    }
}

impl fmt::Display for AddressContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (root {})", self.va, self.root)
    }
}

/// How an access names the memory that it wants: by physical address, or through page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessContext {
    /// Guest-physical memory, no translation.
    Direct(Pa),
    /// Guest-virtual memory in one address space.
    Paging(AddressContext),
}

impl AccessContext {
    /// The same kind of access, `bytes` further on.
    pub fn offset(self, bytes: u64) -> Self {
        match self {
            Self::Direct(pa) => Self::Direct(pa + bytes),
            Self::Paging(ctx) => Self::Paging(AddressContext { va: ctx.va + bytes, ..ctx }),
        }
    }

    /// The address within its space, virtual or physical.
    pub const fn address(self) -> u64 {
        match self {
            Self::Direct(pa) => pa.0,
            Self::Paging(ctx) => ctx.va.0,
        }
    }
}

impl From<Pa> for AccessContext {
    fn from(pa: Pa) -> Self {
        Self::Direct(pa)
    }
}

impl From<(Va, Pa)> for AccessContext {
    fn from(pair: (Va, Pa)) -> Self {
        Self::Paging(pair.into())
    }
}

impl From<AddressContext> for AccessContext {
    fn from(ctx: AddressContext) -> Self {
        Self::Paging(ctx)
    }
}

impl fmt::Display for AccessContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(pa) => write!(f, "physical {pa}"),
            Self::Paging(ctx) => ctx.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_forms_people_type() {
        let want = Va(0xffff_f803_1c2a_41f0);
        for text in ["0xfffff8031c2a41f0", "fffff803`1c2a41f0", " FFFFF8031C2A41F0 ", "0Xfffff803_1c2a41f0"] {
            assert_eq!(text.parse::<Va>(), Ok(want), "{text}");
        }
        for text in ["", "0x", "nt!x", "-1", "+1", "11112222333344445"] {
            assert!(text.parse::<Va>().is_err(), "{text}");
        }
        assert_eq!((View(12).to_string().parse(), " 3 ".parse()), (Ok(View(12)), Ok(VcpuId(3))));
        assert!(["", "-1", "0x1", "65536"].iter().all(|text| text.parse::<View>().is_err()));
    }

    #[test]
    fn arithmetic_wraps_or_says_so() {
        assert_eq!(Va(u64::MAX) + 2, Va(1));
        assert_eq!(Pa(0) - 1, Pa(u64::MAX));
        assert_eq!(Va(u64::MAX).checked_add(1), None);
        assert_eq!(Pa(8).checked_sub(8), Some(Pa(0)));
        assert_eq!(Va(3) - Va(5), u64::MAX - 1);
    }

    #[test]
    fn json_keeps_the_documented_form() {
        let json = serde_json::to_string(&Va(0xffff_f803_1c2a_41f0)).unwrap_or_default();
        assert_eq!(json, "\"0xfffff8031c2a41f0\"");
        assert_eq!(serde_json::from_str::<Va>(&json).ok(), Some(Va(0xffff_f803_1c2a_41f0)));
    }
}
