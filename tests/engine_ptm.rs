//! The page table monitor: what it reports, what it guards, and that neither a failing driver nor a hostile guest
//! makes its books differ from what is installed.

#[path = "engine_ptm/running.rs"]
mod running;
mod support;

use std::cell::Cell;

use support::{Call, FlatDriver, Flicker, PageSize, Tables, core};
use vmscope::engine::{
    addr::{AddressContext, Gfn, Pa, Va, VcpuId, View},
    arch::amd64::PageTableLevel,
    driver::{MemoryAccess, MemoryAccessOptions, VmiSetProtection, VmiViewControl},
    error::VmiError,
    ptm::{PageEntryUpdate, PageTableMonitor, PageTableMonitorEvent, Unguarded},
    session::VmiCore,
};

const BASE: Va = Va(0x7f00_0000_0000);
const VIEW: View = View(0);
const CPU: VcpuId = VcpuId(0);

type Ptm = PageTableMonitor<FlatDriver>;

/// What the guest has in the tests below: one address space, `count` small pages from `BASE` on frames from 64 on.
struct Guest {
    vmi: VmiCore<FlatDriver>,
    next: Cell<u64>,
    root: Pa,
}

fn guest(count: u64) -> Guest {
    let vmi = core(256);
    let next = Cell::new(16);
    let space = Tables::new(vmi.driver(), &next, 4);
    space.map_range(BASE, Pa(0x40000), count);
    let root = space.root();
    Guest { vmi, next, root }
}

impl Guest {
    fn ctx(&self, va: Va) -> AddressContext {
        AddressContext { va, root: self.root }
    }

    /// The address of the entry of a level on the way to an address.
    fn entry(&self, va: Va, level: PageTableLevel) -> Pa {
        let mut table = self.root;
        for &here in PageTableLevel::walk(self.vmi.paging_levels()) {
            let at = table + here.index(va) * 8;
            if here == level {
                return at;
            }
            table = Pa(self.vmi.driver().peek64(at.0) & 0x000f_ffff_ffff_f000);
        }
        unreachable!("every level is on the way")
    }

    /// The guest writes an entry: the event, the write, the step.
    fn write(&self, ptm: &mut Ptm, entry: Pa, value: u64) -> Vec<PageTableMonitorEvent> {
        assert!(ptm.mark_dirty_entry(entry, VIEW, CPU), "{entry} is monitored");
        self.vmi.driver().poke64(entry.0, value);
        ptm.process_dirty_entries(&self.vmi, CPU).expect("nothing fails")
    }

    fn page_in(&self, va: Va, pa: u64) -> PageTableMonitorEvent {
        PageTableMonitorEvent::PageIn(PageEntryUpdate { view: VIEW, ctx: self.ctx(va), pa: Pa(pa) })
    }

    fn page_out(&self, va: Va, pa: u64) -> PageTableMonitorEvent {
        PageTableMonitorEvent::PageOut(PageEntryUpdate { view: VIEW, ctx: self.ctx(va), pa: Pa(pa) })
    }

    /// The frames that cannot be written.
    fn protected(&self) -> Vec<Gfn> {
        self.vmi.driver().restricted().into_keys().map(|(_, gfn)| gfn).collect()
    }
}

#[test]
fn a_page_goes_out_and_comes_back_elsewhere() {
    let guest = guest(4);
    let mut ptm = Ptm::new();
    let va = BASE + 0x123;
    ptm.monitor(&guest.vmi, guest.ctx(va), VIEW, "a").expect("mapped");
    let entry = guest.entry(BASE, PageTableLevel::Pt);
    assert_eq!(guest.write(&mut ptm, entry, 0), [guest.page_out(va, 0x40123)]);
    assert_eq!(guest.write(&mut ptm, entry, 0x50007), [guest.page_in(va, 0x50123)]);
    let moved = [guest.page_out(va, 0x50123), guest.page_in(va, 0x60123)];
    assert_eq!(guest.write(&mut ptm, entry, 0x60007), moved, "out, then in");
    assert_eq!(guest.write(&mut ptm, entry, 0x8000_0000_0006_0065), [], "permissions, accessed and dirty are nothing");
    let state = ptm.state(guest.ctx(va), VIEW).expect("monitored");
    assert_eq!((state.pa, state.page_bytes, state.changes, state.tag), (Some(Pa(0x60123)), 0x1000, 4, "a"));
    let walk = ptm.entries(guest.ctx(va), VIEW);
    assert_eq!(walk.iter().map(|entry| entry.level).collect::<Vec<_>>(), ["PML4", "PDPT", "PD", "PT"]);
    let leaf = walk.last().expect("four levels");
    assert_eq!((leaf.entry_pa, leaf.value, leaf.previous), (entry, 0x8000_0000_0006_0065, Some(0x60007)));
}

