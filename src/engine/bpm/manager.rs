//! The breakpoint manager.

use hashbrown::{
    HashTable,
    hash_table::{Entry, OccupiedEntry},
};

use super::{
    Breakpoint, BreakpointState, KeyType, TagType, TapController,
    books::{Books, Id},
    near::NearHasher,
};
use crate::engine::{
    addr::{AddressContext, Gfn, Pa, Va, View},
    arch::{Architecture, Registers},
    driver::{VmiDriver, VmiRead},
    error::VmiError,
    event::VmiEvent,
    ptm::PageTableMonitorEvent,
    session::VmiCore,
};

/// A page with breakpoints.
struct Page {
    view: View,
    gfn: Gfn,
    /// How many the controller has been given.
    installed: u32,
    /// Whether the controller monitors it; it does, unless a driver's call failed and could not be made up for.
    monitored: bool,
}

/// The pages with breakpoints, by view and frame.
#[derive(Default)]
struct Pages {
    table: HashTable<Page>,
    hasher: NearHasher,
}

impl Pages {
    fn get(&self, view: View, gfn: Gfn) -> Option<&Page> {
        self.table.find(self.hasher.hash(view, gfn.0), |page| page.view == view && page.gfn == gfn)
    }

    fn get_mut(&mut self, view: View, gfn: Gfn) -> Option<&mut Page> {
        self.table.find_mut(self.hasher.hash(view, gfn.0), |page| page.view == view && page.gfn == gfn)
    }

    /// The page, new if it was not known.
    #[inline]
    fn entry(&mut self, view: View, gfn: Gfn) -> OccupiedEntry<'_, Page> {
        let same = |page: &Page| page.view == view && page.gfn == gfn;
        let hash_of = |page: &Page| self.hasher.hash(page.view, page.gfn.0);
        match self.table.entry(self.hasher.hash(view, gfn.0), same, hash_of) {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(entry) => entry.insert(Page { view, gfn, installed: 0, monitored: false }),
        }
    }

    #[inline]
    fn find_entry(&mut self, view: View, gfn: Gfn) -> Option<OccupiedEntry<'_, Page>> {
        let same = |page: &Page| page.view == view && page.gfn == gfn;
        self.table.find_entry(self.hasher.hash(view, gfn.0), same).ok()
    }
}

type ArchOf<Controller> = <<Controller as TapController>::Driver as VmiDriver>::Architecture;
type CoreOf<Controller> = VmiCore<<Controller as TapController>::Driver>;
type EventOf<Controller> = VmiEvent<ArchOf<Controller>>;

/// Keeps breakpoints: many of them, in several views and address spaces, for several owners.
///
/// A breakpoint whose page is mapped is active: the controller has it. One whose page is not mapped is pending; the page
/// table monitor's events arm and disarm it. There is one breakpoint per key, address context and view; a global one is
/// for all address spaces, and counts as one however many roots it was inserted with.
///
/// Whatever the order of the calls, and whichever of the driver's calls fail, the books say what is in the guest: after
/// an error a call can be made again, or the breakpoint removed.
pub struct BreakpointManager<Controller, Key = (), Tag = &'static str> {
    controller: Controller,
    books: Books<Key, Tag>,
    pages: Pages,
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

/// Keeps the first error of a number of steps that are all tried.
fn note(first: &mut Option<VmiError>, result: Result<(), VmiError>) {
    if let Err(error) = result {
        first.get_or_insert(error);
    }
}

/// A view that is gone took everything in it along.
fn unless_view_gone(result: Result<(), VmiError>) -> Result<(), VmiError> {
    match result {
        Err(VmiError::ViewNotFound(_)) => Ok(()),
        result => result,
    }
}

