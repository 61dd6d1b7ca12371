//! The event loop: who answers events, and how a session ends.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use super::{VmiContext, VmiSession};
use crate::engine::{
    driver::{VmiDriver, VmiEventControl, VmiVmControl},
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
};

/// What to do after a wait was ended by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// Go on, once; a second signal ends the session whatever the handler says.
    Continue,
    /// End the session, with the output that the next [`VmiHandler::poll`] answers, if any.
    End,
}

/// Answers the events of a session. Every wait is preceded by [`VmiHandler::poll`]; however the session ends, by a
/// result, an error or a panic, [`VmiHandler::cleanup`] runs, with the guest paused if anything was done to it.
pub trait VmiHandler<Driver: VmiDriver, Os> {
    /// What the session is for.
    type Output;

    /// Called before each wait, and once more when an interruption ends the session; a result ends the session.
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

/// A handler that outlives its session.
impl<Driver: VmiDriver, Os, Handler: VmiHandler<Driver, Os>> VmiHandler<Driver, Os> for &mut Handler {
    type Output = Handler::Output;

    fn poll(&mut self, vmi: VmiSession<'_, Driver, Os>) -> Option<Self::Output> {
        (**self).poll(vmi)
    }

    fn handle_event(&mut self, vmi: VmiContext<'_, Driver, Os>) -> VmiEventResponse<Driver::Architecture> {
        (**self).handle_event(vmi)
    }

    fn handle_timeout(&mut self, vmi: VmiSession<'_, Driver, Os>) {
        (**self).handle_timeout(vmi);
    }

    fn handle_interrupted(&mut self, vmi: VmiSession<'_, Driver, Os>) -> Interrupted {
        (**self).handle_interrupted(vmi)
    }

    fn timeout(&self) -> Option<Duration> {
        (**self).timeout()
    }

    fn cleanup(&mut self, vmi: VmiSession<'_, Driver, Os>) {
        (**self).cleanup(vmi);
    }
}

/// The loop behind [`VmiSession::handle_with_timeout`].
pub(super) fn run<Driver, Os, Handler>(
    vmi: VmiSession<'_, Driver, Os>,
    timeout: Duration,
    mut handler: Handler,
) -> Result<Option<Handler::Output>, VmiError>
where
    Driver: VmiEventControl + VmiVmControl,
    Handler: VmiHandler<Driver, Os>,
{
    let ended = caught(|| answer_events(vmi, timeout, &mut handler));
    let torn_down = teardown(vmi, &mut handler, ended.is_err());
    // The first panic is the one to be told of; by now the guest is clean.
    match (ended, torn_down) {
        (Err(panic), _) | (Ok(_), Err(panic)) => resume_unwind(panic),
        // A result is none where the guest is not as it was.
        (Ok(Ok(_)), Ok(Some(error))) => Err(error),
        (Ok(result), Ok(_)) => result,
    }
}

/// The steps of the way out after which nothing is tried any more.
const LAST_STEPS: [&str; 2] = ["reset again", "resume"];

type Panic = Box<dyn Any + Send>;

/// Runs a step; a panic in it ends only the step. What the step left behind is used for nothing but taking it down.
fn caught<T>(step: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(step))
}

/// Polls, waits and answers until there is a result or an error.
fn answer_events<Driver, Os, Handler>(
    vmi: VmiSession<'_, Driver, Os>,
    timeout: Duration,
    handler: &mut Handler,
) -> Result<Option<Handler::Output>, VmiError>
where
    Driver: VmiEventControl + VmiVmControl,
    Handler: VmiHandler<Driver, Os>,
{
    let mut signals = 0;
    loop {
        if let Some(output) = handler.poll(vmi) {
            return Ok(Some(output));
        }
        if let Some(why) = vmi.driver().lost() {
            return Err(VmiError::Lost(why));
        }
        let wait = handler.timeout().unwrap_or(timeout);
        match vmi.wait_for_event(wait, |event| handler.handle_event(VmiContext::new(vmi, event))) {
            Ok(()) => {}
            Err(VmiError::Timeout) => handler.handle_timeout(vmi),
            Err(VmiError::Interrupted) => {
                signals += 1;
                if handler.handle_interrupted(vmi) == Interrupted::End || signals > 1 {
                    // What the handler has found by now is not lost with the wait.
                    return Ok(handler.poll(vmi));
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Leaves the guest as it was found. Each step is tried whatever became of the ones before it, because a guest that
/// refuses one thing may still do another. Where nothing was done to the guest, nothing is taken back: only the handler
/// is told.
///
/// Answers what it could not do in the end: an earlier step that failed may have been made up for by a later one.
///
/// # Errors
/// The first panic in here.
fn teardown<Driver, Os, Handler>(
    vmi: VmiSession<'_, Driver, Os>,
    handler: &mut Handler,
    handler_broken: bool,
) -> Result<Option<VmiError>, Panic>
where
    Driver: VmiEventControl + VmiVmControl,
    Handler: VmiHandler<Driver, Os>,
{
    let (mut panics, mut failed) = (Vec::new(), None);
    let mut attempt = |step: &str, action: &mut dyn FnMut() -> Result<(), VmiError>| match caught(action) {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            // Of a guest that is gone there is nothing to tell at each step.
            if let VmiError::Lost(_) = error {
                tracing::debug!("the way out, {step}: {error}");
            } else {
                tracing::warn!("the way out, {step}: {error}");
            }
            if step == LAST_STEPS[0] || step == LAST_STEPS[1] {
                failed.get_or_insert(error);
            }
            true
        }
        Err(panic) => {
            panics.push(panic);
            false
        }
    };
    let touched = vmi.driver().is_touched();
    if touched {
        attempt("pause", &mut || vmi.core().pause());
    }
    vmi.flush_v2p_cache();
    vmi.flush_gfn_cache();
    let cleaned = attempt("cleanup", &mut || {
        handler.cleanup(vmi);
        Ok(())
    });
    if !touched {
        return panics.into_iter().next().map_or(Ok(None), Err);
    }
    attempt("reset", &mut || vmi.core().reset_state());
    // A handler that has panicked is asked no more: what is still pending just goes on.
    let drained = !handler_broken
        && cleaned
        && attempt("drain", &mut || {
            drain(vmi, |event| handler.handle_event(VmiContext::new(vmi, event)));
            Ok(())
        });
    if !drained {
        attempt("drain", &mut || {
            drain(vmi, |_| VmiEventResponse::default());
            Ok(())
        });
    }
    // An answer to a drained event may have asked for another step.
    attempt(LAST_STEPS[0], &mut || vmi.core().reset_state());
    attempt(LAST_STEPS[1], &mut || vmi.core().resume());
    match panics.into_iter().next() {
        Some(panic) => Err(panic),
        None => Ok(failed),
    }
}

/// Answers what is still pending without waiting for more.
fn drain<Driver, Os>(
    vmi: VmiSession<'_, Driver, Os>,
    mut answer: impl FnMut(&VmiEvent<Driver::Architecture>) -> VmiEventResponse<Driver::Architecture>,
) where
    Driver: VmiEventControl + VmiVmControl,
{
    // More rounds than any ring of events has places.
    for _ in 0..4096 {
        if vmi.events_pending() == 0 {
            return;
        }
        match vmi.wait_for_event(Duration::ZERO, &mut answer) {
            Ok(()) | Err(VmiError::Interrupted) => {}
            Err(_) => return,
        }
    }
}
