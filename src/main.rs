//! The `vmscope` program: parse, start, exit code.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::CommandFactory;
use clap_complete::Shell;
use vmscope::{
    app::{
        headless::{End, Plan},
        logging,
        signals::{self, LastResort, Watch},
        start::{self, Wishes},
        terminal,
    },
    cli::{Cli, Demo, Guest, Libvirt, Qemu},
    engine::{
        command::Attaching,
        driver::{
            fatal,
            qemu::{self, QemuOptions, guardian},
        },
        snapshot::clean_lines,
        worker::{self, DemoOptions, StartOptions},
    },
    guests,
};

/// A wrong use of the program, as clap answers it too.
const USAGE: u8 = 2;
/// How long the rest of the program may take after a signal, once the guest is left: to restore the terminal, or to
/// write screenshots.
const SCREEN_GRACE: Duration = Duration::from_secs(2);
const SCRIPT_GRACE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let cli = Cli::read();
    let ended = match &cli.guest {
        Some(Guest::Guardian(guardian)) => return qemu::guardian::main(&guardian.arguments),
        Some(Guest::Guests { json }) => print(clean_lines(&guests::list(*json)).as_bytes()),
        Some(Guest::Completions { shell }) => print(&completions(*shell)),
        Some(Guest::Man) => manual().and_then(|page| print(&page)),
        _ => run(cli),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err((why, status)) => {
            if !why.is_empty() {
                // Nobody reads a closed standard error.
                let _ = writeln!(io::stderr(), "vmscope: {}", clean_lines(&why));
            }
            ExitCode::from(status)
        }
    }
}

/// The completions of a shell.
fn completions(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vmscope", &mut text);
    text
}

/// The manual page, in the form that man(1) reads: that of the program, then the options of each of its commands.
fn manual() -> Result<Vec<u8>, (String, u8)> {
    let command = Cli::command().disable_help_subcommand(true);
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(command.clone()).render(&mut page).and_then(|()| {
        for guest in command.get_subcommands().filter(|guest| !guest.is_hide_set()) {
            if guest.get_opts().next().is_some() {
                let mut options = Vec::new();
                clap_mangen::Man::new(guest.clone()).render_options_section(&mut options)?;
                let options = String::from_utf8_lossy(&options);
                let heading = format!(".SH \"OPTIONS OF {}\"", guest.get_name().to_uppercase());
                page.write_all(options.replace(".SH OPTIONS", &heading).as_bytes())?;
            }
        }
        Ok(())
    });
    rendered.map_err(|error| (format!("cannot write the manual page: {error}"), 1))?;
    // The commands have no pages of their own to be referred to.
    let page = String::from_utf8_lossy(&page).replace("vmscope\\-", "vmscope ");
    let named = |page: String, name: &str| page.replace(&format!("vmscope {name}(1)"), &format!("vmscope {name}"));
    Ok(command.get_subcommands().fold(page, |page, guest| named(page, guest.get_name())).into_bytes())
}

/// Writes to standard output.
fn print(bytes: &[u8]) -> Result<(), (String, u8)> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // A reader that has seen enough, such as head, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err((format!("cannot write to standard output: {error}"), 1))
        }
        _ => Ok(()),
    }
}

/// Runs the program; a failure is a sentence and the exit status.
fn run(cli: Cli) -> Result<(), (String, u8)> {
    let failure = |why| (why, 1);
    let options = &cli.options;
    let wishes = Wishes {
        config: options.config.as_deref(),
        theme: options.theme.as_deref(),
        ascii: options.ascii,
        escape_ms: options.escape_time,
        history_mib: options.history,
        no_mouse: options.no_mouse,
        restore: options.restore,
        headless: options.headless,
    };
    let mut setup = start::prepare(wishes).map_err(|why| (why, USAGE))?;
    if !options.headless {
        terminal::check().map_err(failure)?;
    }
    let log = logging::start(options.log_level, options.log_file.as_deref()).map_err(failure)?;
    setup.logged = Some(log.changed.clone());
    let (inputs, arriving) = terminal::input_queue();
    if !options.headless {
        // Without it, only what can be restored after a crash is less.
        if let Err(error) = fatal::prepare(terminal::farewell(), terminal::held()) {
            tracing::debug!(%error, "the terminal could not be restored if vmscope crashed");
        }
    }
    let grace = if options.headless { SCRIPT_GRACE } else { SCREEN_GRACE };
    let watch =
        signals::start(inputs.clone(), LastResort { grace, restore: fatal::restore_terminal }).map_err(failure)?;
    let guest = start_engine(&cli).map_err(failure)?;
    watch.engine(&guest.engine);
    let ended = if options.headless {
        start::headless(guest, setup, plan(&cli), options.size, &cli.lists.screenshot, arriving)
    } else {
        start::dashboard(guest, setup, arriving, inputs)
    };
    by_signal(&watch, ended.map_err(failure))
}

/// What has become of a run: one that a signal has ended has that signal's exit status.
fn by_signal(watch: &Watch, ended: Result<(), (String, u8)>) -> Result<(), (String, u8)> {
    match (watch.status(), ended) {
        (None, ended) => ended,
        (Some(status), Err((why, _))) => Err((why, status)),
        (Some(status), Ok(())) => Err((String::new(), status)),
    }
}

fn start_engine(cli: &Cli) -> Result<Attaching, String> {
    let options = StartOptions {
        read_only: cli.options.read_only,
        breaks: cli.lists.breaks.clone(),
        watches: cli.lists.watches.clone(),
        storm_limit: cli.options.storm_limit,
        profile: cli.options.profile.clone(),
    };
    let guardian = Some(guardian::this_program());
    match cli.guest.clone() {
        None => start_demo(Demo::default(), options),
        Some(Guest::Demo(demo)) => start_demo(demo, options),
        Some(Guest::Qemu(Qemu { qmp, pid, gdb, memory, .. })) => {
            worker::attach_qemu(QemuOptions { qmp, pid, gdb, memory, guardian, ..QemuOptions::default() }, options)
        }
        Some(Guest::Libvirt(Libvirt { domain, connect, .. })) => {
            let domain = Some(domain);
            worker::attach_qemu(QemuOptions { domain, connect, guardian, ..QemuOptions::default() }, options)
        }
        Some(Guest::Guardian(_) | Guest::Guests { .. } | Guest::Completions { .. } | Guest::Man) => {
            Err("this command watches no guest".into())
        }
    }
}

fn start_demo(demo: Demo, options: StartOptions) -> Result<Attaching, String> {
    let demo = DemoOptions { seed: demo.seed, processes: demo.processes, lock_step: demo.ticks.is_some() };
    worker::attach_demo(demo, options)
}

/// What a headless run is to do.
fn plan(cli: &Cli) -> Plan {
    let options = &cli.options;
    let end = match (&options.until, options.for_time) {
        (Some(condition), Some(time)) => End::UntilWithin(condition.clone(), time),
        (Some(condition), None) => End::Until(condition.clone()),
        (None, Some(time)) => End::For(time),
        (None, None) => End::AfterKeys,
    };
    let ticks = match &cli.guest {
        Some(Guest::Demo(demo)) => demo.ticks,
        _ => None,
    };
    Plan { keys: options.keys.clone().unwrap_or_default(), end, ticks }
}
