//! The house keeps its plan: which floor may import which, what each folder must say, what must not be in the tree.
//!
//! The rules are [`judge`] (imports), [`blemishes`] (one source file) and [`places`] (any text file). They work on text,
//! so that they can be shown bad samples; the tests named `the_house_*` apply them to the real tree.

use std::fs;
use std::path::{Path, PathBuf};

/// The engine's floors from the ground up. A floor imports its own modules and those below it.
const FLOORS: &[&[&str]] = &[
    &["addr", "error", "event", "symbols", "profile", "snapshot", "command"],
    &["arch"],
    &["driver"],
    &["session"],
    &["os"],
    &["bpm", "ptm", "faults"],
    &["monitor"],
    &["worker"],
];

/// Upward imports by contract, and nothing else by that name: an architecture walks page tables through the core of a
/// driver that names its architecture, and an event carries its architecture's registers.
const BY_CONTRACT: &[(&str, &str)] = &[
    ("event", "arch::Architecture"),
    ("event", "arch::Registers"),
    ("arch", "driver::MemoryAccess"),
    ("arch", "driver::VmiRead"),
    ("arch", "session::VmiCore"),
];

/// All that the screen and the program around it may know of the engine.
const WINDOW: &[&str] = &["snapshot", "command"];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "misc", "types"];

/// Says why the module `from` may not import `to`; both are paths from the crate's root.
fn judge(from: &[String], to: &[String]) -> Option<String> {
    let (name, target) = (from.first()?.as_str(), to.first()?.as_str());
    if from.starts_with(to) && to.len() > 1 {
        return None;
    }
    let part = to.get(1).map(String::as_str);
    match (name, target) {
        ("engine", "ui" | "app" | "cli") => Some(format!("the engine may not know {target}")),
        ("ui", "app" | "cli") => Some(format!("the screen may not know {target}")),
        ("ui" | "app", "engine") if !part.is_some_and(|part| WINDOW.contains(&part)) => {
            Some(format!("{name} may know engine::{{snapshot, command}} only"))
        }
        ("engine", "engine") => {
            let own = from.get(1)?;
            let Some(own_floor) = floor(own) else { return Some(format!("engine::{own} has no floor in this test")) };
            let Some(part) = part else { return Some("name the floor: the whole engine is above every floor".into()) };
            if BY_CONTRACT.contains(&(own.as_str(), to[1..].join("::").as_str())) {
                return None;
            }
            match floor(part) {
                Some(floor) if floor > own_floor => Some(format!("{own} is a lower floor than {part}")),
                _ => None,
            }
        }
        _ => None,
    }
}

fn floor(part: &str) -> Option<usize> {
    FLOORS.iter().position(|parts| parts.contains(&part))
}

/// The module path of a file below `src`.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').filter(|part| !["lib", "main"].contains(part)).map(str::to_owned).collect()
}

/// Everything that is wrong with one source file below `src`: imports, `unsafe`, its name, missing module docs.
fn blemishes(file: &str, source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let module = module_of(file);
    if let Some(name) = module.last().filter(|name| EMPTY_NAMES.contains(&name.as_str())) {
        found.push(format!("{file}: `{name}` does not say what is inside"));
    }
    let lines = source.lines().take_while(|line| line.starts_with("//!")).count();
    if lines == 0 || (file.ends_with("/mod.rs") && lines < 3) {
        found.push(format!("{file}: opens with {lines} lines of docs; a folder wants three, a file one"));
    }
    let tokens = tokens(source);
    for (line, path) in imports(&module, &tokens) {
        if let Some(why) = judge(&module, &path) {
            found.push(format!("{file}:{line}: {why} (crate::{})", path.join("::")));
        }
    }
    if !module.starts_with(&["engine".to_owned(), "driver".to_owned()]) {
        let unsafe_tokens = tokens.iter().filter(|(_, token)| token == "unsafe" || token == "unsafe_code");
        found.extend(unsafe_tokens.map(|(line, _)| format!("{file}:{line}: unsafe code belongs in engine::driver")));
    }
    // The system and its handlers are told addresses, from where `unsafe` is allowed. Nobody compares them.
    let is_driver = module.starts_with(&["engine".to_owned(), "driver".to_owned()]);
    let why = "an address is no identity: it is used again (see engine::snapshot::Serial)";
    found.extend(addresses(&tokens, !is_driver).into_iter().map(|line| format!("{file}:{line}: {why}")));
    found
}

