//! What the dashboard shows against what the guest says of itself.

use vmscope::engine::{
    command::Command,
    snapshot::{ProcessFlag, clean},
};

use super::{dashboard::Dashboard, guest::Guest};

/// The process list equals the guest's own `/proc`.
pub fn processes_agree(guest: &mut Guest, dashboard: &Dashboard) {
    for _ in 0..20 {
        let (forks, before) = (guest.forks(), guest.ps());
        dashboard.ask(Command::Refresh).expect("a refresh");
        let snapshot = dashboard.engine.snapshot.load_full();
        if before != guest.ps() || forks != guest.forks() {
            // Something started or ended meanwhile, or both; that is not the engine's doing.
            continue;
        }
        assert!(!snapshot.processes_truncated);
        let mut ours: Vec<_> = snapshot.processes.iter().filter(|process| process.pid != 0).collect();
        ours.sort_by_key(|process| process.pid);
        let seen: Vec<_> = ours.iter().map(|process| (process.pid as i32, process.ppid as i32)).collect();
        let real: Vec<_> = before.iter().map(|process| (process.pid, process.ppid)).collect();
        assert_eq!(seen, real);
        for (ours, theirs) in ours.iter().zip(&before) {
            let name = clean(&theirs.name, 64);
            let kernel = ours.flags.contains(&ProcessFlag::Kernel);
            // `/proc` adds a worker's current work to its name.
            assert!(ours.name == name || kernel && name.starts_with(&ours.name), "{} is not {name}", ours.name);
            assert_eq!(ours.threads, theirs.threads, "{name}");
            assert_eq!(kernel, ours.root.is_none(), "{name}");
            assert!(!ours.flags.contains(&ProcessFlag::Hidden), "{name}");
            assert!(ours.name.chars().all(|c| !c.is_control()));
        }
        return;
    }
    panic!("the guest's processes never stood still");
}
