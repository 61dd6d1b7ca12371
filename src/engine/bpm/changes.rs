//! How breakpoints come and go: by their owners' calls, and by the guest's page tables.

use super::{
    Breakpoint, BreakpointManager, KeyType, TagType, TapController,
    books::Id,
    manager::{ArchOf, CoreOf, EventOf, in_page},
};
use crate::engine::{
    addr::{Pa, View},
    arch::Architecture,
    driver::VmiRead,
    error::VmiError,
    ptm::PageTableMonitorEvent,
};

/// Keeps the first error of a number of steps that are all tried.
pub(super) fn note(first: &mut Option<VmiError>, result: Result<(), VmiError>) {
    if let Err(error) = result {
        first.get_or_insert(error);
    }
}

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
    /// other way round; [`VmiError::OutOfBounds`] where the translation root is not in the guest's memory, so that
    /// nothing could ever be mapped; else as the controller failed. The breakpoint is not there then.
    pub fn insert(
        &mut self,
        vmi: &CoreOf<Controller>,
        breakpoint: impl Into<Breakpoint<Key, Tag>>,
    ) -> Result<bool, VmiError> {
        let breakpoint = breakpoint.into();
        match vmi.translate_address(breakpoint.ctx()) {
            Ok(pa) => self.insert_with_hint(vmi, breakpoint, Some(pa)),
            Err(VmiError::Translation(_)) => {
                // Where there is no table, no page ever comes.
                vmi.read_entry(Pa(breakpoint.ctx().root.0 & ArchOf::<Controller>::PAGE_MASK))?;
                self.insert_with_hint(vmi, breakpoint, None)
            }
            Err(error) => Err(error),
        }
    }

    /// The same where the caller knows what the address maps to, or that it is not mapped; the guest's tables are not
    /// looked at.
    ///
    /// # Errors
    /// As [`BreakpointManager::insert`], but for the root.
    pub fn insert_with_hint(
        &mut self,
        vmi: &CoreOf<Controller>,
        breakpoint: impl Into<Breakpoint<Key, Tag>>,
        pa: Option<Pa>,
    ) -> Result<bool, VmiError> {
        let breakpoint = breakpoint.into();
        let ctx = breakpoint.ctx();
        let place = match self.books.find_site(ctx, breakpoint.view(), breakpoint.key()) {
            Ok(id) => return self.insert_again(vmi, id, breakpoint, pa).map(|()| false),
            Err(place) => place,
        };
        let id = self.books.add(breakpoint, place);
        let Some(pa) = pa else { return Ok(true) };
        let armed = self.arm(vmi, id, in_page::<Controller>(ArchOf::<Controller>::gfn_from_pa(pa), ctx.va));
        if armed.is_err() && self.books.site(id).is_some_and(|site| site.pa().is_none()) {
            self.books.forget(id);
        }
        armed
    }

    /// Inserts a breakpoint that is there.
    fn insert_again(
        &mut self,
        vmi: &CoreOf<Controller>,
        id: Id,
        breakpoint: Breakpoint<Key, Tag>,
        pa: Option<Pa>,
    ) -> Result<(), VmiError> {
        if self.books.site(id).is_some_and(|site| site.breakpoint.is_global() != breakpoint.is_global()) {
            let [is, was] = match breakpoint.is_global() {
                true => ["global", "for one address space"],
                false => ["for one address space", "global"],
            };
            let ctx = breakpoint.ctx();
            let text = format!("a breakpoint at {ctx} cannot be {is}: its owner has one there that is {was}");
            return Err(VmiError::Invalid(text));
        }
        pa.map_or(Ok(()), |pa| self.maps_to(vmi, id, pa))
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
        let site = self.books.find_site(ctx, view, key).ok();
        let group = match site.and_then(|id| self.books.site(id)) {
            Some(site) => site.group(),
            None if breakpoint.is_global() => self.books.find_group(ctx.va, view, key).ok(),
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

    /// Removes the breakpoint that caused an event, at every view of its address: of the key, and global or for the one
    /// address space as that one is. Where an event is not caused by a breakpoint of the key
    /// ([`get_by_event`](BreakpointManager::get_by_event) knows none), nothing is removed.
    ///
    /// Answers whether the event's page has no breakpoint left; `None` where no breakpoint caused the event.
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
        let Some(hit) = self.get_by_address(ctx, gfn, view, key) else { return Ok(None) };
        let mut failed = None;
        if hit.is_global() {
            let mine = self.books.groups_at(ctx.va).filter(|(_, group)| group.breakpoint.key() == key);
            let groups: Vec<Id> = mine.map(|(id, _)| id).collect();
            for group in groups {
                note(&mut failed, self.remove_group(vmi, group));
            }
        } else {
            let sites = self.books.sites_at(ctx);
            let mine = sites.filter(|(_, site)| site.group().is_none() && site.breakpoint.key() == key);
            let sites: Vec<Id> = mine.map(|(id, _)| id).collect();
            for site in sites {
                note(&mut failed, self.remove_site(vmi, site));
            }
        }
        failed.map_or(Ok(Some(!self.contains_page(view, gfn))), Err)
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
        let released = if self.pages.is_empty() { self.controller.release(vmi) } else { Ok(()) };
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
            next = Some(site.next_id());
            if site.breakpoint.view() != update.view {
                continue;
            }
            let before = site.pa();
            let result = match event {
                PageTableMonitorEvent::PageIn(_) => self.maps_to(vmi, id, pa),
                // A page-out of another frame than the one it is armed in is old news.
                PageTableMonitorEvent::PageOut(_) if before == Some(pa) => self.disarm(vmi, id),
                PageTableMonitorEvent::PageOut(_) => Ok(()),
            };
            note(&mut failed, result);
            changed |= self.books.site(id).is_some_and(|site| site.pa() != before);
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
