//! The peer's driver over the shared memory: lends out pages, as its own Xen driver does after mapping them.

use std::{cell::Cell, ops::Deref, rc::Rc};

use vmi_arch_amd64::{Amd64, Interrupt};
use vmi_core::{
    Gfn, MemoryAccess, MemoryAccessOptions, VcpuId, View, VmiDriver, VmiError, VmiInfo, VmiMappedPage,
    VmiQueryProtection, VmiRead, VmiSetProtection, VmiViewControl, VmiVmControl, VmiWrite,
};

use crate::memory::{Layout, Views};

struct Lent(*const u8);

impl Deref for Lent {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: a page of the shared layout, which outlives every core made on it; nothing writes during a read.
        unsafe { std::slice::from_raw_parts(self.0, 4096) }
    }
}

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
        Ok(VmiInfo { page_size: 4096, page_shift: 12, max_gfn: Gfn(self.layout.memory.pages()), vcpus: 1 })
    }
}

impl VmiRead for Flat {
    fn read_page(&self, gfn: Gfn) -> Result<VmiMappedPage, VmiError> {
        let page = self.layout.memory.page(gfn.0).ok_or(VmiError::OutOfBounds)?;
        Ok(VmiMappedPage::new(Lent(page)))
    }
}

impl VmiWrite for Flat {
    fn write_page(&self, gfn: Gfn, offset: u64, content: &[u8]) -> Result<VmiMappedPage, VmiError> {
        self.layout.memory.write(gfn.0 * 4096 + offset, content).ok_or(VmiError::OutOfBounds)?;
        self.read_page(gfn)
    }
}

impl VmiQueryProtection for Flat {
    fn memory_access(&self, gfn: Gfn, view: View) -> Result<MemoryAccess, VmiError> {
        self.views.access(view.0, gfn.0).map(Cell::get).ok_or(VmiError::OutOfBounds)
    }
    fn memory_access_with_options(
        &self,
        gfn: Gfn,
        view: View,
    ) -> Result<(MemoryAccess, MemoryAccessOptions), VmiError> {
        Ok((self.memory_access(gfn, view)?, MemoryAccessOptions::empty()))
    }
}

impl VmiSetProtection for Flat {
    fn set_memory_access(&self, gfn: Gfn, view: View, access: MemoryAccess) -> Result<(), VmiError> {
        self.views.access(view.0, gfn.0).ok_or(VmiError::OutOfBounds)?.set(access);
        Ok(())
    }
    fn set_memory_access_with_options(
        &self,
        gfn: Gfn,
        view: View,
        access: MemoryAccess,
        _: MemoryAccessOptions,
    ) -> Result<(), VmiError> {
        self.set_memory_access(gfn, view, access)
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
        self.views.shown(view.0, old.0).ok_or(VmiError::OutOfBounds)?.set(new.0);
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
            return Err(VmiError::OutOfBounds);
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
