//! The event loop, and how a session ends: the exact sequence of the driver's calls on every way out, and a whole engine
//! that breaks.

mod monitor;
mod order;
mod owners;
#[path = "../support/mod.rs"]
mod support;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use support::{Call, FlatDriver, Scripted, core};
use vmscope::engine::{
    addr::{Gfn, VcpuId, View},
    arch::amd64::{Amd64, Amd64EventReason, Amd64Registers},
    error::VmiError,
    event::{VmiEvent, VmiEventAction, VmiEventResponse},
    session::{Interrupted, NoOS, VmiContext, VmiCore, VmiHandler, VmiSession},
};

fn event(n: u16) -> VmiEvent<Amd64> {
    VmiEvent::new(VcpuId(n), Some(View(0)), Amd64Registers::default(), Amd64EventReason::Singlestep { gfn: Gfn(1) })
}

/// Notes what it is asked into the driver's log; panics and ends where a test wants it to.
#[derive(Default)]
struct Scribe {
    events: u32,
    end_after: Option<u32>,
    panic_at_event: Option<u32>,
    /// The call of a handler that panics, by the note that it leaves.
    panic_in: Option<&'static str>,
    panic_in_cleanup: bool,
    on_interrupt: Option<Interrupted>,
    /// Whether it has its output when it was interrupted.
    output_on_interrupt: bool,
}

impl Scribe {
    fn note(&self, driver: &FlatDriver, what: &'static str) {
        driver.note(what);
        assert_ne!(self.panic_in, Some(what), "on purpose");
    }
}

impl VmiHandler<FlatDriver, NoOS> for Scribe {
    type Output = u32;

    fn poll(&mut self, _: VmiSession<'_, FlatDriver, NoOS>) -> Option<u32> {
        assert_ne!(self.panic_in, Some("poll"), "on purpose");
        self.end_after.filter(|&end| self.events >= end)
    }

    fn handle_event(&mut self, vmi: VmiContext<'_, FlatDriver, NoOS>) -> VmiEventResponse<Amd64> {
        vmi.driver().note("event");
        assert_ne!(self.panic_at_event, Some(self.events), "on purpose");
        self.events += 1;
        VmiEventResponse::singlestep()
    }

    fn handle_timeout(&mut self, vmi: VmiSession<'_, FlatDriver, NoOS>) {
        self.note(vmi.driver(), "timeout");
    }

    fn handle_interrupted(&mut self, vmi: VmiSession<'_, FlatDriver, NoOS>) -> Interrupted {
        self.note(vmi.driver(), "interrupted");
        if self.output_on_interrupt {
            self.end_after = Some(self.events);
        }
        self.on_interrupt.unwrap_or(Interrupted::End)
    }

    fn cleanup(&mut self, vmi: VmiSession<'_, FlatDriver, NoOS>) {
        assert_eq!(vmi.driver().pauses(), 1, "cleanup runs with the guest paused");
        vmi.driver().note("cleanup");
        assert!(!self.panic_in_cleanup, "on purpose");
    }
}

/// How a session ended: a panic, or what `handle` answered.
type Ended = std::thread::Result<Result<Option<u32>, VmiError>>;

/// The calls of a session with this script, each wait, note and change by name.
fn session(script: impl IntoIterator<Item = Scripted>, handler: Scribe) -> (Ended, Vec<String>, VmiCore<FlatDriver>) {
    session_on(core(4), script, handler)
}

fn session_on(
    vmi: VmiCore<FlatDriver>,
    script: impl IntoIterator<Item = Scripted>,
    handler: Scribe,
) -> (Ended, Vec<String>, VmiCore<FlatDriver>) {
    vmi.driver().script(script);
    let ended = catch_unwind(AssertUnwindSafe(|| {
        VmiSession::new(&vmi, &NoOS).handle_with_timeout(Duration::from_secs(1), handler)
    }));
    let calls = vmi.driver().take_calls().into_iter().map(|call| match call {
        Call::Note(what) => what.to_string(),
        Call::Wait(timeout) if timeout.is_zero() => "drain".into(),
        Call::Wait(_) => "wait".into(),
        other => format!("{other:?}"),
    });
    let calls = calls.collect();
    (ended, calls, vmi)
}

