//! Page walks of 4 and 5 levels over tables that hold anything: an independent walk must agree, the record must agree
//! with the short form, and the page table monitor must take back every access that it took.

use vmscope::engine::{
    addr::{AddressContext, Pa, Va, View},
    arch::{
        Architecture,
        amd64::{Amd64, TranslationFault},
    },
    error::VmiError,
    ptm::{PageTableMonitor, PageTableMonitorEvent},
    session::VmiCore,
};

use crate::{reader::Reader, support::FlatDriver};

/// Frames of memory: enough for tables that share pages, few enough that random ones meet.
const FRAMES: u64 = 12;
const MOST_ENTRIES: u8 = 64;
const MOST_ADDRESSES: usize = 32;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What hardware would do, written as the manual says it (Intel SDM volume 3A, section 4.5.4).
fn expected(driver: &FlatDriver, levels: u8, va: u64, root: u64) -> Option<u64> {
    let bits = if levels == 5 { 57 } else { 48 };
    let upper = va >> (bits - 1);
    if upper != 0 && upper != u64::MAX >> (bits - 1) {
        return None;
    }
    let mut table = root;
    for level in (0..u32::from(levels)).rev() {
        let shift = 12 + 9 * level;
        let at = table + ((va >> shift) & 0x1ff) * 8;
        if at >= FRAMES * 0x1000 {
            return None;
        }
        let entry = driver.peek64(at);
        let page = level == 0 || (level < 3 && entry & 0x80 != 0);
        if entry & 1 == 0 || (level >= 3 && entry & 0x80 != 0) {
            return None;
        }
        if page {
            let inside = (1 << shift) - 1;
            return Some((entry & ADDRESS & !inside) | (va & inside));
        }
        table = entry & ADDRESS;
    }
    None
}

/// An entry whose frame is mostly one that exists.
fn entry(reader: &mut Reader<'_>) -> (u64, u64) {
    let (page, slot, kind) = (reader.u8(), reader.u16(), reader.u8());
    let at = u64::from(page) % FRAMES * 0x1000 + u64::from(slot) % 512 * 8;
    let value = match kind {
        0..200 => u64::from(kind) % FRAMES << 12 | u64::from(reader.u8()) | u64::from(reader.u8() & 0x1f) << 8,
        200..220 => 0,
        _ => reader.u64(),
    };
    (at, value)
}

/// See the module.
pub fn page_walk(data: &[u8]) {
    let mut reader = Reader(data);
    let flags = reader.u8();
    let levels = if flags & 1 != 0 { 5 } else { 4 };
    let root = if flags & 2 != 0 { reader.u64() & ADDRESS } else { u64::from(reader.u8()) % FRAMES << 12 };
    let driver = FlatDriver::new(FRAMES);
    driver.set_direct(flags & 4 != 0);
    for _ in 0..reader.u8() % MOST_ENTRIES {
        let (at, value) = entry(&mut reader);
        driver.poke64(at, value);
    }
    let core = VmiCore::new(driver).expect("a flat guest always answers");
    core.set_paging_levels(levels);
    let changes = reader.u8() % 16;
    let changes: Vec<(u64, u64)> = (0..changes).map(|_| entry(&mut reader)).collect();
    let mut addresses = Vec::new();
    while !reader.is_empty() && addresses.len() < MOST_ADDRESSES {
        let wide = reader.u64();
        // Half of them canonical.
        let unused = 64 - if levels == 5 { 57 } else { 48 };
        addresses.push(Va(if wide & 1 != 0 { wide } else { (((wide << unused) as i64) >> unused) as u64 }));
    }
    addresses.iter().for_each(|&va| check_walk(&core, va, Pa(root)));
    check_monitor(&core, &addresses, Pa(root), &changes);
}

fn check_walk(core: &VmiCore<FlatDriver>, va: Va, root: Pa) {
    let ctx = AddressContext { va, root };
    let want = expected(core.driver(), core.paging_levels(), va.0, root.0);
    let record = Amd64::translation(core, va, root);
    assert_eq!(record.pa().map(|pa| pa.0), want, "{ctx}");
    assert_eq!(record.pa().is_some(), record.fault().is_none());
    let entries: Vec<_> = record.entries().collect();
    assert!(entries.len() <= usize::from(core.paging_levels()));
    assert!(entries.windows(2).all(|pair| pair[0].level < pair[1].level));
    assert!(entries.iter().all(|entry| entry.entry_address.0 < FRAMES * 0x1000));
    assert_eq!(entries.is_empty() && record.fault() == Some(TranslationFault::NonCanonical), {
        !vmscope::engine::arch::amd64::is_canonical(va, core.paging_levels())
    });
    for _ in 0..2 {
        match core.translate_address(ctx) {
            Ok(pa) => assert_eq!(Some(pa.0), want, "{ctx}"),
            Err(VmiError::Translation(faults)) => {
                assert_eq!((want, faults.len(), faults.first()), (None, 1, ctx));
            }
            Err(error) => panic!("{ctx}: {error}"),
        }
    }
    // A read over three pages names each that is missing, and no other.
    let mut buffer = [0; 0x1800];
    let pages: Vec<Va> = [0, 1, 2]
        .map(|page: u64| Va(va.0 & !0xfff) + page * 0x1000)
        .into_iter()
        .filter(|page| *page - va < 0x1800 || *page < va)
        .collect();
    match core.read(ctx, &mut buffer) {
        Ok(()) => {}
        Err(VmiError::Translation(faults)) => {
            assert!((1..=pages.len()).contains(&faults.len()));
            for fault in faults.iter() {
                assert!(core.translate_address(fault).is_err() && pages.contains(&Va(fault.va.0 & !0xfff)), "{fault}");
            }
        }
        Err(VmiError::OutOfBounds(pa)) => assert!(pa.0 >= FRAMES * 0x1000, "{pa}"),
        Err(error) => panic!("{ctx}: {error}"),
    }
    assert!(core.read_string_limited(ctx, 100).map_or(0, |text| text.chars().count()) <= 100);
}

