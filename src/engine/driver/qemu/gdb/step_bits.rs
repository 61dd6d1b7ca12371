//! How a stub makes single steps.

/// What single steps may be asked to do (`qqemu.sstepbits`; QEMU: `gdbstub/`, "Changing single-stepping behaviour").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepBits {
    /// Keeps out what can be kept out: interrupts, and timers where the accelerator can (TCG; KVM cannot).
    pub quiet: u8,
    /// Lets them in.
    pub with_interrupts: u8,
}

impl StepBits {
    /// Reads `ENABLE=1,NOIRQ=2,NOTIMER=4`; `None` for anything that does not name a bit to step with.
    pub fn parse(reply: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(reply).ok()?;
        let bit = |name: &str| {
            let value = text.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
            u8::from_str_radix(value, 16).ok().filter(|bit| bit.is_power_of_two())
        };
        let enable = bit("ENABLE")?;
        Some(Self { quiet: enable | bit("NOIRQ").unwrap_or(0) | bit("NOTIMER").unwrap_or(0), with_interrupts: enable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_bits_are_those_that_the_stub_offers() {
        let of = |text: &str| StepBits::parse(text.as_bytes()).map(|bits| (bits.quiet, bits.with_interrupts));
        assert_eq!(of("ENABLE=1,NOIRQ=2,NOTIMER=4"), Some((7, 1)));
        assert_eq!(of("ENABLE=1,NOIRQ=2"), Some((3, 1)), "KVM");
        assert_eq!(of("ENABLE=1"), Some((1, 1)));
        for absurd in ["", "NOIRQ=2", "ENABLE=", "ENABLE=0", "ENABLE=3", "ENABLE=100", "ENABLE=-1", "E22", "\u{1b}"] {
            assert_eq!(of(absurd), None, "{absurd}");
        }
        assert_eq!(of("ENABLE=1,NOIRQ=ffffffffffffffffff,NOTIMER=6"), Some((1, 1)), "only what makes sense");
    }
}
