//! The log: kept in memory for the log pane, and written to a file where one is asked for.

use std::{fs::OpenOptions, path::Path};

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing::{Event, Subscriber, level_filters::LevelFilter};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{
    Layer, fmt,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

/// A running log; dropping it writes out what the file still lacks.
pub struct Log {
    /// A ping (capacity 1) after a new line, so that the log pane is redrawn.
    pub changed: Receiver<()>,
    _file: Option<WorkerGuard>,
}

/// Starts the log of this process; only the first call of a process can succeed.
///
/// The lines reach the log pane by [`collect`], not by a thread of tui-logger's that wakes a hundred times a second.
///
/// # Errors
/// A sentence when the file cannot be opened, or a log has been started before.
pub fn start(level: LevelFilter, file: Option<&Path>) -> Result<Log, String> {
    let file = match file {
        None => None,
        Some(path) => {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            let opened = opened.map_err(|error| {
                format!(
                    "cannot write the log to {}: {error}; name a file in a folder that you may write to",
                    path.display()
                )
            })?;
            Some(tracing_appender::non_blocking(opened))
        }
    };
    let (writer, guard) = file.unzip();
    let to_file = writer.map(|writer| fmt::layer().with_writer(writer).with_ansi(false));
    tui_logger::set_default_level(tui_logger::LevelFilter::Trace);
    let (sender, changed) = bounded(1);
    tracing_subscriber::registry()
        .with(level)
        .with(tui_logger::TuiTracingSubscriberLayer)
        .with(Ping(sender))
        .with(to_file)
        .try_init()
        .map_err(|error| format!("cannot start the log: {error}"))?;
    Ok(Log { changed, _file: guard })
}

/// Hands new lines to the log pane; called before a frame is drawn.
pub fn collect() {
    tui_logger::move_events();
}

/// Tells the loop that there is a line.
struct Ping(Sender<()>);

impl<S: Subscriber> Layer<S> for Ping {
    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        // Full means that the loop has not looked yet; it will see this line too.
        let _ = self.0.try_send(());
    }
}
