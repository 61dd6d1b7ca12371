//! What the engine's own clean-up asks of a driver, call by call.

use std::{cell::Cell, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use crossbeam_channel::bounded;
use vmscope::engine::{
    addr::{Gfn, Pa, Va, VcpuId, View},
    arch::{
        EventMemoryAccess,
        amd64::{Amd64, Amd64EventReason, Amd64Registers},
    },
    bpm::BreakpointController,
    command::{Command, Request, Target},
    driver::{MemoryAccess, VmiStep},
    error::VmiError,
    event::{VmiEvent, VmiEventAction, VmiEventResponse},
    faults::InjectFaults,
    monitor::{Channels, Monitor, MonitorOptions, Platform},
    ptm::WriteProtect,
    session::{VmiCore, VmiSession},
    snapshot::{Scope, Snapshot},
};

use crate::support::{Call, FlatDriver, FlatOs, PageSize, Scripted, Tables, core};

const BASE: Va = Va(0xffff_8f00_0000_0000);

impl VmiStep for FlatDriver {
    fn step(&self, _: VcpuId) -> Result<(), VmiError> {
        Ok(())
    }
}

impl Platform for FlatDriver {
    const KIND: &'static str = "flat";
    const TABLE_POLL: Option<Duration> = None;
    const REPORTS_SWITCHES: bool = true;
    const VCPU_POLL: Duration = Duration::from_secs(1);
    type Tap = BreakpointController<Self>;
    type Guard = WriteProtect;
    type Delivery = InjectFaults;

    fn storm_limit(_: &VmiCore<Self>) -> u32 {
        1000
    }
    fn enter(vmi: &VmiCore<Self>) -> Result<View, VmiError> {
        vmi.create_view(MemoryAccess::RWX)
    }
    fn leave(vmi: &VmiCore<Self>, view: View) -> Result<(), VmiError> {
        vmi.driver().note("leave");
        vmi.destroy_view(view)
    }
    fn is_left_over(_: &Self::Tap, _: &VmiCore<Self>, _: &VmiEvent<Amd64>) -> bool {
        false
    }
    fn guest_wrote(tap: &mut Self::Tap, vmi: &VmiCore<Self>, gfn: Gfn) -> Result<(), VmiError> {
        tap.guest_wrote(vmi, gfn).map(|_| ())
    }
    fn step_over(_: &VmiCore<Self>) -> VmiEventResponse<Amd64> {
        VmiEventResponse::default()
    }
    fn step_and_tell(_: &VmiCore<Self>) -> VmiEventResponse<Amd64> {
        VmiEventResponse::singlestep()
    }
    fn stepped(_: View) -> VmiEventResponse<Amd64> {
        VmiEventResponse::default()
    }
}

/// What kind of thing a change of the guest does, so that a run of alike ones is one step.
fn step(call: &Call, shadow: Gfn) -> Option<&'static str> {
    Some(match call {
        Call::Pause => "pause",
        Call::SetMemoryAccess { gfn, .. } if *gfn == CODE => "open the breakpoint's page",
        Call::Write { pa, bytes } if Gfn(pa.0 >> 12) == shadow && !bytes.contains(&0xcc) => "restore the shadow",
        Call::SetMemoryAccess { access: MemoryAccess::RWX, .. } => "open a table",
        Call::ResetViewGfn { gfn: CODE, .. } => "show the guest's own page",
        Call::FreeGfn(gfn) if *gfn == shadow => "free the shadow",
        Call::Note("leave") => "leave the view",
        Call::DestroyView(_) => "destroy the view",
        Call::ResetState => "reset",
        Call::Resume => "resume",
        call if call.is_change() => panic!("{call:?}"),
        _ => return None,
    })
}

const CODE: Gfn = Gfn(40);

#[test]
fn breakpoints_go_first_then_tables_then_the_view() {
    let vmi = core(64);
    let next = Cell::new(16);
    let space = Tables::new(vmi.driver(), &next, 4);
    space.map(BASE, Pa(CODE.0 << 12), PageSize::Small);
    let os = FlatOs { base: BASE, root: space.root(), ..FlatOs::default() };
    let target = |va: Va| vec![Target::parse(&va.to_string()).expect("a place")];
    let options =
        MonitorOptions { breaks: target(BASE + 0x10), watches: target(BASE + 0x20_0000), ..MonitorOptions::default() };
    let (_, requests) = bounded(1);
    let (changed, _) = bounded(1);
    let channels = Channels { snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::default())), changed, requests };
    let session = VmiSession::new(&vmi, &os);
    let mut monitor = Monitor::new(options, channels, Snapshot::default());
    monitor.start(session).expect("a breakpoint and a watch");
    let set = vmi.driver().take_calls();
    let position = |wanted: &dyn Fn(&Call) -> bool| set.iter().position(wanted);
    let shown = position(&|call| matches!(call, Call::ChangeViewGfn { old: CODE, .. })).expect("a shadow");
    let shadow = *vmi.driver().allocated().first().expect("a frame");
    let is_patch = |call: &Call| matches!(call, Call::Write { pa, .. } if Gfn(pa.0 >> 12) == shadow);
    let patched = set.iter().rposition(is_patch).expect("a patch");
    let closed = position(&|call| matches!(call, Call::SetMemoryAccess { gfn: CODE, .. })).expect("a closed page");
    assert!(closed < patched && patched < shown, "closed, then copied, then shown: {set:?}");

    // Nobody can ask anything any more: it ends.
    assert!(matches!(session.handle(monitor), Ok(Some(_))));
    let calls = vmi.driver().take_calls();
    let mut steps: Vec<_> = calls.iter().filter_map(|call| step(call, shadow)).collect();
    steps.dedup();
    assert_eq!(
        steps,
        [
            "pause",
            "show the guest's own page",
            "restore the shadow",
            "open the breakpoint's page",
            "free the shadow",
            "open a table",
            "leave the view",
            "destroy the view",
            "reset",
            "resume"
        ]
    );
    assert!(vmi.driver().allocated().is_empty() && vmi.driver().remapped().is_empty());
    assert_eq!(vmi.driver().pauses(), 0);
}

