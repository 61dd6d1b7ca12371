//! Disassembly of guest bytes, with the kernel's symbols for addresses.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, Instruction, IntelFormatter, Register, SymbolResolver,
    SymbolResult,
};

use crate::engine::{addr::Va, snapshot::CodeLine, symbols::SymbolTable};
use std::sync::Arc;

/// The longest x86 instruction in bytes (Intel SDM volume 2A, section 2.3.11).
pub(super) const MAX_INSTRUCTION: u64 = 15;
/// How far behind a symbol an address is still named after it.
const SYMBOL_REACH: u64 = 0x10_0000;

struct Names(Arc<SymbolTable>);

impl SymbolResolver for Names {
    fn symbol(&mut self, code: &Instruction, _: u32, _: Option<u32>, address: u64, _: u32) -> Option<SymbolResult<'_>> {
        // A small number is a displacement or a constant. It is an address in a branch, behind the instruction pointer,
        // and in the per-CPU area, whose symbols count from 0.
        let is_address = code.flow_control() != FlowControl::Next
            || code.is_ip_rel_memory_operand()
            || code.segment_prefix() == Register::GS;
        if !is_address && address >> 63 == 0 {
            return None;
        }
        let name = self.0.describe(Va(address), 0)?;
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
        });
    }
    out
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
}
