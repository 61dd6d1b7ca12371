//! Places as people write them: `symbol`, `module!symbol`, `symbol#2`, `symbol@cpu1`, each with `+0x10` behind it.
//!
//! Several hundred functions of a kernel share their names with others. What is asked for by such a name is refused with
//! the choices: to set all of them would mix the hits of functions that have nothing to do with each other, and spend one of
//! four hardware breakpoints on each. The choices are numbered by address, because that order stays when the kernel moves.

use super::SymbolTable;
use crate::engine::addr::Va;

/// How many choices a sentence lists.
const CHOICES: usize = 4;

/// `name`, or `name#2` for the second of several.
pub(super) fn numbered(name: &str, nth: usize, of: usize) -> String {
    if of > 1 { format!("{name}#{}", nth + 1) } else { name.to_owned() }
}

/// Splits `x@cpu1` (and `x@cpu1+0x10`) into what is without its CPU, and the CPU.
fn split_cpu(text: &str) -> (String, Option<usize>) {
    let parts = || {
        let (before, rest) = text.rsplit_once('@')?;
        let rest = rest.trim_start().strip_prefix("cpu")?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, behind) = rest.split_at_checked(end)?;
        let is_offset = behind.trim().is_empty() || behind.trim_start().starts_with('+');
        Some((format!("{}{behind}", before.trim_end()), number.parse().ok().filter(|_| is_offset)?))
    };
    parts().map_or_else(|| (text.to_owned(), None), |(text, cpu)| (text, Some(cpu)))
}

/// Whether what stands behind the `@` of a place is a CPU and not a process.
pub(in crate::engine) fn is_cpu(suffix: &str) -> bool {
    split_cpu(&format!("x@{}", suffix.trim())).1.is_some()
}

fn offset_of(place: &str, offset: &str) -> Result<u64, String> {
    let offset = offset.trim();
    let parsed = match offset.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => offset.parse(),
    };
    parsed.map_err(|_| format!("'{place}': what follows '+' must be a number of bytes, for example +16 or +0x10"))
}

impl SymbolTable {
    /// The address of a symbol as a person writes it, with a number of bytes behind it or not; `None` where no symbol has
    /// that name. Modules may also be named as kprobes and `/proc/kallsyms` do (`module:symbol`, `symbol [module]`).
    ///
    /// # Errors
    /// A sentence when several symbols have that name, when it is a per-CPU variable without a CPU, or the offset is no
    /// number.
    pub fn place(&self, place: &str) -> Result<Option<Va>, String> {
        let place = place.trim();
        if let Some(va) = self.find(place, place)? {
            return Ok(Some(va));
        }
        let (text, cpu) = split_cpu(place);
        let Some((name, offset)) = text.rsplit_once('+') else { return Ok(None) };
        let name = cpu.map_or_else(|| name.trim().to_owned(), |cpu| format!("{}@cpu{cpu}", name.trim()));
        let Some(va) = self.find(&name, place)? else { return Ok(None) };
        let va = va.checked_add(offset_of(place, offset)?);
        va.map(Some).ok_or_else(|| format!("'{place}' is beyond the end of the address space"))
    }

    fn find(&self, text: &str, place: &str) -> Result<Option<Va>, String> {
        let (name, cpu) = split_cpu(text);
        let (name, found) = match (self.one_of(&name)?, respelt(&name)) {
            (Some(va), _) => (name, va),
            (None, Some(other)) => match self.one_of(&other)? {
                Some(va) => (other, va),
                None => return Ok(None),
            },
            (None, None) => return Ok(None),
        };
        let area = self.per_cpu.as_deref().filter(|area| area.contains(found));
        match (area, cpu) {
            (None, None) => Ok(Some(found)),
            (None, Some(cpu)) => Err(format!("'{place}': {name} is not a per-CPU variable, leave '@cpu{cpu}' out")),
            (Some(_), None) => Err(format!("{name} is a per-CPU variable: name a CPU, for example {name}@cpu0")),
            (Some(area), Some(cpu)) => match area.on(found, cpu) {
                Some(va) => Ok(Some(va)),
                None => Err(match area.cpus() {
                    0 | 1 => format!("'{place}': the guest has no CPU {cpu}, only CPU 0"),
                    cpus => format!("'{place}': the guest has no CPU {cpu}, only CPUs 0 to {}", cpus - 1),
                }),
            },
        }
    }