/// The event of a store is answered when its page has no breakpoint. Before the vCPU makes it, the page gets one.
#[test]
fn a_store_that_is_under_way_reaches_the_shadow_of_a_breakpoint_that_comes_meanwhile() {
    let vmi = core(64);
    let next = Cell::new(16);
    let space = Tables::new(vmi.driver(), &next, 4);
    space.map(BASE, Pa(CODE.0 << 12), PageSize::Small);
    let os = FlatOs { base: BASE, root: space.root(), ..FlatOs::default() };
    let (sender, requests) = bounded(1);
    let (changed, _) = bounded(1);
    let channels = Channels { snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::default())), changed, requests };
    let session = VmiSession::new(&vmi, &os);
    // A breakpoint elsewhere has the monitor make its view.
    space.map(BASE + 0x1000, Pa((CODE.0 + 1) << 12), PageSize::Small);
    let place = |va: Va| Target::parse(&va.to_string()).expect("a place");
    let options = MonitorOptions { breaks: vec![place(BASE + 0x1010)], ..MonitorOptions::default() };
    let mut monitor = Monitor::new(options, channels, Snapshot::default());
    monitor.start(session).expect("a breakpoint");
    let view = vmi.driver().remapped().first().expect("a shadow").0;

    let (vcpu, store) = (VcpuId(0), Pa((CODE.0 << 12) + 0x20));
    let access = EventMemoryAccess { pa: store, va: BASE + 0x20, access: MemoryAccess::W };
    let event = |reason| Scripted::Event(VmiEvent::new(vcpu, Some(view), Amd64Registers::default(), reason));
    vmi.driver().script([
        event(Amd64EventReason::MemoryAccess(access)),
        event(Amd64EventReason::Singlestep { gfn: CODE }),
        Scripted::Timeout,
    ]);
    let (mut waits, mut sender) = (0, Some(sender));
    let breakpoint = Command::AddBreakpoint { target: place(BASE + 0x10), scope: Scope::Global, tag: String::new() };
    let mut request = Some(Request { command: breakpoint, answer: bounded(1).0 });
    vmi.driver().run_between_calls(move |driver, call| {
        if !matches!(call, Call::Wait(timeout) if !timeout.is_zero()) {
            return;
        }
        waits += 1;
        match (waits, sender.as_ref(), request.take()) {
            (1, Some(sender), Some(request)) => sender.send(request).expect("asked"),
            (2, ..) => {
                assert_ne!(driver.shown_frame(view, CODE), CODE, "the breakpoint came first");
                driver.poke(store.0, &[0x77]);
            }
            (3, ..) => {
                assert_eq!(driver.fetch(view, store, 1), [0x77], "the store is executed");
                driver.note("looked");
                sender = None;
            }
            _ => {}
        }
    });
    assert!(matches!(session.handle(monitor), Ok(Some(_))));
    assert_eq!(vmi.driver().responses().first().map(|response| response.action), Some(VmiEventAction::Singlestep));
    assert!(vmi.driver().take_calls().contains(&Call::Note("looked")));
    assert!(vmi.driver().remapped().is_empty() && vmi.driver().restricted().is_empty());
}

/// Shadows that cannot be hidden go with the view, and only then are their frames given back.
#[test]
fn a_page_that_cannot_be_shown_again_leaves_no_frame_behind() {
    let vmi = core(64);
    let next = Cell::new(16);
    let space = Tables::new(vmi.driver(), &next, 4);
    space.map(BASE, Pa(CODE.0 << 12), PageSize::Small);
    let os = FlatOs { base: BASE, root: space.root(), ..FlatOs::default() };
    let (_, requests) = bounded(1);
    let (changed, _) = bounded(1);
    let channels = Channels { snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::default())), changed, requests };
    let session = VmiSession::new(&vmi, &os);
    let place = Target::parse(&(BASE + 0x10).to_string()).expect("a place");
    let options = MonitorOptions { breaks: vec![place], ..MonitorOptions::default() };
    let mut monitor = Monitor::new(options, channels, Snapshot::default());
    monitor.start(session).expect("a breakpoint");
    let mut destroyed = false;
    vmi.driver().fail_if(move |call| {
        destroyed |= matches!(call, Call::DestroyView(_));
        !destroyed && matches!(call, Call::ResetViewGfn { .. })
    });
    assert!(matches!(session.handle(monitor), Ok(Some(_))));
    assert!(vmi.driver().failures() > 0);
    assert!(vmi.driver().allocated().is_empty() && vmi.driver().remapped().is_empty());
}
