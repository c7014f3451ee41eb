//! Checksums of a disk that the front end keeps for itself, so that a back end or a
//! device that gives back other bytes than were written is caught by the first read.
//!
//! A block is 4 KiB (the last one of a disk may be shorter). What was never written or
//! read is not known, and the first read of it is believed; so is the first one after a
//! write that failed. Requests are of whole blocks, and none meets another that is under
//! way if one of the two writes: otherwise it could not be said what is right.

use super::disk::SECTOR_BYTES;
use crate::checksum::crc32c;
use alloc::vec::Vec;
use core::ops::Range;

/// Bytes that have one checksum.
pub const BLOCK_BYTES: usize = 4096;
const BLOCK_SECTORS: u64 = (BLOCK_BYTES / SECTOR_BYTES) as u64;

/// The disk gave back bytes that were not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// First sector of the first such block.
    pub sector: u64,
}

/// Why a request cannot be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is not of whole blocks.
    Unaligned,
    /// It meets a request under way, and one of them writes.
    Conflict,
}

/// A request under way.
#[derive(Debug)]
struct UnderWay {
    blocks: Range<u64>,
    is_write: bool,
}

/// A write that is allowed, with what its blocks will have.
#[derive(Debug)]
pub(super) struct Sums(Vec<u32>);

/// The checksums of one disk.
#[derive(Debug)]
pub struct Integrity {
    sectors: u64,
    sums: Vec<u32>,
    /// Bit by block: the checksum is known.
    known: Vec<u64>,
    under_way: Vec<UnderWay>,
}

impl Integrity {
    /// Of a disk of so many sectors; nothing is known. `None` when memory is short.
    pub fn new(sectors: u64) -> Option<Self> {
        let blocks = usize::try_from(sectors.div_ceil(BLOCK_SECTORS)).ok()?;
        let (mut sums, mut known) = (Vec::new(), Vec::new());
        sums.try_reserve_exact(blocks).ok()?;
        known.try_reserve_exact(blocks.div_ceil(64)).ok()?;
        sums.resize(blocks, 0);
        known.resize(blocks.div_ceil(64), 0);
        Some(Self { sectors, sums, known, under_way: Vec::new() })
    }

    /// The blocks of a request, which is inside the disk.
    fn blocks(&self, sector: u64, bytes: usize) -> Result<Range<u64>, Refused> {
        let end = sector + (bytes / SECTOR_BYTES) as u64;
        let is_whole = end.is_multiple_of(BLOCK_SECTORS) || end == self.sectors;
        match sector.is_multiple_of(BLOCK_SECTORS) && is_whole {
            true => Ok(sector / BLOCK_SECTORS..end.div_ceil(BLOCK_SECTORS)),
            false => Err(Refused::Unaligned),
        }
    }

    fn begin(&mut self, sector: u64, bytes: usize, is_write: bool) -> Result<(), Refused> {
        let blocks = self.blocks(sector, bytes)?;
        let clashes = |other: &UnderWay| {
            let meet = other.blocks.start < blocks.end && blocks.start < other.blocks.end;
            meet && (is_write || other.is_write)
        };
        if self.under_way.iter().any(clashes) {
            return Err(Refused::Conflict);
        }
        self.under_way.push(UnderWay { blocks, is_write });
        Ok(())
    }

    /// Begins a read.
    pub(super) fn begin_read(&mut self, sector: u64, bytes: usize) -> Result<(), Refused> {
        self.begin(sector, bytes, false)
    }

    /// Begins a write.
    pub(super) fn begin_write(&mut self, sector: u64, data: &[u8]) -> Result<Sums, Refused> {
        self.begin(sector, data.len(), true)?;
        Ok(Sums(data.chunks(BLOCK_BYTES).map(|block| crc32c(&[block])).collect()))
    }

    /// A request is not under way any more.
    fn end(&mut self, sector: u64, is_write: bool) {
        let first = sector / BLOCK_SECTORS;
        let is_it = |other: &UnderWay| other.blocks.start == first && other.is_write == is_write;
        if let Some(at) = self.under_way.iter().position(is_it) {
            self.under_way.swap_remove(at);
        }
    }

    /// A write is over. One that failed may have happened in part.
    pub(super) fn end_write(&mut self, sector: u64, sums: &Sums, went_well: bool) {
        self.end(sector, true);
        for (block, &sum) in (sector / BLOCK_SECTORS..).zip(&sums.0) {
            self.set(block, went_well.then_some(sum));
        }
    }

