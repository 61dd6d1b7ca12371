//! Windows: what a 64-bit Windows kernel keeps in guest memory, read with the facts of a profile.
//!
//! `find` locates the kernel's image from the CPU; `list` walks `PsActiveProcessHead` and compares it with
//! `PspCidTable` (`table`) and the scheduler; `detail` puts together one process: its threads, `regions` (the VAD tree and
//! the files behind it), `modules` (the loader's lists, 32-bit ones too), handles (`objects` says what they lead to),
//! `token` (who it acts as). All of it reads through `memory`. Everything is bounded: a list may be cyclic, a length
//! absurd, a tree endless. Imports the session and below. Start at [`WindowsOs::detect`].

mod detail;
mod find;
mod list;
mod memory;
mod missing;
mod modules;
mod objects;
mod regions;
mod table;
mod token;

use std::sync::Arc;

use indexmap::IndexSet;

use super::{CurrentProcess, ProcessList, SystemCall, VmiOs};
pub use crate::engine::profile::Profile;
use crate::engine::{
    addr::{AccessContext, AddressContext, Pa, Va},
    arch::{
        Registers,
        amd64::{Amd64, Amd64Registers},
    },
    driver::VmiRead,
    error::VmiError,
    session::{VmiCore, VmiProber, VmiSession, VmiState},
    snapshot::{MissingPage, Process, ProcessDetail, ProcessKey, clean},
    symbols::SymbolTable,
};

macro_rules! offsets {
    ($($name:ident: $of:literal . $field:literal,)*) => {
        /// Where the fields lie that this layer reads, in bytes from their structure's start.
        #[derive(Clone, Copy, Debug)]
        struct Offsets {
            $($name: u64,)*
            /// Sizes: of what may lie between an object's name and its header, of that name, of a token's group.
            creator_bytes: u64,
            name_bytes: u64,
            group_bytes: u64,
        }

        impl Offsets {
            fn new(profile: &Profile) -> Result<Self, VmiError> {
                Ok(Self {
                    $($name: profile.field($of, $field)?,)*
                    creator_bytes: profile.size("_OBJECT_HEADER_CREATOR_INFO")?,
                    name_bytes: profile.size("_OBJECT_HEADER_NAME_INFO")?,
                    group_bytes: profile.size("_SID_AND_ATTRIBUTES")?,
                })
            }
        }
    };
}

