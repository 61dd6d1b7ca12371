//! A Linux guest under test: booted by `scripts/guest`, driven over its serial console, gone when dropped.
//!
//! Nothing here sleeps: every wait is a blocking read with a deadline. Whatever fails panics with what was being done,
//! and the guest's serial log is then kept in Cargo's folder for test files.

#![allow(dead_code)] // each test binary uses its own part

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long any single wait may take: generous, for a guest without hardware acceleration on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a boot may take before it counts as hung; it takes 2 to 4 seconds on an idle machine.
const BOOT: Duration = Duration::from_secs(60);

/// What the guest's console says when a shell starts on it.
const READY: &[u8] = b"guest is ready";

/// Jobs that may run at the same time: the guest's shell has file descriptors 4 to 9 to spare, two for each.
const MAX_JOBS: usize = 3;

/// What guest to boot; the default is the newest 6.12 kernel on QEMU's default CPU, one vCPU, 512 MiB.
#[derive(Clone, Debug)]
pub struct Options {
    /// Kernel series as `scripts/guest --kernel` takes them: `6.1`, `6.12-rt`.
    pub kernel: &'static str,
    /// QEMU's CPU model: `default`, `Nehalem` (the kernel isolates page tables), `max` (5-level paging).
    pub cpu: &'static str,
    /// Virtual CPUs.
    pub smp: u32,
    /// Memory in QEMU's notation, such as `512M`; from `4G` on a part lies above 4 GiB.
    pub memory: &'static str,
    /// Start QEMU with nothing but QMP: no shared memory file and no gdb stub.
    pub plain: bool,
    /// `system` (the QEMU in `PATH`) or `backport` (QEMU 10).
    pub qemu: &'static str,
    /// `tcg`, or `kvm` where that can be used.
    pub accel: &'static str,
    /// More words for the kernel's command line.
    pub append: &'static str,
    /// More arguments of `scripts/guest`, such as `--hotplug`; behind `--` those of QEMU itself.
    pub more: &'static [&'static str],
}

impl Default for Options {
    fn default() -> Self {
        Options {
            kernel: "6.12",
            cpu: "default",
            smp: 1,
            memory: "512M",
            plain: false,
            qemu: "system",
            accel: "tcg",
            append: "",
            more: &[],
        }
    }
}

/// A process as the guest's own `/proc` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process identifier (the thread group's).
    pub pid: i32,
    /// Parent's process identifier; 0 for the first process and the kernel's thread daemon.
    pub ppid: i32,
    /// Name; for kernel threads `/proc` may show more than the 15 characters of `comm`, and adds what a worker does.
    pub name: String,
    /// Number of threads.
    pub threads: u32,
}

/// A program that runs in the guest's background and answers line by line; see [`Guest::start`].
#[derive(Debug)]
pub struct Job {
    /// Process identifier in the guest.
    pub pid: i32,
    /// The first line that the program printed, for most of them `ready ...`.
    pub ready: String,
    slot: usize,
}

impl Job {
    /// The shell's descriptors of the program's input and output.
    fn descriptors(&self) -> (usize, usize) {
        (4 + 2 * self.slot, 5 + 2 * self.slot)
    }
}

/// A running guest. Dropping it kills its QEMU and removes its files.
pub struct Guest {
    dir: PathBuf,
    attach: Vec<String>,
    serial: UnixStream,
    pending: Vec<u8>,
    commands: u32,
    jobs: [bool; MAX_JOBS],
}

impl Guest {
    /// Boots a guest and waits for its shell.
    ///
    /// Answers `None`, after a line `skipped: reason`, where QEMU or a kernel is missing and cannot be fetched: the
    /// test then returns. With `CI=true` that is a failure instead.
    pub fn boot(options: &Options) -> Option<Guest> {
        let mut guest = Guest::power_on(options)?;
        // Now and then a software-emulated machine hangs before its kernel says a word; nothing of ours is attached yet.
        if !guest.speaks() {
            eprintln!("the guest did not boot in {BOOT:?}; it is started once more");
            drop(guest);
            guest = Guest::power_on(options)?;
        }
        guest.wait_for_shell();
        Some(guest)
    }

