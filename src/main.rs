//! The `vmscope` program: parse, start, exit code.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::CommandFactory;
use clap_complete::Shell;
use vmscope::{
    app::{
        headless::{End, Plan},
        logging,
        start::{self, Wishes},
        terminal,
    },
    cli::{Cli, Demo, Guest, Libvirt, Qemu},
    engine::{
        command::Engine,
        driver::qemu::{self, QemuOptions},
        worker::{self, DemoOptions, StartOptions},
    },
    guests,
};

/// A wrong use of the program, as clap answers it too.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::read();
    let ended = match &cli.guest {
        Some(Guest::Guardian(guardian)) => return qemu::guardian::main(&guardian.arguments),
        Some(Guest::Guests { json }) => print(guests::list(*json).as_bytes()),
        Some(Guest::Completions { shell }) => print(&completions(*shell)),
        Some(Guest::Man) => manual().and_then(|page| print(&page)),
        _ => run(cli),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err((why, status)) => {
            // Nobody reads a closed standard error.
            let _ = writeln!(io::stderr(), "vmscope: {why}");
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
    terminal::signals(inputs.clone()).map_err(failure)?;
    let engine = start_engine(&cli).map_err(failure)?;
    if options.headless {
        start::headless(engine, setup, plan(&cli), options.size, &cli.lists.screenshot, arriving).map_err(failure)
    } else {
        start::dashboard(engine, setup, arriving, inputs).map_err(failure)
    }
}

fn start_engine(cli: &Cli) -> Result<Engine, String> {
    let options = StartOptions {
        read_only: cli.options.read_only,
        breaks: cli.lists.breaks.clone(),
        watches: cli.lists.watches.clone(),
        storm_limit: cli.options.storm_limit,
        profile: cli.options.profile.clone(),
    };
    match cli.guest.clone() {
        None => start_demo(Demo::default(), options),
        Some(Guest::Demo(demo)) => start_demo(demo, options),
        Some(Guest::Qemu(Qemu { qmp, pid, gdb, memory, .. })) => {
            worker::start_qemu(QemuOptions { qmp, pid, gdb, memory, ..QemuOptions::default() }, options)
        }
        Some(Guest::Libvirt(Libvirt { domain, connect, .. })) => {
            worker::start_qemu(QemuOptions { domain: Some(domain), connect, ..QemuOptions::default() }, options)
        }
        Some(Guest::Guardian(_) | Guest::Guests { .. } | Guest::Completions { .. } | Guest::Man) => {
            Err("this command watches no guest".into())
        }
    }
}

fn start_demo(demo: Demo, options: StartOptions) -> Result<Engine, String> {
    let demo = DemoOptions { seed: demo.seed, processes: demo.processes, lock_step: demo.ticks.is_some() };
    worker::start_demo(demo, options)
}

/// What a headless run is to do.
fn plan(cli: &Cli) -> Plan {
    let options = &cli.options;
    let end = match (&options.until, options.for_time) {
        (Some(condition), _) => End::Until(condition.clone()),
        (None, Some(time)) => End::For(time),
        (None, None) => End::AfterKeys,
    };
    let ticks = match &cli.guest {
        Some(Guest::Demo(demo)) => demo.ticks,
        _ => None,
    };
    Plan { keys: options.keys.clone().unwrap_or_default(), end, ticks }
}
