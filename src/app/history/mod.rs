//! Which picture is on the screen: the live one, a frozen one, or one of the last minutes.
//!
//! Freezing is keeping an `Arc`; the guest runs on. Scrolling back is a ring of pictures, one a second, as many as fit into
//! a bound of memory. They share what did not change from one to the next (`rows`), and what they cost is counted
//! (`weight`): the lists of a busy guest are megabytes, and each picture of the engine has lists of its own.

mod rows;
mod weight;

use std::{collections::VecDeque, sync::Arc};

use self::{
    rows::Rows,
    weight::{Weight, block_bytes},
};
use crate::{
    engine::snapshot::{Breakpoint, Event, Fault, Part, Process, Snapshot, SymbolTable, Table, Vcpu},
    ui::state::Past,
};

/// How many bytes the pictures may take, unless the user says otherwise.
pub const MOST_BYTES: usize = 64 << 20;
/// How many pictures are kept.
const KEPT: usize = 300;
/// How far apart they are, in nanoseconds of the snapshot's clock.
const APART_NS: u64 = 1_000_000_000;

/// How far a big step goes, in nanoseconds of the snapshot's clock.
const FAR_NS: u64 = 60_000_000_000;

/// The pictures of a run.
#[derive(Debug)]
pub struct History {
    live: Arc<Snapshot>,
    kept: VecDeque<Kept>,
    /// What `kept` costs, and what it may.
    bytes: usize,
    most_bytes: usize,
    /// When the newest picture was kept.
    kept_at_ns: Option<u64>,
    /// Whether pictures had to go because there was no room for them.
    is_short: bool,
    held: Option<Arc<Snapshot>>,
    /// Whether the held picture was the newest one when it was taken hold of.
    frozen: bool,
    /// Stands in for the table of a kept picture, which is megabytes and what completion uses now.
    no_symbols: Arc<SymbolTable>,
}

/// A picture that can be gone back to.
#[derive(Debug)]
struct Kept {
    /// All but the lists.
    rest: Snapshot,
    /// What the rest costs.
    bytes: usize,
    vcpus: Rows<Vcpu>,
    processes: Rows<Process>,
    breakpoints: Rows<Breakpoint>,
    page_tables: Rows<Table>,
    faults: Rows<Fault>,
    events: Rows<Event>,
}

impl Kept {
    /// Keeps a picture, given the one that was kept before; adds what that costs to `bytes`.
    fn new(snapshot: &Snapshot, before: Option<&Self>, no_symbols: &Arc<SymbolTable>, bytes: &mut usize) -> Self {
        let mut rest = Snapshot {
            vcpus: Part::default(),
            processes: Part::default(),
            breakpoints: Part::default(),
            page_tables: Part::default(),
            faults: Part::default(),
            events: Part::default(),
            detail: None,
            search: None,
            symbols: Arc::clone(no_symbols),
            ..snapshot.clone()
        };
        // The empty lists are blocks of their own.
        let mut own = size_of::<Self>() + 6 * block_bytes(6 * size_of::<usize>());
        own += rest.notice.as_ref().map_or(0, |notice| block_bytes(notice.len()));
        let old = before.map(|before| &before.rest);
        own += share(&mut rest.guest, old.map(|old| &old.guest), Weight::heap_bytes);
        own +=
            share(&mut rest.event_rates, old.map(|old| &old.event_rates), |rates| block_bytes(size_of_val(&**rates)));
        own += share(&mut rest.capabilities, old.map(|old| &old.capabilities), |all| block_bytes(size_of_val(&**all)));
        own += share(&mut rest.unavailable, old.map(|old| &old.unavailable), |all| {
            block_bytes(size_of_val(&**all)) + all.iter().map(Weight::heap_bytes).sum::<usize>()
        });
        *bytes += own;
        macro_rules! rows {
            ($list:ident) => {
                match before {
                    Some(before) => Rows::new(&snapshot.$list, &before.$list, bytes),
                    None => Rows::new(&snapshot.$list, &Rows::default(), bytes),
                }
            };
        }
        Self {
            vcpus: rows!(vcpus),
            processes: rows!(processes),
            breakpoints: rows!(breakpoints),
            page_tables: rows!(page_tables),
            faults: rows!(faults),
            events: rows!(events),
            rest,
            bytes: own,
        }
    }

    /// The picture, with what is not kept from the live one.
    fn picture(&self, live: &Snapshot) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            vcpus: Part::new(self.vcpus.list()),
            processes: Part::new(self.processes.list()),
            breakpoints: Part::new(self.breakpoints.list()),
            page_tables: Part::new(self.page_tables.list()),
            faults: Part::new(self.faults.list()),
            events: Part::new(self.events.list()),
            symbols: Arc::clone(&live.symbols),
            ..self.rest.clone()
        })
    }

    /// Lets go of the picture; takes what only it needed off `bytes`.
    fn release(self, bytes: &mut usize) {
        *bytes = bytes.saturating_sub(self.bytes);
        self.vcpus.release(bytes);
        self.processes.release(bytes);
        self.breakpoints.release(bytes);
        self.page_tables.release(bytes);
        self.faults.release(bytes);
        self.events.release(bytes);
    }
}

