//! The breakpoint manager's books: which breakpoints are wanted in which address spaces, and where each is armed.
//!
//! A [`Site`] is one breakpoint in one address space. The sites of a global breakpoint belong to one [`Group`], which
//! counts the places behind them. Both live in slabs; a table of heads leads from a context to its sites (those of
//! several keys and views form a list), another from a virtual address to its groups. Lookups so touch one small table
//! and the record itself.

use hashbrown::{
    HashTable,
    hash_table::{Entry, OccupiedEntry},
};

use super::{Breakpoint, KeyType, TagType, near::NearHasher};
use crate::engine::addr::{AddressContext, Pa, Va, View};

/// The place of a record in its slab.
pub(super) type Id = u32;

/// Records that keep their place.
struct Slab<T> {
    records: Vec<Option<T>>,
    free: Vec<Id>,
}

impl<T> Slab<T> {
    const fn new() -> Self {
        Self { records: Vec::new(), free: Vec::new() }
    }

    fn insert(&mut self, record: T) -> Id {
        if let Some(id) = self.free.pop() {
            if let Some(slot) = self.records.get_mut(id as usize) {
                *slot = Some(record);
            }
            return id;
        }
        // Memory ends long before 2³² records.
        let id = self.records.len() as Id;
        self.records.push(Some(record));
        id
    }

    #[inline]
    fn get(&self, id: Id) -> Option<&T> {
        self.records.get(id as usize)?.as_ref()
    }

    #[inline]
    fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        self.records.get_mut(id as usize)?.as_mut()
    }

    fn remove(&mut self, id: Id) -> Option<T> {
        let record = self.records.get_mut(id as usize)?.take()?;
        self.free.push(id);
        Some(record)
    }

    fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.records.iter().enumerate().filter_map(|(id, record)| Some((id as Id, record.as_ref()?)))
    }
}

/// A record that is in a list of those with the same index key.
trait Listed {
    type IndexKey: Copy + Eq;
    fn index_key(&self) -> Self::IndexKey;
    fn hash(key: Self::IndexKey, hasher: &NearHasher) -> u64;
    fn next(&self) -> Option<Id>;
    fn set_next(&mut self, next: Option<Id>);
}

/// Lists of records by their index key: a table of list heads.
struct Index {
    heads: HashTable<Id>,
    hasher: NearHasher,
}

impl Index {
    fn new() -> Self {
        Self { heads: HashTable::new(), hasher: NearHasher::default() }
    }

    #[inline]
    fn head<T: Listed>(&self, slab: &Slab<T>, key: T::IndexKey) -> Option<Id> {
        let same = |&id: &Id| slab.get(id).is_some_and(|record| record.index_key() == key);
        self.heads.find(T::hash(key, &self.hasher), same).copied()
    }

    /// Puts a record at the head of its list.
    fn link<T: Listed>(&mut self, slab: &mut Slab<T>, id: Id) {
        let Some(key) = slab.get(id).map(T::index_key) else { return };
        let hash_of = |&id: &Id| slab.get(id).map_or(0, |record| T::hash(record.index_key(), &self.hasher));
        let same = |&id: &Id| slab.get(id).is_some_and(|record| record.index_key() == key);
        let next = match self.heads.entry(T::hash(key, &self.hasher), same, hash_of) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(entry.get_mut(), id)),
            Entry::Vacant(entry) => {
                entry.insert(id);
                None
            }
        };
        if let Some(record) = slab.get_mut(id) {
            record.set_next(next);
        }
    }

    /// Takes a record out of its list.
    fn unlink<T: Listed>(&mut self, slab: &mut Slab<T>, id: Id) {
        let Some((key, next)) = slab.get(id).map(|record| (record.index_key(), record.next())) else { return };
        let same = |&id: &Id| slab.get(id).is_some_and(|record| record.index_key() == key);
        let Ok(mut entry) = self.heads.find_entry(T::hash(key, &self.hasher), same) else { return };
        if *entry.get() == id {
            match next {
                Some(next) => *entry.get_mut() = next,
                None => _ = OccupiedEntry::remove(entry),
            }
            return;
        }
        let mut at = *entry.get();
        while let Some(record) = slab.get_mut(at) {
            match record.next() {
                Some(following) if following == id => return record.set_next(next),
                Some(following) => at = following,
                None => return,
            }
        }
    }
}

/// A breakpoint in one address space.
pub(super) struct Site<Key, Tag> {
    /// The breakpoint as it was inserted there.
    pub(super) breakpoint: Breakpoint<Key, Tag>,
    /// Where it is armed.
    pub(super) pa: Option<Pa>,
    /// The global breakpoint that it belongs to.
    pub(super) group: Option<Id>,
    next: Option<Id>,
}

impl<Key, Tag> Site<Key, Tag> {
    /// The next site of the same context.
    pub(super) fn next_id(&self) -> Option<Id> {
        self.next
    }
}

impl<Key, Tag> Listed for Site<Key, Tag> {
    type IndexKey = AddressContext;
    fn index_key(&self) -> AddressContext {
        self.breakpoint.ctx()
    }
    #[inline]
    fn hash(AddressContext { va, root }: AddressContext, hasher: &NearHasher) -> u64 {
        hasher.hash((root, va.0 & 0xfff), va.0 >> 12)
    }
    fn next(&self) -> Option<Id> {
        self.next
    }
    fn set_next(&mut self, next: Option<Id>) {
        self.next = next;
    }
}