#[test]
fn large_pages_come_and_go() {
    let guest = guest(4);
    let mut ptm = Ptm::new();
    let va = BASE + 0x1008;
    ptm.monitor(&guest.vmi, guest.ctx(va), VIEW, "a").expect("mapped");
    let [pdpt, pd] = [PageTableLevel::Pdpt, PageTableLevel::Pd].map(|level| guest.entry(va, level));
    let (small, table) = (guest.vmi.driver().peek64(pd.0), guest.vmi.driver().peek64(pdpt.0));
    assert_eq!(ptm.monitored_tables(), 4);

    // Bit 12 is PAT, no part of the address.
    let to_large = [guest.page_out(va, 0x41008), guest.page_in(va, 0x20_1008)];
    assert_eq!(guest.write(&mut ptm, pd, 0x20_1087), to_large);
    assert_eq!((ptm.monitored_tables(), ptm.monitored_entries()), (3, 3), "the small page's table is free again");
    assert_eq!(ptm.state(guest.ctx(va), VIEW).map(|state| state.page_bytes), Some(0x20_0000));

    let to_huge = [guest.page_out(va, 0x20_1008), guest.page_in(va, 0x4000_1008)];
    assert_eq!(guest.write(&mut ptm, pdpt, 0x4000_0087), to_huge);
    assert_eq!(ptm.monitored_tables(), 2);

    guest.vmi.driver().poke64(pd.0, small);
    let to_small = [guest.page_out(va, 0x4000_1008), guest.page_in(va, 0x41008)];
    assert_eq!(guest.write(&mut ptm, pdpt, table), to_small);
    assert_eq!(ptm.monitored_tables(), 4);
}

#[test]
fn a_split_that_changes_no_address_is_nothing() {
    let guest = guest(1);
    let space = Tables::new(guest.vmi.driver(), &guest.next, 4);
    let va = Va(0x4000_0000);
    space.map(va, Pa(0x20_0000), PageSize::Large);
    let guest = Guest { root: space.root(), ..guest };
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(va + 0x3010), VIEW, "a").expect("mapped");
    let table = guest.next.get() * 0x1000;
    for page in 0..512 {
        guest.vmi.driver().poke64(table + page * 8, (0x20_0000 + page * 0x1000) | 7);
    }
    let pd = guest.entry(va, PageTableLevel::Pd);
    assert_eq!(guest.write(&mut ptm, pd, table | 7), []);
    assert_eq!(ptm.state(guest.ctx(va + 0x3010), VIEW).map(|state| state.page_bytes), Some(0x1000));
    let pt = guest.entry(va + 0x3000, PageTableLevel::Pt);
    assert_eq!(guest.write(&mut ptm, pt, 0), [guest.page_out(va + 0x3010, 0x20_3010)], "the new table is followed");
}

#[test]
fn five_levels_are_walked_where_the_guest_has_them() {
    let vmi = core(256);
    vmi.set_paging_levels(5);
    let next = Cell::new(16);
    let space = Tables::new(vmi.driver(), &next, 5);
    let va = Va(0x00ab_cdef_1234_5678);
    space.map(va, Pa(0x40000), PageSize::Small);
    let root = space.root();
    let guest = Guest { vmi, next: next.clone(), root };
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(va), VIEW, "a").expect("mapped");
    assert_eq!((ptm.monitored_tables(), ptm.monitored_entries()), (5, 5));
    let top = guest.entry(va, PageTableLevel::Pml5);
    let value = guest.vmi.driver().peek64(top.0);
    assert_eq!(guest.write(&mut ptm, top, 0), [guest.page_out(va, 0x40678)]);
    assert_eq!(ptm.monitored_tables(), 1);
    assert_eq!(guest.write(&mut ptm, top, value | 0x80), [], "PS is reserved here: still nothing is mapped");
    assert_eq!(guest.write(&mut ptm, top, value), [guest.page_in(va, 0x40678)]);
}

#[test]
fn a_table_may_map_itself() {
    let guest = guest(1);
    // Entry 511 of the top table names the top table: it serves at all four levels on the way to itself.
    let me = Va(0xffff_ffff_ffff_f000);
    let entry = guest.root + 511 * 8;
    guest.vmi.driver().poke64(entry.0, guest.root.0 | 3);
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(me), VIEW, "itself").expect("mapped");
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "other").expect("mapped");
    assert_eq!((ptm.monitored_tables(), ptm.monitored_entries()), (4, 5));
    let others_entry = guest.entry(BASE, PageTableLevel::Pml4);
    assert_eq!(guest.write(&mut ptm, others_entry, 0), [guest.page_out(BASE, 0x40000)]);
    assert_eq!(guest.write(&mut ptm, entry, 0), [guest.page_out(me, guest.root.0)]);
    assert_eq!(guest.write(&mut ptm, entry, guest.root.0 | 3), [guest.page_in(me, guest.root.0)]);
    ptm.unmonitor(&guest.vmi, guest.ctx(me), VIEW).expect("nothing fails");
    assert_eq!((ptm.monitored_tables(), ptm.monitored_entries()), (1, 1));
}

