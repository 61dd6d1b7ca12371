//! Shadow pages: copies of code pages with breakpoints in them, shown to the guest's instruction fetch in one view.

use std::marker::PhantomData;

use hashbrown::{HashTable, hash_table::Entry};
use smallvec::{SmallVec, smallvec};

use super::near::NearHasher;
use crate::engine::{
    addr::{Gfn, Pa, View},
    arch::Architecture,
    driver::{VmiDriver, VmiMemory, VmiViewControl, VmiVmControl},
    error::VmiError,
    session::VmiCore,
};

/// Most bytes of a breakpoint instruction on any architecture.
const MAX_BREAKPOINT: usize = 4;

/// A breakpoint in a shadow page.
struct Point {
    offset: u16,
    /// How often it was inserted.
    references: u32,
    /// The guest's bytes under it.
    saved: [u8; MAX_BREAKPOINT],
}

/// A shadow page.
struct Shadow {
    view: View,
    /// The guest's frame.
    gfn: Gfn,
    /// The frame that the view shows instead.
    frame: Gfn,
    /// Sorted by offset. Most pages have one, which then is in the same cache line.
    points: SmallVec<[Point; 1]>,
}

impl Shadow {
    #[inline]
    fn is(&self, view: View, gfn: Gfn) -> bool {
        self.view == view && self.gfn == gfn
    }
}

/// Shadow pages by (view, frame), and the breakpoints in each.
///
/// A shadow page is shown with all its breakpoints in it, never half made, and a call that fails changes nothing that
/// the guest could see. Frames that are no longer shown are kept for the next page and refreshed then;
/// [`Interceptor::free_all`] gives them back.
pub struct Interceptor<Driver: VmiDriver> {
    shadows: HashTable<Shadow>,
    hasher: NearHasher,
    /// Frames that no view shows, and the emptied lists that came with them.
    spare: Vec<Gfn>,
    /// Every view that has or had shadows.
    views: Vec<View>,
    driver: PhantomData<fn() -> Driver>,
}

impl<Driver: VmiDriver> Default for Interceptor<Driver> {
    fn default() -> Self {
        Self::new()
    }
}

impl<Driver: VmiDriver> Interceptor<Driver> {
    const BREAKPOINT: &'static [u8] = <Driver::Architecture as Architecture>::BREAKPOINT;
    const FITS: () = assert!(Self::BREAKPOINT.len() <= MAX_BREAKPOINT && Driver::Architecture::PAGE_SIZE == 4096);

    /// No shadow pages yet.
    pub fn new() -> Self {
        const { Self::FITS };
        Self {
            shadows: HashTable::new(),
            hasher: NearHasher::default(),
            spare: Vec::new(),
            views: Vec::new(),
            driver: PhantomData,
        }
    }

    /// How many shadow pages are shown.
    pub fn shadow_pages(&self) -> usize {
        self.shadows.len()
    }

    /// How many frames are kept for reuse.
    pub fn spare_frames(&self) -> usize {
        self.spare.len()
    }

    /// The frame shown instead of `gfn` in a view.
    pub fn shadow(&self, view: View, gfn: Gfn) -> Option<Gfn> {
        Some(self.find(view, gfn)?.frame)
    }

    /// The guest's bytes under a breakpoint.
    pub fn saved_bytes(&self, view: View, pa: Pa) -> Option<&[u8]> {
        let shadow = self.find(view, Driver::Architecture::gfn_from_pa(pa))?;
        let offset = Driver::Architecture::pa_offset(pa) as u16;
        let at = shadow.points.binary_search_by_key(&offset, |point| point.offset).ok()?;
        shadow.points.get(at)?.saved.get(..Self::BREAKPOINT.len())
    }

    fn find(&self, view: View, gfn: Gfn) -> Option<&Shadow> {
        self.shadows.find(self.hasher.hash(view, gfn.0), |shadow| shadow.is(view, gfn))
    }

    /// Whether a breakpoint may lie at this place of a list.
    fn check_overlap(points: &[Point], at: usize, offset: u16, pa: Pa) -> Result<(), VmiError> {
        let close = |point: &Point| usize::from(point.offset.abs_diff(offset)) < Self::BREAKPOINT.len();
        let before = at.checked_sub(1).and_then(|at| points.get(at));
        if before.is_some_and(close) || points.get(at).is_some_and(close) {
            return Err(VmiError::Invalid(format!("a breakpoint at {pa} would overlap one that is there already")));
        }
        Ok(())
    }
}

