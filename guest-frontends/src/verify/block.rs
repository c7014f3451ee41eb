//! What a block of 4 KiB says of itself: which run wrote it, to which block of which
//! disk, as which write. Each of its sectors repeats that, so that a block made of two
//! writes is seen as such, and a checksum covers all of it.
//!
//! A sector: magic (u64), seed (u64), block (u64), generation (u64), disk (u32), number of
//! the sector in its block (u32), checksum of the block (u32, in sector 0 only), 0 (u32);
//! then words of xorshift64* as in [`crate::pattern`]. All little-endian.

use crate::checksum::crc32c;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// Sectors of a block.
pub const BLOCK_SECTORS: u64 = 8;

const SECTOR: usize = 512;
const HEAD: usize = 48;
const SUM: usize = 40;
const MAGIC: u64 = u64::from_le_bytes(*b"BHVERIFY");

/// Who wrote a block, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Of the run.
    pub seed: u64,
    /// Which disk of the guest.
    pub disk: u32,
    /// Which block of the disk, in blocks.
    pub block: u64,
    /// Which write: later ones have higher numbers; never 0.
    pub generation: u64,
}

/// What a block turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All zero.
    Blank,
    /// One write, all of it.
    Whole(Stamp),
    /// Sectors of different writes; a generation of 0 is a sector without a stamp.
    Torn(u64, u64),
    /// Neither.
    Damaged,
}

/// Fills one block.
pub fn fill(stamp: &Stamp, into: &mut [u8; BLOCK_BYTES]) {
    let mix = stamp.block.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut state = (stamp.seed ^ mix ^ stamp.generation.rotate_left(32)).max(1);
    let (sectors, _) = into.as_chunks_mut::<SECTOR>();
    for (number, sector) in (0..).zip(sectors) {
        let (head, rest) = sector.split_at_mut(HEAD);
        head.copy_from_slice(&head_of(stamp, number));
        for word in rest.as_chunks_mut::<8>().0 {
            *word = crate::pattern::next(&mut state).to_le_bytes();
        }
    }
    let sum = sum_of(into);
    if let Some(place) = into.get_mut(SUM..SUM + 4) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}

fn head_of(stamp: &Stamp, number: u32) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let words = [
        MAGIC,
        stamp.seed,
        stamp.block,
        stamp.generation,
        u64::from(stamp.disk) | u64::from(number) << 32,
    ];
    for (place, word) in head.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    head
}

/// The checksum of a block, as if its own place held 0.
fn sum_of(block: &[u8; BLOCK_BYTES]) -> u32 {
    let (before, rest) = block.split_at(SUM);
    crc32c(&[before, &[0; 4], rest.get(4..).unwrap_or_default()])
}

/// The stamp of one sector, if it has one and is the sector `number` of its block.
fn stamp_of(sector: &[u8; SECTOR], number: u32) -> Option<Stamp> {
    let (words, _) = sector.as_chunks::<8>();
    let word = |i: usize| words.get(i).map_or(0, |word| u64::from_le_bytes(*word));
    let stamp = Stamp { seed: word(1), disk: word(4) as u32, block: word(2), generation: word(3) };
    let is_ours = word(0) == MAGIC && word(4) >> 32 == u64::from(number);
    (is_ours && stamp.generation != 0).then_some(stamp)
}

/// Reads a block.
pub fn read(block: &[u8; BLOCK_BYTES]) -> Content {
    let (sectors, _) = block.as_chunks::<SECTOR>();
    let mut stamps = (0..).zip(sectors).map(|(number, sector)| stamp_of(sector, number));
    let first = stamps.next().flatten();
    let generation = |stamp: Option<Stamp>| stamp.map_or(0, |stamp| stamp.generation);
    if let Some(other) = stamps.find(|stamp| *stamp != first) {
        return Content::Torn(generation(first), generation(other));
    }
    match first {
        Some(stamp) if sum_in(block) == sum_of(block) => Content::Whole(stamp),
        None if block.iter().all(|&byte| byte == 0) => Content::Blank,
        Some(_) | None => Content::Damaged,
    }
}

fn sum_in(block: &[u8; BLOCK_BYTES]) -> u32 {
    let place = block.get(SUM..).and_then(<[u8]>::first_chunk);
    place.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamped(block: u64, generation: u64) -> ([u8; BLOCK_BYTES], Stamp) {
        let stamp = Stamp { seed: 7, disk: 2, block, generation };
        let mut bytes = [0; BLOCK_BYTES];
        fill(&stamp, &mut bytes);
        (bytes, stamp)
    }

    #[test]
    fn zeroes_are_blank_and_ones_are_damaged() {
        assert_eq!(read(&[0; BLOCK_BYTES]), Content::Blank);
        assert_eq!(read(&[1; BLOCK_BYTES]), Content::Damaged);
    }

    proptest! {
        #[test]
        fn a_block_says_who_wrote_it(seed: u64, disk: u32, block: u64, generation in 1_u64..) {
            let stamp = Stamp { seed, disk, block, generation };
            let mut bytes = [0xa5; BLOCK_BYTES];
            fill(&stamp, &mut bytes);
            prop_assert_eq!(read(&bytes), Content::Whole(stamp));
        }

        #[test]
        fn a_block_of_two_writes_names_both(sectors in 1_usize..8, later_first: bool) {
            let ((old, _), (new, _)) = (stamped(5, 10), stamped(5, 11));
            let (mut bytes, other) = if later_first { (new, old) } else { (old, new) };
            bytes[sectors * 512..].copy_from_slice(&other[sectors * 512..]);
            let expected = if later_first { Content::Torn(11, 10) } else { Content::Torn(10, 11) };
            prop_assert_eq!(read(&bytes), expected);
        }

        #[test]
        fn no_changed_bit_goes_unseen(bit in 0_usize..BLOCK_BYTES * 8) {
            let (mut bytes, stamp) = stamped(9, 3);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(read(&bytes), Content::Whole(stamp));
            prop_assert!(!matches!(read(&bytes), Content::Whole(_) | Content::Blank));
        }

        #[test]
        fn sectors_in_another_order_are_not_a_whole_block(a in 0_usize..8, b in 0_usize..8) {
            prop_assume!(a != b);
            let (bytes, _) = stamped(9, 3);
            let mut swapped = bytes;
            swapped[a * 512..][..512].copy_from_slice(&bytes[b * 512..][..512]);
            swapped[b * 512..][..512].copy_from_slice(&bytes[a * 512..][..512]);
            prop_assert!(!matches!(read(&swapped), Content::Whole(_)));
        }
    }
}
