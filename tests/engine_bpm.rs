//! Breakpoints: shadow pages, controllers, and the manager's rules one by one. What random sequences of calls do is in
//! `engine_bpm_model.rs`.

#[path = "engine_bpm/running.rs"]
mod running;
mod support;

use std::cell::Cell;

use support::{Call, FlatDriver, PageSize, Tables, core};
use vmscope::engine::{
    addr::{AddressContext, Gfn, Pa, Va, VcpuId, View},
    arch::{
        EventMemoryAccess,
        amd64::{Amd64, Amd64EventReason, Amd64Registers, EventInterrupt, Interrupt},
    },
    bpm::{
        Breakpoint, BreakpointController, BreakpointManager, BreakpointState, DebugController, Interceptor,
        MemoryController, TapController,
    },
    driver::{MemoryAccess, VmiViewControl},
    error::VmiError,
    event::VmiEvent,
    ptm::{PageEntryUpdate, PageTableMonitorEvent},
    session::VmiCore,
};

type Int3 = BreakpointController<FlatDriver>;
type Core = VmiCore<FlatDriver>;

const VA: Va = Va(0x7f00_0000_0100);
const ROOT: Pa = Pa(0x10_0000);
const ROOT2: Pa = Pa(0x20_0000);
const CODE: Gfn = Gfn(4);
const OTHER: Gfn = Gfn(5);

/// A guest with two views and something like code in its frames.
fn guest() -> (Core, View, View) {
    let vmi = core(16);
    for n in 0..16 * 0x1000_u64 {
        vmi.driver().poke(n, &[(n % 199) as u8]);
    }
    let view = vmi.create_view(MemoryAccess::RWX).expect("a view");
    let other = vmi.create_view(MemoryAccess::RWX).expect("a view");
    vmi.driver().take_calls();
    (vmi, view, other)
}

fn in_page(gfn: Gfn, va: Va) -> Pa {
    Pa(gfn.0 << 12 | va.0 & 0xfff)
}

fn registers(va: Va, root: Pa) -> Amd64Registers {
    let mut registers = Amd64Registers { cr3: root.0, ..Default::default() };
    registers.gp.rip = va.0;
    registers
}

fn int3(view: impl Into<Option<View>>, gfn: Gfn, va: Va, root: Pa) -> VmiEvent<Amd64> {
    let reason = Amd64EventReason::Interrupt(EventInterrupt { gfn, interrupt: Interrupt::breakpoint() });
    VmiEvent::new(VcpuId(0), view.into(), registers(va, root), reason)
}

fn access(view: impl Into<Option<View>>, pa: Pa, access: MemoryAccess) -> VmiEvent<Amd64> {
    let reason = Amd64EventReason::MemoryAccess(EventMemoryAccess { pa, va: VA, access });
    VmiEvent::new(VcpuId(0), view.into(), registers(VA, ROOT), reason)
}

fn page_in(view: View, ctx: (Va, Pa), gfn: Gfn) -> PageTableMonitorEvent {
    PageTableMonitorEvent::PageIn(PageEntryUpdate { view, ctx: ctx.into(), pa: in_page(gfn, ctx.0) })
}

fn page_out(view: View, ctx: (Va, Pa), gfn: Gfn) -> PageTableMonitorEvent {
    PageTableMonitorEvent::PageOut(PageEntryUpdate { view, ctx: ctx.into(), pa: in_page(gfn, ctx.0) })
}

/// What the guest fetches at an address, in a view.
fn fetched(vmi: &Core, view: View, pa: Pa) -> u8 {
    vmi.driver().fetch(view, pa, 1)[0]
}

fn original(vmi: &Core, pa: Pa) -> u8 {
    vmi.driver().peek(pa.0, 1)[0]
}

/// Whether nothing of ours is in the guest.
fn untouched(vmi: &Core) -> bool {
    vmi.driver().remapped().is_empty() && vmi.driver().restricted().is_empty() && vmi.driver().breakpoints().is_empty()
}

// ---------------------------------------------------------------------------------------------------- shadow pages

#[test]
fn a_shadow_is_complete_before_it_is_shown() {
    let (vmi, view, other) = guest();
    let mut interceptor = Interceptor::new();
    let pa = in_page(CODE, VA);
    let frame = interceptor.insert_breakpoint(&vmi, pa, view).expect("inserted");
    let calls = vmi.driver().take_calls();
    let mut page = vmi.driver().peek(CODE.0 << 12, 0x1000);
    page[0x100] = 0xcc;
    let write = Call::Write { pa: Pa(frame.0 << 12), bytes: page };
    assert_eq!(calls, [Call::AllocateGfn, write, Call::ChangeViewGfn { view, old: CODE, new: frame }]);

    assert_eq!(fetched(&vmi, view, pa), 0xcc);
    assert_eq!(fetched(&vmi, other, pa), original(&vmi, pa));
    assert_ne!(original(&vmi, pa), 0xcc, "the guest's own page is never patched");
    assert_eq!(interceptor.saved_bytes(view, pa), Some([original(&vmi, pa)].as_slice()));

    assert_eq!(interceptor.remove_breakpoint(&vmi, pa, view).ok(), Some(Some(true)));
    let restore = Call::Write { pa: Pa(frame.0 << 12 | 0x100), bytes: vec![original(&vmi, pa)] };
    assert_eq!(vmi.driver().take_calls(), [Call::ResetViewGfn { view, gfn: CODE }, restore]);
    assert!(untouched(&vmi));
    assert_eq!(interceptor.remove_breakpoint(&vmi, pa, view).ok(), Some(None));
}

#[test]
fn breakpoints_are_counted_by_place() {
    let (vmi, view, _) = guest();
    let mut interceptor = Interceptor::new();
    let (pa, near) = (in_page(CODE, VA), in_page(CODE, VA) + 1);
    let frame = interceptor.insert_breakpoint(&vmi, pa, view).expect("inserted");
    vmi.driver().take_calls();
    assert_eq!(interceptor.insert_breakpoint(&vmi, pa, view).ok(), Some(frame));
    assert_eq!(vmi.driver().take_calls(), [], "a second one at the place only counts");
    assert_eq!(interceptor.insert_breakpoint(&vmi, near, view).ok(), Some(frame));
    assert_eq!((fetched(&vmi, view, pa), fetched(&vmi, view, near)), (0xcc, 0xcc));

    assert_eq!(interceptor.remove_breakpoint(&vmi, pa, view).ok(), Some(Some(false)));
    assert_eq!(fetched(&vmi, view, pa), 0xcc);
    assert_eq!(interceptor.remove_breakpoint(&vmi, pa, view).ok(), Some(Some(false)));
    assert_eq!(fetched(&vmi, view, pa), original(&vmi, pa));
    assert_eq!(interceptor.remove_breakpoint(&vmi, near, view).ok(), Some(Some(true)));
    assert!(untouched(&vmi));
}