/// A global breakpoint.
pub(super) struct Group<Key, Tag> {
    /// The breakpoint as it was inserted first: the root that it is known by.
    pub(super) breakpoint: Breakpoint<Key, Tag>,
    /// Its sites; never empty.
    pub(super) sites: Vec<Id>,
    /// Where it is armed, each place with the number of sites that map to it.
    pub(super) places: Vec<(Pa, u32)>,
    next: Option<Id>,
}

impl<Key, Tag> Listed for Group<Key, Tag> {
    type IndexKey = Va;
    fn index_key(&self) -> Va {
        self.breakpoint.ctx().va
    }
    #[inline]
    fn hash(va: Va, hasher: &NearHasher) -> u64 {
        hasher.hash(va.0 & 0xfff, va.0 >> 12)
    }
    fn next(&self) -> Option<Id> {
        self.next
    }
    fn set_next(&mut self, next: Option<Id>) {
        self.next = next;
    }
}

/// All sites and groups.
pub(super) struct Books<Key, Tag> {
    sites: Slab<Site<Key, Tag>>,
    contexts: Index,
    groups: Slab<Group<Key, Tag>>,
    globals: Index,
}

impl<Key: KeyType, Tag: TagType> Books<Key, Tag> {
    pub(super) fn new() -> Self {
        Self { sites: Slab::new(), contexts: Index::new(), groups: Slab::new(), globals: Index::new() }
    }

    #[inline]
    pub(super) fn site(&self, id: Id) -> Option<&Site<Key, Tag>> {
        self.sites.get(id)
    }

    #[inline]
    pub(super) fn site_mut(&mut self, id: Id) -> Option<&mut Site<Key, Tag>> {
        self.sites.get_mut(id)
    }

    #[inline]
    pub(super) fn group(&self, id: Id) -> Option<&Group<Key, Tag>> {
        self.groups.get(id)
    }

    #[inline]
    pub(super) fn group_mut(&mut self, id: Id) -> Option<&mut Group<Key, Tag>> {
        self.groups.get_mut(id)
    }

    /// All sites.
    pub(super) fn sites(&self) -> impl Iterator<Item = (Id, &Site<Key, Tag>)> {
        self.sites.iter()
    }

    /// How many sites there are.
    pub(super) fn len(&self) -> usize {
        self.sites.records.len() - self.sites.free.len()
    }

    /// The sites of an address in one address space: those of all keys and views.
    #[inline]
    pub(super) fn sites_at(&self, ctx: AddressContext) -> impl Iterator<Item = (Id, &Site<Key, Tag>)> {
        let head = self.contexts.head(&self.sites, ctx).and_then(|id| Some((id, self.sites.get(id)?)));
        std::iter::successors(head, |(_, site)| site.next.and_then(|id| Some((id, self.sites.get(id)?))))
    }

    /// The global breakpoints of an address: those of all keys and views.
    #[inline]
    pub(super) fn groups_at(&self, va: Va) -> impl Iterator<Item = (Id, &Group<Key, Tag>)> {
        let head = self.globals.head(&self.groups, va).and_then(|id| Some((id, self.groups.get(id)?)));
        std::iter::successors(head, |(_, group)| group.next.and_then(|id| Some((id, self.groups.get(id)?))))
    }

    /// The site of a key and a view at an address.
    #[inline]
    pub(super) fn find_site(&self, ctx: AddressContext, view: View, key: Key) -> Option<Id> {
        let mut sites = self.sites_at(ctx);
        sites.find(|(_, site)| site.breakpoint.view() == view && site.breakpoint.key() == key).map(|(id, _)| id)
    }

    /// The global breakpoint of a key and a view at an address.
    #[inline]
    pub(super) fn find_group(&self, va: Va, view: View, key: Key) -> Option<Id> {
        let mut groups = self.groups_at(va);
        groups.find(|(_, group)| group.breakpoint.view() == view && group.breakpoint.key() == key).map(|(id, _)| id)
    }

    /// Notes a breakpoint in an address space, not armed. The first site of a global breakpoint makes its group; a
    /// later one takes over the group's tag.
    pub(super) fn add(&mut self, breakpoint: Breakpoint<Key, Tag>) -> Id {
        let mut site = Site { breakpoint, pa: None, group: None, next: None };
        if breakpoint.is_global() {
            let known = self.find_group(breakpoint.ctx().va, breakpoint.view(), breakpoint.key());
            let group = known.unwrap_or_else(|| {
                let group = Group { breakpoint, sites: Vec::new(), places: Vec::new(), next: None };
                let id = self.groups.insert(group);
                self.globals.link(&mut self.groups, id);
                id
            });
            site.group = Some(group);
            if let Some(group) = self.groups.get(group) {
                site.breakpoint = group.breakpoint.with_ctx(breakpoint.ctx());
            }
        }
        let group = site.group;
        let id = self.sites.insert(site);
        self.contexts.link(&mut self.sites, id);
        if let Some(group) = group.and_then(|group| self.groups.get_mut(group)) {
            group.sites.push(id);
        }
        id
    }

    /// Forgets a site, and its group with the last one.
    pub(super) fn forget(&mut self, id: Id) {
        self.contexts.unlink(&mut self.sites, id);
        let Some(site) = self.sites.remove(id) else { return };
        let Some(group_id) = site.group else { return };
        let Some(group) = self.groups.get_mut(group_id) else { return };
        if let Some(at) = group.sites.iter().rposition(|&site| site == id) {
            group.sites.swap_remove(at);
        }
        if group.sites.is_empty() {
            self.globals.unlink(&mut self.groups, group_id);
            self.groups.remove(group_id);
        }
    }
}
