//! More of one process: command line, credentials, namespaces; its threads are read in `threads`, its memory in `maps`, its
//! files in `files`. A thread of the kernel's own has the kernel's modules.

use super::{kernel::Kernel, tasks::TaskRecord};
use crate::engine::{
    addr::Va,
    arch::amd64::Amd64,
    driver::VmiRead,
    error::VmiError,
    session::VmiProber,
    snapshot::{Process, ProcessDetail, clean},
};

/// Supplementary groups that are read.
const MOST_GROUPS: u32 = 256;
/// Bytes of a command line that are read.
const MOST_ARGUMENTS: u64 = 32 << 10;
/// Bytes of a command line that its process has made a title of: the kernel reads a page of it.
const LONGEST_TITLE: u64 = 4096;

impl<Driver: VmiRead<Architecture = Amd64>> Kernel<'_, Driver> {
    /// Everything that is read of a process. Only its own memory may be missing for good reason: those pages are asked
    /// for; a pointer of the kernel's that leads nowhere cuts its part short.
    pub(super) fn detail(&self, process: &Process, prober: &VmiProber) -> Result<ProcessDetail, VmiError> {
        let gone = || VmiError::os(format!("process {} ({}) has ended", process.pid, process.name));
        let task = self.task(process.object).ok().filter(|task| task.tgid == process.pid).ok_or_else(gone)?;
        let mut detail = ProcessDetail { process: process.clone(), ..ProcessDetail::default() };
        let (command_line, is_cut) = self.command_line(&task, process, prober)?.unzip();
        detail.command_line = command_line;
        detail.truncated.extend(is_cut.filter(|is_cut| *is_cut).map(|_| "command line"));
        detail.executable = self.executable(&task);
        (detail.working_directory, detail.root_directory) = self.folders(task.object).unzip();
        detail.credentials = self.credentials(&task);
        let mut part = |found: Option<bool>, name: &'static str| match found {
            Some(true) => detail.truncated.push(name),
            Some(false) => {}
            None if self.core.cut().is_some() => detail.truncated.push(name),
            None => {
                detail.unavailable.push(format!("{name}: the kernel's type information does not tell where they are"))
            }
        };
        let threads = self.threads(&task);
        part(threads.as_ref().map(|(_, truncated)| *truncated), "threads");
        let files = self.open_files(task.object);
        part(files.as_ref().map(|(_, truncated)| *truncated), "handles");
        let mappings = if task.mm.is_null() { Some(Default::default()) } else { self.mappings(task.mm) };
        part(mappings.as_ref().map(|mappings| mappings.truncated), "regions");
        let mut mappings = mappings.unwrap_or_default();
        if task.is_kernel()
            && let Ok((modules, more)) = self.kernel_modules()
        {
            mappings.modules = modules;
            part(Some(more), "modules");
        }
        Ok(ProcessDetail {
            threads: threads.map(|(threads, _)| threads).unwrap_or_default(),
            handles: files.map(|(files, _)| files).unwrap_or_default(),
            regions: mappings.regions,
            modules: mappings.modules,
            missing: prober.page_faults().iter().map(|page| page.va).collect(),
            ..detail
        })
    }

    /// The arguments, with blanks between them, and whether there are more of them; none for a kernel thread, `None` while
    /// the page is missing. As `get_mm_cmdline` in `fs/proc/base.c` does it: a process that has overwritten the end of its
    /// arguments has given itself a title, which ends at a zero and may spread into its environment.
    fn command_line(
        &self,
        task: &TaskRecord,
        process: &Process,
        prober: &VmiProber,
    ) -> Result<Option<(String, bool)>, VmiError> {
        let (Some((start, end)), Some(root)) = (self.os.layout.arguments, process.root.filter(|_| !task.mm.is_null()))
        else {
            return Ok(Some(Default::default()));
        };
        let number = |offset: u64| self.pointer(task.mm + offset).ok();
        let (Some(start), Some(end)) = (number(start), number(end)) else { return Ok(None) };
        let length = end.checked_sub(start.0).map_or(0, |length| length.0);
        let read = |from: Va, bytes: &mut [u8]| prober.probe(|| self.core.read((from, root), bytes));
        let mut last = [0];
        if length != 0 && read(end - 1, &mut last)?.is_none() {
            return Ok(None);
        }
        if last != [0] {
            let environment = self.os.layout.environment.and_then(|(start, end)| number(start).zip(number(end)));
            let end = environment.filter(|(first, last)| *first == end && last >= first).map_or(end, |(_, last)| last);
            // The kernel reads one page of a title.
            let room = (end - start).min(LONGEST_TITLE);
            let title = prober.probe(|| self.core.read_string_bytes_limited((start, root), room as usize))?;
            return Ok(title.map(|title| {
                let is_cut = room < end - start && title.len() as u64 == room;
                (said(&title, is_cut), is_cut)
            }));
        }
        let mut bytes = vec![0; length.min(MOST_ARGUMENTS) as usize];
        let is_cut = length > MOST_ARGUMENTS;
        Ok(read(start, &mut bytes)?.map(|()| (said(&bytes, is_cut), is_cut)))
    }

    /// The file of the program that a process runs, as `/proc/PID/exe` says it.
    pub(super) fn executable(&self, task: &TaskRecord) -> Option<String> {
        let offset = self.os.layout.executable.filter(|_| !task.mm.is_null())?;
        self.file_name(self.existing(task.mm + offset)?)
    }

    fn credentials(&self, task: &TaskRecord) -> Vec<(String, String)> {
        let known = self.os.layout.credentials.iter().filter(|_| !task.cred.is_null());
        let value = |&(name, offset, bytes): &(&str, u64, usize)| {
            let value = self.core.read_uint((task.cred + offset, self.os.root), bytes).ok()?;
            Some((name.to_owned(), if bytes == 8 { format!("{value:#x}") } else { value.to_string() }))
        };
        let mut said: Vec<_> = known.filter_map(value).collect();
        let mut say = |name: &str, value: Option<String>| said.extend(value.map(|value| (name.to_owned(), value)));
        say("groups", self.groups(task));
        say("seccomp", self.seccomp(task));
        say("namespaces", self.namespaces(task));
        said
    }

    /// The supplementary groups (`struct group_info`); `None` where there are none.
    fn groups(&self, task: &TaskRecord) -> Option<String> {
        let layout = self.os.layout.groups.as_ref().filter(|_| !task.cred.is_null())?;
        let info = self.existing(task.cred + layout.info)?;
        let count = self.u32(info + layout.count).ok()?;
        let group = |index: u32| Some(self.u32(info + layout.ids + u64::from(index) * 4).ok()?.to_string());
        let mut groups: Vec<String> = (0..count.min(MOST_GROUPS)).map_while(group).collect();
        let more = (count as usize).saturating_sub(groups.len());
        groups.extend((more > 0).then(|| format!("… and {more} more")));
        (!groups.is_empty()).then(|| groups.join(" "))
    }

    /// The mode of `seccomp`, where it restricts the process (`include/uapi/linux/seccomp.h`).
    fn seccomp(&self, task: &TaskRecord) -> Option<String> {
        match self.u32(task.object + self.os.layout.seccomp?).ok()? {
            0 => None,
            1 => Some("strict".to_owned()),
            2 => Some("filter".to_owned()),
            mode => Some(format!("mode {mode}")),
        }
    }

    /// The namespaces by the numbers that `/proc/PID/ns` shows.
    fn namespaces(&self, task: &TaskRecord) -> Option<String> {
        let layout = self.os.layout.namespaces.as_ref()?;
        let proxy = self.existing(task.object + layout.proxy)?;
        let of = |&(name, at, number): &(&str, u64, u64)| {
            let namespace = self.existing(proxy + at)?;
            Some(format!("{name}:[{}]", self.u32(namespace + number).ok()?))
        };
        let all: Vec<String> = layout.kinds.iter().filter_map(of).collect();
        (!all.is_empty()).then(|| all.join(" "))
    }
}

/// Arguments as a line: blanks between them, an ellipsis where there are more.
fn said(bytes: &[u8], is_cut: bool) -> String {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let line = clean(&String::from_utf8_lossy(bytes).replace('\0', " "), bytes.len());
    if is_cut { line + "…" } else { line }
}
