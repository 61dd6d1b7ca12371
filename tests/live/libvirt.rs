//! A libvirt of the test's own, with one domain in it: root's, in a mount namespace that leaves the machine's own alone, or
//! an ordinary user's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use super::guest::{Guest, script, skip, unique_dir};

/// The domain's name: it needs quotes wherever it is written.
pub const NAME: &str = "live 'guest' one";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// The user `nobody`, who stands for anybody that is not root.
const NOBODY: &str = "65534";

/// Whose libvirt it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Root's: `qemu:///system`.
    System,
    /// An ordinary user's: `qemu:///session`.
    Session,
}

/// A running libvirt; dropping it ends it.
pub struct Libvirt {
    dir: PathBuf,
    whose: Whose,
    pid: Option<u32>,
    is_root: bool,
}

impl Libvirt {
    /// Starts one; `None` after a line `skipped: reason` where that is not possible.
    pub fn start(whose: Whose) -> Option<Self> {
        let is_root = output(Command::new("id").arg("-u")).is_some_and(|id| id.trim() == "0");
        if whose == Whose::System && !is_root {
            skip("root's libvirt can be started by root only");
            return None;
        }
        for (program, package) in [("libvirtd", "libvirt-daemon"), ("virsh", "libvirt-clients")] {
            if output(Command::new(program).arg("--version").env("PATH", path())).is_none() {
                skip(&format!("{program} is missing (package {package})"));
                return None;
            }
        }
        let fetched = script().arg("--fetch").output().expect("scripts/guest can be run");
        if !fetched.status.success() {
            skip(String::from_utf8_lossy(&fetched.stderr).trim());
            return None;
        }
        let mut libvirt = Self { dir: unique_dir(), whose, pid: None, is_root };
        libvirt.lay_out();
        let daemon = libvirt.dir.join("daemon");
        let started = match whose {
            Whose::System => Command::new("unshare").args(["--mount", "sh"]).arg(&daemon).output(),
            // It returns when the daemon listens.
            Whose::Session => libvirt.command("sh").arg(&daemon).output(),
        };
        let started = started.expect("unshare and sh can be run");
        if !started.status.success() {
            let said = String::from_utf8_lossy(&started.stderr).trim().to_owned();
            assert!(said.contains("unshare"), "libvirtd did not start: {said}");
            skip(&said);
            return None;
        }
        let pid = fs::read_to_string(libvirt.dir.join("libvirtd.pid")).expect("libvirtd wrote its pid file");
        libvirt.pid = pid.trim().parse().ok();
        Some(libvirt)
    }

    /// Files of the daemon and of the domain, all in one folder.
    fn lay_out(&self) {
        let dir = &self.dir;
        for name in
            ["etc", "run/libvirt", "lib/libvirt", "cache/libvirt", "log/libvirt", "sock", "c/libvirt", "data", "home"]
        {
            fs::create_dir_all(dir.join(name)).expect("a folder");
        }
        let cache = std::env::var_os("VMSCOPE_CACHE").map(PathBuf::from).unwrap_or_else(|| {
            let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache");
            base.unwrap_or_else(home).join("vmscope-test")
        });
        let built = script().arg("--initramfs").output().expect("scripts/guest can be run");
        let initramfs = String::from_utf8(built.stdout).expect("a path");
        for (from, to) in [(cache.join("kernels/6.12/vmlinuz"), "vmlinuz"), (initramfs.trim().into(), "initramfs")] {
            fs::copy(from, dir.join(to)).expect("scripts/guest has fetched it");
        }
        fs::copy(env!("CARGO_BIN_EXE_vmscope"), dir.join("vmscope")).expect("the program");
        fs::write(dir.join("serial.log"), "").expect("a file");
        let place = dir.display();
        let qemu = "stdio_handler = \"file\"\nnamespaces = []\ncgroup_controllers = []\nsecurity_driver = \"none\"\n";
        let daemon = match self.whose {
            Whose::System => {
                fs::write(dir.join("etc/qemu.conf"), format!("user = \"root\"\ngroup = \"root\"\n{qemu}"))
                    .expect("a file");
                let sockets = format!(
                    "unix_sock_dir = \"{place}/sock\"\nunix_sock_rw_perms = \"0700\"\nauth_unix_rw = \"none\"\n\
                     auth_unix_ro = \"none\"\n"
                );
                fs::write(dir.join("etc/libvirtd.conf"), sockets).expect("a file");
                // Debian's libvirt wants its user to exist whether it is used or not.
                format!(
                    "set -e\ncd {place}\nmount --make-rprivate /\n\
                     for file in passwd group; do cp /etc/$file etc/; done\n\
                     grep -q ^libvirt-qemu: etc/passwd || echo libvirt-qemu:x:64055:64055::/nonexistent:/bin/false >>etc/passwd\n\
                     grep -q ^libvirt-qemu: etc/group || echo libvirt-qemu:x:64055: >>etc/group\n\
                     for file in passwd group; do mount --bind etc/$file /etc/$file; done\n\
                     mount --bind etc /etc/libvirt\nmount --bind lib /var/lib\nmount --bind cache /var/cache\n\
                     mount --bind log /var/log\nmount --bind run /run\n\
                     exec libvirtd --daemon --config /etc/libvirt/libvirtd.conf --pid-file {place}/libvirtd.pid\n"
                )
            }
            Whose::Session => {
                fs::write(dir.join("c/libvirt/qemu.conf"), qemu).expect("a file");
                format!("exec libvirtd --daemon --pid-file {place}/libvirtd.pid\n")
            }
        };
        fs::write(dir.join("daemon"), daemon).expect("a file");
        fs::write(dir.join("domain.xml"), domain(dir)).expect("a file");
        if self.whose == Whose::Session && self.is_root {
            let given = Command::new("chown").args(["-R", &format!("{NOBODY}:{NOBODY}")]).arg(dir).status();
            assert!(given.is_ok_and(|status| status.success()), "the folder could not be given to nobody");
        }
    }

