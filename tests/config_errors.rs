//! What is said of each wrong configuration: one file in `tests/config` a mistake, one sentence each.

use std::{fs, path::Path, process::Command};

/// The sample files by name, sorted.
fn samples() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn every_wrong_configuration_is_refused_with_its_own_sentence() {
    let mut said = String::new();
    for name in samples() {
        let run = Command::new(env!("CARGO_BIN_EXE_vmscope"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["demo", "--headless", "--ticks", "10", "--screenshot", "-", "--config"])
            .arg(format!("tests/config/{name}"))
            .output()
            .unwrap();
        let error = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(2), "{name}: a wrong configuration is a wrong use: {error}");
        assert!(run.stdout.is_empty(), "{name}: nothing was started");
        assert_eq!(error.lines().count(), 1, "{name}: {error}");
        assert!(error.contains(&format!("tests/config/{name}")), "{name} is not named: {error}");
        said += &error;
    }
    insta::assert_snapshot!(said);
}
