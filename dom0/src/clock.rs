//! The wall clock that guests start with: what it showed when system time was 0. The
//! host says what time it is; system time counts from the core's boot.

/// What the host said last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WallClock {
    at_boot_ns: u64,
}

impl WallClock {
    /// A clock that showed `unix_ns` (ns since 1970) at boot.
    pub fn at_boot(unix_ns: u64) -> Self {
        Self { at_boot_ns: unix_ns }
    }

    /// Sets it: it is `unix_ns` now, at system time `now_ns`.
    pub fn set(&mut self, unix_ns: u64, now_ns: u64) {
        self.at_boot_ns = unix_ns.saturating_sub(now_ns);
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

    #[test]
    fn a_guest_that_adds_system_time_gets_what_the_host_said() {
        let mut clock = WallClock::at_boot(5);
        assert_eq!(clock.at_zero(), (0, 5));
        clock.set(1_700_000_000_250_000_000, 4_500_000_000);
        assert_eq!(clock.at_zero(), (1_699_999_995, 750_000_000));
        clock.set(1, 2);
        assert_eq!(clock.at_zero(), (0, 0));
    }
}
