//! The log: kept in memory for the log pane, and written to a file where one is asked for.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing::{Event, Subscriber, level_filters::LevelFilter};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{
    Layer, fmt,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::engine::snapshot::clean_lines;

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
    let to_file = writer.map(|writer| {
        let cleaning = move || Cleaning(writer.clone());
        fmt::layer().with_writer(cleaning).with_ansi(false)
    });
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

/// Writes lines that are fit for a terminal: what is logged may be the words of a guest or of a peer.
struct Cleaning<W>(W);

impl<W: Write> Write for Cleaning<W> {
    /// Whole events come at once, with the end of their line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(clean_lines(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_drives_no_terminal() {
        let mut written = Vec::new();
        let line = "WARN a peer says \x1b]52;c;aGk=\x07 and \u{202e}txt\u{9b}\n";
        Cleaning(&mut written).write_all(line.as_bytes()).expect("memory");
        let written = String::from_utf8(written).expect("text");
        assert_eq!(written, "WARN a peer says ␛]52;c;aGk=␇ and \u{fffd}txt\u{fffd}\n");
    }
}
