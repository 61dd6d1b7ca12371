//! The command line: clap definitions, nothing else.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint, error::ErrorKind};
use clap_complete::Shell;
use tracing::level_filters::LevelFilter;

use crate::{
    app::{
        locale::Ascii,
        screenshot::Screenshot,
        script::{Condition, Script, Size, parse_duration},
    },
    engine::command::Target,
};

/// Watch and steer a live virtual machine from outside it, in a terminal.
///
/// Without a command the built-in guest is watched.
#[derive(Debug, Parser)]
#[command(name = "vmscope", version, max_term_width = 110)]
pub struct Cli {
    /// What holds for every guest.
    #[command(flatten)]
    pub options: Options,
    /// What may be given more than once.
    #[command(flatten)]
    pub lists: Lists,
    /// The guest to watch; `None` is the built-in one.
    #[command(subcommand)]
    pub guest: Option<Guest>,
}

/// Options that every guest takes, before or behind its name.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Run without a terminal
    #[arg(long, global = true, help_heading = "Headless")]
    pub headless: bool,
    /// Size of the headless screen [default: 120x40]
    #[arg(long, global = true, value_name = "COLSxROWS", help_heading = "Headless")]
    pub size: Option<Size>,
    /// Keys to press: names separated by blanks, 'quoted text' is typed, wait:500ms waits,
    /// wait:hits>=3 waits for a counter of the snapshot
    #[arg(long, global = true, value_name = "KEYS", help_heading = "Headless")]
    pub keys: Option<Script>,
    /// End when a counter of the snapshot says so, for example hits>=3; with --for, within that time
    /// [default: end after the keys]
    #[arg(long, global = true, value_name = "COND", help_heading = "Headless")]
    pub until: Option<Condition>,
    /// End after a time, for example 2s, attaching included (with --ticks: of guest time, after the keys)
    #[arg(long = "for", id = "for_time", global = true, value_name = "DURATION", value_parser = parse_duration, help_heading = "Headless")]
    pub for_time: Option<Duration>,
    /// Colours: the name of a theme (dark, light, high-contrast, color-blind, mono, or one of your own) or a TOML file
    #[arg(long, global = true, value_name = "NAME|FILE")]
    pub theme: Option<String>,
    /// Draw with ASCII characters only: always, never, or auto, by locale and TERM [default: auto; --ascii alone is always]
    #[arg(long, global = true, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    pub ascii: Option<Ascii>,
    /// Leave the mouse to the terminal
    #[arg(long, global = true)]
    pub no_mouse: bool,
    /// How long an ESC may be the beginning of another key, in milliseconds [default: 50]
    #[arg(long, global = true, value_name = "MS", value_parser = clap::value_parser!(u64).range(..=5000))]
    pub escape_time: Option<u64>,
    /// Memory for pictures to go back to, in MiB [default: 64]
    #[arg(long, global = true, value_name = "MIB", value_parser = clap::value_parser!(u32).range(..=65536))]
    pub history: Option<u32>,
    /// Bring back what was saved for this guest (breakpoints, filters, layout), and save it again at the end
    #[arg(long, global = true)]
    pub restore: bool,
    /// Configuration file [default: vmscope/config.toml in the user's configuration folder, where it exists]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Refuse every change of the guest, at the driver
    #[arg(long, global = true)]
    pub read_only: bool,
    /// Hits a second, over 5 s, above which a breakpoint is taken out [default: on QEMU the rate at which the guest would
    /// stand half of the time, as measured; 20000 elsewhere]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub storm_limit: Option<u32>,
    /// Symbols and layouts of the guest's kernel
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub profile: Option<PathBuf>,
    /// Write the log to FILE as well
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub log_file: Option<PathBuf>,
    /// How much is logged: off, error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    pub log_level: LevelFilter,
}

