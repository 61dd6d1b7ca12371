//! Names of files and of regions, and what a bound cuts of them.

use vmscope::engine::addr::Va;

use crate::{
    INIT, attach, detail,
    support::linux::{Machine, Options, Spawn, offset},
};

/// What a process's open files are called, in order.
fn names(machine: &Machine, files: &[Va]) -> Vec<String> {
    let task = machine.spawn(INIT);
    machine.open(task, files);
    let (detail, _) = detail(machine, &attach(machine), 1);
    detail.handles.into_iter().map(|(_, name)| name).collect()
}

#[test]
fn what_is_in_no_folder_is_named_by_the_kernels_rules() {
    let machine = Machine::new(Options::default());
    let of = |name, filesystem, function| machine.pseudo_file(name, filesystem, Some(function));
    let files = [
        of("memfd:secret", "tmpfs", "simple_dname"),
        of("memfd:", "hugetlbfs", "simple_dname"),
        of("SYSV00001234", "tmpfs", "simple_dname"),
        of("", "pipefs", "pipefs_dname"),
        of("", "sockfs", "sockfs_dname"),
        of("[eventfd]", "anon_inodefs", "anon_inodefs_dname"),
        of("inotify", "anon_inodefs", "anon_inodefs_dname"),
        of("", "pidfs", "pidfs_dname"),
        machine.namespace_file("net"),
        machine.namespace_file("pid_for_children"),
        machine.dma_buf(None),
        machine.dma_buf(Some("a name")),
        of("something", "newfs", "newfs_dname"),
    ];
    let expected = [
        "/memfd:secret (deleted)",
        "/memfd: (deleted)",
        "/SYSV00001234 (deleted)",
        "pipe:[4711]",
        "socket:[4711]",
        "anon_inode:[eventfd]",
        "anon_inode:inotify",
        "anon_inode:[pidfd]",
        "net:[4711]",
        "pid_for_children:[4711]",
        "/dmabuf:",
        "/dmabuf:a name",
        "newfs:[4711]",
    ];
    assert_eq!(names(&machine, &files), expected);
}

#[test]
fn paths_end_where_the_kernels_do() {
    let machine = Machine::new(Options::default());
    // A file on a mount, one that was deleted, and one whose entry leads to no root that is its mount's.
    let (outer, inner) = (machine.file(&["mnt", "place"]), machine.file(&["folder", "file"]));
    machine.mount_on(inner, outer);
    let deleted = machine.file(&["tmp", "new\nline"]);
    machine.poke64(machine.entry_of(deleted) + offset("dentry", "d_hash.pprev"), 0);
    let escaped = machine.file(&["a", "b"]);
    machine.poke64(machine.mount_of(escaped) + offset("mount", "mnt.mnt_root"), machine.entry_of(deleted).0);
    // A namespace that is mounted goes by its place.
    let kept = machine.namespace_file("net");
    machine.poke64(machine.mount_of(kept) + offset("mount", "mnt.mnt_root"), machine.entry_of(kept).0);
    machine.mount_on(kept, outer);
    let files = [inner, deleted, escaped, kept];
    let expected = ["/mnt/place/folder/file", "/tmp/new\u{240a}line (deleted)", "/", "/mnt/place"];
    assert_eq!(names(&machine, &files), expected);
}

#[test]
fn regions_are_named_as_in_maps() {
    let machine = Machine::new(Options::default());
    let task = machine.spawn(INIT);
    let line = machine.file(&["new\nline"]);
    let (lower, upper) = (machine.file(&["lower"]), machine.file(&["over", "upper"]));
    machine.back(lower, upper);
    let shared = machine.pseudo_file("dev/zero", "tmpfs", Some("simple_dname"));
    machine.set_regions(
        task,
        &[
            (0x10_0000, 0x10_1000, 1, line),
            (0x20_0000, 0x20_1000, 5, lower),
            (0x30_0000, 0x30_1000, 1, Va(0)),
            (0x40_0000, 0x40_1000, 0x81, shared),
        ],
    );
    machine.name_region(task, 2, "a name");
    let program = machine.pseudo_file("memfd:program", "tmpfs", Some("simple_dname"));
    machine.set_places(task, program, machine.file(&["jail"]), machine.file(&["jail", "folder"]));
    let os = attach(&machine);
    let (shown, _) = detail(&machine, &os, 1);
    let names: Vec<&str> = shown.regions.iter().map(|region| region.name.as_str()).collect();
    assert_eq!(names, ["/new\\012line", "/over/upper", "[anon:a name]", "/dev/zero (deleted)"]);
    assert_eq!(shown.modules.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), ["/over/upper"]);
    let places = [&shown.executable, &shown.working_directory, &shown.root_directory].map(Option::as_deref);
    assert_eq!(places, [Some("/memfd:program (deleted)"), Some("/jail/folder"), Some("/jail")]);
    // A shared region of memory that its process has named.
    machine.name_region(task, 3, "ours");
    let (shown, _) = detail(&machine, &os, 1);
    assert_eq!(shown.regions[3].name, "[anon_shmem:ours]");
}

