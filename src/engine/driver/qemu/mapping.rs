//! A read-only mapping of the file that holds a guest's memory.
//!
//! The guest changes the memory while it is read, so it is copied out with volatile loads and never borrowed. The file
//! may also lose memory under the mapping: it shrinks, a huge page is punched out while no other is free, a page of RAM
//! goes bad. A load from there raises SIGBUS, which would end the program. So a handler puts a page of zeros under such a
//! load and marks the mapping as torn, and each copy looks at the mark when it is done. That page is as large as those of
//! the file: a mapping of huge pages cannot be split. A system call per read (`pread`, 200 ns) would be sound too, but
//! costs a page walk ten times as much.
#![allow(unsafe_code)] // Volatile loads through a raw pointer, the signal handler, and fstatfs(2).

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence},
    },
};

use memmap2::{Mmap, MmapOptions};

/// Mappings that can exist at once in this process.
const SLOTS: usize = 64;
const PAGE: usize = 4096;

/// What the signal handler knows of a mapping. Start and end are 0 while the slot is free.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    /// Size of the file's pages, a power of two.
    page: AtomicUsize,
    torn: AtomicBool,
}

static MAPPINGS: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        page: AtomicUsize::new(PAGE),
        torn: AtomicBool::new(false),
    }
}; SLOTS];

/// The handler that was there before ours; written before ours is installed, read only by ours.
struct Previous(std::cell::UnsafeCell<std::mem::MaybeUninit<libc::sigaction>>);

// SAFETY: written once, under `INSTALLED`'s lock and before the handler that reads it is installed.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(std::cell::UnsafeCell::new(std::mem::MaybeUninit::uninit()));
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// SIGBUS: gives a torn mapping a page of zeros to read and lets the load happen again.
extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler installed with SA_SIGINFO, and SIGBUS fills si_addr.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &MAPPINGS {
        let (start, end) = (slot.start.load(Ordering::SeqCst), slot.end.load(Ordering::SeqCst));
        if address >= start && address < end {
            let size = slot.page.load(Ordering::SeqCst);
            // SAFETY: the thread's errno is put back as it was, so the interrupted code does not see the system call.
            let errno = unsafe { *libc::__errno_location() };
            // SAFETY: the page lies in a mapping of ours, which begins and ends at pages of this size and which nothing
            // borrows (it is only ever read through volatile loads), so replacing it changes what those loads give and
            // nothing else. `mmap` is a plain system call without locks or allocation in the C library, which a handler
            // may make.
            let page = unsafe {
                libc::mmap(
                    (address & !(size - 1)) as *mut libc::c_void,
                    size,
                    libc::PROT_READ,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                )
            };
            // SAFETY: as above.
            unsafe { *libc::__errno_location() = errno };
            if page != libc::MAP_FAILED {
                slot.torn.store(true, Ordering::SeqCst);
                return;
            }
        }
    }
    // Not ours: the load happens again under the handler that was there before. What somebody has sent does not.
    // SAFETY: PREVIOUS was written before this handler was installed, and `info` is valid; both calls are
    // async-signal-safe.
    unsafe {
        libc::sigaction(libc::SIGBUS, (*PREVIOUS.0.get()).as_ptr(), std::ptr::null_mut());
        if (*info).si_code <= 0 {
            libc::raise(libc::SIGBUS);
        }
    }
}

fn install_handler() -> io::Result<()> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // SAFETY: an all-zero `sigaction` is a valid one (SIG_DFL, no flags, an empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_sigbus as extern "C" fn(_, _, _) as usize;
    // The thread's alternate stack where it has one, as the runtime's own handlers do.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the old action is read into PREVIOUS first, while no handler of ours reads it; both pointers are valid, and
    // the handler only does what is allowed in one.
    let result = unsafe {
        match libc::sigaction(libc::SIGBUS, std::ptr::null(), (*PREVIOUS.0.get()).as_mut_ptr()) {
            0 => libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()),
            failed => failed,
        }
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

/// The size of the pages that a file is made of: of huge pages, where it lies in a file system of those.
fn page_size(file: &File) -> io::Result<usize> {
    // SAFETY: an all-zero `statfs` is a valid one: it holds numbers only.
    let mut system: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open while `file` is borrowed, and `system` is a `statfs` on this stack frame.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut system) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if system.f_type != libc::HUGETLBFS_MAGIC {
        return Ok(PAGE);
    }
    let size = usize::try_from(system.f_bsize).ok().filter(|size| size.is_power_of_two() && *size >= PAGE);
    size.ok_or_else(|| io::Error::other(format!("its huge pages have an impossible size ({})", system.f_bsize)))
}

/// A stretch of a file, mapped for reading.
pub struct Mapping {
    map: Mmap,
    /// Where the stretch begins in the map, and how long it is.
    from: usize,
    bytes: u64,
    slot: &'static Slot,
}