offsets! {
    object_type: "_DISPATCHER_HEADER"."Type",
    directory_table_base: "_KPROCESS"."DirectoryTableBase",
    pid: "_EPROCESS"."UniqueProcessId",
    links: "_EPROCESS"."ActiveProcessLinks",
    create_time: "_EPROCESS"."CreateTime",
    exit_time: "_EPROCESS"."ExitTime",
    parent: "_EPROCESS"."InheritedFromUniqueProcessId",
    peb: "_EPROCESS"."Peb",
    wow64: "_EPROCESS"."WoW64Process",
    image_file_name: "_EPROCESS"."ImageFileName",
    thread_list: "_EPROCESS"."ThreadListHead",
    active_threads: "_EPROCESS"."ActiveThreads",
    vad_root: "_EPROCESS"."VadRoot",
    apc_state: "_KTHREAD"."ApcState",
    apc_process: "_KAPC_STATE"."Process",
    thread_state: "_KTHREAD"."State",
    cid: "_ETHREAD"."Cid",
    cid_thread: "_CLIENT_ID"."UniqueThread",
    thread_links: "_ETHREAD"."ThreadListEntry",
    start_address: "_ETHREAD"."Win32StartAddress",
    prcb: "_KPCR"."Prcb",
    current_thread: "_KPRCB"."CurrentThread",
    ldr: "_PEB"."Ldr",
    parameters: "_PEB"."ProcessParameters",
    command_line: "_RTL_USER_PROCESS_PARAMETERS"."CommandLine",
    string_buffer: "_UNICODE_STRING"."Buffer",
    modules: "_PEB_LDR_DATA"."InLoadOrderModuleList",
    module_links: "_LDR_DATA_TABLE_ENTRY"."InLoadOrderLinks",
    module_base: "_LDR_DATA_TABLE_ENTRY"."DllBase",
    module_size: "_LDR_DATA_TABLE_ENTRY"."SizeOfImage",
    module_name: "_LDR_DATA_TABLE_ENTRY"."BaseDllName",
    token: "_EPROCESS"."Token",
    object_table: "_EPROCESS"."ObjectTable",
    thread_process: "_KTHREAD"."Process",
    table_code: "_HANDLE_TABLE"."TableCode",
    header_type: "_OBJECT_HEADER"."TypeIndex",
    header_mask: "_OBJECT_HEADER"."InfoMask",
    header_body: "_OBJECT_HEADER"."Body",
    name_directory: "_OBJECT_HEADER_NAME_INFO"."Directory",
    name_name: "_OBJECT_HEADER_NAME_INFO"."Name",
    type_name: "_OBJECT_TYPE"."Name",
    file_device: "_FILE_OBJECT"."DeviceObject",
    file_name: "_FILE_OBJECT"."FileName",
    key_block: "_CM_KEY_BODY"."KeyControlBlock",
    block_parent: "_CM_KEY_CONTROL_BLOCK"."ParentKcb",
    block_name: "_CM_KEY_CONTROL_BLOCK"."NameBlock",
    key_name_flags: "_CM_NAME_CONTROL_BLOCK"."Compressed",
    key_name_length: "_CM_NAME_CONTROL_BLOCK"."NameLength",
    key_name: "_CM_NAME_CONTROL_BLOCK"."Name",
    token_privileges: "_TOKEN"."Privileges",
    token_session: "_TOKEN"."SessionId",
    token_group_count: "_TOKEN"."UserAndGroupCount",
    token_groups: "_TOKEN"."UserAndGroups",
    token_flags: "_TOKEN"."TokenFlags",
    token_integrity: "_TOKEN"."IntegrityLevelIndex",
    privileges_present: "_SEP_TOKEN_PRIVILEGES"."Present",
    privileges_enabled: "_SEP_TOKEN_PRIVILEGES"."Enabled",
    group_sid: "_SID_AND_ATTRIBUTES"."Sid",
    group_attributes: "_SID_AND_ATTRIBUTES"."Attributes",
    sid_revision: "_SID"."Revision",
    sid_count: "_SID"."SubAuthorityCount",
    sid_authority: "_SID"."IdentifierAuthority",
    sid_parts: "_SID"."SubAuthority",
    vad_subsection: "_MMVAD"."Subsection",
    subsection_area: "_SUBSECTION"."ControlArea",
    area_file: "_CONTROL_AREA"."FilePointer",
    wow64_peb: "_EWOW64PROCESS"."Peb",
    peb32_ldr: "_PEB32"."Ldr",
    vad_left: "_RTL_BALANCED_NODE"."Left",
    vad_right: "_RTL_BALANCED_NODE"."Right",
    vad_start: "_MMVAD_SHORT"."StartingVpn",
    vad_end: "_MMVAD_SHORT"."EndingVpn",
    vad_start_high: "_MMVAD_SHORT"."StartingVpnHigh",
    vad_end_high: "_MMVAD_SHORT"."EndingVpnHigh",
    vad_flags: "_MMVAD_SHORT"."u",
    record_code: "_EXCEPTION_RECORD"."ExceptionCode",
    record_information: "_EXCEPTION_RECORD"."ExceptionInformation",
}

/// STATUS_ACCESS_VIOLATION and STATUS_IN_PAGE_ERROR: what an access to a page that will not come is answered with.
const REFUSALS: [u32; 2] = [0xc000_0005, 0xc000_0006];

/// Services that a table can have: their numbers have 12 bits.
const MOST_SERVICES: u64 = 1 << 12;

/// A Windows guest.
#[derive(Debug)]
pub struct WindowsOs {
    offsets: Offsets,
    base: Va,
    root: Pa,
    version: String,
    symbols: Arc<SymbolTable>,
    process_head: Va,
    cid_table: Va,
    /// `ObTypeIndexTable`, and the byte that the indexes in object headers are hidden with.
    type_table: Va,
    cookie: u8,
    kernel_modules: Va,
    /// `KiProcessorBlock`: the control block of each CPU.
    processors: Va,
    boot_time: u64,
    refused_at: Option<Va>,
}

