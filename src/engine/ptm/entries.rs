//! The monitored entries of one table, by their place in it.

use super::slab::{Id, NONE};

/// For each monitored entry the first node of its chain. Most tables have one such entry, some have all 512.
#[derive(Default)]
pub(super) enum Entries {
    #[default]
    None,
    One(u16, Id),
    Many(Box<Many>),
}

#[derive(Default)]
pub(super) struct Many {
    /// One bit for each entry.
    used: [u64; 8],
    /// For each set bit, in order, the first node.
    heads: Vec<Id>,
}

impl Many {
    fn word(&self, index: u16) -> u64 {
        self.used.get(usize::from(index >> 6)).copied().unwrap_or(0)
    }

    /// How many entries are before this one, and whether it is there.
    #[inline]
    fn position(&self, index: u16) -> (usize, bool) {
        let before: u32 = self.used.iter().take(usize::from(index >> 6)).map(|bits| bits.count_ones()).sum();
        let (word, bit) = (self.word(index), 1u64 << (index & 63));
        ((before + (word & (bit - 1)).count_ones()) as usize, word & bit != 0)
    }

    fn flip(&mut self, index: u16) {
        if let Some(word) = self.used.get_mut(usize::from(index >> 6)) {
            *word ^= 1 << (index & 63);
        }
    }

    /// The places of the entries from `first` on.
    fn places(&self, first: u16) -> impl Iterator<Item = u16> + '_ {
        (first >> 6..8).flat_map(move |word| {
            let mut bits = self.word(word << 6);
            if word == first >> 6 {
                bits &= !0 << (first & 63);
            }
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros())?;
                bits &= bits - 1;
                Some((word << 6) + bit as u16)
            })
        })
    }
}

impl Entries {
    /// The first node of an entry's chain, `NONE` where it is not monitored.
    #[inline]
    pub(super) fn head(&self, index: u16) -> Id {
        match self {
            Self::One(one, head) if *one == index => *head,
            Self::None | Self::One(..) => NONE,
            Self::Many(many) => match many.position(index) {
                (at, true) => many.heads.get(at).copied().unwrap_or(NONE),
                _ => NONE,
            },
        }
    }

    /// Sets the first node of an entry's chain; `NONE` where it is not monitored any more.
    pub(super) fn set_head(&mut self, index: u16, head: Id) {
        match self {
            Self::None if head == NONE => {}
            Self::None => *self = Self::One(index, head),
            Self::One(one, _) if *one == index => {
                *self = if head == NONE { Self::None } else { Self::One(index, head) };
            }
            Self::One(..) if head == NONE => {}
            &mut Self::One(one, first) => {
                let mut many = Box::new(Many::default());
                many.heads.push(first);
                many.flip(one);
                *self = Self::Many(many);
                self.set_head(index, head);
            }
            Self::Many(many) => {
                let (at, there) = many.position(index);
                match many.heads.get_mut(at).filter(|_| there) {
                    Some(slot) if head != NONE => *slot = head,
                    Some(_) => {
                        many.heads.remove(at);
                        many.flip(index);
                        if many.heads.is_empty() {
                            *self = Self::None;
                        }
                    }
                    None if head != NONE => {
                        many.heads.insert(at.min(many.heads.len()), head);
                        many.flip(index);
                    }
                    None => {}
                }
            }
        }
    }

    /// The entries from `first` to `last`: place and first node.
    pub(super) fn between(&self, first: u16, last: u16) -> impl Iterator<Item = (u16, Id)> + '_ {
        let one = match self {
            Self::One(index, head) => Some((*index, *head)),
            _ => None,
        };
        let many = match self {
            Self::Many(many) => Some(many),
            _ => None,
        };
        let many = many.into_iter().flat_map(move |many| {
            let heads = many.heads.iter().skip(many.position(first).0).copied();
            many.places(first).zip(heads)
        });
        one.into_iter().filter(move |(index, _)| *index >= first).chain(many).take_while(move |(at, _)| *at <= last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn entries_are_a_map_in_order() {
        let mut entries = Entries::default();
        let mut model = BTreeMap::new();
        let mut seed = 1u64;
        let (steps, phase) = if cfg!(miri) { (80, 20) } else { (20_000, 2_000) };
        for step in 0..steps {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            // Mostly few, now and then many.
            let place = (seed >> 40) as u16 % if step / phase % 2 == 0 { 3 } else { 512 };
            if seed >> 60 < 9 {
                entries.set_head(place, step);
                model.insert(place, step);
            } else {
                entries.set_head(place, NONE);
                model.remove(&place);
            }
            assert_eq!(entries.head(place), model.get(&place).copied().unwrap_or(NONE));
            let (first, last) = ((seed >> 20) as u16 % 512, (seed >> 30) as u16 % 512);
            let expected: Vec<_> = model.iter().map(|(&at, &head)| (at, head)).collect();
            assert_eq!(entries.between(0, 511).collect::<Vec<_>>(), expected);
            let part: Vec<_> = expected.into_iter().filter(|(at, _)| (first..=last).contains(at)).collect();
            assert_eq!(entries.between(first, last).collect::<Vec<_>>(), part, "{first} to {last}");
        }
    }
}