    /// Starts a guest and returns while it is still in its firmware; otherwise as [`Guest::boot`].
    /// [`Guest::wait_for_shell`] must come before any command in the guest.
    pub fn power_on(options: &Options) -> Option<Guest> {
        let dir = unique_dir();
        let mut command = script();
        command.args(["--no-wait", "--control", "--kernel", options.kernel, "--cpu", options.cpu]);
        command.args(["--smp", &options.smp.to_string(), "--memory", options.memory, "--qemu", options.qemu]);
        command.args(["--accel", options.accel, "--append", options.append]);
        command.arg("--dir").arg(&dir);
        if options.plain {
            command.arg("--plain");
        }
        command.args(options.more);
        let output = command.output().expect("scripts/guest can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => {}
            Some(3) => {
                skip(said.trim());
                return None;
            }
            _ => {
                let _ = fs::remove_dir_all(&dir);
                panic!("scripts/guest failed with {options:?}: {said}")
            }
        }
        let attach = String::from_utf8(output.stdout).expect("scripts/guest prints text");
        let attach = attach.split_whitespace().skip(1).map(str::to_owned).collect();
        Some(Guest::over(dir, attach))
    }

    /// A guest that was started otherwise, with `serial.sock`, `serial.log` and `pid` in its folder. Dropping it ends the
    /// process of that number if its command line names the folder.
    pub fn over(dir: PathBuf, attach: Vec<String>) -> Guest {
        let serial = UnixStream::connect(dir.join("serial.sock")).expect("QEMU listens on the serial socket");
        Guest { dir, attach, serial, pending: Vec::new(), commands: 0, jobs: [false; MAX_JOBS] }
    }

    /// Whether the guest's shell comes up in the time that a boot may take.
    fn speaks(&mut self) -> bool {
        let deadline = Instant::now() + BOOT;
        while !contains(self.serial_log().as_bytes(), READY) {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.serial.set_read_timeout(Some(left)).expect("a socket takes a time-out");
            let mut chunk = [0; 65536];
            match self.serial.read(&mut chunk) {
                Ok(length) if length > 0 => self.pending.extend_from_slice(&chunk[..length]),
                _ => return false,
            }
        }
        true
    }

    /// Waits until the guest's shell takes commands and makes its output exact: no echo, no prompt, no translation.
    pub fn wait_for_shell(&mut self) {
        self.wait_for_boots(1);
    }

    /// Resets the guest as its button would and waits until it has booted again.
    pub fn reset(&mut self) {
        let boots = self.boots();
        // The script's guests end when they are reset, so that a crash ends a test.
        self.qmp("set-action", json!({ "reboot": "reset" }));
        self.qmp("system_reset", json!({}));
        self.jobs = [false; MAX_JOBS];
        self.wait_for_boots(boots + 1);
    }

    /// Starts the kernel of `scripts/guest --kexec` in the place of the one that runs and waits until it has booted.
    pub fn kexec(&mut self) {
        let boots = self.boots();
        self.send("work kexec\n");
        self.jobs = [false; MAX_JOBS];
        self.wait_for_boots(boots + 1);
    }

    /// Waits until something has written this to the console beside the shell, and forgets it.
    pub fn wait_for_console(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !contains(&self.pending, text.as_bytes()) {
            self.receive(deadline, text);
        }
        self.pending.clear();
    }

    /// How often the guest has booted.
    fn boots(&self) -> usize {
        self.serial_log().matches(&*String::from_utf8_lossy(READY)).count()
    }

    fn wait_for_boots(&mut self, boots: usize) {
        let deadline = Instant::now() + PATIENCE;
        // The log is written before the socket is, so whatever the socket missed by a late connection is in the log.
        while self.boots() < boots {
            self.receive(deadline, "the guest to boot");
        }
        // An interactive busybox shell takes a child that ends while it waits for input for the end of that input. One
        // that reads the console as its script does not, and prints no prompts.
        self.send("stty -echo -onlcr; echo @@\"quiet\"; exec sh /dev/ttyS0\n");
        let deadline = Instant::now() + PATIENCE;
        while !contains(&self.pending, b"@@quiet") {
            self.receive(deadline, "the guest's shell");
        }
        self.pending.clear();
        // The end of that line may still be on its way: let one more command wash it out.
        self.run("true");
        assert_eq!(self.sh("echo exact"), "exact\n", "the guest's console is not exact");
    }

    /// Runs a command in the guest's shell and answers its output (both streams), which must have ended well.
    ///
    /// Takes anything that fits on a line, also with `&` at its end. The command shares the console's input.
    pub fn sh(&mut self, command: &str) -> String {
        let (output, status) = self.run(command);
        assert_eq!(status, 0, "`{command}` failed in the guest: {output}");
        output
    }

