//! What is copied, and what is drawn, by what the environment says of the terminal.

use portable_pty::CommandBuilder;

use super::Session;

fn with(set: &[(&str, &str)], arguments: &[&str]) -> Session {
    let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_vmscope"));
    command.args(["demo", "--seed", "7"]);
    command.args(arguments);
    for (name, value) in set {
        command.env(name, value);
    }
    let mut session = Session::start(command, 120, 40);
    session.shows("System");
    session
}

#[test]
fn copying_says_no_more_than_is_known_and_leaves_a_file_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.txt");
    let mut session = with(&[], &[]);
    session.press("y");
    session.shows("cannot be known");
    session.wait("the sequence", |session| String::from_utf8_lossy(&session.raw).contains("\x1b]52;c;"));
    session.press("W\x15");
    session.press(&format!("{}\r", file.display()));
    session.shows("wrote");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("System") && text.lines().count() == 1, "{text}");
    session.press("q");
    assert!(session.ends().success());
}

#[test]
fn a_locale_that_is_not_utf8_gets_ascii_whatever_the_guest_is_called() {
    let mut session = with(&[("LC_ALL", "C")], &[]);
    session.shows("drawn in ASCII");
    session.press("?");
    session.shows("List all keys");
    session.press("\x03");
    session.ends();
    assert!(session.raw.is_ascii(), "a byte that is no ASCII came");
}
