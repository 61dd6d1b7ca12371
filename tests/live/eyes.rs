//! The engine's eyes on a guest, without a dashboard: a driver and the kernel that was found.

use vmscope::engine::{
    addr::VcpuId,
    driver::qemu::{QemuDriver, QemuOptions},
    os::{ProcessList, VmiOs, linux::LinuxOs},
    session::{VmiCore, VmiSession},
};

use super::guest::Guest;

pub struct Eyes {
    pub core: VmiCore<QemuDriver>,
    pub os: LinuxOs,
}

impl Eyes {
    /// Attaches by nothing but the QMP socket.
    pub fn on(guest: &Guest) -> Self {
        let options = QemuOptions {
            qmp: Some(format!("unix:{}", guest.qmp_socket().display())),
            guardian: Some(env!("CARGO_BIN_EXE_vmscope").into()),
            ..QemuOptions::default()
        };
        let core = QemuDriver::attach(options).and_then(VmiCore::new).expect("the guest can be attached to");
        let registers = core.registers(VcpuId(0)).expect("registers");
        let os = LinuxOs::detect(&core, &registers, None).expect("a kernel");
        Self { core, os }
    }

    /// A session that sees the guest as it is now.
    pub fn fresh(&self) -> VmiSession<'_, QemuDriver, LinuxOs> {
        self.core.flush_gfn_cache();
        self.core.flush_v2p_cache();
        VmiSession::new(&self.core, &self.os)
    }

    pub fn processes(&self) -> ProcessList {
        self.os.processes(self.fresh()).expect("a process list")
    }
}
