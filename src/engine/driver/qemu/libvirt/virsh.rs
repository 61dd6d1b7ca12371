//! The program `virsh`: one that is asked once, and one that stays to be asked often.
//!
//! A command of one that stays takes 1 to 3 ms; starting the program for each takes 20. It reads its commands from its
//! input and echoes them; what it answers stands between two words that it is told to say, and that the echo does not show
//! because they are quoted there.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    os::fd::BorrowedFd,
    time::Instant,
};

use super::child::Running;
use crate::engine::snapshot::clean;

const PROGRAM: &str = "virsh";
/// The longest message of virsh's that is shown, in characters.
const LONGEST: usize = 240;

/// What became of a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// There is no such program.
    Missing,
    /// It says no, in its own words.
    Refused(String),
    /// It has ended, with these last words.
    Ended(String),
    /// It does not answer, or talks without end; why.
    Broken(String),
}

impl Failure {
    /// Whether there is no libvirt to ask, which most machines do not have.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Missing => true,
            Self::Refused(why) | Self::Ended(why) => {
                ["No such file", "Connection refused", "runtime directory"].iter().any(|word| why.contains(word))
            }
            Self::Broken(_) => false,
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::TimedOut => Self::Broken("virsh does not answer".into()),
            _ => Self::Broken(format!("virsh cannot be used: {error}")),
        }
    }
}

/// Asks once and gives what it printed. With a descriptor, virsh has that as number 3.
///
/// # Errors
/// [`Failure`].
pub fn ask(
    uri: Option<&str>,
    command: &[&str],
    passed: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<String, Failure> {
    let arguments = options(uri).into_iter().chain(command.iter().copied());
    let mut virsh = Running::start(PROGRAM, arguments, passed).map_err(|error| Failure::of(&error))?;
    let mut said = Vec::new();
    virsh.read_until(&mut said, deadline, |_| false).map_err(|error| Failure::of(&error))?;
    let well = virsh.ended_well(deadline);
    let errors = virsh.errors();
    if well { Ok(String::from_utf8_lossy(&said).into_owned()) } else { Err(Failure::Refused(message(&errors))) }
}

fn options(uri: Option<&str>) -> Vec<&str> {
    let mut options = vec!["-q"];
    options.extend(uri.into_iter().flat_map(|uri| ["-c", uri]));
    options
}

/// One that listens for QEMU's events of a domain and prints a line for each.
///
/// # Errors
/// [`Failure`].
pub fn listen(uri: &str, uuid: &str) -> Result<Running, Failure> {
    let listen = ["-q", "-c", uri, "qemu-monitor-event", "--domain", uuid, "--loop"];
    Running::start(PROGRAM, listen, None).map_err(|error| Failure::of(&error))
}

/// One that stays.
#[derive(Debug)]
pub struct Virsh {
    running: Running,
    /// Nobody who answers knows it before it is said.
    word: String,
    asked: u64,
}

impl Virsh {
    /// Starts one.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn start(uri: &str) -> Result<Self, Failure> {
        let running = Running::start(PROGRAM, options(Some(uri)), None).map_err(|error| Failure::of(&error))?;
        let word = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        Ok(Self { running, word, asked: 0 })
    }

    /// Gives what it prints for a command, which is a line of virsh's own language.
    ///
    /// # Errors
    /// [`Failure`]; after all but `Refused` it is of no use any more.
    pub fn ask(&mut self, command: &str, deadline: Instant) -> Result<String, Failure> {
        self.asked += 1;
        let (word, number) = (&self.word, self.asked);
        let line = format!("echo begin'-'{word}'-'{number}; {command}; echo end'-'{word}'-'{number}\n");
        let (begin, end) = (format!("begin-{word}-{number}"), format!("end-{word}-{number}"));
        if let Err(error) = self.running.stream.send(line.as_bytes(), deadline)
            && !super::child::is_end(&error)
        {
            return Err(Failure::of(&error));
        }
        let mut said = Vec::new();
        let is_done = |said: &[u8]| find(said, end.as_bytes()).is_some();
        let complete = self.running.read_until(&mut said, deadline, is_done).map_err(|error| Failure::of(&error))?;
        // Its errors were written before it said the last word.
        let errors = self.running.errors();
        if !complete {
            return Err(Failure::Ended(message(&errors)));
        }
        let from = find(&said, begin.as_bytes()).map(|at| at + begin.len());
        let answer = from.and_then(|from| said.get(from..find(&said, end.as_bytes())?));
        let answer = String::from_utf8_lossy(answer.unwrap_or_default()).trim().to_owned();
        if answer.is_empty() && !errors.is_empty() {
            return Err(Failure::Refused(message(&errors)));
        }
        Ok(answer)
    }
}

/// Text between virsh's single quotes: JSON, in which quotes and everything outside of ASCII can be written as numbers.
pub fn quote_json(json: &str) -> String {
    let mut text = String::from("'");
    for c in json.chars() {
        if c == '\'' || !c.is_ascii() {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            text.push(c);
        }
    }
    text.push('\'');
    text
}

/// virsh's message in one clean line, without its `error: `.
fn message(errors: &str) -> String {
    let lines: Vec<&str> =
        errors.lines().map(|line| line.trim().trim_start_matches("error: ")).filter(|line| !line.is_empty()).collect();
    let text = clean(&lines.join(": "), LONGEST);
    if text.is_empty() { "virsh gives no reason".into() } else { text }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_survives_virshs_quotes() {
        let value = serde_json::json!({ "line": "it's \"so\" \\ ü 🦀" });
        let quoted = quote_json(&value.to_string());
        assert!(quoted.is_ascii() && quoted.matches('\'').count() == 2, "{quoted}");
        let back: serde_json::Value = serde_json::from_str(quoted.trim_matches('\'')).expect("JSON");
        assert_eq!(back, value);
    }

    #[test]
    fn messages_are_one_clean_line() {
        let said = "error: failed to connect to the hypervisor\nerror: no \u{1b}[2J socket\n\n";
        assert_eq!(message(said), "failed to connect to the hypervisor: no \u{241b}[2J socket");
        assert_eq!(message("\n"), "virsh gives no reason");
    }

    #[test]
    fn a_libvirt_that_is_not_there_is_no_error() {
        assert!(Failure::Missing.is_absent());
        assert!(Failure::Refused("failed to connect: '/run/s': No such file or directory".into()).is_absent());
        assert!(!Failure::Refused("'/run/s': Permission denied".into()).is_absent());
        assert!(!Failure::Broken("virsh does not answer".into()).is_absent());
    }
}
