//! What can lie above the panes: details, dialogs, help, questions.

use tui_input::Input;

use super::{
    Severity,
    memory::{FindDialog, MemoryMode, MemoryView},
    pane::PaneId,
};
use crate::engine::{
    command::Subject,
    snapshot::{Event, Scope, Va},
};

/// One popup.
#[derive(Clone, Debug)]
pub enum Popup {
    /// A process, a breakpoint, a page walk, a fault or memory: what is shown comes from
    /// [`Snapshot::detail`](crate::engine::snapshot::Snapshot::detail).
    Detail {
        /// What was asked for.
        subject: Subject,
        /// First line shown.
        scroll: usize,
    },
    /// An event; kept here because the ring forgets it.
    Event {
        /// The event.
        event: Event,
        /// First line shown.
        scroll: usize,
    },
    /// The events of a burst, oldest first.
    Burst {
        /// The events.
        events: Vec<Event>,
        /// First line shown.
        scroll: usize,
    },
    /// Memory: bytes, instructions, a page walk.
    Memory(MemoryView),
    /// What is searched for in memory is typed.
    Find(FindDialog),
    /// Every key, from [`UiState::help`](super::UiState::help).
    Help {
        /// Only lines with these words.
        search: Input,
        /// First line shown.
        scroll: usize,
    },
    /// A place is asked for.
    Add(AddDialog),
    /// The filter of a pane is typed; the pane's own [`Filter`](super::Filter) follows each key.
    Filter {
        /// Whose.
        pane: PaneId,
        /// The text.
        input: Input,
        /// What the filter was, for going back.
        before: String,
    },
    /// A column to sort by is chosen, from [`crate::ui::rows::columns`].
    Sort {
        /// Whose.
        pane: PaneId,
        /// Index of the chosen column.
        chosen: usize,
    },
    /// An action is chosen by name, from [`UiState::help`](super::UiState::help).
    Palette {
        /// What was typed.
        input: Input,
        /// Indices into the help items, best match first.
        found: Vec<usize>,
        /// Index into `found`.
        chosen: usize,
    },
    /// A question before something that cannot be undone.
    Confirm(Confirm),
    /// A line of text is asked for.
    Ask(Ask),
    /// One of several is chosen.
    Choose(Choose),
    /// Something to read.
    Message {
        /// The title.
        title: String,
        /// The text; line breaks are kept, long lines wrap.
        text: String,
        /// How serious it is.
        severity: Severity,
        /// First line shown.
        scroll: usize,
    },
}

impl Popup {
    /// A detail popup, scrolled to its top.
    pub const fn detail(subject: Subject) -> Self {
        Self::Detail { subject, scroll: 0 }
    }

    /// The first line shown, where the popup scrolls.
    pub const fn scroll_mut(&mut self) -> Option<&mut usize> {
        match self {
            Self::Detail { scroll, .. }
            | Self::Event { scroll, .. }
            | Self::Burst { scroll, .. }
            | Self::Help { scroll, .. }
            | Self::Message { scroll, .. } => Some(scroll),
            Self::Memory(view) if matches!(view.mode, MemoryMode::Walk) => Some(&mut view.scroll),
            Self::Memory(_)
            | Self::Find(_)
            | Self::Add(_)
            | Self::Filter { .. }
            | Self::Sort { .. }
            | Self::Palette { .. }
            | Self::Confirm(_)
            | Self::Ask(_)
            | Self::Choose(_) => None,
        }
    }

    /// The text field that gets typed characters, where the popup has one.
    pub const fn input_mut(&mut self) -> Option<&mut Input> {
        match self {
            Self::Help { search: input, .. } | Self::Filter { input, .. } | Self::Palette { input, .. } => Some(input),
            Self::Find(dialog) => Some(&mut dialog.input),
            Self::Add(dialog) => match dialog.field {
                AddField::Place => Some(&mut dialog.place),
                AddField::Tag => Some(&mut dialog.tag),
                AddField::Scope => None,
            },
            Self::Ask(ask) => Some(&mut ask.input),
            Self::Detail { .. }
            | Self::Event { .. }
            | Self::Burst { .. }
            | Self::Memory(_)
            | Self::Sort { .. }
            | Self::Confirm(_)
            | Self::Choose(_)
            | Self::Message { .. } => None,
        }
    }
}