// ------------------------------------------------------------------------------------------------ asking

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
        self.books.sites().map(|(_, site)| BreakpointState { breakpoint: site.breakpoint, pa: site.pa })
    }

    /// The breakpoints at an address of one address space, of all keys and views.
    pub fn breakpoints_at(&self, ctx: impl Into<AddressContext>) -> impl Iterator<Item = BreakpointState<Key, Tag>> {
        let sites = self.books.sites_at(ctx.into());
        sites.map(|(_, site)| BreakpointState { breakpoint: site.breakpoint, pa: site.pa })
    }

    /// Whether a page of a view has active breakpoints.
    pub fn contains_page(&self, view: View, gfn: Gfn) -> bool {
        self.pages.get(view, gfn).is_some()
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
        let own = self.books.find_site(ctx, view, key).and_then(|id| self.books.site(id));
        if let Some(site) = own.filter(|site| site.group.is_none() && site.pa == Some(pa)) {
            return Some(site.breakpoint);
        }
        let group = self.books.group(self.books.find_group(ctx.va, view, key)?)?;
        group.places.iter().any(|&(place, _)| place == pa).then_some(group.breakpoint)
    }

    /// Whether a breakpoint of this key caused an event.
    pub fn contains_by_event(&self, event: &EventOf<Controller>, key: Key) -> bool {
        self.get_by_event(event, key).is_some()
    }

    /// Whether a breakpoint of this key is active at an address, in any view.
    pub fn contains_by_address(&self, ctx: impl Into<AddressContext>, key: Key) -> bool {
        let mut sites = self.books.sites_at(ctx.into());
        sites.any(|(_, site)| site.breakpoint.key() == key && site.pa.is_some())
    }

    /// The address, the frame and the view of an event that may be a breakpoint's.
    fn address_of(&self, event: &EventOf<Controller>) -> Option<(AddressContext, Gfn, View)> {
        let (view, gfn) = self.controller.check_event(event)?;
        let va = Va(event.registers().instruction_pointer());
        Some((event.registers().address_context(va), gfn, view))
    }
}

/// The physical address of a virtual one whose page is known.
#[inline]
fn in_page<Controller: TapController>(gfn: Gfn, va: Va) -> Pa {
    ArchOf::<Controller>::pa_from_gfn(gfn) + ArchOf::<Controller>::va_offset(va)
}

// ------------------------------------------------------------------------------------------------ changing

