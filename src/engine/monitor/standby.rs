//! Standing by while this process is stopped: nobody is there then who could answer an event, so nothing may be left in
//! the guest that stops it.
//!
//! The breakpoints are taken out and their rows remembered; what had stopped before that is answered; and then the engine
//! does nothing at all, because a process that is stopped while it holds the guest for a moment holds it for good. A
//! guest that the user has paused stays paused. Page tables stay write-protected where writes raise events: the only such
//! guest is the built-in one, which stops with the process.

use crossbeam_channel::Sender;

use super::{Monitor, Platform, told};
use crate::engine::{
    command::{Answer, Command, Done, Request},
    os::VmiOs,
    session::VmiSession,
    snapshot::{BreakpointId, BreakpointState},
};

/// How many times an event that came in the meantime is waited for.
const ROUNDS: u32 = 64;

/// On the way to standing by.
#[derive(Debug)]
pub(super) struct Standby {
    answer: Sender<Answer>,
    /// What is to come back.
    rows: Vec<BreakpointId>,
    /// Whether the guest has reported something since the last look.
    pub(super) heard: bool,
    rounds: u32,
}

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// Takes out what stops the guest; the answer follows when it runs undisturbed.
    pub(super) fn stand_by(&mut self, vmi: VmiSession<'_, D, Os>, answer: Sender<Answer>) {
        let on: Vec<BreakpointId> = self.breakpoints.values().filter(|row| row.is_on()).map(|row| row.id).collect();
        self.stop_injecting(vmi);
        let mut rows = Vec::new();
        for id in on {
            if let Err(error) = self.disarm(vmi, id) {
                // What is told is the first trouble.
                let _ = self.put_back(vmi, &rows);
                let why = format!("could not take every breakpoint out of the guest, which would hang at it: {error}");
                let _ = answer.send(Err(why));
                return;
            }
            rows.push(id);
        }
        self.publish(vmi);
        self.standby = Some(Standby { answer, rows, heard: false, rounds: 0 });
    }

    /// Goes on with standing by; answers whether commands have to wait.
    pub(super) fn is_standing_by(&mut self, vmi: VmiSession<'_, D, Os>) -> bool {
        let Some(standby) = &mut self.standby else { return false };
        standby.rounds += 1;
        if std::mem::take(&mut standby.heard) && standby.rounds < ROUNDS {
            return true;
        }
        let Some(Standby { answer, rows, .. }) = self.standby.take() else { return false };
        let _ = answer.send(Ok(Done::Quiet));
        let back = loop {
            match self.requests.recv() {
                Ok(Request { command: Command::ComeBack, answer }) => break Some(answer),
                Ok(Request { command: Command::Quit, answer }) => {
                    let _ = answer.send(Ok(Done::Quiet));
                    break None;
                }
                Ok(Request { answer, .. }) => {
                    let _ = answer.send(Err("the engine stands by and does nothing until it is called back".into()));
                }
                Err(_) => break None,
            }
        };
        let Some(answer) = back else {
            self.quit = true;
            return true;
        };
        // Time has passed without us.
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        self.check_owners(vmi);
        let result = self.put_back(vmi, &rows);
        told(&result);
        self.publish(vmi);
        let _ = answer.send(result);
        false
    }

    /// Sets the breakpoints of these rows again.
    fn put_back(&mut self, vmi: VmiSession<'_, D, Os>, rows: &[BreakpointId]) -> Answer {
        let mut lost = Vec::new();
        for &id in rows {
            let off = |row: &&super::BreakpointRow| row.state == BreakpointState::Disabled;
            if let Some(row) = self.breakpoints.get(&id).filter(off) {
                let name = row.name();
                if self.switch_on(vmi, id).is_err() {
                    lost.push(name);
                }
            }
        }
        if lost.is_empty() {
            return Ok(Done::Quiet);
        }
        Err(format!("could not set these breakpoints again: {}; their rows say why", lost.join(", ")))
    }
}