#[test]
fn by_force_a_breakpoint_leaves_however_often_it_was_inserted() {
    let (vmi, view, other) = guest();
    let mut interceptor = Interceptor::new();
    let (pa, near) = (in_page(CODE, VA), in_page(CODE, VA) + 1);
    for _ in 0..3 {
        interceptor.insert_breakpoint(&vmi, pa, view).expect("inserted");
        interceptor.insert_breakpoint(&vmi, near, view).expect("inserted");
    }
    assert_eq!(interceptor.remove_breakpoint_by_force(&vmi, pa, other).ok(), Some(None), "not in this view");
    assert_eq!(interceptor.remove_breakpoint_by_force(&vmi, pa + 2, view).ok(), Some(None), "not at this place");
    vmi.driver().fail_nth_change(0);
    assert!(interceptor.remove_breakpoint_by_force(&vmi, pa, view).is_err());
    assert_eq!(fetched(&vmi, view, pa), 0xcc);
    assert_eq!(
        interceptor.remove_breakpoint_by_force(&vmi, pa, view).ok(),
        Some(Some(false)),
        "one is left in the page"
    );
    assert_eq!((fetched(&vmi, view, pa), fetched(&vmi, view, near)), (original(&vmi, pa), 0xcc));
    // A failure leaves the count: it takes three again.
    vmi.driver().fail_nth_change(0);
    assert!(interceptor.remove_breakpoint_by_force(&vmi, near, view).is_err());
    assert_eq!(interceptor.remove_breakpoint(&vmi, near, view).ok(), Some(Some(false)));
    assert_eq!(
        interceptor.remove_breakpoint_by_force(&vmi, near, view).ok(),
        Some(Some(true)),
        "that was the last one"
    );
    assert!(untouched(&vmi));
    assert_eq!(interceptor.remove_breakpoint_by_force(&vmi, near, view).ok(), Some(None));
}

#[test]
fn an_event_is_known_by_the_breakpoint_that_is_in_its_place() {
    let (vmi, view, other) = guest();
    let mut interceptor = Interceptor::new();
    let event = |view: View, gfn, va| int3(view, gfn, va, ROOT);
    assert!(!interceptor.contains_breakpoint(&event(view, CODE, VA)));
    interceptor.insert_breakpoint(&vmi, in_page(CODE, VA), view).expect("inserted");
    interceptor.insert_breakpoint(&vmi, in_page(CODE, VA), view).expect("counted");
    assert!(interceptor.contains_breakpoint(&event(view, CODE, VA)));
    // Whichever address the frame is mapped at, in whichever address space.
    assert!(interceptor.contains_breakpoint(&int3(view, CODE, Va(0x100), ROOT2)));
    for no in [event(other, CODE, VA), event(view, OTHER, VA), event(view, CODE, VA + 1)] {
        assert!(!interceptor.contains_breakpoint(&no));
    }
    assert!(!interceptor.contains_breakpoint(&int3(None, CODE, VA, ROOT)), "in no view that is known");
    assert!(!interceptor.contains_breakpoint(&access(view, in_page(CODE, VA), MemoryAccess::X)), "not an interrupt");
    // With prefixes in front of it, as far as they are in the same page.
    let prefixed = |va, length| {
        let interrupt = Interrupt { instruction_length: length, ..Interrupt::breakpoint() };
        let reason = Amd64EventReason::Interrupt(EventInterrupt { gfn: CODE, interrupt });
        VmiEvent::new(VcpuId(0), Some(view), registers(va, ROOT), reason)
    };
    assert!(interceptor.contains_breakpoint(&prefixed(Va(VA.0 - 2), 3)));
    assert!(!interceptor.contains_breakpoint(&prefixed(VA, 3)));
    interceptor.insert_breakpoint(&vmi, in_page(CODE, Va(0)), view).expect("inserted");
    assert!(!interceptor.contains_breakpoint(&prefixed(Va(0x7f00_0000_0fff), 2)), "the next page is another frame");
    assert_eq!(interceptor.remove_breakpoint(&vmi, in_page(CODE, VA), view).ok(), Some(Some(false)));
    assert!(interceptor.contains_breakpoint(&event(view, CODE, VA)), "one is left");
    assert_eq!(interceptor.remove_breakpoint(&vmi, in_page(CODE, VA), view).ok(), Some(Some(false)));
    assert!(!interceptor.contains_breakpoint(&event(view, CODE, VA)));
}

/// Whether there is a breakpoint in a frame of ours that nothing shows.
fn unclean(vmi: &Core) -> bool {
    let shown: Vec<Gfn> = vmi.driver().remapped().into_iter().map(|(_, _, shown)| shown).collect();
    let frames = vmi.driver().allocated().into_iter().filter(|frame| !shown.contains(frame));
    frames.into_iter().any(|frame| vmi.driver().peek(frame.0 << 12, 0x1000).contains(&0xcc))
}

#[test]
fn no_breakpoint_stays_in_a_frame_that_is_not_shown() {
    let (vmi, view, other) = guest();
    let mut interceptor = Interceptor::new();
    let pa = in_page(CODE, VA);
    for points in [[0, 1, 2], [2, 0, 1]] {
        for point in points {
            interceptor.insert_breakpoint(&vmi, pa + point, view).expect("inserted");
        }
        for point in points {
            interceptor.remove_breakpoint(&vmi, pa + point, view).expect("removed");
        }
        assert!(!unclean(&vmi));
    }
    interceptor.insert_breakpoint(&vmi, pa, view).expect("inserted");
    interceptor.insert_breakpoint(&vmi, pa, view).expect("counted");
    interceptor.remove_breakpoint_by_force(&vmi, pa, view).expect("removed");
    assert!(!unclean(&vmi) && interceptor.spare_frames() == 1);
    // One that was filled and could not be shown.
    vmi.driver().fail_if(|call| matches!(call, Call::ChangeViewGfn { .. }));
    assert!(interceptor.insert_breakpoint(&vmi, pa, view).is_err());
    assert!(!unclean(&vmi) && untouched(&vmi) && interceptor.spare_frames() == 1);
    // Where it cannot be emptied either, that is made up for.
    let mut writes = 0;
    vmi.driver().fail_if(move |call| {
        writes += u32::from(matches!(call, Call::Write { .. }));
        matches!(call, Call::ChangeViewGfn { .. }) || writes == 2
    });
    assert!(interceptor.insert_breakpoint(&vmi, pa, view).is_err());
    assert!(unclean(&vmi));
    vmi.driver().stop_failing();
    assert_eq!(interceptor.remove_breakpoint(&vmi, pa, other).ok(), Some(None));
    assert!(!unclean(&vmi) && interceptor.spare_frames() == 1);
    // A removal that cannot take it out puts the page back.
    interceptor.insert_breakpoint(&vmi, pa, view).expect("inserted");
    vmi.driver().fail_nth_of(0, |call| matches!(call, Call::Write { .. }));
    assert!(interceptor.remove_breakpoint(&vmi, pa, view).is_err());
    assert_eq!(fetched(&vmi, view, pa), 0xcc);
    // And where that fails, too, the breakpoint is gone, and so is what is in the frame, later.
    vmi.driver().fail_if(|call| matches!(call, Call::Write { .. }));
    assert!(interceptor.remove_breakpoint(&vmi, pa, view).is_err());
    assert_eq!((interceptor.saved_bytes(view, pa), untouched(&vmi)), (None, true));
    assert!(interceptor.free_all(&vmi).is_err());
    assert_eq!(vmi.driver().allocated().len(), 1, "a frame with a breakpoint in it is not given back");
    vmi.driver().stop_failing();
    // Also not from under a shadow that is still shown.
    interceptor.insert_breakpoint(&vmi, pa, view).expect("inserted");
    interceptor.insert_breakpoint(&vmi, pa, other).expect("inserted");
    vmi.driver().run_between_calls(|driver, call| {
        if let Call::FreeGfn(frame) = call {
            assert!(!driver.peek(frame.0 << 12, 0x1000).contains(&0xcc));
        }
    });
    interceptor.free_all(&vmi).expect("freed");
    assert!(untouched(&vmi) && vmi.driver().allocated().is_empty());
}