/// Options that may be repeated, before and behind the guest's name. They are not clap's global options, because of
/// those only the values at one of the two places would count.
#[derive(Args, Clone, Debug, Default)]
pub struct Lists {
    /// Leave the screen in FILE at the end; its extension decides: .txt .ansi .svg .png, .json for the
    /// snapshot itself; - is text on standard output (repeatable)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Headless")]
    pub screenshot: Vec<Screenshot>,
    /// Set a breakpoint at start (repeatable): an address, or a symbol such as do_sys_openat2, dummy!dummy_xmit (of a
    /// module), name#2 (the second function of that name), each with +0x10
    #[arg(long = "break", value_name = "SYMBOL|ADDR[@PID]", value_parser = Target::parse)]
    pub breaks: Vec<Target>,
    /// Monitor the page tables behind an address from the start (repeatable); runqueues@cpu1 is a CPU's own variable
    #[arg(long = "watch", value_name = "SYMBOL|ADDR[@PID]", value_parser = Target::parse)]
    pub watches: Vec<Target>,
}

/// The guests that can be watched, and what there is to ask of the program itself.
#[derive(Clone, Debug, Subcommand)]
pub enum Guest {
    /// The built-in guest: a small deterministic machine to learn on
    Demo(Demo),
    /// A running QEMU: the only one on this machine, or one named by its QMP socket or process id
    Qemu(Qemu),
    /// A domain of libvirt's, with no change to it
    Libvirt(Libvirt),
    /// List what can be watched on this host, and how
    Guests {
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Print the completions of a shell: bash, zsh, fish, elvish or powershell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, to be read with man -l -
    Man,
    /// The process that frees the guest when vmscope dies; started by vmscope itself
    #[command(hide = true)]
    Guardian(Guardian),
}

/// The built-in guest.
#[derive(Args, Clone, Debug)]
pub struct Demo {
    /// Repeatable options behind the command; [`Cli::lists`] has them all.
    #[command(flatten)]
    lists: Lists,
    /// What the guest's life is derived from; the same seed is the same life
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Virtual time: let the guest live this many milliseconds, the same on every run (with --headless)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub ticks: Option<u64>,
    /// How many processes the guest starts with [default: what its model has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub processes: Option<u32>,
}

impl Default for Demo {
    /// The guest of `vmscope` without a command: what `vmscope demo` watches.
    fn default() -> Self {
        Self { lists: Lists::default(), seed: 1, ticks: None, processes: None }
    }
}

/// A QEMU process. ADDR is unix:PATH or HOST:PORT.
#[derive(Args, Clone, Debug, Default)]
#[command(
    after_help = "ADDR is unix:PATH or HOST:PORT. A QMP socket is all that is needed: the gdb stub and the guest's memory are found through it."
)]
pub struct Qemu {
    /// Repeatable options behind the command; [`Cli::lists`] has them all.
    #[command(flatten)]
    lists: Lists,
    /// QEMU's QMP socket
    #[arg(long, value_name = "ADDR", conflicts_with = "pid")]
    pub qmp: Option<String>,
    /// QEMU's process id; its QMP socket is read from its command line
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// QEMU's gdb stub, where one listens already
    #[arg(long, value_name = "ADDR")]
    pub gdb: Option<String>,
    /// The file that holds the guest's memory
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub memory: Option<PathBuf>,
}

/// A libvirt domain.
#[derive(Args, Clone, Debug, Default)]
#[command(
    after_help = "Without --connect, LIBVIRT_DEFAULT_URI names the libvirt, else qemu:///system and qemu:///session are asked. The domain \
                  has to run on this machine. libvirt marks it as tainted (custom-monitor) until it is started anew."
)]
pub struct Libvirt {
    /// Repeatable options behind the command; [`Cli::lists`] has them all.
    #[command(flatten)]
    lists: Lists,
    /// The domain's name, id or UUID
    #[arg(value_name = "DOMAIN")]
    pub domain: String,
    /// libvirt's address, for example qemu:///session
    #[arg(long, value_name = "URI")]
    pub connect: Option<String>,
}