#[test]
fn one_table_serves_two_spaces_at_two_levels() {
    let guest = guest(1);
    let pd = guest.vmi.driver().peek64(guest.entry(BASE, PageTableLevel::Pdpt).0) & !0xfff;
    let leaf_table = guest.vmi.driver().peek64(guest.entry(BASE, PageTableLevel::Pd).0) & !0xfff;
    // In another space the first one's PD is a PT: its first entry maps the first space's PT as a page.
    let space = Tables::new(guest.vmi.driver(), &guest.next, 4);
    let va = Va(0x1234_4000_0000);
    space.map(va, Pa(0), PageSize::Small);
    let slot = space.entry(va, PageTableLevel::Pd).expect("has tables");
    guest.vmi.driver().poke64(slot.0, pd | 7);
    let other = AddressContext { va, root: space.root() };
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
    ptm.monitor(&guest.vmi, other, VIEW, "b").expect("mapped");
    let entry = guest.entry(BASE, PageTableLevel::Pd);
    let gone = PageEntryUpdate { view: VIEW, ctx: other, pa: Pa(leaf_table) };
    let events = guest.write(&mut ptm, entry, 0);
    assert_eq!(events, [guest.page_out(BASE, 0x40000), PageTableMonitorEvent::PageOut(gone)], "upper level first");
    assert_eq!(ptm.unmonitor(&guest.vmi, other, VIEW).ok(), Some(()));
    assert_eq!(guest.write(&mut ptm, entry, leaf_table | 7), [guest.page_in(BASE, 0x40000)]);
}

#[test]
fn addresses_and_tables_are_counted() {
    let guest = guest(4);
    let mut ptm = Ptm::new();
    for _ in 0..2 {
        ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
    }
    ptm.monitor(&guest.vmi, guest.ctx(BASE + 0x1000), VIEW, "b").expect("mapped");
    assert_eq!((ptm.monitored_tables(), ptm.monitored_entries(), ptm.paged_in_entries()), (4, 5, 2));
    let unmonitor = |ptm: &mut Ptm, va| ptm.unmonitor(&guest.vmi, guest.ctx(va), VIEW).expect("nothing fails");
    unmonitor(&mut ptm, BASE);
    unmonitor(&mut ptm, BASE + 0x1000);
    assert_eq!((ptm.monitored_tables(), ptm.paged_in_entries()), (4, 1), "once is not twice");
    unmonitor(&mut ptm, BASE);
    assert_eq!((ptm.monitored_tables(), ptm.monitored_entries(), ptm.monitored_addresses()), (0, 0, 0));
    assert_eq!(guest.protected(), []);
    unmonitor(&mut ptm, BASE);
}

#[test]
fn by_force_an_address_is_forgotten_however_often_it_was_monitored() {
    let guest = guest(4);
    let mut ptm = Ptm::new();
    let view = guest.vmi.create_view(MemoryAccess::RWX).expect("a view");
    for _ in 0..3 {
        ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
        ptm.monitor(&guest.vmi, guest.ctx(BASE), view, "a").expect("mapped");
        ptm.monitor(&guest.vmi, guest.ctx(BASE + 0x1000), VIEW, "b").expect("mapped");
    }
    let force = |ptm: &mut Ptm, va| ptm.unmonitor_by_force(&guest.vmi, guest.ctx(va), VIEW);
    // A change that was found but not told yet is forgotten with it.
    let entry = guest.entry(BASE, PageTableLevel::Pt);
    assert!(ptm.mark_dirty_entry(entry, VIEW, CPU));
    guest.vmi.driver().poke64(entry.0, 0);
    force(&mut ptm, BASE).expect("forgotten");
    assert_eq!(ptm.process_dirty_entries(&guest.vmi, CPU).ok(), Some(vec![]));
    assert!(ptm.state(guest.ctx(BASE), VIEW).is_none());
    assert!(ptm.state(guest.ctx(BASE), view).is_some(), "it is monitored in another view");
    assert_eq!(
        ptm.state(guest.ctx(BASE + 0x1000), VIEW).map(|state| state.references),
        Some(3),
        "and so is another one"
    );
    assert_eq!(ptm.monitored_tables(), 8);
    force(&mut ptm, BASE).expect("nothing to do");
    // A table that cannot be opened is tried again; the address is forgotten at once.
    guest.vmi.driver().fail_nth_change(0);
    assert!(force(&mut ptm, BASE + 0x1000).is_err());
    assert_eq!((ptm.monitored_addresses(), ptm.monitored_tables()), (1, 5));
    force(&mut ptm, BASE + 0x1000).expect("opened now");
    assert_eq!(ptm.monitored_tables(), 4);
    ptm.unmonitor_by_force(&guest.vmi, guest.ctx(BASE), view).expect("forgotten");
    assert_eq!((ptm.monitored_tables(), guest.protected()), (0, vec![]));
}