const LEAVE: [&str; 5] = ["Pause", "cleanup", "ResetState", "ResetState", "Resume"];

#[test]
fn every_way_out_takes_the_same_steps() {
    // A result.
    let handler = Scribe { end_after: Some(1), ..Default::default() };
    let (ended, calls, vmi) = session([Scripted::Event(event(0))], handler);
    assert!(matches!(ended, Ok(Ok(Some(1)))));
    assert_eq!(calls, [["wait", "event"].as_slice(), &LEAVE].concat());
    assert_eq!(vmi.driver().pauses(), 0);

    // An error, after a time-out.
    let script = [Scripted::Timeout, Scripted::Error(VmiError::Lost("on purpose".into()))];
    let (ended, calls, vmi) = session(script, Scribe::default());
    assert!(matches!(ended, Ok(Err(VmiError::Lost(_)))));
    assert_eq!(calls, [["wait", "timeout", "wait"].as_slice(), &LEAVE].concat());
    assert_eq!(vmi.driver().pauses(), 0);

    // A signal.
    let (ended, calls, _) = session([Scripted::Interrupted], Scribe::default());
    assert!(matches!(ended, Ok(Ok(None))));
    assert_eq!(calls, [["wait", "interrupted"].as_slice(), &LEAVE].concat());

    // A panic in the handler of an event.
    let handler = Scribe { panic_at_event: Some(0), ..Default::default() };
    let (ended, calls, vmi) = session([Scripted::Event(event(0))], handler);
    assert!(ended.is_err());
    assert_eq!(calls, [["wait", "event"].as_slice(), &LEAVE].concat());
    assert_eq!(vmi.driver().pauses(), 0);
}

#[test]
fn a_signal_may_be_outlived_once() {
    let handler = Scribe { on_interrupt: Some(Interrupted::Continue), ..Default::default() };
    let script = [Scripted::Interrupted, Scripted::Event(event(0)), Scripted::Interrupted, Scripted::Event(event(1))];
    let (ended, calls, _) = session(script, handler);
    assert!(matches!(ended, Ok(Ok(None))));
    let lived = ["wait", "interrupted", "wait", "event", "wait", "interrupted", "Pause", "cleanup", "ResetState"];
    // The event that was still pending is answered, between the two resets.
    assert_eq!(calls, [lived.as_slice(), &["drain", "event", "ResetState", "Resume"]].concat());
}

#[test]
fn a_handler_that_ends_on_a_signal_keeps_its_output() {
    let handler = || Scribe { output_on_interrupt: true, ..Default::default() };
    let (ended, calls, _) = session([Scripted::Event(event(0)), Scripted::Interrupted], handler());
    assert!(matches!(ended, Ok(Ok(Some(1)))));
    assert_eq!(calls, [["wait", "event", "wait", "interrupted"].as_slice(), &LEAVE].concat());
    // Also where the second signal leaves it no choice.
    let handler = Scribe { on_interrupt: Some(Interrupted::Continue), end_after: Some(1), ..Default::default() };
    let handler = Late { scribe: handler, signals: 0 };
    let vmi = core(4);
    vmi.driver().script([Scripted::Interrupted, Scripted::Interrupted]);
    let ended = VmiSession::new(&vmi, &NoOS).handle_with_timeout(Duration::from_secs(1), handler);
    assert!(matches!(ended, Ok(Some(1))), "{ended:?}");
    // One that panics when it is asked for it still leaves the guest clean.
    let handler = Scribe { panic_in: Some("poll"), ..Default::default() };
    let handler = Late { scribe: handler, signals: 1 };
    vmi.driver().script([Scripted::Interrupted]);
    let ended = catch_unwind(AssertUnwindSafe(|| {
        VmiSession::new(&vmi, &NoOS).handle_with_timeout(Duration::from_secs(1), handler)
    }));
    assert!(ended.is_err());
    assert_eq!(vmi.driver().pauses(), 0);
}