/// What a place is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To set a breakpoint there.
    Breakpoint,
    /// To monitor its page tables.
    Watch,
    /// To bring its page in.
    Page,
    /// To look at memory there.
    Memory,
}

impl Purpose {
    /// The fields that are asked for, in order.
    pub const fn fields(self) -> &'static [AddField] {
        match self {
            Self::Breakpoint => &[AddField::Place, AddField::Scope, AddField::Tag],
            Self::Watch => &[AddField::Place, AddField::Tag],
            Self::Page | Self::Memory => &[AddField::Place],
        }
    }
}

/// A field of [`AddDialog`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddField {
    /// Symbol or address.
    #[default]
    Place,
    /// Address spaces of a breakpoint.
    Scope,
    /// The user's word for it.
    Tag,
}

/// One possible completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The symbol.
    pub name: String,
    /// Where it is.
    pub address: Option<Va>,
}

/// A dialog that asks for a place.
#[derive(Clone, Debug)]
pub struct AddDialog {
    /// For what.
    pub purpose: Purpose,
    /// `SYMBOL|ADDRESS[@PID]` as typed so far.
    pub place: Input,
    /// The user's word for it.
    pub tag: Input,
    /// Address spaces.
    pub scope: Scope,
    /// The process that a scope of one process means: the one that was selected.
    pub process: Option<(u32, String)>,
    /// The field that gets the keys.
    pub field: AddField,
    /// Completions of the place.
    pub candidates: Vec<Candidate>,
    /// The chosen completion, an index into `candidates`.
    pub chosen: Option<usize>,
    /// Why what was entered cannot be done.
    pub error: Option<String>,
}

impl AddDialog {
    /// An empty dialog.
    pub fn new(purpose: Purpose) -> Self {
        Self {
            purpose,
            place: Input::default(),
            tag: Input::default(),
            scope: Scope::Global,
            process: None,
            field: AddField::Place,
            candidates: Vec::new(),
            chosen: None,
            error: None,
        }
    }
}

/// A question with two answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// The title.
    pub title: String,
    /// What will happen, in sentences.
    pub text: String,
    /// The word for going on ("quit").
    pub yes: String,
    /// The word for going back ("stay").
    pub no: String,
    /// Which one is chosen.
    pub chosen_yes: bool,
    /// What follows when the answer is yes.
    pub then: Then,
}

/// What a question is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Then {
    /// The program ends.
    #[default]
    Leave,
    /// A file that is there already is written anew: its path.
    Overwrite(String),
    /// Write what was copied to the file that is there already.
    OverwriteCopied(String),
}

/// What a file is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contents {
    /// The screen.
    #[default]
    Screen,
    /// What was copied last.
    Copied,
}

/// A line of text that is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What is written to the file that is asked for.
    pub contents: Contents,
    /// The title.
    pub title: String,
    /// What the text is ("file").
    pub label: String,
    /// The text.
    pub input: Input,
    /// What is good to know about it.
    pub hint: String,
    /// What `enter` does ("write").
    pub does: String,
    /// Why what was entered cannot be done.
    pub error: Option<String>,
}

/// A list of which one is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choose {
    /// What for.
    pub choice: Choice,
    /// The title.
    pub title: String,
    /// What there is: a name, and what is to be said of it.
    pub items: Vec<(String, String)>,
    /// Index of the chosen one.
    pub chosen: usize,
    /// What `enter` does ("copy").
    pub does: String,
}

/// What one of several is chosen for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The theme, shown while it is chosen; the one that it was before.
    Theme(String),
    /// A cell for the clipboard.
    Cell,
}
