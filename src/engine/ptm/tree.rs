//! The virtual side of the books: for every address space a tree of the entries that translate monitored addresses.
//!
//! A node is one entry of one walk; its children are the entries that the walks go on with, all of them in the table
//! that the node's entry names. Spaces that share a table have nodes of their own that share its entries: all nodes of
//! one entry form a chain, in which a table that serves at several levels is nothing special.

use hashbrown::HashMap;

use super::{
    adapter::{ArchAdapter, EntryMeaning},
    guard::TableGuard,
    slab::{Id, NONE, Slab, Slot},
    tables::{Tables, entry_pa},
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
    top: Gfn,
    view: View,
    levels: u8,
}

impl Space {
    pub(super) fn new<Arch: ArchAdapter>(root: Pa, view: View, levels: u8) -> Self {
        Self { top: Arch::top_table(root), view, levels }
    }

    /// What stands for the parent of the nodes at the top: the number of levels, because one table could be the top
    /// of spaces with 4 and with 5.
    #[inline]
    fn above(self) -> Id {
        NONE - 1 - Id::from(self.levels)
    }
}

/// One entry of a walk.
pub(super) struct Node {
    /// The entry as it was last processed, and before its last change (the same where there was none).
    pub(super) raw: u64,
    previous: u64,
    /// At the top: [`Space::above`], which names no node.
    parent: Id,
    first_child: Id,
    next_sibling: Id,
    prev_sibling: Id,
    /// The table that the entry lies in.
    pub(super) table: Id,
    /// The other nodes of the same entry.
    pub(super) next_alias: Id,
    prev_alias: Id,
    /// The addresses whose walk ends here.
    pub(super) first_watch: Id,
    /// The entry's place in its table.
    pub(super) index: u16,
    pub(super) level: u8,
    /// Addresses are attached here that may have to be walked anew although the entry's meaning is the same.
    pub(super) stale: bool,
    /// Whether it is in [`Tree::aliases`].
    named: bool,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            raw: 0,
            previous: 0,
            parent: NONE,
            first_child: NONE,
            next_sibling: NONE,
            prev_sibling: NONE,
            table: NONE,
            next_alias: NONE,
            prev_alias: NONE,
            first_watch: NONE,
            index: 0,
            level: 0,
            stale: false,
            named: false,
        }
    }
}

impl Slot for Node {
    #[inline]
    fn is_live(&self) -> bool {
        self.level > 0
    }
}

impl Node {
    #[inline]
    pub(super) fn meaning<Arch: ArchAdapter>(&self) -> EntryMeaning {
        Arch::meaning(self.raw, self.level)
    }

    /// Takes over what the entry is now.
    #[inline]
    pub(super) fn update(&mut self, raw: u64) {
        if raw != self.raw {
            self.previous = std::mem::replace(&mut self.raw, raw);
        }
    }

    /// The entry before its last change.
    pub(super) fn previous(&self) -> Option<u64> {
        (self.previous != self.raw).then_some(self.previous)
    }
}

/// An error on the way down, and the node that was reached: [`Tree::prune`] takes away what was made before.
pub(super) type Stopped = (Id, VmiError);

/// All trees, and the tables that they run through.
pub(super) struct Tree<Found> {
    nodes: Slab<Node>,
    /// By (parent, table, place in it) the nodes that share their entry with others; a node that has its entry for
    /// itself is found through its table alone.
    aliases: HashMap<(Id, Id, u16), Id>,
    pub(super) tables: Tables<Found>,
}

impl<Found> Default for Tree<Found> {
    fn default() -> Self {
        Self { nodes: Slab::default(), aliases: HashMap::new(), tables: Tables::default() }
    }
}

