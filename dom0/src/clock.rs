//! The wall clock that guests start with: what it showed when system time was 0. The
//! host says what time it is; system time counts from the core's boot.

/// How fast the machine's clock may drift against the host's, in parts of a million.
const DRIFT_PPM: u64 = 500;
/// A host's clock that is this far behind what it was has been set back.
const STEP_NS: u64 = 2_000_000_000;

/// The wall clock as the host told it.
///
/// What the host says is late by its way here, which takes up to some tenths of a second
/// on a busy host. So the latest time counts of all that were told, less what the clocks may
/// have drifted apart since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WallClock {
    at_boot_ns: u64,
    /// System time at which the host told it; `None` for a guess.
    told_ns: Option<u64>,
}

impl WallClock {
    /// A clock that showed about `unix_ns` (ns since 1970) at boot.
    pub fn at_boot(unix_ns: u64) -> Self {
        Self { at_boot_ns: unix_ns, told_ns: None }
    }

    /// The host said that it is `unix_ns`, and this was heard at system time `now_ns`.
    pub fn hear(&mut self, unix_ns: u64, now_ns: u64) {
        let heard = unix_ns.saturating_sub(now_ns);
        let kept = self.told_ns.map_or(0, |told| {
            let drift = now_ns.saturating_sub(told).saturating_mul(DRIFT_PPM) / 1_000_000;
            self.at_boot_ns.saturating_sub(drift)
        });
        self.told_ns = Some(now_ns);
        self.at_boot_ns = match kept.saturating_sub(heard) > STEP_NS {
            true => heard,
            false => heard.max(kept),
        };
    }

    /// What it showed at system time 0: seconds since 1970, and ns.
    pub fn at_zero(self) -> (u64, u32) {
        const SECOND: u64 = 1_000_000_000;
        // Less than a second of ns.
        (self.at_boot_ns / SECOND, (self.at_boot_ns % SECOND) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_guest_that_adds_system_time_gets_what_the_host_said() {
        let mut clock = WallClock::at_boot(5);
        assert_eq!(clock.at_zero(), (0, 5));
        clock.hear(1_700_000_000_250_000_000, 4_500_000_000);
        assert_eq!(clock.at_zero(), (1_699_999_995, 750_000_000));
    }

    #[test]
    fn a_clock_that_was_set_back_or_forward_is_followed() {
        let mut clock = WallClock::at_boot(u64::MAX);
        for (unix, now) in [(900_000 * MS, 1), (100_000 * MS, 2), (500_000 * MS, 3), (1, 4)] {
            clock.hear(unix, now);
            let (seconds, ns) = clock.at_zero();
            assert_eq!(seconds * 1_000_000_000 + u64::from(ns), unix.saturating_sub(now));
        }
    }

    proptest! {
        #[test]
        fn late_messages_do_no_harm_beside_a_prompt_one(
            late in prop::collection::vec(0u64..1500, 1..20),
            prompt in 0usize..20,
            drift_ppm in -200i64..200,
        ) {
            let start = 1_700_000_000_000 * MS;
            let mut clock = WallClock::at_boot(7);
            let prompt = prompt % late.len();
            for (index, delay) in late.iter().enumerate() {
                // A second apart by the machine's clock, which drifts.
                let sent = 1000 * MS * (index as u64 + 1);
                let unix = (start + sent).wrapping_add_signed(sent as i64 * drift_ppm / 1_000_000);
                let delay = if index == prompt { 0 } else { *delay };
                clock.hear(unix, sent + delay * MS);
            }
            let (seconds, ns) = clock.at_zero();
            let shown = (seconds * 1_000_000_000 + u64::from(ns)) as i64;
            // Twenty seconds of drift, and of the allowance for it.
            prop_assert!((shown - start as i64).abs() <= 20 * (200 + DRIFT_PPM as i64) * 1000 + MS as i64);
        }
    }
}
