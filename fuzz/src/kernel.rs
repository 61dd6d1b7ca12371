//! What a kernel says of itself: symbol tables, type information, and the files of facts that stand in for them.

use vmscope::engine::{
    addr::Va,
    os::linux::{btf::Btf, check_profile, kallsyms as symbols},
    profile::Profile,
};

use crate::{is_printable, reader::Reader};

/// Symbol tables of any form: what is found must be printable, in order, and findable by name and by address.
pub fn kallsyms(data: &[u8]) {
    let mut reader = Reader(data);
    let (at, text) = (Va(reader.u64()), Va(reader.u64()));
    let memory = reader.0;
    let Some(table) = symbols::parse(memory, at, text) else { return };
    // Each name has at least a length of one byte.
    assert!(table.len() <= memory.len());
    let mut last = Va(0);
    for (name, va) in table.iter() {
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
        assert!(va >= last);
        last = va;
        assert!(table.nearest(va).is_some_and(|(_, distance)| distance == 0));
        assert!(table.lookup(name).is_some_and(|found| found <= va), "{name}");
    }
    assert!(table.complete("sys_", 10).len() <= 10);
}

/// Type information: every answer is about a type that exists, and the same one when asked again.
pub fn btf(data: &[u8]) {
    const QUESTIONS: &[(&str, &str)] = &[
        ("task_struct", "pid"),
        ("task_struct", "comm"),
        ("task_struct", "se.group_node"),
        ("task_struct", "se.group_node.next"),
        ("a", "a"),
        ("a", "a.a.a.a.a.a.a.a"),
        ("b", ""),
        ("", "a"),
    ];
    let Some(types) = Btf::parse(data) else { return };
    for &(structure, path) in QUESTIONS {
        let member = types.member(structure, path);
        assert_eq!(member, types.member(structure, path));
        if let Some(member) = member {
            assert!(types.size_of(structure).is_some());
            // An offset has at most 29 bits in each structure that a path goes through, 32 deep.
            assert!(member.offset < 1 << 40, "{member:?}");
        }
    }
}

/// Files of facts, for Windows and for Linux: refused in one line, or free of absurd offsets.
pub fn profile(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Profile::parse(&text) {
        Ok(profile) => {
            assert!(profile.image_size <= 1 << 32);
            for (name, distance) in profile.symbols() {
                assert!(distance <= 1 << 32);
                assert_eq!(profile.symbol(name).ok(), Some(distance));
            }
            let missing = profile.field("_EPROCESS", "NoSuchField").expect_err("no such field");
            assert!(missing.to_string().contains("_EPROCESS.NoSuchField"));
        }
        Err(error) => assert!(is_printable(&error.to_string()), "{error:?}"),
    }
    if let Err(error) = check_profile(&text) {
        assert!(is_printable(&error.to_string()), "{error:?}");
    }
}

/// Samples.
pub mod samples {
    use vmscope::engine::addr::Va;

    use crate::support::linux::{ALIGNMENTS, BtfWriter, FACTS, Form, aligned_tables};

    const TEXT: Va = Va(0xffff_ffff_9a00_0000);
    const AT: Va = Va(0xffff_ffff_9b00_0000);

    /// A small kernel's symbols in every form and alignment that kernels have had.
    pub fn kallsyms() -> Vec<Vec<u8>> {
        let names = |i: u64| if i == 3 { "_text".to_owned() } else { format!("sys_{i:x}") };
        let symbols: Vec<(String, Va)> = (0..1030).map(|i| (names(i), TEXT + (i.max(3) - 3) * 16)).collect();
        let sample = |form, alignment| {
            let tables = aligned_tables(&symbols, AT, form, alignment);
            [AT.0.to_le_bytes(), TEXT.0.to_le_bytes()].concat().into_iter().chain(tables).collect()
        };
        Form::ALL.into_iter().flat_map(|form| ALIGNMENTS.map(|alignment| sample(form, alignment))).collect()
    }

    /// Every kind of type, nested and in arrays.
    pub fn btf() -> Vec<Vec<u8>> {
        let mut whole = BtfWriter::default();
        for (name, members) in FACTS {
            whole.paths(name, members);
        }
        let mut small = BtfWriter::default();
        let int = small.int(4);
        let array = small.array(int, 16);
        let alias = small.alias("comm_t", array);
        let pointer = small.pointer(alias);
        let inner = small.structure("", 16, &[("a", alias, 0), ("b", pointer, 64)]);
        let bits = small.structure_with_bits("b", 4, &[("", inner, 0), ("x", int, 3 << 24 | 5)]);
        small.structure("a", 64, &[("", bits, 64), ("a", inner, 128)]);
        vec![whole.finish(), small.finish()]
    }

    /// A file for Windows and one for Linux.
    pub fn profile() -> Vec<Vec<u8>> {
        let windows = r#"{"source": "x", "build": 19041, "image_size": "0x1000", "types": {"_EPROCESS": {"size": 8,
            "fields": {"Peb": "0x550", "Token": 16}}}, "symbols": {"NtClose": "0x10", "x": 4294967296}}"#;
        let members = |(name, members): &(&str, &[(&str, u64)])| {
            let list: Vec<String> = members.iter().map(|(path, at)| format!("\"{path}\": \"{at:#x}\"")).collect();
            format!("\"{name}\": {{{}}}", list.join(", "))
        };
        let linux = format!("{{{}}}", FACTS.iter().map(members).collect::<Vec<_>>().join(",\n"));
        vec![windows.into(), linux.into()]
    }
}
