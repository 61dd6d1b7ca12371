//! Views: per view, what a guest frame shows and what may be done with it (on hardware: second-level page tables).

use std::collections::HashMap;

use crate::engine::{
    addr::View,
    driver::{MemoryAccess, MemoryAccessOptions},
    error::VmiError,
};

/// What a view says of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) access: MemoryAccess,
    pub(super) options: MemoryAccessOptions,
    /// The frame whose contents it shows.
    pub(super) shows: u64,
}

struct Table {
    default_access: MemoryAccess,
    /// One bit per frame of RAM: whether `changed` may know it. Nearly all frames are as the view's default says.
    known: Vec<u64>,
    changed: HashMap<u64, Mapping>,
}

impl Table {
    fn new(default_access: MemoryAccess, frames: u64) -> Self {
        Self { default_access, known: vec![0; (frames as usize).div_ceil(64)], changed: HashMap::new() }
    }

    #[inline]
    fn get(&self, gfn: u64) -> Mapping {
        let word = self.known.get((gfn >> 6) as usize);
        if word.is_none_or(|word| word >> (gfn & 63) & 1 != 0)
            && let Some(mapping) = self.changed.get(&gfn)
        {
            return *mapping;
        }
        Mapping { access: self.default_access, options: MemoryAccessOptions::default(), shows: gfn }
    }

    fn set(&mut self, gfn: u64, mapping: Mapping) {
        if let Some(word) = self.known.get_mut((gfn >> 6) as usize) {
            *word |= 1 << (gfn & 63);
        }
        self.changed.insert(gfn, mapping);
    }

    fn reset(&mut self, gfn: u64) {
        if let Some(word) = self.known.get_mut((gfn >> 6) as usize) {
            *word &= !(1 << (gfn & 63));
        }
        self.changed.remove(&gfn);
    }
}

/// All views of the machine.
pub(super) struct Views {
    tables: Vec<Option<Table>>,
    frames: u64,
}

impl Views {
    /// As many as fit a list of view pointers (Intel SDM volume 3C, section 26.5.6.3, VM function 0): one page of 8 bytes each.
    const LIMIT: usize = 512;

    pub(super) const DEFAULT: View = View(0);

    pub(super) fn new(frames: u64) -> Self {
        Self { tables: vec![Some(Table::new(MemoryAccess::RWX, frames))], frames }
    }

    fn table(&self, view: View) -> Result<&Table, VmiError> {
        self.tables.get(usize::from(view.0)).and_then(Option::as_ref).ok_or(VmiError::ViewNotFound(view))
    }

    fn table_mut(&mut self, view: View) -> Result<&mut Table, VmiError> {
        self.tables.get_mut(usize::from(view.0)).and_then(Option::as_mut).ok_or(VmiError::ViewNotFound(view))
    }

    pub(super) fn exists(&self, view: View) -> bool {
        self.table(view).is_ok()
    }

    /// What a view says of a frame. A vCPU is never in a view that does not exist.
    #[inline]
    pub(super) fn get(&self, view: View, gfn: u64) -> Mapping {
        match self.tables.get(usize::from(view.0)) {
            Some(Some(table)) => table.get(gfn),
            _ => Mapping { access: MemoryAccess::RWX, options: MemoryAccessOptions::default(), shows: gfn },
        }
    }

    pub(super) fn access(&self, view: View, gfn: u64) -> Result<MemoryAccess, VmiError> {
        Ok(self.table(view)?.get(gfn).access)
    }

    pub(super) fn set_access(
        &mut self,
        view: View,
        gfn: u64,
        access: MemoryAccess,
        options: MemoryAccessOptions,
    ) -> Result<(), VmiError> {
        let table = self.table_mut(view)?;
        let mapping = Mapping { access, options, ..table.get(gfn) };
        table.set(gfn, mapping);
        Ok(())
    }

    pub(super) fn show(&mut self, view: View, gfn: u64, shows: u64) -> Result<(), VmiError> {
        let table = self.table_mut(view)?;
        let mapping = Mapping { shows, ..table.get(gfn) };
        table.set(gfn, mapping);
        Ok(())
    }

    pub(super) fn reset(&mut self, view: View, gfn: u64) -> Result<(), VmiError> {
        self.table_mut(view)?.reset(gfn);
        Ok(())
    }

    pub(super) fn create(&mut self, default_access: MemoryAccess) -> Result<View, VmiError> {
        let free = self.tables.iter().position(Option::is_none).unwrap_or(self.tables.len());
        if free >= Self::LIMIT {
            return Err(VmiError::Invalid(format!("all {} views of the machine are in use", Self::LIMIT)));
        }
        if free == self.tables.len() {
            self.tables.push(None);
        }
        if let Some(slot) = self.tables.get_mut(free) {
            *slot = Some(Table::new(default_access, self.frames));
        }
        Ok(View(free as u16))
    }

    pub(super) fn destroy(&mut self, view: View) -> Result<(), VmiError> {
        if view == Self::DEFAULT {
            return Err(VmiError::Invalid("the default view cannot be destroyed".to_owned()));
        }
        self.table(view)?;
        if let Some(slot) = self.tables.get_mut(usize::from(view.0)) {
            *slot = None;
        }
        Ok(())
    }

    /// Back to one view in which everything is allowed.
    pub(super) fn reset_all(&mut self) {
        *self = Self::new(self.frames);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_changes_what_it_was_told_to_and_nothing_else() {
        let mut views = Views::new(128);
        let view = views.create(MemoryAccess::RX).expect("free");
        views.set_access(view, 70, MemoryAccess::X, MemoryAccessOptions::default()).expect("exists");
        views.show(view, 70, 200).expect("exists");
        assert_eq!((views.get(view, 70).access, views.get(view, 70).shows), (MemoryAccess::X, 200));
        assert_eq!((views.get(view, 71).access, views.get(view, 71).shows), (MemoryAccess::RX, 71));
        assert_eq!(views.get(Views::DEFAULT, 70).access, MemoryAccess::RWX);
        views.reset(view, 70).expect("exists");
        assert_eq!((views.get(view, 70).access, views.get(view, 70).shows), (MemoryAccess::RX, 70));
    }

    #[test]
    fn a_destroyed_view_is_gone_and_its_number_is_used_again() {
        let mut views = Views::new(16);
        let view = views.create(MemoryAccess::RWX).expect("free");
        views.destroy(view).expect("exists");
        assert!(matches!(views.access(view, 1), Err(VmiError::ViewNotFound(v)) if v == view));
        assert!(views.destroy(view).is_err() && views.destroy(Views::DEFAULT).is_err());
        assert_eq!(views.create(MemoryAccess::RWX).ok(), Some(view));
    }
}
