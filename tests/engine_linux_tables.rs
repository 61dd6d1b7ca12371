//! A kernel's symbol tables and type information, out of bytes that may be anything.

mod support;

use proptest::prelude::*;
use vmscope::engine::{
    addr::Va,
    os::linux::{
        btf::{BitField, Btf},
        kallsyms,
    },
};

use crate::support::linux::{ALIGNMENTS, BtfWriter, Form, aligned_tables, symbols, tables};

const TEXT: Va = Va(0xffff_ffff_9a00_0000);
const AT: Va = Va(0xffff_ffff_9b00_0000);

#[test]
fn symbols_of_every_form_and_alignment_are_read_back() {
    for (form, alignment) in Form::ALL.into_iter().flat_map(|form| ALIGNMENTS.map(|alignment| (form, alignment))) {
        let wanted = symbols(TEXT, form);
        let table = kallsyms::parse(&aligned_tables(&wanted, AT, form, alignment), AT, TEXT).unwrap_or_default();
        assert_eq!(table.len(), wanted.len(), "{form:?}, {alignment} bytes");
        for (name, va) in &wanted {
            assert_eq!(table.lookup(name), Some(*va), "{form:?}, {alignment} bytes, {name}");
        }
    }
}

/// One thing wrong with each, all the rest as it should be.
#[test]
fn tables_that_nearly_fit_are_refused() {
    for (form, alignment) in Form::ALL.into_iter().flat_map(|form| ALIGNMENTS.map(|alignment| (form, alignment))) {
        let wanted = symbols(TEXT, form);
        let whole = aligned_tables(&wanted, AT, form, alignment);
        let refused = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
            let mut memory = whole.clone();
            change(&mut memory);
            assert_ne!(memory, whole, "{what} changes something");
            assert!(kallsyms::parse(&memory, AT, TEXT).is_none(), "{what}: {form:?}, {alignment} bytes");
        };
        let position =
            |bytes: &[u8]| whole.windows(bytes.len()).position(|window| window == bytes).expect("it is there");
        let number = position(&(wanted.len() as u32).to_le_bytes());
        let names = number + alignment.max(4);
        let digits = position(b"0\x001\x002\0");
        refused("one name more than there are", &|memory| memory[number] += 1);
        refused("one name less than there are", &|memory| memory[number] -= 1);
        refused("a first name without a type", &|memory| memory[names] = 0);
        refused("a first name that is longer than it is", &|memory| memory[names] += 1);
        refused("the number of names a word too early", &|memory| {
            memory.copy_within(number..number + 4, number - 4);
            memory[number..number + 4].fill(0);
        });
        refused("two tokens that became one", &|memory| memory[digits + 21] = b'x');
        refused("no end", &|memory| memory.truncate(memory.len() - 16 - if form.is_before() { 1 } else { 8 * 1024 }));
    }
}

#[test]
fn the_symbols_of_another_kernel_are_not_taken() {
    let memory = tables(&symbols(TEXT, Form::Behind), AT, Form::Behind);
    assert!(kallsyms::parse(&memory, AT, TEXT + 0x4000_0000).is_none());
}

/// Every place could be the start of these names, and every one leads far: the search has to give up.
#[test]
fn names_that_fit_everywhere_cost_no_more_than_a_bound() {
    let count = 0x0101_0101usize;
    let mut memory = vec![1; count * 2 + 4096];
    memory.resize(memory.len().next_multiple_of(8), 1);
    (0..count.div_ceil(256) as u32).for_each(|marker| memory.extend((marker * 512).to_le_bytes()));
    let honest = tables(&symbols(TEXT, Form::Before(0)), AT, Form::Before(0));
    // In front of the digits there are 48 strings: "sys_", 15 of one character, the others empty.
    let tokens = honest.windows(4).position(|bytes| bytes == b"0\x001\0").expect("digits") - (48 + 4 + 15);
    memory.resize(memory.len().next_multiple_of(8), 0);
    memory.extend(&honest[tokens..]);
    assert!(kallsyms::parse(&memory, AT, TEXT).is_none());
}

#[test]
fn unprintable_names_come_out_harmless() {
    let mut memory = tables(&symbols(TEXT, Form::Behind), AT, Form::Behind);
    let token = memory.windows(6).position(|bytes| bytes == b"\0sys_\0").expect("a token") + 1;
    memory[token..token + 4].copy_from_slice(b"\x1b[2J");
    let table = kallsyms::parse(&memory, AT, TEXT).expect("still a table");
    assert!(table.iter().all(|(name, _)| name.bytes().all(|byte| byte.is_ascii_graphic())));
    assert!(table.lookup("?[2Jread_3").is_some());
}