#[test]
fn a_shadow_follows_the_guests_writes() {
    let (vmi, view, other) = guest();
    let mut interceptor = Interceptor::new();
    let pa = in_page(CODE, VA);
    interceptor.insert_breakpoint(&vmi, pa, view).expect("inserted");
    interceptor.insert_breakpoint(&vmi, pa + 0x20, other).expect("inserted");
    // Beside a breakpoint, and under it: `nop` over five bytes, as Linux patches its own text.
    vmi.driver().poke(pa.0, &[0x0f, 0x1f, 0x44, 0, 0]);
    vmi.driver().poke(pa.0 + 0x20, &[0xcc]);
    assert_eq!(interceptor.guest_wrote(&vmi, CODE).ok(), Some(true));
    assert_eq!(vmi.driver().fetch(view, pa, 5), [0xcc, 0x1f, 0x44, 0, 0]);
    assert_eq!(vmi.driver().fetch(other, pa, 5), [0x0f, 0x1f, 0x44, 0, 0], "every view's shadow follows");
    assert_eq!(interceptor.saved_bytes(view, pa), Some([0x0f].as_slice()));
    assert_eq!(interceptor.saved_bytes(other, pa + 0x20), Some([0xcc].as_slice()));
    // The new byte comes back when the breakpoint leaves while another keeps the shadow.
    interceptor.insert_breakpoint(&vmi, pa + 9, view).expect("inserted");
    assert_eq!(interceptor.remove_breakpoint(&vmi, pa, view).ok(), Some(Some(false)));
    assert_eq!(vmi.driver().fetch(view, pa, 5), [0x0f, 0x1f, 0x44, 0, 0]);
    assert_eq!(interceptor.guest_wrote(&vmi, OTHER).ok(), Some(false));
    // A failure leaves shadow and saved bytes together, and a retry works.
    vmi.driver().poke(pa.0 + 9, &[0x90]);
    let before = interceptor.saved_bytes(view, pa + 9).map(<[u8]>::to_vec);
    for nth in 0..2 {
        vmi.driver().fail_nth(nth);
        assert!(interceptor.guest_wrote(&vmi, CODE).is_err());
        assert_eq!(interceptor.saved_bytes(view, pa + 9), before.as_deref());
    }
    assert_eq!(interceptor.guest_wrote(&vmi, CODE).ok(), Some(true));
    assert_eq!(interceptor.saved_bytes(view, pa + 9), Some([0x90].as_slice()));
}

#[test]
fn a_failed_step_loses_no_frame_and_a_retry_works() {
    for nth in 0..4 {
        let (vmi, view, _) = guest();
        let mut interceptor = Interceptor::new();
        let pa = in_page(CODE, VA);
        vmi.driver().fail_nth(nth);
        assert!(interceptor.insert_breakpoint(&vmi, pa, view).is_err(), "call {nth} failed");
        assert!(untouched(&vmi));
        assert_eq!(vmi.driver().allocated().len(), interceptor.spare_frames());
        vmi.driver().take_calls();
        assert!(interceptor.insert_breakpoint(&vmi, pa, view).is_ok());
        let reused = !vmi.driver().take_calls().contains(&Call::AllocateGfn);
        assert_eq!(reused, nth > 0, "the frame of the failed try is used");
        assert_eq!(fetched(&vmi, view, pa), 0xcc);

        vmi.driver().fail_nth(0);
        assert!(interceptor.remove_breakpoint(&vmi, pa, view).is_err());
        assert_eq!(fetched(&vmi, view, pa), 0xcc, "what could not be removed is still there");
        assert_eq!(interceptor.remove_breakpoint(&vmi, pa, view).ok(), Some(Some(true)));
        vmi.driver().fail_nth(0);
        assert!(interceptor.free_all(&vmi).is_err());
        assert_eq!(vmi.driver().allocated().len(), 1);
        assert!(interceptor.free_all(&vmi).is_ok());
        assert!(vmi.driver().allocated().is_empty());
    }
}

#[test]
fn a_frame_that_is_used_again_is_filled_anew() {
    let (vmi, view, other) = guest();
    let mut interceptor = Interceptor::new();
    let frame = interceptor.insert_breakpoint(&vmi, in_page(CODE, VA), view).expect("inserted");
    interceptor.remove_breakpoint(&vmi, in_page(CODE, VA), view).expect("removed");
    vmi.driver().poke(OTHER.0 << 12, &[0x33; 0x1000]);
    let again = interceptor.insert_breakpoint(&vmi, in_page(OTHER, VA) + 7, other).expect("inserted");
    assert_eq!(again, frame);
    assert_eq!(
        vmi.driver().fetch(other, in_page(OTHER, VA), 9),
        [0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0xcc, 0x33]
    );
    interceptor.free_all(&vmi).expect("freed");
    assert!(untouched(&vmi) && vmi.driver().allocated().is_empty());
    assert_eq!(interceptor.shadow_pages() + interceptor.spare_frames(), 0);
}

#[test]
fn a_view_that_is_gone_is_no_error_on_the_way_out() {
    let (vmi, view, _) = guest();
    let mut interceptor = Interceptor::new();
    let pa = in_page(CODE, VA);
    interceptor.insert_breakpoint(&vmi, pa, view).expect("inserted");
    interceptor.insert_breakpoint(&vmi, in_page(OTHER, VA), view).expect("inserted");
    vmi.destroy_view(view).expect("destroyed");
    assert_eq!(interceptor.remove_breakpoint(&vmi, pa, view).ok(), Some(Some(true)));
    assert!(interceptor.free_all(&vmi).is_ok());
    assert!(vmi.driver().allocated().is_empty());
    assert!(matches!(interceptor.insert_breakpoint(&vmi, pa, view), Err(VmiError::ViewNotFound(_))));
}

/// An architecture's breakpoint may be longer than a byte; AMD64's never runs past its page.
#[test]
fn the_last_byte_of_a_page_takes_a_breakpoint() {
    let (vmi, view, _) = guest();
    let mut interceptor = Interceptor::new();
    let pa = Pa((CODE.0 << 12) + 0xfff);
    assert!(interceptor.insert_breakpoint(&vmi, pa, view).is_ok());
    assert_eq!(fetched(&vmi, view, pa), 0xcc);
    assert_eq!(fetched(&vmi, view, pa + 1), original(&vmi, pa + 1));
    // Beyond memory there is nothing to copy.
    assert!(matches!(interceptor.insert_breakpoint(&vmi, Pa(u64::MAX), view), Err(VmiError::OutOfBounds(_))));
    assert_eq!(vmi.driver().allocated().len(), 1 + interceptor.spare_frames());
}

// ---------------------------------------------------------------------------------------------------- controllers

