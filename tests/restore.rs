//! What is set for a guest comes back in the next run, on request.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// A user's folders.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, arguments: &[&str], keys: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vmscope"))
            .args(["demo", "--headless", "--ticks", "300", "--keys", keys])
            .arg("--screenshot")
            .arg(self.file("out.json"))
            .arg("--screenshot")
            .arg(self.file("out.txt"))
            .args(arguments)
            .env("HOME", self.0.path())
            .env("XDG_CONFIG_HOME", self.file("config"))
            .env("XDG_STATE_HOME", self.file("state"))
            .output()
            .unwrap()
    }

    fn good(&self, arguments: &[&str], keys: &str) -> Value {
        let output = self.run(arguments, keys);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&fs::read(self.file("out.json")).unwrap()).unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file("out.txt")).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn saved(&self) -> PathBuf {
        let folder = fs::read_dir(self.file("state/vmscope")).unwrap();
        let files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Sets a breakpoint, another one that is off, a watch, a filter, an order and the zoom.
const KEYS: &str = "2 a 'nt!NtCreateFile' tab tab 'mine' enter a 'nt!NtClose' enter j space 3 a 'nt!NtOpenFile' enter \
                    1 / 'exe' enter s j j enter z";

#[test]
fn everything_comes_back_on_request_only() {
    let home = Home::new();
    home.good(&[], &format!("{KEYS} ctrl-s"));
    assert!(home.text().contains("--restore"), "it is told how to have it back:\n{}", home.text());
    assert_eq!(mode(&home.saved()), 0o600);

    let plain = home.good(&[], "");
    assert_eq!(plain["breakpoints"].as_array().unwrap().len(), 0, "nothing is set that was not asked for");

    let again = home.good(&["--restore"], "");
    let rows = again["breakpoints"].as_array().unwrap();
    let shown: Vec<String> =
        rows.iter().map(|row| format!("{} {} {}", row["symbol"], row["state"], row["tag"])).collect();
    assert_eq!(shown, [r#""nt!NtCreateFile" "active" "mine""#, r#""nt!NtClose" "disabled" """#]);
    assert_eq!(again["page_tables"].as_array().unwrap().len(), 1);
    assert!(home.text().contains("/exe") && !home.text().contains("2 Breakpoints"), "{}", home.text());

    let read_only = home.good(&["--restore", "--read-only"], "");
    let states: Vec<&Value> = read_only["breakpoints"].as_array().unwrap().iter().map(|row| &row["state"]).collect();
    assert_eq!(states, ["disabled", "disabled"]);
}

#[test]
fn a_run_that_restores_saves_again_at_its_end() {
    let home = Home::new();
    home.good(&["--restore"], "2 a 'nt!NtCreateFile' enter");
    fs::create_dir_all(home.file("config/vmscope")).unwrap();
    fs::write(home.file("config/vmscope/config.toml"), "restore = true").unwrap();
    assert_eq!(home.good(&[], "2 d")["breakpoints"].as_array().unwrap().len(), 0);
    assert_eq!(home.good(&[], "")["breakpoints"].as_array().unwrap().len(), 0, "what was deleted stays so");
}

#[test]
fn a_damaged_file_is_named_and_left_alone() {
    let home = Home::new();
    home.good(&[], &format!("{KEYS} ctrl-s"));
    let file = home.saved();
    for text in ["\u{1b}[2J", "version = 7", &fs::read_to_string(&file).unwrap().replace("demo", "qemu")] {
        fs::write(&file, text).unwrap();
        let json = home.good(&["--restore"], "");
        assert_eq!(json["breakpoints"].as_array().unwrap().len(), 0);
        let screen = home.text();
        assert!(screen.contains("the saved state") && screen.contains("is not used"), "{screen}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text, "it may be worth mending");
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    home.good(&["--restore"], "");
    assert!(home.text().contains("cannot read the saved state"), "{}", home.text());
}

#[test]
fn a_state_that_cannot_be_kept_is_a_sentence() {
    let home = Home::new();
    fs::write(home.file("state"), "a file where a folder should be").unwrap();
    home.good(&[], "ctrl-s");
    assert!(home.text().contains("cannot save the state"), "{}", home.text());
}
