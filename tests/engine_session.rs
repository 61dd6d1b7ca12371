//! The session's ground: page walks, reads, strings, caches. How a session ends is in `engine_handler`.

mod support;

use std::{cell::Cell, panic::AssertUnwindSafe, panic::catch_unwind, time::Duration};

use support::{Call, FlatDriver, Flicker, PageSize, Rng, Scripted, Tables, core};
use vmscope::engine::{
    addr::{AddressContext, Gfn, Pa, Va, VcpuId, View},
    arch::{
        Architecture, EventReason, Registers,
        amd64::{
            Amd64, Amd64EventReason, Amd64Registers, EventInterrupt, Interrupt, InterruptType, PageTableEntry,
            PageTableLevel, Segment, Translation, TranslationFault, is_canonical, root_from_cr3,
        },
    },
    driver::{MemoryAccess, VmiWrite},
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
    session::{Field, NoOS, VmiCore, VmiSession},
};

const BASE: Va = Va(0x7f00_0000_0000);

/// A guest whose page tables start at frame 16 and whose data lie in frames 64 to 127.
fn guest(levels: u8, f: impl FnOnce(&VmiCore<FlatDriver>, &Tables)) {
    let vmi = core(128);
    vmi.set_paging_levels(levels);
    let next = Cell::new(16);
    let space = Tables::new(vmi.driver(), &next, levels);
    f(&vmi, &space);
}

fn frame(n: u64) -> Pa {
    Pa(n * 0x1000)
}

/// The pages that a failed read names.
fn missing<T: std::fmt::Debug>(result: Result<T, VmiError>) -> Vec<u64> {
    match result {
        Err(VmiError::Translation(faults)) => faults.iter().map(|ctx| ctx.va.0).collect(),
        other => panic!("expected missing pages, got {other:?}"),
    }
}

fn walk(vmi: &VmiCore<FlatDriver>, va: Va, root: Pa) -> Translation {
    Amd64::translation(vmi, va, root)
}

// ---------------------------------------------------------------------------------------------------- page walks

#[test]
fn all_page_sizes_translate_with_four_and_five_levels() {
    for levels in [4, 5] {
        guest(levels, |vmi, space| {
            let top = if levels == 5 { 0x00ab_0000_0000_0000 } else { 0 };
            let sizes = [
                (Va(top + 0x7f00_1234_5000), Pa(0x45000), PageSize::Small, 0xfff, PageTableLevel::Pt),
                (Va(top + 0x7f00_4020_0000), Pa(0x20_0000), PageSize::Large, 0x1f_ffff, PageTableLevel::Pd),
                (Va(top + 0x6f80_0000_0000), Pa(0xc000_0000), PageSize::Huge, 0x3fff_ffff, PageTableLevel::Pdpt),
            ];
            for (va, pa, size, last, level) in sizes {
                space.map(va, pa, size);
                for offset in [0, 8, last / 2, last] {
                    let ctx = (va + offset, space.root());
                    assert_eq!(vmi.translate_address(ctx).ok(), Some(pa + offset), "{levels} levels, {size:?}");
                    let walk = walk(vmi, va + offset, space.root());
                    assert_eq!((walk.pa(), walk.leaf_level()), (Some(pa + offset), Some(level)));
                    assert_eq!(walk.fault(), None);
                }
                let entries: Vec<_> = walk(vmi, va, space.root()).entries().collect();
                assert_eq!(
                    entries.len() as u8,
                    levels - (4 - PageTableLevel::walk(4).iter().position(|l| *l == level).unwrap() as u8 - 1)
                );
                for entry in entries {
                    assert_eq!(space.entry(va, entry.level), Some(entry.entry_address));
                    assert_eq!(vmi.driver().peek64(entry.entry_address.0), entry.entry.0);
                }
            }
        });
    }
}

#[test]
fn a_missing_entry_of_any_level_yields_no_address() {
    guest(4, |vmi, space| {
        let leaf = space.map(BASE, frame(64), PageSize::Small);
        for &level in PageTableLevel::walk(4) {
            let at = space.entry(BASE, level).expect("mapped");
            let entry = vmi.driver().peek64(at.0);
            // Not present, but with an address in it: a page that was swapped out.
            vmi.driver().poke64(at.0, entry & !1);
            vmi.flush_v2p_cache();
            assert_eq!(missing(vmi.translate_address((BASE + 5, space.root()))), [BASE.0 + 5]);
            let walk = walk(vmi, BASE, space.root());
            assert_eq!((walk.pa(), walk.fault()), (None, Some(TranslationFault::NotPresent(level))));
            vmi.driver().poke64(at.0, entry);
        }
        assert_eq!(walk(vmi, BASE, space.root()).entries().last().map(|e| e.entry_address), Some(leaf));
    });
}

