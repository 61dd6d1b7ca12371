//! A kernel on a flat guest that has no processes: what a test says of it, and nothing else.

use std::sync::Arc;

use vmscope::engine::{
    addr::{AddressContext, Pa, Va},
    error::VmiError,
    os::{CurrentProcess, ProcessList, VmiOs},
    session::{VmiProber, VmiSession, VmiState},
    snapshot::{Process, ProcessDetail},
    symbols::SymbolTable,
};

use super::FlatDriver;

#[derive(Default)]
pub struct FlatOs {
    pub base: Va,
    pub root: Pa,
    /// Whether it isolates its page tables: a process is known by the even root of its two.
    pub isolates: bool,
    /// A page of which the kernel says that it has no memory region. Its books are at address 0.
    pub unservable: Option<Va>,
    pub symbols: Arc<SymbolTable>,
}

impl VmiOs<FlatDriver> for FlatOs {
    fn name(&self) -> &'static str {
        "test"
    }
    fn version(&self) -> &str {
        "1"
    }
    fn kernel_image_base(&self) -> Va {
        self.base
    }
    fn kernel_root(&self) -> Pa {
        self.root
    }
    fn symbols(&self) -> Arc<SymbolTable> {
        Arc::clone(&self.symbols)
    }
    fn process_root(&self, root: Pa) -> Pa {
        if self.isolates { Pa(root.0 & !0x1000) } else { root }
    }
    fn processes(&self, _: VmiSession<'_, FlatDriver, Self>) -> Result<ProcessList, VmiError> {
        Ok(ProcessList::default())
    }
    fn current_process(&self, _: VmiState<'_, FlatDriver, Self>) -> Result<Option<CurrentProcess>, VmiError> {
        Ok(None)
    }
    fn process_detail(
        &self,
        _: VmiSession<'_, FlatDriver, Self>,
        _: &Process,
        _: &VmiProber,
    ) -> Result<ProcessDetail, VmiError> {
        Ok(ProcessDetail::default())
    }
    fn function_argument(&self, _: VmiState<'_, FlatDriver, Self>, _: u32) -> Result<u64, VmiError> {
        Ok(0)
    }
    fn unservable(
        &self,
        vmi: VmiSession<'_, FlatDriver, Self>,
        page: AddressContext,
    ) -> Result<Option<String>, VmiError> {
        let Some(unservable) = self.unservable else { return Ok(None) };
        // The books may not be readable.
        vmi.read_u8(Pa(0))?;
        Ok((Va(page.va.0 & !0xfff) == unservable).then(|| "there is no\u{1b}[31m region".to_owned()))
    }
}
