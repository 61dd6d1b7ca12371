//! A driver of ours over the shared memory: as little as a driver can do.

use std::{cell::Cell, rc::Rc, time::Duration};

use vmscope::engine::{
    addr::{Gfn, Pa, VcpuId, View},
    arch::amd64::{Amd64, Amd64Registers, EventMonitor, Interrupt},
    driver::{
        MemoryAccess, MemoryAccessOptions, VmiDriver, VmiEventControl, VmiInfo, VmiQueryProtection, VmiQueryRegisters,
        VmiRead, VmiSetProtection, VmiSetRegisters, VmiViewControl, VmiVmControl, VmiWrite,
    },
    error::VmiError,
    event::{VmiEvent, VmiEventResponse},
    snapshot::{Capability, Unavailable},
};

use crate::memory::{Layout, Views};

pub struct Flat {
    layout: Rc<Layout>,
    next: Cell<u64>,
    views: Views<MemoryAccess>,
}

impl Flat {
    pub fn new(layout: &Rc<Layout>) -> Self {
        Self {
            layout: Rc::clone(layout),
            next: Cell::new(layout.guest_pages),
            views: Views::new(&layout.memory, MemoryAccess::RWX),
        }
    }
}

impl VmiDriver for Flat {
    type Architecture = Amd64;
    fn info(&self) -> Result<VmiInfo, VmiError> {
        let pages = self.layout.guest_pages;
        Ok(VmiInfo { name: "flat".into(), vcpus: 1, memory_bytes: pages * 4096, max_gfn: Gfn(pages - 1) })
    }
    fn capabilities(&self) -> (Vec<Capability>, Vec<Unavailable>) {
        Default::default()
    }
    fn clock_ns(&self) -> u64 {
        0
    }
}

impl VmiRead for Flat {
    fn read_physical(&self, pa: Pa, buffer: &mut [u8]) -> Result<(), VmiError> {
        self.layout.memory.read(pa.0, buffer).ok_or_else(|| VmiError::OutOfBounds(pa))
    }
    #[inline]
    fn read_physical_u64(&self, pa: Pa) -> Result<u64, VmiError> {
        if pa.0 & 7 != 0 {
            let mut bytes = [0; 8];
            self.read_physical(pa, &mut bytes)?;
            return Ok(u64::from_le_bytes(bytes));
        }
        self.layout.memory.get(pa.0).ok_or_else(|| VmiError::OutOfBounds(pa))
    }
    fn read_page(&self, gfn: Gfn, buffer: &mut [u8; 4096]) -> Result<(), VmiError> {
        self.layout.memory.read(gfn.0 << 12, buffer).ok_or_else(|| VmiError::OutOfBounds(Pa(gfn.0 << 12)))
    }
    #[inline]
    fn is_direct(&self) -> bool {
        true
    }
}

impl VmiWrite for Flat {
    fn write_physical(&self, pa: Pa, bytes: &[u8]) -> Result<(), VmiError> {
        self.layout.memory.write(pa.0, bytes).ok_or_else(|| VmiError::OutOfBounds(pa))
    }
    fn copy_page_patched(
        &self,
        from: Gfn,
        to: Gfn,
        offset: usize,
        patch: &[u8],
        saved: &mut [u8],
    ) -> Result<(), VmiError> {
        self.layout.memory.copy(from.0, to.0).ok_or_else(|| VmiError::OutOfBounds(Pa(from.0 << 12)))?;
        let at = Pa((to.0 << 12) + offset as u64);
        self.read_physical(at, saved)?;
        self.write_physical(at, patch)
    }
}

impl VmiQueryProtection for Flat {
    fn memory_access(&self, gfn: Gfn, view: View) -> Result<MemoryAccess, VmiError> {
        self.views.access(view.0, gfn.0).map(Cell::get).ok_or_else(|| VmiError::OutOfBounds(Pa(gfn.0 << 12)))
    }
}

impl VmiSetProtection for Flat {
    fn set_memory_access_with_options(
        &self,
        gfn: Gfn,
        view: View,
        access: MemoryAccess,
        _: MemoryAccessOptions,
    ) -> Result<(), VmiError> {
        let cell = self.views.access(view.0, gfn.0).ok_or_else(|| VmiError::OutOfBounds(Pa(gfn.0 << 12)))?;
        cell.set(access);
        Ok(())
    }
}

impl VmiQueryRegisters for Flat {
    fn registers(&self, _: VcpuId) -> Result<Amd64Registers, VmiError> {
        Ok(Amd64Registers::default())
    }
}

impl VmiSetRegisters for Flat {
    fn set_registers(&self, _: VcpuId, _: Amd64Registers) -> Result<(), VmiError> {
        Ok(())
    }
}

impl VmiViewControl for Flat {
    fn default_view(&self) -> View {
        View(0)
    }
    fn create_view(&self, _: MemoryAccess) -> Result<View, VmiError> {
        Ok(View(1))
    }
    fn destroy_view(&self, _: View) -> Result<(), VmiError> {
        Ok(())
    }
    fn switch_to_view(&self, _: View) -> Result<(), VmiError> {
        Ok(())
    }
    fn change_view_gfn(&self, view: View, old: Gfn, new: Gfn) -> Result<(), VmiError> {
        let cell = self.views.shown(view.0, old.0).ok_or_else(|| VmiError::OutOfBounds(Pa(old.0 << 12)))?;
        cell.set(new.0);
        Ok(())
    }
    fn reset_view_gfn(&self, view: View, gfn: Gfn) -> Result<(), VmiError> {
        self.change_view_gfn(view, gfn, gfn)
    }
}

impl VmiVmControl for Flat {
    fn pause(&self) -> Result<(), VmiError> {
        Ok(())
    }
    fn resume(&self) -> Result<(), VmiError> {
        Ok(())
    }
    fn allocate_gfn(&self) -> Result<Gfn, VmiError> {
        let gfn = self.next.get();
        if gfn >= self.layout.memory.pages() {
            return Err(VmiError::OutOfBounds(Pa(gfn << 12)));
        }
        self.next.set(gfn + 1);
        Ok(Gfn(gfn))
    }
    fn allocate_gfn_at(&self, _: Gfn) -> Result<(), VmiError> {
        Ok(())
    }
    fn free_gfn(&self, _: Gfn) -> Result<(), VmiError> {
        Ok(())
    }
    fn inject_interrupt(&self, _: VcpuId, _: Interrupt) -> Result<(), VmiError> {
        Ok(())
    }
    fn reset_state(&self) -> Result<(), VmiError> {
        Ok(())
    }
}

impl VmiEventControl for Flat {
    fn monitor_enable(&self, _: EventMonitor) -> Result<(), VmiError> {
        Ok(())
    }
    fn monitor_disable(&self, _: EventMonitor) -> Result<(), VmiError> {
        Ok(())
    }
    fn events_pending(&self) -> usize {
        0
    }
    fn event_processing_overhead(&self) -> Duration {
        Duration::ZERO
    }
    fn wait_for_event<Handler>(&self, _: Duration, _: Handler) -> Result<(), VmiError>
    where
        Handler: FnMut(&VmiEvent<Amd64>) -> VmiEventResponse<Amd64>,
    {
        Err(VmiError::Timeout)
    }
}
