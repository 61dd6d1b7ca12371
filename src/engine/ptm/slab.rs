//! Values in one allocation, named by small numbers: what the monitor uses instead of pointers.

/// The number of a value in a [`Slab`].
pub(super) type Id = u32;

/// No value.
pub(super) const NONE: Id = Id::MAX;

/// Room that the books have from the start, so that the first addresses do not pay for growing them.
pub(super) const FIRST_ROOM: usize = 32;

/// A value of a slab. The default one is what a free place holds, and is not live.
pub(super) trait Slot: Default {
    /// Whether it is a value.
    fn is_live(&self) -> bool;
}

/// Values by number; freed numbers are given out again.
///
/// A number that names nothing reads as the default value and swallows writes, so that a mistake in the books can
/// neither panic nor reach another value.
pub(super) struct Slab<T> {
    items: Vec<T>,
    free: Vec<Id>,
    /// What a number reads as that names nothing; never written.
    void: T,
    /// Where writes to such a number go.
    sink: T,
}

impl<T: Slot> Default for Slab<T> {
    fn default() -> Self {
        Self {
            items: Vec::with_capacity(FIRST_ROOM),
            free: Vec::with_capacity(FIRST_ROOM),
            void: T::default(),
            sink: T::default(),
        }
    }
}

impl<T: Slot> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> Id {
        if let Some(id) = self.free.pop() {
            if let Some(slot) = self.items.get_mut(id as usize) {
                *slot = value;
            }
            return id;
        }
        self.items.push(value);
        (self.items.len() - 1) as Id
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<T> {
        let value = self.items.get_mut(id as usize).filter(|value| value.is_live())?;
        let value = std::mem::take(value);
        self.free.push(id);
        Some(value)
    }

    #[inline]
    pub(super) fn get(&self, id: Id) -> Option<&T> {
        self.items.get(id as usize).filter(|value| value.is_live())
    }

    #[inline]
    pub(super) fn at(&self, id: Id) -> &T {
        self.items.get(id as usize).unwrap_or(&self.void)
    }

    #[inline]
    pub(super) fn at_mut(&mut self, id: Id) -> &mut T {
        self.items.get_mut(id as usize).unwrap_or(&mut self.sink)
    }

    /// All values with their numbers, in order of the numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.items.iter().enumerate().filter(|(_, value)| value.is_live()).map(|(id, value)| (id as Id, value))
    }

    pub(super) fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }
}
