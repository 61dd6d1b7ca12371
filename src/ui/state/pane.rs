//! What a pane remembers: its selection, scroll offset, filter, order and marks.
//!
//! A selection is a [`RowKey`], not an index, and so stays on its item when the list changes around it.

use std::collections::BTreeSet;

use regex::{Regex, RegexBuilder};

use crate::{
    engine::snapshot::{BreakpointId, FaultId, TableId, Va},
    ui::rows::Rows,
};

/// The six panes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PaneId {
    /// Processes of the guest.
    #[default]
    Processes,
    /// Breakpoints.
    Breakpoints,
    /// Monitored addresses and their page tables.
    Tables,
    /// Missing pages.
    Faults,
    /// What happened.
    Events,
    /// The program's own log.
    Log,
}

impl PaneId {
    /// All panes in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Processes, Self::Breakpoints, Self::Tables, Self::Faults, Self::Events, Self::Log];

    /// The digit that focuses the pane, 1 to 6.
    pub const fn number(self) -> u8 {
        match self {
            Self::Processes => 1,
            Self::Breakpoints => 2,
            Self::Tables => 3,
            Self::Faults => 4,
            Self::Events => 5,
            Self::Log => 6,
        }
    }

    /// The pane with a number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|pane| pane.number() == number)
    }

    /// The title on the border.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Processes => "Processes",
            Self::Breakpoints => "Breakpoints",
            Self::Tables => "Page tables",
            Self::Faults => "Faults",
            Self::Events => "Events",
            Self::Log => "Log",
        }
    }

    /// The pane after this one, the first after the last.
    pub fn next(self) -> Self {
        Self::from_number(self.number() % 6 + 1).unwrap_or_default()
    }

    /// The pane before this one, the last before the first.
    pub fn previous(self) -> Self {
        Self::from_number((self.number() + 4) % 6 + 1).unwrap_or_default()
    }
}

/// What a row shows, by a name that stays with it for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// A process by its id and the address of its kernel structure: a guest may use an id twice.
    Process(u32, Va),
    /// A breakpoint.
    Breakpoint(BreakpointId),
    /// A monitored address.
    Table(TableId),
    /// A missing page.
    Fault(FaultId),
    /// An event by its sequence number.
    Event(u64),
}

/// What a pane can be sorted by; which ones a pane has is told by [`crate::ui::rows::columns`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Column {
    /// Process id.
    Pid,
    /// Parent's process id.
    Ppid,
    /// Process name.
    Name,
    /// Translation root.
    Root,
    /// Number of threads.
    Threads,
    /// Start time of a process, time of an event, last change of a table, age of a fault.
    Time,
    /// Owner.
    Uid,
    /// What is special about a process.
    Flags,
    /// Active, pending …; in or out.
    State,
    /// Symbol and offset.
    Symbol,
    /// Virtual address.
    Address,
    /// Physical address.
    Physical,
    /// Address spaces of a breakpoint.
    Scope,
    /// View.
    View,
    /// Hits.
    Hits,
    /// Hits a second.
    Rate,
    /// The user's own word.
    Tag,
    /// Size of the page.
    PageSize,
    /// Page-ins and page-outs seen.
    Changes,
    /// Who asked for a page.
    AskedBy,
    /// Injections so far.
    Attempts,
    /// A sentence on the state.
    Note,
    /// Sequence number of an event.
    Seq,
    /// Kind of an event.
    Kind,
    /// Virtual CPU.
    Vcpu,
    /// Process of an event.
    Process,
    /// What an event says.
    Text,
}

/// The order of a pane's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// By what.
    pub column: Column,
    /// Largest first.
    pub descending: bool,
}

impl Sort {
    /// The order in which a pane starts.
    pub const fn default_of(pane: PaneId) -> Self {
        let column = match pane {
            PaneId::Processes => Column::Pid,
            PaneId::Breakpoints | PaneId::Tables | PaneId::Faults | PaneId::Events | PaneId::Log => Column::Seq,
        };
        Self { column, descending: false }
    }
}

