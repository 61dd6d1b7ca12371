//! A row of the monitored addresses, and the walk to what it maps.

use serde::{Serialize, Serializer};

use super::{MissingPage, Pa, TableId, Va, View};

/// One monitored address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Its row.
    pub id: TableId,
    /// The virtual address.
    pub address: Va,
    /// `symbol+offset`, empty where the address has no name.
    pub symbol: String,
    /// Its address space.
    pub root: Pa,
    /// The process it belongs to, `None` for the kernel.
    pub pid: Option<u32>,
    /// The view.
    pub view: View,
    /// The user's word for it.
    pub tag: String,
    /// Whether the address is mapped now.
    pub paged_in: bool,
    /// What it maps to.
    pub pa: Option<Pa>,
    /// Size of the page that maps it, in bytes; 0 while not mapped.
    pub page_bytes: u64,
    /// Page-ins and page-outs seen.
    pub changes: u64,
    /// When the last one was seen, on the snapshot's clock.
    pub last_change_ns: Option<u64>,
    /// Why it is not followed any more: its process is gone. The row stays until it is deleted.
    pub ended: Option<String>,
    /// The walk as it is now, top level first.
    pub walk: Vec<WalkEntry>,
    /// What there is of the page while it is not mapped; read for the open popup only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<MissingPage>,
}

/// One level of a page walk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WalkEntry {
    /// "PML5", "PML4", "PDPT", "PD" or "PT".
    pub level: &'static str,
    /// Physical address of the entry.
    pub entry_pa: Pa,
    /// Its value.
    #[serde(serialize_with = "hex")]
    pub entry: u64,
    /// The value before its last change seen, for marking changed bits.
    #[serde(skip)]
    pub previous: Option<u64>,
    /// Decoded: "present", "writable", "user", "accessed", "dirty", "large", "global", "nx", "pat" …
    pub flags: Vec<&'static str>,
}

fn hex<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#x}"))
}
