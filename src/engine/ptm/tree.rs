//! The virtual side of the books: for every address space a tree of the entries that translate monitored addresses.
//!
//! A node is one entry of one walk, named by address space, level and the range of addresses that it translates. Its
//! children are the entries that the walks go on with. Spaces that share a table have nodes of their own that share
//! its entries: all nodes of one entry form a chain, in which a table that serves at several levels is nothing special.

use super::{
    adapter::{ArchAdapter, EntryMeaning},
    guard::TableGuard,
    hash::FastMap,
    slab::{Id, NONE, Slab},
    tables::Tables,
};
use crate::engine::{
    addr::{AddressContext, Gfn, Pa, Va, View},
    driver::VmiRead,
    error::VmiError,
    session::VmiCore,
};

/// An address space in one view.
#[derive(Clone, Copy)]
pub(super) struct Space {
    pub(super) top: Gfn,
    pub(super) view: View,
    pub(super) levels: u8,
}

impl Space {
    pub(super) fn new<Arch: ArchAdapter>(root: Pa, view: View, levels: u8) -> Self {
        Self { top: Arch::top_table(root), view, levels }
    }

    /// The space in 64 bits: frames have at most 40.
    #[inline]
    fn key(self) -> u64 {
        (self.top.0 << 16) | u64::from(self.view.0)
    }
}

/// A node's name: space, and the start of its range with levels in the bits that are 0 there.
type Path = (u64, u64);

#[inline]
fn path<Arch: ArchAdapter>(space: Space, va: Va, level: u8) -> Path {
    let place = u64::from(space.levels) << 3 | u64::from(level);
    (space.key(), Arch::range_start(va, level).0 | place)
}

/// One entry of a walk.
pub(super) struct Node {
    path: Path,
    /// The entry as it was last processed, and before its last change.
    pub(super) raw: u64,
    pub(super) previous: Option<u64>,
    pub(super) parent: Id,
    first_child: Id,
    next_sibling: Id,
    prev_sibling: Id,
    /// The table that the entry lies in, and its place there.
    pub(super) table: Id,
    pub(super) index: u16,
    pub(super) level: u8,
    /// Addresses are attached here that may have to be walked anew although the entry's meaning is the same.
    pub(super) stale: bool,
    /// The other nodes of the same entry.
    pub(super) next_alias: Id,
    prev_alias: Id,
    /// The addresses whose walk ends here.
    pub(super) first_watch: Id,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            path: (0, 0),
            raw: 0,
            previous: None,
            parent: NONE,
            first_child: NONE,
            next_sibling: NONE,
            prev_sibling: NONE,
            table: NONE,
            index: 0,
            level: 0,
            stale: false,
            next_alias: NONE,
            prev_alias: NONE,
            first_watch: NONE,
        }
    }
}

impl Node {
    #[inline]
    pub(super) fn meaning<Arch: ArchAdapter>(&self) -> EntryMeaning {
        Arch::meaning(self.raw, self.level)
    }
}

/// All trees, and the tables that they run through.
pub(super) struct Tree<Found> {
    nodes: Slab<Node>,
    by_path: FastMap<Path, Id>,
    pub(super) tables: Tables<Found>,
}

impl<Found> Default for Tree<Found> {
    fn default() -> Self {
        Self { nodes: Slab::default(), by_path: FastMap::default(), tables: Tables::default() }
    }
}

