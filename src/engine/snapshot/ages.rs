//! How old lists are that could not be read again.

use serde::Serialize;

/// How old each list is, in nanoseconds; `None` while it is as new as it should be. A guest that stands does not change, and
/// neither do its lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ages {
    /// The processes.
    pub processes: Option<u64>,
    /// The vCPUs.
    pub vcpus: Option<u64>,
    /// The monitored addresses.
    pub page_tables: Option<u64>,
}
