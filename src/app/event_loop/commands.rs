//! Commands on their way to the engine, and their answers.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use crossbeam_channel::{RecvTimeoutError, SendTimeoutError, TrySendError, bounded};
use ratatui::backend::Backend;

use super::{Loop, Pending};
use crate::{
    app::{
        console::Console,
        update::{Draft, memory},
    },
    engine::{
        command::{Answer, Command, Done, Engine, Request},
        snapshot::Status,
    },
    ui::state::{PaneId, Popup, RowKey, Severity},
};

/// How many commands may be under way; those of many marked rows wait for the first ones.
const UNDER_WAY: usize = 64;
/// How long the engine may take to leave the guest.
const LEAVE_BOUND: Duration = Duration::from_secs(10);
/// How long the engine may take to step aside before this process is stopped.
const STAND_BY_BOUND: Duration = Duration::from_secs(3);

impl<B, C> Loop<'_, B, C>
where
    B: Backend,
    B::Error: Display,
    C: Console,
{
    /// Sends a command without waiting; its answer becomes a notice. The engine has logged it.
    pub(super) fn send(&mut self, command: Command, draft: Option<Box<Draft>>) {
        self.outbox.push_back((command, draft));
        self.flush();
    }

    /// Hands the engine what waits, as far as it takes more.
    pub(super) fn flush(&mut self) {
        while self.pending.len() < UNDER_WAY
            && let Some((command, draft)) = self.outbox.pop_front()
        {
            let (answer, receiver) = bounded(1);
            let what = doing(&command);
            match self.engine.requests.try_send(Request { command, answer }) {
                Ok(()) => self.pending.push(Pending { what, answer: receiver, draft, since: Instant::now() }),
                Err(TrySendError::Full(request)) if !self.pending.is_empty() => {
                    self.outbox.push_front((request.command, draft));
                    return;
                }
                Err(TrySendError::Full(_)) => {
                    self.state
                        .notify(Severity::Warning, "the engine is busy and takes no more commands now; try again");
                }
                Err(TrySendError::Disconnected(_)) => {
                    self.outbox.clear();
                    let what = "the engine has ended and takes no commands; quit and start vmscope again";
                    self.state.notify(Severity::Error, what);
                }
            }
        }
    }

    pub(super) fn answer(&mut self, answer: Answer, draft: Option<Box<Draft>>) {
        match answer {
            Ok(Done::Quiet) => {}
            Ok(Done::Said(text)) => self.notify_logged(Severity::Info, text),
            Ok(Done::Breakpoint(id, text)) => self.added(PaneId::Breakpoints, RowKey::Breakpoint(id), text),
            Ok(Done::Table(id, text)) => self.added(PaneId::Tables, RowKey::Table(id), text),
            Ok(Done::Fault(id, text)) => self.added(PaneId::Faults, RowKey::Fault(id), text),
            Ok(Done::Found(found, more)) => {
                let effects = memory::found(&mut self.state, found, more);
                self.carry_out(effects);
            }
            Err(why) => {
                if let (Some(draft), true) = (draft, self.state.popups.is_empty()) {
                    let Draft(mut dialog) = *draft;
                    dialog.error = Some(why);
                    self.state.popups.push(Popup::Add(dialog));
                } else {
                    self.notify_logged(Severity::Error, why);
                }
            }
        }
        self.settle();
    }

    /// The next key is about what was just asked for.
    fn added(&mut self, pane: PaneId, row: RowKey, text: String) {
        // The picture with the row in it came before the answer.
        self.digest();
        self.state.pane_mut(pane).selected = Some(row);
        self.notify_logged(Severity::Info, text);
    }

    /// Waits until the engine has stepped aside.
    pub(super) fn stand_by(&mut self) -> Result<(), String> {
        let until = Instant::now() + STAND_BY_BOUND;
        let late = || "the engine is busy, and the guest would hang at the next breakpoint; try again".to_owned();
        let (answer, answered) = bounded(1);
        match self.engine.requests.send_deadline(Request { command: Command::StandBy, answer }, until) {
            Ok(()) => {}
            Err(SendTimeoutError::Timeout(_)) => return Err(late()),
            // An engine that has ended has left the guest.
            Err(SendTimeoutError::Disconnected(_)) => return Ok(()),
        }
        match answered.recv_deadline(until) {
            Ok(answer) => answer.map(|_| ()),
            Err(RecvTimeoutError::Timeout) => Err(late()),
            Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }

    /// Says what takes longer than a moment. A script has nobody to be told.
    pub(super) fn tell_progress(&mut self) {
        let oldest = self.pending.first().filter(|oldest| oldest.since.elapsed() >= super::MOMENT);
        let busy = oldest.filter(|_| !self.console.is_scripted()).map(|oldest| {
            let tenths = oldest.since.elapsed().as_millis() / 100;
            format!("{} ({}.{} s)", oldest.what, tenths / 10, tenths % 10)
        });
        if busy != self.state.busy {
            self.state.busy = busy;
            self.dirty = true;
        }
    }
}

/// What the engine does for a command, in words.
const fn doing(command: &Command) -> &'static str {
    match command {
        Command::AddBreakpoint { .. } | Command::ToggleBreakpoint(_) | Command::RemoveBreakpoint(_) => {
            "changing a breakpoint"
        }
        Command::WatchAddress { .. } | Command::UnwatchAddress(_) => "changing what is watched",
        Command::Pause | Command::Resume => "waiting for the guest's processors",
        Command::Step(_) => "stepping",
        Command::Inspect(_) => "reading the guest",
        Command::Search { .. } => "searching the guest's memory",
        Command::Refresh => "reading everything again",
        _ => "waiting for the engine",
    }
}

/// Lets the engine take everything out of the guest and end.
///
/// # Errors
/// A sentence when it could not, or does not end in time.
pub fn leave(engine: &Engine) -> Result<(), String> {
    let until = Instant::now() + LEAVE_BOUND;
    let (answer, answered) = bounded(1);
    let was_lost = engine.snapshot.load().status == Status::Lost;
    engine.leaving.want();
    match engine.requests.send_deadline(Request { command: Command::Quit, answer }, until) {
        // An engine that has ended by itself has left the guest already.
        Ok(()) | Err(SendTimeoutError::Disconnected(_)) => {}
        Err(SendTimeoutError::Timeout(_)) => return Err(stuck()),
    }
    loop {
        match engine.changed.recv_deadline(until) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => return Err(stuck()),
        }
    }
    let last = engine.snapshot.load();
    if last.status == Status::Lost && !was_lost {
        return Err(last.notice.as_deref().unwrap_or("the engine failed while it left the guest").to_owned());
    }
    answered.try_recv().ok().map_or(Ok(()), |answer| answer.map(|_| ()))
}

fn stuck() -> String {
    let bound = LEAVE_BOUND.as_secs();
    format!(
        "the engine did not leave the guest within {bound} s; look at the guest, breakpoints may still be set in it"
    )
}
