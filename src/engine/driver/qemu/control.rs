//! Who makes the guest run and stop.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{QemuOptions, cpu_text, qmp::Qmp, transport::wait_readable};
use crate::engine::{
    addr::{Pa, Va, VcpuId},
    arch::amd64::{Amd64, Amd64Registers},
    driver::MemoryAccess,
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
};

/// The guest's run state and everything that changes it.
pub(super) struct Control {
    qmp: Qmp,
    pid: Option<u32>,
    vcpus: Vec<VcpuId>,
    running: bool,
    pauses: u32,
    resets: u64,
}

const SOON: VmiError = VmiError::Unsupported { what: "the gdb stub" };

impl Control {
    pub fn new(mut qmp: Qmp, pid: Option<u32>, _: &QemuOptions) -> Result<Self, VmiError> {
        let cpus = qmp.execute("query-cpus-fast", json!({}))?;
        let index = |cpu: &Value| u16::try_from(cpu.get("cpu-index")?.as_u64()?).ok().map(VcpuId);
        let vcpus = cpus.as_array().into_iter().flatten().filter_map(index).collect();
        let mut control = Self { qmp, pid, vcpus, running: true, pauses: 0, resets: 0 };
        control.ask_status()?;
        Ok(control)
    }

    fn ask_status(&mut self) -> Result<(), VmiError> {
        let status = self.qmp.execute("query-status", json!({}))?;
        self.running = status.get("running") == Some(&Value::Bool(true));
        Ok(())
    }

    pub fn vcpus(&self) -> u16 {
        u16::try_from(self.vcpus.len()).unwrap_or(u16::MAX)
    }
    pub fn is_stub_attached(&self) -> bool {
        false
    }
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }
    pub fn version(&self) -> (u64, u64) {
        self.qmp.version()
    }
    pub fn is_paused(&self) -> bool {
        !self.running
    }
    pub fn notices(&self) -> &[String] {
        &[]
    }
    pub fn resets(&self) -> u64 {
        self.resets
    }
    pub fn ask_monitor(&mut self, line: &str, vcpu: Option<u16>) -> Result<String, VmiError> {
        self.qmp.human(line, vcpu)
    }
    pub fn write_physical(&mut self, _: Pa, _: &[u8]) -> Result<(), VmiError> {
        Err(SOON)
    }

    pub fn registers(&mut self, vcpu: VcpuId) -> Result<Amd64Registers, VmiError> {
        if !self.vcpus.contains(&vcpu) {
            return Err(VmiError::VcpuNotFound(vcpu));
        }
        let text = self.qmp.human("info registers", Some(vcpu.0))?;
        let cpu = cpu_text::parse(&text);
        Ok(cpu.ok_or_else(|| VmiError::driver("reading registers from QEMU's monitor", "it printed none"))?.registers)
    }

    pub fn set_registers(&mut self, _: VcpuId, _: &Amd64Registers) -> Result<(), VmiError> {
        Err(SOON)
    }
    pub fn events_pending(&self) -> usize {
        0
    }
    pub fn overhead(&self) -> Duration {
        Duration::ZERO
    }
    pub fn next_event(&mut self, timeout: Duration) -> Result<VmiEvent<Amd64>, VmiError> {
        let deadline = Instant::now() + timeout;
        loop {
            let events = self.qmp.events()?;
            if !events.is_empty() {
                self.resets += events.iter().filter(|name| *name == "RESET").count() as u64;
                self.ask_status()?;
            }
            if !wait_readable(&[self.qmp.fd()], deadline)?.0 {
                return Err(VmiError::Timeout);
            }
        }
    }
    pub fn answer(&mut self, _: &VmiEvent<Amd64>, _: &VmiEventResponse<Amd64>) -> Result<(), VmiError> {
        Ok(())
    }
    pub fn pause(&mut self) -> Result<(), VmiError> {
        self.qmp.execute("stop", json!({}))?;
        self.pauses += 1;
        self.running = false;
        Ok(())
    }
    pub fn resume(&mut self) -> Result<(), VmiError> {
        self.pauses = self.pauses.saturating_sub(1);
        if self.pauses == 0 {
            self.qmp.execute("cont", json!({}))?;
            self.running = true;
        }
        Ok(())
    }
    pub fn leave(&mut self) -> Result<(), VmiError> {
        Ok(())
    }
    pub fn set_breakpoint(&mut self, _: Va) -> Result<(), VmiError> {
        Err(SOON)
    }
    pub fn clear_breakpoint(&mut self, _: Va) -> Result<(), VmiError> {
        Err(SOON)
    }
    pub fn set_watchpoint(&mut self, _: Va, _: u64, _: MemoryAccess) -> Result<(), VmiError> {
        Err(SOON)
    }
    pub fn clear_watchpoint(&mut self, _: Va, _: u64, _: MemoryAccess) -> Result<(), VmiError> {
        Err(SOON)
    }
    pub fn step(&mut self, _: VcpuId) -> Result<(), VmiError> {
        Err(SOON)
    }
}
