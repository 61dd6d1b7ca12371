//! vCPUs and memory that are plugged in and out while the guest is watched.
//!
//! QEMU has no event for a vCPU that was plugged in, and none for a DIMM, so both are asked for once a second (about
//! 0.1 ms each). A new vCPU knows nothing of the breakpoints that the stub was told before (QEMU: `gdb_breakpoint_insert`
//! goes through the vCPUs that are there): they are all set again. What a vCPU that is gone stood at is forgotten.

use serde_json::{Value, json};

use super::{control::Control, qmp::Qmp};
use crate::engine::{addr::VcpuId, arch::amd64::Amd64Registers, driver::News, error::VmiError};

/// More vCPUs than QEMU can have.
const MOST_VCPUS: usize = 4096;

/// The vCPUs that there are, in order.
///
/// # Errors
/// As [`Qmp::execute`].
pub(super) fn vcpus(qmp: &mut Qmp) -> Result<Vec<VcpuId>, VmiError> {
    let cpus = qmp.execute("query-cpus-fast", json!({}))?;
    let index = |cpu: &Value| u16::try_from(cpu.get("cpu-index")?.as_u64()?).ok().map(VcpuId);
    let mut vcpus: Vec<VcpuId> = cpus.as_array().into_iter().flatten().filter_map(index).take(MOST_VCPUS).collect();
    vcpus.sort_unstable();
    vcpus.dedup();
    Ok(vcpus)
}

/// Whether some vCPU was plugged in, and so may be unplugged; those of the command line cannot be.
fn are_unpluggable(qmp: &mut Qmp) -> bool {
    let cpus = qmp.execute("query-cpus-fast", json!({})).unwrap_or_default();
    let path = |cpu: &Value| cpu.get("qom-path").and_then(Value::as_str).unwrap_or_default().to_owned();
    cpus.as_array().into_iter().flatten().any(|cpu| path(cpu).starts_with("/machine/peripheral"))
}

/// The memory that the machine was given, of which some may lie under the firmware; `None` where QEMU does not tell.
pub(super) fn memory_bytes(qmp: &mut Qmp) -> Option<u64> {
    let summary = qmp.execute("query-memory-size-summary", json!({})).ok()?;
    let part = |name| summary.get(name).and_then(Value::as_u64);
    Some(part("base-memory")?.saturating_add(part("plugged-memory").unwrap_or(0)))
}

impl Control {
    /// Looks whether vCPUs or memory have come or gone.
    pub fn look_at_plugs(&mut self) -> Result<(), VmiError> {
        let now = memory_bytes(&mut self.qmp());
        if now.is_some() && now != self.outside.memory_bytes {
            self.outside.memory_bytes = now;
            self.outside.memory_changed = true;
        }
        self.look_at_vcpus()
    }

    /// The same for vCPUs alone.
    pub fn look_at_vcpus(&mut self) -> Result<(), VmiError> {
        let now = match vcpus(&mut self.qmp()) {
            Ok(now) if !now.is_empty() => now,
            Err(error @ VmiError::Lost(_)) => return self.explained(Err(error)),
            // Nothing that can be followed.
            Ok(_) | Err(_) => return Ok(()),
        };
        if now == self.vcpus {
            return Ok(());
        }
        let gone: Vec<VcpuId> = self.vcpus.iter().copied().filter(|vcpu| !now.contains(vcpu)).collect();
        let new: Vec<VcpuId> = now.iter().copied().filter(|vcpu| !self.vcpus.contains(vcpu)).collect();
        self.vcpus = now;
        for vcpu in &gone {
            self.forget_vcpu(*vcpu);
        }
        let list = |vcpus: &[VcpuId]| vcpus.iter().map(VcpuId::to_string).collect::<Vec<_>>().join(", ");
        let mut parts = Vec::new();
        if !new.is_empty() {
            parts.push(format!("vCPU {} plugged in", list(&new)));
        }
        if !gone.is_empty() {
            parts.push(format!("vCPU {} unplugged", list(&gone)));
        }
        self.outside.tell(News::Changed(format!("{}: there are {} now", parts.join(", "), self.vcpus.len())));
        self.teach_new_vcpus()
    }

    /// The registers of a vCPU; `None` when it has been unplugged.
    pub fn registers_if_there(&mut self, vcpu: VcpuId) -> Result<Option<Amd64Registers>, VmiError> {
        match self.registers(vcpu) {
            Ok(registers) => Ok(Some(registers)),
            Err(error @ VmiError::Lost(_)) => Err(error),
            Err(error) => {
                self.look_at_vcpus()?;
                if self.vcpus.contains(&vcpu) { Err(error) } else { Ok(None) }
            }
        }
    }

    /// To be called when the stub was connected.
    pub fn note_unpluggable(&mut self) {
        let unpluggable = are_unpluggable(&mut self.qmp());
        if let Some(stub) = &mut self.stub {
            stub.unpluggable = unpluggable;
        }
    }

    /// Nothing is left to be told of, or to be done on, a vCPU that is gone.
    fn forget_vcpu(&mut self, vcpu: VcpuId) {
        self.pending.retain(|event| event.vcpu_id() != vcpu);
        self.passed.retain(|&(passed, _)| passed != vcpu);
        self.let_past.retain(|&(let_past, _)| let_past != vcpu);
        self.step_wanted.retain(|&wanted| wanted != vcpu);
        self.idt.remove(&vcpu);
    }

    /// Makes the stub's list of threads and every vCPU's breakpoints what they should be.
    fn teach_new_vcpus(&mut self) -> Result<(), VmiError> {
        if self.stub.is_none() {
            return Ok(());
        }
        let ran = self.running;
        let unpluggable = are_unpluggable(&mut self.qmp());
        self.hold()?;
        if let Some(stub) = &mut self.stub {
            stub.unpluggable = unpluggable;
        }
        self.with_stub(|control, stub| control.renew_list(stub, None))?;
        if ran && self.wants_to_run() && self.pending.is_empty() { self.go_on() } else { Ok(()) }
    }
}