/// The lines on which addresses of values are compared, and with `taken` those on which one is taken at all.
fn addresses(tokens: &[(usize, String)], taken: bool) -> Vec<usize> {
    let token = |index: usize| tokens.get(index).map_or("", |(_, token)| token.as_str());
    let is_one = |&index: &usize| match token(index) {
        "ptr_eq" | "addr_eq" | "same_channel" => true,
        // However it was imported: `ptr::eq`, `use std::ptr::{self, eq as same}`.
        "ptr" if token(index + 1) == "::" => match token(index + 2) {
            "eq" | "hash" | "{" | "*" => true,
            next => taken && next.starts_with("from_"),
        },
        "as_ptr" | "as_mut_ptr" | "NonNull" | "expose_provenance" => taken,
        // `x as *const T`, `&raw const x`.
        "*" | "raw" => taken && ["const", "mut"].contains(&token(index + 1)),
        _ => false,
    };
    let mut lines: Vec<usize> = (0..tokens.len()).filter(is_one).map(|index| tokens[index].0).collect();
    lines.dedup();
    lines
}

/// Splits Rust source into identifiers, `::` and single other characters, each with its line; comments and the
/// contents of literals are left out.
fn tokens(source: &str) -> Vec<(usize, String)> {
    let text: Vec<char> = source.chars().collect();
    let at = |index: usize| text.get(index).copied().unwrap_or('\0');
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut found, mut index, mut line) = (Vec::new(), 0, 1);
    while index < text.len() {
        let start = index;
        match at(index) {
            '/' if at(index + 1) == '/' => index = until(&text, index, |i| at(i) == '\n'),
            '/' if at(index + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(index), at(index + 1)) {
                        ('/', '*') => (depth, index) = (depth + 1, index + 2),
                        ('*', '/') => (depth, index) = (depth - 1, index + 2),
                        _ => index += 1,
                    }
                    if depth == 0 || index >= text.len() {
                        break;
                    }
                }
            }
            // Raw strings: r"..", r#".."#, br##".."##; `r#name` is an identifier.
            'r' | 'b' | 'c' if raw_string(&text, index).is_some() => {
                let (open, hashes) = raw_string(&text, index).unwrap_or_default();
                let closes = |i: usize| at(i) == '"' && (1..=hashes).all(|k| at(i + k) == '#');
                index = until(&text, open + 1, closes) + 1 + hashes;
            }
            '"' => {
                index += 1;
                while index < text.len() && at(index) != '"' {
                    index += if at(index) == '\\' { 2 } else { 1 };
                }
                index += 1;
            }
            '\'' if at(index + 1) == '\\' => index = until(&text, index + 3, |i| at(i) == '\'') + 1,
            '\'' if at(index + 2) == '\'' => index += 3,
            ':' if at(index + 1) == ':' => {
                found.push((line, "::".to_owned()));
                index += 2;
            }
            c if word(c) => {
                index = until(&text, index, |i| !word(at(i)));
                found.push((line, text[start..index].iter().collect()));
            }
            c => {
                if !c.is_whitespace() {
                    found.push((line, c.to_string()));
                }
                index += 1;
            }
        }
        line += text[start..index.min(text.len())].iter().filter(|&&c| c == '\n').count();
    }
    found
}

fn until(text: &[char], from: usize, stop: impl Fn(usize) -> bool) -> usize {
    (from..text.len()).find(|&index| stop(index)).unwrap_or(text.len())
}

/// Where the opening quote of a raw string that starts at `index` stands, and its number of `#`.
fn raw_string(text: &[char], index: usize) -> Option<(usize, usize)> {
    let raw = (index..index + 2).find(|&i| text.get(i) == Some(&'r'))?;
    let quote = until(text, raw + 1, |i| text[i] != '#');
    let inside_word = index > 0 && (text[index - 1].is_alphanumeric() || text[index - 1] == '_');
    (text.get(quote) == Some(&'"') && !inside_word).then_some((quote, quote - raw - 1))
}

