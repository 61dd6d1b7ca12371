//! What a user writes: scripts of keys, configurations and themes; and guest strings on their way to the terminal.

use vmscope::{
    app::{
        config::Config,
        keymap::{self, Keymap},
        script::{Condition, Script, Size, Step, parse_duration},
    },
    engine::snapshot::clean as cleaned,
    ui::theme::Theme,
};

use crate::reader::Reader;

/// `--keys`, `--until`, `--size`, `--for`: refused with a sentence, or bounded and the same when written again.
pub fn keys(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match text.parse::<Script>() {
        Ok(script) => {
            assert!(script.steps.len() <= text.chars().count());
            for step in &script.steps {
                match step {
                    // What a key is called is a way to write it.
                    Step::Key(key) => {
                        let name = keymap::name(*key);
                        let _ = keymap::event(*key);
                        assert_eq!(keymap::parse(&name), Ok(*key), "{name:?}");
                    }
                    Step::Pause(time) => assert!(time.as_secs() <= 86_400),
                    Step::Until(condition) => {
                        assert_eq!(condition.to_string().parse::<Condition>().as_ref(), Ok(condition));
                    }
                }
            }
        }
        Err(error) => assert!(!error.is_empty()),
    }
    if let Ok(size) = text.parse::<Size>() {
        assert!((1..=500).contains(&size.columns) && (1..=500).contains(&size.rows));
        assert_eq!(size.to_string().parse(), Ok(size));
    }
    if let Ok(time) = parse_duration(&text) {
        assert!(time.as_secs() <= 86_400);
    }
}

/// `config.toml` and a theme: refused in one line, or complete.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Config::parse(&text) {
        Ok(config) => {
            if let Err(error) = Keymap::new(&config.keys()) {
                assert!(!error.is_empty());
            }
        }
        Err(error) => assert!(error.starts_with("line ") && !error.contains('\n'), "{error:?}"),
    }
    let parents = |name: &str| match name {
        "itself" => Some(text.clone().into_owned()),
        name => Theme::builtin_text(name).map(str::to_owned),
    };
    match Theme::parse("itself", &text, parents) {
        Ok(theme) => assert!(theme.items().count() > 10),
        Err(error) => assert!(error.starts_with("theme ") && !error.trim_end().contains('\n'), "{error:?}"),
    }
}

/// Strings of a guest: no longer than asked for, nothing that moves a terminal's cursor, and clean when cleaned again.
pub fn clean(data: &[u8]) {
    let mut reader = Reader(data);
    let limit = usize::from(reader.u16()) % 300;
    let text = String::from_utf8_lossy(reader.0);
    let out = cleaned(&text, limit);
    assert!(out.chars().count() <= limit + 1);
    assert!(!out.chars().any(|c| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)), "{out:?}");
    assert_eq!(cleaned(&out, limit + 1), out);
    if text.chars().all(|c| c.is_ascii_graphic()) && text.len() <= limit {
        assert_eq!(out, text);
    }
}

/// Samples.
pub mod samples {
    use vmscope::ui::theme::Theme;

    /// Every form of the grammar.
    pub fn keys() -> Vec<Vec<u8>> {
        [
            "2 j j space",
            "ctrl-p f1\tenter 'nt!N' \"it's\"",
            "wait:500ms wait:1.5s wait:hits>=3 wait:faults_pending<=0",
            "S ? : [ ] / - pgup pagedown shift-a alt-shift-f12 ctrl-alt-del",
            "hits == 3",
            "120x40",
            "3m",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    }

    /// A configuration, and the themes that are built in.
    pub fn config() -> Vec<Vec<u8>> {
        let mut samples = vec![b"theme = 'dark'\n[keys]\nquit = 'ctrl-q'\ndown = ['j', 'down']\n".to_vec()];
        samples.push(b"inherits = 'itself'\n[palette]\nx = '#123456'\n[styles]\n".to_vec());
        samples.push(
            b"inherits = 'dark'\n[palette]\nbackground = '#123456'\n[styles]\ntext = { fg = 'x', bg = 3 }\n".to_vec(),
        );
        samples
            .extend(Theme::names().filter_map(|name| Theme::builtin_text(name)).map(|text| text.as_bytes().to_vec()));
        samples
    }

    /// Names that would do something to a terminal.
    pub fn clean() -> Vec<Vec<u8>> {
        ["lsass.exe", "\x1b[31mred\x07", "a\u{202e}b\u{200b}c\u{9b}d", "日本語 e\u{301} 👩‍👩‍👧 \u{fe0f}"]
            .map(|text| [&[40, 0], text.as_bytes()].concat())
            .to_vec()
    }
}
