//! Whether a guest that asks to be rebooted is built again. One that does nothing but
//! reboot would keep the machine busy for ever, so there is a limit.

use alloc::{format, string::String};
use bulkhead_link::OnReboot;

/// A life shorter than this ends a boot that failed.
pub const SHORT_LIFE_NS: u64 = 10_000_000_000;
/// So many short lives in a row are enough.
pub const MOST_SHORT_LIVES: u32 = 5;

/// What a guest may do about reboots, and what it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reboots {
    pub policy: OnReboot,
    short_lives: u32,
}

impl Reboots {
    /// For a guest that has not run yet.
    pub fn new(policy: OnReboot) -> Self {
        Self { policy, short_lives: 0 }
    }

    /// Takes note that it asked for a reboot after running for `lived_ns`. `Err` says why it
    /// is not to be built again; empty if that is what the set-up wants.
    pub fn asked(&mut self, lived_ns: u64) -> Result<(), String> {
        if self.policy == OnReboot::Destroy {
            return Err(String::new());
        }
        self.short_lives = match lived_ns < SHORT_LIFE_NS {
            true => self.short_lives + 1,
            false => 0,
        };
        if self.short_lives < MOST_SHORT_LIVES {
            return Ok(());
        }
        Err(format!(
            "it asked for a reboot {MOST_SHORT_LIVES} times in a row within {} s of its start; \
             it is not started again",
            SHORT_LIFE_NS / 1_000_000_000
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_only_reboots_is_given_up_after_the_fifth_time() {
        let mut reboots = Reboots::new(OnReboot::Restart);
        for _ in 1..MOST_SHORT_LIVES {
            assert_eq!(reboots.asked(SHORT_LIFE_NS - 1), Ok(()));
        }
        assert!(reboots.asked(1).unwrap_err().contains("5 times in a row within 10 s"));
    }

    #[test]
    fn a_life_of_some_length_starts_the_count_anew() {
        let mut reboots = Reboots::new(OnReboot::Restart);
        for round in 0..100 {
            let lived = if round % 5 == 4 { SHORT_LIFE_NS } else { 0 };
            assert_eq!(reboots.asked(lived), Ok(()), "{round}");
        }
    }

    #[test]
    fn a_guest_that_is_not_to_restart_does_not() {
        assert_eq!(Reboots::new(OnReboot::Destroy).asked(u64::MAX), Err(String::new()));
    }
}