#[test]
fn each_controller_knows_its_events() {
    let (_, view, _) = guest();
    let controller = Int3::new();
    assert_eq!(controller.check_event(&int3(view, CODE, VA, ROOT)), Some((view, CODE)));
    assert_eq!(controller.check_event(&int3(None, CODE, VA, ROOT)), None);
    assert_eq!(controller.check_event(&access(view, in_page(CODE, VA), MemoryAccess::X)), None);

    let controller = MemoryController::<FlatDriver>::new();
    assert_eq!(controller.check_event(&access(view, in_page(CODE, VA), MemoryAccess::RX)), Some((view, CODE)));
    assert_eq!(controller.check_event(&access(view, in_page(CODE, VA), MemoryAccess::RW)), None);
    assert_eq!(controller.check_event(&access(None, in_page(CODE, VA), MemoryAccess::X)), None);
    assert_eq!(controller.check_event(&int3(view, CODE, VA, ROOT)), None);

    let controller = DebugController::<FlatDriver>::new();
    let reason = Amd64EventReason::DebugBreakpoint { va: VA, gfn: CODE };
    let event = VmiEvent::new(VcpuId(0), None, registers(VA, ROOT), reason);
    assert_eq!(controller.check_event(&event), Some((View(0), CODE)));
}

#[test]
fn a_guests_own_breakpoint_is_told_from_a_stale_event() {
    let (vmi, view, _) = guest();
    let pa = in_page(CODE, VA);
    let is_breakpoint = |event: &VmiEvent<Amd64>| Int3::is_breakpoint(&vmi, event).ok();
    assert_eq!(is_breakpoint(&int3(view, CODE, VA, ROOT)), Some(false), "left over from a breakpoint of ours");
    vmi.driver().poke(pa.0, &[0xcc]);
    assert_eq!(is_breakpoint(&int3(view, CODE, VA, ROOT)), Some(true));
    assert_eq!(is_breakpoint(&access(view, pa, MemoryAccess::X)), Some(false));
    // With a prefix in front, the event is raised at the prefix.
    vmi.driver().poke(pa.0, &[0xf3, 0xcc]);
    let interrupt = Interrupt { instruction_length: 2, ..Interrupt::breakpoint() };
    let reason = Amd64EventReason::Interrupt(EventInterrupt { gfn: CODE, interrupt });
    let prefixed = |va, root| VmiEvent::new(VcpuId(0), Some(view), registers(va, root), reason);
    assert_eq!(is_breakpoint(&prefixed(VA, ROOT)), Some(true));
    // With the prefix in one page and the instruction in the next.
    let next = Cell::new(8);
    let space = Tables::new(vmi.driver(), &next, 4);
    let last = Va(0x7f00_0000_0fff);
    space.map(last, Pa(CODE.0 << 12), PageSize::Small);
    space.map(last + 1, Pa(0x2000), PageSize::Small);
    vmi.driver().poke(0x2000, &[0xcc]);
    assert_eq!(is_breakpoint(&prefixed(last, space.root())), Some(true));
    vmi.driver().poke(0x2000, &[0x90]);
    assert_eq!(is_breakpoint(&prefixed(last, space.root())), Some(false));
}

#[test]
fn an_event_of_ours_is_never_given_to_the_guest() {
    let (vmi, view, _) = guest();
    let mut controller = Int3::new();
    let pa = in_page(CODE, VA);
    controller.insert_breakpoint(&vmi, pa, view).expect("inserted");
    // Under another root than the breakpoint's, or an instant after its removal.
    let event = int3(view, CODE, VA, ROOT2);
    assert!(controller.is_left_over(&vmi, &event));
    assert!(controller.is_left_over(&vmi, &int3(view, OTHER, VA, ROOT)));
    // Where the guest's own page cannot be read, what is in the shadow is known.
    vmi.driver().fail_if(|call| matches!(call, Call::Read { .. }));
    assert!(controller.is_left_over(&vmi, &event));
    assert!(!controller.is_left_over(&vmi, &int3(view, OTHER, VA, ROOT)));
    vmi.driver().stop_failing();
    // The guest has one of its own under ours.
    vmi.driver().poke(pa.0, &[0xcc]);
    assert!(!controller.is_left_over(&vmi, &event));
}

#[test]
fn permissions_leave_what_others_took() {
    let (vmi, view, _) = guest();
    let mut controller = MemoryController::<FlatDriver>::new();
    // The page table monitor took the write permission.
    vmi.set_memory_access(CODE, view, MemoryAccess::RX).expect("set");
    controller.monitor(&vmi, CODE, view).expect("monitored");
    assert_eq!(vmi.driver().access(view, CODE), Some(MemoryAccess::R));
    controller.unmonitor(&vmi, CODE, view).expect("unmonitored");
    assert_eq!(vmi.driver().access(view, CODE), Some(MemoryAccess::RX));
}

#[test]
fn the_stub_is_asked_once_for_each_address() {
    let vmi = core(16);
    let mut manager = BreakpointManager::<DebugController<FlatDriver>, u8>::new();
    let at = |root, key| Breakpoint::new((VA, root), View(0)).with_key(key);
    assert!(manager.insert_with_hint(&vmi, at(ROOT, 0), Some(in_page(CODE, VA))).expect("inserted"));
    assert!(manager.insert_with_hint(&vmi, at(ROOT2, 0), Some(in_page(OTHER, VA))).expect("inserted"));
    assert!(manager.insert_with_hint(&vmi, at(ROOT, 1), Some(in_page(CODE, VA))).expect("inserted"));
    assert_eq!(vmi.driver().take_calls(), [Call::SetBreakpoint(VA)]);
    manager.remove(&vmi, at(ROOT, 0)).expect("removed");
    manager.handle_ptm_event(&vmi, &page_out(View(0), (VA, ROOT), CODE)).expect("disarmed");
    assert_eq!(vmi.driver().take_calls(), []);
    assert!(manager.remove(&vmi, at(ROOT2, 0)).expect("removed"));
    assert_eq!(vmi.driver().take_calls(), [Call::ClearBreakpoint(VA)]);
    // The other one waits for its page.
    assert_eq!(manager.len(), 1);
    manager.handle_ptm_event(&vmi, &page_in(View(0), (VA, ROOT), OTHER)).expect("armed");
    assert_eq!(vmi.driver().take_calls(), [Call::SetBreakpoint(VA)]);
    manager.clear(&vmi).expect("cleared");
    assert!(untouched(&vmi));
}

/// A driver with nothing but reads and debugger breakpoints can have a manager, one with permissions another.
#[test]
fn a_controller_asks_for_no_more_than_it_needs() {
    fn has_manager<C: TapController>() -> BreakpointManager<C> {
        BreakpointManager::new()
    }
    fn stub<D: vmscope::engine::driver::VmiDebugControl>() {
        has_manager::<DebugController<D>>();
    }
    fn permissions<D: vmscope::engine::driver::VmiProtection>() {
        has_manager::<MemoryController<D>>();
    }
    stub::<FlatDriver>();
    permissions::<FlatDriver>();
}

// ---------------------------------------------------------------------------------------------------- the manager

fn at(view: View) -> Breakpoint {
    Breakpoint::new((VA, ROOT), view)
}