#[test]
fn a_command_line_is_what_the_process_made_of_it() {
    let machine = Machine::new(Options::default());
    let task = machine.spawn(Spawn { arguments: Some("a b  c "), ..INIT });
    let mm = Va(machine.peek64(task + offset("task_struct", "mm")));
    let os = attach(&machine);
    let line = || detail(&machine, &os, 1).0.command_line.expect("a line");
    // Arguments may be empty, the last one too: only the last zero ends the line.
    assert_eq!(line(), "a b  c ");
    // A title that runs into the environment, whose end is what the kernel goes by.
    let at = |member| mm + offset("mm_struct", member);
    let (start, end) = (machine.peek64(at("arg_start")), machine.peek64(at("arg_end")));
    machine.poke64(at("env_start"), end);
    machine.poke64(at("env_end"), start + 0x100);
    let memory = machine
        .core
        .translate_address((machine.arguments_at(), detail(&machine, &os, 1).0.process.root.expect("a root")));
    machine.core.driver().poke(memory.expect("mapped").0, b"title: of more than its arguments\0rest");
    assert_eq!(line(), "title: of more than its arguments");
    machine.poke64(at("env_start"), end + 8);
    assert_eq!(line(), "title: o", "the environment is not behind the arguments");
}

/// What is cut says so, and what fits to the last byte is not cut.
#[test]
fn what_is_cut_is_marked() {
    let machine = Machine::new(Options::default());
    let task = machine.spawn(INIT);
    let mm = Va(machine.peek64(task + offset("task_struct", "mm")));
    let root = detail(&machine, &attach(&machine), 1).0.process.root.expect("a root");
    // A command line of more bytes than are read.
    let pages = machine.map_arguments(root, 9);
    for page in 0..9 {
        machine.poke(pages + page * 0x1000, &[b'x'; 0x1000]);
    }
    machine.poke64(mm + offset("mm_struct", "arg_end"), machine.arguments_at().0 + 0x9000);
    machine.poke(pages + 0x8fff, &[0]);
    // A path that is deeper than any, and a name longer than any.
    let deep = machine.file(&vec!["x"; 3000]);
    let long = machine.pseudo_file(&"n".repeat(300), "tmpfs", Some("simple_dname"));
    let whole = machine.file(&["w".repeat(255).as_str()]);
    machine.open(task, &[deep, long, whole]);
    // More groups than are shown.
    let groups = machine.alloc(0x800);
    machine.poke32(groups + offset("group_info", "ngroups"), 300);
    let cred = Va(machine.peek64(task + offset("task_struct", "real_cred")));
    machine.poke64(cred + offset("cred", "group_info"), groups.0);
    let (shown, _) = detail(&machine, &attach(&machine), 1);
    let line = shown.command_line.expect("a line");
    assert!(line.starts_with("xxx") && line.ends_with("x…"), "{}", line.len());
    assert_eq!(shown.truncated, ["command line"]);
    let [(_, deep), (_, long), (_, whole)] = shown.handles.as_slice() else { panic!("{:?}", shown.handles) };
    assert!(deep.starts_with("…/x/x") && deep.ends_with("/x/x"), "{deep}");
    assert_eq!(*long, format!("/{}… (deleted)", "n".repeat(255)));
    assert_eq!(*whole, format!("/{}", "w".repeat(255)));
    let groups = shown.credentials.iter().find(|(name, _)| name == "groups").map(|(_, value)| value.as_str());
    assert!(groups.is_some_and(|groups| groups.ends_with("0 … and 44 more")), "{groups:?}");
}
