//! The program against a virsh that is missing, refuses, hangs, floods or lies: a sentence each, and in time.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
};

const UUID: &str = "00000000-0000-4000-8000-000000000007";

/// What `vmscope` says with this script as its only virsh.
fn vmscope(virsh: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    if !virsh.is_empty() {
        let program = folder.path().join("virsh");
        fs::write(&program, format!("#!/bin/sh\n{virsh}\n")).expect("a script");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
    }
    Command::new(env!("CARGO_BIN_EXE_vmscope"))
        .args(arguments)
        .env("PATH", folder.path())
        .env("HOME", folder.path())
        .env("XDG_CONFIG_HOME", folder.path())
        .env_remove("LIBVIRT_DEFAULT_URI")
        .output()
        .expect("vmscope can be run")
}

fn refusal(virsh: &str, connect: &str) -> String {
    let ran = vmscope(virsh, &["libvirt", "web", "--connect", connect, "--headless"]);
    let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.lines().count() == 1 && said.chars().all(|c| !c.is_control()), "{said:?}");
    assert!(said.len() < 900, "{said}");
    said
}

#[test]
fn each_way_to_fail_has_its_sentence() {
    let info = |state: &str| format!("echo 'Id: {state}'\necho 'Name: web'\necho 'UUID: {UUID}'\necho 'State: x'");
    for (virsh, want) in [
        ("", "libvirt-clients"),
        ("echo 'error: failed to get domain' >&2; exit 1", "no libvirt domain 'web' at qemu:///system"),
        ("echo 'error: Permission denied' >&2; exit 1", "group libvirt"),
        ("printf 'error: \\033[2J\\n' >&2; exit 1", "\u{241b}[2J"),
        ("exit 1", "gives no reason"),
        ("echo hello", "virsh answers 'hello'"),
        ("exec /bin/sleep 1000", "virsh does not answer"),
        ("/bin/sleep 1000 & wait", "virsh does not answer"),
        ("exec /bin/cat /dev/zero", "says more than anybody could have asked"),
        ("exec /bin/cat /dev/zero >&2", "virsh does not answer"),
        (&info("-"), "shut off: start it with 'virsh -c qemu:///system start"),
        (&info("1"), "can be seen from here"),
    ] {
        let said = refusal(virsh, "qemu:///system");
        assert!(said.contains(want), "{virsh}: {said}");
    }
}

#[test]
fn a_virsh_that_fails_once_the_domain_is_found_has_its_sentence_too() {
    const RUNNING: &str = "00000000-0000-4000-8000-000000000008";
    // Something that looks like the domain's QEMU.
    let mut process = Command::new("sh")
        .args(["-c", "read line", "qemu", "-uuid", RUNNING])
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    // Without a command it is the one that stays.
    let found = format!("[ \"$4\" != dominfo ] || {{ printf 'Id: 1\\nName: web\\nUUID: {RUNNING}\\n'; exit; }}");
    for (virsh, want) in [
        ("exec /bin/sleep 1000", "virsh does not answer"),
        ("echo 'error: Cannot connect' >&2; exit 1", "Cannot connect"),
        ("exec /bin/cat /dev/zero", "says more than anybody could have asked"),
        // It echoes what it is told, and answers nothing.
        ("exec /bin/cat", "virsh does not answer"),
        ("while read -r line; do eval \"$line\"; done", "qemu-monitor-command: not found"),
        (
            "while read -r line; do eval \"${line%%;*}\"; echo '{\"no\":\"reply\"}'; eval \"${line##*;}\"; done",
            "where QEMU's reply was wanted",
        ),
    ] {
        let said = refusal(&format!("{found}\n{virsh}"), "qemu:///system");
        assert!(said.contains(want), "{virsh}: {said}");
    }
    drop(process.stdin.take());
    process.wait().expect("its end");
}

#[test]
fn another_machines_domain_is_refused_without_asking() {
    let said = refusal("echo asked; exec /bin/sleep 1000", "qemu+ssh://root@far.example/system");
    assert!(said.contains("run on far.example") && said.contains("run vmscope on that machine"), "{said}");
}

#[test]
fn guests_are_listed_whatever_virsh_does() {
    for (virsh, want) in [
        ("", ""),
        ("exec /bin/sleep 1000", "virsh does not answer"),
        ("echo 'error: Permission denied' >&2; exit 1", "group libvirt"),
        ("echo 'error: No such file or directory' >&2; exit 1", ""),
        (&format!("[ \"$4\" = list ] && echo '{UUID} web'"), "shut off: start it with"),
        (&format!("printf '{UUID} \\033[2Jweb\\n'"), "\u{241b}[2Jweb"),
    ] {
        let ran = vmscope(virsh, &["guests"]);
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(ran.status.success() && said.contains(want) && said.contains("vmscope demo"), "{virsh}: {said}");
        assert!(!said.contains('\u{1b}'), "{said:?}");
        let ran = vmscope(virsh, &["guests", "--json"]);
        let list: serde_json::Value = serde_json::from_slice(&ran.stdout).expect("JSON");
        assert!(list["libvirt"]["errors"].is_array(), "{list}");
    }
}