#[test]
fn a_page_is_closed_before_its_shadow_is_made_and_opened_after_it_is_gone() {
    let (vmi, view, _) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    let options = Default::default();
    let set = |access| Call::SetMemoryAccess { gfn: CODE, view, access, options };
    assert!(manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).expect("inserted"));
    let calls = vmi.driver().take_calls();
    let shadow = manager.controller().interceptor().shadow(view, CODE).expect("shown");
    let show = Call::ChangeViewGfn { view, old: CODE, new: shadow };
    let [Call::AllocateGfn, first, Call::Write { .. }, third, last] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!([first, third, last], [&set(MemoryAccess::X), &show, &set(MemoryAccess::X)]);
    // A second one in the page is not monitored again, and the page stays monitored while one is left.
    let near = Breakpoint::new((VA + 1, ROOT), view);
    assert!(manager.insert_with_hint(&vmi, near, Some(in_page(CODE, VA + 1))).expect("inserted"));
    assert!(manager.remove(&vmi, at(view)).expect("removed"));
    assert!(vmi.driver().take_calls().iter().all(|call| matches!(call, Call::Write { .. })));
    assert!(manager.remove(&vmi, near).expect("removed"));
    let calls = vmi.driver().take_calls();
    let [first, Call::Write { .. }, last] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!([first, last], [&Call::ResetViewGfn { view, gfn: CODE }, &set(MemoryAccess::RWX)]);
    assert!(untouched(&vmi) && manager.is_empty());
}

#[test]
fn a_mapped_address_is_active_at_once_and_an_unmapped_one_waits() {
    let (vmi, view, _) = guest();
    let next = Cell::new(8);
    let space = Tables::new(vmi.driver(), &next, 4);
    let mut manager = BreakpointManager::<Int3>::new();
    let breakpoint = Breakpoint::new((VA, space.root()), view).with_tag("first");
    let state = |manager: &BreakpointManager<Int3>| manager.breakpoints().map(|state| state.pa).collect::<Vec<_>>();

    assert!(manager.insert(&vmi, breakpoint).expect("inserted"));
    assert_eq!(state(&manager), [None]);
    assert!(!manager.contains_by_address((VA, space.root()), ()));
    assert!(!manager.insert(&vmi, breakpoint.with_tag("second")).expect("known"));
    assert!(untouched(&vmi));

    space.map(VA, Pa(CODE.0 << 12), PageSize::Small);
    let armed = manager.handle_ptm_event(&vmi, &page_in(view, (VA, space.root()), CODE));
    assert!(armed.expect("armed"));
    assert_eq!(state(&manager), [Some(in_page(CODE, VA))]);
    let hit = manager.get_by_event(&int3(view, CODE, VA, space.root()), ()).expect("hit");
    assert_eq!((hit.tag(), hit.ctx()), ("first", AddressContext::new(VA, space.root())));
    assert!(!manager.handle_ptm_event(&vmi, &page_in(view, (VA, space.root()), CODE)).expect("old news"));

    assert!(manager.handle_ptm_event(&vmi, &page_out(view, (VA, space.root()), CODE)).expect("disarmed"));
    assert_eq!(state(&manager), [None]);
    assert!(untouched(&vmi));
    assert!(!manager.handle_ptm_event(&vmi, &page_out(view, (VA, space.root()), CODE)).expect("old news"));

    // Inserted again when its page is mapped: armed, and still one.
    assert!(!manager.insert(&vmi, breakpoint).expect("known"));
    assert_eq!(state(&manager), [Some(in_page(CODE, VA))]);
    // Removed when its page is gone again without our being told.
    space.unmap(VA);
    vmi.flush_v2p_cache();
    assert!(manager.remove(&vmi, breakpoint).expect("removed"));
    assert!(!manager.remove(&vmi, breakpoint).expect("not there"));
    assert!(untouched(&vmi) && manager.is_empty());
    // An error of the driver is not a missing page.
    vmi.driver().fail_nth(0);
    assert!(matches!(manager.insert(&vmi, breakpoint), Err(VmiError::Driver { .. })));
    assert!(manager.is_empty());
}

#[test]
fn a_page_that_moves_takes_its_breakpoint_along() {
    let (vmi, view, _) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).expect("inserted");
    let moved = [page_out(view, (VA, ROOT), CODE), page_in(view, (VA, ROOT), OTHER)];
    assert!(manager.handle_ptm_events(&vmi, moved).expect("moved"));
    assert_eq!((fetched(&vmi, view, in_page(OTHER, VA)), vmi.driver().remapped().len()), (0xcc, 1));
    // The page-out of the old frame comes late.
    assert!(!manager.handle_ptm_event(&vmi, &page_out(view, (VA, ROOT), CODE)).expect("old news"));
    assert!(manager.contains_by_address((VA, ROOT), ()));
    // Page-in without a page-out before it.
    assert!(manager.handle_ptm_event(&vmi, &page_in(view, (VA, ROOT), CODE)).expect("moved"));
    assert_eq!((fetched(&vmi, view, in_page(CODE, VA)), vmi.driver().remapped().len()), (0xcc, 1));
}

#[test]
fn page_out_disarms_one_context_only() {
    let (vmi, view, other) = guest();
    let mut manager = BreakpointManager::<Int3, u8>::new();
    let pa = in_page(CODE, VA);
    let wanted = |ctx: (Va, Pa), view, key| Breakpoint::new(ctx, view).with_key(key);
    let far = (Va(0x100), ROOT2);
    for (breakpoint, new) in [
        (wanted((VA, ROOT), view, 0), true),
        (wanted((VA, ROOT), view, 1), true),
        (wanted((VA, ROOT), other, 0), true),
        (wanted((VA, ROOT2), view, 0), true),
        (wanted(far, view, 0), true),
        (wanted(far, view, 0), false),
    ] {
        assert_eq!(manager.insert_with_hint(&vmi, breakpoint, Some(pa)).ok(), Some(new));
    }
    assert!(manager.handle_ptm_event(&vmi, &page_out(view, (VA, ROOT), CODE)).expect("disarmed"));
    let active = |view| {
        let states = manager.breakpoints_at((VA, ROOT)).filter(move |state| state.breakpoint.view() == view);
        states.map(|state| state.pa.is_some()).collect::<Vec<_>>()
    };
    assert_eq!((active(view), active(other)), (vec![false, false], vec![true]), "all keys, in this view only");
    assert!(manager.contains_by_address(far, 0) && manager.contains_by_address((VA, ROOT2), 0));
    assert!(manager.contains_by_event(&int3(view, CODE, VA, ROOT2), 0));
    assert_eq!((fetched(&vmi, view, pa), fetched(&vmi, other, pa)), (0xcc, 0xcc));
}

#[test]
fn the_guests_byte_comes_back_with_the_last_breakpoint() {
    let (vmi, view, other) = guest();
    let mut manager = BreakpointManager::<Int3, u8>::new();
    let pa = in_page(CODE, VA);
    let all: Vec<_> = [(ROOT, view, 0), (ROOT, view, 1), (ROOT2, view, 0), (ROOT, other, 0)]
        .map(|(root, view, key)| Breakpoint::new((VA, root), view).with_key(key))
        .to_vec();
    for breakpoint in &all {
        assert!(manager.insert_with_hint(&vmi, *breakpoint, Some(pa)).expect("inserted"));
    }
    let shown = vmi.driver().take_calls().into_iter().filter(|call| matches!(call, Call::ChangeViewGfn { .. }));
    assert_eq!(shown.count(), 2, "a page is shown once in each view");
    for (n, breakpoint) in all.iter().enumerate() {
        assert_eq!(fetched(&vmi, breakpoint.view(), pa), 0xcc);
        assert!(manager.remove(&vmi, *breakpoint).expect("removed"));
        assert_eq!(fetched(&vmi, view, pa) == 0xcc, n < 2, "after removal {n}");
    }
    assert!(untouched(&vmi));
}

