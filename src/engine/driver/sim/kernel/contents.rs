//! What the private pages of a process hold before it ever wrote to them, and the headers of images.

use super::{
    facts::Facts,
    handles::state_file,
    namespace::utf16,
    user::{IMAGE_BYTES, MODULES32},
};
use crate::engine::driver::sim::memory::Frame;

/// Where a process keeps its private pages: numbers of pages from the start of its region of 2 MiB.
pub(super) mod page {
    /// Pages of the first thread's stack; the second thread's follows.
    pub(in super::super) const STACK: u64 = 4;
    /// Process environment block.
    pub(in super::super) const PEB: u64 = 0x10;
    /// Thread environment blocks.
    pub(in super::super) const TEB: u64 = 0x11;
    /// Process environment block of a 32-bit process, as its own code sees it.
    pub(in super::super) const PEB32: u64 = 0x12;
    /// Process parameters: command line, image path.
    pub(in super::super) const PARAMETERS: u64 = 0x20;
    /// The loader's list of modules.
    pub(in super::super) const MODULES: u64 = 0x21;
    /// The 32-bit loader's list of modules.
    pub(in super::super) const MODULES32: u64 = 0x22;
    /// The heap.
    pub(in super::super) const HEAP: u64 = 0x40;
    /// Pages of the heap; a power of two.
    pub(in super::super) const HEAP_PAGES: u64 = 16;
}

/// What a process's private pages are made from.
pub(super) struct Contents<'a> {
    pub(super) facts: &'a Facts,
    /// Start of the process's region.
    pub(super) region: u64,
    pub(super) pid: u64,
    pub(super) tid: u64,
    pub(super) name: &'a str,
    pub(super) base: u64,
    pub(super) library: u64,
}

