//! Disassembly of guest bytes, with the kernel's symbols for addresses.

use iced_x86::{
    Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, OpKind, Register, SymbolResolver, SymbolResult,
};

use crate::engine::{addr::Va, snapshot::CodeLine, symbols::SymbolTable};
use std::sync::Arc;

/// The longest x86 instruction in bytes (Intel SDM volume 2A, section 2.3.11).
pub(super) const MAX_INSTRUCTION: u64 = 15;
/// How far behind a symbol an address is still named after it.
const SYMBOL_REACH: u64 = 0x10_0000;

struct Names(Arc<SymbolTable>);

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        code: &Instruction,
        _: u32,
        operand: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let kind = operand.map(|operand| code.op_kind(operand));
        let branch = matches!(kind, Some(OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64));
        let relative = kind == Some(OpKind::Memory) && code.is_ip_rel_memory_operand();
        let per_cpu = kind == Some(OpKind::Memory) && code.segment_prefix() == Register::GS;
        let is_kernel = address >> 63 == 1;
        // Any other small number is a displacement or a constant. In the per-CPU area symbols count from 0.
        if !(branch || relative || per_cpu || is_kernel) {
            return None;
        }
        // An offset is told only where the number is surely an address, and the symbols are the kernel's.
        let inside = if is_kernel { branch || relative } else { relative && per_cpu };
        let name = self.0.describe(Va(address), if inside { SYMBOL_REACH } else { 0 })?;
        Some(SymbolResult::with_string(address, name))
    }
}

