//! The event loop: who answers events, and how a session ends.

use std::{ops::ControlFlow, time::Duration};

use super::{VmiContext, VmiSession};
use crate::engine::{
    driver::{VmiDriver, VmiEventControl, VmiVmControl},
    error::VmiError,
    event::VmiEventResponse,
};

/// What to do after a wait was ended by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// Go on, once; a second signal ends the session whatever the handler says.
    Continue,
    /// End the session.
    End,
}

/// Answers the events of a session. Every wait is preceded by [`VmiHandler::poll`]; however the session ends, by a
/// result, an error or a panic, [`VmiHandler::cleanup`] runs with the guest paused.
pub trait VmiHandler<Driver: VmiDriver, Os> {
    /// What the session is for.
    type Output;

    /// Called before each wait; a result ends the session.
    fn poll(&mut self, vmi: VmiSession<'_, Driver, Os>) -> Option<Self::Output>;

    /// Answers an event.
    fn handle_event(&mut self, vmi: VmiContext<'_, Driver, Os>) -> VmiEventResponse<Driver::Architecture>;

    /// Called when a wait ended without an event.
    fn handle_timeout(&mut self, _vmi: VmiSession<'_, Driver, Os>) {}

    /// Called when a signal ended a wait.
    fn handle_interrupted(&mut self, _vmi: VmiSession<'_, Driver, Os>) -> Interrupted {
        Interrupted::End
    }

    /// How long the next wait may last; `None` is the session's time-out.
    fn timeout(&self) -> Option<Duration> {
        None
    }

    /// Takes everything out of the guest: breakpoints first, then the monitoring of breakpoints.
    fn cleanup(&mut self, vmi: VmiSession<'_, Driver, Os>);
}

/// Runs the teardown when it goes, so that every way out of the loop leads through it.
struct Teardown<'a, Driver, Os, Handler>
where
    Driver: VmiEventControl + VmiVmControl,
    Handler: VmiHandler<Driver, Os>,
{
    vmi: VmiSession<'a, Driver, Os>,
    handler: Handler,
}

impl<Driver, Os, Handler> Drop for Teardown<'_, Driver, Os, Handler>
where
    Driver: VmiEventControl + VmiVmControl,
    Handler: VmiHandler<Driver, Os>,
{
    fn drop(&mut self) {
        let vmi = self.vmi;
        // A guest that is gone answers nothing; each step is tried all the same, because a later one may succeed.
        let said = |step: &str, result: Result<(), VmiError>| {
            if let Err(error) = result {
                tracing::warn!(%error, step, "teardown");
            }
        };
        said("pause", vmi.core().pause());
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        self.handler.cleanup(vmi);
        said("reset", vmi.core().reset_state());
        drain(vmi, &mut self.handler);
        // An answer to a drained event may have asked for another step.
        said("reset again", vmi.core().reset_state());
        said("resume", vmi.core().resume());
    }
}

/// Answers what is still pending without waiting for more.
fn drain<Driver, Os, Handler>(vmi: VmiSession<'_, Driver, Os>, handler: &mut Handler)
where
    Driver: VmiEventControl + VmiVmControl,
    Handler: VmiHandler<Driver, Os>,
{
    // More rounds than any ring of events has places.
    for _ in 0..4096 {
        if vmi.events_pending() == 0 {
            return;
        }
        let answered = vmi.wait_for_event(Duration::ZERO, |event| handler.handle_event(VmiContext::new(vmi, event)));
        if answered.is_err() {
            return;
        }
    }
}

/// The loop behind [`VmiSession::handle_with_timeout`].
pub(super) fn run<Driver, Os, Handler>(
    vmi: VmiSession<'_, Driver, Os>,
    timeout: Duration,
    handler: Handler,
) -> Result<Option<Handler::Output>, VmiError>
where
    Driver: VmiEventControl + VmiVmControl,
    Handler: VmiHandler<Driver, Os>,
{
    let mut session = Teardown { vmi, handler };
    let mut signals = 0;
    loop {
        let handler = &mut session.handler;
        if let Some(output) = handler.poll(vmi) {
            return Ok(Some(output));
        }
        let wait = handler.timeout().unwrap_or(timeout);
        let waited = vmi.wait_for_event(wait, |event| handler.handle_event(VmiContext::new(vmi, event)));
        let flow = match waited {
            Ok(()) => ControlFlow::Continue(()),
            Err(VmiError::Timeout) => {
                session.handler.handle_timeout(vmi);
                ControlFlow::Continue(())
            }
            Err(VmiError::Interrupted) => {
                signals += 1;
                match session.handler.handle_interrupted(vmi) {
                    Interrupted::Continue if signals < 2 => ControlFlow::Continue(()),
                    _ => ControlFlow::Break(None),
                }
            }
            Err(error) => ControlFlow::Break(Some(error)),
        };
        match flow {
            ControlFlow::Continue(()) => {}
            ControlFlow::Break(None) => return Ok(None),
            ControlFlow::Break(Some(error)) => return Err(error),
        }
    }
}
