//! Breakpoints of processes on a real kernel, which gives the page tables of one process to the next.

mod live;

use live::{
    dashboard::Dashboard,
    guest::{Guest, Job, Options},
};
use vmscope::engine::{
    command::{Command, Target},
    snapshot::{Breakpoint, BreakpointState, EventKind, Scope, Snapshot, Status},
    worker::StartOptions,
};

/// A guest in which `work reach` waits, and a breakpoint and a watch at the place that it comes to.
fn set_up(smp: u32) -> Option<(Guest, Dashboard, Job, String)> {
    let mut guest = Guest::boot(&Options { plain: true, smp, ..Options::default() })?;
    let dashboard = Dashboard::open(&guest, true, StartOptions::default());
    dashboard.wait("the kernel", |s| s.status == Status::Running && !s.processes.is_empty());
    let job = guest.start("work reach");
    let place = job.ready.split(' ').nth(2).expect("ready PID ADDRESS").to_owned();
    // Its page of code is there once it has run.
    assert_eq!(guest.ask(&job, "here 1"), "here 1");
    let target = Target::parse(&format!("{place}@{}", job.pid)).expect("a place");
    let watch = Command::WatchAddress { target: target.clone(), tag: String::new() };
    dashboard.ask(watch).expect("a watch");
    dashboard.ask(Command::AddBreakpoint { target, scope: Scope::Global, tag: String::new() }).expect("a breakpoint");
    dashboard.wait("an active breakpoint", |s| row(s).state == BreakpointState::Active);
    Some((guest, dashboard, job, place))
}

fn row(snapshot: &Snapshot) -> Breakpoint {
    snapshot.breakpoints.first().expect("the breakpoint").clone()
}

/// The hits that the engine has counted by now: the guest has done what it was told, and answered.
fn hits(dashboard: &Dashboard) -> u64 {
    dashboard.ask(Command::Refresh).expect("a refresh");
    row(&dashboard.engine.snapshot.load()).hits
}

#[test]
fn a_breakpoint_of_a_process_is_that_processs_alone() {
    let Some((mut guest, dashboard, job, place)) = set_up(2) else { return };
    for (line, all) in [("here 3", 3), ("thread 4", 7), ("fork 3", 7), ("vfork 2", 7), ("here 1", 8)] {
        assert_eq!(guest.ask(&job, line), line);
        assert_eq!(hits(&dashboard), all, "{line}");
    }
    let pid = job.pid;
    guest.end(job);
    // Each of these has what the one before it has left: page tables above all.
    guest.sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do work reach 3; done");
    let snapshot = dashboard.wait("the end", |s| row(s).state == BreakpointState::Ended);
    let why = format!("ended: its process {pid} (work) is gone");
    assert_eq!((row(&snapshot).hits, row(&snapshot).error.as_ref(), row(&snapshot).pa), (8, Some(&why), None));
    let table = snapshot.page_tables.first().expect("the watch").clone();
    assert_eq!(table.ended.as_ref(), Some(&why));
    let said = format!("work ({pid}) is gone, and with it 1 breakpoint and 1 watched address");
    assert!(snapshot.events.iter().any(|event| event.kind == EventKind::Engine && event.text == said));
    guest.sh("for i in 1 2 3 4 5 6; do work reach 3; done");
    assert_eq!(hits(&dashboard), 8);
    let changes = dashboard.engine.snapshot.load().page_tables.first().map(|row| row.changes);
    assert_eq!(changes, Some(table.changes), "what became of its page tables is no change of its own");
    let refused = dashboard.ask(Command::ToggleBreakpoint(row(&snapshot).id)).expect_err("it is gone");
    assert!(refused.contains(&why), "{refused}");
    let target = Target::parse(&place).expect("a place");
    let nobodys = Command::AddBreakpoint { target, scope: Scope::Global, tag: String::new() };
    let refused = dashboard.ask(nobodys).expect_err("whose?");
    assert!(refused.contains("name the process"), "{refused}");
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_breakpoint_of_a_process_survives_execve() {
    let Some((mut guest, dashboard, job, _)) = set_up(1) else { return };
    assert_eq!(guest.ask(&job, "here 2"), "here 2");
    let before = dashboard.wait("two hits", |s| row(s).hits == 2);
    let root = before.page_tables.first().expect("the watch").root;
    // The new program says that it is there.
    assert_eq!(guest.ask(&job, "exec"), job.ready);
    let has_moved = |s: &Snapshot| s.page_tables.first().is_some_and(|table| table.root != root);
    dashboard.wait("the program of now", has_moved);
    assert_eq!(guest.ask(&job, "here 0"), "here 0");
    let is_active = |s: &Snapshot| row(s).state == BreakpointState::Active;
    let snapshot = dashboard.wait("the breakpoint in the program of now", is_active);
    assert!(snapshot.page_tables.first().is_some_and(|table| table.paged_in && table.ended.is_none()));
    let seen = row(&snapshot).hits;
    assert_eq!(guest.ask(&job, "here 5"), "here 5");
    assert_eq!(hits(&dashboard), seen + 5);
    let is_told = |told: &str| {
        let is_it = |s: &Snapshot| s.events.iter().any(|e| e.kind == EventKind::ProcessExec && e.text == told);
        dashboard.wait(told, is_it);
    };
    is_told(&format!("work ({}) runs exe now, by execve of /bin/work", job.pid));
    // A program out of a memfd, which is called by the number of its descriptor.
    assert_eq!(guest.ask(&job, "memory"), job.ready);
    is_told(&format!("exe ({}) runs 9 now, by execve of /memfd:out of memory (deleted)", job.pid));
    assert_eq!(guest.ask(&job, "here 0"), "here 0");
    dashboard.wait("the breakpoint in the program out of memory", is_active);
    guest.sh("for i in 1 2 3 4 5 6; do work reach 3; done");
    assert_eq!(hits(&dashboard), seen + 5);
    guest.end(job);
    dashboard.wait("the end", |s| row(s).state == BreakpointState::Ended);
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}