    /// The one symbol that a name, or a name and a number, is about.
    fn one_of(&self, name: &str) -> Result<Option<Va>, String> {
        let all = self.all(name);
        if let [(_, va)] = all.as_slice() {
            return Ok(Some(*va));
        }
        if all.is_empty() {
            let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let numbered = name.rsplit_once('#').and_then(|(name, n)| Some(name).zip(Some(n).filter(is_number)));
            let Some((name, number)) = numbered else { return Ok(None) };
            let all = self.all(name);
            let Some((_, va)) = number.parse().ok().and_then(|n: usize| all.get(n.checked_sub(1)?)) else {
                return match all.len() {
                    0 => Ok(None),
                    1 => Err(format!("there is only one symbol {name}: leave '#{number}' out")),
                    count => Err(format!("there are {count} symbols called {name}: {name}#1 to {name}#{count}")),
                };
            };
            return Ok(Some(*va));
        }
        let mut names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        names.dedup();
        let one_module = names.len() == 1;
        let choice = |(nth, (own, va)): (usize, &(&str, Va))| {
            let label = if one_module { numbered(own, nth, all.len()) } else { self.label(own, *va) };
            format!("{label} at {va}")
        };
        let listed: Vec<String> = all.iter().enumerate().take(CHOICES).map(choice).collect();
        let more = match all.len() - listed.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(format!("{} symbols are called {name}: say which one, {}{more}", all.len(), listed.join(", ")))
    }

    /// The symbols with a name: those that have exactly this one; where there are none, those of modules that have it
    /// behind their module's.
    fn all(&self, name: &str) -> Vec<(&str, Va)> {
        // The index answers for nearly every name that there is no symbol of.
        if self.lookup(name).is_none() {
            return Vec::new();
        }
        let layers = self.layers().into_iter();
        [false, true]
            .into_iter()
            .map(|bare| layers.clone().flat_map(|names| names.all(name, bare)).collect::<Vec<_>>())
            .find(|found| !found.is_empty())
            .unwrap_or_default()
    }

    /// The name of the symbol at an address, with its number where others have it, too.
    fn label(&self, name: &str, va: Va) -> String {
        let all = self.all(name);
        let nth = all.iter().position(|(_, other)| *other == va).unwrap_or(0);
        numbered(name, nth, all.len())
    }

    /// What an address is called so that [`SymbolTable::place`] takes it for this address and no other: `name`, `name#2`,
    /// `name@cpu1`, with `+0x1f` behind it for one that lies no more than `reach` bytes behind the symbol.
    pub fn designate(&self, va: Va, reach: u64) -> Option<String> {
        let (at, cpu) = match self.per_cpu.as_ref().and_then(|area| area.owner(va)) {
            Some((at, cpu)) => (at, format!("@cpu{cpu}")),
            None => (va, String::new()),
        };
        let (name, distance) = self.nearest(at).filter(|(_, distance)| *distance <= reach)?;
        // A symbol of a per-CPU variable is no place, and an address there is not the variable.
        let symbol = Va(at.0 - distance);
        if cpu.is_empty() != self.per_cpu.as_ref().is_none_or(|area| !area.contains(symbol)) {
            return None;
        }
        let label = self.label(name, symbol);
        Some(if distance == 0 { format!("{label}{cpu}") } else { format!("{label}{cpu}+{distance:#x}") })
    }
}

/// The module in `module!symbol`, however it is written.
pub(in crate::engine) fn module_of(place: &str) -> Option<&str> {
    let known = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let kallsyms = || Some(place.split_once('[')?.1.split_once(']')?.0);
    let module = place.split_once(['!', ':']).map(|(module, _)| module).or_else(kallsyms)?.trim();
    (!module.is_empty() && module.chars().all(known)).then_some(module)
}

/// `module:symbol` and `symbol [module]` as `module!symbol`.
pub(in crate::engine) fn respelt(name: &str) -> Option<String> {
    let kallsyms = || {
        let (symbol, module) = name.strip_suffix(']')?.split_once('[')?;
        Some((module, symbol))
    };
    // Rust's paths have two colons.
    let kprobe = || name.split_once(':').filter(|(_, symbol)| !symbol.starts_with(':'));
    let (module, symbol) = kallsyms().or_else(kprobe)?;
    Some(format!("{}!{}", module.trim(), symbol.trim()))
}

#[cfg(test)]
mod tests {
    use super::super::PerCpuArea;
    use super::*;

    const CPU1: u64 = 0xffff_8880_1f00_0000;

    fn table() -> SymbolTable {
        let kernel = [
            ("runqueues", Va(0x35e80)),
            ("start", Va(0xffff_ffff_8100_0000)),
            ("reset", Va(0xffff_ffff_8100_0100)),
            ("reset", Va(0xffff_ffff_8100_0300)),
            ("reset_all", Va(0xffff_ffff_8100_0500)),
            ("again", Va(0xffff_ffff_8100_0600)),
            ("again", Va(0xffff_ffff_8100_0600)),
        ];
        let modules = [
            ("fs!open", Va(0xffff_ffff_c000_0000)),
            ("net!open", Va(0xffff_ffff_c000_1000)),
            ("net!reset", Va(0xffff_ffff_c000_1100)),
            ("net!poll", Va(0xffff_ffff_c000_1200)),
            ("net!poll", Va(0xffff_ffff_c000_1300)),
        ];
        SymbolTable::new(kernel)
            .with_per_cpu(PerCpuArea::new(Va(0)..Va(0x39000), vec![CPU1 - 0x10_0000, CPU1]))
            .with_modules(SymbolTable::new(modules))
    }