/// A handler that is asked for its output only after the second signal.
struct Late {
    scribe: Scribe,
    signals: u32,
}

impl VmiHandler<FlatDriver, NoOS> for Late {
    type Output = u32;

    fn poll(&mut self, vmi: VmiSession<'_, FlatDriver, NoOS>) -> Option<u32> {
        if self.signals > 1 { self.scribe.poll(vmi) } else { None }
    }

    fn handle_event(&mut self, vmi: VmiContext<'_, FlatDriver, NoOS>) -> VmiEventResponse<Amd64> {
        self.scribe.handle_event(vmi)
    }

    fn handle_interrupted(&mut self, vmi: VmiSession<'_, FlatDriver, NoOS>) -> Interrupted {
        self.signals += 1;
        self.scribe.events = self.signals;
        self.scribe.handle_interrupted(vmi)
    }

    fn cleanup(&mut self, vmi: VmiSession<'_, FlatDriver, NoOS>) {
        self.scribe.cleanup(vmi);
    }
}

#[test]
fn what_is_pending_is_drained_between_two_resets() {
    let handler = Scribe { end_after: Some(1), ..Default::default() };
    let (ended, calls, vmi) = session((0..3).map(|n| Scripted::Event(event(n))), handler);
    assert!(matches!(ended, Ok(Ok(Some(1)))));
    let left = ["Pause", "cleanup", "ResetState", "drain", "event", "drain", "event", "ResetState", "Resume"];
    assert_eq!(calls.get(2..), Some(left.map(String::from).as_slice()));
    assert_eq!(vmi.driver().responses().len(), 3);
}

#[test]
fn a_panic_in_cleanup_keeps_nothing_from_being_done() {
    // Alone, after a result, and on top of another panic, which would abort the process if it were not caught.
    for panic_at_event in [None, Some(0)] {
        let handler = Scribe { end_after: Some(1), panic_at_event, panic_in_cleanup: true, ..Default::default() };
        let (ended, calls, vmi) = session([Scripted::Event(event(0)), Scripted::Event(event(1))], handler);
        assert!(ended.is_err(), "a mistake is not hidden");
        let left = ["Pause", "cleanup", "ResetState", "drain", "ResetState", "Resume"];
        assert_eq!(calls.get(2..), Some(left.map(String::from).as_slice()));
        assert_eq!(vmi.driver().pauses(), 0);
        // The broken handler was not asked about the second event; the vCPU just goes on.
        assert_eq!(vmi.driver().responses().last().map(|response| response.action), Some(VmiEventAction::Continue));
    }
}

#[test]
fn a_handler_that_has_panicked_is_asked_no_more() {
    let handler = Scribe { panic_at_event: Some(0), ..Default::default() };
    let (ended, calls, vmi) = session((0..2).map(|n| Scripted::Event(event(n))), handler);
    assert!(ended.is_err());
    assert_eq!(calls, ["wait", "event", "Pause", "cleanup", "ResetState", "drain", "ResetState", "Resume"]);
    assert_eq!(vmi.driver().responses().last().map(|response| response.action), Some(VmiEventAction::Continue));
}

#[test]
fn a_panic_while_draining_answers_the_rest_with_continue() {
    let handler = Scribe { end_after: Some(1), panic_at_event: Some(1), ..Default::default() };
    let (ended, calls, vmi) = session((0..4).map(|n| Scripted::Event(event(n))), handler);
    assert!(ended.is_err());
    let end = ["drain", "event", "drain", "drain", "ResetState", "Resume"].map(String::from);
    assert!(calls.ends_with(&end), "{calls:?}");
    assert_eq!(vmi.driver().pauses(), 0);
}

