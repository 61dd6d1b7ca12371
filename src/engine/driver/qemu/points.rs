//! Breakpoints and watchpoints, which the stub keeps outside of guest memory.

use super::control::Control;
use crate::engine::{addr::Va, driver::MemoryAccess, error::VmiError};

impl Control {
    pub fn set_breakpoint(&mut self, va: Va) -> Result<(), VmiError> {
        if self.breakpoints.contains_key(&va) {
            // The stub would count it twice.
            return Ok(());
        }
        self.attach_stub()?;
        self.hold()?;
        let Some(stub) = &mut self.stub else { return Ok(()) };
        // KVM's software breakpoints need the page to be mapped right now and show in memory; the four hardware ones
        // do not.
        let kinds: &[u8] = if self.kvm { &[1, 0] } else { &[0] };
        let mut result = Ok(());
        for &kind in kinds {
            result = stub.point(true, kind, va.0, 1);
            if result.is_ok() {
                self.breakpoints.insert(va, kind);
                break;
            }
        }
        result
    }

    pub fn clear_breakpoint(&mut self, va: Va) -> Result<(), VmiError> {
        let Some(&kind) = self.breakpoints.get(&va) else { return Ok(()) };
        self.listen()?;
        self.hold()?;
        if let Some(stub) = &mut self.stub {
            stub.point(false, kind, va.0, 1)?;
        }
        self.breakpoints.remove(&va);
        self.retried.retain(|retried| retried.va != va);
        Ok(())
    }

    pub fn set_watchpoint(&mut self, va: Va, bytes: u64, access: MemoryAccess) -> Result<(), VmiError> {
        let watchpoint = (va, bytes, watch_kind(access)?);
        if self.watchpoints.contains(&watchpoint) {
            return Ok(());
        }
        self.attach_stub()?;
        self.hold()?;
        if let Some(stub) = &mut self.stub {
            stub.point(true, watchpoint.2, va.0, bytes)?;
            self.watchpoints.insert(watchpoint);
        }
        Ok(())
    }

    pub fn clear_watchpoint(&mut self, va: Va, bytes: u64, access: MemoryAccess) -> Result<(), VmiError> {
        let watchpoint = (va, bytes, watch_kind(access)?);
        if !self.watchpoints.contains(&watchpoint) {
            return Ok(());
        }
        self.listen()?;
        self.hold()?;
        if let Some(stub) = &mut self.stub {
            stub.point(false, watchpoint.2, va.0, bytes)?;
        }
        self.watchpoints.remove(&watchpoint);
        Ok(())
    }
}

/// The stub's kind of watchpoint.
fn watch_kind(access: MemoryAccess) -> Result<u8, VmiError> {
    match access {
        MemoryAccess::W => Ok(2),
        MemoryAccess::R => Ok(3),
        MemoryAccess::RW => Ok(4),
        _ => Err(VmiError::Unsupported { what: "a watchpoint on anything but reads and writes" }),
    }
}

/// What a watchpoint of this kind watches for.
pub(super) fn watch_access(kind: u8) -> MemoryAccess {
    match kind {
        2 => MemoryAccess::W,
        3 => MemoryAccess::R,
        _ => MemoryAccess::RW,
    }
}
