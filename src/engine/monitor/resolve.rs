//! Places as people write them, turned into addresses.

use crate::engine::{addr::Va, symbols::SymbolTable};

/// Resolves a symbol as [`SymbolTable::place`] takes it, or an address; the error is a sentence with what to write.
pub(super) fn resolve(place: &str, symbols: &SymbolTable) -> Result<Va, String> {
    if let Some(va) = symbols.place(place)? {
        return Ok(va);
    }
    // A bare word of hex letters ("add") is more likely a symbol that is not there than an address.
    let digits = place.strip_prefix("0x").unwrap_or(place);
    if (place.starts_with("0x")
        || place.contains('`')
        || digits.starts_with(|c: char| c.is_ascii_digit())
        || digits.len() > 8)
        && let Ok(va) = place.parse::<Va>()
    {
        return Ok(va);
    }
    let close = symbols.complete(place, 3);
    Err(match close.as_slice() {
        [] => format!(
            "no symbol and no address is called '{place}': give a symbol of the guest's kernel or a hexadecimal address"
        ),
        names => format!("no symbol is called '{place}': did you mean {}?", names.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> SymbolTable {
        SymbolTable::new([("nt!NtCreateFile", Va(0xffff_f800_0000_1000)), ("add", Va(0x10))])
    }

    #[test]
    fn symbols_offsets_and_addresses() {
        let base = 0xffff_f800_0000_1000;
        for (place, want) in [
            ("nt!NtCreateFile", base),
            ("NtCreateFile+0x10", base + 16),
            ("NtCreateFile + 16", base + 16),
            ("fffff800`00001000", base),
            ("0x7ff6", 0x7ff6),
            ("add", 0x10),
            ("7ff61c2a0000", 0x7ff6_1c2a_0000),
        ] {
            assert_eq!(resolve(place, &table()), Ok(Va(want)), "{place}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let message = |place| resolve(place, &table()).err().unwrap_or_default();
        assert!(message("NtCreate").contains("did you mean nt!NtCreateFile"));
        assert!(message("NtCreateFile+x").contains("+0x10"));
        assert!(message("zzz").contains("hexadecimal address"));
        assert!(message("nt!NtCreateFile+0xffffffffffffffff").contains("beyond"));
    }
}
