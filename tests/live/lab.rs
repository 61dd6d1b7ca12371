//! A host with KVM for the tests that need one: L1 of `scripts/kvm-lab`, or this machine.
//!
//! A scenario is an ordinary test whose body runs on another floor: this test program and vmscope are copied into L1, and
//! there the same test is called again, with `VMSCOPE_KVM=here`. So it has guests, sockets and QEMU's memory at hand as
//! any live test has. L1 is booted once for a run of the tests; it ends when they do, in whatever way.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use super::guest::{Options, skip};

/// What sets the floor, or how much is run: `here`, `smoke` or `whole`.
const VARIABLE: &str = "VMSCOPE_KVM";

/// How long a scenario may take in L1, in seconds, before it is ended; nothing is compared with it.
const PATIENCE: u32 = 900;

/// In which runs a scenario is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Every run.
    Smoke,
    /// With `VMSCOPE_KVM=whole` only.
    Whole,
}

/// A guest as it is booted under KVM, in the emulated processor's interest: no mitigations, a clock that is trusted.
pub fn options() -> Options {
    Options {
        accel: "kvm",
        cpu: "host",
        memory: "128M",
        plain: true,
        append: "mitigations=off tsc=reliable random.trust_cpu=on",
        ..Options::default()
    }
}

/// Runs a test's body on a host with KVM.
pub fn scenario(run: Run, name: &str, body: impl FnOnce()) {
    let wanted = env::var(VARIABLE).unwrap_or_else(|_| "smoke".into());
    match wanted.as_str() {
        "here" => return body(),
        "smoke" if run == Run::Whole => return skip("VMSCOPE_KVM=whole runs it, as scripts/test --long kvm does"),
        "smoke" | "whole" => {}
        other => panic!("{VARIABLE} is {other}, neither here nor smoke nor whole"),
    }
    if cfg!(debug_assertions) {
        return skip("in an emulated machine vmscope has to be a release build; scripts/test kvm makes one");
    }
    static LAB: Mutex<Option<Result<Lab, String>>> = Mutex::new(None);
    // A test that failed before this one leaves the lab as it was.
    let mut lab = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    for is_last in [false, true] {
        match lab.get_or_insert_with(Lab::boot) {
            Err(why) => return skip(why),
            Ok(running) => match running.run(name) {
                Ok(()) => return,
                Err(why) => assert!(!is_last && !running.is_alive(), "{why}"),
            },
        }
        // The emulated host now and then crashes in its own kernel (seen: a corrupted stack in its scheduler); a scenario
        // that fails while it lives is not tried again.
        println!("L1 has died; it is booted again");
        *lab = None;
    }
}

/// L1, which lives as long as the standard input of the script that holds it is open.
struct Lab {
    dir: PathBuf,
    _holder: Child,
}

impl Lab {
    /// Boots L1 and puts this program and vmscope where they are here.
    fn boot() -> Result<Self, String> {
        let base = env::var_os("VMSCOPE_LIVE_DIR").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = base.join(format!("kvm-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let mut holder = script()
            .args(["hold", "--dir"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("scripts/kvm-lab can be run");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut line).expect("scripts/kvm-lab speaks");
        if line.trim() != "ready" {
            let ended = holder.wait_with_output().expect("scripts/kvm-lab ends");
            let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
            assert_eq!(ended.status.code(), Some(3), "scripts/kvm-lab failed: {said}");
            return Err(said);
        }
        let lab = Self { dir, _holder: holder };
        let programs = lab.dir.join("share/tests");
        fs::create_dir_all(&programs).expect("a folder");
        let vmscope = Path::new(env!("CARGO_BIN_EXE_vmscope"));
        let own = env::current_exe().expect("this program");
        for (program, name) in [(vmscope, "vmscope"), (&own, "live_kvm")] {
            // What is for debuggers is most of a program, and takes long to copy into an emulated machine.
            let stripped = Command::new("strip").arg("-o").arg(programs.join(name)).arg(program).status();
            assert!(stripped.is_ok_and(|status| status.success()), "{name} could not be copied into {programs:?}");
        }
        let (project, temporary) = (env!("CARGO_MANIFEST_DIR"), env!("CARGO_TARGET_TMPDIR"));
        let folder = vmscope.parent().expect("a folder").display();
        let copied = lab.shell(
            PATIENCE,
            &format!(
                "mkdir -p {folder} {temporary} {project} && ln -sfn /s/project/scripts {project}/scripts && \
             cp /s/tests/vmscope {folder}/ && cp /s/tests/live_kvm /bin/"
            ),
        );
        assert!(copied.is_ok(), "{copied:?}");
        Ok(lab)
    }

    /// Whether L1 still does what it is told.
    fn is_alive(&self) -> bool {
        self.shell(30, "true").is_ok()
    }

    /// Runs one line of shell in L1 for so many seconds at most; returns its output, in an error when it failed.
    fn shell(&self, patience: u32, line: &str) -> Result<String, String> {
        let mut script = script();
        script.arg("run").arg(line).args(["--timeout", &patience.to_string()]).arg("--dir").arg(&self.dir);
        let ran = script.stdin(Stdio::null()).output().expect("scripts/kvm-lab can be run");
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        if ran.status.success() { Ok(said) } else { Err(said + &String::from_utf8_lossy(&ran.stderr)) }
    }

    /// Runs a test of this program in L1.
    fn run(&self, name: &str) -> Result<(), String> {
        let line = format!("{VARIABLE}=here live_kvm --exact {name} --nocapture --test-threads 1");
        let ran = self.shell(PATIENCE, &line);
        let (Ok(said) | Err(said)) = &ran;
        // The lines of the test program in L1 would be counted as this one's.
        let own = |line: &&str| !line.starts_with("test ") && !line.starts_with("running ") && !line.is_empty();
        said.lines().filter(own).for_each(|line| println!("{line}"));
        match (ran.is_ok(), said.contains(" 1 passed")) {
            (true, true) => Ok(()),
            (true, false) => Err(format!("{name} was not run in L1: see above")),
            (false, _) => Err(format!("{name} failed in L1: see above")),
        }
    }
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kvm-lab"))
}
