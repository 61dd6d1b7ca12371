//! System calls by name, with their arguments.
//!
//! A system call's own function (`__x64_sys_openat`) is given the registers of user mode as they were saved on the way in
//! (`struct pt_regs`); the functions before it (`do_syscall_64`, `x64_sys_call`) the number as well. Kernels that trace
//! system calls know how many arguments each has, their names and types (`struct syscall_metadata`).

use super::kernel::Kernel;
use crate::engine::{
    addr::{Pa, Va},
    arch::amd64::{Amd64, Amd64Registers},
    driver::VmiRead,
    os::SystemCall,
    snapshot::clean,
};

/// Prefixes of functions that are given saved registers: those of 64-bit and of 32-bit calls.
const NATIVE: &str = "__x64_sys_";
const COMPATIBLE: [&str; 2] = ["__ia32_sys_", "__ia32_compat_sys_"];
/// Functions that are given saved registers and a number.
const DISPATCHERS: [&str; 2] = ["do_syscall_64", "x64_sys_call"];
/// Where `struct pt_regs` has di, si, dx, r10, r8, r9 (`arch/x86/include/asm/ptrace.h`).
const REGISTERS: [u64; 6] = [0x70, 0x68, 0x60, 0x38, 0x48, 0x40];
/// The same of a 32-bit call: bx, cx, dx, si, di, bp.
const REGISTERS_32: [u64; 6] = [0x28, 0x58, 0x60, 0x68, 0x70, 0x20];
/// Numbers of system calls end before this.
const MOST_CALLS: u64 = 0x1000;
/// Characters of a string argument, of a name, of a type.
const MOST_TEXT: usize = 80;
const MOST_NAME: usize = 32;

/// What the kernel knows of an argument.
struct Argument {
    name: String,
    kind: String,
}

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// The system call that the function at the instruction pointer is about to serve.
    pub(super) fn system_call(&self, registers: &Amd64Registers) -> Option<SystemCall> {
        let symbol = self.os.symbols.describe(Va(registers.gp.rip), 0)?;
        let gp = &registers.gp;
        if DISPATCHERS.contains(&symbol.as_str()) {
            // Before 5.13 the number came first.
            let (saved, number) = if gp.rdi < MOST_CALLS { (gp.rsi, gp.rdi) } else { (gp.rdi, gp.rsi & 0xffff_ffff) };
            let table = self.os.symbols.lookup("sys_call_table")?;
            if number >= MOST_CALLS {
                return None;
            }
            let function = self.os.symbols.describe(self.pointer(table + number * 8).ok()?, 0)?;
            let name = function.strip_prefix(NATIVE)?;
            return self.described(name, Va(saved), &REGISTERS, registers.root());
        }
        if let Some(name) = symbol.strip_prefix(NATIVE) {
            return self.described(name, Va(gp.rdi), &REGISTERS, registers.root());
        }
        let name = COMPATIBLE.iter().find_map(|prefix| symbol.strip_prefix(prefix))?;
        let mut call = self.described(name, Va(gp.rdi), &REGISTERS_32, registers.root())?;
        call.arguments.iter_mut().for_each(|value| *value &= 0xffff_ffff);
        Some(call)
    }

    fn described(&self, name: &str, saved: Va, places: &[u64; 6], root: Pa) -> Option<SystemCall> {
        let known = self.arguments_of(name);
        let count = known.as_ref().map_or(places.len(), Vec::len);
        let places = places.iter().take(count);
        let values: Vec<u64> = places.map_while(|at| self.pointer(saved + *at).ok().map(|value| value.0)).collect();
        let known = known.unwrap_or_default();
        let shown: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(index, &value)| match known.get(index) {
                Some(argument) => format!("{}={}", argument.name, self.value(&argument.kind, value, root)),
                None => format!("{value:#x}"),
            })
            .collect();
        let text = clean(&format!("{name}({})", shown.join(", ")), 512);
        Some(SystemCall { text, arguments: values })
    }

    /// What the kernel knows of a system call's arguments; `None` where it does not trace system calls.
    fn arguments_of(&self, name: &str) -> Option<Vec<Argument>> {
        let layout = self.os.layout.system_calls.as_ref()?;
        let facts = self.os.symbols.lookup(&format!("__syscall_meta__{name}"))?;
        self.existing(facts + layout.name)?;
        let (at, shift, mask) = layout.count;
        let count = u64::from(self.u32(facts + at).ok()? >> shift & mask).min(6);
        let text = |array: Va, index: u64| {
            let text = self.existing(array + index * 8)?;
            self.text(text, MOST_NAME).map(|text| clean(&text, MOST_NAME))
        };
        if count == 0 {
            return Some(Vec::new());
        }
        let (types, names) = (self.existing(facts + layout.types)?, self.existing(facts + layout.names)?);
        (0..count).map(|i| Some(Argument { name: text(names, i)?, kind: text(types, i)? })).collect()
    }

    /// A value as its type makes it readable; a string is read out of the process's own memory.
    fn value(&self, kind: &str, value: u64, root: Pa) -> String {
        match kind {
            "const char *" if value != 0 => match self.core.read_string_marked((Va(value), root), MOST_TEXT) {
                Ok(text) => format!("{:?}", clean(&text, MOST_TEXT)),
                // The call itself will bring the page in.
                Err(_) => format!("{value:#x}"),
            },
            "int" | "pid_t" | "clockid_t" => (value as i32).to_string(),
            "unsigned int" | "size_t" | "uid_t" | "gid_t" if value < 0x1_0000 => value.to_string(),
            _ => format!("{value:#x}"),
        }
    }
}
