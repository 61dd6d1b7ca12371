//! Reads that may miss pages: a prober remembers every page that was not there, so that one round of page faults can
//! bring them all in.

use std::cell::RefCell;

use hashbrown::DefaultHashBuilder;
use indexmap::IndexSet;

use crate::engine::{
    addr::{AddressContext, Va},
    error::{PageFaults, VmiError},
};

/// Collects the missing pages of a number of reads. Addresses are kept by page (4 KiB), once each, in order.
#[derive(Debug)]
pub struct VmiProber {
    suppressed: Pages,
    missing: RefCell<Pages>,
}

/// Pages in order; hashed faster than by default, with a seed all the same.
type Pages = IndexSet<AddressContext, DefaultHashBuilder>;

/// Room for missing pages that is made with the first one.
const FIRST_ROOM: usize = 32;

/// The page that a missing address lies in.
fn page_of(ctx: AddressContext) -> AddressContext {
    AddressContext { va: Va(ctx.va.0 & !0xfff), ..ctx }
}

impl VmiProber {
    /// A prober that does not ask for the given pages: they have been given up.
    pub fn new(suppressed: &IndexSet<AddressContext>) -> Self {
        Self { suppressed: suppressed.iter().copied().map(page_of).collect(), missing: RefCell::default() }
    }

    /// Runs reads; missing pages are remembered and make the answer `None`, as does the end of a look's budget.
    ///
    /// # Errors
    /// Any error but missing pages.
    pub fn probe<T>(&self, reads: impl FnOnce() -> Result<T, VmiError>) -> Result<Option<T>, VmiError> {
        self.check_result(reads())
    }

    /// The same for a result that is there already.
    ///
    /// # Errors
    /// Any error but missing pages.
    pub fn check_result<T>(&self, result: Result<T, VmiError>) -> Result<Option<T>, VmiError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(VmiError::Translation(faults)) => {
                let mut missing = self.missing.borrow_mut();
                if missing.is_empty() {
                    missing.reserve(FIRST_ROOM);
                }
                for page in faults.iter().map(page_of) {
                    if !self.suppressed.contains(&page) {
                        missing.insert(page);
                    }
                }
                Ok(None)
            }
            Err(VmiError::CutShort) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The pages that were missing, in order of discovery, without the suppressed ones.
    pub fn page_faults(&self) -> IndexSet<AddressContext> {
        self.missing.borrow().iter().copied().collect()
    }

    /// Nothing if no page was missing.
    ///
    /// # Errors
    /// [`VmiError::Translation`] with all of them.
    pub fn error_for_page_faults(&self) -> Result<(), VmiError> {
        match PageFaults::from_all(self.missing.borrow().iter().copied()) {
            Some(faults) => Err(VmiError::Translation(faults)),
            None => Ok(()),
        }
    }
}

/// `vmi_probe!(prober, expression)`: the expression as the body of a closure, so that a `?` in it stays inside.
#[macro_export]
macro_rules! vmi_probe {
    ($prober:expr, $($body:tt)*) => {
        $prober.probe(|| { $($body)* })
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::addr::Pa;

    const ROOT: Pa = Pa(0x1000);

    fn missing(addresses: &[u64]) -> VmiError {
        let all = addresses.iter().map(|&va| AddressContext::new(va, ROOT));
        PageFaults::from_all(all).map_or(VmiError::Timeout, VmiError::Translation)
    }

    #[test]
    fn remembers_every_page_once_and_in_order() {
        let prober = VmiProber::new(&IndexSet::new());
        assert_eq!(prober.check_result::<()>(Err(missing(&[0x5008, 0x3000]))).ok(), Some(None));
        assert_eq!(prober.check_result::<()>(Err(missing(&[0x3ff8, 0x7000]))).ok(), Some(None));
        let pages: Vec<u64> = prober.page_faults().iter().map(|ctx| ctx.va.0).collect();
        assert_eq!(pages, [0x5000, 0x3000, 0x7000]);
        let Err(VmiError::Translation(all)) = prober.error_for_page_faults() else { panic!("pages were missing") };
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn a_suppressed_page_is_not_asked_for() {
        let prober = VmiProber::new(&IndexSet::from([AddressContext::new(0x5000u64, ROOT)]));
        assert_eq!(prober.check_result::<()>(Err(missing(&[0x5010]))).ok(), Some(None));
        assert!(prober.error_for_page_faults().is_ok());
    }

    #[test]
    fn other_errors_pass_and_question_marks_stay_inside() {
        let prober = VmiProber::new(&IndexSet::new());
        assert!(matches!(prober.check_result::<()>(Err(VmiError::Timeout)), Err(VmiError::Timeout)));
        let inside = vmi_probe!(prober, {
            let value: u64 = Err(missing(&[0x9000]))?;
            Ok(value)
        });
        assert_eq!(inside.ok(), Some(None));
        assert_eq!(prober.page_faults().len(), 1);
    }
}
