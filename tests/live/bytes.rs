//! A guest's code as it must stay: its kernel's text and the pages of its programs, read from outside of it.
//!
//! The guest says where its code lies; the bytes come from QEMU's process, past every gdb stub and past vmscope.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use serde_json::json;

use super::guest::Guest;

const PAGE: u64 = 4096;

/// The longest that bytes may take to be as they were; nothing is compared with it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The code of a guest at one moment.
pub struct Code {
    memory: File,
    /// Where QEMU has the guest's physical address 0.
    base: u64,
    /// The kernel's text and each page of a program's code, by physical address.
    parts: BTreeMap<u64, Vec<u8>>,
}

/// A stretch of code that is not what it was.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// The physical address of its first byte.
    pub pa: u64,
    pub was: Vec<u8>,
    pub is: Vec<u8>,
}

impl Code {
    /// Reads all of it; the pages of programs that run now.
    pub fn of(guest: &mut Guest) -> Self {
        let memory = File::open(format!("/proc/{}/mem", guest.qemu_pid())).expect("QEMU's memory can be read");
        // Above the holes of the first mebibyte and below those at the end, memory is one block.
        let said = guest.qmp("human-monitor-command", json!({ "command-line": "gpa2hva 0x100000" }));
        let said = said.as_str().expect("a monitor's text").trim();
        let base = said.rsplit(' ').next().and_then(hex).unwrap_or_else(|| panic!("gpa2hva: {said}")) - 0x10_0000;
        let mut code = Self { memory, base, parts: BTreeMap::new() };

        // `/proc/iomem`: `  01000000-021fffff : Kernel code`.
        let line = guest.sh("grep 'Kernel code' /proc/iomem");
        let range = line.trim().split(' ').next().and_then(|range| range.split_once('-'));
        let (start, end) = range.and_then(|(a, b)| Some((hex(a)?, hex(b)? + 1))).expect("the kernel's text");
        assert!(end - start > 1 << 20, "the guest's root is shown where its kernel is: {line}");
        code.parts.insert(start, code.read(start, (end - start) as usize));

        for line in guest.sh("work text").lines() {
            let (first, count) = line.split_once('+').unwrap_or_else(|| panic!("not a range of frames: {line}"));
            for frame in 0..hex(count).expect("a count") {
                let pa = (hex(first).expect("a frame") + frame) * PAGE;
                code.parts.entry(pa).or_default();
            }
        }
        let pages: Vec<u64> = code.parts.iter().filter(|(_, bytes)| bytes.is_empty()).map(|(&pa, _)| pa).collect();
        assert!(pages.len() > 10, "programs have code");
        for pa in pages {
            code.parts.insert(pa, code.read(pa, PAGE as usize));
        }
        code
    }

    fn read(&self, pa: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_exact_at(&mut bytes, self.base + pa).expect("the guest's memory can be read");
        bytes
    }

    /// What is not as it was, but for what the kernel itself patches: its jump labels, static calls and trace points.
    pub fn changes(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (&pa, was) in &self.parts {
            let is = self.read(pa, was.len());
            if *was == is {
                continue;
            }
            let mut at = 0;
            while let Some(offset) = (at..is.len()).find(|&i| was[i] != is[i]) {
                let start = (offset.saturating_sub(4)..=offset).find(|&i| patched(&was[i..]) && patched(&is[i..]));
                match start {
                    Some(start) => at = (start + 5).max(offset + 1),
                    None => {
                        let end = (offset..is.len()).find(|&i| was[i] == is[i]).unwrap_or(is.len());
                        let (was, is) = (was[offset..end].to_vec(), is[offset..end].to_vec());
                        changes.push(Change { pa: pa + offset as u64, was, is });
                        at = end;
                    }
                }
            }
        }
        changes
    }

    /// Whether there is an INT3 at a physical address now.
    pub fn has_int3_at(&self, pa: u64) -> bool {
        self.read(pa, 1) == [0xcc]
    }

    /// Nothing is left of anybody's breakpoints. What is being put back at this moment is waited for.
    pub fn is_as_it_was(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let changes = self.changes();
            if changes.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "the guest's code is not what it was: {changes:x?}");
            std::thread::yield_now();
        }
    }
}

/// Whether these are the bytes of a place that the kernel patches as it runs (arch/x86/kernel/jump_label.c,
/// static_call.c, ftrace.c): a no-operation of five or two bytes, a jump, a call.
fn patched(code: &[u8]) -> bool {
    code.starts_with(&[0x0f, 0x1f, 0x44, 0x00, 0x00])
        || code.starts_with(&[0x66, 0x90])
        || matches!(code.first(), Some(0xe8 | 0xe9 | 0xeb))
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}