impl<Controller, Key, Tag> BreakpointManager<Controller, Key, Tag>
where
    Controller: TapController,
    Controller::Driver: VmiRead,
    Key: KeyType,
    Tag: TagType,
{
    /// Inserts a breakpoint: active where the address is mapped, else pending.
    ///
    /// Answers whether it is new; one that is there keeps its tag, and is armed if it was pending and is mapped now.
    /// A further root of a global breakpoint is noted in any case, and new if it is armed at another place than the
    /// others or is pending.
    ///
    /// # Errors
    /// [`VmiError::Invalid`] where the key has a breakpoint at this address that is global and this one is not, or the
    /// other way round; else as the controller failed, and then the breakpoint is not there.
    pub fn insert(
        &mut self,
        vmi: &CoreOf<Controller>,
        breakpoint: impl Into<Breakpoint<Key, Tag>>,
    ) -> Result<bool, VmiError> {
        let breakpoint = breakpoint.into();
        match vmi.translate_address(breakpoint.ctx()) {
            Ok(pa) => self.insert_with_hint(vmi, breakpoint, Some(pa)),
            Err(VmiError::Translation(_)) => self.insert_with_hint(vmi, breakpoint, None),
            Err(error) => Err(error),
        }
    }

    /// The same where the caller knows what the address maps to, or that it is not mapped.
    ///
    /// # Errors
    /// As [`BreakpointManager::insert`].
    pub fn insert_with_hint(
        &mut self,
        vmi: &CoreOf<Controller>,
        breakpoint: impl Into<Breakpoint<Key, Tag>>,
        pa: Option<Pa>,
    ) -> Result<bool, VmiError> {
        let breakpoint = breakpoint.into();
        let ctx = breakpoint.ctx();
        let known = self.books.find_site(ctx, breakpoint.view(), breakpoint.key());
        if let Some((id, site)) = known.and_then(|id| Some((id, self.books.site(id)?))) {
            if site.breakpoint.is_global() != breakpoint.is_global() {
                let [is, was] = match breakpoint.is_global() {
                    true => ["global", "for one address space"],
                    false => ["for one address space", "global"],
                };
                let text = format!("a breakpoint at {ctx} cannot be {is}: its owner has one there that is {was}");
                return Err(VmiError::Invalid(text));
            }
            if let Some(pa) = pa {
                self.maps_to(vmi, id, pa)?;
            }
            return Ok(false);
        }
        let id = self.books.add(breakpoint);
        let Some(pa) = pa else { return Ok(true) };
        let armed = self.arm(vmi, id, in_page::<Controller>(ArchOf::<Controller>::gfn_from_pa(pa), ctx.va));
        if armed.is_err() && self.books.site(id).is_some_and(|site| site.pa.is_none()) {
            self.books.forget(id);
        }
        armed
    }

    /// Removes a breakpoint, active or pending; a global one with any of its roots, and with it from all of them.
    /// Answers whether there was one.
    ///
    /// # Errors
    /// As the controller failed; what is still in the guest then is still known.
    pub fn remove(
        &mut self,
        vmi: &CoreOf<Controller>,
        breakpoint: impl Into<Breakpoint<Key, Tag>>,
    ) -> Result<bool, VmiError> {
        let breakpoint = breakpoint.into();
        let (ctx, view, key) = (breakpoint.ctx(), breakpoint.view(), breakpoint.key());
        let site = self.books.find_site(ctx, view, key);
        let group = match site.and_then(|id| self.books.site(id)) {
            Some(site) => site.group,
            None if breakpoint.is_global() => self.books.find_group(ctx.va, view, key),
            None => None,
        };
        match (group, site) {
            (Some(group), _) => self.remove_group(vmi, group)?,
            (None, Some(site)) => self.remove_site(vmi, site)?,
            (None, None) => return Ok(false),
        }
        Ok(true)
    }

    /// The same; where the breakpoint is armed is in the books, so that no hint is needed.
    ///
    /// # Errors
    /// As [`BreakpointManager::remove`].
    pub fn remove_with_hint(
        &mut self,
        vmi: &CoreOf<Controller>,
        breakpoint: impl Into<Breakpoint<Key, Tag>>,
        _pa: Option<Pa>,
    ) -> Result<bool, VmiError> {
        self.remove(vmi, breakpoint)
    }

    /// Removes the breakpoint that caused an event, at every view of its address.
    ///
    /// Answers whether the event's page has no breakpoint left; `None` where there was no breakpoint.
    ///
    /// # Errors
    /// As the controller failed; every view was tried, and what is still in the guest is still known.
    pub fn remove_by_event(
        &mut self,
        vmi: &CoreOf<Controller>,
        event: &EventOf<Controller>,
        key: Key,
    ) -> Result<Option<bool>, VmiError> {
        let Some((ctx, gfn, view)) = self.address_of(event) else { return Ok(None) };
        let hit = self.get_by_address(ctx, gfn, view, key);
        let global = match hit {
            Some(breakpoint) => breakpoint.is_global(),
            None => !self.books.sites_at(ctx).any(|(_, site)| site.group.is_none() && site.breakpoint.key() == key),
        };
        let mut failed = None;
        let mut removed = false;
        if global {
            let mine = self.books.groups_at(ctx.va).filter(|(_, group)| group.breakpoint.key() == key);
            let groups: Vec<Id> = mine.map(|(id, _)| id).collect();
            for group in groups {
                removed = true;
                note(&mut failed, self.remove_group(vmi, group));
            }
        } else {
            let sites = self.books.sites_at(ctx);
            let mine = sites.filter(|(_, site)| site.group.is_none() && site.breakpoint.key() == key);
            let sites: Vec<Id> = mine.map(|(id, _)| id).collect();
            for site in sites {
                removed = true;
                note(&mut failed, self.remove_site(vmi, site));
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(removed.then(|| !self.contains_page(view, gfn))),
        }
    }

    /// Removes all breakpoints of a view, pending ones too; the view may be gone already. Answers whether there were any.
    ///
    /// # Errors
    /// As the controller failed; all were tried, and what is still in the guest is still known.
    pub fn remove_by_view(&mut self, vmi: &CoreOf<Controller>, view: View) -> Result<bool, VmiError> {
        self.remove_all(vmi, |breakpoint| breakpoint.view() == view)
    }

    /// Removes all breakpoints and gives back what the controller kept for later ones.
    ///
    /// # Errors
    /// As the controller failed; all were tried, and what is still in the guest is still known.
    pub fn clear(&mut self, vmi: &CoreOf<Controller>) -> Result<(), VmiError> {
        let removed = self.remove_all(vmi, |_| true).map(|_| ());
        let released = if self.pages.table.is_empty() { self.controller.release(vmi) } else { Ok(()) };
        removed.and(released)
    }

    fn remove_all(
        &mut self,
        vmi: &CoreOf<Controller>,
        which: impl Fn(&Breakpoint<Key, Tag>) -> bool,
    ) -> Result<bool, VmiError> {
        let sites: Vec<Id> = self.books.sites().filter(|(_, site)| which(&site.breakpoint)).map(|(id, _)| id).collect();
        let mut failed = None;
        for &site in &sites {
            note(&mut failed, self.remove_site(vmi, site));
        }
        failed.map_or(Ok(!sites.is_empty()), Err)
    }

    /// Follows a change of the page tables: a page that came in arms what waited for it, a page that went out disarms
    /// what was armed in it for this address space. Answers whether a breakpoint was armed or disarmed.
    ///
    /// # Errors
    /// As the controller failed; every breakpoint of the address was tried.
    pub fn handle_ptm_event(
        &mut self,
        vmi: &CoreOf<Controller>,
        event: &PageTableMonitorEvent,
    ) -> Result<bool, VmiError> {
        let update = event.update();
        let gfn = ArchOf::<Controller>::gfn_from_pa(update.pa);
        let pa = in_page::<Controller>(gfn, update.ctx.va);
        let mut changed = false;
        let mut failed = None;
        // Arming and disarming leave the lists as they are.
        let mut next = self.books.sites_at(update.ctx).next().map(|(id, _)| id);
        while let Some((id, site)) = next.and_then(|id| Some((id, self.books.site(id)?))) {
            next = site.next_id();
            if site.breakpoint.view() != update.view {
                continue;
            }
            let before = site.pa;
            let result = match event {
                PageTableMonitorEvent::PageIn(_) => self.maps_to(vmi, id, pa),
                // A page-out of another frame than the one it is armed in is old news.
                PageTableMonitorEvent::PageOut(_) if before == Some(pa) => self.disarm(vmi, id),
                PageTableMonitorEvent::PageOut(_) => Ok(()),
            };
            note(&mut failed, result);
            changed |= self.books.site(id).is_some_and(|site| site.pa != before);
        }
        failed.map_or(Ok(changed), Err)
    }

    /// The same for a number of events, in order. An error of one does not keep the others from being followed.
    ///
    /// # Errors
    /// The first of the errors.
    pub fn handle_ptm_events(
        &mut self,
        vmi: &CoreOf<Controller>,
        events: impl IntoIterator<Item = PageTableMonitorEvent>,
    ) -> Result<bool, VmiError> {
        let mut changed = false;
        let mut failed = None;
        for event in events {
            let result = self.handle_ptm_event(vmi, &event).map(|one| changed |= one);
            note(&mut failed, result);
        }
        failed.map_or(Ok(changed), Err)
    }
}

// ------------------------------------------------------------------------------------------------ one site

impl<Controller, Key, Tag> BreakpointManager<Controller, Key, Tag>
where
    Controller: TapController,
    Key: KeyType,
    Tag: TagType,
{
    /// The page of a known site is at `pa`: arms it there, or moves it.
    fn maps_to(&mut self, vmi: &CoreOf<Controller>, id: Id, pa: Pa) -> Result<(), VmiError> {
        let Some(site) = self.books.site(id) else { return Ok(()) };
        let (view, gfn) = (site.breakpoint.view(), ArchOf::<Controller>::gfn_from_pa(pa));
        let pa = in_page::<Controller>(gfn, site.breakpoint.ctx().va);
        match site.pa {
            None => self.arm(vmi, id, pa).map(|_| ()),
            Some(armed) if armed != pa => {
                self.disarm(vmi, id)?;
                self.arm(vmi, id, pa).map(|_| ())
            }
            Some(_) => match self.pages.get_mut(view, gfn) {
                Some(page) if !page.monitored => {
                    self.controller.monitor(vmi, gfn, view)?;
                    page.monitored = true;
                    Ok(())
                }
                _ => Ok(()),
            },
        }
    }

    /// Arms a pending site. Answers whether that put something into the guest.
    fn arm(&mut self, vmi: &CoreOf<Controller>, id: Id, pa: Pa) -> Result<bool, VmiError> {
        let Some(site) = self.books.site(id) else { return Ok(false) };
        let (ctx, view, group) = (site.breakpoint.ctx(), site.breakpoint.view(), site.group);
        let places = group.and_then(|group| self.books.group_mut(group)).map(|group| &mut group.places);
        if let Some((_, sites)) = places.and_then(|places| places.iter_mut().find(|(place, _)| *place == pa)) {
            *sites += 1;
            self.set_armed(id, Some(pa));
            return Ok(false);
        }
        let (installed, result) = self.install(vmi, ctx, pa, view);
        if installed {
            self.set_armed(id, Some(pa));
            if let Some(group) = group.and_then(|group| self.books.group_mut(group)) {
                group.places.push((pa, 1));
            }
        }
        result.map(|()| true)
    }

    /// Disarms a site; it is pending then.
    fn disarm(&mut self, vmi: &CoreOf<Controller>, id: Id) -> Result<(), VmiError> {
        let Some(site) = self.books.site(id) else { return Ok(()) };
        let Some(pa) = site.pa else { return Ok(()) };
        let (ctx, view, group) = (site.breakpoint.ctx(), site.breakpoint.view(), site.group);
        let places = group.and_then(|group| self.books.group_mut(group)).map(|group| &mut group.places);
        let others = |&&mut (place, sites): &&mut (Pa, u32)| place == pa && sites > 1;
        if let Some((_, sites)) = places.and_then(|places| places.iter_mut().find(others)) {
            *sites -= 1;
            self.set_armed(id, None);
            return Ok(());
        }
        self.uninstall(vmi, ctx, pa, view)?;
        self.set_armed(id, None);
        if let Some(group) = group.and_then(|group| self.books.group_mut(group)) {
            group.places.retain(|&(place, _)| place != pa);
        }
        Ok(())
    }

    fn set_armed(&mut self, id: Id, pa: Option<Pa>) {
        if let Some(site) = self.books.site_mut(id) {
            site.pa = pa;
        }
    }

    fn remove_site(&mut self, vmi: &CoreOf<Controller>, id: Id) -> Result<(), VmiError> {
        self.disarm(vmi, id)?;
        self.books.forget(id);
        Ok(())
    }

    fn remove_group(&mut self, vmi: &CoreOf<Controller>, group: Id) -> Result<(), VmiError> {
        let sites = self.books.group(group).map(|group| group.sites.clone()).unwrap_or_default();
        let mut failed = None;
        // Backwards, as they are forgotten fastest.
        for site in sites.into_iter().rev() {
            note(&mut failed, self.remove_site(vmi, site));
        }
        failed.map_or(Ok(()), Err)
    }

    /// Gives a breakpoint to the controller and has the page monitored. Answers whether the controller has it, which it
    /// may in spite of an error: when the page could not be monitored and the breakpoint could not be taken back.
    fn install(
        &mut self,
        vmi: &CoreOf<Controller>,
        ctx: AddressContext,
        pa: Pa,
        view: View,
    ) -> (bool, Result<(), VmiError>) {
        let gfn = ArchOf::<Controller>::gfn_from_pa(pa);
        if let Err(error) = self.controller.insert_breakpoint_at(vmi, ctx, pa, view) {
            return (false, Err(error));
        }
        let mut entry = self.pages.entry(view, gfn);
        let page = entry.get_mut();
        if !page.monitored {
            if let Err(error) = self.controller.monitor(vmi, gfn, view) {
                let taken_back = unless_view_gone(self.controller.remove_breakpoint_at(vmi, ctx, pa, view)).is_ok();
                if !taken_back {
                    page.installed += 1;
                } else if page.installed == 0 {
                    entry.remove();
                }
                return (!taken_back, Err(error));
            }
            page.monitored = true;
        }
        page.installed += 1;
        (true, Ok(()))
    }

    /// Takes a breakpoint from the controller; before the last one of its page leaves, monitoring ends.
    fn uninstall(&mut self, vmi: &CoreOf<Controller>, ctx: AddressContext, pa: Pa, view: View) -> Result<(), VmiError> {
        let gfn = ArchOf::<Controller>::gfn_from_pa(pa);
        let Some(mut entry) = self.pages.find_entry(view, gfn) else { return Ok(()) };
        let page = entry.get_mut();
        let last = page.installed == 1;
        if last && page.monitored {
            unless_view_gone(self.controller.unmonitor(vmi, gfn, view))?;
            page.monitored = false;
        }
        if let Err(error) = unless_view_gone(self.controller.remove_breakpoint_at(vmi, ctx, pa, view)) {
            if !page.monitored {
                page.monitored = self.controller.monitor(vmi, gfn, view).is_ok();
            }
            return Err(error);
        }
        if last {
            entry.remove();
        } else {
            page.installed -= 1;
        }
        Ok(())
    }
}
