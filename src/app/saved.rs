//! What the user has set for one guest, kept from one run to the next: breakpoints, watched addresses, filters, orders,
//! layout and theme.
//!
//! Written when it is asked for, and read only on request, because it sets breakpoints. The file may be anybody's work by
//! then: what is in it is bounded and checked as a whole before any of it is used.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use etcetera::BaseStrategy;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        command::{Command, Target},
        snapshot::{BreakpointState, Capability, Scope, Snapshot, clean},
    },
    ui::{
        rows,
        state::{PaneId, Sort, Split, UiState},
    },
};

/// The form of the file.
const VERSION: u32 = 1;
/// The largest file that is read, in bytes.
const MOST_BYTES: u64 = 1 << 20;
/// How many breakpoints and how many watched addresses are kept.
const MOST_ROWS: usize = 1000;
/// The longest text in it, in characters.
const LONGEST: usize = 1000;
/// Longest part of a guest's name in the name of a file.
const NAME: usize = 80;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    version: u32,
    driver: String,
    guest: String,
    theme: String,
    focus: String,
    zoom: bool,
    tree: bool,
    grouped: bool,
    /// Left column, first row and second row in percent.
    split: [u16; 3],
    panes: BTreeMap<String, Pane>,
    #[serde(default)]
    breakpoints: Vec<Row>,
    #[serde(default)]
    watches: Vec<Row>,
}

/// What is kept of a pane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pane {
    filter: String,
    /// The name of a column.
    sort: String,
    descending: bool,
}

/// A breakpoint or a watched address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// The symbol, because the kernel is somewhere else after its next boot; where there is none, the address.
    place: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// When that process started, in nanoseconds since its guest did: another one may have its id by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    started_ns: Option<u64>,
    #[serde(default)]
    tag: String,
    /// Whether a breakpoint is in the guest.
    #[serde(default)]
    on: bool,
}

impl Saved {
    /// What the user has set now.
    pub fn of(state: &UiState, snapshot: &Snapshot, theme: &str) -> Self {
        let pane = |id: PaneId| {
            let pane = state.pane(id);
            let column = rows::columns(id).iter().find(|column| column.id == pane.sort.column);
            let sort = column.map_or("", |column| column.name).to_owned();
            (
                id.title().to_owned(),
                Pane { filter: pane.filter.text().to_owned(), sort, descending: pane.sort.descending },
            )
        };
        let place = |symbol: &str, address: String| if symbol.is_empty() { address } else { symbol.to_owned() };
        // The largest integer of a TOML file.
        let started = |pid: Option<u32>| snapshot.started_ns(pid?).filter(|&start| i64::try_from(start).is_ok());
        let pid = |scope| match scope {
            Scope::Process(pid) => Some(pid),
            Scope::Global => None,
        };
        // What belonged to a process that is gone will never be set again.
        let breakpoints = snapshot.breakpoints.iter().filter(|row| row.state != BreakpointState::Ended);
        let breakpoints = breakpoints.take(MOST_ROWS).map(|row| Row {
            place: place(&row.symbol, row.address.to_string()),
            pid: pid(row.scope),
            started_ns: started(pid(row.scope)),
            tag: row.tag.clone(),
            on: matches!(row.state, BreakpointState::Active | BreakpointState::Pending),
        });
        let watches = snapshot.page_tables.iter().filter(|row| row.ended.is_none());
        let watches = watches.take(MOST_ROWS).map(|row| Row {
            place: place(&row.symbol, row.address.to_string()),
            pid: row.pid,
            started_ns: started(row.pid),
            tag: row.tag.clone(),
            on: true,
        });
        Self {
            version: VERSION,
            driver: snapshot.driver.to_owned(),
            guest: snapshot.guest.name.clone(),
            theme: theme.to_owned(),
            focus: state.focus.title().to_owned(),
            zoom: state.zoom,
            tree: state.tree,
            grouped: state.grouped,
            split: [state.split.left, state.split.first, state.split.second],
            panes: PaneId::ALL.map(pane).into(),
            breakpoints: breakpoints.collect(),
            watches: watches.collect(),
        }
    }

    /// The theme.
    pub fn theme(&self) -> &str {
        &self.theme
    }

    /// Sets the screen as it was.
    pub fn apply(&self, state: &mut UiState) {
        state.focus = pane_of(&self.focus).unwrap_or_default();
        (state.zoom, state.tree, state.grouped) = (self.zoom, self.tree, self.grouped);
        let [left, first, second] = self.split;
        state.split = Split { left: left.clamp(10, 90), first: first.clamp(10, 80), second: second.clamp(10, 80) };
        for (name, saved) in &self.panes {
            let Some(id) = pane_of(name) else { continue };
            let pane = state.pane_mut(id);
            pane.filter.set(&saved.filter);
            if let Some(column) = rows::columns(id).iter().find(|column| column.name == saved.sort) {
                pane.sort = Sort { column: column.id, descending: saved.descending };
            }
        }
    }

