//! Pages that are not mapped: what an entry of the kernel's says of them.

use vmscope::engine::{
    addr::{AddressContext, Pa, Va},
    arch::amd64::PageTableLevel,
    os::{VmiOs, linux::LinuxOs},
    session::VmiSession,
    snapshot::MissingPage,
};

use crate::{
    INIT, attach, process,
    support::linux::{Machine, Options, offset},
};

/// Bits 8 and 7 of an entry.
const PROT_NONE: u64 = 1 << 8;
const LARGE: u64 = 1 << 7;
/// Nothing but bits of an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// `VM_READ`, `VM_UFFD_MISSING`.
const READ: u64 = 1;
const SERVED: u64 = 0x200;

/// A swap entry: type and inverted offset.
fn swap(kind: u64, offset: u64) -> u64 {
    kind << 59 | !offset << 14 >> 5
}

/// A process whose first page of arguments is in a region with these flags, and perhaps of a file.
struct Scene {
    machine: Machine,
    os: LinuxOs,
    root: Pa,
}

impl Scene {
    fn new(options: Options, flags: u64, path: Option<&str>) -> Self {
        let machine = Machine::new(options);
        let task = machine.spawn(INIT);
        let file = path.map_or(Va(0), |path| machine.file(&[path]));
        let at = machine.arguments_at().0;
        machine.set_regions(task, &[(at, at + 0x20_0000, flags, file)]);
        let os = attach(&machine);
        let root = process(&machine, &os, 1).root.expect("an address space");
        Self { machine, os, root }
    }

    fn page(&self) -> AddressContext {
        AddressContext::new(self.machine.arguments_at() + 5, self.root)
    }

    fn session(&self) -> VmiSession<'_, crate::FlatDriver, LinuxOs> {
        self.machine.core.flush_v2p_cache();
        VmiSession::new(&self.machine.core, &self.os)
    }

    /// What there is with an entry of a page table, or of another level's.
    fn at(&self, level: PageTableLevel, entry: u64) -> MissingPage {
        self.machine.set_entry(self.root, level, entry);
        self.os.missing_page(self.session(), self.page()).expect("readable books").expect("a page that is missing")
    }

    fn with(&self, entry: u64) -> MissingPage {
        self.at(PageTableLevel::Pt, entry)
    }
}

#[test]
fn what_is_mapped_is_not_missing() {
    let scene = Scene::new(Options::default(), READ, None);
    assert_eq!(scene.os.missing_page(scene.session(), scene.page()).expect("readable"), None);
}

#[test]
fn a_page_without_permission_is_told_from_a_hint_and_from_none() {
    for levels in [4, 5] {
        let options = Options { levels, ..Options::default() };
        let frame = 0x70_1000;
        let entry = !frame & ADDRESS | PROT_NONE | 1 << 63;
        let scene = Scene::new(options, 0, None);
        let missing = scene.with(entry);
        assert!(missing.what.contains("PROT_NONE") && missing.what.contains("the page is there"), "{missing:?}");
        assert_eq!((missing.pa, missing.comes_by_fault), (Some(Pa(frame | 5)), false));
        assert_eq!(missing.readable_at, Some(scene.machine.direct + (frame | 5)));
        assert!(missing.advice.contains("SIGSEGV"), "{missing:?}");
        let refused = scene.os.unservable(scene.session(), scene.page()).expect("readable books").expect("a reason");
        assert!(refused.contains("no access") && refused.contains("0x701005"), "{refused}");
        let missing = scene.with(0);
        assert!(missing.what.contains("PROT_NONE") && missing.what.contains("there is no page"), "{missing:?}");
        assert_eq!((missing.pa, missing.comes_by_fault), (None, false));

        let scene = Scene::new(options, READ, None);
        let missing = scene.with(entry);
        assert!(missing.what.contains("NUMA hint"), "{missing:?}");
        assert_eq!((missing.pa, missing.comes_by_fault), (Some(Pa(frame | 5)), true));
        assert_eq!(scene.os.unservable(scene.session(), scene.page()).expect("readable books"), None);
        // A frame that is no memory is said, and not said to be readable.
        assert_eq!(scene.with(!(1 << 45) & ADDRESS | PROT_NONE).readable_at, None);
    }
}

