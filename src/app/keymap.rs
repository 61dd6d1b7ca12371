//! Names of keys, and which key means which action.
//!
//! Keys are compared in one normal form: an upper-case letter carries shift, any other character carries none,
//! whatever a terminal reports.

use crokey::{KeyCombination, OneToThree};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::action::{ACTIONS, Action, Entry, Place};
use crate::nearest::did_you_mean;

/// The names of keys that are no characters, without their `ctrl-`, `alt-` or `shift-`.
const NAMES: &[&str] = &[
    "enter",
    "esc",
    "space",
    "tab",
    "shift-tab",
    "backspace",
    "delete",
    "insert",
    "up",
    "down",
    "left",
    "right",
    "home",
    "end",
    "pgup",
    "pgdn",
];

/// Reads the name of a key: `j`, `S`, `?`, `space`, `enter`, `pgup`, `ctrl-p`, `shift-tab`, `f1`.
///
/// # Errors
/// A sentence for a name that is none.
pub fn parse(name: &str) -> Result<KeyCombination, String> {
    let mut chars = name.chars();
    if let (Some(c), None) = (chars.next(), chars.next()) {
        return Ok(typed(c));
    }
    let full = match name.to_ascii_lowercase().as_str() {
        "pgup" => "pageup".to_owned(),
        "pgdn" | "pgdown" => "pagedown".to_owned(),
        "escape" => "esc".to_owned(),
        "shift-tab" => "backtab".to_owned(),
        _ => name.to_owned(),
    };
    let wrong = || {
        let known = "write a character, or a name such as enter, esc, space, tab, up, pgdn, f1, ctrl-p, and quote \
                     text that is to be typed";
        format!("'{name}' is not the name of a key; {}", did_you_mean(name, NAMES.iter().copied(), known))
    };
    let key = crokey::parse(&full).map_err(|_| wrong())?;
    if key.is_ansi_compatible() { Ok(normal(key)) } else { Err(wrong()) }
}

/// The key that types a character.
pub fn typed(c: char) -> KeyCombination {
    normal(KeyCombination::one_key(KeyCode::Char(c), KeyModifiers::NONE))
}

/// The key of a terminal's event, in normal form.
pub fn pressed(event: KeyEvent) -> KeyCombination {
    normal(KeyCombination::one_key(event.code, event.modifiers))
}

/// The event that a key makes, as a terminal would send it.
pub fn event(key: KeyCombination) -> KeyEvent {
    KeyEvent::new(*key.codes.first(), key.modifiers)
}

/// The name of a key as it is shown and written in a configuration: `S`, `ctrl-p`, `space`.
pub fn name(key: KeyCombination) -> String {
    let plain = key.modifiers.difference(KeyModifiers::SHIFT).is_empty();
    match key.codes {
        OneToThree::One(KeyCode::Char(c)) if plain && c != ' ' => c.to_string(),
        OneToThree::One(KeyCode::BackTab) => "shift-tab".to_owned(),
        OneToThree::One(KeyCode::PageUp) if key.modifiers.is_empty() => "pgup".to_owned(),
        OneToThree::One(KeyCode::PageDown) if key.modifiers.is_empty() => "pgdn".to_owned(),
        _ => key.to_string().to_lowercase(),
    }
}

fn normal(key: KeyCombination) -> KeyCombination {
    let mut key = key.normalized();
    if let OneToThree::One(KeyCode::Char(c)) = key.codes {
        // Shift is how a '?' or a 'É' was typed, not what was typed; crokey treats ASCII letters alone.
        if c.is_uppercase() {
            key.modifiers.insert(KeyModifiers::SHIFT);
        } else {
            key.modifiers.remove(KeyModifiers::SHIFT);
        }
    }
    if key.codes == OneToThree::One(KeyCode::BackTab) {
        key.modifiers = KeyModifiers::SHIFT;
    }
    key
}

/// Which key means which action; without anything said, as the table has it.
#[derive(Clone, Debug)]
pub struct Keymap {
    bindings: Vec<(KeyCombination, &'static Entry)>,
}

impl Default for Keymap {
    fn default() -> Self {
        // A test holds that the table has no conflicts of its own.
        Self::new(&[]).unwrap_or(Self { bindings: Vec::new() })
    }
}

impl Keymap {
    /// The keys of the table, with those of a configuration in place of the named actions' own.
    ///
    /// # Errors
    /// A sentence for an unknown action, an unknown key, or a key that would mean two things in one place.
    pub fn new(rebound: &[(String, Vec<String>)]) -> Result<Self, String> {
        if let Some((name, _)) = rebound.iter().find(|(name, _)| ACTIONS.iter().all(|entry| entry.name != name)) {
            let known = ACTIONS.iter().map(|entry| entry.name);
            let meant = did_you_mean(name, known, "docs/keys.md and the palette (:) list them");
            return Err(format!("there is no action '{name}'; {meant}"));
        }
        let mut bindings: Vec<(KeyCombination, &'static Entry)> = Vec::new();
        for entry in ACTIONS {
            let keys = match rebound.iter().find(|(name, _)| name == entry.name) {
                Some((_, keys)) => {
                    let keys = keys.iter().map(|key| parse(key)).collect::<Result<Vec<_>, _>>();
                    keys.map_err(|why| format!("'{}': {why}", entry.name))?
                }
                None => entry.keys.iter().map(|key| parse(key)).collect::<Result<Vec<_>, _>>()?,
            };
            for key in keys {
                if let Some((_, other)) = bindings.iter().find(|(taken, other)| *taken == key && clash(other, entry)) {
                    return Err(format!(
                        "the key {} is bound to both '{}' and '{}'; give one of them another key",
                        name(key),
                        other.name,
                        entry.name
                    ));
                }
                bindings.push((key, entry));
            }
        }
        Ok(Self { bindings })
    }

    /// What a key means in some other place.
    pub fn elsewhere(&self, key: KeyCombination) -> Option<&'static Entry> {
        self.bindings.iter().find(|(bound, _)| *bound == key).map(|(_, entry)| *entry)
    }

