//! A process that takes itself off the kernel's list, as a rootkit does, is found all the same. The guest is thrown away.

mod live;

use indexmap::IndexSet;
use live::{
    eyes::Eyes,
    guest::{Guest, Options},
};
use vmscope::engine::{
    addr::Va,
    driver::qemu::QemuDriver,
    os::{VmiOs, linux::btf::Btf},
    session::VmiProber,
    snapshot::ProcessFlag,
};

/// Where a member of `task_struct` is, by the guest's own type information.
fn task_member(eyes: &Eyes, name: &str) -> Option<u64> {
    let Eyes { core, os } = eyes;
    let symbols = VmiOs::<QemuDriver>::symbols(os);
    let [start, stop] = ["__start_BTF", "__stop_BTF"].map(|name| symbols.lookup(name).expect("type information"));
    let mut types = vec![0; (stop - start) as usize];
    core.read((start, VmiOs::<QemuDriver>::kernel_root(os)), &mut types).expect("it is there");
    Btf::parse(&types).expect("it is well-formed").member("task_struct", name).map(|member| member.offset)
}

fn hidden_is_found(kernel: &'static str, cpu: &'static str) {
    let Some(mut guest) = Guest::boot(&Options { kernel, cpu, plain: true, ..Options::default() }) else { return };
    let job = guest.start("work hostile-name");
    let eyes = Eyes::on(&guest);
    let Eyes { core, os } = &eyes;
    let paused = core.pause_guard().expect("a pause");
    let list = || eyes.processes().processes;
    let before = list();
    assert!(before.iter().all(|process| !process.flags.contains(&ProcessFlag::Hidden)));
    let at = before.iter().position(|process| process.pid == job.pid as u32).expect("the job");
    let root = VmiOs::<QemuDriver>::kernel_root(os);
    let offset = task_member(&eyes, "tasks").expect("the list of all tasks");
    let victim = before.get(at).expect("the job").object + offset;
    let next = core.read_u64((victim, root)).expect("its successor");
    let previous = core.read_u64((victim + 8, root)).expect("its predecessor");
    core.write_u64((Va(previous), root), next).expect("a write");
    core.write_u64((Va(next) + 8, root), previous).expect("a write");

    let after = list();
    assert_eq!(after.len(), before.len());
    let hidden: Vec<u32> = after
        .iter()
        .filter(|process| process.flags.contains(&ProcessFlag::Hidden))
        .map(|process| process.pid)
        .collect();
    assert_eq!(hidden, [job.pid as u32]);

    // Put back, it is a process like the others.
    core.write_u64((Va(previous), root), victim.0).expect("a write");
    core.write_u64((Va(next) + 8, root), victim.0).expect("a write");
    assert!(list().iter().all(|process| !process.flags.contains(&ProcessFlag::Hidden)));
    drop(paused);
    drop(eyes);
    guest.end(job);
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

/// A thread that is taken out of its process's list from outside.
fn hidden_thread_is_found(kernel: &'static str) {
    let Some(mut guest) = Guest::boot(&Options { kernel, plain: true, ..Options::default() }) else { return };
    let job = guest.start("work threads 5");
    let eyes = Eyes::on(&guest);
    let Eyes { core, os } = &eyes;
    let paused = core.pause_guard().expect("a pause");
    let threads = || {
        let list = eyes.processes();
        let (list, hidden) = (list.processes, list.hidden_threads);
        assert!(list.iter().all(|process| !process.flags.contains(&ProcessFlag::Hidden)));
        let process = list.into_iter().find(|process| process.pid == job.pid as u32).expect("the job");
        let detail = os.process_detail(eyes.fresh(), &process, &VmiProber::new(&IndexSet::new())).expect("a detail");
        let own = detail.threads.iter().filter(|thread| thread.hidden).map(|thread| (job.pid as u32, thread.tid));
        assert_eq!(hidden, own.collect::<Vec<_>>(), "the list of all tells of it, too");
        detail.threads
    };
    let before = threads();
    assert!(before.len() == 6 && before.iter().all(|thread| !thread.hidden), "{before:?}");
    let root = VmiOs::<QemuDriver>::kernel_root(os);
    // Up to 6.6 a thread is in two lists, and `/proc` goes by the one that we do not.
    let lists = ["thread_node", "thread_group"].map(|name| task_member(&eyes, name));
    let lists: Vec<u64> = lists.into_iter().flatten().collect();
    assert_eq!(lists.len(), if matches!(kernel, "5.10" | "6.1") { 2 } else { 1 });
    let read = |va: Va| core.read_u64((va, root));
    for offset in lists {
        let victim = before[3].object + offset;
        let (next, previous) = (read(victim).expect("its successor"), read(victim + 8).expect("its predecessor"));
        core.write_u64((Va(previous), root), next).expect("a write");
        core.write_u64((Va(next) + 8, root), previous).expect("a write");

        let after = threads();
        let hidden: Vec<u32> = after.iter().filter(|thread| thread.hidden).map(|thread| thread.tid).collect();
        assert_eq!((after.len(), hidden), (6, vec![before[3].tid]));

        core.write_u64((Va(previous), root), victim.0).expect("a write");
        core.write_u64((Va(next) + 8, root), victim.0).expect("a write");
        assert_eq!(threads(), before);
    }
    drop(paused);
    drop(eyes);
    guest.end(job);
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

/// Processes that come and go while we look hide from nobody.
#[test]
fn nothing_hides_in_a_busy_guest() {
    let Some(mut guest) = Guest::boot(&Options { smp: 2, plain: true, ..Options::default() }) else { return };
    let jobs = [guest.start("work churn 0"), guest.start("work threads 20")];
    let eyes = Eyes::on(&guest);
    let mut ids = std::collections::HashSet::new();
    for _ in 0..300 {
        let list = eyes.processes();
        assert!(list.hidden_threads.is_empty(), "{:?}", list.hidden_threads);
        let hidden: Vec<_> =
            list.processes.iter().filter(|process| process.flags.contains(&ProcessFlag::Hidden)).collect();
        assert!(hidden.is_empty(), "{hidden:?}");
        ids.extend(list.processes.iter().map(|process| process.pid));
    }
    let last = eyes.processes().processes.len();
    assert!(ids.len() > last + 5, "processes came and went: {} of {last}", ids.len());
    drop(eyes);
    jobs.into_iter().for_each(|job| guest.end(job));
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn a_thread_on_6_1() {
    hidden_thread_is_found("6.1");
}

#[test]
fn a_thread_on_6_12() {
    hidden_thread_is_found("6.12");
}

#[test]
fn a_thread_on_5_10() {
    hidden_thread_is_found("5.10");
}

#[test]
fn a_thread_on_7_3() {
    hidden_thread_is_found("7.3");
}

#[test]
fn on_5_10() {
    hidden_is_found("5.10", "default");
}

#[test]
fn on_7_3() {
    hidden_is_found("7.3", "default");
}

#[test]
fn on_6_1() {
    hidden_is_found("6.1", "default");
}

#[test]
fn on_6_12_with_isolated_page_tables() {
    hidden_is_found("6.12", "Nehalem");
}
