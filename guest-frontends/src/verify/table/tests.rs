use super::super::block::{self, BLOCK_BYTES};
use super::*;
use alloc::vec;
use proptest::prelude::*;

const SEED: u64 = 3;
const BLOCKS: u64 = 8;

/// A disk that keeps all it ever held, so that it can misbehave.
struct Fake {
    blocks: Vec<[u8; BLOCK_BYTES]>,
    before: Vec<[u8; BLOCK_BYTES]>,
    table: Table,
    generation: u64,
}

impl Fake {
    fn new() -> Self {
        let blocks = vec![[0; BLOCK_BYTES]; BLOCKS as usize];
        let table = Table::new(SEED, 0, BLOCKS).unwrap();
        let mut fake = Self { before: blocks.clone(), blocks, table, generation: 0 };
        for block in 0..BLOCKS {
            fake.write(block);
        }
        fake
    }

    fn data(&mut self, block: u64) -> [u8; BLOCK_BYTES] {
        self.generation += 1;
        let mut data = [0; BLOCK_BYTES];
        block::fill(&self.table.stamp(block, self.generation), &mut data);
        data
    }

    fn store(&mut self, block: u64, data: &[u8]) {
        let at = &mut self.blocks[block as usize];
        self.before[block as usize] = *at;
        at[..data.len()].copy_from_slice(data);
    }

    fn write(&mut self, block: u64) {
        let data = self.data(block);
        self.store(block, &data);
        self.table.acknowledge(block, self.generation);
    }

    fn read(&mut self, block: u64) -> Result<(), Wrong> {
        self.table.check(block, block::read(&self.blocks[block as usize]))
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64),
    Read(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![(0..BLOCKS).prop_map(Step::Write), (0..BLOCKS).prop_map(Step::Read)];
    prop::collection::vec(step, 0..30)
}

fn after(steps: &[Step]) -> Fake {
    let mut fake = Fake::new();
    for step in steps {
        match *step {
            Step::Write(block) => fake.write(block),
            Step::Read(block) => assert_eq!(fake.read(block), Ok(())),
        }
    }
    fake
}

proptest! {
    #[test]
    fn an_honest_disk_is_never_accused(steps in steps()) {
        let mut fake = after(&steps);
        for block in 0..BLOCKS {
            prop_assert_eq!(fake.read(block), Ok(()));
        }
    }

    #[test]
    fn a_write_that_never_happens_is_lost(steps in steps(), block in 0..BLOCKS) {
        let mut fake = after(&steps);
        let found = fake.table.expected(block);
        fake.data(block);
        let expected = fake.generation;
        fake.table.acknowledge(block, expected);
        prop_assert_eq!(fake.read(block), Err(Wrong { block, expected, kind: Kind::Lost(found) }));
        prop_assert_eq!(fake.read(block), Ok(()), "named once");
    }

    #[test]
    fn a_block_that_goes_back_in_time_is_stale(steps in steps(), block in 0..BLOCKS) {
        let mut fake = after(&steps);
        let found = fake.table.expected(block);
        fake.write(block);
        let expected = fake.generation;
        prop_assert_eq!(fake.read(block), Ok(()));
        fake.blocks[block as usize] = fake.before[block as usize];
        prop_assert_eq!(fake.read(block), Err(Wrong { block, expected, kind: Kind::Stale(found) }));
    }

    #[test]
    fn a_write_that_stops_half_way_is_torn(
        steps in steps(), block in 0..BLOCKS, sectors in 1_usize..8,
    ) {
        let mut fake = after(&steps);
        let old = fake.table.expected(block);
        let data = fake.data(block);
        let expected = fake.generation;
        fake.table.acknowledge(block, expected);
        fake.store(block, &data[..sectors * 512]);
        let kind = Kind::Torn(expected, old);
        prop_assert_eq!(fake.read(block), Err(Wrong { block, expected, kind }));
    }

    #[test]
    fn a_write_to_the_wrong_place_is_misdirected_there_and_lost_here(
        steps in steps(), block in 0..BLOCKS, off in 1..BLOCKS,
    ) {
        let mut fake = after(&steps);
        let there = (block + off) % BLOCKS;
        let (here_held, there_held) = (fake.table.expected(block), fake.table.expected(there));
        let data = fake.data(block);
        let expected = fake.generation;
        fake.table.acknowledge(block, expected);
        fake.store(there, &data);
        let stamp = fake.table.stamp(block, expected);
        prop_assert_eq!(
            fake.read(there),
            Err(Wrong { block: there, expected: there_held, kind: Kind::Misdirected(stamp) })
        );
        prop_assert_eq!(
            fake.read(block),
            Err(Wrong { block, expected, kind: Kind::Lost(here_held) })
        );
    }

    #[test]
    fn a_bit_that_nobody_wrote_is_an_error(
        steps in steps(), block in 0..BLOCKS, bit in 0_usize..BLOCK_BYTES * 8,
    ) {
        let mut fake = after(&steps);
        fake.blocks[block as usize][bit / 8] ^= 1 << (bit % 8);
        prop_assert!(fake.read(block).is_err());
    }

    #[test]
    fn a_write_that_failed_may_have_happened_or_not_but_then_stays_so(
        block in 0..BLOCKS, happened: bool,
    ) {
        let mut fake = Fake::new();
        let old = fake.table.expected(block);
        let data = fake.data(block);
        let failed = fake.generation;
        fake.table.doubt(block, failed);
        if happened {
            fake.store(block, &data);
        }
        prop_assert_eq!(fake.read(block), Ok(()));
        let now = if happened { failed } else { old };
        prop_assert_eq!(fake.table.expected(block), now);
        if happened {
            fake.blocks[block as usize] = fake.before[block as usize];
            let stale = Wrong { block, expected: failed, kind: Kind::Stale(old) };
            prop_assert_eq!(fake.read(block), Err(stale));
        }
    }
}

#[test]
fn a_block_of_another_run_or_a_blank_one_is_lost_where_a_write_was_acknowledged() {
    let mut fake = Fake::new();
    let expected = fake.table.expected(1);
    let lost = Err(Wrong { block: 1, expected, kind: Kind::Lost(0) });
    let other = Stamp { seed: SEED + 1, ..fake.table.stamp(1, 99) };
    let mut table = fake.table.clone();
    assert_eq!(table.check(1, Content::Whole(other)), lost);
    assert_eq!(fake.table.check(1, Content::Blank), lost);
}

#[test]
fn a_generation_nobody_issued_is_unexpected() {
    let mut fake = Fake::new();
    let (expected, found) = (fake.table.expected(1), 1_000);
    let content = Content::Whole(fake.table.stamp(1, found));
    assert_eq!(
        fake.table.check(1, content),
        Err(Wrong { block: 1, expected, kind: Kind::Unexpected(found) })
    );
}

#[test]
fn nothing_is_expected_of_a_block_before_it_is_written_except_to_be_no_other_one() {
    let mut table = Table::new(SEED, 0, 4).unwrap();
    for content in [Content::Blank, Content::Damaged, Content::Torn(1, 2)] {
        assert_eq!(table.check(0, content), Ok(()));
    }
    let found = table.stamp(1, 5);
    let misdirected = Wrong { block: 0, expected: 0, kind: Kind::Misdirected(found) };
    assert_eq!(table.check(0, Content::Whole(found)), Err(misdirected));
}