impl Mapping {
    /// Maps `bytes` bytes of a file from `offset` on.
    ///
    /// # Errors
    /// `InvalidInput` when the file is shorter; what the system says.
    pub fn new(file: &File, offset: u64, bytes: u64) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let end = offset.checked_add(bytes).filter(|&end| end <= length);
        let Some(end) = end else {
            let text = format!("the file has {length} bytes, the guest's memory needs {offset} + {bytes}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        let page = page_size(file)?;
        let first = offset - offset % page as u64;
        let last = end.checked_next_multiple_of(page as u64).ok_or(io::ErrorKind::OutOfMemory)?;
        let whole = usize::try_from(last - first).map_err(|_| io::ErrorKind::OutOfMemory)?;
        install_handler()?;
        // SAFETY: the file is written by the guest and may lose memory. Neither breaks a promise made here: no reference
        // into the mapping is ever made, all loads are volatile, and loads of what is gone are caught by the handler.
        let map = unsafe { MmapOptions::new().offset(first).len(whole).map(file)? };
        let start = map.as_ptr() as usize;
        let slot = MAPPINGS.iter().find(|slot| {
            let free = slot.start.compare_exchange(0, start, Ordering::SeqCst, Ordering::SeqCst);
            free.is_ok()
        });
        let slot = slot.ok_or_else(|| io::Error::other("too many guests are mapped at once"))?;
        slot.torn.store(false, Ordering::SeqCst);
        slot.page.store(page, Ordering::SeqCst);
        slot.end.store(start.saturating_add(map.len()), Ordering::SeqCst);
        // Less than a page, which fits.
        Ok(Self { map, from: (offset - first) as usize, bytes, slot })
    }

    /// Has the system forget that pages of the guest's were touched: they stay where they are, and count as ours no more.
    pub fn release(&self) {
        // SAFETY: the mapping is shared with its file and read-only, so nothing is lost by it, and nothing borrows it; where
        // a page was put under a torn one it is zeros again.
        let advised = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        if let Err(error) = advised {
            tracing::debug!(%error, "the system keeps pages of the guest's memory mapped");
        }
    }

    /// How many bytes are mapped.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether the file has lost memory: what was read since may be zeros that never were in the guest.
    #[inline]
    pub fn is_torn(&self) -> bool {
        // The handler runs between two instructions of this thread: the compiler alone could look at the mark too early.
        compiler_fence(Ordering::SeqCst);
        self.slot.torn.load(Ordering::Relaxed)
    }

    /// Eight bytes, little-endian; `None` out of range or when the file has lost memory.
    #[inline]
    pub fn read_u64(&self, offset: u64) -> Option<u64> {
        if offset > self.len().checked_sub(8)? {
            return None;
        }
        // SAFETY: `offset + 8` is within the mapping, which lives as long as `self`. The load may be unaligned; it is
        // then made of bytes, as an unaligned load of the processor's own is not one access either.
        let value = unsafe {
            let from = self.map.as_ptr().add(self.from + offset as usize);
            if from.addr().is_multiple_of(8) {
                from.cast::<u64>().read_volatile()
            } else {
                let mut bytes = [0; 8];
                copy_volatile(from, &mut bytes);
                u64::from_le_bytes(bytes)
            }
        };
        (!self.is_torn()).then_some(u64::from_le(value))
    }

    /// Copies bytes; `None` out of range or when the file has lost memory.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Option<()> {
        let end = offset.checked_add(buffer.len() as u64)?;
        if end > self.len() {
            return None;
        }
        // SAFETY: all of `offset..end` is within the mapping, which lives as long as `self`.
        unsafe { copy_volatile(self.map.as_ptr().add(self.from + offset as usize), buffer) };
        (!self.is_torn()).then_some(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Before the memory goes: an address that is used again must not be taken for ours.
        self.slot.end.store(0, Ordering::SeqCst);
        self.slot.start.store(0, Ordering::SeqCst);
    }
}

/// Copies with volatile loads, eight bytes at a time where the source is aligned.
///
/// # Safety
/// `from` must be valid for reading `buffer.len()` bytes; others may write them at the same time.
#[inline]
unsafe fn copy_volatile(from: *const u8, buffer: &mut [u8]) {
    let head = from.align_offset(8).min(buffer.len());
    let (first, rest) = buffer.split_at_mut(head);
    let mut at = 0;
    let bytes = |part: &mut [u8], at: &mut usize| {
        for byte in part {
            // SAFETY: `at` counts the bytes of `buffer` that were filled, so it is below its length.
            *byte = unsafe { from.add(*at).read_volatile() };
            *at += 1;
        }
    };
    bytes(first, &mut at);
    let mut words = rest.chunks_exact_mut(8);
    for word in &mut words {
        // SAFETY: as above, for eight bytes; `from + at` is aligned, since `head` was cut off and `at` grows by eights.
        let value = unsafe { from.add(at).cast::<u64>().read_volatile() };
        word.copy_from_slice(&value.to_ne_bytes());
        at += 8;
    }
    bytes(words.into_remainder(), &mut at);
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::unix::fs::{FileExt, MetadataExt},
    };

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("room");
        file
    }

    #[test]
    fn reads_what_is_there_now() {
        let bytes: Vec<u8> = (0..8192u32).map(|n| (n * 7 % 251) as u8).collect();
        let file = file(&bytes);
        let mapping = Mapping::new(&file, 4096, 4096).expect("a mapping");
        for (offset, length) in [(0, 4096), (1, 7), (3, 64), (5, 1), (4095, 1), (17, 0)] {
            let mut buffer = vec![0; length];
            assert_eq!(mapping.read(offset, &mut buffer), Some(()));
            let from = 4096 + offset as usize;
            assert_eq!(buffer, bytes[from..from + length], "{offset} {length}");
        }
        for offset in [0, 8, 13, 4088] {
            let from = 4096 + offset as usize;
            let want = u64::from_le_bytes(bytes[from..from + 8].try_into().expect("8 bytes"));
            assert_eq!(mapping.read_u64(offset), Some(want));
        }
        file.write_at(&[9; 8], 4096).expect("room");
        assert_eq!(mapping.read_u64(0), Some(0x0909_0909_0909_0909));
        assert_eq!(mapping.read_u64(4089), None);
        assert_eq!(mapping.read_u64(u64::MAX), None);
        assert_eq!(mapping.read(4090, &mut [0; 7]), None);
        assert_eq!(mapping.read(u64::MAX, &mut [0; 7]), None);
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_not_the_end() {
        let file = file(&[1; 3 * PAGE]);
        let mapping = Mapping::new(&file, 0, 3 * PAGE as u64).expect("a mapping");
        file.set_len(PAGE as u64).expect("a shorter file");
        assert_eq!(mapping.read_u64(0), Some(0x0101_0101_0101_0101));
        assert_eq!(mapping.read_u64(2 * PAGE as u64), None);
        assert!(mapping.is_torn());
        assert_eq!(mapping.read(PAGE as u64, &mut [0; 2 * PAGE]), None);
        // A new mapping starts whole.
        drop(mapping);
        let mapping = Mapping::new(&file, 0, PAGE as u64).expect("a mapping");
        assert_eq!(mapping.read(0, &mut [0; PAGE]), Some(()));
    }

    /// A file of two huge pages; `None` where the system has none to spare.
    fn huge_file() -> Option<(File, u64)> {
        // SAFETY: the name is a string that lives on, and the descriptor is nobody else's.
        let file: File = unsafe {
            let fd = libc::memfd_create(c"huge".as_ptr(), libc::MFD_HUGETLB | libc::MFD_CLOEXEC);
            if fd < 0 {
                return None;
            }
            std::os::fd::FromRawFd::from_raw_fd(fd)
        };
        // What the system says of such a file.
        let page = file.metadata().ok()?.blksize();
        file.set_len(2 * page).ok()?;
        // SAFETY: no pointers.
        (unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, (2 * page).cast_signed()) } == 0).then_some((file, page))
    }

    fn skip() {
        println!("skipped: no two huge pages are free here (/proc/sys/vm/nr_hugepages)");
        assert!(std::env::var_os("CI").is_none(), "scripts/test reserves them");
    }

    #[test]
    fn huge_pages_that_go_away_are_an_error_and_not_the_end() {
        let Some((file, page)) = huge_file() else {
            return skip();
        };
        assert!(page > PAGE as u64);
        // From within a page on, and to within another one.
        let mapping = Mapping::new(&file, PAGE as u64, 2 * page - 2 * PAGE as u64).expect("a mapping");
        assert_eq!(mapping.len(), 2 * page - 2 * PAGE as u64);
        assert_eq!(mapping.read_u64(0), Some(0));
        assert_eq!(mapping.read_u64(page), Some(0));
        file.set_len(page).expect("a shorter file");
        assert_eq!(mapping.read_u64(0), Some(0));
        assert_eq!(mapping.read_u64(page), None);
        assert_eq!(mapping.read(page - 8, &mut [0; 16]), None);
        assert!(mapping.is_torn());
        drop(mapping);
        // Nothing of it is left mapped: the pages can be had again.
        assert!(Mapping::new(&file, 0, page).is_ok_and(|mapping| mapping.read_u64(0) == Some(0)));
    }

    #[test]
    fn a_huge_page_that_is_punched_out_is_an_error_where_no_other_is_free() {
        let Some((file, page)) = huge_file() else {
            return skip();
        };
        let mapping = Mapping::new(&file, 0, 2 * page).expect("a mapping");
        assert_eq!(mapping.read_u64(page), Some(0));
        // SAFETY: no pointers.
        let punched = unsafe {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            libc::fallocate(file.as_raw_fd(), mode, page.cast_signed(), page.cast_signed())
        };
        assert_eq!(punched, 0);
        // Where another one is free the kernel gives us that, of zeros; either way we go on.
        assert!(matches!(mapping.read_u64(page), None | Some(0)));
    }

    #[test]
    fn a_short_file_is_refused() {
        let file = file(&[0; 100]);
        assert!(Mapping::new(&file, 0, 4096).is_err());
        assert!(Mapping::new(&file, u64::MAX, 2).is_err());
    }
}
