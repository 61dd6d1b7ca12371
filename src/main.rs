//! The `vmscope` program: parse, start, exit code.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use vmscope::{
    app::{
        headless::{End, Plan},
        logging, start, terminal,
    },
    cli::{Cli, Demo, Guest, Qemu},
    engine::{
        command::Engine,
        driver::qemu::{self, QemuOptions},
        worker::{self, DemoOptions, StartOptions},
    },
};

/// A wrong use of the program, as clap answers it too.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::read();
    if let Some(Guest::Guardian(guardian)) = &cli.guest {
        return qemu::guardian::main(&guardian.arguments);
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err((why, status)) => {
            // Nobody reads a closed standard error.
            let _ = writeln!(io::stderr(), "vmscope: {why}");
            ExitCode::from(status)
        }
    }
}

/// Runs the program; a failure is a sentence and the exit status.
fn run(cli: Cli) -> Result<(), (String, u8)> {
    let failure = |why| (why, 1);
    let options = &cli.options;
    let mut setup = start::prepare(options.config.as_deref(), options.theme.as_deref(), options.headless)
        .map_err(|why| (why, USAGE))?;
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
        profile: cli.options.profile.clone(),
    };
    match cli.guest.clone() {
        None => start_demo(Demo::default(), options),
        Some(Guest::Demo(demo)) => start_demo(demo, options),
        Some(Guest::Guardian(_)) => Err("a guardian watches no guest".into()),
        Some(Guest::Qemu(Qemu { qmp, pid, gdb, memory, .. })) => {
            worker::start_qemu(QemuOptions { qmp, pid, gdb, memory, ..QemuOptions::default() }, options)
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