    /// As [`Guest::sh`], but answers the exit status instead of insisting on success.
    pub fn run(&mut self, command: &str) -> (String, i32) {
        assert!(!command.contains('\n') && command.len() < 4000, "the guest's console takes one line at a time");
        self.commands += 1;
        let marker = format!("@@{}:", self.commands);
        self.send(&format!("{command}\necho {marker}$?\n"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = find(&self.pending, marker.as_bytes())
                && let Some(length) = self.pending[at..].iter().position(|&byte| byte == b'\n')
            {
                let status = String::from_utf8_lossy(&self.pending[at + marker.len()..at + length]).trim().parse();
                let output = String::from_utf8_lossy(&self.pending[..at]).into_owned();
                self.pending.drain(..=at + length);
                return (output, status.expect("the shell prints a number"));
            }
            assert!(!contains(&self.pending, READY), "`{command}` ended the guest's shell");
            self.receive(deadline, command);
        }
    }

    /// The guest's processes in the order of their identifiers, from its own `/proc`.
    ///
    /// Read with the shell's builtins only: looking starts no process that would show up.
    pub fn ps(&mut self) -> Vec<Process> {
        let lines = self.sh("for s in /proc/[0-9]*/stat; do read -r l <$s && echo \"$l\"; done 2>/dev/null; true");
        let mut processes: Vec<Process> = lines.lines().map(parse_stat).collect();
        processes.sort_by_key(|process| process.pid);
        processes
    }

    /// How many processes and threads the guest has started since it booted. Looking starts none, as with [`Guest::ps`].
    pub fn forks(&mut self) -> u64 {
        let line = self.sh("while read -r name count rest; do [ $name != processes ] || echo $count; done </proc/stat");
        line.trim().parse().expect("/proc/stat counts them")
    }

    /// Starts a program in the background with pipes for its input and output and waits for its first line.
    ///
    /// After that, nothing of the exchange opens a file in the guest: counts of opens stay exact.
    pub fn start(&mut self, command: &str) -> Job {
        let slot = self.jobs.iter().position(|used| !used).expect("at most three jobs at a time");
        self.jobs[slot] = true;
        let mut job = Job { pid: 0, ready: String::new(), slot };
        let (input, output) = job.descriptors();
        self.sh(&format!(
            "rm -f /tmp/{input} /tmp/{output}; mkfifo /tmp/{input} /tmp/{output}; exec {input}<>/tmp/{input} {output}<>/tmp/{output}"
        ));
        let pid = self.sh(&format!("{command} <&{input} >&{output} {input}>&- {output}>&- & echo $!"));
        job.pid = pid.trim().parse().expect("the shell prints the job's process identifier");
        job.ready = self.listen(&job);
        job
    }

    /// Sends a line to a job and answers the line that it prints next.
    pub fn ask(&mut self, job: &Job, line: &str) -> String {
        let (input, output) = job.descriptors();
        self.sh(&format!("echo '{line}' >&{input}; read -r l <&{output}; echo \"$l\"")).trim_end().to_owned()
    }

    /// Sends a line to a job, and waits for nothing: what it does with it may stop the whole guest.
    pub fn tell(&mut self, job: &Job, line: &str) {
        let (input, _) = job.descriptors();
        self.send(&format!("echo '{line}' >&{input}\n"));
    }

    /// Answers the next line that a job prints.
    pub fn listen(&mut self, job: &Job) -> String {
        let (_, output) = job.descriptors();
        self.sh(&format!("read -r l <&{output}; echo \"$l\"")).trim_end().to_owned()
    }

    /// Kills a job and waits until it is gone (sleepers and threads go with it).
    pub fn end(&mut self, job: Job) {
        let (input, output) = job.descriptors();
        let pid = job.pid;
        self.run(&format!("kill -9 {pid}; wait {pid}; exec {input}>&- {output}>&-"));
        self.jobs[job.slot] = false;
    }

    /// The arguments with which `vmscope` attaches to this guest, beginning with `qemu`.
    pub fn attach_arguments(&self) -> &[String] {
        &self.attach
    }

    /// The QMP socket for vmscope. It serves one client at a time; this harness uses another one.
    pub fn qmp_socket(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    /// The gdb stub's socket; does not exist for a plain guest.
    pub fn gdb_socket(&self) -> PathBuf {
        self.dir.join("gdb.sock")
    }

    /// The file behind the guest's memory; does not exist for a plain guest.
    pub fn memory_file(&self) -> PathBuf {
        self.dir.join("ram")
    }

    /// The process identifier of QEMU.
    pub fn qemu_pid(&self) -> u32 {
        let text = fs::read_to_string(self.dir.join("pid")).expect("QEMU wrote its pid file");
        text.trim().parse().expect("QEMU's pid file holds a number")
    }

    /// Everything that the guest's console said so far.
    pub fn serial_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("serial.log")).unwrap_or_default()).into_owned()
    }

    /// Executes a QMP command on the harness's own socket and answers what it returned.
    pub fn qmp(&self, command: &str, arguments: Value) -> Value {
        let stream = UnixStream::connect(self.dir.join("control.sock")).expect("QEMU listens on the control socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a time-out");
        let mut lines = BufReader::new(&stream).lines();
        let mut next = || -> Value {
            let line = lines.next().expect("QEMU answers").expect("QEMU answers in time");
            serde_json::from_str(&line).expect("QEMU speaks JSON")
        };
        next();
        for (command, arguments) in [("qmp_capabilities", json!({})), (command, arguments)] {
            writeln!(&stream, "{}", json!({ "execute": command, "arguments": arguments })).expect("QEMU listens");
            loop {
                let answer = next();
                assert!(answer.get("error").is_none(), "QMP {command} failed: {answer}");
                match answer.get("return") {
                    Some(_) if command == "qmp_capabilities" => break,
                    Some(value) => return value.clone(),
                    None => {} // an event
                }
            }
        }
        unreachable!("the loop answers the second command")
    }

    /// The guest's state in QEMU's words, such as `running`, `paused` or `debug`.
    pub fn status(&self) -> String {
        self.qmp("query-status", json!({}))["status"].as_str().expect("query-status names the state").to_owned()
    }

    /// Sends a signal such as `STOP`, `CONT` or `KILL` to QEMU itself.
    pub fn signal(&self, name: &str) {
        let status = Command::new("sh").args(["-c", "kill -s $0 $1", name, &self.qemu_pid().to_string()]).status();
        assert!(status.expect("kill can be run").success(), "QEMU could not be sent SIG{name}");
    }

    fn send(&mut self, text: &str) {
        self.serial.write_all(text.as_bytes()).unwrap_or_else(|error| panic!("the guest's console is gone: {error}"));
    }

    /// Takes in what the console has to say, at least one byte.
    fn receive(&mut self, deadline: Instant, what: &str) {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.serial.set_read_timeout(Some(left)).expect("a socket takes a time-out");
        let mut chunk = [0; 65536];
        match self.serial.read(&mut chunk) {
            Ok(0) => panic!("QEMU ended while waiting for {what}"),
            Ok(length) => self.pending.extend_from_slice(&chunk[..length]),
            Err(error) => {
                let so_far = String::from_utf8_lossy(&self.pending);
                panic!("no answer to `{what}` in {PATIENCE:?} ({error}); so far: {so_far:?}")
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.serial.log"));
            match fs::copy(self.dir.join("serial.log"), &kept) {
                Ok(_) => eprintln!("the guest's serial log is kept in {}", kept.display()),
                Err(error) => eprintln!("the guest's serial log could not be kept: {error}"),
            }
        }
        let stopped = script().arg("--stop").arg("--dir").arg(&self.dir).stderr(Stdio::null()).status();
        if !stopped.is_ok_and(|status| status.success()) {
            eprintln!("the guest of {} could not be ended", self.dir.display());
        }
    }
}

