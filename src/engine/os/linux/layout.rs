//! Where the members of the kernel's structures lie: from its type information, or from a file of facts.

use std::collections::HashMap;

use serde::Deserialize;

use super::btf::Btf;
use crate::engine::error::VmiError;

/// Offsets in bytes by structure and member path: the kernel's own type information, overruled by a profile.
pub(super) struct Facts<'a> {
    btf: Option<Btf<'a>>,
    profile: Profile,
}

type Profile = HashMap<String, HashMap<String, Number>>;

/// A number as JSON has it, or as a string with `0x`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "RawNumber")]
struct Number(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum RawNumber {
    Plain(u64),
    Text(String),
}

impl TryFrom<RawNumber> for Number {
    type Error = String;

    fn try_from(raw: RawNumber) -> Result<Self, String> {
        match raw {
            RawNumber::Plain(value) => Ok(Self(value)),
            RawNumber::Text(text) => {
                let digits = text.strip_prefix("0x").ok_or_else(|| format!("\"{text}\" is not a number like 0x1f"))?;
                u64::from_str_radix(digits, 16).map(Self).map_err(|_| format!("\"{text}\" is not a number like 0x1f"))
            }
        }
    }
}

impl<'a> Facts<'a> {
    /// Facts from type information, from the text of a profile, or from both.
    pub(super) fn new(btf: Option<Btf<'a>>, profile: Option<&str>) -> Result<Self, VmiError> {
        let profile = match profile {
            Some(text) => serde_json::from_str(text).map_err(|error| {
                VmiError::os(format!(
                    "the profile is not of the form {{\"task_struct\": {{\"tasks\": \"0x4a8\"}}}}: {error}"
                ))
            })?,
            None => Profile::new(),
        };
        Ok(Self { btf, profile })
    }

    /// The offset of a member, if it exists.
    fn at(&self, structure: &str, path: &str) -> Option<u64> {
        let known = self.profile.get(structure).and_then(|members| members.get(path)).map(|number| number.0);
        known.or_else(|| self.btf.as_ref()?.member(structure, path).map(|member| member.offset))
    }

    /// The offset of the first of several members that exists: names change from kernel to kernel.
    fn any(&self, structure: &str, paths: &[&str]) -> Option<u64> {
        paths.iter().find_map(|path| self.at(structure, path))
    }

    fn need(&self, structure: &str, path: &str) -> Result<u64, VmiError> {
        self.at(structure, path).ok_or_else(|| {
            let source = if self.btf.is_some() { "the kernel's type information" } else { "the profile" };
            VmiError::os(format!(
                "{source} does not say where {structure}.{path} is: give its offset with --profile FILE (docs/linux.md)"
            ))
        })
    }
}

/// What a walk over processes reads of a `task_struct` (`include/linux/sched.h`).
pub(super) struct Task {
    pub(super) tasks: u64,
    pub(super) pid: u64,
    pub(super) tgid: u64,
    pub(super) comm: u64,
    pub(super) mm: u64,
    pub(super) real_parent: u64,
    pub(super) flags: u64,
    pub(super) exit_state: Option<u64>,
    pub(super) signal: Option<u64>,
    pub(super) group_leader: Option<u64>,
    pub(super) start: Option<u64>,
    pub(super) cred: Option<u64>,
    pub(super) state: Option<u64>,
    /// A kernel thread's `struct kthread`.
    pub(super) kthread: Option<u64>,
}

impl Task {
    /// Length of `comm` (`TASK_COMM_LEN`).
    pub(super) const COMM_BYTES: u64 = 16;
    /// What is read of a task at most; real ones span 3 KiB.
    const MOST_SPAN: u64 = 64 << 10;

    fn new(facts: &Facts<'_>) -> Result<Self, VmiError> {
        let need = |path| facts.need("task_struct", path);
        let task = Self {
            tasks: need("tasks")?,
            pid: need("pid")?,
            tgid: need("tgid")?,
            comm: need("comm")?,
            mm: need("mm")?,
            real_parent: need("real_parent")?,
            flags: need("flags")?,
            exit_state: facts.at("task_struct", "exit_state"),
            signal: facts.at("task_struct", "signal"),
            group_leader: facts.at("task_struct", "group_leader"),
            start: facts.any("task_struct", &["start_boottime", "real_start_time"]),
            cred: facts.at("task_struct", "real_cred"),
            state: facts.any("task_struct", &["__state", "state"]),
            kthread: facts.at("task_struct", "worker_private"),
        };
        let (from, to) = task.span();
        if to.saturating_sub(from) > Self::MOST_SPAN {
            return Err(VmiError::os(format!(
                "the offsets in task_struct lie {:#x} bytes apart: no kernel has such",
                to - from
            )));
        }
        Ok(task)
    }

    /// The bytes of a task that hold all of these members: from, to.
    pub(super) fn span(&self) -> (u64, u64) {
        let always = [self.tasks, self.pid, self.tgid, self.mm, self.real_parent, self.flags, self.comm];
        let sometimes =
            [self.exit_state, self.signal, self.group_leader, self.start, self.cred, self.state, self.kthread];
        let all = || always.into_iter().chain(sometimes.into_iter().flatten());
        let from = all().min().unwrap_or(0);
        (from, all().max().unwrap_or(0).saturating_add(Self::COMM_BYTES))
    }
}

/// Everything that is known of the kernel's structures; what a kernel does not have is `None`.
pub(super) struct Layout {
    pub(super) task: Task,
    /// `mm_struct.pgd`.
    pub(super) mm_pgd: u64,
    /// `signal_struct.nr_threads`.
    pub(super) signal_threads: Option<u64>,
    /// `cred.uid`.
    pub(super) cred_uid: Option<u64>,
    /// `kthread.full_name`: names longer than `comm`.
    pub(super) kthread_name: Option<u64>,
    /// `pcpu_hot.current_task`, from 6.2 to 6.14.
    pub(super) hot_current: Option<u64>,
}

impl Layout {
    pub(super) fn new(facts: &Facts<'_>) -> Result<Self, VmiError> {
        Ok(Self {
            task: Task::new(facts)?,
            mm_pgd: facts.need("mm_struct", "pgd")?,
            signal_threads: facts.at("signal_struct", "nr_threads"),
            cred_uid: facts.at("cred", "uid"),
            kthread_name: facts.at("kthread", "full_name"),
            hot_current: facts.at("pcpu_hot", "current_task"),
        })
    }
}
