//! Names on real kernels: those that several functions have, per-CPU variables, and modules that are loaded and unloaded
//! while they are watched.

mod live;

use live::{
    dashboard::Dashboard,
    guest::{Guest, KERNELS, Options, skip, wider_kernels},
};
use vmscope::engine::{
    command::{Answer, Command, Done, Target},
    snapshot::{Breakpoint, BreakpointState, Scope, Snapshot, Va},
    worker::StartOptions,
};

fn break_at(dashboard: &Dashboard, place: &str) -> Answer {
    let target = Target::parse(place).expect("a place");
    dashboard.ask(Command::AddBreakpoint { target, scope: Scope::Global, tag: String::new() })
}

fn row<'a>(snapshot: &'a Snapshot, symbol: &str) -> Option<&'a Breakpoint> {
    snapshot.breakpoints.iter().find(|row| row.symbol == symbol)
}

/// Addresses of a name in lines of the guest's own list, in order; `module` as it is written there, or nothing. Reading that
/// list takes an emulated guest seconds, so it is read rarely.
fn addresses(lines: &str, name: &str, module: &str) -> Vec<Va> {
    let own =
        |line: &&str| line.split_whitespace().skip(2).eq([name, module].into_iter().filter(|word| !word.is_empty()));
    let mut found: Vec<Va> = lines
        .lines()
        .filter(own)
        .filter_map(|line| u64::from_str_radix(line.split(' ').next()?, 16).ok().map(Va))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn shared_names_ask_which(guest: &mut Guest, dashboard: &Dashboard) {
    // A function that is there at several addresses; no data, and no name that is only a compiler's.
    let found = guest.sh(
        "awk '$2 !~ /[tT]/ || $3 ~ /[.$]/ { next } $3 in seen && seen[$3] != $1 && !shared { shared = $3; print $3; print seen[$3], $2, $3 } $3 == shared { print } { seen[$3] = $1 }' /proc/kallsyms",
    );
    let (shared, lines) = found.split_once('\n').expect("several functions with one name");
    let theirs = addresses(lines, shared, "");
    assert!(theirs.len() > 1, "{shared}: {theirs:?}");
    let asked = break_at(dashboard, shared).expect_err("which?");
    assert!(asked.contains(&format!("{shared}#1 at {}", theirs[0])), "{asked}");
    let second = format!("{shared}#2");
    break_at(dashboard, &second).expect("a breakpoint");
    let snapshot = dashboard.wait("the second of them", |s| row(s, &second).is_some());
    let set = row(&snapshot, &second).expect("it is there");
    assert_eq!((set.address, set.state), (theirs[1], BreakpointState::Active));
    dashboard.ask(Command::RemoveBreakpoint(set.id)).expect("it goes");
    let choices = snapshot.symbols.complete(shared, 20);
    assert!(choices.contains(&format!("{shared}#1")) && choices.contains(&second), "{choices:?}");
}

fn per_cpu_variables_take_a_cpu(dashboard: &Dashboard) {
    let watch = |place: &str| {
        dashboard.ask(Command::WatchAddress { target: Target::parse(place).expect("a place"), tag: String::new() })
    };
    let asked = watch("runqueues").expect_err("whose?");
    assert!(asked.contains("runqueues is a per-CPU variable: name a CPU, for example runqueues@cpu0"), "{asked}");
    let asked = watch("runqueues@cpu2").expect_err("there are two");
    assert!(asked.contains("only CPUs 0 to 1"), "{asked}");
    for cpu in 0..2 {
        let place = format!("runqueues@cpu{cpu}");
        let Ok(Done::Table(id, _)) = watch(&place) else { panic!("{place} is not monitored") };
        let snapshot = dashboard.wait("its walk", |s| s.page_tables.iter().any(|row| row.id == id));
        let row = snapshot.page_tables.iter().find(|row| row.id == id).expect("it is there");
        assert_eq!((row.symbol.as_str(), row.paged_in), (place.as_str(), true));
        assert_eq!(snapshot.symbols.place(&place), Ok(Some(row.address)));
        dashboard.ask(Command::UnwatchAddress(id)).expect("it goes");
    }
}

/// A breakpoint that is set before its module is there hits as often as it is called, in every life of the module.
fn modules_come_and_go(guest: &mut Guest, dashboard: &Dashboard) {
    const PLACE: &str = "dummy!dummy_setup";
    let said = break_at(dashboard, "dummy:dummy_setup").expect("it waits");
    assert!(matches!(&said, Done::Breakpoint(_, text) if text.contains("its module is not loaded")), "{said:?}");
    let snapshot = dashboard.wait("the row", |s| row(s, PLACE).is_some());
    assert_eq!(row(&snapshot, PLACE).map(|row| row.state), Some(BreakpointState::Pending));
    let mut hits = 0;
    for round in 0..3 {
        guest.sh("insmod /dummy.ko numdummies=0");
        let lines = guest.sh("grep -F [dummy] /proc/kallsyms");
        let theirs = addresses(&lines, "dummy_setup", "[dummy]");
        let snapshot =
            dashboard.wait("it is set", |s| row(s, PLACE).is_some_and(|row| row.state == BreakpointState::Active));
        let set = row(&snapshot, PLACE).expect("it is there");
        assert_eq!((set.address, set.error.as_deref()), (theirs[0], None), "round {round}");
        // What a module calls its own is what the guest's list says.
        for name in ["dummy_xmit", "dummy_setup", "cleanup_module"] {
            let place = snapshot.symbols.place(&format!("dummy!{name}"));
            assert_eq!(place.ok().flatten().as_ref(), addresses(&lines, name, "[dummy]").first(), "{name}");
        }
        assert_eq!(snapshot.symbols.describe(theirs[0] + 4, 0x1000).as_deref(), Some("dummy!dummy_setup+0x4"));
        assert!(snapshot.symbols.complete("dummy_set", 9).iter().any(|name| name == PLACE));
        let before = snapshot.symbols.place("dummy_setup");
        assert_eq!(before, Ok(Some(theirs[0])), "the bare name does as well");
        for _ in 0..=round {
            guest.sh("ip link add one type dummy && ip link del one");
            hits += 1;
        }
        dashboard.wait("its hits", |s| row(s, PLACE).is_some_and(|row| row.hits == hits));
        guest.sh("rmmod dummy");
        let snapshot = dashboard.wait("it waits", |s| {
            row(s, PLACE).is_some_and(|row| {
                row.state == BreakpointState::Pending
                    && row.error.as_deref().is_some_and(|why| why.contains("module dummy is not loaded"))
            })
        });
        assert_eq!(snapshot.symbols.lookup(PLACE), None, "its names have gone with it");
    }
    // Off while its module goes, comes, and goes: nothing is set, and it may still be switched on.
    let id = row(&dashboard.engine.snapshot.load_full(), PLACE).expect("it is there").id;
    dashboard.ask(Command::ToggleBreakpoint(id)).expect("off");
    guest.sh("insmod /dummy.ko numdummies=0");
    dashboard.wait("its names", |s| s.symbols.lookup(PLACE).is_some());
    guest.sh("ip link add one type dummy && ip link del one");
    let state = row(&dashboard.engine.snapshot.load_full(), PLACE).map(|row| (row.state, row.hits));
    assert_eq!(state, Some((BreakpointState::Disabled, hits)));
    dashboard.ask(Command::ToggleBreakpoint(id)).expect("on");
    guest.sh("ip link add one type dummy && ip link del one");
    dashboard.wait("one more hit", |s| row(s, PLACE).is_some_and(|row| row.hits == hits + 1));
    let hit = dashboard.engine.snapshot.load_full();
    let caller = row(&hit, PLACE).and_then(|row| row.last_hits.last()).map(|hit| hit.process.clone());
    assert_eq!(caller.as_deref(), Some("ip"));
    dashboard.ask(Command::RemoveBreakpoint(id)).expect("it goes");
    guest.sh("rmmod dummy");
}

fn names_are_right(kernel: &'static str) {
    let Some(mut guest) = Guest::boot(&Options { kernel, smp: 2, plain: true, ..Options::default() }) else { return };
    let has_module = guest.run("test -s /dummy.ko").1 == 0;
    let dashboard = Dashboard::open(&guest, true, StartOptions::default());
    dashboard.wait("the kernel", |s| !s.processes.is_empty());
    shared_names_ask_which(&mut guest, &dashboard);
    per_cpu_variables_take_a_cpu(&dashboard);
    if has_module {
        modules_come_and_go(&mut guest, &dashboard);
    } else {
        skip(&format!("no package has the modules of {kernel} any more"));
    }
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn on_5_10() {
    names_are_right(KERNELS[0]);
}

#[test]
fn on_6_1() {
    names_are_right(KERNELS[1]);
}

#[test]
fn on_6_12() {
    names_are_right(KERNELS[2]);
}

#[test]
fn on_7_3() {
    names_are_right(KERNELS[3]);
}

#[test]
fn on_the_wider_kernels() {
    wider_kernels().into_iter().for_each(names_are_right);
}
