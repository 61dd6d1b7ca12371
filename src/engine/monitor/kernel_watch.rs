//! Notices that the guest's kernel was replaced without a reset, by kexec or by a snapshot of another boot.
//!
//! A single look proves nothing: a guest may be caught in the middle of a change, in a call of its firmware, or in a guest
//! of its own, whose page tables the hypervisor then shows. So a kernel is given up after several looks in a row that found
//! it changed, or found a vCPU elsewhere while its clock stood still.

use std::time::{Duration, Instant};

use super::{Monitor, Platform};
use crate::engine::{
    os::{VitalSigns, VmiOs},
    session::VmiSession,
    snapshot::EventKind,
};

/// Looks in a row that must find no kernel.
const DOUBTS: u32 = 4;
/// How long after somebody has stopped the guest and let it go on that is taken for the cause.
const CAUSE: Duration = Duration::from_secs(10);

/// Another kernel was started by the one that was there.
const BY_KEXEC: &str = "another kernel was started in the guest without a reset (kexec)";
/// All of the guest's memory is another's.
const BY_SNAPSHOT: &str = "the guest's memory was replaced (a snapshot was loaded, or a migration came in)";

/// What the last looks at the kernel have shown.
#[derive(Debug, Default)]
pub(super) struct KernelWatch {
    doubts: u32,
    ticks: Option<u64>,
    uptime_ns: Option<u64>,
    /// When somebody has last stopped the guest and let it go on.
    pub(super) interrupted: Option<Instant>,
    /// Why the kernel is given up.
    pub(super) replaced: Option<&'static str>,
}

impl KernelWatch {
    /// Takes a look in: the kernel's signs of life, whether some vCPU was somewhere else, whether the guest runs. Answers
    /// whether its clock has gone back.
    fn look(&mut self, signs: VitalSigns, is_elsewhere: bool, runs: bool) -> bool {
        let before = std::mem::replace(&mut self.ticks, signs.ticks);
        let (ticked, went_back) = match (before, signs.ticks) {
            (Some(before), Some(now)) => (now > before, now < before),
            // Without a clock, nobody is given up for it.
            _ => (true, false),
        };
        let doubtful = !signs.is_intact || (runs && is_elsewhere && !ticked);
        self.doubts = if doubtful { self.doubts + 1 } else { 0 };
        if self.doubts >= DOUBTS {
            let was_interrupted = self.interrupted.is_some_and(|at| at.elapsed() < CAUSE);
            self.replaced = Some(if was_interrupted { BY_SNAPSHOT } else { BY_KEXEC });
        }
        went_back && signs.is_intact
    }
}

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// Looks whether the kernel is still there, after the registers of all vCPUs were read; `mapped` is what each of
    /// them says ([`VmiOs::is_mapped`]).
    pub(super) fn watch_kernel(&mut self, vmi: VmiSession<'_, D, Os>, mapped: &[Option<bool>]) {
        let os = vmi.underlying_os();
        let Some(signs) = os.vital_signs(vmi) else { return };
        let runs = self.run(vmi.core()).is_running();
        let went_back = self.kernel.look(signs, mapped.contains(&Some(false)), runs);
        let uptime = os.uptime_ns(vmi);
        let before = std::mem::replace(&mut self.kernel.uptime_ns, uptime);
        if went_back {
            let by = match (before, uptime) {
                (Some(before), Some(now)) if now < before => format!(" by {} s", (before - now) / 1_000_000_000),
                _ => String::new(),
            };
            let text = format!("the guest's memory was replaced: it has gone back in time{by} (a snapshot was loaded)");
            tracing::info!("{text}");
            self.log.say(vmi.driver().clock_ns(), EventKind::Vm, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(is_intact: bool, ticks: u64) -> VitalSigns {
        VitalSigns { is_intact, ticks: Some(ticks) }
    }

    #[test]
    fn a_kernel_that_lives_is_never_given_up() {
        let mut watch = KernelWatch::default();
        for n in 0..100 {
            // Its vCPU runs a guest of its own, or its firmware; now and then it is caught in a change.
            watch.look(signs(n % 3 != 0, n), true, true);
        }
        // Paused, or asleep with its clock standing: nobody is elsewhere for good.
        for _ in 0..100 {
            watch.look(signs(true, 100), true, false);
            watch.look(signs(true, 100), false, true);
        }
        let blind = VitalSigns { is_intact: true, ticks: None };
        (0..100).for_each(|_| assert!(!watch.look(blind, true, true)));
        assert_eq!(watch.replaced, None);
    }

    #[test]
    fn one_that_another_has_replaced_is() {
        let mut watch = KernelWatch::default();
        // Its memory lies there as it was left, and its clock stands.
        (0..=DOUBTS).for_each(|_| assert!(!watch.look(signs(true, 7), true, true)));
        assert_eq!(watch.replaced, Some(BY_KEXEC));
        let mut watch = KernelWatch { interrupted: Some(Instant::now()), ..KernelWatch::default() };
        // Another boot's memory, of a guest that stands.
        (0..DOUBTS).for_each(|_| assert!(!watch.look(signs(false, 7), true, false)));
        assert_eq!(watch.replaced, Some(BY_SNAPSHOT));
    }

    #[test]
    fn a_clock_that_goes_back_is_told_once() {
        let mut watch = KernelWatch::default();
        assert!(!watch.look(signs(true, 500), false, true));
        assert!(watch.look(signs(true, 100), false, true));
        assert!(!watch.look(signs(true, 101), false, true));
        assert_eq!(watch.replaced, None);
    }
}