impl WindowsOs {
    /// Finds the kernel from the registers of a vCPU and checks that the profile is for it. Tells the core how many
    /// levels the page tables have.
    ///
    /// # Errors
    /// [`VmiError::Os`] when there is no Windows kernel (yet), when it is of another build than the profile, or when
    /// the profile lacks a fact; others when guest memory cannot be read.
    pub fn detect<Driver>(
        core: &VmiCore<Driver>,
        registers: &Amd64Registers,
        profile: Profile,
    ) -> Result<Self, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        core.set_paging_levels(registers.paging_levels());
        let offsets = Offsets::new(&profile)?;
        let base = find::kernel_base(core, registers)?;
        let at = |name: &str| profile.symbol(name).map(|rva| base + rva);
        let here = |va: Va| AddressContext { va, root: registers.root() };
        let build = core.read_u32(here(at("NtBuildNumber")?))? & 0xffff;
        if build != profile.build {
            return Err(VmiError::os(format!(
                "the Windows kernel at {base} does not match the profile for build {} (it says build {build}): give \
                 the profile of its own build with --profile",
                profile.build
            )));
        }
        let system = core.read_va64(here(at("PsInitialSystemProcess")?))?;
        let root = Pa(core.read_u64(here(system + offsets.directory_table_base))? & 0x000f_ffff_ffff_f000);
        let lab = core.read_string_limited(here(at("NtBuildLab")?), 64)?;
        Ok(Self {
            base,
            root,
            version: format!("Windows 10 build {}", clean(&lab, 64)),
            symbols: Arc::new(SymbolTable::new(
                profile.symbols().map(|(name, rva)| (format!("nt!{name}"), base + rva)),
            )),
            process_head: at("PsActiveProcessHead")?,
            cid_table: at("PspCidTable")?,
            type_table: at("ObTypeIndexTable")?,
            cookie: core.read_u8(here(at("ObHeaderCookie")?))?,
            kernel_modules: at("PsLoadedModuleList")?,
            processors: at("KiProcessorBlock")?,
            boot_time: core.read_u64(here(at("KeBootTime")?))?,
            refused_at: at("KiDispatchException").ok(),
            offsets,
        })
    }

    /// An address of the kernel, in the address space that has all of it.
    fn kernel(&self, va: Va) -> AccessContext {
        AccessContext::Paging(AddressContext { va, root: self.root })
    }

    /// A time of the kernel's (100 ns since 1601) as nanoseconds since boot.
    fn since_boot(&self, time: u64) -> u64 {
        time.saturating_sub(self.boot_time).saturating_mul(100)
    }

    /// A process object's short name, cleaned.
    fn name<Driver>(&self, core: &VmiCore<Driver>, object: Va) -> Result<String, VmiError>
    where
        Driver: VmiRead<Architecture = Amd64>,
    {
        let name = core.read_string_limited(self.kernel(object + self.offsets.image_file_name), 15)?;
        Ok(clean(&name, 15))
    }
}