    /// What sets breakpoints and watched addresses as they were; of a guest that may not be changed, breakpoints are only
    /// listed, switched off.
    pub fn commands(&self, snapshot: &Snapshot) -> Vec<Command> {
        let target = |row: &Row| Target { place: row.place.clone(), pid: row.pid, started_ns: row.started_ns };
        let breakpoints = self.breakpoints.iter().map(|row| Command::RestoreBreakpoint {
            target: target(row),
            scope: row.pid.map_or(Scope::Global, Scope::Process),
            tag: row.tag.clone(),
            enabled: row.on && !snapshot.read_only,
        });
        let changes_nothing = snapshot.can(Capability::TablePolling).is_ok();
        let watches = self.watches.iter().filter(|_| changes_nothing || !snapshot.read_only);
        let watches = watches.map(|row| Command::WatchAddress { target: target(row), tag: row.tag.clone() });
        breakpoints.chain(watches).collect()
    }

    /// Reads what was kept for the guest of a snapshot; `None` when nothing was.
    ///
    /// # Errors
    /// A sentence when the file cannot be read or says what it cannot mean.
    pub fn read(snapshot: &Snapshot) -> Result<Option<Self>, String> {
        let Some(path) = path(snapshot) else { return Ok(None) };
        let text = match text_of(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("cannot read the saved state {}: {error}", path.display())),
        };
        let saved = Self::parse(&text).and_then(|saved| {
            let same = saved.driver == snapshot.driver && saved.guest == snapshot.guest.name;
            if same { Ok(saved) } else { Err(format!("it is of another guest, {} {}", saved.driver, saved.guest)) }
        });
        let saved = saved.map_err(|why| {
            format!("the saved state {} is not used: {why}; save it anew, or delete the file", path.display())
        })?;
        Ok(Some(saved))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let saved: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text.get(..span.start).unwrap_or("").matches('\n').count() + 1);
            clean(&format!("line {line}: {}", error.message().replace('\n', " ")), 300)
        })?;
        saved.check().map(|()| saved)
    }

    /// What a right form can still say wrongly.
    fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("its version is {}, this vmscope reads {VERSION}", self.version));
        }
        if self.breakpoints.len() > MOST_ROWS || self.watches.len() > MOST_ROWS {
            return Err(format!("more than {MOST_ROWS} breakpoints or watched addresses"));
        }
        let rows = self.breakpoints.iter().chain(&self.watches);
        let mut texts: Vec<&str> = vec![&self.driver, &self.guest, &self.theme, &self.focus];
        texts.extend(rows.flat_map(|row| [row.place.as_str(), row.tag.as_str()]));
        texts.extend(self.panes.iter().flat_map(|(name, pane)| [name, pane.filter.as_str(), pane.sort.as_str()]));
        if let Some(text) = texts.into_iter().find(|text| clean(text, LONGEST) != *text) {
            return Err(format!("a text in it is too long or holds what no text here has: {}", clean(text, 60)));
        }
        for row in self.breakpoints.iter().chain(&self.watches) {
            Target::parse(&row.place)?;
        }
        match self.panes.keys().chain([&self.focus]).find(|name| pane_of(name).is_none()) {
            Some(name) => Err(format!("there is no pane '{name}'")),
            None => Ok(()),
        }
    }

    /// Keeps it for the next run; answers where.
    ///
    /// # Errors
    /// A sentence when it cannot be written; what was kept before stays.
    pub fn write(&self, snapshot: &Snapshot) -> Result<PathBuf, String> {
        let Some(path) = path(snapshot) else {
            return Err("cannot save the state: there is no folder for it; set XDG_STATE_HOME or HOME".into());
        };
        let text = toml::to_string(self).map_err(|error| format!("cannot save the state: {error}"))?;
        let written = replace(&path, text.as_bytes());
        written.map_err(|error| format!("cannot save the state to {}: {error}", path.display()))?;
        Ok(path)
    }
}

fn pane_of(name: &str) -> Option<PaneId> {
    PaneId::ALL.into_iter().find(|pane| pane.title() == name)
}

/// Where the state of a snapshot's guest is kept.
fn path(snapshot: &Snapshot) -> Option<PathBuf> {
    let folder = etcetera::choose_base_strategy().ok()?.state_dir()?.join("vmscope");
    let known = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = snapshot.guest.name.chars().take(NAME).map(known).collect();
    Some(folder.join(format!("{}-{name}.toml", snapshot.driver)))
}

fn text_of(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    if file.take(MOST_BYTES + 1).read_to_string(&mut text)? as u64 > MOST_BYTES {
        return Err(io::Error::other("it is larger than any state"));
    }
    Ok(text)
}

