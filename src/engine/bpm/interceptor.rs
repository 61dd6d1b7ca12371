//! Shadow pages: copies of code pages with breakpoints in them, shown to the guest's instruction fetch in one view.

use std::marker::PhantomData;

use hashbrown::{HashMap, hash_map::Entry};

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
    frame: Gfn,
    /// Sorted by offset.
    points: Vec<Point>,
}

/// Shadow pages by (view, frame), and the breakpoints in each.
///
/// A shadow page is shown with all its breakpoints in it, never half made, and a call that fails changes nothing that
/// the guest could see. Frames that are no longer shown are kept for the next page and refreshed then;
/// [`Interceptor::free_all`] gives them back.
pub struct Interceptor<Driver: VmiDriver> {
    shadows: HashMap<(View, Gfn), Shadow>,
    /// Frames that no view shows, and the emptied lists that came with them.
    spare: Vec<Shadow>,
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
        Self { shadows: HashMap::new(), spare: Vec::new(), views: Vec::new(), driver: PhantomData }
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
        Some(self.shadows.get(&(view, gfn))?.frame)
    }

    /// The guest's bytes under a breakpoint.
    pub fn saved_bytes(&self, view: View, pa: Pa) -> Option<&[u8]> {
        let shadow = self.shadows.get(&(view, Driver::Architecture::gfn_from_pa(pa)))?;
        let offset = Driver::Architecture::pa_offset(pa) as u16;
        let at = shadow.points.binary_search_by_key(&offset, |point| point.offset).ok()?;
        shadow.points.get(at)?.saved.get(..Self::BREAKPOINT.len())
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

/// Part of a page, by offset.
fn part(page: &mut [u8; 4096], offset: u16, length: usize) -> Option<&mut [u8]> {
    let from = usize::from(offset);
    page.get_mut(from..from.checked_add(length)?)
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
        let entry = match self.shadows.entry((view, gfn)) {
            Entry::Occupied(entry) => {
                let Shadow { frame, points } = entry.into_mut();
                match points.binary_search_by_key(&offset, |point| point.offset) {
                    Ok(at) => points[at].references += 1,
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

        let mut shadow = match self.spare.pop() {
            Some(shadow) => shadow,
            None => Shadow { frame: vmi.allocate_gfn()?, points: Vec::new() },
        };
        let mut point = Point { offset, references: 1, saved: [0; MAX_BREAKPOINT] };
        let shown = show(vmi, &mut point, gfn, shadow.frame, view);
        if let Err(error) = shown {
            self.spare.push(shadow);
            return Err(error);
        }
        let frame = shadow.frame;
        shadow.points.push(point);
        entry.insert(shadow);
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
        let Entry::Occupied(mut entry) = self.shadows.entry((view, gfn)) else { return Ok(None) };
        let Shadow { frame, points } = entry.get_mut();
        let Ok(at) = points.binary_search_by_key(&offset, |point| point.offset) else { return Ok(None) };
        let last = points.len() == 1;
        let point = &mut points[at];
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
        let mut shadow = entry.remove();
        shadow.points.clear();
        self.spare.push(shadow);
        Ok(Some(true))
    }

    /// The guest wrote to a page: every shadow of it becomes the new page with the same breakpoints, and the new bytes
    /// under them are those that a removal will restore. Answers whether there was a shadow.
    ///
    /// # Errors
    /// As the driver failed; the shadow is as before then.
    pub fn guest_wrote(&mut self, vmi: &VmiCore<Driver>, gfn: Gfn) -> Result<bool, VmiError> {
        let mut page = None;
        for &view in &self.views {
            let Some(shadow) = self.shadows.get_mut(&(view, gfn)) else { continue };
            let original = match &mut page {
                Some(page) => page,
                page => {
                    let mut bytes = [0; 4096];
                    vmi.driver().read_page(gfn, &mut bytes)?;
                    page.insert(bytes)
                }
            };
            let mut patched = *original;
            for point in &shadow.points {
                if let Some(bytes) = part(&mut patched, point.offset, Self::BREAKPOINT.len()) {
                    bytes.copy_from_slice(Self::BREAKPOINT);
                }
            }
            write_frame(vmi, shadow.frame, 0, &patched)?;
            for point in &mut shadow.points {
                if let Some(bytes) = part(original, point.offset, Self::BREAKPOINT.len()) {
                    point.saved[..bytes.len()].copy_from_slice(bytes);
                }
            }
        }
        Ok(page.is_some())
    }

    /// Hides every shadow page that is still shown and gives all frames back.
    ///
    /// # Errors
    /// The first failure; everything was tried, and what could not be given back is kept for another try.
    pub fn free_all(&mut self, vmi: &VmiCore<Driver>) -> Result<(), VmiError> {
        let mut result = Ok(());
        let mut spare = std::mem::take(&mut self.spare);
        self.shadows.retain(|&(view, gfn), shadow| match hide(vmi, view, gfn) {
            Ok(()) => {
                spare.push(Shadow { frame: shadow.frame, points: Vec::new() });
                false
            }
            Err(error) => {
                keep_first(&mut result, error);
                true
            }
        });
        for shadow in spare {
            if let Err(error) = vmi.free_gfn(shadow.frame) {
                keep_first(&mut result, error);
                self.spare.push(shadow);
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
    let mut page = [0; 4096];
    vmi.driver().read_page(gfn, &mut page)?;
    if let Some(bytes) = part(&mut page, point.offset, breakpoint.len()) {
        point.saved[..breakpoint.len()].copy_from_slice(bytes);
        bytes.copy_from_slice(breakpoint);
    }
    write_frame(vmi, frame, 0, &page)?;
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
