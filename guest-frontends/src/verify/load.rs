//! What is asked of a disk next: a random mix from a seed, or every block in turn. No
//! block has two requests at a time, so that it is always known what a read must find.

use alloc::vec::Vec;
use core::ops::RangeInclusive;
use oorandom::Rand64;

/// Tries to find blocks that nothing is under way for.
const TRIES: u32 = 32;

/// How the requests of a load are divided, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Writes.
    pub writes: u8,
    /// Reads. What is left are flushes.
    pub reads: u8,
}

impl Default for Mix {
    fn default() -> Self {
        Self { writes: 49, reads: 49 }
    }
}

/// Something to ask of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write blocks, all with one generation.
    Write {
        /// The blocks.
        extent: Extent,
        /// Unlike that of any other write.
        generation: u64,
    },
    /// Read blocks.
    Read {
        /// The blocks.
        extent: Extent,
    },
    /// Make all durable.
    Flush,
}

/// Blocks in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first.
    pub first: u64,
    /// How many; not 0.
    pub count: u64,
}

impl Extent {
    /// Every block.
    pub fn blocks(self) -> impl Iterator<Item = u64> {
        self.first..self.first + self.count
    }

    fn meets(self, other: Self) -> bool {
        self.first < other.first + other.count && other.first < self.first + self.count
    }
}

impl Action {
    /// The blocks that it is about.
    pub fn extent(&self) -> Option<Extent> {
        match *self {
            Self::Write { extent, .. } | Self::Read { extent } => Some(extent),
            Self::Flush => None,
        }
    }
}

/// Where actions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Write every block once.
    Fill,
    /// So many requests at random.
    Mixed(u64),
    /// Read every block once.
    ReadBack,
}

/// The source of the requests for one disk.
pub struct Load {
    rng: Rand64,
    mix: Mix,
    blocks: u64,
    least: u64,
    most: u64,
    busy: Vec<Extent>,
    generation: u64,
    stage: Stage,
    /// Requests or blocks done in this stage.
    at: u64,
}

impl Load {
    /// Requests to the first `blocks` blocks, of as many as `sizes` says each, if the disk
    /// has so many; in turn, as long as possible. Nothing comes before a stage is begun.
    pub fn new(seed: u64, mix: Mix, blocks: u64, sizes: RangeInclusive<u64>) -> Self {
        let most = (*sizes.end()).clamp(1, blocks.max(1));
        Self {
            rng: Rand64::new(seed.into()),
            mix,
            blocks,
            least: (*sizes.start()).clamp(1, most),
            most,
            busy: Vec::new(),
            generation: 0,
            stage: Stage::Mixed(0),
            at: 0,
        }
    }

    /// Goes to another stage.
    pub fn begin(&mut self, stage: Stage) {
        self.stage = stage;
        self.at = 0;
    }

    /// The next request; `None` at the end of the stage, or while every block that was
    /// tried has one under way.
    pub fn next_action(&mut self) -> Option<Action> {
        match self.stage {
            Stage::Fill => {
                let extent = self.next_in_turn()?;
                Some(self.write(extent))
            }
            Stage::ReadBack => Some(Action::Read { extent: self.next_in_turn()? }),
            Stage::Mixed(requests) if self.at < requests => {
                let action = self.random()?;
                self.at += 1;
                Some(action)
            }
            Stage::Mixed(_) => None,
        }
    }

    /// A request is over.
    pub fn done(&mut self, action: &Action) {
        if let Some(extent) = action.extent()
            && let Some(at) = self.busy.iter().position(|busy| *busy == extent)
        {
            self.busy.swap_remove(at);
        }
    }

    fn next_in_turn(&mut self) -> Option<Extent> {
        let left = self.blocks.checked_sub(self.at).filter(|&left| left > 0)?;
        let extent = Extent { first: self.at, count: left.min(self.most) };
        if self.is_busy(extent) {
            return None;
        }
        self.at += extent.count;
        self.busy.push(extent);
        Some(extent)
    }

    fn random(&mut self) -> Option<Action> {
        let dice = self.rng.rand_range(0..100);
        let (writes, reads) = (u64::from(self.mix.writes), u64::from(self.mix.reads));
        if dice >= writes + reads {
            return Some(Action::Flush);
        }
        let extent = self.free_extent()?;
        self.busy.push(extent);
        match dice < writes {
            true => Some(self.write(extent)),
            false => Some(Action::Read { extent }),
        }
    }

    fn free_extent(&mut self) -> Option<Extent> {
        for _ in 0..TRIES {
            let count = self.rng.rand_range(self.least..self.most + 1);
            let first = self.rng.rand_range(0..self.blocks - count + 1);
            let extent = Extent { first, count };
            if !self.is_busy(extent) {
                return Some(extent);
            }
        }
        None
    }

    fn is_busy(&self, extent: Extent) -> bool {
        self.busy.iter().any(|busy| busy.meets(extent))
    }

    fn write(&mut self, extent: Extent) -> Action {
        self.generation += 1;
        Action::Write { extent, generation: self.generation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(load: &mut Load) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(action) = load.next_action() {
            load.done(&action);
            actions.push(action);
        }
        actions
    }

    #[test]
    fn a_seed_makes_a_load() {
        let load = |seed| {
            let mut load = Load::new(seed, Mix::default(), 100, 1..=8);
            load.begin(Stage::Mixed(50));
            all(&mut load)
        };
        assert_eq!(load(1), load(1));
        assert_ne!(load(1), load(2));
    }

    proptest! {
        #[test]
        fn every_block_is_filled_and_read_back_once(blocks in 1_u64..200, most in 1_u64..40) {
            let mut load = Load::new(1, Mix::default(), blocks, 1..=most);
            for stage in [Stage::Fill, Stage::ReadBack] {
                load.begin(stage);
                let mut touched = Vec::new();
                for action in all(&mut load) {
                    let extent = action.extent().unwrap();
                    prop_assert!(extent.count <= most);
                    prop_assert_eq!(stage == Stage::Fill, matches!(action, Action::Write { .. }));
                    touched.extend(extent.blocks());
                }
                prop_assert_eq!(touched, (0..blocks).collect::<Vec<_>>());
            }
        }

        #[test]
        fn requests_under_way_never_meet_and_generations_rise(
            seed: u64, blocks in 1_u64..60, least in 1_u64..9, more in 0_u64..9, keep in 1_usize..20,
        ) {
            let most = least + more;
            let mut load = Load::new(seed, Mix { writes: 60, reads: 38 }, blocks, least..=most);
            load.begin(Stage::Mixed(300));
            let (mut under_way, mut last) = (Vec::<Action>::new(), 0);
            loop {
                let Some(action) = load.next_action() else {
                    if under_way.is_empty() { break }
                    load.done(&under_way.remove(0));
                    continue;
                };
                if let Some(extent) = action.extent() {
                    prop_assert!(extent.first + extent.count <= blocks);
                    prop_assert!((least.min(blocks)..=most).contains(&extent.count));
                    let clash = under_way.iter().filter_map(Action::extent).any(|e| e.meets(extent));
                    prop_assert!(!clash);
                }
                if let Action::Write { generation, .. } = action {
                    prop_assert!(generation > last);
                    last = generation;
                }
                under_way.push(action);
                if under_way.len() > keep {
                    load.done(&under_way.remove(0));
                }
            }
        }
    }
}