    #[test]
    fn one_symbol_is_found_however_it_is_written() {
        for (place, va) in [
            ("start", 0xffff_ffff_8100_0000),
            ("start + 0x10", 0xffff_ffff_8100_0010),
            ("reset#1", 0xffff_ffff_8100_0100),
            ("reset#2+16", 0xffff_ffff_8100_0310),
            ("again", 0xffff_ffff_8100_0600),
            ("fs!open", 0xffff_ffff_c000_0000),
            ("net:open", 0xffff_ffff_c000_1000),
            ("open [net]", 0xffff_ffff_c000_1000),
            ("net!reset", 0xffff_ffff_c000_1100),
            ("net!poll#2", 0xffff_ffff_c000_1300),
            ("poll#2", 0xffff_ffff_c000_1300),
            ("runqueues@cpu1", CPU1 + 0x35e80),
            ("runqueues@cpu0+0x8", CPU1 - 0x10_0000 + 0x35e88),
            ("runqueues+8@cpu1", CPU1 + 0x35e88),
        ] {
            assert_eq!(table().place(place), Ok(Some(Va(va))), "{place}");
        }
        for place in ["nobody", "nobody#2", "nobody@cpu0", "nobody+1", "[", ":", "]", "#", "@cpu1", "+"] {
            assert_eq!(table().place(place), Ok(None), "{place}");
        }
    }

    #[test]
    fn what_is_not_one_address_says_how_to_name_one() {
        for (place, words) in [
            ("reset", "2 symbols are called reset: say which one, reset#1 at "),
            ("reset+0x10", "reset#2 at "),
            ("reset#3", "reset#1 to reset#2"),
            ("start#2", "leave '#2' out"),
            ("open", "fs!open at "),
            ("poll", "net!poll#1 at "),
            ("runqueues", "name a CPU, for example runqueues@cpu0"),
            ("runqueues+0x10", "name a CPU"),
            ("runqueues@cpu2", "only CPUs 0 to 1"),
            ("start@cpu0", "not a per-CPU variable"),
            ("start+x", "+0x10"),
            ("start+0xffffffffffffffff", "beyond the end"),
        ] {
            let error = table().place(place).expect_err(place);
            assert!(error.contains(words), "{place}: {error}");
        }
    }

    #[test]
    fn a_long_list_of_choices_is_cut() {
        let many = SymbolTable::new((0..300u64).map(|i| ("same", Va(i * 16))));
        let error = many.place("same").expect_err("which?");
        assert!(error.contains("300 symbols") && error.ends_with("and 296 more"), "{error}");
    }

    #[test]
    fn every_address_has_a_name_that_leads_back() {
        let table = table();
        for va in table.iter().map(|(_, va)| va).filter(|va| va.0 >> 63 != 0).flat_map(|va| [va, va + 4]) {
            let name = table.designate(va, 0x100).expect("it has a symbol");
            assert_eq!(table.place(&name), Ok(Some(va)), "{name}");
        }
        let own = Va(CPU1 + 0x35e84);
        assert_eq!(table.designate(own, 0x100).as_deref(), Some("runqueues@cpu1+0x4"));
        assert_eq!(table.designate(Va(0x35e80), 0x100), None, "the symbol is no place");
        assert_eq!(table.designate(Va(0x10), 0x100), None);
    }

    #[test]
    fn completion_offers_what_names_one() {
        let table = table();
        assert_eq!(table.complete("reset", 8), ["reset#1", "reset#2", "reset_all", "net!reset"]);
        assert_eq!(table.complete("reset#", 8), ["reset#1", "reset#2"]);
        assert_eq!(table.complete("reset#2", 8), ["reset#2"]);
        assert_eq!(table.complete("again", 8), ["again"]);
        assert_eq!(table.complete("net!po", 8), ["net!poll#1", "net!poll#2"]);
        assert_eq!(table.complete("run", 8), ["runqueues@cpu0"]);
        assert_eq!(table.complete("runqueues@", 8), ["runqueues@cpu0", "runqueues@cpu1"]);
        for choice in ["reset", "net!", "open", "run", "s"].iter().flat_map(|typed| table.complete(typed, 9)) {
            assert!(matches!(table.place(&choice), Ok(Some(_))), "{choice}");
        }
    }
}
