//! What can go wrong when a machine is watched from outside, each error with the words for the user.

use std::{fmt, io};

use super::addr::{AddressContext, Gfn, Pa, Va, VcpuId, View};

/// The pages that a read or a translation needed and did not find: at least one, in order of discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageFaults {
    first: AddressContext,
    rest: Vec<AddressContext>,
}

impl PageFaults {
    /// One missing page, named by the address that was wanted.
    pub fn one(ctx: impl Into<AddressContext>) -> Self {
        Self { first: ctx.into(), rest: Vec::new() }
    }

    /// All missing pages of an operation; `None` when there were none.
    pub fn from_all(faults: impl IntoIterator<Item = AddressContext>) -> Option<Self> {
        let mut faults = faults.into_iter();
        Some(Self { first: faults.next()?, rest: faults.collect() })
    }

    /// Adds what another part of the same operation missed.
    pub fn extend(&mut self, other: Self) {
        self.rest.push(other.first);
        self.rest.extend(other.rest);
    }

    /// The page that was missed first.
    pub fn first(&self) -> AddressContext {
        self.first
    }

    /// How many pages are missing; never 0.
    #[expect(clippy::len_without_is_empty, reason = "there is always at least one")]
    pub fn len(&self) -> usize {
        1 + self.rest.len()
    }

    /// All missing pages in order of discovery.
    pub fn iter(&self) -> impl Iterator<Item = AddressContext> {
        std::iter::once(self.first).chain(self.rest.iter().copied())
    }
}

impl fmt::Display for PageFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        match self.rest.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What can go wrong in the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmiError {
    /// Pages are not mapped (or an address is not canonical): ask the guest for them, or leave them out.
    #[error("no page is mapped at {0}")]
    Translation(PageFaults),
    /// Guest-physical memory that the machine does not have, or that is not RAM.
    #[error("guest-physical address {0} is not in the guest's memory")]
    OutOfBounds(Pa),
    /// The view was never made or is gone.
    #[error("view {0} does not exist")]
    ViewNotFound(View),
    /// The vCPU does not exist.
    #[error("vCPU {0} does not exist")]
    VcpuNotFound(VcpuId),
    /// A frame that should be free is in use, or the other way round.
    #[error("frame {0} cannot be {1}")]
    Frame(Gfn, &'static str),
    /// This driver, or this guest, cannot do it.
    #[error("{what} is not supported here")]
    Unsupported {
        /// What was wanted.
        what: &'static str,
    },
    /// The driver was opened read-only and the operation would change the guest.
    #[error("{what} would change the guest, and this session is read-only")]
    ReadOnly {
        /// What was wanted.
        what: &'static str,
    },
    /// Nothing happened in the time allowed.
    #[error("nothing happened in the time allowed")]
    Timeout,
    /// A wait was ended by a signal.
    #[error("interrupted by a signal")]
    Interrupted,
    /// The guest, the program that runs it or the way to it is gone: a whole sentence that says which.
    #[error("{0}")]
    Lost(String),
    /// The system said no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A driver failed at something.
    #[error("{doing}: {source}")]
    Driver {
        /// What was being done, on what.
        doing: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// All debug registers are in use, and only one of them would do.
    #[error(
        "all {} debug registers of the guest's processor are in use (for {}), and an INT3 in a process's memory could end \
         up in another process: turn one of those off",
        taken.len(),
        taken.iter().map(Va::to_string).collect::<Vec<_>>().join(", ")
    )]
    NoDebugRegister {
        /// What they are used for.
        taken: Vec<Va>,
    },
    /// What was asked makes no sense for the books as they are.
    #[error("{0}")]
    Invalid(String),
    /// The guest's operating system is not as expected.
    #[error("{0}")]
    Os(String),
    /// A look at the guest's structures has used up its budget, or somebody waits: see `session::Limits`.
    #[error(
        "the guest's structures were not read to their end: that takes more reads, time or room than they are worth"
    )]
    CutShort,
}

impl VmiError {
    /// One missing page.
    pub fn page_fault(ctx: impl Into<AddressContext>) -> Self {
        Self::Translation(PageFaults::one(ctx))
    }

    /// A driver's failure: what was being done, and why it failed.
    pub fn driver(doing: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Driver { doing: doing.into(), source: source.into() }
    }

    /// An operating-system layer's failure.
    pub fn os(text: impl Into<String>) -> Self {
        Self::Os(text.into())
    }

    /// Whether it is only that pages are missing.
    pub fn is_page_fault(&self) -> bool {
        matches!(self, Self::Translation(_))
    }
}
