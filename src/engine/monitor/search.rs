//! Searching memory for bytes, in slices between events, so that neither the guest's events nor commands wait for it.
//!
//! What the page tables do not map is stepped over by whole entries of the level at which the walk ends; how many pages
//! are looked at is bounded, because page tables that point at themselves map the same frames again and again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use memchr::memmem::Finder;

use super::{Monitor, Platform};
use crate::engine::{
    addr::{Pa, Va},
    arch::{
        Architecture,
        amd64::{Amd64, TranslationFault},
    },
    command::{Answer, Done, Pattern},
    os::VmiOs,
    session::VmiSession,
    snapshot::SearchProgress,
};

/// How many places a search reports.
const FOUND: usize = 1000;
/// How many pages, mapped or not, a search looks at.
const LOOKED: u64 = 1 << 24;
/// How long a search works before events and commands have their turn.
const SLICE: Duration = Duration::from_millis(3);
/// The longest pattern in bytes, and how many there may be.
const LONGEST: usize = 4096;
const PATTERNS: usize = 8;
const PAGE: u64 = 4096;

/// A pattern with its longest part that has no wildcard.
#[derive(Debug)]
struct Needle {
    pattern: Pattern,
    finder: Finder<'static>,
    /// Where in the pattern that part begins.
    lead: usize,
}

impl Needle {
    fn new(pattern: Pattern) -> Option<Self> {
        let (mut best, mut start) = (0..0, 0);
        for end in 0..=pattern.len() {
            if pattern.get(end).is_none_or(Option::is_none) {
                if end - start > best.len() {
                    best = start..end;
                }
                start = end + 1;
            }
        }
        let literal: Vec<u8> = pattern.get(best.clone())?.iter().copied().flatten().collect();
        (!literal.is_empty()).then(|| Self { finder: Finder::new(&literal).into_owned(), lead: best.start, pattern })
    }

    /// Where the pattern begins in a stretch of memory, for each time that it ends behind `seen` bytes.
    fn places<'a>(&'a self, bytes: &'a [u8], seen: usize) -> impl Iterator<Item = usize> + 'a {
        let mut from = 0;
        std::iter::from_fn(move || {
            loop {
                let at = from + self.finder.find(bytes.get(from..)?)?;
                from = at + 1;
                let Some(start) = at.checked_sub(self.lead) else { continue };
                let Some(candidate) = bytes.get(start..start + self.pattern.len()) else { continue };
                let fits = |(byte, wanted): (&u8, &Option<u8>)| wanted.is_none_or(|wanted| wanted == *byte);
                if start + self.pattern.len() > seen && candidate.iter().zip(&self.pattern).all(fits) {
                    return Some(start);
                }
            }
        })
    }
}

/// A search under way.
#[derive(Debug)]
pub(super) struct Search {
    root: Pa,
    needles: Vec<Needle>,
    /// What of the pages before could be the beginning of a match.
    window: Vec<u8>,
    keep: usize,
    from: Va,
    /// The next page; `None` behind the last one.
    at: Option<Va>,
    last: Va,
    looked: u64,
    read: u64,
    found: Vec<Va>,
    answer: Sender<Answer>,
}

impl Search {
    /// The address space that is searched.
    pub(super) fn root(&self) -> Pa {
        self.root
    }

    fn progress(&self) -> SearchProgress {
        SearchProgress { at: self.at.unwrap_or(self.last), read_bytes: self.read, found: self.found.len() as u64 }
    }

    /// Looks at one page, or steps over what is not mapped; answers whether the search goes on.
    fn page<D: Platform, Os: VmiOs<D>>(&mut self, vmi: VmiSession<'_, D, Os>) -> bool {
        let Some(at) = self.at.filter(|at| *at <= self.last && self.looked < LOOKED) else { return false };
        self.looked += 1;
        let mut page = [0; PAGE as usize];
        if vmi.read((at, self.root), &mut page).is_err() {
            self.window.clear();
            let span = match Amd64::translation(vmi.core(), at, self.root).fault() {
                Some(TranslationFault::NotPresent(level) | TranslationFault::Reserved(level)) => level.page_bytes(),
                Some(TranslationFault::NonCanonical) => return false,
                _ => PAGE,
            };
            self.at = (at.0 | (span - 1)).checked_add(1).map(Va);
            return true;
        }
        self.read += PAGE;
        let seen = self.window.len();
        self.window.extend_from_slice(&page);
        let base = at - seen as u64;
        let wanted = |place: &Va| *place >= self.from && *place <= self.last;
        let places = self.needles.iter().flat_map(|needle| needle.places(&self.window, seen));
        let mut places: Vec<Va> = places.map(|start| base + start as u64).filter(wanted).collect();
        places.sort_unstable();
        places.dedup();
        self.found.append(&mut places);
        let surplus = self.window.len().saturating_sub(self.keep);
        self.window.drain(..surplus);
        self.at = at.checked_add(PAGE);
        self.found.len() <= FOUND
    }