impl Contents<'_> {
    /// A page by its number in the region.
    pub(super) fn page(&self, number: u64) -> Frame {
        let mut page = [0; 4096];
        match number {
            page::PEB => self.environment(&mut page),
            page::TEB => self.thread(&mut page),
            page::PARAMETERS => self.parameters(&mut page),
            page::PEB32 => put(&mut page, self.facts.peb32_ldr as usize, &self.low(page::MODULES32)),
            page::MODULES => self.modules(&mut page),
            page::MODULES32 => self.modules32(&mut page),
            page::HEAP => self.heap(&mut page),
            _ => {}
        }
        page
    }

    fn at(&self, number: u64) -> u64 {
        self.region + number * 0x1000
    }

    fn environment(&self, page: &mut Frame) {
        let f = self.facts;
        put_u64(page, f.peb_image, self.base);
        put_u64(page, f.peb_ldr, self.at(page::MODULES));
        put_u64(page, f.peb_parameters, self.at(page::PARAMETERS));
        put_u64(page, f.peb_heap, self.at(page::HEAP));
    }

    fn thread(&self, page: &mut Frame) {
        let f = self.facts;
        put_u64(page, f.teb_self, self.at(page::TEB));
        put_u64(page, f.teb_peb, self.at(page::PEB));
        // _TEB.ClientId
        put_u64(page, 0x40, self.pid);
        put_u64(page, 0x48, self.tid);
    }

    fn path(&self) -> String {
        format!("C:\\Windows\\System32\\{}", self.name)
    }

    fn command_line(&self) -> String {
        match self.name {
            "svchost.exe" => format!("{} -k netsvcs -p -s {}", self.path(), service_name(self.pid)),
            "explorer.exe" => "C:\\Windows\\Explorer.EXE".to_owned(),
            _ => format!("\"{}\" /id:{}", self.path(), self.pid),
        }
    }

    fn parameters(&self, page: &mut Frame) {
        let (image, line) = (self.path(), self.command_line());
        self.string(page, page::PARAMETERS, self.facts.image_path, 0x500, &image);
        self.string(page, page::PARAMETERS, self.facts.command_line, 0x800, &line);
    }

    fn modules(&self, page: &mut Frame) {
        let f = self.facts;
        let here = self.at(page::MODULES);
        let list = [
            (0x100, self.base, self.name.to_owned(), self.path()),
            (0x300, self.library, "ntdll.dll".to_owned(), "C:\\Windows\\SYSTEM32\\ntdll.dll".to_owned()),
        ];
        let head = here + f.ldr_modules;
        let mut before = head;
        let mut text = 0x600;
        for (at, base, name, path) in &list {
            // InLoadOrderLinks is the entry's first field.
            let entry = here + at;
            put_u64(page, before - here, entry);
            put_u64(page, at + 8, before);
            put_u64(page, at + f.module_base, *base);
            put_u64(page, at + f.module_size, IMAGE_BYTES);
            self.string(page, page::MODULES, at + f.module_name, text, name);
            self.string(page, page::MODULES, at + f.module_path, text + 0x80, path);
            text += 0x200;
            before = entry;
        }
        put_u64(page, before - here, head);
        put_u64(page, f.ldr_modules + 8, before);
    }

    /// An address of a 32-bit process, as it keeps it.
    fn low(&self, number: u64) -> [u8; 4] {
        (self.at(number) as u32).to_le_bytes()
    }

    /// The same list with pointers of four bytes (`PEB_LDR_DATA32`, `LDR_DATA_TABLE_ENTRY32`).
    fn modules32(&self, page: &mut Frame) {
        const LIST: usize = 0xc;
        let here = self.at(page::MODULES32) as u32;
        let mut before = LIST;
        for (&(base, bytes, name), at) in MODULES32.iter().zip((0x100..).step_by(0x200)) {
            let text: Vec<u8> = utf16(name);
            put(page, before, &(here + at as u32).to_le_bytes());
            put(page, at + 4, &(here + before as u32).to_le_bytes());
            put(page, at + 0x18, &(base as u32).to_le_bytes());
            put(page, at + 0x20, &(bytes as u32).to_le_bytes());
            let length = text.len() as u32;
            put(page, at + 0x2c, &(length | (length + 2) << 16).to_le_bytes());
            put(page, at + 0x30, &(here + at as u32 + 0x80).to_le_bytes());
            put(page, at + 0x80, &text);
            before = at;
        }
        put(page, before, &(here + LIST as u32).to_le_bytes());
        put(page, LIST + 4, &(here + before as u32).to_le_bytes());
    }

    fn heap(&self, page: &mut Frame) {
        let file = format!("\\??\\C:{}", state_file(self.name, self.pid));
        // _OBJECT_ATTRIBUTES at 0x100, its name at 0x140.
        put_u64(page, 0x100, 0x30);
        put_u64(page, 0x100 + self.facts.object_name, self.at(page::HEAP) + 0x140);
        self.string(page, page::HEAP, 0x140, 0x160, &file);
        put_u64(page, 0x50, 0x1234);
        put_u64(page, 0x60, -100_000i64 as u64);
    }

    /// A `_UNICODE_STRING` and, on the same page, its text.
    fn string(&self, page: &mut Frame, number: u64, at: u64, text_at: u64, text: &str) {
        let bytes = utf16(text);
        let length = bytes.len() as u64;
        put_u64(page, at, length | (length + 2) << 16);
        put_u64(page, at + self.facts.string_buffer, self.at(number) + text_at);
        put(page, text_at as usize, &bytes);
    }
}

fn service_name(pid: u64) -> &'static str {
    const NAMES: [&str; 8] = ["Schedule", "Themes", "Winmgmt", "BITS", "UserManager", "ProfSvc", "gpsvc", "Appinfo"];
    NAMES.get((pid / 4 % 8) as usize).copied().unwrap_or("Schedule")
}

/// A minimal image header: MZ, PE, AMD64, size of image (PE format, section 3).
pub(super) fn image_header(size: u64) -> Frame {
    let mut page = [0; 4096];
    put(&mut page, 0, b"MZ");
    put(&mut page, 0x3c, &0x100u32.to_le_bytes());
    put(&mut page, 0x100, b"PE\0\0");
    put(&mut page, 0x104, &0x8664u16.to_le_bytes());
    // SizeOfOptionalHeader, Characteristics: executable, large addresses.
    put(&mut page, 0x114, &0xf0u16.to_le_bytes());
    put(&mut page, 0x116, &0x22u16.to_le_bytes());
    // Optional header: magic PE32+, SizeOfImage, SizeOfHeaders.
    put(&mut page, 0x118, &0x20bu16.to_le_bytes());
    put(&mut page, 0x118 + 0x38, &(size as u32).to_le_bytes());
    put(&mut page, 0x118 + 0x3c, &0x1000u32.to_le_bytes());
    page
}

pub(super) fn put(page: &mut Frame, at: usize, bytes: &[u8]) {
    if let Some(target) = page.get_mut(at..at + bytes.len()) {
        target.copy_from_slice(bytes);
    }
}

fn put_u64(page: &mut Frame, at: u64, value: u64) {
    put(page, at as usize, &value.to_le_bytes());
}
