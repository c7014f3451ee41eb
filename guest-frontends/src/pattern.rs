//! What a checkable disk holds: each sector says which one it is and which run wrote
//! it, so that a sector that is stale, torn or in the wrong place is seen as that.

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;

/// The contents of a sector: its number (u64, little-endian), the seed of the run
/// (the same), then 62 words of xorshift64* (Vigna 2016: shifts 12, 25, 27, multiplier
/// 0x2545f4914f6cdd1d), little-endian, from the state
/// `seed ^ (sector + 1) * 0x9e3779b97f4a7c15` (wrapping; 1 where that is 0).
pub fn pattern_sector(seed: u64, sector: u64) -> [u8; SECTOR_BYTES] {
    let mut bytes = [0; SECTOR_BYTES];
    let mut state = seed ^ sector.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    if state == 0 {
        state = 1;
    }
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match i {
            0 => sector,
            1 => seed,
            _ => next(&mut state),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

pub(crate) fn next(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// Fills whole sectors, the first of which is `sector`.
pub fn fill(seed: u64, sector: u64, into: &mut [u8]) {
    for (number, bytes) in (sector..).zip(into.chunks_exact_mut(SECTOR_BYTES)) {
        bytes.copy_from_slice(&pattern_sector(seed, number));
    }
}

/// The first sector of `bytes` that is not as it should be. `sector` is the number of
/// the first one.
pub fn first_wrong(seed: u64, sector: u64, bytes: &[u8]) -> Option<u64> {
    (sector..)
        .zip(bytes.chunks_exact(SECTOR_BYTES))
        .find(|(number, bytes)| *bytes != pattern_sector(seed, *number))
        .map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_says_its_number_and_seed_and_goes_on_as_xorshift() {
        let bytes = pattern_sector(7, 3);
        let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap());
        assert_eq!((word(0), word(1)), (3, 7));
        // The oracle: the same in 128-bit arithmetic.
        let mask = u128::from(u64::MAX);
        let mut x = 7 ^ ((4 * 0x9e37_79b9_7f4a_7c15_u128) & mask);
        for i in 2..64 {
            x ^= x >> 12;
            x = (x ^ x << 25) & mask;
            x ^= x >> 27;
            assert_eq!(u128::from(word(i)), (x * 0x2545_f491_4f6c_dd1d) & mask);
        }
    }

    #[test]
    fn one_wrong_bit_or_two_sectors_exchanged_are_found() {
        let mut bytes = [0; 4 * SECTOR_BYTES];
        fill(1, 10, &mut bytes);
        assert_eq!(first_wrong(1, 10, &bytes), None);
        assert_eq!(first_wrong(2, 10, &bytes), Some(10));
        bytes[2 * SECTOR_BYTES + 77] ^= 1;
        assert_eq!(first_wrong(1, 10, &bytes), Some(12));
        bytes.copy_within(0..SECTOR_BYTES, SECTOR_BYTES);
        assert_eq!(first_wrong(1, 10, &bytes), Some(11));
    }
}