#[test]
fn the_pat_bit_of_a_large_page_is_not_part_of_its_address() {
    guest(4, |vmi, space| {
        let at = space.map(BASE, Pa(0x20_0000), PageSize::Large);
        vmi.driver().poke64(at.0, vmi.driver().peek64(at.0) | 1 << 12);
        assert_eq!(vmi.translate_address((BASE + 0x123, space.root())).ok(), Some(Pa(0x20_0123)));
        let huge = BASE + (1 << 39);
        let at = space.map(huge, Pa(0x4000_0000), PageSize::Huge);
        vmi.driver().poke64(at.0, vmi.driver().peek64(at.0) | 1 << 12);
        assert_eq!(vmi.translate_address((huge + 0x123, space.root())).ok(), Some(Pa(0x4000_0123)));
        assert!(PageTableEntry(1 << 12 | 0x81).flags(PageTableLevel::Pd).contains(&"pat"));
        assert!(!PageTableEntry(1 << 12 | 0x01).flags(PageTableLevel::Pd).contains(&"pat"));
    });
}

#[test]
fn the_large_bit_is_reserved_above_the_pdpt() {
    for levels in [4, 5] {
        guest(levels, |vmi, space| {
            space.map(BASE, frame(64), PageSize::Small);
            for &level in PageTableLevel::walk(levels).iter().filter(|level| **level < PageTableLevel::Pdpt) {
                let at = space.entry(BASE, level).expect("mapped");
                let entry = vmi.driver().peek64(at.0);
                vmi.driver().poke64(at.0, entry | 0x80);
                vmi.flush_v2p_cache();
                assert_eq!(missing(vmi.translate_address((BASE, space.root()))), [BASE.0]);
                assert_eq!(walk(vmi, BASE, space.root()).fault(), Some(TranslationFault::Reserved(level)));
                vmi.driver().poke64(at.0, entry);
            }
        });
    }
}

#[test]
fn addresses_that_are_not_canonical_are_not_translated() {
    for (levels, last_low) in [(4, 0x0000_7fff_ffff_ffff_u64), (5, 0x00ff_ffff_ffff_ffff)] {
        guest(levels, |vmi, space| {
            for good in [0, last_low, !last_low, u64::MAX] {
                assert!(is_canonical(Va(good), levels), "{good:#x}");
            }
            for bad in [last_low + 1, !last_low - 1, BASE.0 | 0xdead << 48] {
                assert!(!is_canonical(Va(bad), levels), "{bad:#x}");
                assert_eq!(missing(vmi.translate_address((Va(bad), space.root()))), [bad]);
                let walk = walk(vmi, Va(bad), space.root());
                assert_eq!((walk.fault(), walk.entries().count()), (Some(TranslationFault::NonCanonical), 0));
            }
        });
    }
    // The upper half is walked by the same bits.
    guest(4, |vmi, space| {
        let high = Va(0xffff_8000_0000_0000);
        space.map(high, frame(70), PageSize::Small);
        assert_eq!(vmi.translate_address((high, space.root())).ok(), Some(frame(70)));
    });
}

#[test]
fn tables_that_point_at_themselves_end() {
    guest(4, |vmi, space| {
        // The recursive slot of the root maps the root itself as a page.
        let root = space.root();
        vmi.driver().poke64(root.0 + 511 * 8, root.0 | 7);
        assert_eq!(vmi.translate_address((Va(u64::MAX - 7), root)).ok(), Some(root + 0xff8));
        // Every entry points at the table.
        for entry in 0..512 {
            vmi.driver().poke64(root.0 + entry * 8, root.0 | 7);
        }
        vmi.flush_v2p_cache();
        assert_eq!(vmi.translate_address((BASE + 0x10, root)).ok(), Some(root + 0x10));
        assert_eq!(walk(vmi, BASE, root).entries().count(), 4);
    });
}

