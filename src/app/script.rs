//! What a headless run is told on the command line: keys, conditions, durations, the size of the screen.
//!
//! Pure functions of text. Every error is one sentence: what was wrong, why, what to write instead.

use std::{fmt, str::FromStr, time::Duration};

use crokey::KeyCombination;

use super::keymap;
use crate::engine::snapshot::Snapshot;

/// The size of a headless screen in cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns, 1 to 500.
    pub columns: u16,
    /// Rows, 1 to 500.
    pub rows: u16,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is not a screen size; write COLUMNSxROWS, each from 1 to 500, for example 120x40");
        let (columns, rows) = text.split_once(['x', 'X']).ok_or_else(wrong)?;
        let number = |part: &str| part.parse::<u16>().ok().filter(|n| (1..=500).contains(n)).ok_or_else(wrong);
        Ok(Self { columns: number(columns)?, rows: number(rows)? })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.columns, self.rows)
    }
}

/// Parses a time such as `500ms`, `2s`, `1.5s` or `3m`.
///
/// # Errors
/// A sentence when there is no unit, the number is none, or the time is longer than a day.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("'{text}' is not a time; write a number and its unit, for example 500ms, 2s or 3m, at most a day");
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * scale;
    if seconds > 86_400.0 {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// How a counter is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    AtLeast,
    AtMost,
    Equal,
}

impl Relation {
    /// Spelling, longest first.
    const ALL: [(&'static str, Self); 3] = [(">=", Self::AtLeast), ("<=", Self::AtMost), ("==", Self::Equal)];
}

/// A condition on a counter of the snapshot: `hits>=3`, `faults_pending<=0`, `processes==12`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    counter: String,
    relation: Relation,
    value: u64,
    text: String,
}

impl Condition {
    /// Whether it holds now.
    pub fn holds(&self, snapshot: &Snapshot) -> bool {
        let now = self.now(snapshot);
        match self.relation {
            Relation::AtLeast => now >= self.value,
            Relation::AtMost => now <= self.value,
            Relation::Equal => now == self.value,
        }
    }

    /// What the counter is now.
    pub fn now(&self, snapshot: &Snapshot) -> u64 {
        snapshot.counter(&self.counter).unwrap_or(0)
    }
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Relation::ALL.iter().find_map(|&(sign, relation)| {
            text.split_once(sign).map(|(counter, value)| (counter.trim(), relation, value.trim()))
        });
        let Some((counter, relation, value)) = found else {
            return Err(format!("'{text}' is not a condition; write COUNTER>=NUMBER (or <=, ==), for example hits>=3"));
        };
        if Snapshot::default().counter(counter).is_none() {
            let known = Snapshot::COUNTERS.join(", ");
            return Err(format!("'{counter}' is not a counter of the snapshot; there are {known}"));
        }
        let value =
            value.parse().map_err(|_| format!("'{value}' in '{text}' is not a whole number, as in {counter}>=3"))?;
        Ok(Self { counter: counter.to_owned(), relation, value, text: text.to_owned() })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One step of scripted keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A key is pressed.
    Key(KeyCombination),
    /// Time passes: guest time in a run of virtual time, else real time.
    Pause(Duration),
    /// The run waits until a condition holds.
    Until(Condition),
}

/// The keys of `--keys`, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The steps.
    pub steps: Vec<Step>,
}

impl FromStr for Script {
    type Err = String;

    /// Key names separated by blanks; `'text'` or `"text"` is typed; `wait:TIME` and `wait:CONDITION` wait.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            if matches!(first, '\'' | '"') {
                let inner = &rest[1..];
                let Some(end) = inner.find(first) else {
                    return Err(format!("the text that begins at {rest} has no closing {first}; add it"));
                };
                steps.extend(inner[..end].chars().map(|c| Step::Key(keymap::typed(c))));
                rest = &inner[end + 1..];
                if !rest.is_empty() && !rest.starts_with(char::is_whitespace) {
                    return Err(format!("a blank is missing between the quoted text and '{rest}'"));
                }
            } else {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                steps.push(step(&rest[..end])?);
                rest = &rest[end..];
            }
            rest = rest.trim_start();
        }
        Ok(Self { steps })
    }
}