    /// A program that will run as the user whose libvirt it is.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command_of(program, self.whose == Whose::Session)
    }

    /// A program that will run as an ordinary user, whosever libvirt it is.
    pub fn command_of_nobody(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command_of(program, true)
    }

    fn command_of(&self, program: impl AsRef<std::ffi::OsStr>, ordinary: bool) -> Command {
        let mut command = if ordinary && self.is_root {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        if self.whose == Whose::Session {
            let dirs = [
                ("HOME", "home"),
                ("XDG_RUNTIME_DIR", "run"),
                // The path of a Unix socket below it has room for 107 bytes.
                ("XDG_CONFIG_HOME", "c"),
                ("XDG_CACHE_HOME", "cache"),
                ("XDG_DATA_HOME", "data"),
            ];
            command.envs(dirs.map(|(name, folder)| (name, self.dir.join(folder))));
            command.env_remove("LIBVIRT_DEFAULT_URI");
        } else {
            command.env("LIBVIRT_DEFAULT_URI", self.uri());
            if ordinary {
                command.env("HOME", self.dir.join("home")).env_remove("XDG_CONFIG_HOME").env_remove("XDG_RUNTIME_DIR");
            }
        }
        command.env("PATH", path()).current_dir("/");
        command
    }

    /// Its address: for a user's own the usual one, which depends on the environment of [`Libvirt::command`].
    pub fn uri(&self) -> String {
        match self.whose {
            Whose::System => format!("qemu+unix:///system?socket={}/sock/libvirt-sock", self.dir.display()),
            Whose::Session => "qemu:///session".into(),
        }
    }

    /// The program under test, where every user can start it.
    pub fn vmscope(&self) -> PathBuf {
        self.dir.join("vmscope")
    }

    /// Runs virsh, which has to end well, and gives what it says.
    pub fn virsh(&self, arguments: &[&str]) -> String {
        let ran = self.command("virsh").args(["-q", "-c", &self.uri()]).args(arguments).output().expect("virsh");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "virsh {arguments:?}: {said}");
        String::from_utf8_lossy(&ran.stdout).trim().to_owned()
    }

    /// The domain's state in libvirt's words.
    pub fn state(&self) -> String {
        self.virsh(&["domstate", NAME])
    }

    /// Makes the domain known for good, or (`transient`) for as long as it runs, starts it and waits for its shell.
    pub fn boot(&self, transient: bool) -> Guest {
        let xml = self.dir.join("domain.xml");
        let xml = xml.to_str().expect("a plain path");
        if transient {
            self.virsh(&["create", xml]);
        } else {
            self.virsh(&["define", xml]);
            self.virsh(&["start", NAME]);
        }
        let pid = self.qemu().expect("libvirt has started QEMU");
        fs::write(self.dir.join("pid"), pid.to_string()).expect("a file");
        let mut guest = Guest::over(self.dir.clone(), Vec::new());
        guest.wait_for_shell();
        guest
    }

    /// The process that runs the domain's kernel.
    fn qemu(&self) -> Option<u32> {
        let kernel = self.dir.join("vmlinuz");
        let pids =
            fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let runs_it = |pid: &u32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|&byte| byte == 0).any(|argument| argument == kernel.as_os_str().as_encoded_bytes())
        };
        pids.into_iter().find(runs_it)
    }

    /// Waits until libvirt says that QEMU has none of vmscope's devices.
    pub fn wait_for_no_device(&self) {
        let deadline = Instant::now() + PATIENCE;
        let label = "\"label\":\"vmscope-";
        let mut said = label.to_owned();
        while said.contains(label) {
            assert!(Instant::now() < deadline, "a device was left: {said}");
            said = self.virsh(&["qemu-monitor-command", NAME, "{\"execute\":\"query-chardev\"}"]);
        }
    }

    /// What the program says on its error output when it is to fail.
    pub fn refusal(&self, command: &mut Command) -> String {
        let Output { status, stderr, .. } = command.output().expect("vmscope can be run");
        let said = String::from_utf8_lossy(&stderr).trim().to_owned();
        assert!(!status.success(), "it did not fail: {said}");
        said
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        for pid in [self.pid, self.qemu()].into_iter().flatten() {
            let _ = Command::new("sh").args(["-c", "kill -9 $0", &pid.to_string()]).stderr(Stdio::null()).status();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn path() -> String {
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", std::env::var("PATH").unwrap_or_default())
}

fn output(command: &mut Command) -> Option<String> {
    let ran = command.stderr(Stdio::null()).output().ok().filter(|ran| ran.status.success())?;
    Some(String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// A domain as virt-manager would make it, with a serial console in the folder.
fn domain(dir: &Path) -> String {
    let (dir, name) = (dir.display(), NAME.replace('\'', "&apos;"));
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>256</memory><vcpu>2</vcpu>\
         <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{dir}/vmlinuz</kernel><initrd>{dir}/initramfs</initrd>\
         <cmdline>console=ttyS0 quiet loglevel=1 panic=-1</cmdline></os><features><acpi/></features>\
         <devices><controller type='usb' model='none'/><memballoon model='none'/>\
         <serial type='unix'><source mode='bind' path='{dir}/serial.sock'/><log file='{dir}/serial.log'/>\
         <target port='0'/></serial></devices></domain>"
    )
}
