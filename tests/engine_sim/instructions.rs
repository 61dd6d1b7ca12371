//! Instructions of the built-in guest, one small program at a time, on a vCPU of the paused machine.

use iced_x86::{IcedError, code_asm::*};
use vmscope::engine::{
    addr::{Va, VcpuId},
    arch::amd64::Amd64GpRegisters,
    driver::{VmiQueryRegisters, VmiSetRegisters, VmiStep, sim::SimOptions},
};

use crate::Guest;

const CARRY: u64 = 1;
const ZERO: u64 = 1 << 6;
const SIGN: u64 = 1 << 7;
const OVERFLOW: u64 = 1 << 11;
const FLAGS: u64 = CARRY | ZERO | SIGN | OVERFLOW;

/// A paused guest with room for a program that lies across a page boundary, and for its data.
struct Bench {
    guest: Guest,
    code: Va,
    data: Va,
}

impl Bench {
    fn new() -> Self {
        let guest = Guest::new(SimOptions { vcpus: 1, ..SimOptions::default() });
        guest.core.pause().expect("runs");
        // Parts of the image that nothing uses: code, then data across a page boundary.
        let base = Va(guest.symbol("nt!NtVdmControl").0 & !0xfff);
        let code = base + 0x3ffd;
        let data = Va(guest.symbol("nt!PspCidTable").0 & !0xfff) + 0x3ffc;
        Self { guest, code, data }
    }

    /// Runs a program from its first byte to behind its last one.
    fn run(&self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Amd64GpRegisters {
        let mut a = CodeAssembler::new(64).expect("64 bits");
        write(&mut a).expect("encodable");
        let bytes = a.assemble(self.code.0).expect("in reach");
        self.guest.core.write((self.code, self.guest.kernel_root()), &bytes).expect("mapped");
        let end = self.code + bytes.len() as u64;
        let driver = self.guest.driver();
        let mut registers = driver.registers(VcpuId(0)).expect("a vCPU");
        registers.gp.rip = self.code.0;
        registers.gp.rbp = self.data.0;
        registers.gp.rflags = 2;
        driver.set_registers(VcpuId(0), registers).expect("paused");
        for _ in 0..10_000 {
            driver.step(VcpuId(0)).expect("paused");
            let gp = driver.registers(VcpuId(0)).expect("a vCPU").gp;
            if gp.rip == end.0 {
                return gp;
            }
        }
        panic!("the program does not end");
    }
}

#[test]
fn narrow_registers_keep_or_clear_the_rest() {
    let bench = Bench::new();
    let gp = bench.run(|a| {
        a.mov(rax, -1i64)?;
        a.mov(rbx, -1i64)?;
        a.mov(rcx, -1i64)?;
        a.mov(rdx, -1i64)?;
        a.mov(eax, 5)?;
        a.mov(bx, 5)?;
        a.mov(cl, 5)?;
        a.mov(dh, 5)
    });
    assert_eq!((gp.rax, gp.rbx), (5, 0xffff_ffff_ffff_0005));
    assert_eq!((gp.rcx, gp.rdx), (0xffff_ffff_ffff_ff05, 0xffff_ffff_ffff_05ff));
}

#[test]
fn arithmetic_sets_the_flags() {
    let bench = Bench::new();
    let flags = |left: u64, right: u64, operation: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let gp = bench.run(|a| {
            a.mov(rax, left)?;
            a.mov(rbx, right)?;
            operation(a)
        });
        (gp.rax, gp.rflags & FLAGS)
    };
    let add: fn(&mut CodeAssembler) -> _ = |a| a.add(rax, rbx);
    assert_eq!(flags(i64::MAX as u64, 1, add), (1 << 63, SIGN | OVERFLOW));
    assert_eq!(flags(u64::MAX, 1, add), (0, ZERO | CARRY));
    let sub: fn(&mut CodeAssembler) -> _ = |a| a.sub(rax, rbx);
    assert_eq!(flags(1, 2, sub), (u64::MAX, SIGN | CARRY));
    let compare: fn(&mut CodeAssembler) -> _ = |a| a.cmp(eax, ebx);
    assert_eq!(flags(0x1_0000_0007, 7, compare), (0x1_0000_0007, ZERO));
    let and: fn(&mut CodeAssembler) -> _ = |a| a.and(rax, rbx);
    assert_eq!(flags(0xf0, 0x0f, and), (0, ZERO));
    let negate: fn(&mut CodeAssembler) -> _ = |a| a.neg(rax);
    assert_eq!(flags(5, 0, negate), (5u64.wrapping_neg(), SIGN | CARRY));
    let multiply: fn(&mut CodeAssembler) -> _ = |a| a.imul_2(rax, rbx);
    assert_eq!(flags(3, 5u64.wrapping_neg(), multiply).0, 15u64.wrapping_neg());
    assert_eq!(flags(1 << 62, 4, multiply).1 & (CARRY | OVERFLOW), CARRY | OVERFLOW);
    let increment: fn(&mut CodeAssembler) -> _ = |a| {
        a.stc_like()?;
        a.inc(rax)
    };
    assert_eq!(flags(u64::MAX, 0, increment), (0, ZERO | CARRY), "INC leaves the carry alone");
}

/// Sets the carry by an addition, since the machine has no STC.
trait SetCarry {
    fn stc_like(&mut self) -> Result<(), IcedError>;
}

impl SetCarry for CodeAssembler {
    fn stc_like(&mut self) -> Result<(), IcedError> {
        self.mov(rcx, -1i64)?;
        self.add(rcx, 1)
    }
}