#[test]
fn a_panic_in_any_call_of_the_handler_takes_the_same_steps() {
    let lead: [(&str, &[&str]); 3] =
        [("poll", &[]), ("timeout", &["wait", "timeout"]), ("interrupted", &["wait", "interrupted"])];
    for (what, lead) in lead {
        let script = match what {
            "interrupted" => Scripted::Interrupted,
            _ => Scripted::Timeout,
        };
        let handler = Scribe { panic_in: Some(what), on_interrupt: Some(Interrupted::Continue), ..Default::default() };
        let (ended, calls, vmi) = session([script], handler);
        assert!(ended.is_err(), "{what}");
        assert_eq!(calls, [lead, &LEAVE].concat(), "{what}");
        assert_eq!(vmi.driver().pauses(), 0);
    }
}

#[test]
fn a_wait_that_fails_while_draining_ends_only_the_draining() {
    // The driver fails at the drain: at every wait from the second on.
    let vmi = core(4);
    let mut waits = 0;
    vmi.driver().fail_if(move |call| {
        waits += u32::from(matches!(call, Call::Wait(_)));
        waits > 1 && matches!(call, Call::Wait(_))
    });
    let handler = Scribe { end_after: Some(1), ..Default::default() };
    let (ended, calls, vmi) = session_on(vmi, (0..3).map(|n| Scripted::Event(event(n))), handler);
    assert!(matches!(ended, Ok(Ok(Some(1)))), "what the session was for is done");
    let left = ["wait", "event", "Pause", "cleanup", "ResetState", "drain", "ResetState", "Resume"];
    assert_eq!(calls, left);
    assert_eq!(vmi.driver().pauses(), 0);
}

#[test]
fn a_driver_that_always_fails_is_left_all_the_same() {
    let vmi = core(4);
    vmi.driver().fail_if(|call| !matches!(call, Call::Pause));
    let (ended, calls, _) = session_on(vmi, [], Scribe::default());
    assert!(matches!(ended, Ok(Err(VmiError::Driver { .. }))), "the error of the wait, not one of the way out");
    assert_eq!(calls, [["wait"].as_slice(), &LEAVE].concat());
}

#[test]
fn a_panic_of_the_driver_on_the_way_out_keeps_nothing_from_being_tried() {
    type Kind = fn(&Call) -> bool;
    let kinds: [Kind; 3] = [
        |call| matches!(call, Call::ResetState),
        |call| matches!(call, Call::Resume),
        |call| matches!(call, Call::Wait(_)),
    ];
    for (n, kind) in kinds.into_iter().enumerate() {
        let vmi = core(4);
        let mut is_out = false;
        vmi.driver().fail_if(move |call| {
            is_out |= matches!(call, Call::Pause);
            assert!(!is_out || !kind(call), "on purpose");
            false
        });
        let handler = Scribe { end_after: Some(1), ..Default::default() };
        let (ended, calls, _) = session_on(vmi, (0..2).map(|n| Scripted::Event(event(n))), handler);
        assert!(ended.is_err(), "{n}: a mistake is not hidden");
        let tried = |what: &str| calls.iter().filter(|call| *call == what).count();
        // A call that panics is not in the log; the others are, in full.
        assert_eq!((tried("cleanup"), tried("ResetState")), (1, if n == 0 { 0 } else { 2 }), "{n}: {calls:?}");
        assert_eq!(tried("Resume"), usize::from(n != 1), "{n}: {calls:?}");
    }
}

#[test]
fn every_step_of_the_way_out_is_tried_when_another_fails() {
    for nth in 0..4 {
        let vmi = core(4);
        vmi.driver().fail_nth_change(nth);
        let handler = Scribe { end_after: Some(0), ..Default::default() };
        // The first step is the pause, without which `cleanup` says its own word.
        let ended = catch_unwind(AssertUnwindSafe(|| VmiSession::new(&vmi, &NoOS).handle(handler)));
        assert_eq!(ended.is_err(), nth == 0);
        let changes: Vec<Call> = vmi.driver().take_calls().into_iter().filter(Call::is_change).collect();
        assert_eq!(changes, [Call::Pause, Call::ResetState, Call::ResetState, Call::Resume], "failing {nth}");
    }
}
