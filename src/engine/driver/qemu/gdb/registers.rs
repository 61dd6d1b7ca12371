//! A stub's register file and the engine's (QEMU: `gdb-xml/i386-64bit.xml`, `target/i386/gdbstub.c`).

use super::target::Register;
use crate::engine::arch::amd64::Amd64Registers;

/// Where the stub has the registers that the engine knows.
#[derive(Clone, Debug)]
pub struct RegisterFile {
    places: Vec<Place>,
}

#[derive(Clone, Debug)]
struct Place {
    field: &'static Field,
    number: u32,
    offset: usize,
    bytes: usize,
}

/// A register by the name that a target description gives it.
#[derive(Debug)]
struct Field {
    name: &'static str,
    get: fn(&Amd64Registers) -> u64,
    set: fn(&mut Amd64Registers, u64),
}

macro_rules! fields {
    ($($name:literal $($path:ident).+,)*) => {
        &[$(Field { name: $name, get: |r| r.$($path).+.into(), set: |r, value| r.$($path).+ = value as _ },)*]
    };
}

static FIELDS: &[Field] = fields![
    "rax" gp.rax, "rbx" gp.rbx, "rcx" gp.rcx, "rdx" gp.rdx, "rsi" gp.rsi, "rdi" gp.rdi, "rbp" gp.rbp, "rsp" gp.rsp,
    "r8" gp.r8, "r9" gp.r9, "r10" gp.r10, "r11" gp.r11, "r12" gp.r12, "r13" gp.r13, "r14" gp.r14, "r15" gp.r15,
    "rip" gp.rip, "eflags" gp.rflags, "cs" cs.selector, "ss" ss.selector, "fs" fs.selector, "gs" gs.selector,
    "fs_base" fs.base, "gs_base" gs.base, "k_gs_base" kernel_gs_base,
    "cr0" cr0, "cr2" cr2, "cr3" cr3, "cr4" cr4, "efer" efer,
];

/// The selector of 32-bit user code in Linux and in Windows: the one case in which a 64-bit kernel's code segment is not
/// 64-bit. The stub does not tell the segment's L bit.
const USER32: u16 = 0x23;

impl RegisterFile {
    /// Finds the engine's registers among the stub's; `None` if it lacks those that everything needs.
    pub fn new(registers: &[Register]) -> Option<Self> {
        let mut places = Vec::new();
        let mut offset = 0usize;
        for register in registers {
            if let Some(field) = FIELDS.iter().find(|field| field.name == register.name) {
                places.push(Place { field, number: register.number, offset, bytes: register.bytes.min(8) });
            }
            offset = offset.checked_add(register.bytes)?;
        }
        let has = |name| places.iter().any(|place: &Place| place.field.name == name);
        ["rax", "rip", "rsp", "cs", "cr3"].into_iter().all(has).then_some(Self { places })
    }

    /// Reads the contents of a `g` packet; `None` when it is too short for them.
    pub fn decode(&self, bytes: &[u8]) -> Option<Amd64Registers> {
        let mut registers = Amd64Registers::default();
        for place in &self.places {
            let mut value = [0; 8];
            let from = bytes.get(place.offset..place.offset.checked_add(place.bytes)?)?;
            value.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
            (place.field.set)(&mut registers, u64::from_le_bytes(value));
        }
        let in_long_mode = registers.efer & Amd64Registers::EFER_LMA != 0;
        registers.cs.long = in_long_mode && registers.cs.selector != USER32;
        Some(registers)
    }

    /// What `P` packets have to say to turn one state into another: number and bytes of each register that differs.
    pub fn changes(&self, old: &Amd64Registers, new: &Amd64Registers) -> Vec<(u32, Vec<u8>)> {
        let changed = |place: &&Place| (place.field.get)(old) != (place.field.get)(new);
        let bytes = |place: &Place| {
            let mut bytes = (place.field.get)(new).to_le_bytes().to_vec();
            bytes.truncate(place.bytes);
            (place.number, bytes)
        };
        self.places.iter().filter(changed).map(bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> RegisterFile {
        let sizes = ["rax:8", "rsp:8", "filler:10", "rip:8", "eflags:4", "cs:4", "cr3:8", "efer:8"];
        let registers: Vec<Register> = sizes
            .iter()
            .zip(0..)
            .filter_map(|(text, number)| {
                let (name, bytes) = text.split_once(':')?;
                Some(Register { name: name.to_owned(), number, bytes: bytes.parse().ok()? })
            })
            .collect();
        RegisterFile::new(&registers).expect("all that is needed")
    }

    #[test]
    fn places_follow_sizes() {
        let mut bytes = Vec::new();
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend([0xff; 10]);
        bytes.extend(3u64.to_le_bytes());
        bytes.extend(0x246u32.to_le_bytes());
        bytes.extend(0x10u32.to_le_bytes());
        bytes.extend(0x5000u64.to_le_bytes());
        bytes.extend(0xd01u64.to_le_bytes());
        let registers = file().decode(&bytes).expect("long enough");
        assert_eq!((registers.gp.rax, registers.gp.rsp, registers.gp.rip), (1, 2, 3));
        assert_eq!((registers.gp.rflags, registers.cs.selector, registers.cr3), (0x246, 0x10, 0x5000));
        assert!(registers.cs.long);
        bytes.pop();
        assert_eq!(file().decode(&bytes), None);
    }

    #[test]
    fn only_changes_are_written() {
        let old = Amd64Registers::default();
        let mut new = old;
        new.gp.rip = 0x1234;
        new.gp.rflags = 2;
        // Not among the stub's registers.
        new.gp.r15 = 1;
        let want = vec![(3, 0x1234u64.to_le_bytes().to_vec()), (4, 2u32.to_le_bytes().to_vec())];
        assert_eq!(file().changes(&old, &new), want);
        assert!(RegisterFile::new(&[]).is_none());
    }
}