    /// A read is over and `data` is what it gave: the start of it, or nothing if it failed.
    pub(super) fn end_read(&mut self, sector: u64, data: &[u8]) -> Result<(), Mismatch> {
        self.end(sector, false);
        let mut verdict = Ok(());
        for (block, data) in (sector / BLOCK_SECTORS..).zip(data.chunks(BLOCK_BYTES)) {
            if data.len() as u64 != self.bytes(block) {
                break;
            }
            let sum = crc32c(&[data]);
            match self.get(block) {
                None => self.set(block, Some(sum)),
                Some(expected) if expected == sum => {}
                Some(_) => {
                    verdict = verdict.and(Err(Mismatch { sector: block * BLOCK_SECTORS }));
                }
            }
        }
        verdict
    }

    /// How long a block is.
    fn bytes(&self, block: u64) -> u64 {
        let left = self.sectors.saturating_sub(block * BLOCK_SECTORS);
        left.min(BLOCK_SECTORS) * SECTOR_BYTES as u64
    }

    fn get(&self, block: u64) -> Option<u32> {
        let block = usize::try_from(block).ok()?;
        let known = self.known.get(block / 64)? >> (block % 64) & 1 == 1;
        self.sums.get(block).copied().filter(|_| known)
    }

    fn set(&mut self, block: u64, sum: Option<u32>) {
        let Ok(block) = usize::try_from(block) else { return };
        let (Some(place), Some(known)) = (self.sums.get_mut(block), self.known.get_mut(block / 64))
        else {
            return;
        };
        let bit = 1 << (block % 64);
        *place = sum.unwrap_or_default();
        *known = if sum.is_some() { *known | bit } else { *known & !bit };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn requests_that_meet_are_refused_unless_both_read() {
        let mut integrity = Integrity::new(64).unwrap();
        integrity.begin_read(0, 8192).unwrap();
        integrity.begin_read(8, 8192).unwrap();
        assert_eq!(integrity.begin_write(16, &[0; 4096]).err(), Some(Refused::Conflict));
        let sums = integrity.begin_write(24, &[0; 4096]).unwrap();
        assert_eq!(integrity.begin_read(16, 8192), Err(Refused::Conflict));
        assert_eq!(integrity.begin_write(24, &[0; 4096]).err(), Some(Refused::Conflict));
        integrity.end_write(24, &sums, true);
        integrity.end_read(8, &[]).unwrap();
        integrity.begin_write(16, &[0; 4096]).unwrap();
    }

    #[test]
    fn parts_of_blocks_are_refused_except_at_the_end_of_the_disk() {
        let mut integrity = Integrity::new(19).unwrap();
        for (sector, bytes) in [(1, 4096), (0, 512), (8, 4608), (16, 512)] {
            assert_eq!(integrity.begin_read(sector, bytes), Err(Refused::Unaligned));
        }
        integrity.begin_read(8, 4096 + 1536).unwrap();
        integrity.end_read(8, &[3; 4096 + 1536]).unwrap();
        integrity.begin_read(16, 1536).unwrap();
        assert_eq!(integrity.end_read(16, &[4; 1536]), Err(Mismatch { sector: 16 }));
    }

    proptest! {
        #[test]
        fn what_a_read_gives_is_right_exactly_if_it_is_what_was_written(
            steps in prop::collection::vec((0_u64..4, 1_u64..4, any::<u8>(), 0_u8..4), 1..40),
        ) {
            // The oracle keeps the bytes themselves.
            let mut disk = vec![0_u8; 6 * 4096];
            let mut right: Vec<Option<Vec<u8>>> = vec![None; 6];
            let mut integrity = Integrity::new(48).unwrap();
            for (block, count, value, what) in steps {
                let count = count.min(6 - block);
                let range = block as usize * 4096..(block + count) as usize * 4096;
                match what {
                    0 => {
                        let data = vec![value; range.len()];
                        let sums = integrity.begin_write(block * 8, &data).unwrap();
                        disk[range.clone()].copy_from_slice(&data);
                        integrity.end_write(block * 8, &sums, true);
                        for b in block..block + count {
                            right[b as usize] = Some(vec![value; 4096]);
                        }
                    }
                    // The disk goes bad without a word.
                    1 => disk[range.start + usize::from(value)] ^= 1,
                    // A write that fails half way.
                    2 => {
                        let data = vec![value; range.len()];
                        let sums = integrity.begin_write(block * 8, &data).unwrap();
                        disk[range.start..range.start + 2048].fill(value);
                        integrity.end_write(block * 8, &sums, false);
                        for b in block..block + count {
                            right[b as usize] = None;
                        }
                    }
                    _ => {
                        integrity.begin_read(block * 8, range.len()).unwrap();
                        let found = integrity.end_read(block * 8, &disk[range]);
                        let mut expected = Ok(());
                        for b in (block..block + count).rev() {
                            let held = disk[b as usize * 4096..][..4096].to_vec();
                            match &right[b as usize] {
                                Some(right) if *right != held => {
                                    expected = Err(Mismatch { sector: b * 8 });
                                }
                                _ => right[b as usize] = Some(held),
                            }
                        }
                        prop_assert_eq!(found, expected);
                    }
                }
            }
        }
    }
}