/// Disassembles up to `lines` instructions of 64-bit code that starts at `va`. A byte that is no instruction is a line
/// of its own, "(bad)".
pub(super) fn disassemble(bytes: &[u8], va: Va, here: Va, lines: usize, symbols: &Arc<SymbolTable>) -> Vec<CodeLine> {
    let mut decoder = Decoder::with_ip(64, bytes, va.0, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::with_options(Some(Box::new(Names(Arc::clone(symbols)))), None);
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_space_after_operand_separator(true);
    options.set_rip_relative_addresses(false);
    options.set_branch_leading_zeros(false);
    options.set_show_branch_size(false);
    options.set_small_hex_numbers_in_decimal(true);
    let mut out = Vec::new();
    let mut instruction = Instruction::default();
    while out.len() < lines && decoder.can_decode() {
        let start = decoder.position();
        decoder.decode_out(&mut instruction);
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        let address = Va(instruction.ip());
        let raw = bytes.get(start..decoder.position()).unwrap_or_default();
        out.push(CodeLine {
            address,
            bytes: raw.iter().map(|byte| format!("{byte:02x}")).collect(),
            text,
            symbol: symbols.describe(address, SYMBOL_REACH).unwrap_or_default(),
            here: address == here,
            target: target(&instruction),
        });
    }
    out
}

/// The address that an instruction names by itself: where a direct branch goes, memory relative to the instruction
/// pointer, a fixed address.
fn target(instruction: &Instruction) -> Option<Va> {
    let is_branch = instruction.op_count() == 1
        && matches!(instruction.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    if is_branch {
        return Some(Va(instruction.near_branch_target()));
    }
    if instruction.is_ip_rel_memory_operand() {
        return Some(Va(instruction.ip_rel_memory_address()));
    }
    // Loads of a kernel address as a constant.
    let constant = (0..instruction.op_count()).find_map(|nth| match instruction.op_kind(nth) {
        OpKind::Immediate64 | OpKind::Immediate32to64 => Some(instruction.immediate(nth)),
        _ => None,
    });
    constant.filter(|value| value >> 47 == 0x1_ffff || *value >> 56 == 0xff).map(Va)
}

/// Up to `lines` instructions that lead up to `va` exactly: `bytes` are those before it. Decoding finds its way after a few
/// instructions wherever it starts; a symbol's start goes before a guess.
pub(super) fn lead_up(bytes: &[u8], va: Va, lines: usize, symbols: &Arc<SymbolTable>) -> Vec<CodeLine> {
    let length = bytes.len() as u64;
    let symbol = va.checked_sub(1).and_then(|before| symbols.nearest(before)).map(|(_, distance)| distance + 1);
    let symbol = symbol.filter(|&distance| distance <= length).map(|distance| length - distance);
    let starts = || symbol.into_iter().chain(0..length.min(4 * MAX_INSTRUCTION));
    // Whether the last instruction ends at the address, and how many bytes on the way are no instruction.
    let meets = |start: u64| {
        let rest = bytes.get(start as usize..).unwrap_or_default();
        let mut decoder = Decoder::with_ip(64, rest, 0, DecoderOptions::NONE);
        let (mut instruction, mut bad) = (Instruction::default(), 0);
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            bad += u32::from(instruction.is_invalid());
        }
        (!instruction.is_invalid()).then_some(bad)
    };
    let best = starts().find(|&start| meets(start) == Some(0));
    let Some(start) = best.or_else(|| starts().find(|&start| meets(start).is_some())) else { return Vec::new() };
    let rest = bytes.get(start as usize..).unwrap_or_default();
    let mut code = disassemble(rest, va - (length - start), va, rest.len(), symbols);
    let surplus = code.len().saturating_sub(lines);
    code.drain(..surplus);
    code
}

/// Where to start so that disassembly reaches `va` exactly: the nearest symbol at or before it, if that is close and
/// its instructions meet `va`; otherwise `va` itself.
pub(super) fn start_before(va: Va, symbols: &SymbolTable, read: impl Fn(Va, usize) -> Option<Vec<u8>>) -> Va {
    let Some((_, distance)) = symbols.nearest(va) else { return va };
    if distance == 0 || distance > 256 {
        return va;
    }
    let from = va - distance;
    let Some(bytes) = read(from, distance as usize + MAX_INSTRUCTION as usize) else { return va };
    let mut decoder = Decoder::with_ip(64, &bytes, from.0, DecoderOptions::NONE);
    let (mut starts, mut instruction) = (Vec::new(), Instruction::default());
    while decoder.can_decode() && decoder.ip() < va.0 {
        starts.push(decoder.ip());
        decoder.decode_out(&mut instruction);
    }
    if decoder.ip() != va.0 {
        return va;
    }
    // Six instructions of context are enough to recognise a place.
    starts.len().checked_sub(6).and_then(|at| starts.get(at)).map_or(from, |&ip| Va(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> Arc<SymbolTable> {
        Arc::new(SymbolTable::new([("start", Va(0x1000)), ("target", Va(0x2000))]))
    }

    #[test]
    fn names_branch_targets_and_marks_the_line() {
        // push rbp; mov rbp,rsp; call 0x2000; ret
        let bytes = [0x55, 0x48, 0x89, 0xe5, 0xe8, 0xf7, 0x0f, 0x00, 0x00, 0xc3];
        let lines = disassemble(&bytes, Va(0x1000), Va(0x1004), 10, &symbols());
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["push rbp", "mov rbp, rsp", "call target", "ret"]);
        assert!(lines.iter().all(|line| line.here == (line.address == Va(0x1004))));
        assert_eq!(lines.last().map(|line| line.symbol.as_str()), Some("start+0x9"));
    }

    #[test]
    fn numbers_are_not_named_unless_they_are_addresses() {
        let symbols = Arc::new(SymbolTable::new([("per_cpu", Va(0)), ("task", Va(0x10)), ("kernel", Va(!0xfff))]));
        // xor al,[rsi]; mov eax,0x10; mov rax,gs:[0x10]; mov rax,[0xfffffffffffff000]
        let bytes = [
            &[0x32, 0x06, 0xb8, 0x10, 0, 0, 0, 0x65, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0][..],
            &[0x48, 0x8b, 0x04, 0x25, 0x00, 0xf0, 0xff, 0xff],
        ]
        .concat();
        let lines = disassemble(&bytes, Va(0x1000), Va(0x1000), 4, &symbols);
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["xor al, [rsi]", "mov eax, 0x10", "mov rax, gs:[task]", "mov rax, [kernel]"]);
    }

    #[test]
    fn a_place_inside_a_function_is_named_with_its_offset() {
        let base = 0xffff_ffff_8000_0000;
        let symbols = [("per_cpu", Va(0)), ("begin", Va(base)), ("after", Va(base + 0x100))];
        let symbols = Arc::new(SymbolTable::new(symbols));
        let texts = |bytes: &[u8], at: u64| -> Vec<String> {
            disassemble(bytes, Va(at), Va(0), 9, &symbols).into_iter().map(|line| line.text).collect()
        };
        // jne +3; call +0xf9; mov rax,[rip+0x100]; mov rax,gs:[rip+0x7ffffff2]; jmp -0x19
        let code = [
            &[0x75, 0x03, 0xe8, 0xf9, 0, 0, 0, 0x48, 0x8b, 0x05, 0x00, 0x01, 0, 0][..],
            &[0x65, 0x48, 0x8b, 0x05, 0xf2, 0xff, 0xff, 0x7f, 0xeb, 0xe7],
        ]
        .concat();
        assert_eq!(
            texts(&code, base),
            [
                "jne begin+0x5",
                "call after",
                "mov rax, [after+0xe]",
                "mov rax, gs:[per_cpu+0x8]",
                "jmp 0xffffffff7fffffff"
            ]
        );
        // mov rax,0xffffffff80000010; mov rax,[0xffffffff80000010]; ret 0x10; call [rax+0x10]; mov rax,gs:[0x10]; all no
        // address of an instruction's own.
        let code = [
            &[0x48, 0xc7, 0xc0, 0x10, 0, 0, 0x80, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0x80, 0xc2, 0x10, 0][..],
            &[0xff, 0x50, 0x10, 0x65, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0],
        ]
        .concat();
        let plain = texts(&code, base);
        assert!(plain.iter().all(|text| !text.contains('+') || text.contains("rax+")), "{plain:?}");
        // Far behind the last symbol, and in a process, there is none to name.
        assert_eq!(texts(&[0xeb, 0x03], base + 0x100 + SYMBOL_REACH), ["jmp 0xffffffff80100105"]);
        assert_eq!(texts(&[0xeb, 0x03], 0x4000), ["jmp 0x4005"]);
    }

    #[test]
    fn any_bytes_give_lines() {
        for seed in 0..64u8 {
            let bytes: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(37).wrapping_add(seed)).collect();
            assert!(!disassemble(&bytes, Va(0xffff_ffff_ffff_fff0), Va(0), 100, &symbols()).is_empty());
        }
    }

    #[test]
    fn context_starts_where_instructions_meet_the_address() {
        let code = [0x55, 0x48, 0x89, 0xe5, 0xe8, 0xf7, 0x0f, 0x00, 0x00, 0xc3];
        let read = |va: Va, len: usize| {
            Some((0..len).map(|i| code.get((va.0 as usize - 0x1000) + i).copied().unwrap_or(0x90)).collect())
        };
        assert_eq!(start_before(Va(0x1004), &symbols(), read), Va(0x1000));
        assert_eq!(start_before(Va(0x1005), &symbols(), read), Va(0x1005), "not an instruction's start");
        assert_eq!(start_before(Va(0x1000), &symbols(), read), Va(0x1000));
    }

    #[test]
    fn an_instruction_names_where_it_goes() {
        // call 0x2000; mov rax, [rip+0x10]; jmp rax
        let bytes = [0xe8, 0xfb, 0x0f, 0x00, 0x00, 0x48, 0x8b, 0x05, 0x10, 0x00, 0x00, 0x00, 0xff, 0xe0];
        let targets: Vec<_> =
            disassemble(&bytes, Va(0x1000), Va(0), 9, &symbols()).iter().map(|line| line.target).collect();
        assert_eq!(targets, [Some(Va(0x2000)), Some(Va(0x101c)), None]);
    }

    #[test]
    fn instructions_before_an_address_lead_up_to_it() {
        let code = [0x55, 0x48, 0x89, 0xe5, 0xe8, 0xf7, 0x0f, 0x00, 0x00, 0xc3];
        let texts = |bytes: &[u8], va, lines| -> Vec<String> {
            lead_up(bytes, va, lines, &symbols()).into_iter().map(|line| line.text).collect()
        };
        assert_eq!(texts(&code, Va(0x100a), 9), ["push rbp", "mov rbp, rsp", "call target", "ret"]);
        assert_eq!(texts(&code, Va(0x100a), 2), ["call target", "ret"]);
        // The first byte belongs to an instruction that began earlier.
        assert_eq!(texts(&code[3..], Va(0x500a), 1), ["ret"]);
        assert!(texts(&[], Va(0x1000), 9).is_empty());
        for seed in 0..64u8 {
            let bytes: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(37).wrapping_add(seed)).collect();
            for line in lead_up(&bytes, Va(0x20), 100, &symbols()) {
                assert!(!line.text.is_empty());
            }
        }
    }
}
