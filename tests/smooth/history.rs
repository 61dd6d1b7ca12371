//! What the pictures to go back to cost, counted by the operating system: in a process of their own, so that nothing else is
//! in the count.

use std::{env, fs, process::Command, sync::Arc};

use vmscope::{
    app::history::{History, MOST_BYTES},
    engine::snapshot::{Part, Process, Snapshot},
};

/// A picture of 5,000 processes of which so many are others than the second before.
fn picture(second: u64, changing: u64) -> Arc<Snapshot> {
    let process = |pid: u32| {
        let turn = (second * changing + u64::from(pid)) / 5_000;
        Process { pid, name: format!("process-{pid}"), threads: turn as u32, ..Process::default() }
    };
    Arc::new(Snapshot {
        taken_at_ns: second * 1_000_000_000,
        processes: Part::new((0..5_000).map(process).collect()),
        ..Snapshot::default()
    })
}

/// Memory of this process that is its own, in bytes.
fn own_memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Runs [`program_with_history`] for this many changes a second and bytes; answers by how much it grew, and what was counted.
fn grown(changing: u64, most_bytes: usize) -> (usize, usize) {
    let output = Command::new(env::current_exe().unwrap())
        .args(["history::program_with_history", "--exact", "--nocapture", "--test-threads=1"])
        .env("VMSCOPE_TEST_HISTORY", format!("{changing} {most_bytes}"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let line = said.lines().find_map(|line| line.split_once("grown by ")).unwrap_or_else(|| panic!("{said}")).1;
    let (grown, counted) = line.split_once(", counted ").unwrap();
    (grown.parse().unwrap(), counted.parse().unwrap())
}

#[test]
fn program_with_history() {
    let Ok(told) = env::var("VMSCOPE_TEST_HISTORY") else { return };
    let (changing, most_bytes) = told.split_once(' ').unwrap();
    let mut history = History::new(picture(0, 0), most_bytes.parse().unwrap());
    let before = own_memory();
    // Longer than pictures are kept.
    for second in 1..=400 {
        history.digest(picture(second, changing.parse().unwrap()));
    }
    println!("grown by {}, counted {}", own_memory().saturating_sub(before), history.bytes());
}

#[test]
fn five_minutes_of_five_thousand_processes_take_little_memory() {
    // Each picture by itself is a megabyte.
    let (grown, counted) = grown(100, MOST_BYTES);
    assert!(grown < MOST_BYTES / 2, "{grown} bytes of memory, {counted} counted");
}

#[test]
fn the_bound_is_kept_when_everything_changes_and_what_is_counted_is_what_it_takes() {
    let most = 24 << 20;
    let (grown, counted) = grown(5_000, most);
    assert!(counted <= most && counted > most / 2, "{counted} counted of {most}");
    // The picture of the moment and the gaps of the allocator come on top.
    assert!(grown < counted + counted / 2 && grown > counted / 2, "{grown} bytes of memory, {counted} counted");
}
