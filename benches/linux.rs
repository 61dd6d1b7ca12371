//! From nothing to the first full process list of a live Linux, and reading the list again while the guest runs.
//!
//! `cargo bench --bench linux`. Boots the test guest (`scripts/guest`) with 100 processes, once with a shared memory file
//! and once with nothing but a QMP socket.

#[path = "../tests/live/mod.rs"]
mod live;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use live::guest::{Guest, Options};
use vmscope::engine::{
    addr::VcpuId,
    driver::qemu::{QemuDriver, QemuOptions},
    os::{VmiOs, linux::LinuxOs},
    session::{VmiCore, VmiSession},
};

fn attach(options: &QemuOptions) -> (VmiCore<QemuDriver>, LinuxOs) {
    let core = QemuDriver::attach(options.clone()).and_then(VmiCore::new).expect("a guest to attach to");
    let registers = core.registers(VcpuId(0)).expect("registers");
    let os = LinuxOs::detect(&core, &registers, None).expect("a Linux kernel");
    (core, os)
}

fn processes(core: &VmiCore<QemuDriver>, os: &LinuxOs) -> usize {
    core.flush_gfn_cache();
    core.flush_v2p_cache();
    os.processes(VmiSession::new(core, os)).expect("a process list").processes.len()
}

fn linux(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("linux");
    group.sample_size(20);
    for (kernel, plain) in [("6.1", false), ("6.12", false), ("6.12", true)] {
        let Some(mut guest) = Guest::boot(&Options { kernel, plain, smp: 2, ..Options::default() }) else { return };
        let _sleepers = guest.start("work sleepers 50");
        let options = QemuOptions {
            qmp: Some(format!("unix:{}", guest.qmp_socket().display())),
            memory: (!plain).then(|| guest.memory_file()),
            ..QemuOptions::default()
        };
        let way = format!("{kernel} {}", if plain { "QMP socket only" } else { "memory file" });
        group.bench_function(BenchmarkId::new("cold attach to the first process list", &way), |bencher| {
            bencher.iter(|| {
                let (core, os) = attach(&options);
                processes(&core, &os)
            });
        });
        let (core, os) = attach(&options);
        let count = processes(&core, &os);
        group.bench_function(BenchmarkId::new(format!("refresh of {count} processes"), &way), |bencher| {
            bencher.iter(|| processes(&core, &os));
        });
    }
    group.finish();
}

criterion_group!(benches, linux);
criterion_main!(benches);