/// A regular expression over the words of a row; case matters only when it has a capital letter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    text: String,
    regex: Option<Regex>,
    error: Option<String>,
}

impl Filter {
    /// Longest filter that is compiled, in bytes.
    const LONGEST: usize = 1024;

    /// Sets the text. A text that does not compile leaves the last good expression at work and is told by
    /// [`Filter::error`].
    pub fn set(&mut self, text: &str) {
        text.clone_into(&mut self.text);
        self.error = None;
        if text.is_empty() {
            self.regex = None;
            return;
        }
        if text.len() > Self::LONGEST {
            self.error = Some(format!("the filter is longer than {} bytes: shorten it", Self::LONGEST));
            return;
        }
        let ignore_case = !text.chars().any(char::is_uppercase);
        match RegexBuilder::new(text).case_insensitive(ignore_case).size_limit(1 << 20).build() {
            Ok(regex) => self.regex = Some(regex),
            Err(error) => self.error = Some(regex_sentence(text, &error)),
        }
    }

    /// What was typed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The expression at work, `None` when every row is shown.
    pub const fn regex(&self) -> Option<&Regex> {
        self.regex.as_ref()
    }

    /// Why the text does not compile.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

/// The regex crate draws its error over several lines with a caret; the screen has one line.
fn regex_sentence(text: &str, error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => format!("'{text}' is too big an expression: make it simpler"),
        error => {
            let message = error.to_string();
            let reason = message.lines().rev().find_map(|line| line.trim().strip_prefix("error: "));
            format!("'{text}' is not a regular expression: {}", reason.unwrap_or("it does not parse"))
        }
    }
}

/// What a pane remembers.
#[derive(Clone, Debug)]
pub struct PaneState {
    /// Which pane it is.
    pub id: PaneId,
    /// The row that keys act on.
    pub selected: Option<RowKey>,
    /// Where the selection was last seen, as an index into [`PaneState::rows`]: when its item goes, the row that takes
    /// its place is selected.
    pub position: usize,
    /// Index of the first row shown.
    pub offset: usize,
    /// Which rows are shown.
    pub filter: Filter,
    /// In which order.
    pub sort: Sort,
    /// Whether the selection follows the newest row (the last one, or the first one of a descending order).
    pub follow: bool,
    /// Rows on which the next action is to act all together.
    pub marks: BTreeSet<RowKey>,
    /// The filtered and sorted list as [`crate::ui::rows::settle`] last found it.
    pub rows: Rows,
}

impl PaneState {
    /// A pane as it starts.
    pub fn new(id: PaneId) -> Self {
        Self {
            id,
            selected: None,
            position: 0,
            offset: 0,
            filter: Filter::default(),
            sort: Sort::default_of(id),
            follow: matches!(id, PaneId::Events),
            marks: BTreeSet::new(),
            rows: Rows::default(),
        }
    }

    /// Sorts by a column; the column that is sorted by already changes its direction.
    pub fn sort_by(&mut self, column: Column) {
        let descending = self.sort.column == column && !self.sort.descending;
        self.sort = Sort { column, descending };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panes_go_round_both_ways() {
        for pane in PaneId::ALL {
            assert_eq!(pane.next().previous(), pane);
            assert_eq!(PaneId::from_number(pane.number()), Some(pane));
        }
        assert_eq!(PaneId::Log.next(), PaneId::Processes);
        assert_eq!(PaneId::from_number(7), None);
    }

    #[test]
    fn a_bad_filter_says_why_and_keeps_the_last_good_one() {
        let mut filter = Filter::default();
        filter.set("lsass");
        filter.set("lsass(");
        assert!(filter.error().is_some_and(|e| e.contains("unclosed group")), "{:?}", filter.error());
        assert!(filter.regex().is_some_and(|r| r.is_match("LSASS.exe")));
        filter.set("LSASS");
        assert_eq!(filter.error(), None);
        assert!(filter.regex().is_some_and(|r| !r.is_match("lsass.exe")));
        filter.set("");
        assert!(filter.regex().is_none());
    }
}
