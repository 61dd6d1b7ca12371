//! What the documents say can be done: console blocks are run and compared, every other command line of vmscope is at
//! least understood, and run where it needs no terminal.

use std::{fs, path::Path, process::Command};

use vmscope::cli::Cli;

fn documents() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names: Vec<String> = fs::read_dir(root.join("docs"))
        .unwrap()
        .map(|entry| format!("docs/{}", entry.unwrap().file_name().into_string().unwrap()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.push("README.md".into());
    names.sort();
    names
}

/// The lines in code blocks that call vmscope, without the prompt.
fn calls(document: &str) -> Vec<String> {
    let mut block = None;
    let mut found = Vec::new();
    for line in document.lines() {
        if let Some(kind) = line.strip_prefix("```") {
            block = if block.is_none() { Some(kind) } else { None };
        // Console blocks hold what is printed as well; they are run.
        } else if block.is_some_and(|kind| kind != "console")
            && let Some(call) = line.strip_prefix("vmscope ").or_else(|| (line == "vmscope").then_some(""))
        {
            found.push(call.to_owned());
        }
    }
    found
}

/// Words as a shell has them: quoted ones whole, nothing behind a `#`.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (' ', None) => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn console_blocks_show_what_happens() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().to_str().unwrap();
    trycmd::TestCases::new()
        .case("docs/headless.md")
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home)
        .env("XDG_STATE_HOME", home);
}

#[test]
fn every_command_in_the_documents_is_one() {
    let mut seen = 0;
    for name in documents() {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(&name)).unwrap();
        for call in calls(&text).into_iter().filter(|call| !call.contains("...")) {
            let words = words(&call);
            let read = Cli::try_read(std::iter::once("vmscope".to_owned()).chain(words.clone()));
            let cli = read.unwrap_or_else(|error| panic!("{name}: vmscope {call}: {error}"));
            seen += 1;
            if cli.options.headless {
                let folder = tempfile::tempdir().unwrap();
                let run = Command::new(env!("CARGO_BIN_EXE_vmscope"))
                    .args(&words)
                    .current_dir(folder.path())
                    .env("XDG_CONFIG_HOME", folder.path())
                    .output()
                    .unwrap();
                assert!(run.status.success(), "{name}: {call}: {}", String::from_utf8_lossy(&run.stderr));
                for shot in &cli.lists.screenshot {
                    let file = shot.file.as_ref().unwrap();
                    assert!(folder.path().join(file).exists(), "{name}: {call}: no {}", file.display());
                }
            }
        }
    }
    assert!(seen >= 5, "the command lines were not found: {seen}");
}

#[test]
fn words_are_those_of_a_shell() {
    assert_eq!(words("a \"b 'c' d\" 'e f'g   # h"), ["a", "b 'c' d", "e fg"]);
    assert_eq!(words("''"), [""]);
}
