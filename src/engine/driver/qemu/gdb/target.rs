//! Which registers a stub has: its target description (GDB manual, appendix G "Target Descriptions").
//!
//! A description is XML that may include others. QEMU's have registers that are commented out, so comments must go
//! first; nothing else of XML is needed than tags and their attributes.

use crate::engine::error::VmiError;

/// A register as described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// Its name.
    pub name: String,
    /// The number that packets `p` and `P` know it by; `g` has them in this order.
    pub number: u32,
    /// Its size in bytes.
    pub bytes: usize,
}

/// Includes within includes.
const DEEPEST: usize = 4;
/// Files of one description, and registers: more than any processor has.
const MOST_FILES: usize = 32;
const MOST_REGISTERS: usize = 4096;
const WIDEST_REGISTER: u64 = 1 << 16;

/// All registers of a description in the order of their numbers. `fetch` gets a file of it by its name.
///
/// # Errors
/// What `fetch` says, or that the description is not one.
pub fn registers(fetch: &mut dyn FnMut(&str) -> Result<String, VmiError>) -> Result<Vec<Register>, VmiError> {
    let mut found = Vec::new();
    let mut files = MOST_FILES;
    read("target.xml", fetch, DEEPEST, &mut files, &mut found)?;
    found.sort_by_key(|register: &Register| register.number);
    Ok(found)
}

fn read(
    file: &str,
    fetch: &mut dyn FnMut(&str) -> Result<String, VmiError>,
    depth: usize,
    files: &mut usize,
    found: &mut Vec<Register>,
) -> Result<(), VmiError> {
    if depth == 0 || *files == 0 {
        return Err(VmiError::driver("reading the gdb stub's register description", "its files include each other"));
    }
    *files -= 1;
    let text = without_comments(&fetch(file)?);
    for tag in tags(&text) {
        let mut words = tag.splitn(2, char::is_whitespace);
        match (words.next().unwrap_or_default(), words.next()) {
            ("xi:include", Some(rest)) => {
                if let Some(href) = attribute(rest, "href") {
                    read(href, fetch, depth - 1, files, found)?;
                }
            }
            ("reg", Some(rest)) => {
                let next = found.last().map_or(0, |last| last.number.wrapping_add(1));
                let number = attribute(rest, "regnum").and_then(|number| number.parse().ok()).unwrap_or(next);
                let bits: Option<u64> = attribute(rest, "bitsize").and_then(|bits| bits.parse().ok());
                let bits = bits.filter(|&bits| bits != 0 && bits.is_multiple_of(8) && bits <= WIDEST_REGISTER);
                let (Some(name), Some(bits)) = (attribute(rest, "name"), bits) else {
                    return Err(VmiError::driver(
                        "reading the gdb stub's register description",
                        "a register has no name or an odd size",
                    ));
                };
                if found.len() < MOST_REGISTERS {
                    found.push(Register { name: name.to_owned(), number, bytes: bits as usize / 8 });
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, comment)) = rest.split_once("<!--") {
        out.push_str(before);
        rest = comment.split_once("-->").map_or("", |(_, after)| after);
    }
    out + rest
}

/// The insides of all tags: `<reg name="a"/>` gives `reg name="a"`.
fn tags(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, inside) = rest.split_once('<')?;
        let mut quote = None;
        let end = inside.find(|c| match quote {
            Some(open) => {
                if c == open {
                    quote = None;
                }
                false
            }
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                false
            }
            None => c == '>',
        })?;
        let (tag, after) = inside.split_at(end);
        rest = after;
        Some(tag.trim_end_matches('/').trim())
    })
}

/// The value of an attribute: `name="value"`, in either kind of quotes.
fn attribute<'a>(mut text: &'a str, wanted: &str) -> Option<&'a str> {
    loop {
        let (name, rest) = text.split_once('=')?;
        let rest = rest.trim_start();
        let quote = rest.chars().next().filter(|&c| c == '"' || c == '\'')?;
        let (value, after) = rest.get(1..)?.split_once(quote)?;
        if name.trim() == wanted {
            return Some(value);
        }
        text = after;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(files: &[(&str, &str)]) -> Result<Vec<Register>, VmiError> {
        registers(&mut |name| {
            let file = files.iter().find(|(file, _)| *file == name);
            file.map(|(_, text)| (*text).to_owned()).ok_or_else(|| VmiError::Invalid(name.to_owned()))
        })
    }

    #[test]
    fn includes_comments_and_numbers() {
        let registers = parse(&[
            (
                "target.xml",
                "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>\
                 <architecture>i386:x86-64</architecture><xi:include href=\"core.xml\"/></target>",
            ),
            (
                "core.xml",
                "<feature name='org.gnu.gdb.i386.core'><!-- <reg name=\"ghost\" bitsize=\"64\"/> -->\n\
                 <reg name=\"rax\" bitsize=\"64\" type=\"int64\"/><reg bitsize='32' name='eflags' type=\"a>b\"/>\
                 <reg name=\"cr0\" bitsize=\"64\" regnum=\"10\"/><reg name=\"cr2\" bitsize=\"64\"/>\
                 <reg name=\"early\" bitsize=\"8\" regnum=\"5\"/></feature>",
            ),
        ]);
        let names = registers.map(|all| {
            all.iter().map(|r| format!("{}:{}:{}", r.name, r.number, r.bytes)).collect::<Vec<_>>().join(" ")
        });
        assert_eq!(names.ok().as_deref(), Some("rax:0:8 eflags:1:4 early:5:1 cr0:10:8 cr2:11:8"));
    }

    #[test]
    fn files_that_include_each_other_end() {
        assert!(parse(&[("target.xml", "<xi:include href=\"target.xml\"/>")]).is_err());
        let wide = "<xi:include href=\"b\"/>".repeat(100);
        assert!(parse(&[("target.xml", &wide), ("b", "")]).is_err());
        assert!(parse(&[("target.xml", "<reg name=\"a\" bitsize=\"7\"/>")]).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(<|>|reg |name|=|\"|'|bitsize|8|!--|-->|/| |é){0,60}") {
            let _ = registers(&mut |_| Ok(text.clone()));
        }
    }
}