/// With two breakpoints in two views, removing one in the view of the other is an answer, not a panic.
#[test]
fn removal_in_the_wrong_view_finds_nothing() {
    let (vmi, view, other) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    let near = Breakpoint::new((VA + 8, ROOT), other);
    manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).expect("inserted");
    manager.insert_with_hint(&vmi, near, Some(in_page(CODE, VA + 8))).expect("inserted");
    assert!(!manager.remove_with_hint(&vmi, at(other), Some(in_page(CODE, VA))).expect("an answer"));
    assert_eq!(manager.len(), 2);
}

#[test]
fn a_conflicting_global_flag_is_refused() {
    let (vmi, view, _) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    let pa = in_page(CODE, VA);
    for (first, second) in [(at(view), at(view).global()), (at(view).global(), at(view))] {
        for hint in [None, Some(pa)] {
            manager.insert_with_hint(&vmi, first.with_tag("kept"), hint).expect("inserted");
            vmi.driver().take_calls();
            let refused = manager.insert_with_hint(&vmi, second, Some(pa));
            let Err(VmiError::Invalid(why)) = refused else { panic!("expected a refusal, got {refused:?}") };
            assert!(why.contains(&VA.to_string()), "{why}");
            assert_eq!(vmi.driver().take_calls(), []);
            let states: Vec<BreakpointState> = manager.breakpoints().collect();
            assert_eq!(states, [BreakpointState { breakpoint: first.with_tag("kept"), pa: hint }]);
            manager.clear(&vmi).expect("cleared");
        }
    }
}

#[test]
fn a_global_breakpoint_is_one_however_many_roots_it_has() {
    let (vmi, view, _) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    let global = |root| Breakpoint::new((VA, root), view).global().with_tag("g");
    let third = Pa(0x30_0000);
    assert!(manager.insert_with_hint(&vmi, global(ROOT), Some(in_page(CODE, VA))).expect("new"));
    vmi.driver().take_calls();
    assert!(!manager.insert_with_hint(&vmi, global(ROOT2), Some(in_page(CODE, VA))).expect("the same frame"));
    assert_eq!(vmi.driver().take_calls(), [], "one frame, one breakpoint");
    // It hits in every address space, and folds onto the first root.
    let hit = manager.get_by_event(&int3(view, CODE, VA, Pa(0x99_0000)), ()).expect("hit");
    assert_eq!((hit.ctx().root, hit.is_global()), (ROOT, true));
    let hit = manager.get_by_event(&int3(view, CODE, VA, ROOT2), ()).expect("hit");
    assert_eq!(hit.ctx().root, ROOT, "a root of its own makes no difference");
    assert!(!manager.contains_by_event(&int3(view, OTHER, VA, ROOT), ()));
    // One root pages out: the frame stays armed for the other.
    assert!(manager.handle_ptm_event(&vmi, &page_out(view, (VA, ROOT), CODE)).expect("disarmed"));
    assert!(manager.contains_by_event(&int3(view, CODE, VA, ROOT), ()));
    assert!(manager.handle_ptm_event(&vmi, &page_out(view, (VA, ROOT2), CODE)).expect("disarmed"));
    assert!(untouched(&vmi));
    // Another frame under another root; then all leave with any one of the roots.
    assert!(manager.handle_ptm_event(&vmi, &page_in(view, (VA, ROOT2), CODE)).expect("armed"));
    assert!(manager.insert_with_hint(&vmi, global(third), Some(in_page(OTHER, VA))).expect("another frame"));
    assert_eq!(vmi.driver().remapped().len(), 2);
    assert!(manager.remove(&vmi, global(third)).expect("removed"));
    assert!(untouched(&vmi) && manager.is_empty());
}

#[test]
fn removing_a_global_breakpoint_takes_pending_roots_along() {
    let (vmi, view, _) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    let global = |root| Breakpoint::new((VA, root), view).global();
    assert!(manager.insert_with_hint(&vmi, global(ROOT), Some(in_page(CODE, VA))).expect("new"));
    assert!(manager.insert_with_hint(&vmi, global(ROOT2), None).expect("new and pending"));
    assert!(manager.remove_with_hint(&vmi, global(ROOT2), None).expect("removed"));
    assert!(untouched(&vmi) && manager.is_empty());
    assert!(!manager.handle_ptm_event(&vmi, &page_in(view, (VA, ROOT2), CODE)).expect("nothing waits"));
}

#[test]
fn global_breakpoints_of_two_owners_and_a_local_one_share_an_address() {
    let (vmi, view, _) = guest();
    let mut manager = BreakpointManager::<Int3, u8>::new();
    let pa = in_page(CODE, VA);
    let global = |root, key| Breakpoint::new((VA, root), view).global().with_key(key);
    let local = Breakpoint::new((VA, ROOT2), view).with_key(1).with_tag("local");
    manager.insert_with_hint(&vmi, global(ROOT, 1), Some(pa)).expect("inserted");
    manager.insert_with_hint(&vmi, global(ROOT, 2), Some(pa)).expect("inserted");
    manager.insert_with_hint(&vmi, local, Some(pa)).expect("inserted");
    let tag = |manager: &BreakpointManager<Int3, u8>, root, key| {
        manager.get_by_event(&int3(view, CODE, VA, root), key).map(|hit| hit.tag())
    };
    assert_eq!(tag(&manager, ROOT2, 1), Some("local"), "the local one hits in its own address space");
    assert_eq!(tag(&manager, Pa(0x77_0000), 1), Some(""));
    assert!(manager.remove(&vmi, local).expect("removed"));
    assert_eq!(tag(&manager, ROOT2, 1), Some(""));
    assert!(manager.remove(&vmi, global(Pa(0x55_0000), 1)).expect("removed by a root of no matter"));
    assert_eq!((tag(&manager, ROOT2, 1), tag(&manager, ROOT2, 2)), (None, Some("")));
    assert_eq!(fetched(&vmi, view, pa), 0xcc);
}

#[test]
fn removal_by_event_reaches_every_view_and_says_what_is_left() {
    let (vmi, view, other) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    let pa = in_page(CODE, VA);
    let near = Breakpoint::new((VA + 1, ROOT), view);
    manager.insert_with_hint(&vmi, at(view), Some(pa)).expect("inserted");
    manager.insert_with_hint(&vmi, at(other), Some(in_page(OTHER, VA))).expect("inserted");
    manager.insert_with_hint(&vmi, near, Some(pa + 1)).expect("inserted");
    assert_eq!(manager.remove_by_event(&vmi, &int3(None, CODE, VA, ROOT), ()).ok(), Some(None));
    assert_eq!(manager.remove_by_event(&vmi, &int3(view, CODE, VA, ROOT2), ()).ok(), Some(None));
    assert_eq!(manager.remove_by_event(&vmi, &int3(view, CODE, VA, ROOT), ()).ok(), Some(Some(false)));
    assert_eq!(fetched(&vmi, other, in_page(OTHER, VA)), original(&vmi, in_page(OTHER, VA)));
    assert_eq!(manager.remove_by_event(&vmi, &int3(view, CODE, VA + 1, ROOT), ()).ok(), Some(Some(true)));
    assert_eq!(manager.remove_by_event(&vmi, &int3(view, CODE, VA + 1, ROOT), ()).ok(), Some(None));
    assert!(untouched(&vmi) && manager.is_empty());
}