/// A task with a member in every kind of place.
fn types() -> Vec<u8> {
    let mut w = BtfWriter::default();
    let (long, byte) = (w.int(8), w.int(1));
    let entity = w.structure("sched_entity", 24, &[("load", long, 0), ("cfs_rq", long, 128)]);
    let alias = w.alias("sched_entity_t", entity);
    let inner = w.structure("", 16, &[("pid", long, 0), ("tgid", long, 64)]);
    let outer = w.structure("", 16, &[("", inner, 0)]);
    let comm = w.array(byte, 16);
    let several = w.array(alias, 3);
    let pointer = w.pointer(entity);
    let members = [
        ("flag", long, 1 << 24 | 3),
        ("se", alias, 8 * 8),
        ("", outer, 64 * 8),
        ("comm", comm, 100 * 8),
        ("many", several, 120 * 8),
        ("parent", pointer, 200 * 8),
    ];
    w.structure_with_bits("task_struct", 256, &members);
    w.finish()
}

#[test]
fn members_are_found_where_they_hide() {
    let bytes = types();
    let btf = Btf::parse(&bytes).expect("type information");
    let member = |path| btf.member("task_struct", path).map(|member| (member.offset, member.size));
    assert_eq!(member("se.cfs_rq"), Some((8 + 16, 8)));
    assert_eq!(member("tgid"), Some((64 + 8, 8)));
    assert_eq!(member("comm"), Some((100, 16)));
    assert_eq!(member("many"), Some((120, 72)));
    assert_eq!(member("many.cfs_rq"), Some((136, 8)));
    assert_eq!(member("parent"), Some((200, 8)));
    assert_eq!(btf.size_of("task_struct"), Some(256));
    assert_eq!(btf.bit_field("task_struct", "flag"), Some(BitField { offset: 0, shift: 3, width: 1 }));
    assert_eq!(btf.bit_field("task_struct", "tgid"), None);
}

#[test]
fn members_that_are_not_there_are_none() {
    let bytes = types();
    let btf = Btf::parse(&bytes).expect("type information");
    for path in ["flag", "nothing", "parent.load", "comm.x", "", "se."] {
        assert_eq!(btf.member("task_struct", path), None, "{path}");
    }
    assert_eq!(btf.member("mm_struct", "pgd"), None);
    assert!(Btf::parse(b"no type information here").is_none());
}

#[test]
fn a_structure_that_contains_itself_ends() {
    let mut w = BtfWriter::default();
    w.structure("loop", 8, &[("", 1, 0), ("", 1, 0), ("", 1, 0)]);
    let bytes = w.finish();
    assert_eq!(Btf::parse(&bytes).and_then(|btf| btf.member("loop", "x")), None);
}

fn spoil(bytes: &mut Vec<u8>, damage: &[(prop::sample::Index, u8)], cut: prop::sample::Index) {
    for (at, byte) in damage {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    bytes.truncate(cut.index(bytes.len()) + 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(512) / 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_symbols_never_panic(
        form in prop::sample::select(Form::ALL.to_vec()),
        alignment in prop::sample::select(ALIGNMENTS.to_vec()),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut memory = aligned_tables(&symbols(TEXT, form), AT, form, alignment);
        spoil(&mut memory, &damage, damage[0].0);
        let _ = kallsyms::parse(&memory, AT, TEXT);
        let mut memory = aligned_tables(&symbols(TEXT, form), AT, form, alignment);
        spoil(&mut memory, &damage, cut);
        let _ = kallsyms::parse(&memory, AT, TEXT);
    }

    #[test]
    fn digits_in_noise_are_no_symbols(noise in prop::collection::vec(any::<u8>(), 0..4096), at in 0usize..4096) {
        let mut memory = noise;
        let at = at.min(memory.len());
        memory.splice(at..at, *b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00");
        prop_assert!(kallsyms::parse(&memory, AT, TEXT).is_none());
    }

    #[test]
    fn damaged_types_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = types();
        spoil(&mut bytes, &damage, cut);
        if let Some(btf) = Btf::parse(&bytes) {
            for path in ["se.cfs_rq", "tgid", "many.cfs_rq", "comm"] {
                let _ = btf.member("task_struct", path);
            }
        }
    }
}