#[test]
fn tables_beyond_memory_are_faults_and_pages_beyond_memory_are_out_of_bounds() {
    guest(4, |vmi, space| {
        space.map(BASE, frame(64), PageSize::Small);
        let pd = space.entry(BASE, PageTableLevel::Pd).expect("mapped");
        let good = vmi.driver().peek64(pd.0);
        vmi.driver().poke64(pd.0, 0x000f_ffff_ffff_f007);
        assert_eq!(missing(vmi.translate_address((BASE, space.root()))), [BASE.0]);
        assert_eq!(walk(vmi, BASE, space.root()).fault(), Some(TranslationFault::Unreadable(PageTableLevel::Pt)));
        vmi.driver().poke64(pd.0, good);
        space.map(BASE, frame(0xffff_ffff), PageSize::Small);
        assert!(matches!(vmi.read_u8((BASE, space.root())), Err(VmiError::OutOfBounds(_))));
        // A root beyond memory is a fault too.
        assert_eq!(missing(vmi.translate_address((BASE, Pa(u64::MAX)))), [BASE.0]);
        let failed = vmi.read_u64(Pa(u64::MAX - 3));
        assert!(matches!(failed, Err(VmiError::OutOfBounds(_))), "{failed:?}");
    });
}

#[test]
fn a_root_leaves_pcid_and_no_flush_out() {
    assert_eq!(root_from_cr3(0x8000_0001_2345_6fff), Pa(0x1_2345_6000));
    let registers = Amd64Registers { cr3: 0x8000_0001_2345_6003, ..Default::default() };
    assert_eq!(registers.translation_root(BASE), Pa(0x1_2345_6000));
    assert_eq!(registers.address_context(BASE), AddressContext::new(BASE, Pa(0x1_2345_6000)));
}

#[test]
fn a_failing_driver_is_not_a_missing_page() {
    guest(4, |vmi, space| {
        space.map(BASE, frame(64), PageSize::Small);
        for nth in 0..4 {
            vmi.driver().fail_nth(nth);
            vmi.flush_v2p_cache();
            let failed = vmi.translate_address((BASE, space.root()));
            assert!(matches!(failed, Err(VmiError::Driver { .. })), "{failed:?}");
        }
    });
}

/// Random tables give the same answer by all three ways, and never more than the levels' number of reads.
#[test]
fn hostile_tables_are_walked_in_bounds() {
    let vmi = core(8);
    let mut rng = Rng::new(7);
    for round in 0..3000 {
        vmi.set_paging_levels(if round % 2 == 0 { 4 } else { 5 });
        for _ in 0..40 {
            let at = rng.below(8 * 512) * 8;
            let entry = if rng.percent(80) { rng.below(10) << 12 | rng.next() & 0x9ff | 1 } else { rng.next() };
            vmi.driver().poke64(at, entry);
        }
        let va = Va((rng.next() as i64 >> rng.below(20)) as u64);
        let root = Pa(rng.below(9) << 12);
        vmi.flush_v2p_cache();
        let recorded = walk(&vmi, va, root);
        let fast = Amd64::translate_address(&vmi, va, root);
        let cached = vmi.translate_address((va, root));
        assert!(recorded.entries().count() <= 5);
        assert_eq!(recorded.pa(), fast.as_ref().ok().copied());
        assert_eq!(fast.ok(), cached.ok());
        assert_eq!(recorded.pa().is_some(), recorded.fault().is_none());
        let _ = vmi.read_string((va, root));
    }
}

/// What a walk answers is what its own reads add up to, whatever the next read would say.
#[test]
fn entries_that_change_between_two_reads_leave_a_walk_in_one_piece() {
    let (mut mapped, mut faults) = (0, 0);
    for direct in [true, false] {
        let vmi = VmiCore::new(Flicker::new(8, 11, direct)).expect("it answers");
        for round in 0..6_000u64 {
            vmi.set_paging_levels(if round % 2 == 0 { 4 } else { 5 });
            vmi.flush_gfn_cache();
            let (va, root) = (Va(round.wrapping_mul(0x1234_5678_9abc) & 0x7fff_ffff_ffff), frame(round % 9));
            let walk = Amd64::translation(&vmi, va, root);
            let mut table = root;
            for read in walk.entries() {
                assert_eq!(read.entry_address, table + read.level.index(va) * 8);
                table = read.entry.address(read.level);
            }
            match walk.leaf_level() {
                Some(level) => assert_eq!(walk.pa(), Some(table + (va.0 & (level.page_bytes() - 1)))),
                None => assert!(walk.fault().is_some()),
            }
            match vmi.translate_address((va, root)) {
                Ok(pa) => {
                    assert!(pa.0 < 1 << 52);
                    mapped += 1;
                }
                Err(error) => {
                    assert_eq!(missing::<()>(Err(error)), [va.0]);
                    faults += 1;
                }
            }
            // A string without an end in sight still ends.
            let text = vmi.read_string_bytes_limited((va, root), 5_000);
            assert!(text.is_err() || text.is_ok_and(|text| text.len() <= 5_000));
        }
    }
    assert!(mapped > 300 && faults > 300, "{mapped} mapped, {faults} faults");
}