/// Removal by event takes the breakpoint that caused it: an event that another one caused, or none, takes nothing.
#[test]
fn removal_by_event_takes_no_other_breakpoint() {
    let (vmi, view, other) = guest();
    let pa = in_page(CODE, VA);
    let wanted = |view, key| Breakpoint::new((VA, ROOT), view).with_key(key);
    let left = |manager: &BreakpointManager<Int3, u8>| {
        let mut left: Vec<_> = manager.breakpoints().map(|state| (state.breakpoint, state.pa)).collect();
        left.sort_unstable_by_key(|(breakpoint, _)| (breakpoint.key(), breakpoint.view(), breakpoint.ctx().root));
        left
    };
    for global in [false, true] {
        let form = |breakpoint: Breakpoint<u8>| if global { breakpoint.global() } else { breakpoint };
        let mut manager = BreakpointManager::<Int3, u8>::new();
        manager.insert_with_hint(&vmi, form(wanted(view, 0)), Some(pa)).expect("inserted");
        manager.insert_with_hint(&vmi, form(wanted(other, 0)), None).expect("pending");
        manager.insert_with_hint(&vmi, form(wanted(view, 1)), Some(pa)).expect("inserted");
        let before = left(&manager);
        vmi.driver().take_calls();
        let events = [
            // Another frame than the one that it is in, another view, in which it waits; another address space.
            int3(view, OTHER, VA, ROOT),
            int3(other, CODE, VA, ROOT),
            int3(View(9), CODE, VA, ROOT),
            int3(view, CODE, VA + 1, ROOT),
            int3(view, CODE, VA, if global { ROOT } else { ROOT2 }),
        ];
        for (nth, event) in events.iter().enumerate() {
            let key = if global && nth == 4 { 2 } else { 0 };
            assert_eq!(manager.remove_by_event(&vmi, event, key).ok(), Some(None), "{event:?}");
            assert_eq!((left(&manager), vmi.driver().take_calls()), (before.clone(), Vec::new()), "{event:?}");
        }
        // Its own takes it from all views, and nobody else's.
        assert_eq!(manager.remove_by_event(&vmi, &int3(view, CODE, VA, ROOT), 0).ok(), Some(Some(false)));
        assert_eq!(left(&manager), [(form(wanted(view, 1)), Some(pa))]);
        manager.clear(&vmi).expect("cleared");
    }

    // A local one and one for all address spaces, of one key: each by its own event.
    let mut manager = BreakpointManager::<Int3, u8>::new();
    let global = Breakpoint::new((VA, ROOT2), view).global().with_key(0);
    manager.insert_with_hint(&vmi, wanted(view, 0), Some(pa)).expect("inserted");
    manager.insert_with_hint(&vmi, global, Some(pa)).expect("inserted");
    assert_eq!(manager.remove_by_event(&vmi, &int3(view, CODE, VA, ROOT), 0).ok(), Some(Some(false)));
    assert_eq!(left(&manager), [(global, Some(pa))]);
    assert_eq!(manager.remove_by_event(&vmi, &int3(view, CODE, VA, ROOT), 0).ok(), Some(Some(true)));
    assert!(manager.is_empty() && untouched(&vmi));
}

#[test]
fn a_breakpoint_in_an_address_space_that_cannot_be_is_refused() {
    let (vmi, view, _) = guest();
    let next = Cell::new(8);
    let space = Tables::new(vmi.driver(), &next, 4);
    for direct in [true, false] {
        vmi.driver().set_direct(direct);
        let mut manager = BreakpointManager::<Int3>::new();
        for root in [Pa(16 << 12), Pa(0x10_0000), Pa(0x000f_ffff_ffff_f000)] {
            for breakpoint in [Breakpoint::new((VA, root), view), Breakpoint::new((VA, root), view).global()] {
                let refused = manager.insert(&vmi, breakpoint);
                assert!(matches!(refused, Err(VmiError::OutOfBounds(at)) if at == root), "{refused:?}");
                assert!(manager.is_empty());
            }
        }
        // One that is in memory and maps nothing waits, also the last frame.
        for root in [space.root(), Pa(15 << 12)] {
            assert!(manager.insert(&vmi, Breakpoint::new((VA, root), view)).expect("pending"));
        }
        manager.clear(&vmi).expect("cleared");
    }
}

#[test]
fn removal_by_view_counts_pending_ones_and_outlives_the_view() {
    let (vmi, view, other) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    assert!(!manager.remove_by_view(&vmi, view).expect("nothing there"));
    manager.insert_with_hint(&vmi, at(view), None).expect("inserted");
    manager.insert_with_hint(&vmi, at(other), Some(in_page(CODE, VA))).expect("inserted");
    assert!(manager.remove_by_view(&vmi, view).expect("a pending one"));
    assert!(!manager.remove_by_view(&vmi, view).expect("nothing left"));
    vmi.driver().destroy_view(other).expect("destroyed");
    assert!(manager.remove_by_view(&vmi, other).expect("gone with its view"));
    assert!(manager.is_empty() && manager.clear(&vmi).is_ok());
    assert!(vmi.driver().allocated().is_empty());
}

#[test]
fn an_insertion_that_fails_is_not_there() {
    let (vmi, view, _) = guest();
    // Allocation, permission, read, write, remapping, permission: each in its turn.
    for nth in 0..6 {
        let mut manager = BreakpointManager::<Int3>::new();
        vmi.driver().fail_nth(nth);
        assert!(manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).is_err(), "call {nth} failed");
        assert!(manager.is_empty() && untouched(&vmi));
        assert!(manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).expect("a retry works"));
        manager.clear(&vmi).expect("cleared");
        assert!(vmi.driver().allocated().is_empty());
    }
    let mut manager = BreakpointManager::<Int3>::new();
    vmi.driver().fail_nth(6);
    assert!(manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).is_ok(), "there is no seventh call");
}

#[test]
fn an_insertion_that_could_not_be_taken_back_is_known() {
    let (vmi, view, _) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    // The page cannot be monitored once it is shown, and the view cannot be reset.
    let mut shown = false;
    vmi.driver().fail_if(move |call| {
        shown |= matches!(call, Call::ChangeViewGfn { .. });
        shown && matches!(call, Call::SetMemoryAccess { .. } | Call::ResetViewGfn { .. })
    });
    assert!(manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).is_err());
    assert_eq!(fetched(&vmi, view, in_page(CODE, VA)), 0xcc);
    assert!(manager.contains_by_address((VA, ROOT), ()));
    assert!(manager.remove(&vmi, at(view)).is_err());
    vmi.driver().stop_failing();
    // To insert it again finishes it.
    assert!(!manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).expect("known"));
    assert_eq!(vmi.driver().access(view, CODE), Some(MemoryAccess::X));
    assert!(manager.remove(&vmi, at(view)).expect("removed"));
    assert!(untouched(&vmi));
}