/// Reads an entry; one beyond the guest's memory is as good as none.
#[inline]
pub(super) fn read_entry<Driver: VmiRead>(vmi: &VmiCore<Driver>, pa: Pa) -> Result<Option<u64>, VmiError> {
    match vmi.read_entry(pa) {
        Ok(entry) => Ok(Some(entry)),
        Err(VmiError::OutOfBounds(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Walks the guest's tables as they are now, without the books.
pub(super) fn walk<Driver>(vmi: &VmiCore<Driver>, ctx: AddressContext) -> Result<EntryMeaning, VmiError>
where
    Driver: VmiRead,
    Driver::Architecture: ArchAdapter,
{
    let mut table = Driver::Architecture::top_table(ctx.root);
    for level in (1..=vmi.paging_levels()).rev() {
        let at = Pa((table.0 << 12) | u64::from(Driver::Architecture::index(ctx.va, level)) * 8);
        match read_entry(vmi, at)?.map(|entry| Driver::Architecture::meaning(entry, level)) {
            Some(EntryMeaning::Table(next)) => table = next,
            Some(meaning) => return Ok(meaning),
            None => break,
        }
    }
    Ok(EntryMeaning::Absent)
}

impl<Found: Copy> Tree<Found> {
    #[inline]
    pub(super) fn get(&self, id: Id) -> Option<&Node> {
        self.nodes.get(id)
    }

    #[inline]
    pub(super) fn at(&self, id: Id) -> &Node {
        self.nodes.at(id)
    }

    #[inline]
    pub(super) fn at_mut(&mut self, id: Id) -> &mut Node {
        self.nodes.at_mut(id)
    }

    /// The physical address of a node's entry.
    #[inline]
    pub(super) fn entry_pa(&self, id: Id) -> Pa {
        let node = self.nodes.at(id);
        self.tables.at(node.table).entry_pa(node.index)
    }

    /// The view of a node.
    pub(super) fn view(&self, id: Id) -> View {
        self.tables.at(self.nodes.at(id).table).view
    }

    /// The space of a node.
    fn space(&self, id: Id) -> Space {
        let (space, place) = self.nodes.at(id).path;
        Space { top: Gfn(space >> 16), view: View(space as u16), levels: (place >> 3 & 7) as u8 }
    }

    /// The node and those above it, lowest first.
    pub(super) fn upwards(&self, id: Id) -> impl Iterator<Item = Id> + '_ {
        std::iter::successors(Some(id), |&id| Some(self.nodes.at(id).parent)).take_while(|&id| id != NONE)
    }

    /// The lowest node that there is on the way to an address; `NONE` where there is none.
    #[inline]
    pub(super) fn deepest<Arch: ArchAdapter>(&self, space: Space, va: Va) -> Id {
        let find = |level| self.by_path.get(&path::<Arch>(space, va, level)).copied();
        (1..=space.levels).find_map(find).unwrap_or(NONE)
    }

    /// The highest node, from `lowest` upwards, whose entry means something else than in the books.
    pub(super) fn highest_stale<Driver>(&self, vmi: &VmiCore<Driver>, lowest: Id) -> Result<Option<Id>, VmiError>
    where
        Driver: VmiRead,
        Driver::Architecture: ArchAdapter,
    {
        let mut highest = None;
        for id in self.upwards(lowest) {
            let node = self.at(id);
            let now = read_entry(vmi, self.entry_pa(id))?.unwrap_or(0);
            if Driver::Architecture::meaning(now, node.level) != node.meaning::<Driver::Architecture>() {
                highest = Some(id);
            }
        }
        Ok(highest)
    }

    /// Goes down from a node (`NONE`: from the top table) to the node at which the walk of an address ends, making
    /// what is missing on the way. Tables are guarded before they are read.
    ///
    /// A table that is not in the guest's memory ends the walk at the entry that names it; for the top table this is
    /// an error. What was made before an error stays: [`Tree::prune`] takes it away.
    pub(super) fn descend<Driver, Guard>(
        &mut self,
        vmi: &VmiCore<Driver>,
        space: Space,
        from: Id,
        va: Va,
    ) -> Result<Id, (Id, VmiError)>
    where
        Driver: VmiRead,
        Driver::Architecture: ArchAdapter,
        Guard: TableGuard<Driver, Found = Found>,
    {
        let mut here = from;
        loop {
            let (frame, level) = match self.get(here) {
                None => (space.top, space.levels),
                Some(node) => match node.meaning::<Driver::Architecture>() {
                    EntryMeaning::Table(frame) if node.level > 1 => (frame, node.level - 1),
                    _ => return Ok(here),
                },
            };
            let path = path::<Driver::Architecture>(space, va, level);
            here = match self.by_path.get(&path) {
                Some(&child) => child,
                None => match self.enter::<Driver, Guard>(vmi, path, here, frame, level, va) {
                    Ok(child) => child,
                    Err(VmiError::OutOfBounds(_)) if here != NONE => return Ok(here),
                    Err(error) => return Err((here, error)),
                },
            };
        }
    }

    /// Makes the node of an entry.
    fn enter<Driver, Guard>(
        &mut self,
        vmi: &VmiCore<Driver>,
        path: Path,
        parent: Id,
        frame: Gfn,
        level: u8,
        va: Va,
    ) -> Result<Id, VmiError>
    where
        Driver: VmiRead,
        Driver::Architecture: ArchAdapter,
        Guard: TableGuard<Driver, Found = Found>,
    {
        // A sibling knows the table already.
        let table = match self.at(parent).first_child {
            NONE => self.tables.acquire::<Driver, Guard>(vmi, frame, View(path.0 as u16))?,
            sibling => self.at(sibling).table,
        };
        let index = Driver::Architecture::index(va, level);
        let raw = vmi.read_entry(self.tables.at(table).entry_pa(index))?;
        let next_sibling = self.at(parent).first_child;
        let node = Node { path, raw, parent, next_sibling, table, index, level, ..Node::default() };
        let id = self.nodes.insert(node);
        self.by_path.insert(path, id);
        let next_alias = self.tables.link(table, index, id);
        if next_alias != NONE {
            self.at_mut(id).next_alias = next_alias;
            self.at_mut(next_alias).prev_alias = id;
        }
        if next_sibling != NONE {
            self.at_mut(next_sibling).prev_sibling = id;
        }
        if parent != NONE {
            self.at_mut(parent).first_child = id;
        }
        Ok(id)
    }

    /// Takes a node without children and addresses out of the books.
    fn remove(&mut self, id: Id) {
        let Some(node) = self.nodes.remove(id) else { return };
        self.by_path.remove(&node.path);
        self.tables.unlink(node.table, node.index, node.prev_alias == NONE, node.next_alias);
        if node.next_alias != NONE {
            self.at_mut(node.next_alias).prev_alias = node.prev_alias;
        }
        if node.prev_alias != NONE {
            self.at_mut(node.prev_alias).next_alias = node.next_alias;
        }
        if node.next_sibling != NONE {
            self.at_mut(node.next_sibling).prev_sibling = node.prev_sibling;
        }
        if node.prev_sibling != NONE {
            self.at_mut(node.prev_sibling).next_sibling = node.next_sibling;
        } else if node.parent != NONE {
            self.at_mut(node.parent).first_child = node.next_sibling;
        }
    }

    /// Removes a node that nothing needs any more, and the ones above it that only it needed.
    pub(super) fn prune(&mut self, mut id: Id) {
        while let Some(node) = self.get(id) {
            if node.first_watch != NONE || node.first_child != NONE {
                break;
            }
            let parent = node.parent;
            self.remove(id);
            id = parent;
        }
    }

    /// Removes everything below a node; answers the heads of the lists of addresses that were attached there.
    pub(super) fn uproot(&mut self, id: Id) -> Vec<Id> {
        let mut lists = Vec::new();
        while self.at(id).first_child != NONE {
            let mut lowest = self.at(id).first_child;
            while self.at(lowest).first_child != NONE {
                lowest = self.at(lowest).first_child;
            }
            let list = self.at(lowest).first_watch;
            if list != NONE {
                lists.push(list);
            }
            self.remove(lowest);
        }
        lists
    }

    /// Goes down from a node within its own space, see [`Tree::descend`].
    pub(super) fn descend_from<Driver, Guard>(
        &mut self,
        vmi: &VmiCore<Driver>,
        from: Id,
        va: Va,
    ) -> Result<Id, (Id, VmiError)>
    where
        Driver: VmiRead,
        Driver::Architecture: ArchAdapter,
        Guard: TableGuard<Driver, Found = Found>,
    {
        self.descend::<Driver, Guard>(vmi, self.space(from), from, va)
    }

    /// Forgets all nodes.
    pub(super) fn clear(&mut self) {
        self.nodes = Slab::default();
        self.by_path.clear();
        self.tables.clear();
    }
}