/// Every length and address at its largest: an error that names what is missing, or what there is.
#[test]
fn lengths_and_addresses_at_their_limits_are_answered() {
    guest(4, |vmi, space| {
        let end = Va(u64::MAX - 3);
        assert_eq!(missing(vmi.read_u64((end, space.root()))), [end.0, 0]);
        assert_eq!(missing(vmi.write_u64((end, space.root()), 0)), [end.0, 0]);
        assert_eq!(missing(vmi.read_string_limited((end, space.root()), usize::MAX)), [end.0]);
        assert_eq!(missing(vmi.read_wstring_limited((end, space.root()), usize::MAX)), [end.0]);
        for pa in [Pa(u64::MAX), Pa(u64::MAX - 7), Pa(u64::MAX << 12), Pa(1 << 52)] {
            assert!(matches!(vmi.read_u64(pa), Err(VmiError::OutOfBounds(_))), "{pa}");
            assert!(matches!(vmi.write_u64(pa, 0), Err(VmiError::OutOfBounds(_))), "{pa}");
            assert!(matches!(vmi.read_string_limited(pa, usize::MAX), Err(VmiError::OutOfBounds(_))), "{pa}");
        }
        let field = |offset, size| vmi.read_field((BASE, space.root()), &Field { offset, size });
        assert!(matches!(field(0, u64::MAX), Err(VmiError::Invalid(_))));
        assert_eq!(missing(field(u64::MAX, 1)), [BASE.0 - 1]);
        assert!(matches!(vmi.read_uint((BASE, space.root()), usize::MAX), Err(VmiError::Invalid(_))));
        assert_eq!(missing(vmi.translate_address((Va(u64::MAX), Pa(u64::MAX)))), [u64::MAX]);
        // A mapped byte in front of the end of everything is read.
        space.map(end, frame(64), PageSize::Small);
        vmi.driver().poke(frame(64).0 + 0xffc, b"end.");
        assert_eq!(vmi.read_u32((end, space.root())).ok(), Some(u32::from_le_bytes(*b"end.")));
        assert_eq!(missing(vmi.read_string((end, space.root()))), [0]);
    });
}

// ---------------------------------------------------------------------------------------------------- reads and writes

#[test]
fn a_read_names_all_of_its_missing_pages() {
    guest(4, |vmi, space| {
        for page in [0, 2, 5] {
            space.map(BASE + page * 0x1000, frame(64 + page), PageSize::Small);
        }
        // The tables of the last one are missing altogether.
        let mut buffer = vec![0; 0x6000];
        let faults = missing(vmi.read((BASE + 0x800, space.root()), &mut buffer));
        assert_eq!(faults, [BASE.0 + 0x1000, BASE.0 + 0x3000, BASE.0 + 0x4000, BASE.0 + 0x6000]);
        assert_eq!(missing(vmi.write((BASE + 0x800, space.root()), &buffer)), faults);
        assert_eq!(missing(vmi.read_u64((BASE + 0x2ffc, space.root()))), [BASE.0 + 0x3000]);
        let both = Va(BASE.0 + 0x3ffc);
        assert_eq!(missing(vmi.read_u64((both, space.root()))), [both.0, both.0 + 4]);
    });
}

#[test]
fn integers_of_all_sizes_may_cross_a_page() {
    guest(4, |vmi, space| {
        space.map(BASE, frame(65), PageSize::Small);
        space.map(BASE + 0x1000, frame(64), PageSize::Small);
        let ctx = |offset: u64| (BASE + 0x1000 - offset, space.root());
        let mut reference = 0x0102_0304_0506_0708_u64;
        for distance in 0..9 {
            reference = reference.rotate_left(9);
            vmi.write_u64(ctx(distance), reference).expect("mapped");
            assert_eq!(vmi.read_u64(ctx(distance)).ok(), Some(reference));
            assert_eq!(vmi.read_u32(ctx(distance)).ok(), Some(reference as u32));
            assert_eq!(vmi.read_u16(ctx(distance)).ok(), Some(reference as u16));
            assert_eq!(vmi.read_u8(ctx(distance)).ok(), Some(reference as u8));
            assert_eq!(vmi.read_struct::<[u8; 8]>(ctx(distance)).ok(), Some(reference.to_le_bytes()));
        }
        for (size, mask) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff), (8, u64::MAX)] {
            assert_eq!(vmi.read_uint(ctx(4), size).ok(), vmi.read_u64(ctx(4)).ok().map(|all| all & mask));
            let field = Field { offset: 4, size: size as u64 };
            assert_eq!(vmi.read_field(ctx(8), &field).ok(), vmi.read_uint(ctx(4), size).ok());
        }
        for size in [0, 3, 5, 16, usize::MAX] {
            assert!(matches!(vmi.read_uint(ctx(8), size), Err(VmiError::Invalid(_))));
            assert!(matches!(vmi.read_address(ctx(8), size), Err(VmiError::Invalid(_))));
        }
        assert_eq!(vmi.read_va(ctx(8), 4).ok(), vmi.read_va32(ctx(8)).ok());
        assert_eq!(vmi.read_va64(ctx(8)).ok().map(u64::from), vmi.read_u64(ctx(8)).ok());
    });
}