/// Lets a part be the one of before where both say the same; answers what it costs beyond that.
fn share<T: PartialEq + Clone>(
    part: &mut Part<T>,
    before: Option<&Part<T>>,
    heap_bytes: impl Fn(&T) -> usize,
) -> usize {
    match before.filter(|before| ***before == **part) {
        Some(before) => {
            *part = Part::clone(before);
            0
        }
        None => block_bytes(size_of::<T>() + 3 * size_of::<usize>()) + heap_bytes(part),
    }
}

impl History {
    /// A history that begins with a picture, for pictures of so many bytes in all.
    pub fn new(live: Arc<Snapshot>, most_bytes: usize) -> Self {
        Self {
            live,
            kept: VecDeque::new(),
            bytes: 0,
            most_bytes,
            kept_at_ns: None,
            is_short: false,
            held: None,
            frozen: false,
            no_symbols: Arc::default(),
        }
    }

    /// Takes a newer picture; answers whether it is one.
    pub fn digest(&mut self, snapshot: Arc<Snapshot>) -> bool {
        if snapshot.serial == self.live.serial {
            return false;
        }
        if self.kept_at_ns.is_none_or(|at| snapshot.taken_at_ns.saturating_sub(at) >= APART_NS) {
            self.kept_at_ns = Some(snapshot.taken_at_ns);
            self.keep(&snapshot);
        }
        self.live = snapshot;
        true
    }

    fn keep(&mut self, snapshot: &Snapshot) {
        let kept = Kept::new(snapshot, self.kept.back(), &self.no_symbols, &mut self.bytes);
        self.kept.push_back(kept);
        while self.bytes > self.most_bytes || self.kept.len() > KEPT {
            self.is_short |= self.kept.len() <= KEPT;
            match self.kept.pop_front() {
                Some(oldest) => oldest.release(&mut self.bytes),
                None => return,
            }
        }
    }

    /// How many bytes the pictures take that one can go back to.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Why there is no earlier picture than the shown one.
    pub fn why_no_earlier(&self) -> String {
        match self.is_short {
            true => format!("no earlier picture fits into {} MiB; --history MIB keeps more", self.most_bytes >> 20),
            false => "there is no earlier picture".to_owned(),
        }
    }

    /// The newest picture.
    pub fn live(&self) -> &Arc<Snapshot> {
        &self.live
    }

    /// The picture to draw. What a popup shows is always live: one can freeze the lists and still inspect.
    pub fn shown(&self) -> Arc<Snapshot> {
        match &self.held {
            None => Arc::clone(&self.live),
            Some(held) => Arc::new(Snapshot {
                detail: self.live.detail.clone(),
                search: self.live.search.clone(),
                ..Snapshot::clone(held)
            }),
        }
    }

    /// What the screen says about a picture that is not the newest one.
    pub fn past(&self) -> Option<Past> {
        let held = self.held.as_ref()?;
        Some(Past {
            behind_ns: self.live.taken_at_ns.saturating_sub(held.taken_at_ns),
            status_now: self.live.status,
            steps_back: match self.frozen {
                true => 0,
                // The newest kept one is a step back from the live one as well.
                false => self.times().filter(|&at| at > held.taken_at_ns).count().max(1),
            },
            steps_kept: self.kept.len(),
        })
    }

    /// Holds the newest picture, or goes back to the live ones.
    pub fn freeze(&mut self) {
        self.frozen = self.held.is_none();
        self.held = if self.frozen { Some(Arc::clone(&self.live)) } else { None };
    }

    /// Goes to the picture before the shown one; answers whether there is one.
    pub fn back(&mut self) -> bool {
        let from = self.held.as_ref().unwrap_or(&self.live).taken_at_ns;
        let earlier = self.times().rposition(|at| at < from);
        self.go_back(earlier)
    }

    /// Goes a minute back, or to the first picture; answers whether there is an earlier one.
    pub fn far_back(&mut self) -> bool {
        let from = self.held.as_ref().unwrap_or(&self.live).taken_at_ns;
        let wanted = from.saturating_sub(FAR_NS);
        let earlier = self.times().enumerate().filter(|&(_, at)| at < from);
        let earlier = earlier.min_by_key(|&(_, at)| (at.abs_diff(wanted), at)).map(|(index, _)| index);
        self.go_back(earlier)
    }

    fn go_back(&mut self, earlier: Option<usize>) -> bool {
        let Some(earlier) = earlier.and_then(|index| self.kept.get(index)) else { return false };
        self.held = Some(earlier.picture(&self.live));
        self.frozen = false;
        true
    }

    /// Goes a minute forward, in the end to the live pictures.
    pub fn far_forward(&mut self) {
        self.go_forward(|held| held.saturating_add(FAR_NS));
    }

    /// Goes to the picture after the shown one, in the end to the live ones.
    pub fn forward(&mut self) {
        self.go_forward(|held| held.saturating_add(1));
    }