/// What the guardian process is told; the driver that starts it defines the words.
#[derive(Args, Clone, Debug, Default)]
pub struct Guardian {
    /// Passed on as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

impl Cli {
    /// Reads the program's arguments; a wrong one ends the program with status 2 and a sentence.
    pub fn read() -> Self {
        Self::try_read(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// Reads arguments, the first of which is the program's name.
    ///
    /// # Errors
    /// What clap says, also for options that do not go together and for a request for help.
    pub fn try_read<I, T>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        let mut cli = Self::try_parse_from(arguments)?;
        if let Some(
            Guest::Demo(Demo { lists, .. }) | Guest::Qemu(Qemu { lists, .. }) | Guest::Libvirt(Libvirt { lists, .. }),
        ) = &mut cli.guest
        {
            cli.lists.screenshot.append(&mut lists.screenshot);
            cli.lists.breaks.append(&mut lists.breaks);
            cli.lists.watches.append(&mut lists.watches);
        }
        match cli.contradiction() {
            Some(what) => Err(Self::command().error(ErrorKind::ArgumentConflict, what)),
            None => Ok(cli),
        }
    }

    /// Rules across commands, which clap's own do not reach because an option may stand before or behind one.
    fn contradiction(&self) -> Option<String> {
        let options = &self.options;
        let used = [
            ("--size", options.size.is_some()),
            ("--keys", options.keys.is_some()),
            ("--until", options.until.is_some()),
            ("--for", options.for_time.is_some()),
            ("--screenshot", !self.lists.screenshot.is_empty()),
            ("--ticks", matches!(&self.guest, Some(Guest::Demo(demo)) if demo.ticks.is_some())),
        ];
        if let (false, Some((name, _))) = (options.headless, used.iter().find(|(_, used)| *used)) {
            return Some(format!("{name} is for runs without a terminal; add --headless"));
        }
        None
    }
}

fn log_level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| format!("'{text}' is not a log level; use off, error, warn, info, debug or trace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_read(line.split(' '))
    }

    fn refused(line: &str) -> String {
        let error = read(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        error.to_string()
    }

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_stand_before_or_behind_the_guest() {
        for line in ["vmscope --headless --size 80x24 demo --seed 7", "vmscope demo --seed 7 --size 80x24 --headless"] {
            let cli = read(line).expect(line);
            assert!(cli.options.headless);
            assert_eq!(cli.options.size, Some(Size { columns: 80, rows: 24 }));
            assert!(matches!(cli.guest, Some(Guest::Demo(Demo { seed: 7, .. }))));
        }
        assert!(read("vmscope").expect("no arguments at all").guest.is_none());
        let Some(Guest::Demo(demo)) = read("vmscope demo").expect("valid").guest else { panic!("the demo") };
        assert_eq!((demo.seed, demo.ticks), (Demo::default().seed, Demo::default().ticks));
    }

    #[test]
    fn repeated_options_add_up() {
        let cli =
            read("vmscope demo --break nt!NtCreateFile --break 0x1000@648 --watch nt!KiPageFault").expect("valid");
        assert_eq!(cli.lists.breaks.len(), 2);
        assert_eq!(cli.lists.breaks[1].pid, Some(648));
        assert_eq!(cli.lists.watches.len(), 1);
        let cli = read("vmscope --break main demo --break start").expect("valid");
        assert_eq!(cli.lists.breaks.len(), 2);
    }

    #[test]
    fn every_wrong_value_gets_a_sentence() {
        for (line, said) in [
            ("vmscope --headless --size 0x0", "not a screen size"),
            ("vmscope --headless --for soon", "not a time"),
            ("vmscope --headless --until hots>=1", "not a counter"),
            ("vmscope --headless --keys entr", "not the name of a key"),
            ("vmscope --headless --screenshot a.bmp", "'.bmp'"),
            ("vmscope --headless --screenshot a", "extension"),
            ("vmscope --screenshot a.txt", "add --headless"),
            ("vmscope demo --ticks 10", "add --headless"),
            ("vmscope demo --ticks 0 --headless", "0 is not in"),
            ("vmscope --log-level loud", "not a log level"),
            ("vmscope --break @4", "symbol or an address"),
            ("vmscope --watch main@x", "process id"),
            ("vmscope qemu --pid 7 --qmp unix:/q", "cannot be used with"),
            ("vmscope qemu --pid x", "invalid"),
            ("vmscope libvirt", "<DOMAIN>"),
            ("vmscope xen", "unrecognized"),
        ] {
            let error = refused(line);
            assert!(error.contains(said), "{line}: {error}");
        }
    }
}
