//! Writes type information by hand.

/// Types and strings in the order in which they are added; types get the numbers 1, 2, …
#[derive(Default)]
pub struct BtfWriter {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

const INT: u32 = 1 << 24;
const POINTER: u32 = 2 << 24;
const ARRAY: u32 = 3 << 24;
const STRUCT: u32 = 4 << 24;
const ENUM: u32 = 6 << 24;
const TYPEDEF: u32 = 8 << 24;
/// The kind flag of a structure: the upper byte of a member's place is the width of a bit field.
const FLAG: u32 = 1 << 31;

impl BtfWriter {
    fn string(&mut self, text: &str) -> u32 {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(text.bytes());
        self.strings.push(0);
        at
    }

    fn add(&mut self, name: &str, info: u32, size_or_type: u32, rest: &[u32]) -> u32 {
        let name = self.string(name);
        for word in [name, info, size_or_type].iter().chain(rest) {
            self.types.extend(word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    pub fn int(&mut self, bytes: u32) -> u32 {
        self.add("int", INT, bytes, &[bytes * 8])
    }

    pub fn pointer(&mut self, to: u32) -> u32 {
        self.add("", POINTER, to, &[])
    }

    pub fn array(&mut self, of: u32, count: u32) -> u32 {
        self.add("", ARRAY, 0, &[of, of, count])
    }

    pub fn alias(&mut self, name: &str, of: u32) -> u32 {
        self.add(name, TYPEDEF, of, &[])
    }

    /// An enumeration whose values are 0, 1, …
    pub fn enumeration(&mut self, name: &str, values: &[&str]) -> u32 {
        let words: Vec<u32> = (0..).zip(values).flat_map(|(value, name)| [self.string(name), value]).collect();
        self.add(name, ENUM | values.len() as u32, 4, &words)
    }

    /// A structure of so many bytes. Members: name, type, place in bits.
    pub fn structure(&mut self, name: &str, bytes: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.members(name, bytes, 0, members)
    }

    /// The same with bit fields: the upper byte of a place is their width.
    pub fn structure_with_bits(&mut self, name: &str, bytes: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.members(name, bytes, FLAG, members)
    }

    fn members(&mut self, name: &str, bytes: u32, flag: u32, members: &[(&str, u32, u32)]) -> u32 {
        let words: Vec<u32> = members.iter().flat_map(|&(name, id, place)| [self.string(name), id, place]).collect();
        self.add(name, STRUCT | flag | members.len() as u32, bytes, &words)
    }

    /// A structure out of member paths and their offsets in bytes; what a path goes through becomes a structure, which
    /// begins where its own path says, else with the outer one.
    pub fn paths<'a>(&mut self, name: &str, members: &[(&'a str, u64)]) -> u32 {
        let int = self.int(8);
        let mut heads: Vec<&str> = members.iter().map(|(path, _)| path.split('.').next().unwrap_or(path)).collect();
        heads.dedup();
        let mut own = Vec::new();
        for head in heads {
            let start = members.iter().find(|(path, _)| *path == head).map_or(0, |(_, at)| *at);
            let inside = |&(path, at): &(&'a str, u64)| Some((path.strip_prefix(head)?.strip_prefix('.')?, at - start));
            let inner: Vec<(&str, u64)> = members.iter().filter_map(inside).collect();
            let kind = if inner.is_empty() { int } else { self.paths("", &inner) };
            own.push((head, kind, start as u32 * 8));
        }
        self.structure(name, 4096, &own)
    }

    /// The whole: header, types, strings.
    pub fn finish(mut self) -> Vec<u8> {
        self.string("");
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut out = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
        [0, types, types, strings].iter().for_each(|word| out.extend(word.to_le_bytes()));
        out.extend(self.types);
        out.extend(self.strings);
        out
    }
}
