//! What is read of a process on a real guest, against the guest's own `/proc`: credentials, threads, files, sockets,
//! regions, namespaces; and system calls at a breakpoint.

mod live;

use std::iter;

use indexmap::IndexSet;
use live::{
    dashboard::Dashboard,
    eyes::Eyes,
    guest::{Guest, Options, wider_kernels},
};
use vmscope::engine::{
    command::{Command, Target},
    os::VmiOs,
    session::VmiProber,
    snapshot::{ProcessDetail, Scope, clean},
    worker::StartOptions,
};

fn detail_of(eyes: &Eyes, pid: i32) -> ProcessDetail {
    let list = eyes.processes().processes;
    let process = list.into_iter().find(|process| process.pid == pid as u32).expect("the process");
    let prober = VmiProber::new(&IndexSet::new());
    let detail = eyes.os.process_detail(eyes.fresh(), &process, &prober).expect("a detail");
    assert!(detail.truncated.is_empty() && detail.unavailable.is_empty(), "{detail:?}");
    detail
}

fn credential<'a>(detail: &'a ProcessDetail, name: &str) -> &'a str {
    let found = detail.credentials.iter().find(|(known, _)| known == name);
    found.map_or_else(|| panic!("no {name}: {:?}", detail.credentials), |(_, value)| value)
}