#[test]
fn tables_are_protected_from_the_top_and_restored_to_what_they_were() {
    let guest = guest(1);
    let frames: Vec<Gfn> = [PageTableLevel::Pml4, PageTableLevel::Pdpt, PageTableLevel::Pd, PageTableLevel::Pt]
        .map(|level| Gfn(guest.entry(BASE, level).0 >> 12))
        .to_vec();
    guest.vmi.driver().set_memory_access(frames[2], VIEW, MemoryAccess::RW).expect("exists");
    guest.vmi.driver().take_calls();
    let was = |gfn| if gfn == frames[2] { MemoryAccess::RW } else { MemoryAccess::RWX };
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
    let options = MemoryAccessOptions { ignore_page_walk_updates: true };
    let protect = frames.iter().flat_map(|&gfn| {
        let access = was(gfn).without(MemoryAccess::W);
        [Call::MemoryAccess { gfn, view: VIEW }, Call::SetMemoryAccess { gfn, view: VIEW, access, options }]
    });
    assert_eq!(guest.vmi.driver().take_calls(), protect.collect::<Vec<_>>());
    ptm.unmonitor(&guest.vmi, guest.ctx(BASE), VIEW).expect("nothing fails");
    for &gfn in &frames {
        assert_eq!(guest.vmi.driver().access(VIEW, gfn), Some(was(gfn)));
    }
    assert_eq!(guest.vmi.driver().take_calls().len(), 4, "one call for each table");
}

#[test]
fn marks_belong_to_the_vcpu_that_writes() {
    let guest = guest(2);
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
    let entry = guest.entry(BASE, PageTableLevel::Pt);
    assert!(ptm.mark_dirty_entry(entry, VIEW, VcpuId(1)));
    // vCPU 0 has made its step, vCPU 1 has not written yet.
    assert_eq!(ptm.process_dirty_entries(&guest.vmi, CPU).ok(), Some(vec![]));
    guest.vmi.driver().poke64(entry.0, 0);
    assert_eq!(ptm.process_dirty_entries(&guest.vmi, CPU).ok(), Some(vec![]));
    let out = vec![guest.page_out(BASE, 0x40000)];
    assert_eq!(ptm.process_dirty_entries(&guest.vmi, VcpuId(1)).ok(), Some(out));
    assert_eq!(ptm.process_dirty_entries(&guest.vmi, VcpuId(1)).ok(), Some(vec![]), "a mark counts once");
}

#[test]
fn any_byte_of_an_entry_marks_it() {
    let guest = guest(512);
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(BASE + 100 * 0x1000), VIEW, "a").expect("mapped");
    let entry = guest.entry(BASE + 100 * 0x1000, PageTableLevel::Pt);
    for byte in 0..8 {
        assert!(ptm.mark_dirty_entry(entry + byte, VIEW, CPU), "byte {byte}");
        assert!(ptm.mark_dirty_entry(entry + byte, VIEW, CPU), "byte {byte} once more");
    }
    assert!(!ptm.mark_dirty_entry(entry + 8, VIEW, CPU), "the next entry is not monitored");
    assert!(!ptm.mark_dirty_entry(entry, View(1), CPU), "nor is the other view");
    assert!(!ptm.mark_dirty_entry(Pa(u64::MAX), VIEW, CPU));
    // A vector store that begins below reaches it, one that ends before it does not.
    assert!(ptm.mark_dirty_entry(entry - 56, VIEW, CPU));
    assert!(!ptm.mark_dirty_entry(entry - 64, VIEW, CPU));
}

#[test]
fn what_a_higher_change_made_moot_is_skipped() {
    let guest = guest(2);
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
    let (pd, pt) = (guest.entry(BASE, PageTableLevel::Pd), guest.entry(BASE, PageTableLevel::Pt));
    for entry in [pt, pd] {
        assert!(ptm.mark_dirty_entry(entry, VIEW, CPU));
    }
    guest.vmi.driver().poke64(pt.0, 0x50007);
    guest.vmi.driver().poke64(pd.0, 0);
    let events = ptm.process_dirty_entries(&guest.vmi, CPU).expect("nothing fails");
    assert_eq!(events, [guest.page_out(BASE, 0x40000)], "the page behind the cleared PD entry was never there");
}

