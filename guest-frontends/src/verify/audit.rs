//! The table of a finished run, kept in the last blocks of its disk, and the judgement of
//! an image by it. The guest writes the table, the host reads it: neither needs the other.
//!
//! A block of the table: magic (u64), seed (u64), its number in the table (u64), blocks
//! that the table covers (u64), checksum of this block with 0 in its place (u32), disk
//! (u32), digest of all entries (u64), 16 bytes of 0; then entries (u64 each): the
//! generation that a block must hold, 0 where that is not known. All little-endian.

use super::block::{self, BLOCK_BYTES};
use super::table::{Table, Wrong};
use crate::checksum::crc32c;
use alloc::vec::Vec;
use core::fmt;
use crc::{CRC_64_XZ, Crc};

const MAGIC: u64 = u64::from_le_bytes(*b"BHTABLE\0");
const HEAD: usize = 64;
const SUM: usize = 32;
/// Entries in a block of the table.
const ENTRIES: u64 = ((BLOCK_BYTES - HEAD) / 8) as u64;

static CRC64: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

/// Where the table of a disk of `blocks` blocks starts: what is before it is for data.
pub fn table_start(blocks: u64) -> u64 {
    blocks - blocks.div_ceil(ENTRIES + 1)
}

/// Blocks that the table of `covered` blocks takes.
fn table_blocks(covered: u64) -> u64 {
    covered.div_ceil(ENTRIES).max(1)
}

/// Identifies what the table says, for a console and an image to be compared.
pub fn digest(table: &Table) -> u64 {
    let mut digest = CRC64.digest();
    for block in 0..table.blocks() {
        digest.update(&table.expected(block).to_le_bytes());
    }
    digest.finalize()
}

/// The blocks of a table, in order, to be written from [`table_start`] on.
pub fn encode(table: &Table) -> impl Iterator<Item = [u8; BLOCK_BYTES]> + '_ {
    let digest = digest(table);
    (0..table_blocks(table.blocks())).map(move |number| encode_block(table, number, digest))
}

fn encode_block(table: &Table, number: u64, digest: u64) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    let head =
        [MAGIC, table.seed(), number, table.blocks(), u64::from(table.disk()) << 32, digest, 0, 0];
    let entries = (number * ENTRIES..).take(ENTRIES as usize).map(|block| table.expected(block));
    let (words, _) = bytes.as_chunks_mut::<8>();
    for (place, word) in words.iter_mut().zip(head.into_iter().chain(entries)) {
        *place = word.to_le_bytes();
    }
    let sum = sum_of(&bytes);
    if let Some(place) = bytes.get_mut(SUM..SUM + 4) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

fn sum_of(block: &[u8; BLOCK_BYTES]) -> u32 {
    let (before, rest) = block.split_at(SUM);
    crc32c(&[before, &[0; 4], rest.get(4..).unwrap_or_default()])
}

/// The words of a block of the table; `None` if it is none, or not whole.
fn decode(block: &[u8; BLOCK_BYTES]) -> Option<Vec<u64>> {
    let words: Vec<u64> =
        block.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let sum = *words.get(SUM / 8)? as u32;
    (words.first() == Some(&MAGIC) && sum == sum_of(block)).then_some(words)
}

/// What an image turned out to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Of the run that wrote it.
    pub seed: u64,
    /// Which disk of the guest it was.
    pub disk: u32,
    /// Blocks that the table covers.
    pub blocks: u64,
    /// Those of which nothing is expected.
    pub unknown: u64,
    /// Of the table, as the guest printed it.
    pub digest: u64,
    /// What is wrong, by block.
    pub wrong: Vec<Wrong>,
}

/// Why an image cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditError<E> {
    /// The run did not get to the end: this block holds no table, or not all of one.
    NoTable(u64),
    /// There is no memory for the table.
    NoMemory,
    /// A block cannot be read.
    Read(u64, E),
}