    /// What a key means in a place; an action for this place goes before one for most places.
    pub fn lookup(&self, key: KeyCombination, place: Place) -> Option<&'static Entry> {
        let here = self.bindings.iter().filter(|(bound, entry)| *bound == key && entry.places.contains(&place));
        here.map(|&(_, entry)| entry).min_by_key(|entry| is_general(entry))
    }

    /// An action's keys.
    pub fn bound(&self, action: Action) -> impl Iterator<Item = KeyCombination> {
        self.bindings.iter().filter(move |(_, entry)| entry.action == action).map(|&(key, _)| key)
    }

    /// The names of an action's keys, the first one to be shown first.
    pub fn keys_of(&self, action: Action) -> impl Iterator<Item = String> {
        self.bound(action).map(name)
    }
}

/// Whether one key cannot mean both: they meet in a place, and neither is the special case there.
fn clash(one: &Entry, other: &Entry) -> bool {
    one.action != other.action
        && is_general(one) == is_general(other)
        && one.places.iter().any(|place| other.places.contains(place))
}

/// Whether an action is for more than one or two places.
fn is_general(entry: &Entry) -> bool {
    entry.places.len() > 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::state::PaneId;

    const PROCESSES: Place = Place::Pane(PaneId::Processes);
    const EVENTS: Place = Place::Pane(PaneId::Events);

    #[test]
    fn every_default_key_has_one_meaning_and_a_name_that_reads_back() {
        let keymap = Keymap::new(&[]).expect("the table itself");
        for (key, entry) in &keymap.bindings {
            assert_eq!(parse(&name(*key)), Ok(*key), "{}", entry.name);
            assert_eq!(entry.action.entry().name, entry.name);
        }
    }

    #[test]
    fn a_key_means_what_is_nearest() {
        let keymap = Keymap::new(&[]).expect("the table itself");
        let meaning = |key: &str, place| parse(key).ok().and_then(|key| keymap.lookup(key, place)).map(|e| e.action);
        assert_eq!(meaning("q", EVENTS), Some(Action::Quit));
        assert_eq!(meaning("q", Place::Popup), Some(Action::Close));
        assert_eq!(meaning("S", EVENTS), Some(Action::SortReverse));
        assert_eq!(meaning("space", EVENTS), None);
    }

    #[test]
    fn keys_are_rebound_by_name_and_conflicts_are_told() {
        let bind = |name: &str, key: &str| Keymap::new(&[(name.into(), vec![key.into()])]);
        let keymap = bind("quit", "ctrl-q").expect("a free key");
        assert_eq!(keymap.keys_of(Action::Quit).collect::<Vec<_>>(), ["ctrl-q"]);
        let quit = bind("quit", "t").expect("a key of one pane");
        assert_eq!(quit.lookup(typed('t'), PROCESSES).map(|e| e.action), Some(Action::Tree));
        assert_eq!(quit.lookup(typed('t'), EVENTS).map(|e| e.action), Some(Action::Quit));
        assert!(bind("quit", "z").is_err_and(|e| e.contains("'zoom'")));
        assert!(bind("page-down", "j").is_err_and(|e| e.contains("'down' and 'page-down'")));
        assert!(bind("explode", "x").is_err_and(|e| e.contains("no action 'explode'")));
        assert!(bind("quit", "hyper").is_err_and(|e| e.contains("'hyper' is not the name of a key")));
    }

    #[test]
    fn shift_counts_for_letters_only() {
        assert_eq!(pressed(KeyEvent::new(KeyCode::Char('?'), KeyModifiers::SHIFT)), typed('?'));
        assert_eq!(pressed(KeyEvent::new(KeyCode::Char('S'), KeyModifiers::NONE)), typed('S'));
        assert_eq!(name(typed('É')), "É");
        for key in ["shift-tab", "pgdn", "shift-pagedown", "ctrl-pageup"] {
            assert_eq!(parse(key).map(name).as_deref(), Ok(key));
        }
    }
}