#[test]
fn reading_nothing_needs_no_page() {
    guest(4, |vmi, space| {
        assert!(vmi.read((BASE, space.root()), &mut []).is_ok());
        assert!(vmi.write((BASE, space.root()), &[]).is_ok());
        assert!(vmi.read(Pa(u64::MAX), &mut []).is_ok());
    });
}

#[test]
fn a_write_is_all_or_nothing_when_a_page_is_missing() {
    guest(4, |vmi, space| {
        space.map(BASE, frame(64), PageSize::Small);
        assert_eq!(missing(vmi.write((BASE + 0xffe, space.root()), b"abcd")), [BASE.0 + 0x1000]);
        assert_eq!(vmi.driver().peek(0x40ffe, 2), [0, 0]);
        space.map(BASE + 0x1000, frame(66), PageSize::Small);
        vmi.flush_v2p_cache();
        vmi.write((BASE + 0xffe, space.root()), b"abcd").expect("mapped");
        assert_eq!((vmi.driver().peek(0x40ffe, 2), vmi.driver().peek(0x42000, 2)), (b"ab".to_vec(), b"cd".to_vec()));
    });
}

// ---------------------------------------------------------------------------------------------------- strings

#[test]
fn a_string_runs_over_any_number_of_pages() {
    guest(4, |vmi, space| {
        // Pages in an order of their own, each with its own letter.
        let frames = [70, 64, 69, 65, 68, 66];
        let mut want = String::new();
        for (page, n) in frames.into_iter().enumerate() {
            space.map(BASE + page as u64 * 0x1000, frame(n), PageSize::Small);
            let letter = b'a' + page as u8;
            vmi.driver().poke(n * 0x1000, &[letter; 0x1000]);
            want.extend(std::iter::repeat_n(char::from(letter), 0x1000));
        }
        vmi.driver().poke(66 * 0x1000 + 16, &[0; 4]);
        want.truncate(5 * 0x1000 + 16);
        for start in [0, 1, 0xffe, 0xfff] {
            let ctx = (BASE + start as u64, space.root());
            assert_eq!(vmi.read_string(ctx).ok().as_deref(), want.get(start..), "from {start:#x}");
            assert_eq!(vmi.read_string_limited(ctx, 0x2003).ok().as_deref(), want.get(start..start + 0x2003));
            let units = vmi.read_wstring_bytes(ctx).expect("mapped");
            let bytes: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
            assert_eq!(bytes.get(..0x4000), want.as_bytes().get(start..start + 0x4000));
        }
    });
}

#[test]
fn a_limit_keeps_a_string_from_touching_what_is_behind_it() {
    guest(4, |vmi, space| {
        space.map(BASE, frame(64), PageSize::Small);
        vmi.driver().poke(64 * 0x1000, &[b'a'; 0x1000]);
        // No byte behind the limit is read, be the page there or not.
        vmi.driver().fail_if(|call| match call {
            Call::Read { pa, bytes } => pa.0 >= 64 * 0x1000 && pa.0 + *bytes as u64 > 64 * 0x1000 + 0x110,
            _ => false,
        });
        assert_eq!(vmi.read_string_limited((BASE + 0x100, space.root()), 16).ok(), Some("a".repeat(16)));
        assert_eq!(vmi.read_wstring_bytes_limited((BASE + 0x100, space.root()), 8).ok(), Some(vec![0x6161; 8]));
        assert_eq!(vmi.read_string_limited((BASE + 0x5000, space.root()), 0).ok(), Some(String::new()));
        vmi.driver().stop_failing();
        assert_eq!(vmi.read_string_limited((BASE, space.root()), 0x1000).ok(), Some("a".repeat(0x1000)));
        assert_eq!(missing(vmi.read_string_limited((BASE, space.root()), 0x1001)), [BASE.0 + 0x1000]);
        assert_eq!(missing(vmi.read_string((BASE, space.root()))), [BASE.0 + 0x1000]);
    });
}

