//! One virtual CPU: its registers, and where it stands between two instructions.

use crate::engine::{
    addr::View,
    arch::amd64::{Amd64Registers, EventMonitor, Interrupt, Segment},
};

/// Selectors of a 64-bit Windows kernel's GDT.
pub(super) const KERNEL_CS: u16 = 0x10;
/// Kernel stack segment.
pub(super) const KERNEL_SS: u16 = 0x18;
/// 64-bit user code.
pub(super) const USER_CS: u16 = 0x33;
/// User data and stack.
pub(super) const USER_SS: u16 = 0x2b;

/// A virtual CPU.
#[derive(Clone, Debug)]
pub(super) struct Vcpu {
    pub(super) registers: Amd64Registers,
    /// Base of the task state segment, whose RSP0 an interrupt out of user mode switches to.
    pub(super) tss_base: u64,
    pub(super) view: View,
    /// In HLT.
    pub(super) halted: bool,
    /// An exception happened while another was delivered, twice: nothing runs here any more.
    pub(super) dead: bool,
    /// Waits for the answer to an event.
    pub(super) waiting: bool,
    /// A singlestep event is wanted after the next instruction.
    pub(super) singlestep: bool,
    /// The view to go back to after the next instruction.
    pub(super) fast_return: Option<View>,
    /// The next instruction runs without regard to the view's permissions.
    pub(super) emulate: bool,
    /// The next instruction's event was answered already: let it happen.
    pub(super) granted: bool,
    /// A step of the paused machine was interrupted by an event and goes on after the answer.
    pub(super) owes_step: bool,
    /// STI was the last instruction: no external interrupt is taken before the next one is over (Intel SDM volume 2B,
    /// "STI"), so that STI and HLT together lose no wake-up.
    pub(super) sti_shadow: bool,
    /// An interrupt on its way into the guest; no event any more.
    pub(super) delivering: Option<Interrupt>,
    /// An interrupt that the session injected and that was not taken yet.
    pub(super) injected: Option<Interrupt>,
}

impl Vcpu {
    pub(super) fn new(registers: Amd64Registers, tss_base: u64) -> Self {
        Self {
            registers,
            tss_base,
            view: View(0),
            halted: false,
            dead: false,
            waiting: false,
            singlestep: false,
            fast_return: None,
            emulate: false,
            granted: false,
            owes_step: false,
            sti_shadow: false,
            delivering: None,
            injected: None,
        }
    }

    /// Whether it takes external interrupts now. None is taken while stepping (as Intel's monitor trap flag is used by
    /// hypervisors: interrupts are held back), or a step would end in an interrupt handler.
    pub(super) fn is_interruptible(&self) -> bool {
        self.registers.gp.rflags & Amd64Registers::RFLAGS_IF != 0
            && !self.sti_shadow
            && !self.waiting
            && !self.dead
            && !self.singlestep
            && self.fast_return.is_none()
            && self.delivering.is_none()
    }

    /// Puts everything back that a session asked for.
    pub(super) fn reset(&mut self) {
        self.view = View(0);
        self.waiting = false;
        self.singlestep = false;
        self.fast_return = None;
        self.emulate = false;
        self.granted = false;
        self.owes_step = false;
        self.injected = None;
    }
}

/// A code or stack segment by its selector, as the GDT of the guest has it.
pub(super) fn segment(selector: u16) -> Segment {
    Segment { selector, base: 0, long: matches!(selector & !3, 0x10 | 0x30) }
}

/// What a session wants to be told of.
#[derive(Clone, Debug, Default)]
pub(super) struct Monitors(Vec<EventMonitor>);

impl Monitors {
    #[inline]
    pub(super) fn on(&self, what: EventMonitor) -> bool {
        !self.0.is_empty() && self.0.contains(&what)
    }

    pub(super) fn enable(&mut self, what: EventMonitor) {
        if !self.0.contains(&what) {
            self.0.push(what);
        }
    }

    pub(super) fn disable(&mut self, what: EventMonitor) {
        self.0.retain(|&on| on != what);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