    /// Goes to the first picture from a moment on that depends on the held one's.
    fn go_forward(&mut self, wanted: impl Fn(u64) -> u64) {
        self.frozen = false;
        if let Some(held) = self.held.take() {
            let wanted = wanted(held.taken_at_ns);
            let later = self.kept.iter().find(|kept| kept.rest.taken_at_ns >= wanted);
            self.held = later.map(|later| later.picture(&self.live));
        }
    }

    /// When the kept pictures were taken, oldest first.
    fn times(&self) -> impl DoubleEndedIterator<Item = u64> + ExactSizeIterator {
        self.kept.iter().map(|kept| kept.rest.taken_at_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot { taken_at_ns: seconds * 1_000_000_000, ..Snapshot::default() })
    }

    #[test]
    fn freezing_keeps_the_picture_and_time_goes_on() {
        let mut history = History::new(at(0), MOST_BYTES);
        history.digest(at(5));
        history.digest(at(10));
        history.freeze();
        history.digest(at(13));
        assert_eq!(history.shown().taken_at_ns, 10_000_000_000);
        let past = history.past().map(|past| (past.behind_ns, past.steps_back));
        assert_eq!(past, Some((3_000_000_000, 0)), "frozen, however many pictures there are since");
        assert!(history.back());
        assert_eq!(history.past().map(|past| past.steps_back), Some(2), "and now on the way back");
        history.forward();
        history.freeze();
        assert_eq!(history.shown().taken_at_ns, 13_000_000_000);
        assert!(history.past().is_none());
    }

    #[test]
    fn going_back_is_bounded_and_ends_live_again() {
        let mut history = History::new(at(0), MOST_BYTES);
        for second in 1..=400 {
            history.digest(at(second));
        }
        let mut steps = 0;
        while history.back() {
            steps += 1;
        }
        assert_eq!(steps, KEPT - 1);
        assert_eq!(history.shown().taken_at_ns, 101_000_000_000);
        assert_eq!(history.past().map(|past| past.steps_back), Some(KEPT - 1));
        while history.past().is_some() {
            history.forward();
        }
        assert_eq!(history.shown().taken_at_ns, 400_000_000_000);
    }

    #[test]
    fn big_steps_go_a_minute_and_stop_at_both_ends() {
        let mut history = History::new(at(0), MOST_BYTES);
        for second in 1..=100 {
            history.digest(at(second));
        }
        assert!(history.far_back());
        assert_eq!(history.shown().taken_at_ns, 40_000_000_000);
        assert!(history.far_back());
        assert_eq!(history.shown().taken_at_ns, 1_000_000_000);
        assert!(!history.far_back());
        assert_eq!(history.shown().taken_at_ns, 1_000_000_000);
        history.far_forward();
        assert_eq!(history.shown().taken_at_ns, 61_000_000_000);
        history.far_forward();
        assert!(history.past().is_none());
    }

    #[test]
    fn the_same_picture_again_is_no_news() {
        let mut history = History::new(at(0), MOST_BYTES);
        let snapshot = at(1);
        assert!(history.digest(Arc::clone(&snapshot)));
        assert!(!history.digest(snapshot));
    }

    /// A guest of so many processes, some of which change, come and go each second.
    fn busy(second: u64, processes: u32) -> Arc<Snapshot> {
        let process = |pid: u32| Process {
            pid,
            name: format!("process-{pid}"),
            threads: if pid % 50 == (second % 50) as u32 { second as u32 } else { 1 },
            ..Process::default()
        };
        let from = second as u32 * 20;
        let event = |seq| Event {
            seq,
            at_ns: seq,
            kind: crate::engine::snapshot::EventKind::Vm,
            vcpu: None,
            pid: None,
            process: "process".into(),
            text: format!("event {seq}"),
        };
        Arc::new(Snapshot {
            taken_at_ns: second * 1_000_000_000,
            processes: Part::new((from..from + processes).map(process).collect()),
            events: Part::new((second * 30..second * 30 + 2_000).map(event).collect()),
            ..Snapshot::default()
        })
    }

    #[test]
    fn a_busy_guest_fits_into_the_bound_and_comes_back_as_it_was() {
        let mut history = History::new(at(0), 2 << 20);
        for second in 1..=300 {
            history.digest(busy(second, 1_000));
            assert!(history.bytes() <= 2 << 20);
        }
        let mut second = 299;
        while history.back() {
            let (shown, was) = (history.shown(), busy(second, 1_000));
            assert_eq!(shown.taken_at_ns, was.taken_at_ns);
            assert!(*shown.processes == *was.processes && *shown.events == *was.events, "second {second}");
            second -= 1;
        }
        assert!(second < 280, "a picture costs little more than what changed: {second} seconds back");
        assert!(history.why_no_earlier().contains("2 MiB"), "{}", history.why_no_earlier());
    }

    #[test]
    fn a_picture_that_does_not_fit_is_not_kept_and_nothing_is_counted_for_it() {
        let mut history = History::new(at(0), 100_000);
        history.digest(busy(1, 5_000));
        assert!(!history.back());
        assert_eq!(history.bytes(), 0);
        let mut none = History::new(at(0), 0);
        none.digest(at(2));
        assert!(!none.back());
    }
}
