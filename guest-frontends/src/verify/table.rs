//! What each block of a disk must hold: the generation of the last write that was
//! acknowledged. Judges what is read against that and names what is wrong.

use super::block::{Content, Stamp};
use alloc::vec::Vec;
use core::fmt;

/// Something that no correct disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Where.
    pub block: u64,
    /// The last generation that was acknowledged there; 0 if none was.
    pub expected: u64,
    /// What it is.
    pub kind: Kind,
}

/// The ways in which a block can be wrong. Numbers are generations; 0 is for what
/// holds nothing of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An acknowledged write is not there, and never was seen there, but an older one.
    Lost(u64),
    /// A write that was seen there is gone again, and an older one there.
    Stale(u64),
    /// Parts of two writes: of the first sector, and of the first that differs.
    Torn(u64, u64),
    /// What was written to another block or another disk.
    Misdirected(Stamp),
    /// A generation that was never acknowledged, nor ever failed.
    Unexpected(u64),
    /// Bytes that nobody wrote.
    Damaged,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}: ", self.block)?;
        match self.kind {
            Kind::Lost(found) => write!(f, "LOST, holds write {found}")?,
            Kind::Stale(found) => write!(f, "STALE, holds write {found} again")?,
            Kind::Torn(first, other) => write!(f, "TORN, parts of writes {first} and {other}")?,
            Kind::Misdirected(Stamp { disk, block, generation, .. }) => {
                write!(f, "MISDIRECTED, holds write {generation} of block {block} of disk {disk}")?;
            }
            Kind::Unexpected(found) => write!(f, "UNEXPECTED, holds write {found}")?,
            Kind::Damaged => f.write_str("DAMAGED")?,
        }
        write!(f, "; write {} was acknowledged", self.expected)
    }
}

/// What is known of a block.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Last generation acknowledged; 0 while nothing is known.
    acknowledged: u64,
    /// From this generation on, writes may or may not have happened; 0 for none.
    in_doubt: u64,
    /// The acknowledged generation has been read.
    was_seen: bool,
}

/// The blocks of one disk.
#[derive(Clone, Debug)]
pub struct Table {
    seed: u64,
    disk: u32,
    entries: Vec<Entry>,
}

impl Table {
    /// A table of so many blocks, of which nothing is known. `None` when memory is short.
    pub fn new(seed: u64, disk: u32, blocks: u64) -> Option<Self> {
        let blocks = usize::try_from(blocks).ok()?;
        let mut entries = Vec::new();
        entries.try_reserve_exact(blocks).ok()?;
        entries.resize(blocks, Entry::default());
        Some(Self { seed, disk, entries })
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Of the run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Which disk of the guest.
    pub fn disk(&self) -> u32 {
        self.disk
    }

    /// The stamp of a write to one of the blocks.
    pub fn stamp(&self, block: u64, generation: u64) -> Stamp {
        Stamp { seed: self.seed, disk: self.disk, block, generation }
    }

    fn entry(&mut self, block: u64) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(block).ok()?)
    }

    /// A write was answered well.
    pub fn acknowledge(&mut self, block: u64, generation: u64) {
        if let Some(entry) = self.entry(block) {
            *entry = Entry { acknowledged: generation, in_doubt: 0, was_seen: false };
        }
    }

    /// A write was answered with an error, or not at all: it may have happened.
    pub fn doubt(&mut self, block: u64, generation: u64) {
        if let Some(entry) = self.entry(block) {
            let earlier = if entry.in_doubt == 0 { generation } else { entry.in_doubt };
            entry.in_doubt = earlier.min(generation);
        }
    }

    /// The generation that a block must hold; 0 if that is not known.
    pub fn expected(&self, block: u64) -> u64 {
        let entry = usize::try_from(block).ok().and_then(|block| self.entries.get(block));
        entry.filter(|entry| entry.in_doubt == 0).map_or(0, |entry| entry.acknowledged)
    }

    /// Judges what was read from a block, while no write to it was under way. What is
    /// wrong is named once: until the block is written again, nothing is expected of it.
    pub fn check(&mut self, block: u64, content: Content) -> Result<(), Wrong> {
        let own = self.stamp(block, 0);
        let Some(entry) = self.entry(block) else { return Ok(()) };
        let verdict = judge(entry, own, content);
        if verdict.is_err() {
            *entry = Entry::default();
        }
        verdict
    }
}

fn judge(entry: &mut Entry, own: Stamp, content: Content) -> Result<(), Wrong> {
    let expected = entry.acknowledged;
    let is_known = expected != 0;
    let older = |found| if entry.was_seen { Kind::Stale(found) } else { Kind::Lost(found) };
    let kind = match content {
        Content::Whole(stamp) if stamp.seed == own.seed => {
            let found = stamp.generation;
            let is_doubted = entry.in_doubt != 0 && found >= entry.in_doubt;
            if (stamp.disk, stamp.block) != (own.disk, own.block) {
                Kind::Misdirected(stamp)
            } else if found == expected || is_doubted || !is_known {
                *entry = Entry { acknowledged: found, in_doubt: 0, was_seen: true };
                return Ok(());
            } else if found < expected {
                older(found)
            } else {
                Kind::Unexpected(found)
            }
        }
        _ if !is_known => return Ok(()),
        Content::Torn(..) if entry.in_doubt != 0 => return Ok(()),
        Content::Torn(first, other) => Kind::Torn(first, other),
        Content::Blank | Content::Whole(_) => older(0),
        Content::Damaged => Kind::Damaged,
    };
    Err(Wrong { block: own.block, expected, kind })
}

#[cfg(test)]
mod tests;