#[test]
fn monitoring_swallows_no_change_that_is_not_processed() {
    let guest = guest(4);
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
    let entry = guest.entry(BASE, PageTableLevel::Pt);
    guest.vmi.driver().poke64(entry.0, 0);
    assert!(ptm.mark_dirty_entry(entry, VIEW, CPU));
    ptm.monitor(&guest.vmi, guest.ctx(BASE + 8), VIEW, "b").expect("not mapped any more");
    assert_eq!(ptm.state(guest.ctx(BASE + 8), VIEW).and_then(|state| state.pa), None, "what is true now");
    let events = ptm.process_dirty_entries(&guest.vmi, CPU).expect("nothing fails");
    assert_eq!(events, [guest.page_out(BASE, 0x40000)], "the first address hears of it, the second knew");
    assert_eq!(ptm.paged_in_entries(), 0);
    let back = [guest.page_in(BASE, 0x40000), guest.page_in(BASE + 8, 0x40008)];
    assert_eq!(guest.write(&mut ptm, entry, 0x40007), back);
}

#[test]
fn a_change_that_nobody_marked_is_found_when_monitoring_meets_it() {
    let guest = guest(4);
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
    let pd = guest.entry(BASE, PageTableLevel::Pd);
    // A device wrote it, say.
    guest.vmi.driver().poke64(pd.0, 0);
    ptm.monitor(&guest.vmi, guest.ctx(BASE + 0x1000), VIEW, "b").expect("not mapped");
    let events = ptm.process_dirty_entries(&guest.vmi, CPU).expect("nothing fails");
    assert_eq!(events, [guest.page_out(BASE, 0x40000)]);
}

/// Only the highest of several changes says where a walk goes now; what lies below it is not even of this walk.
#[test]
fn of_several_changes_that_nobody_marked_the_highest_counts() {
    let guest = guest(4);
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
    let (pd, pt) = (guest.entry(BASE, PageTableLevel::Pd), guest.entry(BASE, PageTableLevel::Pt));
    let other_table = Pa(200 << 12);
    guest.vmi.driver().poke64(other_table.0, 0x60007);
    guest.vmi.driver().poke64(pt.0, 0x50007);
    guest.vmi.driver().poke64(pd.0, other_table.0 | 7);
    ptm.monitor(&guest.vmi, guest.ctx(BASE + 8), VIEW, "b").expect("mapped");
    assert_eq!(ptm.state(guest.ctx(BASE + 8), VIEW).and_then(|state| state.pa), Some(Pa(0x60008)));
    let events = ptm.process_dirty_entries(&guest.vmi, CPU).expect("nothing fails");
    assert_eq!(events, [guest.page_out(BASE, 0x40000), guest.page_in(BASE, 0x60000)]);
    assert!(!ptm.mark_dirty_entry(pt, VIEW, CPU), "the table that was left is not monitored any more");
}

/// An address that met a change on its way, which was taken back before it was processed, still finds its place.
#[test]
fn a_change_that_is_taken_back_leaves_no_address_behind() {
    let guest = guest(4);
    let mut ptm = Ptm::new();
    let second = BASE + 0x1000;
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
    let pd = guest.entry(BASE, PageTableLevel::Pd);
    let table = guest.vmi.driver().peek64(pd.0);
    guest.vmi.driver().poke64(pd.0, 0);
    ptm.monitor(&guest.vmi, guest.ctx(second), VIEW, "b").expect("not mapped");
    guest.vmi.driver().poke64(pd.0, table);
    let events = ptm.process_dirty_entries(&guest.vmi, CPU).expect("nothing fails");
    assert_eq!(events, [guest.page_in(second, 0x41000)], "the first address never knew");
    let entry = guest.entry(second, PageTableLevel::Pt);
    assert_eq!(guest.write(&mut ptm, entry, 0), [guest.page_out(second, 0x41000)]);
}

/// A mark of another view's says nothing about this one's entry.
#[test]
fn a_change_is_due_in_its_own_view() {
    let guest = guest(4);
    let mut ptm = Ptm::new();
    let other = guest.vmi.create_view(MemoryAccess::RWX).expect("a view");
    for view in [VIEW, other] {
        ptm.monitor(&guest.vmi, guest.ctx(BASE), view, "a").expect("mapped");
    }
    let pd = guest.entry(BASE, PageTableLevel::Pd);
    assert!(ptm.mark_dirty_entry(pd, other, VcpuId(1)));
    guest.vmi.driver().poke64(pd.0, 0);
    ptm.monitor(&guest.vmi, guest.ctx(BASE + 8), VIEW, "b").expect("not mapped");
    let events = ptm.process_dirty_entries(&guest.vmi, CPU).expect("nothing fails");
    assert_eq!(events, [guest.page_out(BASE, 0x40000)]);
}

