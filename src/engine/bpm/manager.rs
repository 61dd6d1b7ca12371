//! The breakpoint manager, and what it can be asked. How breakpoints come and go is in `changes`, how one gets into the
//! guest in `arming`.

use super::{Breakpoint, BreakpointState, KeyType, TagType, TapController, arming::Pages, books::Books};
use crate::engine::{
    addr::{AddressContext, Gfn, Pa, Va, View},
    arch::{Architecture, Registers},
    driver::VmiDriver,
    event::VmiEvent,
    session::VmiCore,
};

pub(super) type ArchOf<Controller> = <<Controller as TapController>::Driver as VmiDriver>::Architecture;
pub(super) type CoreOf<Controller> = VmiCore<<Controller as TapController>::Driver>;
pub(super) type EventOf<Controller> = VmiEvent<ArchOf<Controller>>;

/// Keeps breakpoints: many of them, in several views and address spaces, for several owners.
///
/// A breakpoint whose page is mapped is active: the controller has it. One whose page is not mapped is pending; the page
/// table monitor's events arm and disarm it. There is one breakpoint per key, address context and view; a global one is
/// for all address spaces, and counts as one however many roots it was inserted with.
///
/// Whatever the order of the calls, and whichever of the driver's calls fail, the books say what is in the guest: after
/// an error a call can be made again, or the breakpoint removed.
pub struct BreakpointManager<Controller, Key = (), Tag = &'static str> {
    pub(super) controller: Controller,
    pub(super) books: Books<Key, Tag>,
    pub(super) pages: Pages,
}

impl<Controller, Key, Tag> Default for BreakpointManager<Controller, Key, Tag>
where
    Controller: TapController,
    Key: KeyType,
    Tag: TagType,
{
    fn default() -> Self {
        Self::new()
    }
}

impl<Controller, Key, Tag> BreakpointManager<Controller, Key, Tag>
where
    Controller: TapController,
    Key: KeyType,
    Tag: TagType,
{
    /// A manager without breakpoints.
    pub fn new() -> Self {
        Self { controller: Controller::new(), books: Books::new(), pages: Pages::default() }
    }

    /// The controller.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// The controller, for what it does besides breakpoints (`guest_wrote`). Breakpoints that are inserted past the
    /// manager stay unknown to it.
    pub fn controller_mut(&mut self) -> &mut Controller {
        &mut self.controller
    }

    /// How many breakpoints there are, active and pending; a global one counts once for every root.
    pub fn len(&self) -> usize {
        self.books.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All breakpoints with their state, in no particular order.
    pub fn breakpoints(&self) -> impl Iterator<Item = BreakpointState<Key, Tag>> {
        self.books.sites().map(|(_, site)| BreakpointState { breakpoint: site.breakpoint, pa: site.pa() })
    }

    /// The breakpoints at an address of one address space, of all keys and views.
    pub fn breakpoints_at(&self, ctx: impl Into<AddressContext>) -> impl Iterator<Item = BreakpointState<Key, Tag>> {
        let sites = self.books.sites_at(ctx.into());
        sites.map(|(_, site)| BreakpointState { breakpoint: site.breakpoint, pa: site.pa() })
    }

    /// Whether a page of a view has active breakpoints.
    pub fn contains_page(&self, view: View, gfn: Gfn) -> bool {
        self.pages.contains(view, gfn)
    }

    /// The breakpoint that caused an event.
    pub fn get_by_event(&self, event: &EventOf<Controller>, key: Key) -> Option<Breakpoint<Key, Tag>> {
        let (ctx, gfn, view) = self.address_of(event)?;
        self.get_by_address(ctx, gfn, view, key)
    }

    /// The same in an address space that goes by another root than the one in the event's registers, as a process does
    /// in user mode under kernel page-table isolation.
    pub fn get_by_event_in(&self, event: &EventOf<Controller>, root: Pa, key: Key) -> Option<Breakpoint<Key, Tag>> {
        let (ctx, gfn, view) = self.address_of(event)?;
        self.get_by_address(AddressContext { root, ..ctx }, gfn, view, key)
    }

    /// The breakpoint that an execution of an address causes: the root is that of the running code, the frame that of
    /// the instruction.
    pub fn get_by_address(
        &self,
        ctx: impl Into<AddressContext>,
        gfn: Gfn,
        view: View,
        key: Key,
    ) -> Option<Breakpoint<Key, Tag>> {
        let ctx = ctx.into();
        let pa = in_page::<Controller>(gfn, ctx.va);
        let own = self.books.find_site(ctx, view, key).ok().and_then(|id| self.books.site(id));
        if let Some(site) = own.filter(|site| site.pa() == Some(pa)) {
            // A founder's group, which says the same, is one more record to fetch.
            let group = site.group().filter(|_| !site.founder).and_then(|group| self.books.group(group));
            return Some(group.map_or(site.breakpoint, |group| group.breakpoint));
        }
        let group = self.books.group(self.books.find_group(ctx.va, view, key).ok()?)?;
        group.places.iter().any(|&(place, _)| place == pa).then_some(group.breakpoint)
    }

    /// Whether a breakpoint of this key caused an event.
    pub fn contains_by_event(&self, event: &EventOf<Controller>, key: Key) -> bool {
        self.get_by_event(event, key).is_some()
    }

    /// Whether a breakpoint of this key is active at an address, in any view.
    pub fn contains_by_address(&self, ctx: impl Into<AddressContext>, key: Key) -> bool {
        let mut sites = self.books.sites_at(ctx.into());
        sites.any(|(_, site)| site.breakpoint.key() == key && site.pa().is_some())
    }

    /// The address, the frame and the view of an event that may be a breakpoint's.
    pub(super) fn address_of(&self, event: &EventOf<Controller>) -> Option<(AddressContext, Gfn, View)> {
        let (view, gfn) = self.controller.check_event(event)?;
        let va = Va(event.registers().instruction_pointer());
        Some((event.registers().address_context(va), gfn, view))
    }
}

/// The physical address of a virtual one whose page is known.
#[inline]
pub(super) fn in_page<Controller: TapController>(gfn: Gfn, va: Va) -> Pa {
    ArchOf::<Controller>::pa_from_gfn(gfn) + ArchOf::<Controller>::va_offset(va)
}
