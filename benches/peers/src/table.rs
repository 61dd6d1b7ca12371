//! Sampling and the table of results.

use std::{
    hint::black_box,
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Work to be measured: how long its measured part took, and how many operations that were.
pub type Contestant<'a> = &'a mut (dyn FnMut() -> (Duration, u64) + 'a);

/// One measured operation; nanoseconds an operation, the fastest of all samples.
pub struct Row {
    pub name: String,
    pub ours: f64,
    pub theirs: f64,
    pub floor: Option<f64>,
}

#[derive(Default)]
pub struct Table {
    pub rows: Vec<Row>,
    pub only: Option<String>,
}

impl Table {
    pub fn wants(&self, group: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == group)
    }

    /// Samples the contestants in turn, so that a change of the machine's speed meets all of them. Each closure does
    /// its work once and answers how long its measured part took and how many operations that were.
    pub fn row<'a>(
        &mut self,
        name: impl Into<String>,
        ours: Contestant<'a>,
        theirs: Contestant<'a>,
        floor: Option<Contestant<'a>>,
    ) {
        let mut contestants = vec![ours, theirs];
        contestants.extend(floor);
        let mut best = vec![f64::INFINITY; contestants.len()];
        let start = Instant::now();
        let mut rounds = 0;
        while rounds < 3 || (start.elapsed() < Duration::from_millis(1200) && rounds < 60) {
            for (contestant, best) in contestants.iter_mut().zip(&mut best) {
                let (time, operations) = contestant();
                *best = best.min(time.as_nanos() as f64 / operations as f64);
            }
            rounds += 1;
        }
        let row = Row { name: name.into(), ours: best[0], theirs: best[1], floor: best.get(2).copied() };
        eprint!(".");
        self.rows.push(row);
    }

    pub fn print(&self, json: bool) {
        eprintln!();
        if json {
            let rows: Vec<String> = self
                .rows
                .iter()
                .map(|row| {
                    let floor = row.floor.map_or("null".into(), |floor| format!("{floor:.2}"));
                    format!(
                        "{{\"row\":\"{}\",\"ours_ns\":{:.2},\"theirs_ns\":{:.2},\"floor_ns\":{floor}}}",
                        row.name, row.ours, row.theirs
                    )
                })
                .collect();
            println!("[{}]", rows.join(",\n "));
            return;
        }
        println!(
            "{:<64} {:>10} {:>10} {:>7} {:>10}",
            "ns per operation, fastest sample", "ours", "vmi 0.13", "ratio", "floor"
        );
        for row in &self.rows {
            let floor = row.floor.map_or(String::new(), |floor| format!("{floor:.1}"));
            println!(
                "{:<64} {:>10.1} {:>10.1} {:>7.3} {:>10}",
                row.name,
                row.ours,
                row.theirs,
                row.ours / row.theirs,
                floor
            );
        }
    }
}

/// Times `operations` operations done by one call.
pub fn timed(operations: u64, work: impl FnOnce()) -> (Duration, u64) {
    let start = Instant::now();
    work();
    (start.elapsed(), operations)
}

/// What reading the clock before and after something adds to it.
fn clock() -> Duration {
    static CLOCK: OnceLock<Duration> = OnceLock::new();
    *CLOCK.get_or_init(|| {
        let empty = || (0..10_000).map(|_| black_box(Instant::now()).elapsed()).sum::<Duration>() / 10_000;
        (0..20).map(|_| empty()).min().unwrap_or_default()
    })
}

/// Does `n` things and undoes them, often enough to be measured; (doing, undoing, each counted). A round of one reads
/// the clock for every operation, which costs about as much as the operation: that is taken off.
pub fn round(n: u64, mut do_it: impl FnMut(u64), mut undo: impl FnMut(u64)) -> (Duration, Duration, u64) {
    let repeats = (1000 / n).max(1);
    let (mut doing, mut undoing) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..repeats {
        let start = Instant::now();
        (0..n).for_each(&mut do_it);
        doing += start.elapsed().saturating_sub(clock());
        let start = Instant::now();
        (0..n).for_each(&mut undo);
        undoing += start.elapsed().saturating_sub(clock());
    }
    (doing, undoing, n * repeats)
}
