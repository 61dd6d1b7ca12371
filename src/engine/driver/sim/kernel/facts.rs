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
    token: "_EPROCESS"."Token",
    object_table: "_EPROCESS"."ObjectTable",
    table_next: "_HANDLE_TABLE"."NextHandleNeedingPool",
    table_code: "_HANDLE_TABLE"."TableCode",
    table_process: "_HANDLE_TABLE"."QuotaProcess",
    table_pid: "_HANDLE_TABLE"."UniqueProcessId",
    header_pointers: "_OBJECT_HEADER"."PointerCount",
    header_handles: "_OBJECT_HEADER"."HandleCount",
    header_type: "_OBJECT_HEADER"."TypeIndex",
    header_mask: "_OBJECT_HEADER"."InfoMask",
    header_body: "_OBJECT_HEADER"."Body",
    creator_process: "_OBJECT_HEADER_CREATOR_INFO"."CreatorUniqueProcess",
    name_directory: "_OBJECT_HEADER_NAME_INFO"."Directory",
    name_name: "_OBJECT_HEADER_NAME_INFO"."Name",
    type_name: "_OBJECT_TYPE"."Name",
    type_index: "_OBJECT_TYPE"."Index",
    file_type: "_FILE_OBJECT"."Type",
    file_size: "_FILE_OBJECT"."Size",
    file_device: "_FILE_OBJECT"."DeviceObject",
    file_name: "_FILE_OBJECT"."FileName",
    device_type: "_DEVICE_OBJECT"."Type",
    device_size: "_DEVICE_OBJECT"."Size",
    key_type: "_CM_KEY_BODY"."Type",
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
    token_type: "_TOKEN"."TokenType",
    token_flags: "_TOKEN"."TokenFlags",
    token_integrity: "_TOKEN"."IntegrityLevelIndex",
    privileges_present: "_SEP_TOKEN_PRIVILEGES"."Present",
    privileges_enabled: "_SEP_TOKEN_PRIVILEGES"."Enabled",
    privileges_default: "_SEP_TOKEN_PRIVILEGES"."EnabledByDefault",
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
    wow64_machine: "_EWOW64PROCESS"."Machine",
    peb32_ldr: "_PEB32"."Ldr",
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

    /// Size of a type in bytes.
    pub(super) fn size(&self, of: &str) -> Result<u64, VmiError> {
        self.profile.size(of)
    }

    /// All symbols of the image.
    pub(super) fn symbols(&self) -> impl Iterator<Item = (&str, u64)> {
        self.profile.symbols()
    }
}
