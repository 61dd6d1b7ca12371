//! Runs targets without a fuzzer, on any toolchain: samples, changed at random.
//!
//! `samples` lists the targets, `samples TARGET [SECONDS]` runs one (60 s), `samples --write FOLDER` writes each target's
//! samples into a folder of its name, as a start for a fuzzer, `samples TARGET FILE` runs one on a file.

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use fuzz::{TARGETS, Target};

/// One input may take no longer than this.
const LONGEST_RUN: Duration = Duration::from_secs(10);
const LARGEST_INPUT: usize = 64 << 10;
/// Where an input is left that a target does not survive.
const FOUND: &str = "fuzz-found.bin";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => TARGETS.iter().for_each(|target| println!("{}", target.name)),
        ["--write", folder] => return write(Path::new(folder)),
        [name, rest @ ..] => {
            let Some(target) = TARGETS.iter().find(|target| target.name == *name) else {
                eprintln!("samples: there is no target '{name}'");
                return ExitCode::from(2);
            };
            let what = rest.first().copied().unwrap_or("60");
            return match what.parse() {
                Ok(seconds) => search(target, Duration::from_secs(seconds)),
                Err(_) => match fs::read(what) {
                    Ok(input) => survives(target, &input),
                    Err(error) => {
                        eprintln!("samples: cannot read {what}: {error}");
                        ExitCode::from(2)
                    }
                },
            };
        }
    }
    ExitCode::SUCCESS
}

fn write(folder: &Path) -> ExitCode {
    for target in TARGETS {
        let folder = folder.join(target.name);
        let written = fs::create_dir_all(&folder).and_then(|()| {
            (target.samples)()
                .iter()
                .enumerate()
                .try_for_each(|(i, sample)| fs::write(folder.join(format!("sample-{i}")), sample))
        });
        if let Err(error) = written {
            eprintln!("samples: cannot write to {}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Runs a target on one input.
fn survives(target: &Target, input: &[u8]) -> ExitCode {
    let start = Instant::now();
    let panicked = catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err();
    if !panicked && start.elapsed() < LONGEST_RUN {
        return ExitCode::SUCCESS;
    }
    let what = if panicked { "panics" } else { "takes too long" };
    match fs::write(FOUND, input) {
        Ok(()) => eprintln!("{} {what} on {FOUND}", target.name),
        Err(error) => eprintln!("{} {what}; {FOUND} could not be written: {error}", target.name),
    }
    ExitCode::FAILURE
}

fn search(target: &Target, time: Duration) -> ExitCode {
    let samples = (target.samples)();
    let mut random = Random(0x5eed_0001);
    let (start, mut runs) = (Instant::now(), 0u64);
    for sample in &samples {
        if survives(target, sample) != ExitCode::SUCCESS {
            return ExitCode::FAILURE;
        }
    }
    while start.elapsed() < time {
        let input = random.changed(&samples);
        if survives(target, &input) != ExitCode::SUCCESS {
            return ExitCode::FAILURE;
        }
        runs += 1;
    }
    println!("{}: {runs} inputs in {} s", target.name, start.elapsed().as_secs());
    ExitCode::SUCCESS
}

/// Xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end.max(1)
    }

    /// A sample with a few changes, or (seldom) nothing but noise.
    fn changed(&mut self, samples: &[Vec<u8>]) -> Vec<u8> {
        if samples.is_empty() || self.below(50) == 0 {
            return (0..self.below(400)).map(|_| self.next() as u8).collect();
        }
        let mut input = samples[self.below(samples.len())].clone();
        for _ in 0..=self.below(8) {
            self.change(&mut input, samples);
        }
        input.truncate(LARGEST_INPUT);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, samples: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let length = self.below(16).min(input.len() - at);
        match self.below(7) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.next() as u8,
            2 => drop(input.drain(at..at + length)),
            3 => drop(input.splice(at..at, (0..length).map(|_| self.next() as u8).collect::<Vec<_>>())),
            // A piece of this or another sample.
            4 => {
                let other = &samples[self.below(samples.len())];
                let from = self.below(other.len() + 1);
                let piece = other[from..].iter().take(1 + self.below(64)).copied().collect::<Vec<_>>();
                drop(input.splice(at..at + length, piece));
            }
            // A number at the edge of its range.
            5 => {
                let edges = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 63, !0u64];
                let bytes = edges[self.below(edges.len())].to_le_bytes();
                let width = 1 << self.below(4);
                input.iter_mut().skip(at).zip(&bytes[..width]).for_each(|(to, &from)| *to = from);
            }
            _ => {
                let piece = input[at..at + length].to_vec();
                let to = self.below(input.len() + 1);
                drop(input.splice(to..to, piece.repeat(1 + self.below(4))));
            }
        }
    }
}
