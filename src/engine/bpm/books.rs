//! The breakpoint manager's books: which breakpoints are wanted in which address spaces, and where each is armed.
//!
//! A [`Site`] is one breakpoint in one address space. The sites of a global breakpoint belong to one [`Group`], which
//! counts the places behind them. Both live in slabs; a table of heads leads from a context to its sites (those of
//! several keys and views form a list), another from a virtual address to its groups. Lookups so touch one small table
//! and the record itself.

use hashbrown::{HashTable, hash_table::OccupiedEntry};

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

/// No record. Memory ends long before 2³² of them.
const NONE: Id = Id::MAX;

/// A record that is in a list of those with the same index key.
trait Listed {
    type IndexKey: Copy + Eq;
    fn index_key(&self) -> Self::IndexKey;
    fn hash(key: Self::IndexKey, hasher: &NearHasher) -> u64;
    /// The next record of the list, or [`NONE`].
    fn next(&self) -> Id;
    fn set_next(&mut self, next: Id);
}

/// Where the list of a key begins, or would begin: valid until the books change.
#[derive(Clone, Copy)]
pub(super) struct Place {
    hash: u64,
    head: Id,
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
    fn place<T: Listed>(&self, slab: &Slab<T>, key: T::IndexKey) -> Place {
        let same = |&id: &Id| slab.get(id).is_some_and(|record| record.index_key() == key);
        let hash = T::hash(key, &self.hasher);
        Place { hash, head: self.heads.find(hash, same).copied().unwrap_or(NONE) }
    }

    /// The records of a list.
    #[inline]
    fn list<T: Listed>(slab: &Slab<T>, place: Place) -> impl Iterator<Item = (Id, &T)> {
        let at = |id: Id| Some((id, slab.get(id)?));
        std::iter::successors(at(place.head), move |(_, record)| at(record.next()))
    }

    /// Puts a record into its list: behind the head, if there is one, so that the table stays as it is.
    #[inline]
    fn link<T: Listed>(&mut self, slab: &mut Slab<T>, id: Id, place: Place) {
        let next = match slab.get_mut(place.head) {
            Some(head) => {
                let next = head.next();
                head.set_next(id);
                next
            }
            None => {
                let hash_of = |&id: &Id| slab.get(id).map_or(0, |record| T::hash(record.index_key(), &self.hasher));
                self.heads.insert_unique(place.hash, id, hash_of);
                NONE
            }
        };
        if let Some(record) = slab.get_mut(id) {
            record.set_next(next);
        }
    }

    /// Takes a record out of its list.
    #[inline]
    fn unlink<T: Listed>(&mut self, slab: &mut Slab<T>, id: Id) {
        let Some((key, next)) = slab.get(id).map(|record| (record.index_key(), record.next())) else { return };
        if let Ok(mut entry) = self.heads.find_entry(T::hash(key, &self.hasher), |&head| head == id) {
            if next == NONE {
                OccupiedEntry::remove(entry);
            } else {
                *entry.get_mut() = next;
            }
            return;
        }
        let mut at = self.place(slab, key).head;
        while let Some(record) = slab.get_mut(at) {
            if record.next() == id {
                return record.set_next(next);
            }
            at = record.next();
        }
    }
}

/// A breakpoint in one address space.
pub(super) struct Site<Key, Tag> {
    /// The breakpoint as it was inserted there.
    pub(super) breakpoint: Breakpoint<Key, Tag>,
    /// Where it is armed, if it is.
    place: Pa,
    armed: bool,
    /// Whether a global breakpoint was inserted with this address space first: its group's breakpoint is this one.
    pub(super) founder: bool,
    /// The global breakpoint that it belongs to, or [`NONE`].
    group: Id,
    next: Id,
}

impl<Key, Tag> Site<Key, Tag> {
    /// Where it is armed.
    #[inline]
    pub(super) fn pa(&self) -> Option<Pa> {
        self.armed.then_some(self.place)
    }

    /// Notes where it is armed.
    #[inline]
    pub(super) fn set_pa(&mut self, pa: Option<Pa>) {
        (self.place, self.armed) = (pa.unwrap_or_default(), pa.is_some());
    }

    /// The global breakpoint that it belongs to.
    #[inline]
    pub(super) fn group(&self) -> Option<Id> {
        (self.group != NONE).then_some(self.group)
    }

