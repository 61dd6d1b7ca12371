//! What the memory view remembers: where it looks, how it shows it, where it came from, what was searched.

use tui_input::Input;

use crate::engine::{command::Pattern, snapshot::Va};

/// How memory is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryMode {
    /// As bytes and letters.
    #[default]
    Bytes,
    /// As instructions.
    Code,
    /// The page walk of the address under the cursor.
    Walk,
}

impl MemoryMode {
    /// All modes, in the order in which a key goes through them.
    pub const ALL: [Self; 3] = [Self::Bytes, Self::Code, Self::Walk];

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Code => "instructions",
            Self::Walk => "page walk",
        }
    }

    /// The mode after this one, the first after the last.
    pub const fn next(self) -> Self {
        match self {
            Self::Bytes => Self::Code,
            Self::Code => Self::Walk,
            Self::Walk => Self::Bytes,
        }
    }
}

/// A view of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryView {
    /// The address space: a process, or `None` for the kernel.
    pub pid: Option<u32>,
    /// The byte, or the instruction, that keys act on.
    pub cursor: Va,
    /// The first byte shown.
    pub top: Va,
    /// How it is shown.
    pub mode: MemoryMode,
    /// First line shown of a page walk.
    pub scroll: usize,
    /// Address spaces and addresses to go back to, the last one last.
    pub trail: Vec<(Option<u32>, Va)>,
    /// What was searched last, and where it was found.
    pub search: Option<Found>,
}

impl MemoryView {
    /// How many addresses can be gone back to.
    pub const TRAIL: usize = 64;

    /// A view of an address, with the cursor on it.
    pub fn at(pid: Option<u32>, va: Va) -> Self {
        Self { pid, cursor: va, top: Va(va.0 & !0xf), ..Self::default() }
    }
}

/// A search and its matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What was looked for, as it was typed.
    pub text: String,
    /// The same as patterns.
    pub patterns: Vec<Pattern>,
    /// Whether the engine is still at it.
    pub under_way: bool,
    /// Where it was found, in order.
    pub places: Vec<Va>,
    /// Whether there is more behind the last place.
    pub more: bool,
}

/// What is searched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FindKind {
    /// Bytes in hexadecimal, `??` for any byte.
    #[default]
    Bytes,
    /// Text in ASCII (or UTF-8) and in UTF-16.
    Text,
    /// A pointer to a symbol or an address.
    Pointer,
}

impl FindKind {
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Text => "text",
            Self::Pointer => "pointer to",
        }
    }

    /// What can be typed.
    pub const fn example(self) -> &'static str {
        match self {
            Self::Bytes => "48 8b ?? 05",
            Self::Text => "as ASCII and as UTF-16",
            Self::Pointer => "a symbol or an address",
        }
    }

    /// The kind after this one, the first after the last.
    pub const fn next(self) -> Self {
        match self {
            Self::Bytes => Self::Text,
            Self::Text => Self::Pointer,
            Self::Pointer => Self::Bytes,
        }
    }
}

/// What is searched for is typed.
#[derive(Clone, Debug, Default)]
pub struct FindDialog {
    /// What kind of thing it is.
    pub kind: FindKind,
    /// The text.
    pub input: Input,
    /// Why it cannot be searched for.
    pub error: Option<String>,
}