impl<E: fmt::Display> fmt::Display for AuditError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTable(block) => write!(
                f,
                "block {block} does not hold the table of a finished run: let disk-verify come \
                 to its end, on an image of this size"
            ),
            Self::NoMemory => f.write_str("there is no memory for the table of the image"),
            Self::Read(block, error) => write!(f, "block {block} cannot be read: {error}"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> core::error::Error for AuditError<E> {}

/// Judges an image of `blocks` blocks of 4 KiB by the table in it. `read` gives a block.
///
/// # Errors
/// There is no table, or something cannot be read. What is merely wrong is in the audit.
pub fn audit<E>(
    blocks: u64,
    mut read: impl FnMut(u64, &mut [u8; BLOCK_BYTES]) -> Result<(), E>,
) -> Result<Audit, AuditError<E>> {
    let mut get = |block| {
        let mut bytes = [0; BLOCK_BYTES];
        read(block, &mut bytes).map_err(|error| AuditError::Read(block, error)).map(|()| bytes)
    };
    let start = if blocks == 0 { 0 } else { table_start(blocks) };
    let mut table = read_table(start, blocks, &mut get)?;
    let known = |table: &Table| (0..table.blocks()).filter(|&b| table.expected(b) != 0).count();
    let mut audit = Audit {
        seed: table.seed(),
        disk: table.disk(),
        blocks: table.blocks(),
        unknown: table.blocks() - known(&table) as u64,
        digest: digest(&table),
        wrong: Vec::new(),
    };
    for block in 0..table.blocks() {
        audit.wrong.extend(table.check(block, block::read(&get(block)?)).err());
    }
    Ok(audit)
}

fn read_table<E>(
    start: u64,
    blocks: u64,
    get: &mut impl FnMut(u64) -> Result<[u8; BLOCK_BYTES], AuditError<E>>,
) -> Result<Table, AuditError<E>> {
    let none = |number: u64| AuditError::NoTable(start + number);
    let mut table: Option<(Table, u64)> = None;
    let mut number = 0;
    loop {
        if start + number >= blocks {
            return Err(none(number));
        }
        let words = decode(&get(start + number)?).ok_or(none(number))?;
        let [_, seed, place, covered, disk, digest, _, _, ..] = *words.as_slice() else {
            return Err(none(number));
        };
        if place != number || covered > start {
            return Err(none(number));
        }
        let disk = (disk >> 32) as u32;
        if table.is_none() {
            let new = Table::new(seed, disk, covered).ok_or(AuditError::NoMemory)?;
            table = Some((new, digest));
        }
        let Some((table, whole)) = &mut table else { return Err(none(number)) };
        if (table.seed(), table.disk(), table.blocks(), *whole) != (seed, disk, covered, digest) {
            return Err(none(number));
        }
        let entries = words.iter().skip(HEAD / 8);
        for (block, &generation) in (number * ENTRIES..covered).zip(entries) {
            table.acknowledge(block, generation);
        }
        number += 1;
        if number == table_blocks(covered) {
            break;
        }
    }
    match table {
        Some((table, whole)) if digest(&table) == whole => Ok(table),
        _ => Err(none(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Kind;
    use super::*;
    use alloc::vec;
    use core::convert::Infallible;
    use proptest::prelude::*;

    type Image = Vec<[u8; BLOCK_BYTES]>;

    /// An image of a run that wrote `covered` of `blocks` blocks, and its table.
    fn image(blocks: u64, covered: u64) -> (Image, Table) {
        let mut image = vec![[0; BLOCK_BYTES]; blocks as usize];
        let mut table = Table::new(4, 1, covered).unwrap();
        for block in (0..covered).filter(|block| block % 7 != 3) {
            let generation = 1 + block * 13 % 31;
            block::fill(&table.stamp(block, generation), &mut image[block as usize]);
            table.acknowledge(block, generation);
        }
        for (at, block) in (table_start(blocks)..).zip(encode(&table)) {
            image[at as usize] = block;
        }
        (image, table)
    }

    fn judge(image: &Image) -> Result<Audit, AuditError<Infallible>> {
        audit(image.len() as u64, |block, into| {
            *into = image[block as usize];
            Ok(())
        })
    }

    #[test]
    fn the_table_of_the_largest_run_fits_behind_its_blocks() {
        for blocks in 1..3000 {
            let start = table_start(blocks);
            assert!(start + table_blocks(start) <= blocks.max(1), "{blocks}");
        }
    }

    #[test]
    fn an_image_without_a_whole_table_is_refused_with_the_block_to_look_at() {
        let start = table_start(1200);
        let empty = vec![[0; BLOCK_BYTES]; 1200];
        assert_eq!(judge(&empty), Err(AuditError::NoTable(start)));
        assert_eq!(judge(&Vec::new()), Err(AuditError::NoTable(0)));
        let (mut torn, _) = image(1200, start);
        torn[start as usize + 1][4095] ^= 1;
        assert_eq!(judge(&torn), Err(AuditError::NoTable(start + 1)));
    }

    #[test]
    fn blocks_of_two_tables_are_none() {
        let start = table_start(1200);
        let (mut image, mut table) = image(1200, start);
        table.acknowledge(0, 9999);
        image[start as usize] = encode(&table).next().unwrap();
        assert_eq!(judge(&image), Err(AuditError::NoTable(start + 1)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn an_image_is_as_its_table_says_until_a_block_changes(
            blocks in 2_u64..1100, part in 0_u64..=100, victim: prop::sample::Index,
        ) {
            let covered = (table_start(blocks) * part / 100).max(1);
            let (mut image, table) = image(blocks, covered);
            let found = judge(&image).unwrap();
            prop_assert_eq!(&found.wrong, &vec![]);
            prop_assert_eq!((found.seed, found.disk, found.blocks), (4, 1, covered));
            prop_assert_eq!(found.digest, digest(&table));
            prop_assert_eq!(found.unknown, (0..covered).filter(|b| b % 7 == 3).count() as u64);

            let block = victim.index(covered as usize) as u64;
            image[block as usize] = [0; BLOCK_BYTES];
            let wrong = judge(&image).unwrap().wrong;
            match table.expected(block) {
                0 => prop_assert!(wrong.is_empty()),
                expected => {
                    prop_assert_eq!(wrong, vec![Wrong { block, expected, kind: Kind::Lost(0) }]);
                }
            }
        }
    }
}
