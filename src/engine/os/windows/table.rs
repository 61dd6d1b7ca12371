//! Tables of handles (`_HANDLE_TABLE`): those of processes, and `PspCidTable`, whose handles are ids.
//!
//! The lower two bits of `TableCode` say how many levels of pages of pointers come before the pages of entries: 512
//! pointers each, 256 entries (`_HANDLE_TABLE_ENTRY`) each.

use std::collections::HashSet;

use super::memory::{Memory, present};
use crate::engine::{addr::Va, arch::amd64::Amd64, driver::VmiRead, error::VmiError};

/// Pages of entries that are read at most: a million handles.
const MOST_PAGES: usize = 1 << 12;

/// What a table holds.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// Handles and the objects that they name: of a process's table the header, of the table of ids the object itself.
    pub(super) used: Vec<(u64, Va)>,
    /// Whether a page is missing, leads back to itself, or a bound was reached.
    pub(super) truncated: bool,
}

impl<Driver: VmiRead<Architecture = Amd64>> Memory<'_, Driver> {
    /// The entries in use of a table, `most` at most, in order of handle.
    ///
    /// # Errors
    /// When the table itself or its top page cannot be read.
    pub(super) fn table(&self, table: Va, most: usize) -> Result<Entries, VmiError> {
        let mut found = Entries::default();
        let code = self.u64(table + self.os.offsets.table_code)?;
        if code & 3 == 3 {
            found.truncated = true;
            return Ok(found);
        }
        let mut pages = vec![Va(code & !3)];
        let mut seen: HashSet<Va> = pages.iter().copied().collect();
        for level in 0..code & 3 {
            let mut below = Vec::new();
            for page in pages {
                let words = match self.words(page) {
                    Err(error) if error.is_page_fault() && level > 0 => {
                        found.truncated = true;
                        continue;
                    }
                    words => words?,
                };
                // A level is filled from its front. A page that comes twice would be a table that holds itself.
                for pointer in words.into_iter().take_while(|&pointer| pointer != 0).map(Va) {
                    if below.len() >= MOST_PAGES || !seen.insert(pointer) {
                        found.truncated = true;
                        break;
                    }
                    below.push(pointer);
                }
            }
            pages = below;
        }
        for (page, number) in pages.into_iter().zip(0u64..) {
            let Some(words) = present(self.words(page))? else {
                found.truncated = true;
                continue;
            };
            for (pair, index) in words.as_chunks::<2>().0.iter().zip(0u64..) {
                // ObjectPointerBits: bits 20 to 63 are bits 4 to 47 of the address.
                let object = Va((pair[0] as i64 >> 16) as u64 & !0xf);
                if pair[0] == 0 || object.0 >> 63 == 0 {
                    continue;
                }
                if found.used.len() >= most {
                    found.truncated = true;
                    return Ok(found);
                }
                found.used.push(((number * 256 + index) * 4, object));
            }
        }
        Ok(found)
    }

    fn words(&self, page: Va) -> Result<Vec<u64>, VmiError> {
        let mut bytes = [0; 4096];
        self.read(page, &mut bytes)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }
}