/// Puts a breakpoint into a page and saves what was there.
fn patch(page: &mut [u8; 4096], offset: u16, breakpoint: &[u8], saved: &mut [u8; MAX_BREAKPOINT]) {
    let from = usize::from(offset);
    for ((byte, saved), new) in page.iter_mut().skip(from).zip(saved).zip(breakpoint) {
        *saved = std::mem::replace(byte, *new);
    }
}

impl<Driver> Interceptor<Driver>
where
    Driver: VmiMemory + VmiViewControl + VmiVmControl,
{
    /// Puts a breakpoint at a physical address in a view, or counts it where there is one. Answers the shadow frame.
    ///
    /// # Errors
    /// [`VmiError::Invalid`] where it would run past its page or overlap another; else as the driver failed.
    pub fn insert_breakpoint(&mut self, vmi: &VmiCore<Driver>, pa: Pa, view: View) -> Result<Gfn, VmiError> {
        let length = Self::BREAKPOINT.len();
        let offset = Driver::Architecture::pa_offset(pa);
        if offset + length as u64 > Driver::Architecture::PAGE_SIZE {
            return Err(VmiError::Invalid(format!("a breakpoint at {pa} would run past its page")));
        }
        let (gfn, offset) = (Driver::Architecture::gfn_from_pa(pa), offset as u16);
        let hash_of = |shadow: &Shadow| self.hasher.hash(shadow.view, shadow.gfn.0);
        let hash = self.hasher.hash(view, gfn.0);
        let entry = match self.shadows.entry(hash, |shadow| shadow.is(view, gfn), hash_of) {
            Entry::Occupied(entry) => {
                let Shadow { frame, points, .. } = entry.into_mut();
                match points.binary_search_by_key(&offset, |point| point.offset) {
                    Ok(at) => {
                        if let Some(point) = points.get_mut(at) {
                            point.references += 1;
                        }
                    }
                    Err(at) => {
                        Self::check_overlap(points, at, offset, pa)?;
                        let mut saved = [0; MAX_BREAKPOINT];
                        vmi.driver().read_physical(pa, &mut saved[..length])?;
                        write_frame(vmi, *frame, offset, Self::BREAKPOINT)?;
                        points.insert(at, Point { offset, references: 1, saved });
                    }
                }
                return Ok(*frame);
            }
            Entry::Vacant(entry) => entry,
        };

        let frame = match self.spare.pop() {
            Some(spare) => spare,
            None => vmi.allocate_gfn()?,
        };
        let mut point = Point { offset, references: 1, saved: [0; MAX_BREAKPOINT] };
        if let Err(error) = show(vmi, &mut point, gfn, frame, view) {
            self.spare.push(frame);
            return Err(error);
        }
        entry.insert(Shadow { view, gfn, frame, points: smallvec![point] });
        if !self.views.contains(&view) {
            self.views.push(view);
        }
        Ok(frame)
    }

    /// Takes a breakpoint out, or takes one back of those that were counted. Answers whether the page has no breakpoint
    /// left; `None` where there was none.
    ///
    /// # Errors
    /// As the driver failed; the breakpoint is still there then. A view that is gone is no error.
    pub fn remove_breakpoint(&mut self, vmi: &VmiCore<Driver>, pa: Pa, view: View) -> Result<Option<bool>, VmiError> {
        let (gfn, offset) = (Driver::Architecture::gfn_from_pa(pa), Driver::Architecture::pa_offset(pa) as u16);
        let found = self.shadows.find_entry(self.hasher.hash(view, gfn.0), |shadow| shadow.is(view, gfn));
        let Ok(mut entry) = found else { return Ok(None) };
        let Shadow { frame, points, .. } = entry.get_mut();
        let last = points.len() == 1;
        let Ok(at) = points.binary_search_by_key(&offset, |point| point.offset) else { return Ok(None) };
        let Some(point) = points.get_mut(at) else { return Ok(None) };
        if point.references > 1 {
            point.references -= 1;
            return Ok(Some(false));
        }
        if !last {
            write_frame(vmi, *frame, offset, &point.saved[..Self::BREAKPOINT.len()])?;
            points.remove(at);
            return Ok(Some(false));
        }
        hide(vmi, view, gfn)?;
        // Nothing shows the frame any more, and it is copied anew before anything does again: its bytes can stay.
        self.spare.push(*frame);
        entry.remove();
        Ok(Some(true))
    }

    /// The guest wrote to a page: every shadow of it becomes the new page with the same breakpoints, and the new bytes
    /// under them are those that a removal will restore. Answers whether there was a shadow.
    ///
    /// # Errors
    /// As the driver failed; the shadow is as before then.
    pub fn guest_wrote(&mut self, vmi: &VmiCore<Driver>, gfn: Gfn) -> Result<bool, VmiError> {
        let mut known = false;
        let mut page = [0; 4096];
        for &view in &self.views {
            let hash = self.hasher.hash(view, gfn.0);
            let Some(shadow) = self.shadows.find_mut(hash, |shadow| shadow.is(view, gfn)) else { continue };
            known = true;
            // Read for each view: there are few, and a page that changes in between is told again.
            vmi.driver().read_page(gfn, &mut page)?;
            let mut saved = Vec::with_capacity(shadow.points.len());
            for point in &shadow.points {
                let mut bytes = [0; MAX_BREAKPOINT];
                patch(&mut page, point.offset, Self::BREAKPOINT, &mut bytes);
                saved.push(bytes);
            }
            write_frame(vmi, shadow.frame, 0, &page)?;
            for (point, saved) in shadow.points.iter_mut().zip(saved) {
                point.saved = saved;
            }
        }
        Ok(known)
    }

    /// Hides every shadow page that is still shown and gives all frames back.
    ///
    /// # Errors
    /// The first failure; everything was tried, and what could not be given back is kept for another try.
    pub fn free_all(&mut self, vmi: &VmiCore<Driver>) -> Result<(), VmiError> {
        let mut result = Ok(());
        let mut spare = std::mem::take(&mut self.spare);
        self.shadows.retain(|shadow| match hide(vmi, shadow.view, shadow.gfn) {
            Ok(()) => {
                spare.push(shadow.frame);
                false
            }
            Err(error) => {
                keep_first(&mut result, error);
                true
            }
        });
        for frame in spare {
            if let Err(error) = vmi.free_gfn(frame) {
                keep_first(&mut result, error);
                self.spare.push(frame);
            }
        }
        result
    }
}

