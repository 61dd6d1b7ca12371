//! Translation, reads and the prober.

use std::{hint::black_box, rc::Rc};

use indexmap::IndexSet;
use vmscope::engine::{
    addr::{Pa, Va},
    session::{VmiCore, VmiProber},
};

use crate::{
    memory::{BASE, FloorCache, Layout, walk},
    ours,
    table::{Table, timed},
    theirs,
};

const N: u64 = 20_000;

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

pub fn run(table: &mut Table) {
    for (label, pages) in [("1k pages", 1024), ("100k pages", 100_000)] {
        let layout = Rc::new(Layout::new(pages, 0x1000, 0));
        let (memory, root) = (&layout.memory, layout.root);
        let mut rng = Rng(0x1234_5678_9abc_def1);
        let addresses: Vec<u64> = (0..N).map(|_| BASE + (rng.next() % pages) * 4096 + (rng.next() % 500) * 8).collect();
        let ours = VmiCore::new(ours::Flat::new(&layout)).unwrap();
        let mut theirs = vmi_core::VmiCore::new(theirs::Flat::new(&layout)).unwrap();

        ours.set_v2p_cache_enabled(false);
        theirs.disable_v2p_cache();
        theirs.disable_gfn_cache();
        table.row(
            format!("translate, uncached, {label}"),
            &mut || {
                timed(N, || {
                    addresses.iter().for_each(|&a| {
                        black_box(ours.translate_address((Va(a), Pa(root))).unwrap());
                    })
                })
            },
            &mut || {
                timed(N, || {
                    addresses.iter().for_each(|&a| {
                        black_box(theirs.translate_address((vmi_core::Va(a), vmi_core::Pa(root))).unwrap());
                    })
                })
            },
            Some(&mut || {
                timed(N, || {
                    addresses.iter().for_each(|&a| {
                        black_box(walk(memory, a, root).unwrap());
                    })
                })
            }),
        );

        ours.set_v2p_cache_enabled(true);
        let mut theirs = vmi_core::VmiCore::new(theirs::Flat::new(&layout)).unwrap();
        theirs.resize_gfn_cache(1 << 18);
        theirs.resize_v2p_cache(1 << 18);
        let mut floor = FloorCache::new(1 << 15);
        table.row(
            format!("translate, cached, {label}"),
            &mut || {
                timed(N, || {
                    addresses.iter().for_each(|&a| {
                        black_box(ours.translate_address((Va(a), Pa(root))).unwrap());
                    })
                })
            },
            &mut || {
                timed(N, || {
                    addresses.iter().for_each(|&a| {
                        black_box(theirs.translate_address((vmi_core::Va(a), vmi_core::Pa(root))).unwrap());
                    })
                })
            },
            Some(&mut || {
                timed(N, || {
                    addresses.iter().for_each(|&a| {
                        black_box(floor.get(memory, a, root).unwrap());
                    })
                })
            }),
        );
        let theirs = vmi_core::VmiCore::new(theirs::Flat::new(&layout)).unwrap();
        table.row(
            format!("read_u64 by VA, {label}"),
            &mut || {
                timed(N, || {
                    addresses.iter().for_each(|&a| {
                        black_box(ours.read_u64((Va(a), Pa(root))).unwrap());
                    })
                })
            },
            &mut || {
                timed(N, || {
                    addresses.iter().for_each(|&a| {
                        black_box(theirs.read_u64((vmi_core::Va(a), vmi_core::Pa(root))).unwrap());
                    })
                })
            },
            Some(&mut || {
                timed(N, || {
                    addresses.iter().for_each(|&a| {
                        black_box(memory.get(floor.get(memory, a, root).unwrap()));
                    })
                })
            }),
        );
        let pages_at: Vec<u64> = addresses.iter().map(|a| a & !0xfff).collect();
        let (mut page, mut their_page) = (vec![0; 4096], vec![0; 4096]);
        let mut floor_page = [0; 4096];
        table.row(
            format!("read a page by VA, {label}"),
            &mut || {
                timed(N, || {
                    pages_at.iter().for_each(|&a| {
                        ours.read((Va(a), Pa(root)), &mut page).unwrap();
                        black_box(&page);
                    })
                })
            },
            &mut || {
                timed(N, || {
                    pages_at.iter().for_each(|&a| {
                        theirs.read((vmi_core::Va(a), vmi_core::Pa(root)), &mut their_page).unwrap();
                        black_box(&their_page);
                    })
                })
            },
            Some(&mut || {
                timed(N, || {
                    pages_at.iter().for_each(|&a| {
                        memory.read(floor.get(memory, a, root).unwrap(), &mut floor_page).unwrap();
                        black_box(&floor_page);
                    })
                })
            }),
        );
        table.row(
            format!("flush + 8 read_u64 (an event), {label}"),
            &mut || {
                timed(N / 8, || {
                    addresses.chunks_exact(8).for_each(|eight| {
                        ours.flush_v2p_cache();
                        eight.iter().for_each(|&a| {
                            black_box(ours.read_u64((Va(a), Pa(root))).unwrap());
                        });
                    })
                })
            },
            &mut || {
                timed(N / 8, || {
                    addresses.chunks_exact(8).for_each(|eight| {
                        theirs.flush_v2p_cache();
                        eight.iter().for_each(|&a| {
                            black_box(theirs.read_u64((vmi_core::Va(a), vmi_core::Pa(root))).unwrap());
                        });
                    })
                })
            },
            Some(&mut || {
                timed(N / 8, || {
                    addresses.chunks_exact(8).for_each(|eight| {
                        floor.flush();
                        eight.iter().for_each(|&a| {
                            black_box(memory.get(floor.get(memory, a, root).unwrap()));
                        });
                    })
                })
            }),
        );
    }

    let layout = Rc::new(Layout::new(64, 0x1000, 0));
    let root = layout.root;
    let ours = VmiCore::new(ours::Flat::new(&layout)).unwrap();
    let theirs = vmi_core::VmiCore::new(theirs::Flat::new(&layout)).unwrap();
    let mut floor = FloorCache::new(1 << 10);
    let address = |i: u64| if i & 1 == 0 { BASE + i / 2 * 4096 } else { 0x1000 + i * 4096 };
    table.row(
        "prober: 64 reads, 32 of them missing, per read",
        &mut || {
            timed(64 * 100, || {
                for _ in 0..100 {
                    let prober = VmiProber::new(&IndexSet::new());
                    for i in 0..64 {
                        black_box(vmscope::vmi_probe!(prober, ours.read_u64((Va(address(i)), Pa(root)))).unwrap());
                    }
                    black_box(prober.error_for_page_faults()).unwrap_err();
                }
            })
        },
        &mut || {
            timed(64 * 100, || {
                for _ in 0..100 {
                    let prober = vmi_core::VmiProber::new(&IndexSet::new());
                    for i in 0..64 {
                        black_box(
                            vmi_core::vmi_probe!(
                                prober,
                                theirs.read_u64((vmi_core::Va(address(i)), vmi_core::Pa(root)))
                            )
                            .unwrap(),
                        );
                    }
                    black_box(prober.error_for_page_faults()).unwrap_err();
                }
            })
        },
        Some(&mut || {
            timed(64 * 100, || {
                for _ in 0..100 {
                    let mut missing = Vec::new();
                    for i in 0..64 {
                        match floor.get(&layout.memory, address(i), root) {
                            Some(pa) => _ = black_box(layout.memory.get(pa)),
                            None => missing.push(address(i)),
                        }
                    }
                    black_box(missing);
                }
            })
        }),
    );
}
