//! Who a process acts as: its access token.

use super::memory::Memory;
use crate::engine::{addr::Va, arch::amd64::Amd64, driver::VmiRead, error::VmiError};

/// Groups that are read at most.
const MOST_GROUPS: u32 = 128;
/// Parts of an id at most (`SID_MAX_SUB_AUTHORITIES`).
const MOST_PARTS: u8 = 15;
/// SE_GROUP_ENABLED, SE_GROUP_INTEGRITY (`winnt.h`).
const ENABLED: u32 = 4;
const INTEGRITY: u32 = 0x20;
/// TOKEN_IS_FILTERED (`ntifs.h`): what User Account Control leaves of an administrator's token.
const FILTERED: u32 = 0x800;
/// SECURITY_MANDATORY_HIGH_RID.
const HIGH: u32 = 0x3000;
/// The lower bits of an `_EX_FAST_REF` count references.
const FAST_REFERENCES: u64 = 0xf;

/// Privileges by their number, the first one being 2 (`wdm.h`).
const PRIVILEGES: [&str; 35] = [
    "SeCreateToken",
    "SeAssignPrimaryToken",
    "SeLockMemory",
    "SeIncreaseQuota",
    "SeMachineAccount",
    "SeTcb",
    "SeSecurity",
    "SeTakeOwnership",
    "SeLoadDriver",
    "SeSystemProfile",
    "SeSystemtime",
    "SeProfileSingleProcess",
    "SeIncreaseBasePriority",
    "SeCreatePagefile",
    "SeCreatePermanent",
    "SeBackup",
    "SeRestore",
    "SeShutdown",
    "SeDebug",
    "SeAudit",
    "SeSystemEnvironment",
    "SeChangeNotify",
    "SeRemoteShutdown",
    "SeUndock",
    "SeSyncAgent",
    "SeEnableDelegation",
    "SeManageVolume",
    "SeImpersonate",
    "SeCreateGlobal",
    "SeTrustedCredManAccess",
    "SeRelabel",
    "SeIncreaseWorkingSet",
    "SeTimeZone",
    "SeCreateSymbolicLink",
    "SeDelegateSessionUserImpersonate",
];

/// Ids that everybody knows by a name.
const KNOWN: [(&str, &str); 13] = [
    ("S-1-1-0", "Everyone"),
    ("S-1-5-4", "INTERACTIVE"),
    ("S-1-5-6", "SERVICE"),
    ("S-1-5-11", "Authenticated Users"),
    ("S-1-5-18", "SYSTEM"),
    ("S-1-5-19", "LOCAL SERVICE"),
    ("S-1-5-20", "NETWORK SERVICE"),
    ("S-1-5-32-544", "Administrators"),
    ("S-1-5-32-545", "Users"),
    ("S-1-5-32-546", "Guests"),
    ("S-1-5-32-551", "Backup Operators"),
    ("S-1-5-32-555", "Remote Desktop Users"),
    ("S-1-2-0", "LOCAL"),
];

/// The names of mandatory levels, from the lowest on.
const LEVELS: [(u32, &str); 6] =
    [(0, "untrusted"), (0x1000, "low"), (0x2000, "medium"), (HIGH, "high"), (0x4000, "system"), (0x5000, "protected")];

/// An id and its last part.
struct Sid {
    text: String,
    last: u32,
}

impl Sid {
    fn label(&self) -> String {
        match KNOWN.iter().find(|(text, _)| *text == self.text) {
            Some((text, name)) => format!("{text} {name}"),
            None => self.text.clone(),
        }
    }
}

impl<Driver: VmiRead<Architecture = Amd64>> Memory<'_, Driver> {
    /// What the token of a process says, by name; empty where it has none. The flag tells that it has more groups than
    /// are shown.
    pub(super) fn credentials(&self, process: Va) -> Result<(Vec<(String, String)>, bool), VmiError> {
        let o = &self.os.offsets;
        let token = Va(self.u64(process + o.token)? & !FAST_REFERENCES);
        if token.is_null() {
            return Ok((Vec::new(), false));
        }
        let count = self.u32(token + o.token_group_count)?;
        let flags = self.u32(token + o.token_flags)?;
        let level_at = self.u32(token + o.token_integrity)?;
        let mut user = String::new();
        let mut groups = Vec::new();
        let mut level = None;
        for index in 0..count.min(MOST_GROUPS) {
            let (sid, attributes) = self.group(token, index)?;
            if index == 0 {
                user = sid.label();
            } else if attributes & INTEGRITY != 0 || index == level_at {
                level = level.filter(|_| index != level_at).or(Some(sid.last));
            } else {
                let denied = if attributes & ENABLED == 0 { " (deny only)" } else { "" };
                groups.push(format!("{}{denied}", sid.label()));
            }
        }
        let elevation = match level {
            _ if flags & FILTERED != 0 => "limited",
            Some(level) if level >= HIGH => "full",
            _ => "default",
        };
        let present = self.u64(token + o.token_privileges + o.privileges_present)?;
        let enabled = self.u64(token + o.token_privileges + o.privileges_enabled)?;
        let session = self.u32(token + o.token_session)?;
        let mut said = vec![
            ("user", user),
            ("session", session.to_string()),
            ("integrity", level.map_or_else(|| "unknown".to_owned(), level_name)),
            ("elevation", elevation.to_owned()),
            ("groups", groups.join(", ")),
            ("privileges", privileges(enabled & present)),
            ("disabled", privileges(present & !enabled)),
        ];
        said.retain(|(_, value)| !value.is_empty());
        let said = said.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Ok((said, count > MOST_GROUPS))
    }

    /// The user of a token.
    pub(super) fn user(&self, token: Va) -> Result<String, VmiError> {
        Ok(format!("of {}", self.group(token, 0)?.0.label()))
    }

    fn group(&self, token: Va, index: u32) -> Result<(Sid, u32), VmiError> {
        let o = &self.os.offsets;
        let entry = self.pointer(token + o.token_groups)? + u64::from(index) * o.group_bytes;
        let attributes = self.u32(entry + o.group_attributes)?;
        let sid = self.pointer(entry + o.group_sid)?;
        let mut authority = [0; 6];
        self.read(sid + o.sid_authority, &mut authority)?;
        // Six bytes, the most significant first.
        let authority = authority.iter().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        let mut text = format!("S-{}-{authority}", self.u8(sid + o.sid_revision)?);
        let mut last = 0;
        for part in 0..self.u8(sid + o.sid_count)?.min(MOST_PARTS) {
            last = self.u32(sid + o.sid_parts + u64::from(part) * 4)?;
            text = format!("{text}-{last}");
        }
        Ok((Sid { text, last }, attributes))
    }
}

fn level_name(level: u32) -> String {
    let name = LEVELS.iter().rev().find(|&&(from, _)| level >= from).map_or("untrusted", |&(_, name)| name);
    name.to_owned()
}

fn privileges(set: u64) -> String {
    let named = PRIVILEGES.iter().zip(2..).filter(|&(_, bit)| set >> bit & 1 != 0);
    let names: Vec<&str> = named.map(|(name, _)| *name).collect();
    names.join(", ")
}