    /// Tells whoever asked what was found.
    fn finish(mut self) {
        let more = self.found.len() > FOUND || self.looked >= LOOKED;
        self.found.truncate(FOUND);
        // Nobody waiting for the answer is not an error.
        let _ = self.answer.send(Ok(Done::Found(self.found, more)));
    }
}

impl<D: Platform, Os: VmiOs<D>> Monitor<D, Os> {
    /// Begins a search in place of the one under way. In lock-step it is done when this returns.
    pub(super) fn begin_search(
        &mut self,
        vmi: VmiSession<'_, D, Os>,
        pid: Option<u32>,
        range: (Va, u64),
        patterns: Vec<Pattern>,
        answer: Sender<Answer>,
    ) {
        if let Some(replaced) = self.search.take() {
            // Its matches would be taken for those of the new one.
            let _ = replaced.answer.send(Ok(Done::Quiet));
        }
        self.publisher.set_search(None);
        match self.search_for(vmi, pid, range, patterns, answer.clone()) {
            Ok(mut search) if self.options.lock_step => {
                while search.page(vmi) {}
                search.finish();
            }
            Ok(search) => self.search = Some(search),
            Err(why) => {
                let _ = answer.send(Err(why));
            }
        }
    }

    fn search_for(
        &mut self,
        vmi: VmiSession<'_, D, Os>,
        pid: Option<u32>,
        (from, length): (Va, u64),
        patterns: Vec<Pattern>,
        answer: Sender<Answer>,
    ) -> Result<Search, String> {
        let bounded = |pattern: &Pattern| (1..=LONGEST).contains(&pattern.len());
        if patterns.is_empty() || patterns.len() > PATTERNS || !patterns.iter().all(bounded) {
            return Err(format!("a search needs 1 to {LONGEST} bytes to look for"));
        }
        let keep = patterns.iter().map(Vec::len).max().unwrap_or(1) - 1;
        let needles: Option<Vec<Needle>> = patterns.into_iter().map(Needle::new).collect();
        let needles = needles.ok_or("a search needs at least one byte that is not a wildcard")?;
        let process = pid.map(|pid| self.inspected(vmi, pid)).transpose()?;
        let root = Self::root_of(vmi, process.as_ref())?;
        // Not beyond the half of the address space that it begins in: between them nothing can be mapped.
        let bits = 9 * u32::from(vmi.paging_levels().max(4)) + 11;
        let half = if from.0 >> bits == 0 { (1 << bits) - 1 } else { u64::MAX };
        let last = from.0.saturating_add(length.saturating_sub(1)).min(half.max(from.0));
        let at = Some(Va(from.0 & !(PAGE - 1)));
        let (window, found) = (Vec::new(), Vec::new());
        Ok(Search { root, needles, window, keep, from, at, last: Va(last), looked: 0, read: 0, found, answer })
    }

    /// Ends the search under way; what it has found is its answer.
    pub(super) fn cancel_search(&mut self) {
        if let Some(mut search) = self.search.take() {
            search.looked = LOOKED;
            search.finish();
        }
        self.publisher.set_search(None);
    }

    /// Goes on with the search under way for a slice of time.
    pub(super) fn continue_search(&mut self, vmi: VmiSession<'_, D, Os>) {
        let Some(mut search) = self.search.take() else { return };
        vmi.flush_v2p_cache();
        vmi.flush_gfn_cache();
        let began = Instant::now();
        while began.elapsed() < SLICE {
            if !search.page(vmi) {
                self.publisher.set_search(None);
                self.publish(vmi);
                return search.finish();
            }
        }
        self.publisher.set_search(Some(Arc::new(search.progress())));
        self.search = Some(search);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(pattern: &[Option<u8>], bytes: &[u8], seen: usize) -> Vec<usize> {
        Needle::new(pattern.to_vec()).expect("a byte to look for").places(bytes, seen).collect()
    }

    #[test]
    fn wildcards_stand_for_any_byte_and_matches_may_overlap() {
        let bytes = [0x48, 0x8b, 0x01, 0x05, 0x48, 0x8b, 0x48, 0x05];
        assert_eq!(places(&[Some(0x48), Some(0x8b), None, Some(0x05)], &bytes, 0), [0, 4]);
        assert_eq!(places(&[None, Some(0x8b)], &bytes, 0), [0, 4]);
        assert_eq!(places(&[Some(0x05), None], &bytes, 0), [3], "a match does not leave the memory");
        assert_eq!(places(&[Some(1), Some(1)], &[1, 1, 1], 0), [0, 1]);
        assert_eq!(places(&[Some(1), Some(1)], &[1, 1, 1], 2), [1], "the first one was seen before");
        assert!(Needle::new(vec![None, None]).is_none());
    }
}