impl<Driver> VmiOs<Driver> for WindowsOs
where
    Driver: VmiRead<Architecture = Amd64>,
{
    fn name(&self) -> &'static str {
        "windows"
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn kernel_image_base(&self) -> Va {
        self.base
    }

    fn kernel_root(&self) -> Pa {
        self.root
    }

    fn symbols(&self) -> Arc<SymbolTable> {
        Arc::clone(&self.symbols)
    }

    fn processes(&self, vmi: VmiSession<'_, Driver, Self>) -> Result<ProcessList, VmiError> {
        let _look = vmi.core().look();
        self.list(vmi.core())
    }

    fn process_again(&self, vmi: VmiSession<'_, Driver, Self>, known: ProcessKey) -> Result<Option<Process>, VmiError> {
        let _look = vmi.core().look();
        self.again(vmi.core(), known)
    }

    fn current_process(&self, vmi: VmiState<'_, Driver, Self>) -> Result<Option<CurrentProcess>, VmiError> {
        let _look = vmi.core().look();
        let o = &self.offsets;
        let core = vmi.core();
        // SWAPGS exchanges the two bases on the way in and out; the kernel's is the one in its half.
        let registers = vmi.registers();
        let bases = [registers.gs.base, registers.kernel_gs_base];
        let Some(pcr) = bases.into_iter().find(|base| base >> 63 != 0) else { return Ok(None) };
        let thread = core.read_va64(self.kernel(Va(pcr) + o.prcb + o.current_thread))?;
        if thread.is_null() {
            return Ok(None);
        }
        // The process whose address space the thread is attached to.
        let object = core.read_va64(self.kernel(thread + o.apc_state + o.apc_process))?;
        Ok(Some(CurrentProcess {
            pid: core.read_u64(self.kernel(object + o.pid))? as u32,
            tid: core.read_u64(self.kernel(thread + o.cid + o.cid_thread))? as u32,
            name: self.name(core, object)?,
            object,
            start_ns: self.since_boot(core.read_u64(self.kernel(object + o.create_time))?),
        }))
    }

    fn process_detail(
        &self,
        vmi: VmiSession<'_, Driver, Self>,
        process: &Process,
        prober: &VmiProber,
    ) -> Result<ProcessDetail, VmiError> {
        let _look = vmi.core().look();
        self.detail(vmi.core(), process, prober)
    }

    /// By the Windows x64 calling convention.
    fn function_argument(&self, vmi: VmiState<'_, Driver, Self>, index: u32) -> Result<u64, VmiError> {
        let gp = &vmi.registers().gp;
        match index {
            0 => Ok(gp.rcx),
            1 => Ok(gp.rdx),
            2 => Ok(gp.r8),
            3 => Ok(gp.r9),
            // The return address and the home space of the first four come before the others.
            _ => vmi.read_u64(Va(gp.rsp) + 0x28 + 8 * u64::from(index - 4)),
        }
    }

    /// At the entry of system calls: the service's number is in EAX, its first argument in R10, the others where the calling
    /// convention has them, still on the stack of user mode.
    fn system_call(&self, vmi: VmiState<'_, Driver, Self>) -> Option<SystemCall> {
        let _look = vmi.core().look();
        let gp = &vmi.registers().gp;
        if self.symbols.lookup("nt!KiSystemCall64")?.0 != gp.rip {
            return None;
        }
        let memory = self.memory(vmi.core());
        let services = self.symbols.lookup("nt!KeServiceDescriptorTable")?;
        let number = gp.rax & 0xffff_ffff;
        // Bit 12 selects the window manager's table, which is not in the kernel's image.
        if number >= memory.u64(services + 0x10).ok()?.min(MOST_SERVICES) {
            return None;
        }
        let table = memory.pointer(services).ok()?;
        // A distance from the table in 28 bits, and how many arguments are on the stack in 4.
        let entry = memory.u32(table + number * 4).ok()? as i32;
        let name = self.symbols.describe(table + i64::from(entry >> 4) as u64, 0)?;
        let mut arguments = vec![gp.r10, gp.rdx, gp.r8, gp.r9];
        let on_stack = (0..u64::from(entry as u32 & 0xf)).map(|index| Va(gp.rsp) + 0x28 + index * 8);
        arguments.extend(on_stack.map_while(|va| vmi.read_u64(va).ok()));
        let shown: Vec<String> = arguments.iter().map(|argument| format!("{argument:#x}")).collect();
        let name = name.strip_prefix("nt!").unwrap_or(&name);
        Some(SystemCall { text: format!("{name}({})", shown.join(", ")), arguments })
    }

    fn missing_page(
        &self,
        vmi: VmiSession<'_, Driver, Self>,
        page: AddressContext,
    ) -> Result<Option<MissingPage>, VmiError> {
        Ok(self.missing(vmi.core(), page))
    }

    fn unservable(&self, vmi: VmiSession<'_, Driver, Self>, page: AddressContext) -> Result<Option<String>, VmiError> {
        let missing = self.missing(vmi.core(), page).filter(|missing| !missing.comes_by_fault);
        Ok(missing.map(|missing| missing.sentence()))
    }

    fn fault_refused_at(&self) -> Option<Va> {
        self.refused_at
    }

    /// `KiDispatchException(PEXCEPTION_RECORD, …)`: the second word of an access violation's record is the address.
    fn refused_fault(
        &self,
        vmi: VmiState<'_, Driver, Self>,
        waiting: &IndexSet<AddressContext>,
    ) -> Result<Option<AddressContext>, VmiError> {
        let _look = vmi.core().look();
        let record = Va(vmi.registers().gp.rcx);
        if !REFUSALS.contains(&vmi.read_u32(record + self.offsets.record_code)?) {
            return Ok(None);
        }
        let address = vmi.read_u64(record + self.offsets.record_information + 8)?;
        let root = vmi.registers().translation_root(Va(address));
        let same_page = |ctx: &&AddressContext| ctx.root == root && ctx.va.0 >> 12 == address >> 12;
        Ok(waiting.iter().find(same_page).copied())
    }
}