/// Reads an entry; one beyond the guest's memory is as good as none.
#[inline]
pub(super) fn read_entry<Driver: VmiRead>(vmi: &VmiCore<Driver>, pa: Pa) -> Result<u64, VmiError> {
    match vmi.read_entry(pa) {
        Err(VmiError::OutOfBounds(_)) => Ok(0),
        result => result,
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
        let at = entry_pa(table, Driver::Architecture::index(ctx.va, level));
        match Driver::Architecture::meaning(read_entry(vmi, at)?, level) {
            EntryMeaning::Table(next) => table = next,
            meaning => return Ok(meaning),
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

    /// The node and those above it, lowest first.
    pub(super) fn upwards(&self, id: Id) -> impl Iterator<Item = Id> + '_ {
        let parent = |&id: &Id| Some(self.nodes.at(id).parent);
        std::iter::successors(Some(id), parent).take_while(|&id| self.nodes.get(id).is_some())
    }

    /// The node of an entry that belongs to a parent.
    #[inline]
    fn child(&self, parent: Id, table: Id, index: u16) -> Option<Id> {
        let head = self.tables.at(table).entries.head(index);
        let node = self.nodes.get(head)?;
        if node.parent == parent {
            return Some(head);
        }
        if node.next_alias == NONE {
            return None;
        }
        self.aliases.get(&(parent, table, index)).copied()
    }

    /// The lowest node that there is on the way to an address.
    #[inline]
    pub(super) fn deepest<Arch: ArchAdapter>(&self, space: Space, va: Va) -> Option<Id> {
        let mut table = self.tables.find(space.top, space.view);
        let mut here = None;
        for level in (1..=space.levels).rev() {
            let Some(child) = self.child(here.unwrap_or(space.above()), table, Arch::index(va, level)) else { break };
            here = Some(child);
            match self.at(child).first_child {
                NONE => break,
                grandchild => table = self.at(grandchild).table,
            }
        }
        here
    }

    /// The highest node, from `lowest` upwards, whose entry means something else than in the books.
    #[inline]
    pub(super) fn highest_stale<Driver>(&self, vmi: &VmiCore<Driver>, lowest: Id) -> Result<Option<Id>, VmiError>
    where
        Driver: VmiRead,
        Driver::Architecture: ArchAdapter,
    {
        let mut highest = None;
        for id in self.upwards(lowest) {
            let node = self.at(id);
            let raw = read_entry(vmi, self.entry_pa(id))?;
            if raw != node.raw
                && Driver::Architecture::meaning(raw, node.level) != node.meaning::<Driver::Architecture>()
            {
                highest = Some(id);
            }
        }
        Ok(highest)
    }

    /// The node of an address in its top table; made if it is missing.
    ///
    /// # Errors
    /// [`VmiError::OutOfBounds`] where the table is not in the guest's memory; those of the driver's.
    pub(super) fn top<Driver, Guard>(&mut self, vmi: &VmiCore<Driver>, space: Space, va: Va) -> Result<Id, VmiError>
    where
        Driver: VmiRead,
        Driver::Architecture: ArchAdapter,
        Guard: TableGuard<Driver, Found = Found>,
    {
        self.enter::<Driver, Guard>(vmi, space.view, space.above(), space.top, space.levels, va)
    }

    /// Goes down from a node to the one at which the walk of an address ends, making what is missing on the way. Tables
    /// are guarded before they are read. A table that is not in the guest's memory ends the walk at the entry that
    /// names it.
    ///
    /// # Errors
    /// The driver's.
    pub(super) fn descend<Driver, Guard>(&mut self, vmi: &VmiCore<Driver>, from: Id, va: Va) -> Result<Id, Stopped>
    where
        Driver: VmiRead,
        Driver::Architecture: ArchAdapter,
        Guard: TableGuard<Driver, Found = Found>,
    {
        let mut here = from;
        loop {
            let node = self.at(here);
            let (frame, level) = match node.meaning::<Driver::Architecture>() {
                EntryMeaning::Table(frame) if node.level > 1 => (frame, node.level - 1),
                _ => return Ok(here),
            };
            let view = self.tables.at(node.table).view;
            here = match self.enter::<Driver, Guard>(vmi, view, here, frame, level, va) {
                Ok(child) => child,
                Err(VmiError::OutOfBounds(_)) => return Ok(here),
                Err(error) => return Err((here, error)),
            };
        }
    }

    /// The node of an address below a parent; made if it is missing.
    fn enter<Driver, Guard>(
        &mut self,
        vmi: &VmiCore<Driver>,
        view: View,
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
        let next_sibling = self.at(parent).first_child;
        let table = match next_sibling {
            NONE => self.tables.acquire::<Driver, Guard>(vmi, frame, view)?,
            sibling => self.at(sibling).table,
        };
        let index = Driver::Architecture::index(va, level);
        if let Some(child) = self.child(parent, table, index) {
            return Ok(child);
        }
        let raw =
            vmi.read_entry(self.tables.at(table).entry_pa(index)).inspect_err(|_| self.tables.give_up_unused(table))?;
        let node = Node { raw, previous: raw, parent, next_sibling, table, index, level, ..Node::default() };
        let id = self.nodes.insert(node);
        let next_alias = self.tables.link(table, index, id);
        if next_alias != NONE {
            self.at_mut(id).next_alias = next_alias;
            self.at_mut(next_alias).prev_alias = id;
            self.name(next_alias);
            self.name(id);
        }
        if next_sibling != NONE {
            self.at_mut(next_sibling).prev_sibling = id;
        }
        if self.get(parent).is_some() {
            self.at_mut(parent).first_child = id;
        }
        Ok(id)
    }

    /// Makes a node known by its parent, because it has its entry no longer for itself.
    fn name(&mut self, id: Id) {
        let node = self.nodes.at_mut(id);
        if !std::mem::replace(&mut node.named, true) {
            self.aliases.insert((node.parent, node.table, node.index), id);
        }
    }

    /// Takes a node without children and addresses out of the books.
    fn remove(&mut self, id: Id) {
        let Some(node) = self.nodes.remove(id) else { return };
        if node.named {
            self.aliases.remove(&(node.parent, node.table, node.index));
        }
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
        } else if self.get(node.parent).is_some() {
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

    /// Removes everything below a node; answers the first addresses of the lists that were attached there.
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

    /// Forgets all nodes.
    pub(super) fn clear(&mut self) {
        self.nodes = Slab::default();
        self.aliases.clear();
        self.tables.clear();
    }
}
