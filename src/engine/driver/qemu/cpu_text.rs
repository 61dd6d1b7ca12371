//! Registers as QEMU's monitor prints them (`info registers`; QEMU: `target/i386/cpu-dump.c`).
//!
//! The one way to a running vCPU's registers that does not stop the guest. The instruction pointer of a vCPU that runs
//! translated code is that of its last exit from it; CR3 and the segments are exact.

use crate::engine::arch::amd64::{Amd64Registers, Segment};

/// A vCPU as the monitor prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuText {
    /// Its registers; those that are not printed (the kernel's GS base, LSTAR) are 0.
    pub registers: Amd64Registers,
    /// Whether it waits for an interrupt (HLT).
    pub halted: bool,
    /// The base of its task state segment, which holds the stacks of its interrupts.
    pub task_base: u64,
}

/// Reads the output; `None` when it has not the registers that everything else needs.
pub fn parse(text: &str) -> Option<CpuText> {
    let mut cpu = CpuText::default();
    let (mut has_rip, mut has_cr3) = (false, false);
    let registers = &mut cpu.registers;
    for line in text.lines() {
        // `R8 =…`, `CS =…`: some names are padded.
        let line = line.replace(" =", "=");
        let mut words = line.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let Some((name, value)) = word.split_once('=') else { continue };
            let number = u64::from_str_radix(value, 16).ok();
            let gp = &mut registers.gp;
            let place = match name {
                "RAX" | "EAX" => &mut gp.rax,
                "RBX" | "EBX" => &mut gp.rbx,
                "RCX" | "ECX" => &mut gp.rcx,
                "RDX" | "EDX" => &mut gp.rdx,
                "RSI" | "ESI" => &mut gp.rsi,
                "RDI" | "EDI" => &mut gp.rdi,
                "RBP" | "EBP" => &mut gp.rbp,
                "RSP" | "ESP" => &mut gp.rsp,
                "R8" => &mut gp.r8,
                "R9" => &mut gp.r9,
                "R10" => &mut gp.r10,
                "R11" => &mut gp.r11,
                "R12" => &mut gp.r12,
                "R13" => &mut gp.r13,
                "R14" => &mut gp.r14,
                "R15" => &mut gp.r15,
                "RIP" | "EIP" => {
                    has_rip = number.is_some();
                    &mut gp.rip
                }
                "RFL" | "EFL" => &mut gp.rflags,
                "CR0" => &mut registers.cr0,
                "CR2" => &mut registers.cr2,
                "CR3" => {
                    has_cr3 = number.is_some();
                    &mut registers.cr3
                }
                "CR4" => &mut registers.cr4,
                "EFER" => &mut registers.efer,
                "HLT" => {
                    cpu.halted = value == "1";
                    continue;
                }
                // `IDT=     BASE LIMIT`
                "IDT" => {
                    registers.idt_base = words.peek().and_then(|base| u64::from_str_radix(base, 16).ok()).unwrap_or(0);
                    break;
                }
                // `TR =SELECTOR BASE LIMIT FLAGS`
                "TR" => {
                    cpu.task_base = words.peek().and_then(|base| u64::from_str_radix(base, 16).ok()).unwrap_or(0);
                    break;
                }
                "CS" | "SS" | "FS" | "GS" => {
                    let base = words.peek().and_then(|base| u64::from_str_radix(base, 16).ok()).unwrap_or(0);
                    let segment =
                        Segment { selector: number.unwrap_or(0) as u16, base, long: words.any(|word| word == "CS64") };
                    match name {
                        "CS" => registers.cs = segment,
                        "SS" => registers.ss = segment,
                        "FS" => registers.fs = segment,
                        _ => registers.gs = segment,
                    }
                    break;
                }
                _ => continue,
            };
            *place = number.unwrap_or(0);
        }
    }
    (has_rip && has_cr3).then_some(cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "\r
CPU#1\r
RAX=000000000001ad40 RBX=0000000000000000 RCX=0000000000000001 RDX=4000000000000000\r
RSI=0000000000000083 RDI=000000000001ab4c RBP=ffff8eea81254800 RSP=ffffd1688009bed8\r
R8 =0000000000000017 R9 =00000000314e0508 R10=00000000fffffffb R11=0000000000000001\r
R12=0000000000000001 R13=0000000000000000 R14=0000000000000000 R15=00000000000000ff\r
RIP=ffffffffb3217a0b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r
ES =0000 0000000000000000 00000000 00000000\r
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r
DS =0000 0000000000000000 00000000 00000000\r
FS =0000 0000000000001234 00000000 00000000\r
GS =0000 ffff8eea9f300000 00000000 00000000\r
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT\r
TR =0040 fffffe000003e000 00004087 00008900 DPL=0 TSS64-avl\r
GDT=     fffffe000003c000 0000007f\r
IDT=     fffffe0000000000 00000fff\r
CR0=80050033 CR2=0000000011c7b730 CR3=0000000016e02000 CR4=000006a0\r
DR6=00000000ffff0ff0 DR7=0000000000000400\r
EFER=0000000000000d01\r
XMM00=ffffffff00000000 ffff000000000000 XMM01=0101010100000000 010100000000ff00\r
";

    #[test]
    fn reads_a_kernel_in_long_mode() {
        let cpu = parse(LONG).expect("registers");
        let registers = cpu.registers;
        assert!(cpu.halted);
        assert_eq!((registers.gp.rip, registers.gp.rsp), (0xffff_ffff_b321_7a0b, 0xffff_d168_8009_bed8));
        assert_eq!((registers.gp.r8, registers.gp.r15, registers.gp.rflags), (0x17, 0xff, 0x246));
        assert_eq!(registers.cs, Segment { selector: 0x10, base: 0, long: true });
        assert_eq!((registers.fs.base, registers.gs.base), (0x1234, 0xffff_8eea_9f30_0000));
        assert_eq!((registers.cr3, registers.cr4, registers.efer), (0x16e0_2000, 0x6a0, 0xd01));
        assert_eq!((registers.idt_base, cpu.task_base), (0xffff_fe00_0000_0000, 0xffff_fe00_0003_e000));
        assert!(registers.is_long_mode());
    }

    #[test]
    fn reads_a_boot_loader_in_real_mode() {
        let text = "EAX=00000007 EBX=0\nEIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\n\
                    CS =f000 ffff0000 0000ffff 00009b00\nIDT=     00000000 0000ffff\nCR0=60000010 CR2=0 CR3=0 CR4=0\n";
        let cpu = parse(text).expect("registers");
        assert_eq!((cpu.registers.gp.rax, cpu.registers.gp.rip), (7, 0xfff0));
        assert_eq!(cpu.registers.cs, Segment { selector: 0xf000, base: 0xffff_0000, long: false });
        assert!(!cpu.registers.is_long_mode());
    }

    #[test]
    fn something_else_is_nothing() {
        for text in ["", "unknown command: 'info registers'", "RIP=xyz CR3=0", "RIP=0", "=\n= =", "CS =\nIDT="] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