#[test]
fn a_removal_that_fails_leaves_it_armed_and_monitored() {
    let (vmi, view, _) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).expect("inserted");
    // Showing the page, restoring the frame, permission: each in its turn.
    for nth in 0..3 {
        vmi.driver().fail_nth_change(nth);
        assert!(manager.remove(&vmi, at(view)).is_err());
        assert!(manager.contains_by_address((VA, ROOT), ()));
        assert_eq!(vmi.driver().access(view, CODE), Some(MemoryAccess::X));
        assert_eq!(fetched(&vmi, view, in_page(CODE, VA)), 0xcc);
    }
    // Where it cannot be put back either, it is out, and the books say so.
    let restoring: fn(&Call) -> bool = |call| matches!(call, Call::Write { .. });
    for kind in [restoring, |call| matches!(call, Call::SetMemoryAccess { .. })] {
        vmi.driver().fail_if(kind);
        assert!(manager.remove(&vmi, at(view)).is_err());
        assert!(!manager.contains_by_address((VA, ROOT), ()) && !manager.contains_page(view, CODE));
        assert!(untouched(&vmi) && manager.len() == 1);
        vmi.driver().stop_failing();
        assert!(!manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).expect("armed again"));
        assert_eq!(fetched(&vmi, view, in_page(CODE, VA)), 0xcc);
    }
    assert!(manager.remove(&vmi, at(view)).expect("a retry works"));
    manager.clear(&vmi).expect("cleared");
    assert!(untouched(&vmi) && vmi.driver().allocated().is_empty());
}

#[test]
fn a_page_that_could_not_be_opened_again_is_opened_later() {
    let (vmi, view, other) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    vmi.driver().fail_if(|call| matches!(call, Call::ChangeViewGfn { .. } | Call::ResetViewGfn { .. }));
    assert!(manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).is_err());
    assert!(manager.is_empty() && vmi.driver().remapped().is_empty());
    assert_eq!(vmi.driver().access(view, CODE), Some(MemoryAccess::X), "closed for nothing");
    vmi.driver().stop_failing();
    manager.insert_with_hint(&vmi, at(other), Some(in_page(OTHER, VA))).expect("inserted");
    assert_eq!(vmi.driver().access(view, CODE), Some(MemoryAccess::RWX), "any later call makes up for it");

    // One that has got a breakpoint by then stays closed.
    vmi.driver().fail_if(|call| matches!(call, Call::ChangeViewGfn { .. } | Call::ResetViewGfn { .. }));
    assert!(manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).is_err());
    let mut first = true;
    vmi.driver().fail_if(move |call| matches!(call, Call::ResetViewGfn { .. }) && std::mem::take(&mut first));
    manager.insert_with_hint(&vmi, at(view), Some(in_page(CODE, VA))).expect("inserted");
    assert!(manager.remove(&vmi, at(other)).expect("removed"));
    assert_eq!(
        (vmi.driver().access(view, CODE), fetched(&vmi, view, in_page(CODE, VA))),
        (Some(MemoryAccess::X), 0xcc)
    );
    manager.clear(&vmi).expect("cleared");
    assert!(untouched(&vmi) && vmi.driver().allocated().is_empty());
}

#[test]
fn clear_tries_everything() {
    let (vmi, view, other) = guest();
    let mut manager = BreakpointManager::<Int3>::new();
    for (n, gfn) in [CODE, OTHER, Gfn(6)].into_iter().enumerate() {
        let va = VA + n as u64 * 0x1000;
        manager.insert_with_hint(&vmi, Breakpoint::new((va, ROOT), view), Some(in_page(gfn, va))).expect("inserted");
    }
    manager.insert_with_hint(&vmi, at(other), None).expect("inserted");
    vmi.driver().fail_if(|call| matches!(call, Call::ResetViewGfn { gfn, .. } if *gfn == OTHER));
    assert!(manager.clear(&vmi).is_err());
    assert_eq!((manager.len(), vmi.driver().remapped().len()), (1, 1), "only what could not be removed is left");
    vmi.driver().stop_failing();
    assert!(manager.clear(&vmi).is_ok());
    assert!(manager.is_empty() && untouched(&vmi) && vmi.driver().allocated().is_empty());
}

#[test]
fn odd_addresses_views_and_frames_are_answered() {
    let vmi = core(1);
    let mut manager = BreakpointManager::<Int3>::new();
    // Beyond memory, in a view that never was, at the ends of the address space: answers or errors, never a panic.
    for view in [View(0), View(7), View(u16::MAX)] {
        for va in [0, 0xfff, u64::MAX] {
            for pa in [None, Some(Pa(0)), Some(Pa(u64::MAX))] {
                let breakpoint = Breakpoint::new((Va(va), Pa(u64::MAX)), view);
                let _ = manager.insert(&vmi, breakpoint);
                let _ = manager.insert_with_hint(&vmi, breakpoint.global(), pa);
                let event = PageEntryUpdate { view, ctx: breakpoint.ctx(), pa: pa.unwrap_or(Pa(1)) };
                let _ = manager.handle_ptm_event(&vmi, &PageTableMonitorEvent::PageIn(event));
                let _ = manager.handle_ptm_event(&vmi, &PageTableMonitorEvent::PageOut(event));
                let _ = manager.remove_by_event(&vmi, &int3(view, Gfn(u64::MAX), Va(va), Pa(u64::MAX)), ());
                let _ = manager.remove(&vmi, breakpoint);
            }
        }
    }
    manager.clear(&vmi).expect("cleared");
    assert!(untouched(&vmi));
}

#[test]
fn late_events_of_a_breakpoint_that_is_gone_find_nothing() {
    let (vmi, view, other) = guest();
    let pa = in_page(CODE, VA);
    let mut manager = BreakpointManager::<Int3>::new();
    let breakpoint = Breakpoint::new((VA, ROOT), view);
    manager.insert_with_hint(&vmi, breakpoint, Some(pa)).expect("inserted");
    let event = int3(view, CODE, VA, ROOT);
    assert!(manager.contains_by_event(&event, ()));
    // Two vCPUs hit it; the answer to the first event removes it.
    assert_eq!(manager.remove_by_event(&vmi, &event, ()).ok(), Some(Some(true)));
    vmi.driver().take_calls();
    for _ in 0..2 {
        assert_eq!(manager.get_by_event(&event, ()), None);
        assert_eq!(manager.remove_by_event(&vmi, &event, ()).ok(), Some(None));
        assert_eq!(Int3::is_breakpoint(&vmi, &event).ok(), Some(false), "stale, not the guest's own");
    }
    assert_eq!(manager.remove(&vmi, breakpoint).ok(), Some(false));
    let late = [page_out(view, (VA, ROOT), CODE), page_in(view, (VA, ROOT), OTHER)];
    assert_eq!(manager.handle_ptm_events(&vmi, late).ok(), Some(false));
    assert_eq!(vmi.driver().take_calls(), [], "nothing was touched");

    // The same for a view that is gone with its breakpoints, and for an event without a view.
    manager.insert_with_hint(&vmi, breakpoint, Some(pa)).expect("inserted");
    manager.insert_with_hint(&vmi, Breakpoint::new((VA, ROOT), other), Some(pa)).expect("inserted");
    vmi.destroy_view(view).expect("exists");
    assert_eq!(manager.remove_by_view(&vmi, view).ok(), Some(true));
    for event in [int3(view, CODE, VA, ROOT), int3(None, CODE, VA, ROOT), int3(View(99), CODE, VA, ROOT)] {
        assert_eq!(manager.get_by_event(&event, ()), None);
        assert_eq!(Int3::is_breakpoint(&vmi, &event).ok(), Some(false));
    }
    assert!(manager.contains_by_event(&int3(other, CODE, VA, ROOT), ()));
    manager.clear(&vmi).expect("cleared");
    assert!(untouched(&vmi) && vmi.driver().allocated().is_empty());
}
