//! A page that an address space does not map: what there is of it.

use serde::Serialize;

use super::{Pa, Va};

/// What a page-table entry that is not present, and the kernel's books of the address, say of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MissingPage {
    /// What is found, in words: "swapped out to /dev/vda2", "its memory region allows no access (PROT_NONE)".
    pub what: String,
    /// Where the address's byte is, if the page is in the guest's memory all the same.
    pub pa: Option<Pa>,
    /// Where the kernel's own map of memory has that byte, to be read there.
    pub readable_at: Option<Va>,
    /// Whether a page fault of a read brings the page in. What only trying tells counts as yes.
    pub comes_by_fault: bool,
    /// What can be done, or what a page fault would do: "a page fault has the guest read it back".
    pub advice: String,
}

impl MissingPage {
    /// All of it in a sentence's part.
    pub fn sentence(&self) -> String {
        match (self.pa, self.readable_at) {
            (Some(pa), Some(va)) => {
                format!("{}; its bytes are in memory at {pa}, readable at {va}; {}", self.what, self.advice)
            }
            (Some(pa), None) => format!("{}; its bytes are in memory at {pa}; {}", self.what, self.advice),
            (None, _) => format!("{}; {}", self.what, self.advice),
        }
    }
}
