//! Completion: the names that begin with or contain what was typed, each as the choice that names one address.

use super::{SymbolTable, place::numbered};
use crate::engine::addr::Va;

impl SymbolTable {
    /// Up to `limit` names that begin with `prefix` (qualified or bare), then those that contain it, in order; each once,
    /// and so that [`SymbolTable::place`] takes it for one address: a name that several symbols have with its number
    /// (`name#2`), that of a per-CPU variable with a CPU (`runqueues@cpu0`; with all of them once the `@` is there).
    pub fn complete(&self, prefix: &str, limit: usize) -> Vec<String> {
        let (typed, every_cpu) = match prefix.split_once('@') {
            Some((name, _)) => (name, true),
            None => (prefix, false),
        };
        let name = match typed.rsplit_once('#') {
            Some((name, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => typed,
        };
        let mut found: Vec<String> = Vec::new();
        let mut take = |choices: Vec<(&str, Va, usize, usize)>| {
            for choice in choices {
                for choice in self.choices(choice, every_cpu) {
                    // With a number or a CPU begun, it is about one name.
                    let wanted = name.len() == prefix.len() || choice.starts_with(prefix);
                    if wanted && found.len() < limit && !found.contains(&choice) {
                        found.push(choice);
                    }
                }
            }
            found.len() >= limit
        };
        // A name may be there several times, and among the matches before.
        let most = 4 * limit;
        if take(self.ranked(|names| names.beginning(name, most).collect())) || name.is_empty() {
            return found;
        }
        for wanted in [format!("!{name}"), name.to_owned()] {
            if take(self.ranked(|names| names.containing(&wanted, most).into_iter().collect())) {
                break;
            }
        }
        found
    }

    /// What is found among the kernel's and the modules' names, in the order of names.
    fn ranked(&self, find: impl Fn(&super::Names) -> Vec<u32>) -> Vec<(&str, Va, usize, usize)> {
        let layers = self.layers().into_iter();
        let mut found: Vec<_> =
            layers.flat_map(|names| find(names).into_iter().map(|rank| names.ranked(rank))).collect();
        found.sort_by_key(|&(name, va, ..)| (name, va));
        found
    }

    fn choices(&self, (name, va, nth, of): (&str, Va, usize, usize), every_cpu: bool) -> Vec<String> {
        let name = numbered(name, nth, of);
        match &self.per_cpu {
            Some(area) if area.contains(va) => {
                let cpus = if every_cpu { area.cpus() } else { 1 };
                (0..cpus).map(|cpu| format!("{name}@cpu{cpu}")).collect()
            }
            _ => vec![name],
        }
    }
}
