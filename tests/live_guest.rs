//! The test guest keeps its promises: what the other live tests build on, checked without vmscope.

mod live;

use live::guest::{Guest, Options};
use std::collections::HashSet;

#[test]
fn the_shell_answers_exactly_and_in_order() {
    let Some(mut guest) = Guest::boot(&Options::default()) else { return };
    assert_eq!(guest.sh("printf 'a b'"), "a b");
    assert_eq!(guest.run("echo out; echo err >&2; false"), ("out\nerr\n".to_owned(), 1));
    for _ in 0..50 {
        assert_eq!(guest.sh("true &"), "");
    }
    let many: String = (1..=500).map(|line| format!("{line}\n")).collect();
    assert_eq!(guest.sh("seq 500"), many);
    assert_eq!(guest.status(), "running");
}

#[test]
fn opens_are_counted_and_looking_at_processes_starts_none() {
    let Some(mut guest) = Guest::boot(&Options { kernel: "6.1", smp: 2, ..Options::default() }) else { return };
    let said = guest.sh("work open 321");
    assert!(said.starts_with("open ") && said.ends_with(" s 321\n"), "{said}");

    let forks = guest.forks();
    let (before, after) = (guest.ps(), guest.ps());
    let pids = |list: &[live::guest::Process]| list.iter().map(|process| process.pid).collect::<HashSet<_>>();
    assert!(before.iter().any(|process| (process.pid, process.name.as_str()) == (1, "init")));
    assert!(before.iter().any(|process| (process.pid, process.name.as_str()) == (2, "kthreadd")));
    let last = guest.sh("sh -c 'echo $$'").trim().parse::<i32>().expect("a process identifier");
    assert!(guest.forks() > forks);
    assert!(pids(&before).union(&pids(&after)).all(|&pid| pid < last));
    assert!(!after.iter().any(|process| process.name == "cat"));
}

#[test]
fn jobs_hold_what_they_say_they_hold() {
    let Some(mut guest) = Guest::boot(&Options { cpu: "max", plain: true, ..Options::default() }) else { return };

    let sleepers = guest.start("work sleepers 20");
    assert_eq!(sleepers.ready, "ready 20");
    let named = guest.ps().into_iter().filter(|process| process.name.starts_with("sleeper-"));
    let named: Vec<_> = named.map(|process| (process.ppid, process.name)).collect();
    assert_eq!(named, (0..20).map(|index| (sleepers.pid, format!("sleeper-{index}"))).collect::<Vec<_>>());
    guest.end(sleepers);
    assert!(!guest.ps().iter().any(|process| process.name.starts_with("sleeper-")));

    let threads = guest.start("work threads 7");
    let process = guest.ps().into_iter().find(|process| process.pid == threads.pid).expect("the job is listed");
    assert_eq!((process.name.as_str(), process.threads), ("work", 8));

    let hostile = guest.start("work hostile-name");
    assert!(guest.ps().iter().any(|process| process.pid == hostile.pid && process.name.starts_with("\x1b[31mx")));

    let map = guest.start("work map");
    assert_eq!(map.ready, format!("ready {} 0x10000000000", map.pid));
    let mapped = format!("grep -c ^10000000000 /proc/{}/maps", map.pid);
    for step in 0..2 {
        assert_eq!(guest.run(&mapped).0, "0\n", "before step {step}");
        assert_eq!(guest.ask(&map, "map"), "mapped");
        assert_eq!(guest.run(&mapped).0, "1\n");
        assert_eq!(guest.ask(&map, "touch"), "touched");
        assert_eq!(guest.ask(&map, "drop"), "dropped");
        assert_eq!(guest.ask(&map, "unmap"), "unmapped");
    }
    assert_eq!(guest.ask(&map, "nonsense"), "unknown");
    for job in [map, hostile, threads] {
        guest.end(job);
    }
}