/// `/proc/PID/status` by name.
fn status(guest: &mut Guest, pid: i32, name: &str) -> Vec<String> {
    let line = guest.sh(&format!("grep ^{name}: /proc/{pid}/status"));
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

fn credentials_agree(guest: &mut Guest, detail: &ProcessDetail, pid: i32) {
    for (line, names) in [("Uid", ["uid", "euid", "suid", "fsuid"]), ("Gid", ["gid", "egid", "sgid", "fsgid"])] {
        assert_eq!(status(guest, pid, line), names.map(|name| credential(detail, name)), "{line}");
    }
    for (line, name) in [
        ("CapInh", "inheritable"),
        ("CapPrm", "permitted"),
        ("CapEff", "capabilities"),
        ("CapBnd", "bounding"),
        ("CapAmb", "ambient"),
    ] {
        let theirs = status(guest, pid, line).concat();
        let theirs = u64::from_str_radix(&theirs, 16).expect("hexadecimal");
        assert_eq!(credential(detail, name), format!("{theirs:#x}"), "{line}");
    }
    for namespace in ["mnt", "net", "uts", "ipc", "cgroup"] {
        let theirs = guest.sh(&format!("readlink /proc/{pid}/ns/{namespace}"));
        assert!(credential(detail, "namespaces").split(' ').any(|ours| ours == theirs.trim()), "{theirs}");
    }
}

/// `/proc/PID/maps` splits in six; the last part is a name, which may have blanks in it.
fn regions_agree(guest: &mut Guest, detail: &ProcessDetail, pid: i32) {
    let theirs = guest.sh(&format!("cat /proc/{pid}/maps"));
    let theirs: Vec<(String, String)> = theirs
        .lines()
        // The page of old system calls belongs to no process.
        .filter(|line| !line.ends_with("[vsyscall]"))
        .map(|line| {
            let mut rest = line;
            let mut word = || {
                let (word, behind) = rest.split_once(' ').unwrap_or((rest, ""));
                rest = behind.trim_start_matches(' ');
                word.to_owned()
            };
            let (range, protection) = (word(), word());
            (0..3).for_each(|_| drop(word()));
            (format!("{range} {protection}"), clean(rest, usize::MAX))
        })
        .collect();
    let ours: Vec<(String, String)> = detail
        .regions
        .iter()
        .map(|region| {
            let range = format!("{:08x}-{:08x} {}", region.start.0, region.end.0, region.protection);
            (range, region.name.clone())
        })
        .collect();
    assert_eq!(ours, theirs);
}

/// The links of a folder of `/proc/PID` by name, as they are.
fn links(guest: &mut Guest, folder: &str, names: &str) -> Vec<(String, String)> {
    let command =
        format!("cd {folder} && for f in {names}; do printf '%s ' $f; readlink -n $f; printf '\\0'; done; cd /");
    let text = guest.sh(&command);
    let pairs = text.split_terminator('\0').map(|link| link.split_once(' ').expect("a link"));
    pairs.map(|(name, link)| (name.to_owned(), clean(link, usize::MAX))).collect()
}

fn files_agree(guest: &mut Guest, detail: &ProcessDetail, pid: i32) {
    let theirs = links(guest, &format!("/proc/{pid}/fd"), "*");
    let mut theirs: Vec<(u64, String)> =
        theirs.into_iter().map(|(number, name)| (number.parse().expect("a number"), name)).collect();
    theirs.sort();
    // What a socket is connected to stands behind the name that `/proc` has for it.
    let name = |text: &str| match text.strip_prefix("socket:") {
        Some(_) => text.split(' ').next().unwrap_or_default().to_owned(),
        None => text.to_owned(),
    };
    let ours: Vec<_> = detail.handles.iter().map(|(number, text)| (*number, name(text))).collect();
    assert_eq!(ours, theirs);
    let theirs = links(guest, &format!("/proc/{pid}"), "exe cwd root");
    let ours = [("exe", &detail.executable), ("cwd", &detail.working_directory), ("root", &detail.root_directory)];
    assert_eq!(ours.map(|(name, link)| (name.to_owned(), link.clone().expect("a link"))).to_vec(), theirs);
    let theirs = guest.sh(&format!("cat /proc/{pid}/cmdline"));
    let theirs = theirs.strip_suffix('\0').unwrap_or(&theirs).replace('\0', " ");
    assert_eq!(detail.command_line, Some(clean(&theirs, usize::MAX)));
}

/// A file of every kind that the kernel names by a rule of its own: what is shown is what the guest says itself.
fn names_agree(guest: &mut Guest, eyes: &Eyes) {
    // Where the kernel's package had none, it is an empty file.
    guest.run("insmod /overlay.ko");
    let job = guest.start("names 2>/tmp/missing");
    let pids: Vec<i32> = job.ready.split(' ').skip(1).map(|pid| pid.parse().expect("a number")).collect();
    assert_eq!(pids.len(), 4, "{}", job.ready);
    for &pid in &pids {
        let detail = detail_of(eyes, pid);
        regions_agree(guest, &detail, pid);
        files_agree(guest, &detail, pid);
    }
    // What was compared is what was meant.
    let detail = detail_of(eyes, pids[0]);
    assert_eq!(detail.executable.as_deref(), Some("/memfd:names: run from memory (deleted)"));
    assert!(detail.modules.iter().any(|module| Some(&module.name) == detail.executable.as_ref()));
    let missing = guest.sh("cat /tmp/missing");
    for (kind, name) in [
        ("", "/tmp/n/new\\012line\\012 and␉tab ä \u{fffd}"),
        ("", "/tmp/n/deleted (deleted)"),
        ("", "/memfd: (deleted)"),
        ("", "/dev/zero (deleted)"),
        ("", "/SYSV00001234 (deleted)"),
        ("", "/tmp/n/b/bound"),
        ("", "/left"),
        ("overlay", "/tmp/n/over/lower"),
        ("huge pages", "/anon_hugepage (deleted)"),
        ("aio", "/[aio] (deleted)"),
        ("io_uring", "anon_inode:[io_uring]"),
        ("memfd_secret", "/secretmem (deleted)"),
        ("udmabuf", "/dmabuf:a name"),
        ("name of memory", "[anon:a name of its own]"),
        ("name of shared memory", "[anon_shmem:shared by name]"),
    ] {
        let is_there = kind.is_empty() || !missing.contains(&format!("no {kind}:"));
        assert_eq!(detail.regions.iter().any(|region| region.name == name), is_there, "{name}; {missing}");
    }
    guest.end(job);
}

/// The kernel's clock ticks in seconds, and stands still while all is idle.
fn clocks_agree(guest: &mut Guest, eyes: &Eyes) {
    let mut uptime = || -> f64 {
        let text = guest.sh("cat /proc/uptime");
        text.split_whitespace().next().and_then(|seconds| seconds.parse().ok()).expect("seconds")
    };
    let before = uptime();
    let ours = eyes.os.uptime_ns(eyes.fresh()).expect("the kernel's clock") as f64 / 1e9;
    // It tells hundredths of a second: one more has passed since then.
    let since = uptime();
    let after = iter::repeat_with(uptime).find(|&now| now > since).expect("time passes");
    assert!(before - 2.0 < ours && ours < after, "{before} {ours} {after}");
}

fn details_agree(kernel: &'static str, cpu: &'static str) {
    let Some(mut guest) = Guest::boot(&Options { kernel, cpu, plain: true, ..Options::default() }) else { return };
    let work = guest.sh("command -v work").trim().to_owned();
    guest.sh("echo 'somebody:x:1234:5678::/:/bin/sh' >> /etc/passwd");
    let job = guest.start(&format!("start-stop-daemon -S -c somebody -x {work} -- threads 7"));
    let net = guest.start("sh -c 'ip link set lo up; echo ready; exec nc -l -p 7777'");
    guest.sh("until grep -qs :1E61 /proc/net/tcp /proc/net/tcp6; do :; done");
    let eyes = Eyes::on(&guest);

    let detail = detail_of(&eyes, job.pid);
    assert_eq!(detail.command_line.as_deref(), Some(format!("{work} threads 7").as_str()));
    credentials_agree(&mut guest, &detail, job.pid);
    clocks_agree(&mut guest, &eyes);
    assert_eq!(credential(&detail, "uid"), "1234");
    regions_agree(&mut guest, &detail, job.pid);
    files_agree(&mut guest, &detail, job.pid);
    let tasks = guest.sh(&format!("cd /proc/{}/task && echo *; cd /", job.pid));
    let mut ours: Vec<u32> = detail.threads.iter().map(|thread| thread.tid).collect();
    ours.sort_unstable();
    let mut theirs: Vec<u32> = tasks.split_whitespace().map(|tid| tid.parse().expect("a number")).collect();
    theirs.sort_unstable();
    assert_eq!(ours, theirs);
    assert!(detail.threads.iter().all(|thread| !thread.hidden));
    assert!(detail.modules.iter().any(|module| module.name == work), "{:?}", detail.modules);

    let detail = detail_of(&eyes, net.pid);
    files_agree(&mut guest, &detail, net.pid);
    let socket = detail.handles.iter().find(|(_, text)| text.starts_with("socket:")).expect("it listens");
    assert!(socket.1.contains(" tcp ") && socket.1.ends_with(":7777 listening"), "{socket:?}");
    credentials_agree(&mut guest, &detail, net.pid);

    names_agree(&mut guest, &eyes);

    // The kernel's own threads: no command line, no regions, the kernel's modules.
    let kthreadd = detail_of(&eyes, 2);
    assert_eq!((kthreadd.command_line.as_deref(), kthreadd.regions.len()), (Some(""), 0));
    let modules = guest.sh("cat /proc/modules");
    let theirs: Vec<&str> = modules.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(kthreadd.modules.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), theirs);
    drop(eyes);
    guest.end(job);
    guest.end(net);
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn details_agree_on_5_10() {
    details_agree("5.10", "default");
}

#[test]
fn details_agree_on_7_3() {
    details_agree("7.3", "default");
}

#[test]
fn details_agree_on_the_wider_kernels() {
    wider_kernels().into_iter().for_each(|kernel| details_agree(kernel, "default"));
}

#[test]
fn details_agree_on_6_1() {
    details_agree("6.1", "default");
}

#[test]
fn details_agree_on_6_12_with_isolated_page_tables() {
    details_agree("6.12", "Nehalem");
}

fn system_calls_are_named(kernel: &'static str) {
    let Some(mut guest) = Guest::boot(&Options { kernel, plain: true, ..Options::default() }) else { return };
    let dashboard = Dashboard::open(&guest, true, StartOptions::default());
    dashboard.wait("the kernel", |s| !s.processes.is_empty());
    let mut seen = 0;
    for place in ["__x64_sys_openat", "do_syscall_64"] {
        let target = Target::parse(place).expect("a place");
        let set = Command::AddBreakpoint { target, scope: Scope::Global, tag: String::new() };
        dashboard.ask(set).expect("a breakpoint");
        assert_ne!(guest.run("cat /no/such/file").1, 0);
        let wanted = |call: &str| call.starts_with("openat(") && call.contains("\"/no/such/file\"");
        let snapshot = dashboard.wait("the call by its name", |s| {
            s.events
                .iter()
                .filter(|event| event.text.starts_with(place) && wanted(&event.text[place.len() + 2..]))
                .count()
                > 0
        });
        let row = snapshot.breakpoints.last().expect("the breakpoint");
        seen += snapshot.events.iter().filter(|event| event.text.contains("dfd=-100, filename=")).count();
        dashboard.ask(Command::RemoveBreakpoint(row.id)).expect("it goes");
    }
    assert!(seen > 0, "names of arguments");
    dashboard.close();
    assert_eq!(guest.sh("echo runs"), "runs\n");
}

#[test]
fn system_calls_are_named_on_5_10() {
    system_calls_are_named("5.10");
}

#[test]
fn system_calls_are_named_on_7_3() {
    system_calls_are_named("7.3");
}

#[test]
fn system_calls_are_named_on_the_wider_kernels() {
    wider_kernels().into_iter().for_each(system_calls_are_named);
}

#[test]
fn system_calls_are_named_on_6_1() {
    system_calls_are_named("6.1");
}

#[test]
fn system_calls_are_named_on_6_12() {
    system_calls_are_named("6.12");
}