/// Writes a file that only the user can read, as a whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // Root in a user's environment (sudo -E) must not be led elsewhere by that user's links.
        if fs::symlink_metadata(folder)?.uid() != geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "its folder is another user's"));
        }
    }
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    // What a run of the same number has left half done.
    let _ = fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let done = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&beside, path));
    done.inspect_err(|_| {
        // Half a file is worth nothing; that it cannot be removed either is not the first trouble.
        let _ = fs::remove_file(&beside);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::snapshot::{Breakpoint, BreakpointId, Guest, Part, Process, Table, Va, View},
        ui::state::Column,
    };

    fn snapshot() -> Snapshot {
        let breakpoint = |symbol: &str, scope, state| Breakpoint {
            id: BreakpointId(1),
            symbol: symbol.into(),
            address: Va(0x1000),
            scope,
            view: View(0),
            pa: None,
            state,
            visible: false,
            tag: "mine".into(),
            hits: 0,
            rates: Vec::new(),
            last_hits: Vec::new(),
            error: None,
        };
        let lsass = Process { pid: 648, start_ns: 77, ..Process::default() };
        let rows = vec![
            breakpoint("", Scope::Process(912), BreakpointState::Ended),
            breakpoint("nt!NtCreateFile+0x10", Scope::Global, BreakpointState::Active),
            breakpoint("", Scope::Process(648), BreakpointState::Disabled),
        ];
        Snapshot {
            driver: "demo",
            guest: Part::new(Guest { name: "WIN10".into(), ..Guest::default() }),
            processes: Part::new(vec![lsass]),
            breakpoints: Part::new(rows),
            page_tables: Part::new(vec![
                Table { address: Va(0x2000), pid: Some(4), ..Table::default() },
                Table { address: Va(0x3000), pid: Some(912), ended: Some("gone".into()), ..Table::default() },
            ]),
            capabilities: Part::new(vec![Capability::TableWrites]),
            ..Snapshot::default()
        }
    }

    fn screen() -> UiState {
        let mut state = UiState { focus: PaneId::Events, zoom: true, tree: true, ..UiState::default() };
        state.split = Split { left: 30, first: 20, second: 40 };
        let pane = state.pane_mut(PaneId::Processes);
        pane.filter.set("lsass|csrss");
        pane.sort = Sort { column: Column::Name, descending: true };
        state
    }

    fn text() -> String {
        toml::to_string(&Saved::of(&screen(), &snapshot(), "light")).unwrap()
    }

    #[test]
    fn what_was_set_comes_back() {
        let saved = Saved::parse(&text()).unwrap();
        assert_eq!(saved, Saved::of(&screen(), &snapshot(), "light"));
        let mut state = UiState::default();
        saved.apply(&mut state);
        assert_eq!((state.focus, state.zoom, state.tree, state.split), (PaneId::Events, true, true, screen().split));
        let pane = state.pane(PaneId::Processes);
        assert_eq!((pane.filter.text(), pane.sort), ("lsass|csrss", screen().pane(PaneId::Processes).sort));
        let restore = |place: &str, pid, enabled| Command::RestoreBreakpoint {
            target: Target { place: place.into(), pid, started_ns: pid.map(|_| 77) },
            scope: pid.map_or(Scope::Global, Scope::Process),
            tag: "mine".into(),
            enabled,
        };
        let watch = Command::WatchAddress {
            target: Target { place: Va(0x2000).to_string(), pid: Some(4), started_ns: None },
            tag: String::new(),
        };
        let address = Va(0x1000).to_string();
        assert_eq!(
            saved.commands(&snapshot()),
            [restore("nt!NtCreateFile+0x10", None, true), restore(&address, Some(648), false), watch]
        );
        let read_only = Snapshot { read_only: true, ..snapshot() };
        assert_eq!(
            saved.commands(&read_only),
            [restore("nt!NtCreateFile+0x10", None, false), restore(&address, Some(648), false)]
        );
    }

    #[test]
    fn a_file_that_is_wrong_is_a_sentence() {
        let with = |from: &str, to: &str| {
            assert!(text().contains(from), "{from} in {}", text());
            text().replacen(from, to, 1)
        };
        let many = format!("{}{}", text(), "[[watches]]\nplace = 'a'\n".repeat(MOST_ROWS));
        for (text, said) in [
            ("\u{1b}[2J not toml".to_owned(), "line 1"),
            (String::new(), "missing field"),
            (with("version = 1", "version = 2"), "version is 2"),
            (with("zoom = true", "zoom = 1"), "invalid type"),
            (with("zoom = true", "zoom = true\nevil = 1"), "unknown field"),
            (with("focus = \"Events\"", "focus = \"Nowhere\""), "no pane 'Nowhere'"),
            (with("nt!NtCreateFile+0x10", "main@everywhere"), "process id"),
            (with("lsass|csrss", "\\u001b[2J"), "a text in it"),
            (with("lsass|csrss", &"x".repeat(LONGEST + 1)), "too long"),
            (many, "more than 1000"),
        ] {
            let error = Saved::parse(&text).expect_err(said);
            assert!(error.contains(said), "{said}: {error}");
            assert!(!error.chars().any(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn absurd_layouts_are_bent_right() {
        let mut saved = Saved::of(&screen(), &snapshot(), "light");
        saved.split = [0, u16::MAX, 3];
        let mut state = UiState::default();
        saved.apply(&mut state);
        assert_eq!(state.split, Split { left: 10, first: 80, second: 10 });
    }
}