/// Every path that a file names, resolved from the crate's root: in `use` and inline, through `crate`, `self`, `super`
/// and any number of inline modules.
fn imports(module: &[String], tokens: &[(usize, String)]) -> Vec<(usize, Vec<String>)> {
    let token = |index: usize| tokens.get(index).map_or("", |(_, token)| token.as_str());
    let mut found = Vec::new();
    let mut blocks: Vec<Option<String>> = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        let here = || module.iter().chain(blocks.iter().flatten()).cloned().collect::<Vec<_>>();
        match token(index) {
            "{" => {
                let named = index >= 2 && token(index - 2) == "mod";
                blocks.push(named.then(|| token(index - 1).to_owned()));
            }
            "}" => {
                blocks.pop();
            }
            "use" if token(index + 1) != "<" => {
                let end = (index..tokens.len()).find(|&i| token(i) == ";").unwrap_or(tokens.len());
                expand(&tokens[index + 1..end], &mut 0, &[], &here(), &mut found);
                index = end;
            }
            "crate" | "super" | "self" if token(index + 1) == "::" && !after_path(tokens, index) => {
                let mut path = vec![token(index).to_owned()];
                while token(index + 1) == "::" && token(index + 2).starts_with(|c: char| c.is_alphabetic() || c == '_')
                {
                    path.push(token(index + 2).to_owned());
                    index += 2;
                }
                found.extend(resolve(&here(), &path).map(|path| (tokens[index].0, path)));
            }
            _ => {}
        }
        index += 1;
    }
    found
}

/// Whether the token continues a path, or is the scope of a visibility such as `pub(in crate::engine)`.
fn after_path(tokens: &[(usize, String)], index: usize) -> bool {
    let before = |back: usize| index.checked_sub(back).map_or("", |i| tokens[i].1.as_str());
    before(1) == "::" || (before(1) == "in" && before(2) == "(")
}

/// Walks one use tree (`a::{b, c::*}`), collecting each leaf as a resolved path.
fn expand(
    tree: &[(usize, String)],
    at: &mut usize,
    prefix: &[String],
    here: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
) {
    let mut path = prefix.to_vec();
    let mut grouped = false;
    let line = tree.get(*at).map_or(0, |(line, _)| *line);
    while let Some((_, token)) = tree.get(*at) {
        match token.as_str() {
            "," | "}" => break,
            "{" => {
                grouped = true;
                while tree.get(*at).is_some_and(|(_, token)| token != "}") {
                    *at += 1;
                    expand(tree, at, &path, here, found);
                }
                *at += 1;
            }
            "::" | "*" => *at += 1,
            "as" => *at += 2,
            "self" if !path.is_empty() => *at += 1,
            name => {
                path.push(name.to_owned());
                *at += 1;
            }
        }
    }
    if !grouped && path != prefix
        || tree.get(at.wrapping_sub(1)).is_some_and(|(_, token)| token == "self" || token == "*")
    {
        found.extend(resolve(here, &path).map(|path| (line, path)));
    }
}

/// A path from the crate's root; `None` for paths that start anywhere else (other crates, names in scope).
fn resolve(here: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut base = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "self" | "super" => here.to_vec(),
        _ => return None,
    };
    let steps = path.iter().take_while(|part| ["crate", "self", "super"].contains(&part.as_str())).count();
    let ups = path[..steps].iter().filter(|part| *part == "super").count();
    base.truncate(base.len().saturating_sub(ups));
    base.extend(path[steps..].iter().cloned());
    Some(base)
}

/// Paths of one person's machine and hosts of one place's package mirrors, which mean nothing to anybody else.
fn places(text: &str) -> Vec<String> {
    // Written in two halves, or this file would be the first offender.
    let folders = [("/ho", "me/"), ("/ro", "ot/"), ("/Us", "ers/"), ("/wo", "rk/"), ("/fa", "rm/"), ("/tmp", "/vm/")];
    let hosts = [("deb.deb", "ian.org"), ("static.crat", "es.io"), ("index.crat", "es.io"), ("artifact", "registry")];
    let home = |rest: &str| rest.trim_start_matches(|c: char| c.is_alphanumeric()).starts_with('/');
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for name in folders.map(|(a, b)| format!("{a}{b}")) {
            let own = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}~".contains(c));
            // The bare folder of all homes is nobody's.
            let deep = |at: usize| !["/ho", "/Us"].contains(&&name[..3]) || home(&line[at + name.len()..]);
            if line.match_indices(&name).any(|(at, _)| own(at) && deep(at)) {
                found.push(format!("{}: {name} is a place on one machine", number + 1));
            }
        }
        for name in hosts.map(|(a, b)| format!("{a}{b}")) {
            if line.contains(&name) {
                found.push(format!("{}: {name} is a package host", number + 1));
            }
        }
    }
    found
}