#[test]
fn shifts_and_rotations() {
    let bench = Bench::new();
    let gp = bench.run(|a| {
        a.mov(rax, 0x8000_0000_0000_0001u64)?;
        a.rol(rax, 4)?;
        a.mov(rbx, -64i64)?;
        a.sar(rbx, 3)?;
        a.mov(ecx, 0xf0)?;
        a.shr(ecx, 4)?;
        a.mov(edx, 1)?;
        a.shl(edx, 31)?;
        a.mov(esi, 0x11)?;
        a.ror(si, 4)
    });
    assert_eq!((gp.rax, gp.rbx as i64), (0x18, -8));
    assert_eq!((gp.rcx, gp.rdx, gp.rsi), (0xf, 0x8000_0000, 0x1001));
}

#[test]
fn memory_across_a_page_boundary() {
    let bench = Bench::new();
    let gp = bench.run(|a| {
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.mov(qword_ptr(rbp), rax)?;
        a.add(dword_ptr(rbp + 2), 1)?;
        a.mov(rbx, qword_ptr(rbp))?;
        a.movzx(ecx, word_ptr(rbp + 3))?;
        a.movsx(rdx, byte_ptr(rbp))?;
        a.mov(esi, 7)?;
        a.xchg(byte_ptr(rbp), sil)?;
        a.mov(rdi, qword_ptr(rbp))
    });
    assert_eq!(gp.rbx, 0x1122_3344_5567_7788);
    assert_eq!((gp.rcx, gp.rdx), (0x4455, 0xffff_ffff_ffff_ff88));
    assert_eq!((gp.rsi, gp.rdi), (0x88, 0x1122_3344_5567_7707));
}

#[test]
fn strings_repeat() {
    let bench = Bench::new();
    let gp = bench.run(|a| {
        a.mov(rdi, rbp)?;
        a.mov(eax, 0x5a)?;
        a.mov(ecx, 16)?;
        a.rep().stosb()?;
        a.mov(rsi, rbp)?;
        a.lea(rdi, qword_ptr(rbp + 0x40))?;
        a.mov(ecx, 2)?;
        a.rep().movsq()?;
        a.mov(rax, qword_ptr(rbp + 0x48))?;
        a.lodsb()?;
        a.xor(ecx, ecx)?;
        a.rep().stosb()
    });
    assert_eq!(gp.rax, 0x5a5a_5a5a_5a5a_5a00);
    assert_eq!((gp.rdi, gp.rsi), (bench.data.0 + 0x50, bench.data.0 + 0x11));
}

#[test]
fn calls_conditions_and_the_stack() {
    let bench = Bench::new();
    let before = bench.guest.driver().registers(VcpuId(0)).expect("a vCPU").gp.rsp;
    let gp = bench.run(|a| {
        let mut function = a.create_label();
        let mut main = a.create_label();
        let mut again = a.create_label();
        a.jmp(main)?;
        a.set_label(&mut function)?;
        a.push(rbx)?;
        a.add(rax, 3)?;
        a.pop(rdx)?;
        a.ret()?;
        a.set_label(&mut main)?;
        a.xor(eax, eax)?;
        a.mov(ebx, 5)?;
        a.set_label(&mut again)?;
        a.call(function)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.cmp(eax, 15)?;
        a.sete(cl)?;
        a.mov(esi, 1)?;
        a.mov(edi, 2)?;
        a.cmovl(esi, edi)?;
        a.cmovge(edi, eax)
    });
    assert_eq!((gp.rax, gp.rdx, gp.rcx & 0xff), (15, 1, 1));
    assert_eq!((gp.rsi, gp.rdi, gp.rsp), (1, 15, before));
}

#[test]
fn locked_exchanges_and_bits() {
    let bench = Bench::new();
    let gp = bench.run(|a| {
        a.mov(qword_ptr(rbp), 10)?;
        a.mov(eax, 10)?;
        a.mov(ecx, 11)?;
        a.lock().cmpxchg(qword_ptr(rbp), rcx)?;
        a.sete(dl)?;
        a.lock().cmpxchg(qword_ptr(rbp), rdx)?;
        a.setne(dh)?;
        a.mov(ebx, 4)?;
        a.lock().xadd(qword_ptr(rbp), rbx)?;
        a.lock().bts(dword_ptr(rbp), 8)?;
        a.mov(rsi, qword_ptr(rbp))
    });
    assert_eq!(gp.rdx & 0xffff, 0x0101, "the first exchange succeeds, the second does not");
    assert_eq!((gp.rax, gp.rbx, gp.rsi), (11, 11, 0x10f));
}

#[test]
fn the_instruction_after_sti_is_not_interrupted() {
    let bench = Bench::new();
    let driver = bench.guest.driver();
    // CLI, STI, the instruction after it, and a jump to the beginning.
    let leaves = |after_sti: u8| {
        let program = [0xfa, 0xfb, after_sti, 0xeb, 0xfb];
        bench.guest.core.write((bench.code, bench.guest.kernel_root()), &program).expect("mapped");
        let mut registers = driver.registers(VcpuId(0)).expect("a vCPU");
        (registers.gp.rip, registers.gp.rflags) = (bench.code.0, 2);
        driver.set_registers(VcpuId(0), registers).expect("paused");
        (0..200_000).any(|_| {
            driver.step(VcpuId(0)).expect("paused");
            let rip = driver.registers(VcpuId(0)).expect("a vCPU").gp.rip;
            !(bench.code.0..bench.code.0 + 5).contains(&rip)
        })
    };
    assert!(!leaves(0xfa), "CLI right behind STI leaves no room for an interrupt");
    assert!(leaves(0x90), "NOP does: the clock interrupts the jump");
}