#[test]
fn a_walk_that_fails_half_way_keeps_no_table() {
    for tried_again in [true, false] {
        let guest = guest(4);
        let mut ptm = Ptm::new();
        ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
        let pdpt = guest.entry(BASE, PageTableLevel::Pdpt);
        let (new_pd, new_pt) = (Gfn(200), Gfn(201));
        guest.vmi.driver().poke64(new_pd.0 << 12, new_pt.0 << 12 | 7);
        guest.vmi.driver().poke64(new_pt.0 << 12, 0x50007);
        assert!(ptm.mark_dirty_entry(pdpt, VIEW, CPU));
        guest.vmi.driver().poke64(pdpt.0, new_pd.0 << 12 | 7);
        guest.vmi.driver().fail_if(move |call| matches!(call, Call::MemoryAccess { gfn, .. } if *gfn == new_pt));
        assert!(ptm.process_dirty_entries(&guest.vmi, CPU).is_err());
        assert_eq!((ptm.monitored_tables(), guest.protected().len()), (2, 2), "those of the change and above it");
        guest.vmi.driver().stop_failing();
        if tried_again {
            let moved = [guest.page_out(BASE, 0x40000), guest.page_in(BASE, 0x50000)];
            assert_eq!(ptm.process_dirty_entries(&guest.vmi, CPU).expect("nothing fails now"), moved);
        }
        ptm.unmonitor(&guest.vmi, guest.ctx(BASE), VIEW).expect("nothing fails now");
        assert_eq!((ptm.monitored_tables(), guest.protected().len()), (0, 0));
    }
}

#[test]
fn a_failed_monitor_leaves_nothing_protected() {
    let guest = guest(1);
    let mut failures = 0;
    for nth in 0.. {
        let mut ptm = Ptm::new();
        guest.vmi.driver().fail_nth(nth);
        let result = ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a");
        guest.vmi.driver().stop_failing();
        if result.is_ok() {
            ptm.unmonitor_all(&guest.vmi).expect("nothing fails");
            break;
        }
        failures += 1;
        assert_eq!((ptm.monitored_tables(), ptm.monitored_addresses()), (0, 0), "call {nth} failed");
        assert_eq!(guest.protected(), [], "call {nth} failed");
        assert_eq!(ptm.process_dirty_entries(&guest.vmi, CPU).ok(), Some(vec![]));
    }
    assert_eq!(failures, 12, "four levels: ask, protect, read");
}

#[test]
fn a_table_that_cannot_be_restored_stays_in_the_books() {
    let guest = guest(1);
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("mapped");
    guest.vmi.driver().fail_nth_change(1);
    let error = ptm.unmonitor(&guest.vmi, guest.ctx(BASE), VIEW).expect_err("the driver failed");
    assert!(matches!(error, VmiError::Driver { .. }), "{error}");
    guest.vmi.driver().stop_failing();
    assert_eq!((ptm.monitored_addresses(), ptm.monitored_entries()), (0, 0));
    assert_eq!((ptm.monitored_tables(), guest.protected().len()), (1, 1), "the books are what is installed");
    ptm.unmonitor_all(&guest.vmi).expect("nothing fails now");
    assert_eq!((ptm.monitored_tables(), guest.protected().len()), (0, 0));
}

#[test]
fn an_error_while_processing_loses_no_entry() {
    let guest = guest(4);
    let mut ptm = Ptm::new();
    let entries: Vec<Pa> = (0..4)
        .map(|page| {
            let va = BASE + page * 0x1000;
            ptm.monitor(&guest.vmi, guest.ctx(va), VIEW, "a").expect("mapped");
            guest.entry(va, PageTableLevel::Pt)
        })
        .collect();
    for nth in 0..8 {
        for (&entry, page) in entries.iter().zip(0..) {
            guest.vmi.driver().poke64(entry.0, if nth % 2 == 0 { 0 } else { (0x40000 + page * 0x1000) | 7 });
            assert!(ptm.mark_dirty_entry(entry, VIEW, CPU));
        }
        guest.vmi.driver().fail_nth(nth);
        let first = ptm.process_dirty_entries(&guest.vmi, CPU);
        guest.vmi.driver().stop_failing();
        let mut all = first.unwrap_or_default();
        all.extend(ptm.process_dirty_entries(&guest.vmi, CPU).expect("nothing fails now"));
        let mut pages: Vec<Va> = all.iter().map(|event| event.update().ctx.va).collect();
        pages.sort_unstable();
        assert_eq!(pages, [0, 1, 2, 3].map(|page| BASE + page * 0x1000), "call {nth} failed");
        assert!(all.iter().all(|event| event.is_page_in() == (nth % 2 == 1)));
    }
}

