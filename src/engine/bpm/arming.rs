//! Arming and disarming: one breakpoint in one address space, and the pages that have any.

use hashbrown::{
    HashTable,
    hash_table::{Entry, OccupiedEntry},
};

use super::{
    BreakpointManager, KeyType, TagType, TapController,
    books::Id,
    changes::note,
    manager::{ArchOf, CoreOf, in_page},
    near::NearHasher,
};
use crate::engine::{
    addr::{AddressContext, Gfn, Pa, View},
    arch::Architecture,
    error::VmiError,
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
pub(super) struct Pages {
    table: HashTable<Page>,
    hasher: NearHasher,
}

impl Pages {
    /// Whether no page has a breakpoint.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether a page has breakpoints.
    pub(super) fn contains(&self, view: View, gfn: Gfn) -> bool {
        let same = |page: &Page| page.view == view && page.gfn == gfn;
        self.table.find(self.hasher.hash(view, gfn.0), same).is_some()
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

/// A view that is gone took everything in it along.
#[inline]
fn unless_view_gone(result: Result<(), VmiError>) -> Result<(), VmiError> {
    match result {
        Err(VmiError::ViewNotFound(_)) => Ok(()),
        result => result,
    }
}

impl<Controller, Key, Tag> BreakpointManager<Controller, Key, Tag>
where
    Controller: TapController,
    Key: KeyType,
    Tag: TagType,
{
    /// The page of a known site is at `pa`: arms it there, or moves it.
    pub(super) fn maps_to(&mut self, vmi: &CoreOf<Controller>, id: Id, pa: Pa) -> Result<(), VmiError> {
        let Some(site) = self.books.site(id) else { return Ok(()) };
        let (view, gfn) = (site.breakpoint.view(), ArchOf::<Controller>::gfn_from_pa(pa));
        let pa = in_page::<Controller>(gfn, site.breakpoint.ctx().va);
        match site.pa() {
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
    pub(super) fn arm(&mut self, vmi: &CoreOf<Controller>, id: Id, pa: Pa) -> Result<bool, VmiError> {
        let Some(site) = self.books.site(id) else { return Ok(false) };
        let (ctx, view, group) = (site.breakpoint.ctx(), site.breakpoint.view(), site.group());
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
    pub(super) fn disarm(&mut self, vmi: &CoreOf<Controller>, id: Id) -> Result<(), VmiError> {
        let Some(site) = self.books.site(id) else { return Ok(()) };
        let Some(pa) = site.pa() else { return Ok(()) };
        let (ctx, view, group) = (site.breakpoint.ctx(), site.breakpoint.view(), site.group());
        let places = group.and_then(|group| self.books.group_mut(group)).map(|group| &mut group.places);
        let others = |&&mut (place, sites): &&mut (Pa, u32)| place == pa && sites > 1;
        if let Some((_, sites)) = places.and_then(|places| places.iter_mut().find(others)) {
            *sites -= 1;
            self.set_armed(id, None);
            return Ok(());
        }
        let (removed, result) = self.uninstall(vmi, ctx, pa, view);
        if !removed {
            return result;
        }
        self.set_armed(id, None);
        if let Some(group) = group.and_then(|group| self.books.group_mut(group)) {
            group.places.retain(|&(place, _)| place != pa);
        }
        result
    }

    fn set_armed(&mut self, id: Id, pa: Option<Pa>) {
        if let Some(site) = self.books.site_mut(id) {
            site.set_pa(pa);
        }
    }

    pub(super) fn remove_site(&mut self, vmi: &CoreOf<Controller>, id: Id) -> Result<(), VmiError> {
        self.disarm(vmi, id)?;
        self.books.forget(id);
        Ok(())
    }

    pub(super) fn remove_group(&mut self, vmi: &CoreOf<Controller>, group: Id) -> Result<(), VmiError> {
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
                let taken_back = unless_view_gone(self.controller.remove_breakpoint_at(vmi, ctx, pa, view)).is_ok()
                    || !self.controller.is_installed(pa, view);
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

    /// Takes a breakpoint from the controller; after the last one of its page has left, monitoring ends: a page that is
    /// opened shows nothing of ours any more. Answers whether the controller has it no longer, which may be in spite of an
    /// error: when one call failed, and another one that was to put the breakpoint back.
    fn uninstall(
        &mut self,
        vmi: &CoreOf<Controller>,
        ctx: AddressContext,
        pa: Pa,
        view: View,
    ) -> (bool, Result<(), VmiError>) {
        let gfn = ArchOf::<Controller>::gfn_from_pa(pa);
        let Some(mut entry) = self.pages.find_entry(view, gfn) else { return (true, Ok(())) };
        let page = entry.get_mut();
        let mut result = unless_view_gone(self.controller.remove_breakpoint_at(vmi, ctx, pa, view));
        if result.is_err() && self.controller.is_installed(pa, view) {
            return (false, result);
        }
        if page.installed > 1 {
            page.installed -= 1;
            return (true, result);
        }
        if page.monitored
            && let Err(error) = unless_view_gone(self.controller.unmonitor(vmi, gfn, view))
        {
            result = result.and(Err(error));
            if self.controller.insert_breakpoint_at(vmi, ctx, pa, view).is_ok() {
                // It is monitored still, but for what the removal has undone.
                let _ = self.controller.monitor(vmi, gfn, view);
                return (false, result);
            }
        }
        entry.remove();
        (true, result)
    }
}
