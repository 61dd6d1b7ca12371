//! The page table monitor: what it reports, what it guards, and that neither a failing driver nor a hostile guest
//! makes its books differ from what is installed.

mod support;

use std::cell::Cell;

use support::{Call, FlatDriver, PageSize, Tables, core};
use vmscope::engine::{
    addr::{AddressContext, Gfn, Pa, Va, VcpuId, View},
    arch::amd64::PageTableLevel,
    driver::MemoryAccess,
    error::VmiError,
    ptm::{PageEntryUpdate, PageTableMonitor, PageTableMonitorEvent},
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
    ptm.monitor(&guest.vmi, guest.ctx(BASE + 0x123), VIEW, "a").expect("mapped");
    let entry = guest.entry(BASE, PageTableLevel::Pt);
    assert_eq!(guest.write(&mut ptm, entry, 0), [guest.page_out(BASE + 0x123, 0x40123)]);
    assert_eq!(guest.write(&mut ptm, entry, 0x50007), [guest.page_in(BASE + 0x123, 0x50123)]);
    let moved = [guest.page_out(BASE + 0x123, 0x50123), guest.page_in(BASE + 0x123, 0x60123)];
    assert_eq!(guest.write(&mut ptm, entry, 0x60007), moved, "out, then in");
    assert_eq!(guest.write(&mut ptm, entry, 0x8000_0000_0006_0065), [], "permissions, accessed and dirty are nothing");
}