#[test]
fn tables_beyond_memory_are_no_tables() {
    let guest = guest(1);
    let mut ptm = Ptm::new();
    let pd = guest.entry(BASE, PageTableLevel::Pd);
    let good = guest.vmi.driver().peek64(pd.0);
    guest.vmi.driver().poke64(pd.0, (0xffff_ffff << 12) | 7);
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "a").expect("what is not mapped can be monitored");
    assert_eq!((ptm.monitored_tables(), ptm.paged_in_entries()), (3, 0));
    assert_eq!(guest.write(&mut ptm, pd, good), [guest.page_in(BASE, 0x40000)]);
    ptm.unmonitor(&guest.vmi, guest.ctx(BASE), VIEW).expect("nothing fails");
    assert_eq!((ptm.monitored_tables(), guest.protected().len()), (0, 0));

    let nowhere = AddressContext::new(BASE, 0xffff_ffff_f000u64);
    let error = ptm.monitor(&guest.vmi, nowhere, VIEW, "a").expect_err("no top table");
    assert!(matches!(error, VmiError::OutOfBounds(_)), "{error}");
    let error = ptm.monitor(&guest.vmi, guest.ctx(Va(0xdead_0000_0000_0000)), VIEW, "a").expect_err("not canonical");
    assert!(error.to_string().contains("canonical"), "{error}");
    assert_eq!((ptm.monitored_tables(), guest.protected().len()), (0, 0));
}

#[test]
fn a_view_that_is_gone_is_no_error_on_the_way_out() {
    let guest = guest(2);
    let view = guest.vmi.driver().create_view(MemoryAccess::RWX).expect("a view");
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(BASE), view, "a").expect("mapped");
    ptm.monitor(&guest.vmi, guest.ctx(BASE), VIEW, "b").expect("mapped");
    assert_eq!(ptm.monitored_tables(), 8, "each view for itself");
    guest.vmi.driver().destroy_view(view).expect("exists");
    ptm.unmonitor_view(&guest.vmi, view).expect("nothing left to restore");
    assert_eq!((ptm.monitored_tables(), ptm.monitored_addresses()), (4, 1));
    let error = ptm.monitor(&guest.vmi, guest.ctx(BASE), view, "a").expect_err("no such view");
    assert!(matches!(error, VmiError::ViewNotFound(_)), "{error}");
    assert_eq!(ptm.monitored_tables(), 4);
}

#[test]
fn a_shared_entry_flips_all_that_depend_on_it() {
    let guest = guest(512);
    let mut ptm = Ptm::new();
    for page in 0..512 {
        ptm.monitor(&guest.vmi, guest.ctx(BASE + page * 0x1000), VIEW, "a").expect("mapped");
    }
    let pd = guest.entry(BASE, PageTableLevel::Pd);
    let value = guest.vmi.driver().peek64(pd.0);
    let all = |event: fn(&Guest, Va, u64) -> PageTableMonitorEvent| {
        (0..512).map(|page| event(&guest, BASE + page * 0x1000, 0x40000 + page * 0x1000)).collect::<Vec<_>>()
    };
    assert_eq!(guest.write(&mut ptm, pd, 0), all(Guest::page_out), "in the order of the addresses");
    assert_eq!((ptm.monitored_tables(), ptm.monitored_entries()), (3, 3));
    assert_eq!(guest.write(&mut ptm, pd, value), all(Guest::page_in));
}

#[test]
fn polling_finds_the_same_without_touching_the_guest() {
    let guest = guest(512);
    let mut ptm = PageTableMonitor::<FlatDriver, &str, Unguarded>::polling();
    for page in 0..512 {
        ptm.monitor(&guest.vmi, guest.ctx(BASE + page * 0x1000), VIEW, "a").expect("mapped");
    }
    assert_eq!(ptm.poll(&guest.vmi).ok(), Some(vec![]));
    let entry = guest.entry(BASE + 0x3000, PageTableLevel::Pt);
    guest.vmi.driver().poke64(entry.0, 0x50007);
    let moved = vec![guest.page_out(BASE + 0x3000, 0x43000), guest.page_in(BASE + 0x3000, 0x50000)];
    assert_eq!(ptm.poll(&guest.vmi).ok(), Some(moved));
    assert_eq!(ptm.poll(&guest.vmi).ok(), Some(vec![]));
    ptm.unmonitor_all(&guest.vmi).expect("nothing to do");
    assert!(!guest.vmi.driver().calls().iter().any(Call::is_change));
}