#[test]
fn huge_pages_are_found_where_they_are() {
    let frame = 0x60_0000;
    let scene = Scene::new(Options::default(), 0, None);
    let missing = scene.at(PageTableLevel::Pd, !frame & ADDRESS & !0x1f_ffff | PROT_NONE | LARGE);
    assert!(missing.what.contains("huge page"), "{missing:?}");
    assert_eq!(missing.pa, Some(Pa(frame | 5)));
    let scene = Scene::new(Options::default(), READ, None);
    let missing = scene.at(PageTableLevel::Pd, !frame & ADDRESS & !0x1f_ffff | LARGE | 6);
    assert!(missing.what.contains("split"), "{missing:?}");
    assert_eq!((missing.pa, missing.comes_by_fault), (Some(Pa(frame | 5)), true));
    // The whole table is missing.
    let missing = scene.at(PageTableLevel::Pml4, 0);
    assert!(missing.what.contains("never touched"), "{missing:?}");
}

#[test]
fn types_of_swap_entries_are_those_of_the_kernel() {
    let scene = Scene::new(Options::default(), READ, None);
    let file = scene.machine.file(&["swap"]);
    let info = scene.machine.alloc(0x80);
    scene.machine.poke32(Machine::SWAP_FILES, 1);
    scene.machine.poke64(Machine::SWAP_FILES + 8, info.0);
    scene.machine.poke64(info + offset("swap_info_struct", "swap_file"), file.0);
    // A marker, a device's alone, two in a device's memory, three that move, one that is broken, from the top down.
    let pfn = 0x701;
    // Bits on the page that moves are above its frame.
    let moving = pfn | 3 << 34;
    for (kind, offset, what, pa, comes) in [
        (31, 1, "write-protected", None, true),
        (31, 2, "lost", None, false),
        (31, 4, "guard page", None, false),
        (30, pfn, "alone", Some(Pa(0x70_1005)), true),
        (29, pfn, "in the memory of a device", None, true),
        (28, pfn, "in the memory of a device", None, true),
        (27, moving, "migration", Some(Pa(0x70_1005)), true),
        (26, moving, "migration", Some(Pa(0x70_1005)), true),
        (25, moving, "migration", Some(Pa(0x70_1005)), true),
        (24, pfn, "hwpoison", Some(Pa(0x70_1005)), false),
        (23, 7, "a swap entry of type 23, offset 0x7", None, true),
        (1, 7, "a swap entry of type 1, offset 0x7", None, true),
        (0, 0x1234, "swapped out to /swap, page 0x1234", None, true),
    ] {
        // Soft-dirty, write-protected and exclusive (bits 1 to 3) change nothing.
        for bits in [0, 0xe] {
            let missing = scene.with(swap(kind, offset) | bits);
            assert!(missing.what.contains(what), "{kind} {missing:?}");
            assert_eq!((missing.pa, missing.comes_by_fault), (pa, comes), "{kind} {missing:?}");
        }
    }
    // Where the region allows nothing, nothing comes.
    let scene = Scene::new(Options::default(), 0, None);
    scene.machine.poke32(Machine::SWAP_FILES, 1);
    let missing = scene.with(swap(0, 9));
    assert!(missing.what.contains("PROT_NONE") && missing.what.contains("swap file 0, page 0x9"), "{missing:?}");
    assert!(!missing.comes_by_fault);
}

#[test]
fn what_there_is_without_an_entry_is_told_by_the_region() {
    let with = |flags, file| Scene::new(Options::default(), flags, file).with(0);
    let missing = with(READ, None);
    assert!(missing.what.contains("never touched") && missing.comes_by_fault, "{missing:?}");
    let missing = with(READ, Some("library"));
    assert!(missing.what.contains("a page of /library") && missing.comes_by_fault, "{missing:?}");
    let missing = with(READ | SERVED, None);
    assert!(missing.what.contains("userfaultfd") && !missing.comes_by_fault, "{missing:?}");
    let scene = Scene::new(Options::default(), READ, None);
    let nowhere = AddressContext::new(Va(0x1000), scene.root);
    let missing = scene.os.missing_page(scene.session(), nowhere).expect("readable").expect("missing");
    assert!(missing.what.contains("no memory region") && !missing.comes_by_fault, "{missing:?}");
    let gone = AddressContext::new(Va(0x1000), scene.machine.root);
    let missing = scene.os.missing_page(scene.session(), gone).expect("readable").expect("missing");
    assert!(missing.what.contains("has ended"), "{missing:?}");
}
