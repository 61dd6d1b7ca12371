//! Pages that an address space does not map: what the memory manager keeps in the entry (`_MMPTE_SOFTWARE`,
//! `_MMPTE_TRANSITION`, `_MMPTE_PROTOTYPE` of the public symbols).

use super::WindowsOs;
use crate::engine::{
    addr::{AddressContext, Pa},
    arch::{
        Architecture,
        amd64::{Amd64, TranslationFault},
    },
    driver::VmiRead,
    session::VmiCore,
    snapshot::MissingPage,
};

/// Bit 10, Prototype: a shared section's own table has the entry.
const PROTOTYPE: u64 = 1 << 10;
/// Bit 11, Transition: the frame, in bits 47:12, still has the page.
const TRANSITION: u64 = 1 << 11;
const FRAME: u64 = 0x0000_ffff_ffff_f000;
/// Bits 9:5, Protection: MM_NOACCESS, and MM_GUARD_PAGE in its two upper bits.
const PROTECTION: u64 = 0x1f;
const NO_ACCESS: u64 = 0x18;
const GUARD: u64 = 0x10;

impl WindowsOs {
    /// What there is of a page that is not mapped; `None` where it is mapped.
    pub(super) fn missing<Driver>(&self, core: &VmiCore<Driver>, page: AddressContext) -> Option<MissingPage>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let translation = Amd64::translation(core, page.va, page.root);
        let Some(TranslationFault::NotPresent(_)) = translation.fault() else { return None };
        let entry = translation.entries().last()?.entry.0;
        let protection = entry >> 5 & PROTECTION;
        let mut missing = match entry {
            0 => said("never touched, or no memory of the process: there is no entry", "a page fault tells"),
            _ if entry & PROTOTYPE != 0 => said(
                "shared: the section's own table (a prototype) says where the page is",
                "a page fault has the guest look it up",
            ),
            _ if entry & TRANSITION != 0 => {
                let pa = Pa(entry & FRAME | page.va.0 & 0xfff);
                let pa = Some(pa).filter(|&pa| core.read_u8(pa).is_ok());
                MissingPage {
                    pa,
                    ..said("in transition: taken from the process, and still in memory", "a page fault gives it back")
                }
            }
            _ if entry >> 32 == 0 => said("never touched (demand zero)", "a page fault maps a page of zeros"),
            _ => {
                let (file, slot) = (entry >> 12 & 0xf, entry >> 32);
                let what = format!("paged out to page file {file}, page {slot:#x}");
                said(&what, "a page fault has the guest read it back")
            }
        };
        // A prototype has other bits there.
        if entry != 0 && entry & PROTOTYPE == 0 && protection & NO_ACCESS == NO_ACCESS {
            missing.comes_by_fault = false;
            missing.what = format!("its protection is PAGE_NOACCESS; {}", missing.what);
            missing.advice = "no page fault brings it in: its process would get an access violation".into();
        } else if entry != 0 && entry & PROTOTYPE == 0 && protection & NO_ACCESS == GUARD {
            missing.comes_by_fault = false;
            missing.what = format!("a guard page; {}", missing.what);
            missing.advice = "no page fault is to touch it: its process would take that for its own doing".into();
        }
        Some(missing)
    }
}

fn said(what: &str, advice: &str) -> MissingPage {
    MissingPage { what: what.to_owned(), comes_by_fault: true, advice: advice.to_owned(), ..MissingPage::default() }
}