#[test]
fn the_session_limit_truncates_and_can_be_lifted() {
    guest(4, |vmi, space| {
        space.map_range(BASE, frame(64), 18);
        for page in 0..18 {
            vmi.driver().poke((64 + page) * 0x1000, &[b'x'; 0x1000]);
        }
        vmi.driver().poke((64 + 17) * 0x1000, &[0, 0]);
        let ctx = (BASE, space.root());
        assert_eq!(vmi.read_string(ctx).map(|s| s.len()).ok(), Some(64 * 1024));
        vmi.set_read_string_length_limit(Some(10));
        assert_eq!(vmi.read_string(ctx).map(|s| s.len()).ok(), Some(10));
        assert_eq!(vmi.read_wstring_bytes(ctx).map(|s| s.len()).ok(), Some(10));
        assert_eq!(vmi.read_string_limited(ctx, 20).map(|s| s.len()).ok(), Some(20));
        vmi.set_read_string_length_limit(None);
        assert_eq!(vmi.read_string(ctx).map(|s| s.len()).ok(), Some(17 * 0x1000));
    });
}

#[test]
fn a_wide_character_may_straddle_two_pages() {
    guest(4, |vmi, space| {
        space.map(BASE, frame(64), PageSize::Small);
        space.map(BASE + 0x1000, frame(66), PageSize::Small);
        let text: Vec<u8> = "ntöskrnl€\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for distance in [1, 3, 5, 6, 17, 19] {
            let at = BASE + 0x1000 - distance;
            vmi.write((at, space.root()), &text).expect("mapped");
            assert_eq!(vmi.read_wstring((at, space.root())).ok().as_deref(), Some("ntöskrnl€"));
            assert_eq!(vmi.read_wstring_limited((at, space.root()), 3).ok().as_deref(), Some("ntö"));
        }
        // What is not text is replaced, not refused.
        vmi.write((BASE, space.root()), &[0x00, 0xd8, b'a', 0, 0, 0]).expect("mapped");
        assert_eq!(vmi.read_wstring((BASE, space.root())).ok().as_deref(), Some("\u{fffd}a"));
        vmi.write((BASE, space.root()), &[0xff, b'a', 0]).expect("mapped");
        assert_eq!(vmi.read_string((BASE, space.root())).ok().as_deref(), Some("\u{fffd}a"));
        assert_eq!(vmi.read_string_bytes((BASE, space.root())).ok(), Some(vec![0xff, b'a']));
    });
}

// ---------------------------------------------------------------------------------------------------- caches

#[test]
fn translations_are_kept_by_page_until_they_are_flushed() {
    guest(4, |vmi, space| {
        space.map(BASE, frame(64), PageSize::Small);
        let at = |offset: u64| vmi.translate_address((BASE + offset, space.root())).ok();
        assert_eq!(at(0), Some(frame(64)));
        vmi.driver().log_reads(true);
        assert_eq!(at(0xff8), Some(frame(64) + 0xff8));
        assert_eq!(vmi.driver().take_calls(), [], "another address of the page costs no read");
        space.map(BASE, frame(65), PageSize::Small);
        assert_eq!(at(8), Some(frame(64) + 8));
        vmi.flush_v2p_cache_entry((BASE + 0x123, space.root()));
        assert_eq!(at(8), Some(frame(65) + 8));
        space.map(BASE, frame(66), PageSize::Small);
        vmi.flush_v2p_cache();
        assert_eq!(at(8), Some(frame(66) + 8));
        // A write through the core may have changed an entry.
        let entry = space.entry(BASE, PageTableLevel::Pt).expect("mapped");
        vmi.write_u64(entry, frame(67).0 | 7).expect("memory");
        assert_eq!(at(8), Some(frame(67) + 8));
        vmi.set_v2p_cache_enabled(false);
        space.map(BASE, frame(68), PageSize::Small);
        assert_eq!(at(8), Some(frame(68) + 8));
    });
}