fn check_monitor(core: &VmiCore<FlatDriver>, addresses: &[Va], root: Pa, changes: &[(u64, u64)]) {
    let mut watched = PageTableMonitor::<FlatDriver>::new();
    let mut polled = PageTableMonitor::<FlatDriver, &str, _>::polling();
    let view = View(0);
    for &va in addresses {
        let by_event = watched.monitor(core, (va, root), view, "");
        assert_eq!(by_event.is_ok(), polled.monitor(core, (va, root), view, "").is_ok());
    }
    for &(at, value) in changes {
        core.driver().poke64(at, value);
        core.flush_v2p_cache();
        core.flush_gfn_cache();
        watched.mark_dirty_entry(Pa(at), view, Default::default());
        let by_event = sorted(watched.process_dirty_entries(core, Default::default()).expect("a flat guest answers"));
        let by_poll = sorted(polled.poll(core).expect("a flat guest answers"));
        assert_eq!(by_event, by_poll);
        assert!(by_event.len() <= addresses.len() * 2);
        for state in watched.states() {
            let now = expected(core.driver(), core.paging_levels(), state.ctx.va.0, state.ctx.root.0);
            assert_eq!(state.pa.map(|pa| pa.0), now, "{}", state.ctx);
        }
    }
    for &va in addresses {
        watched.unmonitor(core, (va, root), view).expect("a flat guest answers");
    }
    assert_eq!((watched.monitored_tables(), watched.monitored_entries(), watched.monitored_addresses()), (0, 0, 0));
    assert!(core.driver().restricted().is_empty());
}

/// Events in an order of their own: the two ways of finding them differ in theirs.
fn sorted(mut events: Vec<PageTableMonitorEvent>) -> Vec<String> {
    let mut lines: Vec<String> = events.drain(..).map(|event| format!("{event:?}")).collect();
    lines.sort();
    lines
}

/// Samples.
pub mod samples {
    /// A walk through every level, with 4 KiB, 2 MiB and 1 GiB pages, and tables that name themselves.
    pub fn page_walk() -> Vec<Vec<u8>> {
        let entry = |page: u8, slot: u16, to: u8, low: u8| {
            let [a, b] = slot.to_le_bytes();
            vec![page, a, b, to, low, 0]
        };
        let sample = |flags: u8, entries: &[Vec<u8>], changes: &[Vec<u8>], addresses: &[u64]| {
            let mut out = vec![flags, 0, entries.len() as u8];
            out.extend(entries.concat());
            out.push(changes.len() as u8);
            out.extend(changes.concat());
            addresses.iter().for_each(|va| out.extend(va.to_le_bytes()));
            out
        };
        let small = [entry(0, 1, 1, 7), entry(1, 1, 2, 7), entry(2, 1, 3, 7), entry(3, 1, 5, 7), entry(3, 2, 6, 0x67)];
        let va = 1u64 << 39 | 1 << 30 | 1 << 21 | 1 << 12;
        let five = [entry(4, 1, 0, 7), small[0].clone()];
        let large = [entry(0, 1, 1, 7), entry(1, 1, 2, 7), entry(2, 1, 0, 0x87), entry(1, 2, 0, 0x87)];
        let itself = [entry(0, 1, 0, 7), entry(0, 0, 0, 7)];
        let mut samples = vec![
            sample(4, &small, &[entry(3, 1, 7, 7), entry(2, 1, 3, 6)], &[va, va + 0xff0, va + 0x1000]),
            sample(0, &large, &[entry(2, 1, 3, 7)], &[va, va + 0x4000_0000]),
            sample(4, &itself, &[entry(0, 1, 0, 0x87)], &[va, 0, !0xfff]),
            sample(5, &[five.to_vec(), small.to_vec()].concat(), &[entry(4, 1, 0, 6)], &[1 << 48 | va, va]),
        ];
        samples[3][1] = 4;
        samples
    }
}
