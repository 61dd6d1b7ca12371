//! Breakpoints: who wants one where, and how it gets into the guest without the guest seeing it.
//!
//! [`BreakpointManager`] keeps the books: which breakpoints are wanted, in which address spaces and views, by whom; which
//! of them are armed and which wait for their page. A [`TapController`] puts one into the guest: in a shadow page
//! ([`BreakpointController`], on [`Interceptor`]), by taking a page's execute permission ([`MemoryController`]), or by
//! asking the hypervisor ([`DebugController`]). Imports the session, driver traits and the page table monitor's event
//! type. Start at [`BreakpointManager`]; the rules that hold after every call are in `docs/engine.md`.

mod arming;
mod books;
mod breakpoint;
mod changes;
mod closing;
mod controller;
mod interceptor;
mod manager;
mod near;

pub use self::{
    breakpoint::{Breakpoint, BreakpointState, KeyType, TagType},
    controller::{BreakpointController, DebugController, MemoryController, TapController},
    interceptor::Interceptor,
    manager::BreakpointManager,
};
