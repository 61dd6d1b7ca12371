//! What a breakpoint is.

use std::fmt::Debug;

use crate::engine::addr::{AddressContext, Pa, View};

/// What tells the breakpoints of several owners at one address apart. `()` where there is one owner.
pub trait KeyType: Debug + Copy + Eq {}
impl<T: Debug + Copy + Eq> KeyType for T {}

/// What an owner keeps with a breakpoint.
pub trait TagType: Debug + Copy {}
impl<T: Debug + Copy> TagType for T {}

/// A breakpoint as its owner wants it.
///
/// ```
/// use vmscope::engine::{addr::{Pa, Va, View}, bpm::Breakpoint};
/// let open = Breakpoint::new((Va(0xffff_8000_0010_0000), Pa(0x1000)), View(1)).global().with_key(7).with_tag("open");
/// assert!(open.is_global());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Breakpoint<Key = (), Tag = &'static str> {
    ctx: AddressContext,
    view: View,
    global: bool,
    key: Key,
    tag: Tag,
}

impl Breakpoint {
    /// A breakpoint at an address of one address space, seen in one view; its key is `()` and its tag empty.
    pub fn new(ctx: impl Into<AddressContext>, view: View) -> Self {
        Self { ctx: ctx.into(), view, global: false, key: (), tag: "" }
    }
}

impl<Key, Tag> Breakpoint<Key, Tag> {
    /// The same virtual address in every address space.
    pub fn global(self) -> Self {
        Self { global: true, ..self }
    }

    /// The same with an owner.
    pub fn with_key<New>(self, key: New) -> Breakpoint<New, Tag> {
        let Self { ctx, view, global, tag, .. } = self;
        Breakpoint { ctx, view, global, key, tag }
    }

    /// The same with a tag.
    pub fn with_tag<New>(self, tag: New) -> Breakpoint<Key, New> {
        let Self { ctx, view, global, key, .. } = self;
        Breakpoint { ctx, view, global, key, tag }
    }

    /// The same in another address space.
    pub(super) fn with_ctx(self, ctx: AddressContext) -> Self {
        Self { ctx, ..self }
    }

    /// The address, and the address space that it was wanted in (for a global one: the first of them).
    pub fn ctx(&self) -> AddressContext {
        self.ctx
    }

    /// The view.
    pub fn view(&self) -> View {
        self.view
    }

    /// Whether it is for every address space.
    pub fn is_global(&self) -> bool {
        self.global
    }
}

impl<Key: Copy, Tag: Copy> Breakpoint<Key, Tag> {
    /// The owner.
    pub fn key(&self) -> Key {
        self.key
    }

    /// The tag.
    pub fn tag(&self) -> Tag {
        self.tag
    }
}

/// A breakpoint in one address space, and how it stands there. A global breakpoint that was inserted with several roots
/// has one state for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakpointState<Key = (), Tag = &'static str> {
    /// The breakpoint; its context is that of this address space.
    pub breakpoint: Breakpoint<Key, Tag>,
    /// Where it is armed; `None` while it waits for its page.
    pub pa: Option<Pa>,
}
