//! Who a process acts as: its `_TOKEN`, with the ids of user and groups behind it.

use super::{
    Kernel,
    namespace::Place,
    objects::{PROCESS_AT, TOKEN_AT},
    process::Process,
};
use crate::engine::driver::sim::memory::Memory;

/// Distance of the array of groups and of their ids from the token.
const GROUPS: u64 = 0x4a0;
const IDS: u64 = 0x510;
/// Bytes from one id to the next: five sub-authorities and a bit of room.
const ID_BYTES: u64 = 0x20;

/// SE_GROUP_MANDATORY, ENABLED_BY_DEFAULT, ENABLED; SE_GROUP_USE_FOR_DENY_ONLY; SE_GROUP_INTEGRITY and its _ENABLED.
const ENABLED: u32 = 7;
const DENY_ONLY: u32 = 0x10;
const INTEGRITY: u32 = 0x60;
/// TOKEN_HAS_TRAVERSE_PRIVILEGE, TOKEN_IS_FILTERED, TOKEN_NOT_LOW in `ntifs.h`.
const TRAVERSE: u32 = 1;
const FILTERED: u32 = 0x800;
const NOT_LOW: u32 = 0x2000;

/// Privileges by the bit of their number (`wdm.h`).
const fn bits(numbers: &[u8]) -> u64 {
    let (mut all, mut i) = (0, 0);
    while i < numbers.len() {
        all |= 1 << numbers[i];
        i += 1;
    }
    all
}

/// An id: its authority and what follows.
type Sid = (u8, &'static [u32]);

/// What a process may do.
#[derive(Clone, Copy)]
struct Account {
    user: Sid,
    groups: &'static [(Sid, u32)],
    /// The level of `S-1-16-…`.
    integrity: u32,
    session: u32,
    present: u64,
    enabled: u64,
    flags: u32,
}

const ADMINISTRATORS: Sid = (5, &[32, 544]);
const USERS: Sid = (5, &[32, 545]);
const EVERYONE: Sid = (1, &[0]);
const AUTHENTICATED: Sid = (5, &[11]);
const SERVICE: Sid = (5, &[6]);
const PERSON: Sid = (5, &[21, 3_623_811_015, 3_361_044_348, 30_300_820, 1001]);

/// SeChangeNotifyPrivilege, SeImpersonatePrivilege, SeCreateGlobalPrivilege.
const EVERYBODY: u64 = bits(&[23, 29, 30]);
const ADMINISTRATOR: u64 = bits(&[5, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 22, 24, 25, 28, 33, 34, 35]);
const SYSTEM: u64 = bits(&[2, 3, 4, 7, 16, 20, 21, 31, 32, 36]);

fn account(process: &Process) -> Account {
    let session = match process.name.as_str() {
        "winlogon.exe" | "dwm.exe" | "fontdrvhost.ex" | "fontdrvhost.exe" => 1,
        _ => 0,
    };
    let system = Account {
        user: (5, &[18]),
        groups: &[(ADMINISTRATORS, ENABLED), (EVERYONE, ENABLED), (AUTHENTICATED, ENABLED)],
        integrity: 0x4000,
        session,
        present: SYSTEM | ADMINISTRATOR | EVERYBODY,
        enabled: SYSTEM | EVERYBODY,
        flags: TRAVERSE | NOT_LOW,
    };
    let service = |user| Account {
        user,
        groups: &[(EVERYONE, ENABLED), (USERS, ENABLED), (SERVICE, ENABLED)],
        present: bits(&[3, 5, 21]) | EVERYBODY,
        enabled: EVERYBODY,
        ..system
    };
    let person = Account {
        user: PERSON,
        groups: &[(EVERYONE, ENABLED), (ADMINISTRATORS, DENY_ONLY), (USERS, ENABLED)],
        integrity: 0x2000,
        session: 1,
        present: bits(&[19, 23, 25, 33, 34]),
        enabled: bits(&[23]),
        flags: TRAVERSE | NOT_LOW | FILTERED,
    };
    match process.name.as_str() {
        "svchost.exe" => match process.pid / 4 % 3 {
            0 => system,
            1 => service((5, &[19])),
            _ => service((5, &[20])),
        },
        "cmd.exe" | "game_guard.exe" => Account {
            groups: &[(EVERYONE, ENABLED), (ADMINISTRATORS, ENABLED), (USERS, ENABLED)],
            integrity: 0x3000,
            present: ADMINISTRATOR | EVERYBODY,
            enabled: bits(&[20]) | EVERYBODY,
            flags: TRAVERSE | NOT_LOW,
            ..person
        },
        "dwm.exe" => Account { user: (5, &[90, 0, 1]), ..system },
        "explorer.exe" | "sihost.exe" | "taskhostw.exe" | "SearchApp.exe" | "RuntimeBroker." | "StartMenuExper"
        | "OneDrive.exe" | "notepad.exe" | "chrome.exe" => person,
        _ => system,
    }
}

impl Kernel {
    /// Writes the token of a process and the reference to it.
    pub(super) fn write_token(&self, memory: &mut Memory, process: &Process) {
        let f = &self.facts;
        let va = process.object - PROCESS_AT + TOKEN_AT;
        let pa = self.objects.physical(va);
        let account = account(process);
        self.names.head(memory, f, Place { va, pa, kind: "Token" }, 0);
        // An _EX_FAST_REF.
        memory.write_u64(self.objects.physical(process.object) + f.token, va | 7);
        memory.write_u64(pa + f.token_privileges + f.privileges_present, account.present);
        memory.write_u64(pa + f.token_privileges + f.privileges_enabled, account.enabled);
        memory.write_u64(pa + f.token_privileges + f.privileges_default, account.enabled);
        let mut word = |at: u64, value: u32| {
            let _ = memory.write(pa + at, &value.to_le_bytes());
        };
        // TokenPrimary.
        word(f.token_type, 1);
        word(f.token_session, account.session);
        word(f.token_flags, account.flags);
        word(f.token_group_count, account.groups.len() as u32 + 2);
        word(f.token_integrity, account.groups.len() as u32 + 1);
        memory.write_u64(pa + f.token_groups, va + GROUPS);
        let level = [account.integrity];
        let ids = [(account.user, 0)]
            .into_iter()
            .chain(account.groups.iter().copied())
            .map(|((authority, parts), attributes)| (authority, parts, attributes))
            .chain([(16, &level[..], INTEGRITY)]);
        for (index, (authority, parts, attributes)) in (0..).zip(ids) {
            let (entry, id) = (pa + GROUPS + index * 0x10, IDS + index * ID_BYTES);
            memory.write_u64(entry + f.group_sid, va + id);
            let _ = memory.write(entry + f.group_attributes, &attributes.to_le_bytes());
            let _ = memory.write(pa + id + f.sid_revision, &[1]);
            let _ = memory.write(pa + id + f.sid_count, &[parts.len() as u8]);
            // The authority is the last of six bytes.
            let _ = memory.write(pa + id + f.sid_authority + 5, &[authority]);
            for (part, at) in parts.iter().zip(0..) {
                let _ = memory.write(pa + id + f.sid_parts + at * 4, &part.to_le_bytes());
            }
        }
    }
}