fn keep_first(result: &mut Result<(), VmiError>, error: VmiError) {
    if result.is_ok() {
        *result = Err(error);
    }
}

/// Copies a page into a shadow frame with one breakpoint in it and shows that instead.
fn show<Driver>(vmi: &VmiCore<Driver>, point: &mut Point, gfn: Gfn, frame: Gfn, view: View) -> Result<(), VmiError>
where
    Driver: VmiMemory + VmiViewControl,
{
    let breakpoint = Driver::Architecture::BREAKPOINT;
    let saved = point.saved.get_mut(..breakpoint.len()).unwrap_or_default();
    vmi.driver().copy_page_patched(gfn, frame, usize::from(point.offset), breakpoint, saved)?;
    vmi.flush_gfn_cache_entry(frame);
    vmi.change_view_gfn(view, gfn, frame)
}

/// Shows a page itself again, if there is still a view to show it in.
fn hide<Driver: VmiViewControl>(vmi: &VmiCore<Driver>, view: View, gfn: Gfn) -> Result<(), VmiError> {
    match vmi.reset_view_gfn(view, gfn) {
        Err(VmiError::ViewNotFound(_)) => Ok(()),
        result => result,
    }
}

/// Writes into a frame of ours. The frame holds no page table, so that translations need not be forgotten.
fn write_frame<Driver: VmiMemory>(
    vmi: &VmiCore<Driver>,
    frame: Gfn,
    offset: u16,
    bytes: &[u8],
) -> Result<(), VmiError> {
    vmi.driver().write_physical(Driver::Architecture::pa_from_gfn(frame) + u64::from(offset), bytes)?;
    vmi.flush_gfn_cache_entry(frame);
    Ok(())
}