/// The kernels that every test run is made with.
pub const KERNELS: [&str; 4] = ["5.10", "6.1", "6.12", "7.3"];

/// The kernels that are tried only when somebody asks for them: series with commas between them in `VMSCOPE_KERNELS`,
/// as `scripts/test --long` sets it.
pub fn wider_kernels() -> Vec<&'static str> {
    let list = std::env::var("VMSCOPE_KERNELS").unwrap_or_default().leak();
    list.split(',').filter(|kernel| !kernel.is_empty()).collect()
}

/// Says that a test cannot run here and why; with `CI=true` that is a failure.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "cannot be skipped with CI=true: {reason}");
    println!("skipped: {}", reason.replace('\n', "; "));
}

/// The project's script for test guests.
pub fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/guest"))
}

/// A folder of this guest's own: in memory where there is such a place, for the guest's memory file lies in it.
pub fn unique_dir() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let in_memory = Path::new("/dev/shm");
    let base = match std::env::var_os("VMSCOPE_LIVE_DIR") {
        Some(dir) => PathBuf::from(dir),
        None if in_memory.is_dir() => in_memory.to_owned(),
        None => std::env::temp_dir(),
    };
    // Sockets lie below it, whose paths have room for 107 bytes.
    base.join(format!("live-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Parses a line of `/proc/PID/stat`: `pid (name) state ppid ...`, the name being anything (proc(5)).
fn parse_stat(line: &str) -> Process {
    let (pid, rest) = line.split_once(" (").unwrap_or_else(|| panic!("not a stat line: {line:?}"));
    let (name, rest) = rest.rsplit_once(") ").unwrap_or_else(|| panic!("not a stat line: {line:?}"));
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |field: &str| field.parse().unwrap_or_else(|_| panic!("not a stat line: {line:?}"));
    Process { pid: number(pid), ppid: number(fields[1]), name: name.to_owned(), threads: number(fields[17]) as u32 }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    find(haystack, needle).is_some()
}