    /// The next site of the same context; may name none.
    pub(super) fn next_id(&self) -> Id {
        self.next
    }
}

impl<Key, Tag> Listed for Site<Key, Tag> {
    type IndexKey = AddressContext;
    #[inline]
    fn index_key(&self) -> AddressContext {
        self.breakpoint.ctx()
    }
    #[inline]
    fn hash(AddressContext { va, root }: AddressContext, hasher: &NearHasher) -> u64 {
        hasher.hash((root, va.0 & 0xfff), va.0 >> 12)
    }
    #[inline]
    fn next(&self) -> Id {
        self.next
    }
    #[inline]
    fn set_next(&mut self, next: Id) {
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
    next: Id,
}

impl<Key, Tag> Listed for Group<Key, Tag> {
    type IndexKey = Va;
    #[inline]
    fn index_key(&self) -> Va {
        self.breakpoint.ctx().va
    }
    #[inline]
    fn hash(va: Va, hasher: &NearHasher) -> u64 {
        hasher.hash(va.0 & 0xfff, va.0 >> 12)
    }
    #[inline]
    fn next(&self) -> Id {
        self.next
    }
    #[inline]
    fn set_next(&mut self, next: Id) {
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
        Index::list(&self.sites, self.contexts.place(&self.sites, ctx))
    }

    /// The global breakpoints of an address: those of all keys and views.
    #[inline]
    pub(super) fn groups_at(&self, va: Va) -> impl Iterator<Item = (Id, &Group<Key, Tag>)> {
        Index::list(&self.groups, self.globals.place(&self.groups, va))
    }

    /// The site of a key and a view at an address; else the place for [`Books::add`].
    #[inline]
    pub(super) fn find_site(&self, ctx: AddressContext, view: View, key: Key) -> Result<Id, Place> {
        let place = self.contexts.place(&self.sites, ctx);
        let mut sites = Index::list(&self.sites, place);
        let site = sites.find(|(_, site)| site.breakpoint.view() == view && site.breakpoint.key() == key);
        site.map(|(id, _)| id).ok_or(place)
    }

    /// The global breakpoint of a key and a view at an address; else the place for a new one.
    #[inline]
    pub(super) fn find_group(&self, va: Va, view: View, key: Key) -> Result<Id, Place> {
        let place = self.globals.place(&self.groups, va);
        let mut groups = Index::list(&self.groups, place);
        let group = groups.find(|(_, group)| group.breakpoint.view() == view && group.breakpoint.key() == key);
        group.map(|(id, _)| id).ok_or(place)
    }

    /// Notes a breakpoint in an address space, not armed, at the place that [`Books::find_site`] answered. The first
    /// site of a global breakpoint makes its group; a later one takes over the group's tag.
    #[inline]
    pub(super) fn add(&mut self, breakpoint: Breakpoint<Key, Tag>, place: Place) -> Id {
        let mut site = Site { breakpoint, place: Pa(0), armed: false, founder: false, group: NONE, next: NONE };
        if breakpoint.is_global() {
            self.join(&mut site);
        }
        let group = site.group;
        let id = self.sites.insert(site);
        self.contexts.link(&mut self.sites, id, place);
        if let Some(group) = self.groups.get_mut(group) {
            group.sites.push(id);
        }
        id
    }

    /// Finds or makes the group of a new site.
    fn join(&mut self, site: &mut Site<Key, Tag>) {
        let breakpoint = site.breakpoint;
        match self.find_group(breakpoint.ctx().va, breakpoint.view(), breakpoint.key()) {
            Ok(group) => {
                site.group = group;
                if let Some(group) = self.groups.get(group) {
                    site.breakpoint = group.breakpoint.with_ctx(breakpoint.ctx());
                }
            }
            Err(place) => {
                site.founder = true;
                site.group =
                    self.groups.insert(Group { breakpoint, sites: Vec::new(), places: Vec::new(), next: NONE });
                self.globals.link(&mut self.groups, site.group, place);
            }
        }
    }

    /// Forgets a site, and its group with the last one.
    pub(super) fn forget(&mut self, id: Id) {
        self.contexts.unlink(&mut self.sites, id);
        let Some(site) = self.sites.remove(id) else { return };
        let Some(group_id) = site.group() else { return };
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