#[test]
fn a_cache_that_grows_answers_only_what_was_read_since_the_flush() {
    guest(4, |vmi, space| {
        let pages = 700;
        let map = |from: u64| {
            for page in 0..pages {
                space.map(BASE + page * 0x1000, frame(from + page), PageSize::Small);
            }
        };
        let all_at = |from: u64| {
            (0..pages).all(|page| {
                let at = vmi.translate_address((BASE + page * 0x1000 + 8, space.root()));
                at.ok() == Some(frame(from + page) + 8)
            })
        };
        vmi.driver().log_reads(true);
        for from in [0x1000, 0x2000, 0x3000] {
            map(from);
            vmi.flush_v2p_cache();
            // Those that had to make room when it grew are read once more.
            assert!(all_at(from) && all_at(from));
            vmi.driver().take_calls();
            map(0x4000);
            assert!(all_at(from), "pages are kept, however many they are");
            assert_eq!(vmi.driver().take_calls(), []);
            vmi.flush_v2p_cache_entry((BASE + 0x123, space.root()));
            let first = vmi.translate_address((BASE, space.root()));
            assert_eq!(first.ok(), Some(frame(0x4000)), "no older copy of a forgotten one is found");
        }
    });
}

#[test]
fn faults_are_not_kept_and_roots_are_told_apart() {
    guest(4, |vmi, space| {
        assert_eq!(missing(vmi.translate_address((BASE, space.root()))), [BASE.0]);
        space.map(BASE, frame(64), PageSize::Small);
        assert_eq!(vmi.translate_address((BASE, space.root())).ok(), Some(frame(64)));
        let next = Cell::new(40);
        let mut others = Vec::new();
        for n in 0..8 {
            let other = Tables::new(vmi.driver(), &next, 4);
            other.map(BASE, frame(80 + n), PageSize::Small);
            others.push(other);
        }
        for _ in 0..2 {
            for (n, other) in others.iter().enumerate() {
                assert_eq!(vmi.translate_address((BASE, other.root())).ok(), Some(frame(80 + n as u64)));
            }
        }
    });
}

#[test]
fn pages_are_kept_only_where_reads_are_expensive() {
    let vmi = core(8);
    vmi.driver().poke(0x2000, &[1]);
    assert_eq!(vmi.read_u8(Pa(0x2000)).ok(), Some(1));
    vmi.driver().poke(0x2000, &[2]);
    assert_eq!(vmi.read_u8(Pa(0x2000)).ok(), Some(2), "a direct driver is always asked");

    vmi.driver().set_direct(false);
    assert_eq!(vmi.read_u8(Pa(0x2000)).ok(), Some(2));
    vmi.driver().poke(0x2000, &[3]);
    assert_eq!(vmi.read_u8(Pa(0x2000)).ok(), Some(2));
    vmi.flush_gfn_cache_entry(Gfn(2));
    assert_eq!(vmi.read_u8(Pa(0x2000)).ok(), Some(3));
    vmi.driver().poke(0x2000, &[4]);
    vmi.flush_gfn_cache();
    assert_eq!(vmi.read_u8(Pa(0x2000)).ok(), Some(4));
    // What is written through the core is read back.
    vmi.write_u16(Pa(0x2fff), 0x0605).expect("memory");
    assert_eq!(vmi.read_u16(Pa(0x2fff)).ok(), Some(0x0605));
    // A read that failed leaves no stale page behind.
    vmi.flush_gfn_cache();
    vmi.driver().fail_nth(0);
    assert!(vmi.read_u8(Pa(0x3000)).is_err());
    vmi.driver().poke(0x3000, &[9]);
    assert_eq!(vmi.read_u8(Pa(0x3000)).ok(), Some(9));
}

fn event(n: u16) -> VmiEvent<Amd64> {
    VmiEvent::new(VcpuId(n), Some(View(0)), Amd64Registers::default(), Amd64EventReason::Singlestep { gfn: Gfn(1) })
}

#[test]
fn every_event_finds_the_caches_empty() {
    let vmi = core(64);
    vmi.driver().set_direct(false);
    let next = Cell::new(16);
    let space = Tables::new(vmi.driver(), &next, 4);
    let root = space.root();
    space.map(BASE, frame(40), PageSize::Small);
    vmi.driver().poke(40 * 0x1000, &[7]);
    vmi.driver().script([Scripted::Event(event(0)), Scripted::Event(event(1))]);
    for n in 0..2 {
        assert_eq!(vmi.read_u8((BASE, root)).ok(), Some(7 + n));
        // The guest runs.
        space.map(BASE, frame(41 + u64::from(n)), PageSize::Small);
        vmi.driver().poke((41 + u64::from(n)) * 0x1000, &[8 + n]);
        let waited = vmi.wait_for_event(Duration::from_secs(1), |_| {
            assert_eq!(vmi.read_u8((BASE, root)).ok(), Some(8 + n));
            VmiEventResponse::default()
        });
        assert!(waited.is_ok());
    }
}