/// Every file of the project below `folder`, as paths from the project's root; what Git ignores is left out.
fn files(folder: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open = vec![root.join(folder)];
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("the folder can be read").path();
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            let last = name.rsplit('/').next().unwrap_or_default();
            if ["target", ".git", "proptest-regressions", "corpus", "artifacts"].contains(&last) {
                continue;
            }
            if path.is_symlink() {
            } else if path.is_dir() {
                open.push(path);
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

fn read(file: &str) -> Vec<u8> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn assert_clean(found: Vec<String>) {
    assert!(found.is_empty(), "{} found:\n{}", found.len(), found.join("\n"));
}

#[test]
fn the_house_keeps_its_floors() {
    let sources: Vec<String> = files("src").into_iter().filter(|file| file.ends_with(".rs")).collect();
    assert!(sources.len() > 10, "the sources were not found");
    let check = |file: &String| blemishes(file.trim_start_matches("src/"), &String::from_utf8_lossy(&read(file)));
    assert_clean(sources.iter().flat_map(check).collect());
}

#[test]
fn the_house_explains_every_folder() {
    let mut missing = Vec::new();
    let all = files("src");
    for file in &all {
        let folder = Path::new(file).parent().expect("a file is in a folder").to_string_lossy().into_owned();
        let has = |name: &str| all.contains(&format!("{folder}/{name}"));
        if file.ends_with(".rs") && !has("mod.rs") && !has("lib.rs") {
            missing.push(format!("{folder} has no mod.rs"));
        }
    }
    missing.dedup();
    assert_clean(missing);
}

#[test]
fn the_house_stands_anywhere() {
    let check = |file: String| {
        let text = String::from_utf8(read(&file)).unwrap_or_default();
        places(&text).into_iter().map(move |what| format!("{file}:{what}"))
    };
    assert_clean(files("").into_iter().flat_map(check).collect());
}

#[test]
fn the_house_has_the_tests_that_its_docs_name() {
    let sources: String = ["src", "tests"]
        .iter()
        .flat_map(|folder| files(folder))
        .filter(|file| file.ends_with(".rs"))
        .map(|file| String::from_utf8_lossy(&read(&file)).into_owned())
        .collect();
    let docs = String::from_utf8_lossy(&read("docs/testing.md")).into_owned();
    // A name in backquotes with three underscores or more is a test's.
    let names: Vec<&str> = docs
        .split('`')
        .filter(|word| {
            word.matches('_').count() > 2 && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        })
        .collect();
    assert!(names.len() > 20);
    assert_clean(
        names.into_iter().filter(|name| !sources.contains(&format!("fn {name}("))).map(str::to_owned).collect(),
    );
}

/// What is wrong with a sample, without the docs that every file needs.
fn faults_of(file: &str, sample: &str) -> Vec<String> {
    blemishes(file, &format!("//! One.\n//! Two.\n//! Three.\n{sample}"))
}

#[test]
fn bad_imports_are_found_however_they_are_written() {
    for (file, sample) in [
        ("ui/pane.rs", "use crate::app::action::Action;"),
        ("ui/pane.rs", "use crate::{ui::theme, engine::{snapshot::Snapshot, driver::sim}};"),
        ("ui/pane.rs", "use crate::engine;"),
        ("ui/pane.rs", "use crate::engine::{self, snapshot};"),
        ("ui/pane.rs", "use crate::engine::*;"),
        ("ui/rows/mod.rs", "use super::super::app as program;"),
        ("ui/pane.rs", "fn f() { super::super::engine::worker::start() }"),
        ("app/run.rs", "fn f(x: &crate::engine::monitor::Monitor) {}"),
        ("app/mod.rs", "use {std::fmt, crate::engine::os};"),
        ("engine/worker.rs", "pub use crate::ui::theme;"),
        ("engine/driver/qemu/gdb.rs", "mod inner { mod deeper { use super::super::super::super::super::session; } }"),
        ("engine/driver/mod.rs", "#[cfg(test)]\nmod tests { use crate::engine::monitor; }"),
        ("engine/arch/mod.rs", "use super::driver::VmiDriver;"),
        ("engine/arch/mod.rs", "use super::session::VmiSession;"),
        ("engine/addr.rs", "use super::*;"),
        ("engine/bpm/mod.rs", "/* /* */ \" */ use super::monitor as m;"),
        ("engine/ptm/mod.rs", "const A: &[char] = &['\"', '\\'']; use super::worker;"),
        ("engine/ptm/mod.rs", "const A: &str = r#\" \"# ; use super::worker;"),
        ("engine/novelty.rs", "use super::addr::Va;"),
    ] {
        assert_eq!(faults_of(file, sample).len(), 1, "{file}: {sample}: {:?}", faults_of(file, sample));
    }
}

#[test]
fn good_imports_pass() {
    for (file, sample) in [
        ("ui/pane.rs", "use crate::{engine::{snapshot::*, command::{self, Target}}, ui::theme::Theme};"),
        ("ui/pane.rs", "mod tests { use super::*; use super::super::layout; }"),
        ("app/run.rs", "use crate::{ui, engine::snapshot::Snapshot}; use super::action::Action;"),
        ("app/run.rs", "// use crate::engine::driver\nconst A: &str = \"use crate::engine::driver;\";"),
        ("engine/bpm/mod.rs", "use super::{ptm::Event, driver::VmiDriver, session}; use crate::engine::os;"),
        ("engine/monitor/mod.rs", "fn f<'a>(c: char) -> impl Sized + use<'a> { crate::vmi_probe!(c == '{') }"),
        ("engine/driver/qemu/mod.rs", "pub(in crate::engine) fn f() { self::gdb::g() }"),
        ("engine/arch/amd64/mod.rs", "use crate::engine::{driver::VmiRead, session::VmiCore};"),
        ("engine/mod.rs", "pub mod worker; pub use self::worker::start;"),
        ("main.rs", "use vmscope::{app, engine::worker};"),
    ] {
        assert_eq!(faults_of(file, sample), Vec::<String>::new(), "{file}: {sample}");
    }
}

#[test]
fn other_blemishes_are_found() {
    assert_eq!(blemishes("ui/pane.rs", "fn f() {}").len(), 1, "no docs");
    assert_eq!(blemishes("ui/rows/mod.rs", "//! Rows.\nmod a;").len(), 1, "too little said about a folder");
    assert_eq!(faults_of("ui/utils.rs", "").len(), 1, "an empty name");
    assert_eq!(faults_of("engine/os/common/mod.rs", "").len(), 1, "an empty name of a folder");
    assert_eq!(faults_of("engine/os/mod.rs", "fn f() { unsafe { g() } }").len(), 1, "unsafe above the drivers");
    assert_eq!(faults_of("ui/pane.rs", "#![allow(unsafe_code)]").len(), 1, "unsafe allowed above the drivers");
    assert!(faults_of("engine/driver/qemu/memory.rs", "fn f() { unsafe { g() } }").is_empty());
    assert!(faults_of("ui/pane.rs", "// unsafe\nconst A: &str = \"unsafe\";").is_empty());
}

#[test]
fn comparing_addresses_is_found_however_it_is_written() {
    let compared = [
        "fn f() -> bool { Arc::ptr_eq(&a, &b) }",
        "fn f() -> bool { std::ptr::eq(a, b) }",
        "use std::ptr::{self, eq as same};",
        "fn f() -> bool { std::ptr::addr_eq(a, b) }",
        "fn f() -> bool { one.same_channel(&two) }",
    ];
    let taken = [
        "fn f() -> usize { Arc::as_ptr(&a) as usize }",
        "fn f() -> usize { a as *const T as usize }",
        "fn f() -> usize { (&raw const a).addr() }",
        "fn f() -> bool { ptr::from_ref(a) == seen }",
        "fn f() -> bool { NonNull::from(a) == seen }",
    ];
    for sample in compared.iter().chain(&taken) {
        assert_eq!(faults_of("app/history.rs", sample).len(), 1, "{sample}");
        let in_driver = faults_of("engine/driver/qemu/mapping.rs", sample).len();
        assert_eq!(in_driver, usize::from(compared.contains(sample)), "{sample}");
    }
    for sample in ["fn f(x: u64) -> u64 { x * raw }", "const A: &str = \"ptr_eq\"; // as_ptr()"] {
        assert_eq!(faults_of("app/history.rs", sample), Vec::<String>::new(), "{sample}");
    }
}

#[test]
fn places_are_found() {
    let (home, host) = (["/ho", "me/someone/vm.img"].concat(), ["https://deb.deb", "ian.org/x"].concat());
    assert_eq!(places(&format!("one\nsee {home}")), [["2: /ho", "me/ is a place on one machine"].concat()]);
    assert_eq!(places(&host).len(), 1);
    assert!(places("docs/home/x, /home/q, ~/play/y and $x/root/z").is_empty());
}
