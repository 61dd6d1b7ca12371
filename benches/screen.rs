//! One frame of a large screen over a large guest: nothing changed, the processes changed, everything changed.
//!
//! A frame of 240×67 with 10,000 processes and 10,000 breakpoints is to take no more than 2 ms when nothing changed.

use criterion::{Criterion, criterion_group, criterion_main};
use ratatui::{Terminal, backend::TestBackend};
use vmscope::{
    engine::snapshot::*,
    ui::{self, rows, state::UiState, theme::Theme},
};

fn snapshot(many: u64) -> Snapshot {
    let process = |n: u64| Process {
        pid: n as u32,
        ppid: (n / 7) as u32,
        name: format!("svchost{}.exe", n % 97),
        root: Some(Pa(n << 12)),
        threads: (n % 40) as u32,
        start_ns: n * 1_000_000,
        object: Va(0xffff_e001_0000_0000 + n * 0x80),
        ..Process::default()
    };
    let breakpoint = |n: u64| Breakpoint {
        id: BreakpointId(n),
        symbol: format!("nt!Function{n}"),
        address: Va(0xffff_f803_0000_0000 + n * 16),
        scope: Scope::Global,
        view: View(1),
        pa: Some(Pa(n << 4)),
        state: BreakpointState::Active,
        visible: false,
        tag: String::new(),
        hits: n * n,
        rates: (0..20).map(|i| n * i % 23).collect(),
        last_hits: Vec::new(),
        error: None,
    };
    let event = |seq| Event {
        seq,
        at_ns: seq * 1_000_000,
        kind: EventKind::Breakpoint,
        vcpu: Some(VcpuId(0)),
        pid: Some(648),
        process: "lsass.exe".to_owned(),
        text: "nt!NtCreateFile(0x1f4, 0x80100080)".to_owned(),
    };
    Snapshot {
        status: Status::Running,
        driver: "demo",
        processes: Part::new((0..many).map(process).collect()),
        breakpoints: Part::new((0..many).map(breakpoint).collect()),
        events: Part::new((0..1_000).map(event).collect()),
        event_rates: Part::new((0..60).collect()),
        ..Snapshot::default()
    }
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame 240x67, 10,000 rows");
    let theme = Theme::default();
    for (name, processes, breakpoints) in
        [("nothing changed", false, false), ("processes changed", true, false), ("everything changed", true, true)]
    {
        // Two pictures of the same guest, whose parts change places.
        let (mut snapshot, mut other) = (snapshot(10_000), snapshot(10_000));
        let mut ui = UiState { size: (240, 67), virtual_time: true, ..UiState::default() };
        let Ok(mut terminal) = Terminal::new(TestBackend::new(240, 67));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                snapshot.taken_at_ns += 33_000_000;
                if processes {
                    std::mem::swap(&mut snapshot.processes, &mut other.processes);
                }
                if breakpoints {
                    std::mem::swap(&mut snapshot.breakpoints, &mut other.breakpoints);
                }
                rows::settle(&snapshot, &mut ui);
                let Ok(_) = terminal.draw(|frame| ui::render(frame, &snapshot, &ui, &theme));
            });
        });
    }
    group.finish();
}

/// What is offered while a symbol is typed, among as many as a Linux kernel has: each key is to take less than a frame.
fn completion(criterion: &mut Criterion) {
    let parts = ["sys", "do", "get", "put", "alloc", "free", "lock", "file", "page", "inode", "sock", "skb"];
    let part = |n: u64| parts[(n % parts.len() as u64) as usize];
    let name = |n: u64| format!("{}_{}_{}_{n}", part(n), part(n / 12), part(n / 144));
    let table = SymbolTable::new((0..150_000).map(|n| (name(n), Va(0xffff_ffff_8100_0000 + n * 64))));
    let mut group = criterion.benchmark_group("completion among 150,000 symbols");
    group.bench_function("the first one", |bencher| {
        bencher.iter_batched_ref(
            || SymbolTable::new(table.iter()),
            |table| table.complete("sock", 8).len(),
            criterion::BatchSize::LargeInput,
        );
    });
    for typed in ["s", "sock_lock", "inode_99", "_", "no such symbol"] {
        group.bench_function(typed, |bencher| bencher.iter(|| table.complete(typed, 8).len()));
    }
    group.finish();
}

criterion_group!(benches, frames, completion);
criterion_main!(benches);