#[test]
fn polling_reads_each_table_once_where_reads_are_expensive() {
    let guest = guest(512);
    guest.vmi.driver().set_direct(false);
    let mut ptm = PageTableMonitor::<FlatDriver, &str, Unguarded>::polling();
    for page in 0..512 {
        ptm.monitor(&guest.vmi, guest.ctx(BASE + page * 0x1000), VIEW, "a").expect("mapped");
    }
    let entry = guest.entry(BASE, PageTableLevel::Pt);
    guest.vmi.driver().poke64(entry.0, 0);
    guest.vmi.driver().log_reads(true);
    guest.vmi.driver().take_calls();
    assert_eq!(ptm.poll(&guest.vmi).ok(), Some(vec![guest.page_out(BASE, 0x40000)]), "not what was read before");
    assert_eq!(guest.vmi.driver().take_calls().len(), 4);
}

/// A guest that rewrites its tables while they are walked: what is told of an address still makes sense in order.
#[test]
fn tables_that_change_between_two_reads_give_ins_and_outs_by_turns() {
    for (direct, levels) in [(true, 4), (false, 4), (true, 5), (false, 5)] {
        let vmi = VmiCore::new(Flicker::new(8, 3, direct)).expect("it answers");
        vmi.set_paging_levels(levels);
        let mut ptm = PageTableMonitor::<Flicker, (), Unguarded>::polling();
        let contexts: Vec<_> =
            (0..6u64).map(|n| AddressContext::new((n * 0x40_2001_2345) & 0x7fff_ffff_ffff, n % 4 * 0x1000)).collect();
        for &ctx in &contexts {
            ptm.monitor(&vmi, ctx, VIEW, ()).expect("the roots are in memory");
        }
        let mut told: Vec<_> = contexts.iter().map(|&ctx| ptm.state(ctx, VIEW).and_then(|state| state.pa)).collect();
        let mut count = 0;
        for _ in 0..3000 {
            for event in ptm.poll(&vmi).expect("nothing fails") {
                let update = event.update();
                let at = contexts.iter().position(|&ctx| ctx == update.ctx).expect("a monitored address");
                let (before, after) = match event {
                    PageTableMonitorEvent::PageIn(_) => (None, Some(update.pa)),
                    PageTableMonitorEvent::PageOut(_) => (Some(update.pa), None),
                };
                assert_eq!(std::mem::replace(&mut told[at], after), before, "{event:?}");
                count += 1;
            }
            for (&ctx, told) in contexts.iter().zip(&told) {
                assert_eq!(ptm.state(ctx, VIEW).map(|state| state.pa), Some(*told));
            }
            assert!(ptm.monitored_entries() <= contexts.len() * usize::from(levels));
        }
        assert!(count > 1000, "{count} events");
        ptm.unmonitor_all(&vmi).expect("nothing to give back");
        assert_eq!((ptm.monitored_tables(), ptm.monitored_entries()), (0, 0));
    }
}

#[test]
fn an_event_of_a_view_that_is_gone_is_answered_and_leaves_nothing() {
    let guest = guest(2);
    let view = guest.vmi.driver().create_view(MemoryAccess::RWX).expect("a view");
    let mut ptm = Ptm::new();
    ptm.monitor(&guest.vmi, guest.ctx(BASE), view, "a").expect("mapped");
    guest.vmi.driver().destroy_view(view).expect("exists");
    // The event was on its way when the view went: nothing maps below the entry any more, then something does again.
    let entry = guest.entry(BASE, PageTableLevel::Pd);
    let value = guest.vmi.driver().peek64(entry.0);
    assert!(ptm.mark_dirty_entry(entry, view, CPU));
    guest.vmi.driver().poke64(entry.0, 0);
    let gone = PageEntryUpdate { view, ctx: guest.ctx(BASE), pa: Pa(0x40000) };
    let events = ptm.process_dirty_entries(&guest.vmi, CPU).expect("tables of a view that is gone need nothing back");
    assert_eq!(events, [PageTableMonitorEvent::PageOut(gone)]);
    assert!(ptm.mark_dirty_entry(entry, view, CPU));
    guest.vmi.driver().poke64(entry.0, value);
    let error = ptm.process_dirty_entries(&guest.vmi, CPU).expect_err("a table cannot be guarded in no view");
    assert!(matches!(error, VmiError::ViewNotFound(gone) if gone == view), "{error}");
    // A view that never was has no monitored entries.
    assert!(!ptm.mark_dirty_entry(entry, View(99), CPU));
    ptm.unmonitor_view(&guest.vmi, view).expect("nothing left to restore");
    assert!(!ptm.mark_dirty_entry(entry, view, CPU));
    assert_eq!(ptm.process_dirty_entries(&guest.vmi, CPU).ok(), Some(vec![]));
    assert_eq!((ptm.monitored_tables(), ptm.monitored_addresses()), (0, 0));
}
