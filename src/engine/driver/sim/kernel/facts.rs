//! The facts of the real build that the guest's kernel is laid out by, looked up once.

use crate::engine::{error::VmiError, profile::Profile};

macro_rules! facts {
    ($($name:ident: $of:literal . $field:literal,)*) => {
        /// Offsets of fields, in bytes from their structure's start, and the image's symbols.
        #[derive(Clone, Debug)]
        pub(super) struct Facts {
            $(pub(super) $name: u64,)*
            pub(super) build: u32,
            pub(super) image_size: u64,
            profile: Profile,
        }

        impl Facts {
            pub(super) fn new() -> Result<Self, VmiError> {
                let profile = Profile::builtin()?;
                Ok(Self {
                    $($name: profile.field($of, $field)?,)*
                    build: profile.build,
                    image_size: profile.image_size,
                    profile,
                })
            }
        }
    };
}

facts! {
    dispatcher_type: "_DISPATCHER_HEADER"."Type",
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
    section_base: "_EPROCESS"."SectionBaseAddress",
    initial_stack: "_KTHREAD"."InitialStack",
    stack_limit: "_KTHREAD"."StackLimit",
    stack_base: "_KTHREAD"."StackBase",
    kernel_stack: "_KTHREAD"."KernelStack",
    apc_state: "_KTHREAD"."ApcState",
    thread_state: "_KTHREAD"."State",
    thread_process: "_KTHREAD"."Process",
    teb: "_KTHREAD"."Teb",
    apc_process: "_KAPC_STATE"."Process",
    cid: "_ETHREAD"."Cid",
    start_address: "_ETHREAD"."StartAddress",
    win32_start_address: "_ETHREAD"."Win32StartAddress",
    thread_links: "_ETHREAD"."ThreadListEntry",
    cid_thread: "_CLIENT_ID"."UniqueThread",
    pcr_idt: "_KPCR"."IdtBase",
    pcr_tss: "_KPCR"."TssBase",
    pcr_user_rsp: "_KPCR"."UserRsp",
    pcr_self: "_KPCR"."Self",
    pcr_current_prcb: "_KPCR"."CurrentPrcb",
    pcr_prcb: "_KPCR"."Prcb",
    prcb_current_thread: "_KPRCB"."CurrentThread",
    prcb_idle_thread: "_KPRCB"."IdleThread",
    prcb_number: "_KPRCB"."Number",
    prcb_rsp_base: "_KPRCB"."RspBase",
    tss_rsp0: "_KTSS64"."Rsp0",
    peb_image: "_PEB"."ImageBaseAddress",
    peb_ldr: "_PEB"."Ldr",
    peb_parameters: "_PEB"."ProcessParameters",
    peb_heap: "_PEB"."ProcessHeap",
    teb_self: "_NT_TIB"."Self",
    teb_peb: "_TEB"."ProcessEnvironmentBlock",
    image_path: "_RTL_USER_PROCESS_PARAMETERS"."ImagePathName",
    command_line: "_RTL_USER_PROCESS_PARAMETERS"."CommandLine",
    string_buffer: "_UNICODE_STRING"."Buffer",
    ldr_modules: "_PEB_LDR_DATA"."InLoadOrderModuleList",
    module_base: "_LDR_DATA_TABLE_ENTRY"."DllBase",
    module_size: "_LDR_DATA_TABLE_ENTRY"."SizeOfImage",
    module_path: "_LDR_DATA_TABLE_ENTRY"."FullDllName",
    module_name: "_LDR_DATA_TABLE_ENTRY"."BaseDllName",
    table_code: "_HANDLE_TABLE"."TableCode",
    vad_left: "_RTL_BALANCED_NODE"."Left",
    vad_right: "_RTL_BALANCED_NODE"."Right",
    vad_parent: "_RTL_BALANCED_NODE"."ParentValue",
    vad_start: "_MMVAD_SHORT"."StartingVpn",
    vad_end: "_MMVAD_SHORT"."EndingVpn",
    vad_start_high: "_MMVAD_SHORT"."StartingVpnHigh",
    vad_end_high: "_MMVAD_SHORT"."EndingVpnHigh",
    vad_flags: "_MMVAD_SHORT"."u",
    record_code: "_EXCEPTION_RECORD"."ExceptionCode",
    record_count: "_EXCEPTION_RECORD"."NumberParameters",
    record_information: "_EXCEPTION_RECORD"."ExceptionInformation",
    object_name: "_OBJECT_ATTRIBUTES"."ObjectName",
}

impl Facts {
    /// A symbol's distance from the image's base.
    pub(super) fn symbol(&self, name: &str) -> Result<u64, VmiError> {
        self.profile.symbol(name)
    }

    /// All symbols of the image.
    pub(super) fn symbols(&self) -> impl Iterator<Item = (&str, u64)> {
        self.profile.symbols()
    }
}