/// One word of a script: a wait or the name of a key.
fn step(word: &str) -> Result<Step, String> {
    let Some(what) = word.strip_prefix("wait:") else {
        return keymap::parse(word).map(Step::Key);
    };
    if what.starts_with(|c: char| c.is_ascii_digit()) {
        return parse_duration(what).map(Step::Pause);
    }
    what.parse().map(Step::Until)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<String> {
        let script: Script = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let name = |step: &Step| match step {
            Step::Key(key) => keymap::name(*key),
            Step::Pause(time) => format!("pause {time:?}"),
            Step::Until(condition) => format!("until {condition}"),
        };
        script.steps.iter().map(name).collect()
    }

    fn refused(text: &str) -> String {
        text.parse::<Script>().expect_err(text)
    }

    #[test]
    fn reads_every_form_of_the_documented_grammar() {
        assert_eq!(keys("2 j j space"), ["2", "j", "j", "space"]);
        assert_eq!(keys("  ctrl-p f1\tenter \n"), ["ctrl-p", "f1", "enter"]);
        assert_eq!(keys("a 'nt!N' enter"), ["a", "n", "t", "!", "N", "enter"]);
        assert_eq!(keys("\"it's\""), ["i", "t", "'", "s"]);
        assert_eq!(keys("'a b'"), ["a", "space", "b"]);
        assert_eq!(keys("wait:500ms wait:1.5s"), ["pause 500ms", "pause 1.5s"]);
        assert_eq!(keys("wait:hits>=3 wait:faults_pending<=0"), ["until hits>=3", "until faults_pending<=0"]);
        assert_eq!(
            keys("S ? : [ ] / - pgup pagedown shift-a"),
            ["S", "?", ":", "[", "]", "/", "-", "pgup", "pgdn", "A"]
        );
        assert!(keys("").is_empty());
    }

    #[test]
    fn says_what_is_wrong_with_a_script() {
        assert!(refused("a 'nt!N enter").contains("no closing '"));
        assert!(refused("'a'b").contains("blank is missing"));
        assert!(refused("entr").contains("'entr' is not the name of a key"));
        assert!(refused("a-b").contains("'a-b' is not the name of a key"));
        assert!(refused("wait:hots>=3").contains("'hots' is not a counter"));
        assert!(refused("wait:hots>=3").contains("hits, page_ins"));
        assert!(refused("wait:hits").contains("not a condition"));
        assert!(refused("wait:hits>=three").contains("whole number"));
        assert!(refused("wait:5").contains("not a time"));
        assert!(refused("wait:5h").contains("not a time"));
    }

    #[test]
    fn sizes_and_times_have_bounds() {
        assert_eq!("120x40".parse(), Ok(Size { columns: 120, rows: 40 }));
        for text in ["0x0", "120", "x", "501x10", "-1x3", "12x", "1x2x3"] {
            assert!(text.parse::<Size>().is_err_and(|e| e.contains("COLUMNSxROWS")), "{text}");
        }
        assert_eq!(parse_duration("3m"), Ok(Duration::from_secs(180)));
        assert_eq!(parse_duration("0ms"), Ok(Duration::ZERO));
        for text in ["", "3", "s", "1..5s", "2d", "-1s", "999999999999999999999m"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_condition_compares_a_counter() {
        let mut snapshot = Snapshot::default();
        snapshot.counters.hits = 3;
        let holds = |text: &str| text.parse::<Condition>().map(|c| c.holds(&snapshot));
        assert_eq!(holds("hits>=3"), Ok(true));
        assert_eq!(holds("hits>=4"), Ok(false));
        assert_eq!(holds("hits<=2"), Ok(false));
        assert_eq!(holds("hits == 3"), Ok(true));
    }
}