// ---------------------------------------------------------------------------------------------------- core, state

#[test]
fn a_pause_guard_resumes_in_a_panic_too() {
    let vmi = core(1);
    let guard = vmi.pause_guard().expect("pauses");
    assert_eq!(vmi.driver().pauses(), 1);
    drop(guard);
    assert_eq!(vmi.driver().pauses(), 0);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _guard = vmi.pause_guard();
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(vmi.driver().pauses(), 0);
    vmi.driver().fail_nth(0);
    assert!(vmi.pause_guard().is_err());
    assert_eq!(vmi.driver().take_calls().last(), Some(&Call::Pause), "what was not paused is not resumed");
}

#[test]
fn frames_behind_memory_are_given_once() {
    let vmi = core(4);
    assert_eq!(vmi.allocate_next_available_gfn().ok(), Some(Gfn(4)));
    assert_eq!(vmi.allocate_next_available_gfn().ok(), Some(Gfn(5)));
    vmi.driver().fail_nth(0);
    assert!(vmi.allocate_next_available_gfn().is_err());
    assert_eq!(vmi.allocate_next_available_gfn().ok(), Some(Gfn(7)), "a frame that was refused is left alone");
    assert!(vmi.free_gfn(Gfn(4)).is_ok());
    assert!(matches!(vmi.free_gfn(Gfn(4)), Err(VmiError::Frame(Gfn(4), _))));
}

#[test]
fn a_state_reads_the_current_address_space() {
    guest(4, |vmi, space| {
        space.map(BASE, frame(64), PageSize::Small);
        let mut registers = Amd64Registers { cr3: space.root().0 | 0x801, ..Default::default() };
        registers.gp.rsp = BASE.0 + 8;
        registers.efer = Amd64Registers::EFER_LMA;
        registers.cs = Segment { long: true, ..Default::default() };
        vmi.driver().write_physical(frame(64), b"name\0\0\0\0\x78\x56\x34\x12\xff\xff\xff\xff").expect("memory");
        let session = VmiSession::new(vmi, &NoOS);
        let copy = session;
        let state = session.with_registers(&registers);
        assert_eq!(state.read_string_limited(BASE, 64).ok().as_deref(), Some("name"));
        assert_eq!(state.translate_address(BASE + 1).ok(), Some(frame(64) + 1));
        assert_eq!(state.return_address().ok(), Some(Va(0xffff_ffff_1234_5678)));
        registers.cs.long = false;
        assert_eq!(copy.without_os().with_registers(&registers).return_address().ok(), Some(Va(0x1234_5678)));
    });
}

#[test]
fn only_int3_is_a_software_breakpoint() {
    let interrupt = |kind| Interrupt { kind, ..Interrupt::breakpoint() };
    let reason = |interrupt| Amd64EventReason::Interrupt(EventInterrupt { gfn: Gfn(3), interrupt });
    assert_eq!(reason(Interrupt::breakpoint()).as_software_breakpoint(), Some(Gfn(3)));
    assert_eq!(reason(interrupt(InterruptType::SoftwareInterrupt)).as_software_breakpoint(), None);
    assert_eq!(reason(Interrupt::page_fault(0, 0)).as_software_breakpoint(), None);
    let stub = Amd64EventReason::DebugBreakpoint { va: BASE, gfn: Gfn(4) };
    assert_eq!(stub.as_software_breakpoint(), Some(Gfn(4)));
}

#[test]
fn a_driver_that_only_reads_makes_a_core() {
    let vmi = core(2);
    assert_eq!(vmi.info().ok().map(|info| info.max_gfn), Some(Gfn(1)));
    assert_eq!(vmi.read_page(Gfn(1)).ok().map(|page| page.len()), Some(4096));
    assert!(matches!(vmi.read_page(Gfn(2)), Err(VmiError::OutOfBounds(_))));
    let view = vmi.create_view(MemoryAccess::RWX).expect("a view");
    assert_eq!(vmi.memory_access(Gfn(1), view).ok(), Some(MemoryAccess::RWX));
    vmi.destroy_view(view).expect("it exists");
    assert!(matches!(vmi.memory_access(Gfn(1), view), Err(VmiError::ViewNotFound(_))));
}
