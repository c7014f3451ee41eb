//! Numbers from a seed. Drawn from ChaCha8 by code of this module alone, so that a
//! seed means the same faults whatever the version of a library.

use crate::units::Seed;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The numbers of one fault.
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// Those of fault `number`: a stream of its own, so that no other fault's draws
    /// shift them.
    pub fn new(seed: Seed, number: u64) -> Self {
        let mut key = *b"bulkhead fault campaign 1.......";
        key[24..].copy_from_slice(&seed.number().to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(number);
        Self(rng)
    }

    /// A number from 0 to `bound` - 1, each as likely as the other.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a choice among nothing");
        // Lemire's multiplication, which rejects the few values that would be favoured.
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let wide = u128::from(self.0.next_u64()) * u128::from(bound);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// An index into `length` things.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// A number from `low` to `high`, both possible.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below(u64::from(high - low) + 1) as u32
    }

    /// An index, as likely as its weight says.
    ///
    /// # Panics
    /// If all weights are 0.
    pub fn weighted(&mut self, weights: impl Iterator<Item = u32> + Clone) -> usize {
        let mut at = self.below(weights.clone().map(u64::from).sum());
        for (index, weight) in weights.enumerate() {
            match at.checked_sub(u64::from(weight)) {
                Some(rest) => at = rest,
                None => return index,
            }
        }
        unreachable!("the draw is below the sum of the weights")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dice(number: u64) -> Dice {
        Dice::new(Seed::new(7).unwrap(), number)
    }

    #[test]
    fn a_seed_means_these_numbers_for_ever() {
        let mut some = dice(3);
        let drawn: Vec<_> = (0..6).map(|_| some.below(1000)).collect();
        assert_eq!(drawn, [495, 614, 283, 57, 296, 412]);
    }

    #[test]
    fn every_face_comes_about_as_often_as_the_others() {
        let mut counts = [0u32; 6];
        for number in 0..600 {
            let mut dice = dice(number);
            (0..10).for_each(|_| counts[dice.index(6)] += 1);
        }
        // 1000 expected; six standard deviations are 173.
        assert!(counts.iter().all(|c| c.abs_diff(1000) < 173), "{counts:?}");
    }

    #[test]
    fn weights_are_shares_and_zero_is_never() {
        let mut counts = [0u32; 3];
        let mut dice = dice(0);
        (0..4000).for_each(|_| counts[dice.weighted([1, 0, 3].into_iter())] += 1);
        assert_eq!(counts[1], 0);
        assert!(counts[0].abs_diff(1000) < 165, "{counts:?}");
    }
}
