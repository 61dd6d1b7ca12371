//! The session's ground: reads through page tables, strings, caches, teardown.

mod support;

use std::cell::Cell;

use support::{PageSize, Tables, core};
use vmscope::engine::addr::{Pa, Va};

const BASE: Va = Va(0x7f00_0000_0000);

#[test]
fn reads_run_over_pages() {
    let vmi = core(64);
    let next = Cell::new(16);
    let space = Tables::new(vmi.driver(), &next, 4);
    space.map(BASE, Pa(0x2000), PageSize::Small);
    space.map(BASE + 0x1000, Pa(0x1000), PageSize::Small);
    vmi.driver().poke(0x2ffc, &[1, 2, 3, 4]);
    vmi.driver().poke(0x1000, &[5, 6, 7, 8]);
    assert_eq!(vmi.read_u64((BASE + 0xffc, space.root())).ok(), Some(0x0807_0605_0403_0201));
}
