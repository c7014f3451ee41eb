//! Random lives of a domain's page tables, judged by a recount of every reference from
//! nothing but the tables' contents and the list of pins and roots the test kept itself.

use super::*;
use crate::memory::{
    frame::{FrameType, fake},
    teardown::{self, Progress},
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const DOM: DomId = DomId::new(1);
const OTHER: DomId = DomId::new(2);
const FRAMES: usize = 96;
const DEVICE: Mfn = Mfn::new(0x1000);
const CORE_SLOTS: [u64; 16] = [0xc0e; 16];

fn walk<R>(budget: &mut Budget, f: impl FnOnce(&mut Walk) -> R) -> R {
    f(&mut Walk { budget, io: &|mfn| mfn == DEVICE })
}

/// What happens to the domain. Frames are named by position among the candidates.
#[derive(Clone, Debug)]
enum Op {
    Write { table: usize, index: u16, target: usize, bits: u64 },
    Map { root: usize, va: u64, target: usize, bits: u64 },
    Pin { frame: usize, level: usize },
    Unpin { frame: usize },
    NewRoot { frame: usize },
    DropRoot { root: usize },
    Decrease { frame: usize },
    Populate,
}

const LEVELS: [Level; 4] = [Level::L1, Level::L2, Level::L3, Level::L4];
/// Slots worth trying: the ends, a few near, the edges of the core's.
const INDICES: [u16; 8] = [0, 1, 2, 255, 256, 271, 272, 511];

fn bits() -> impl Strategy<Value = u64> {
    let usual = Pte::PRESENT | Pte::USER | Pte::ACCESSED;
    prop_oneof![
        8 => Just(usual | Pte::RW),
        4 => Just(usual),
        2 => Just(Pte::PRESENT),
        2 => Just(0),
        1 => Just(usual | Pte::PSE),
        1 => Just(usual | Pte::PCD),
        1 => Just(usual | Pte::GLOBAL | Pte::NX),
    ]
}

/// Any candidate, or one that the first tree makes a table of or maps.
fn frame(planted: std::ops::Range<usize>, all: usize) -> impl Strategy<Value = usize> {
    prop_oneof![3 => planted, 1 => 0..all]
}

fn op() -> impl Strategy<Value = Op> {
    let index = prop::sample::select(&INDICES[..]);
    let target = || frame(1..9, 28);
    prop_oneof![
        10 => (frame(0..5, 28), index, target(), bits())
            .prop_map(|(table, index, target, bits)| Op::Write { table, index, target, bits }),
        8 => (0usize..2, 0u64..6, target(), bits())
            .prop_map(|(root, va, target, bits)| Op::Map { root, va, target, bits }),
        4 => (0usize..24, 0usize..4).prop_map(|(frame, level)| Op::Pin { frame, level }),
        2 => (0usize..24).prop_map(|frame| Op::Unpin { frame }),
        2 => frame(0..1, 24).prop_map(|frame| Op::NewRoot { frame }),
        1 => (0usize..4).prop_map(|root| Op::DropRoot { root }),
        1 => (0usize..24).prop_map(|frame| Op::Decrease { frame }),
        1 => Just(Op::Populate),
    ]
}

struct World {
    frames: FrameTable,
    /// Frames the domain was ever given, and a few it never was.
    candidates: Vec<Mfn>,
    /// Of these, the ones in its reservation.
    allocated: BTreeSet<u64>,
    pins: BTreeMap<u64, Level>,
    roots: Vec<Mfn>,
    /// Steps per stay, and stays before the guest loses interest.
    budget: u32,
    patience: u32,
}

impl World {
    fn new(budget: u32, patience: u32) -> Self {
        let mut frames = fake::table(FRAMES);
        frames.set_core_slots(CORE_SLOTS);
        let mut candidates: Vec<Mfn> =
            (0..24).map(|_| frames.alloc_domain(DOM, 0).unwrap()).collect();
        let allocated = candidates.iter().map(|mfn| mfn.get()).collect();
        candidates.push(frames.alloc_domain(OTHER, 0).unwrap());
        candidates.push(frames.alloc_core(1).unwrap());
        candidates.push(DEVICE);
        candidates.push(Mfn::new(0xf_ffff_ffff));
        let mut world = Self {
            frames,
            candidates,
            allocated,
            pins: BTreeMap::new(),
            roots: vec![],
            budget,
            patience,
        };
        world.plant();
        world
    }

    /// A tree to start from: L4 0, L3 1, L2 2, L1 3 and 4, the rest pages.
    fn plant(&mut self) {
        let c = self.candidates.clone();
        let rw = Pte::PRESENT | Pte::USER | Pte::RW;
        let links = [
            (0, 0, 1),
            (1, 0, 2),
            (2, 0, 3),
            (2, 1, 4),
            (3, 0, 5),
            (3, 1, 6),
            (3, 2, 7),
            (4, 511, 8),
        ];
        for (table, index, target) in links {
            let at = validate::entry_at(c[table], index);
            self.frames.mem().write_u64(at, c[target].maddr().get() | rw);
        }
        self.apply(&Op::NewRoot { frame: 0 });
    }

    /// One try of a hypercall per stay, as the batch loop does it, until it is done or the
    /// patience is at an end (`None`).
    fn insist<R>(
        &mut self,
        mut f: impl FnMut(&mut FrameTable, &mut Walk) -> Result<R>,
    ) -> Option<Result<R>> {
        for _ in 0..self.patience {
            let mut budget = Budget::new(self.budget);
            while self.frames.drain(DOM, &mut budget) && budget.step() {
                match walk(&mut budget, |w| f(&mut self.frames, w)) {
                    Err(FrameError::Again | FrameError::Busy { .. }) => {}
                    other => return Some(other),
                }
            }
        }
        None
    }

    fn write(&mut self, at: Maddr, target: usize, bits: u64) -> bool {
        let entry = self.candidates[target % self.candidates.len()].maddr().get() | bits;
        let owners = Owners::only(DOM);
        matches!(
            self.insist(|frames, w| write_entry(frames, owners, at, |_| entry, w)),
            Some(Ok(_))
        )
    }

    /// Whether the operation changed anything.
    fn apply(&mut self, op: &Op) -> bool {
        match *op {
            Op::Write { table, index, target, bits } => {
                self.write(validate::entry_at(self.candidates[table], index), target, bits)
            }
            Op::Map { root, va, target, bits } => {
                // Pages 0 to 2 of the first L1; the last and two more of the second.
                let va =
                    GuestVa::new([0, 0x1000, 0x2000, 0x3f_f000, 0x20_0000, 0x20_1000][va as usize]);
                let Some(&l4) = self.roots.get(root) else {
                    return false;
                };
                let Some(at) = l1_entry_of(&self.frames, l4, va) else {
                    return false;
                };
                self.write(at, target, bits)
            }
            Op::Pin { frame, level } => {
                let (mfn, level) = (self.candidates[frame], LEVELS[level]);
                let done = self.insist(|frames, w| frames.pin(mfn, DOM, level, w)) == Some(Ok(()));
                if done {
                    assert_eq!(self.pins.insert(mfn.get(), level), None, "pinned twice");
                }
                done
            }
            Op::Unpin { frame } => {
                let mfn = self.candidates[frame];
                let done = self.frames.unpin(mfn, DOM).is_ok();
                assert_eq!(self.pins.remove(&mfn.get()).is_some(), done);
                done
            }
            Op::NewRoot { frame } => {
                let mfn = self.candidates[frame];
                let done = self.insist(|frames, w| frames.get_table(mfn, DOM, Level::L4, w))
                    == Some(Ok(()));
                if done {
                    self.roots.push(mfn);
                }
                done
            }
            Op::DropRoot { root } => {
                if root >= self.roots.len() {
                    return false;
                }
                let mfn = self.roots.swap_remove(root);
                self.frames.put_table(mfn);
                true
            }
            Op::Decrease { frame } => {
                let mfn = self.candidates[frame];
                let done = self.frames.let_go(mfn, DOM).is_ok();
                assert_eq!(self.allocated.remove(&mfn.get()), done);
                done
            }
            Op::Populate => {
                let Some(gone) =
                    (0..24).find(|&i| !self.allocated.contains(&self.candidates[i].get()))
                else {
                    return false;
                };
                let Some(mfn) = self.frames.alloc_domain(DOM, 0) else {
                    return false;
                };
                self.candidates[gone] = mfn;
                assert!(self.allocated.insert(mfn.get()), "handed out twice");
                true
            }
        }
    }

    fn drain(&mut self) {
        assert!(self.frames.drain(DOM, &mut Budget::new(u32::MAX)));
    }

    /// Every count, from scratch.
    fn recount(&self) -> BTreeMap<u64, Expected> {
        let mut expected: BTreeMap<u64, Expected> = BTreeMap::new();
        for &mfn in &self.allocated {
            expected.entry(mfn).or_default().refs += 1;
        }
        let pins = self.pins.iter().map(|(&mfn, &level)| (mfn, level));
        let roots = self.roots.iter().map(|mfn| (mfn.get(), Level::L4));
        let mut queue: Vec<(u64, Level)> = pins.chain(roots).collect();
        while let Some((mfn, level)) = queue.pop() {
            let frame = expected.entry(mfn).or_default();
            frame.refs += 1;
            frame.as_table += 1;
            match frame.level {
                Some(seen) => assert_eq!(seen, level, "{mfn:#x} is a table of two levels"),
                None => {
                    frame.level = Some(level);
                    self.scan(Mfn::new(mfn), level, &mut expected, &mut queue);
                }
            }
        }
        expected
    }

    fn scan(
        &self,
        table: Mfn,
        level: Level,
        expected: &mut BTreeMap<u64, Expected>,
        queue: &mut Vec<(u64, Level)>,
    ) {
        for index in 0..512 {
            let raw = self.frames.mem().read_u64(Maddr::new((table.get() << 12) + 8 * index));
            if level == Level::L4 && (256..272).contains(&index) {
                assert_eq!(
                    raw,
                    CORE_SLOTS[index as usize - 256],
                    "a guest has changed a core slot"
                );
                continue;
            }
            if raw & 1 == 0 {
                continue;
            }
            assert!(raw & 4 != 0, "stored without the user bit");
            let target = raw >> 12 & 0xff_ffff_ffff;
            match level {
                Level::L1 if target == DEVICE.get() => {}
                Level::L1 => {
                    let frame = expected.entry(target).or_default();
                    frame.refs += 1;
                    frame.writers += u32::from(raw & 2 != 0);
                }
                _ => {
                    assert!(raw & 0x80 == 0, "a large page");
                    let below = [Level::L1, Level::L1, Level::L2, Level::L3][level as usize];
                    queue.push((target, below));
                }
            }
        }
    }

    fn check(&self) {
        let expected = self.recount();
        let known: BTreeSet<u64> = (0..FRAMES as u64).collect();
        assert!(expected.keys().all(|mfn| known.contains(mfn)), "something maps no memory");
        for mfn in known {
            let frame = expected.get(&mfn).copied().unwrap_or_default();
            let (refs, types, kind) = self.frames.counts(Mfn::new(mfn));
            match self.frames.owner(Mfn::new(mfn)) {
                Owner::Domain(DOM) => {
                    assert!(
                        frame.as_table == 0 || frame.writers == 0,
                        "{mfn:#x} is a table and writable"
                    );
                    assert_eq!(refs, frame.refs, "references of {mfn:#x}");
                    assert_eq!(
                        types,
                        frame.as_table + frame.writers,
                        "type references of {mfn:#x}"
                    );
                    if let Some(level) = frame.level {
                        assert_eq!(kind, FrameType::Table(level), "type of {mfn:#x}");
                    } else if types > 0 {
                        assert_eq!(kind, FrameType::Writable, "type of {mfn:#x}");
                    }
                }
                owner => assert_eq!(frame.refs, 0, "{mfn:#x} of {owner:?} is reachable"),
            }
        }
    }

    fn counts(&self) -> Vec<(u32, u32)> {
        (0..FRAMES as u64)
            .map(|n| self.frames.counts(Mfn::new(n)))
            .map(|(refs, types, _)| (refs, types))
            .collect()
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Expected {
    refs: u32,
    as_table: u32,
    writers: u32,
    level: Option<Level>,
}

fn cases(n: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 1 } else { n },
        failure_persistence: None,
        max_shrink_iters: 300,
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(cases(200))]

    /// Whatever a guest does, every count is what a recount of the tables says, and what is refused changes nothing.
    #[test]
    fn counts_are_what_the_tables_say(
        ops in prop::collection::vec(op(), 1..80),
        // A stay must at least get from a root down to one entry, or it is the same each time.
        budget in 16u32..3000,
    ) {
        let mut world = World::new(budget, u32::MAX);
        world.check();
        for op in &ops {
            world.drain();
            let before = world.counts();
            let has_changed = world.apply(op);
            world.drain();
            prop_assert!(world.frames.is_settled());
            world.check();
            prop_assert!(has_changed || before == world.counts(), "{:?} was refused and changed counts", op);
        }
    }

    /// A guest that walks away from half-done calls gains nothing, and in the end everything is free again.
    #[test]
    fn abandoned_calls_leave_nothing_behind(ops in prop::collection::vec(op(), 1..120), budget in 1u32..400, slice in 1usize..500) {
        let mut world = World::new(budget, 3);
        let free = world.frames.free_frames() + world.frames.tot_pages(DOM);
        for op in &ops {
            world.apply(op);
        }
        world.frames.undo_partial();
        world.drain();
        world.check();
        let others = world.frames.counts(world.candidates[24]);
        prop_assert_eq!((others.0, others.1), (1, 0));

        for root in std::mem::take(&mut world.roots) {
            world.frames.put_table(root);
        }
        let steps = u32::try_from(slice).unwrap();
        while teardown::relinquish(&mut world.frames, DOM, &mut Budget::new(steps)) == Progress::More {}
        prop_assert_eq!(world.frames.tot_pages(DOM), 0);
        prop_assert_eq!(world.frames.free_frames(), free);
    }
}

/// A map of the other domain's page in the middle of the first L1.
fn granted(world: &mut World) -> (Maddr, Mfn) {
    let frame = world.candidates[24];
    // What the grant table holds for the map itself.
    world.frames.get_writable(frame, OTHER).unwrap();
    let at = validate::entry_at(world.candidates[3], 250);
    assert_eq!(grant_map(&mut world.frames, (DOM, at), (OTHER, frame), true, 0), Some(Flush::None));
    (at, frame)
}

#[test]
fn a_granted_page_is_mapped_with_references_of_its_own() {
    let mut world = World::new(9999, 9);
    let (at, frame) = granted(&mut world);
    assert_eq!(world.frames.counts(frame), (3, 2, FrameType::Writable));
    assert_eq!(grant_unmap(&mut world.frames, DOM, at, frame), Some(Flush::All));
    assert_eq!(world.frames.counts(frame), (2, 1, FrameType::Writable));
    assert_eq!(world.frames.mem().read_u64(at), 0);
    // A second unmap finds nothing of its own.
    let _ = grant_unmap(&mut world.frames, DOM, at, frame);
    assert_eq!(world.frames.counts(frame), (2, 1, FrameType::Writable));
}

#[test]
fn the_mapper_may_clear_a_granted_entry_but_not_copy_it_nor_make_it_writable_again() {
    let mut world = World::new(9999, 9);
    let (at, frame) = granted(&mut world);
    let entry = world.frames.mem().read_u64(at);
    let elsewhere = validate::entry_at(world.candidates[3], 6);
    let mut set = |at, value| {
        let mut budget = Budget::default();
        walk(&mut budget, |w| write_entry(&mut world.frames, Owners::only(DOM), at, |_| value, w))
    };
    assert!(set(elsewhere, entry).is_err());
    assert!(set(at, entry & !Pte::RW).is_ok());
    assert!(set(at, entry).is_err());
    assert!(set(at, 0).is_ok());
    assert_eq!(world.frames.counts(frame), (2, 1, FrameType::Writable));
    let _ = grant_unmap(&mut world.frames, DOM, at, frame);
    assert_eq!(world.frames.counts(frame), (2, 1, FrameType::Writable));
}

#[test]
fn an_unmap_never_writes_into_what_is_no_longer_a_table() {
    let mut world = World::new(9999, 9);
    let (at, frame) = granted(&mut world);
    world.apply(&Op::DropRoot { root: 0 });
    world.drain();
    assert_eq!(world.frames.counts(frame), (2, 1, FrameType::Writable));
    let entry = world.frames.mem().read_u64(at);
    assert_ne!(entry, 0, "contents of a table taken apart stay");
    let _ = grant_unmap(&mut world.frames, DOM, at, frame);
    assert_eq!(world.frames.mem().read_u64(at), entry);
    assert_eq!(world.frames.counts(frame), (2, 1, FrameType::Writable));
}

#[test]
fn an_unmap_and_the_taking_apart_of_the_table_drop_the_entrys_references_once() {
    for steps in (1000..2700).step_by(if cfg!(miri) { 700 } else { 100 }) {
        let mut world = World::new(9999, 9);
        let (at, frame) = granted(&mut world);
        world.apply(&Op::DropRoot { root: 0 });
        world.frames.drain(DOM, &mut Budget::new(steps));
        let _ = grant_unmap(&mut world.frames, DOM, at, frame);
        assert_eq!(world.frames.counts(frame), (2, 1, FrameType::Writable), "after {steps} steps");
        world.drain();
        assert_eq!(world.frames.counts(frame), (2, 1, FrameType::Writable), "after {steps} steps");
    }
}

#[test]
fn a_grant_goes_only_into_a_live_l1_of_the_mapper() {
    let mut world = World::new(9999, 9);
    let frame = world.candidates[24];
    for table in [2, 5, 24, 25, 26, 27] {
        let at = validate::entry_at(world.candidates[table], 5);
        assert!(
            grant_map(&mut world.frames, (DOM, at), (OTHER, frame), false, 0).is_none(),
            "candidate {table}"
        );
    }
    assert_eq!(world.frames.counts(frame).0, 1);
}

#[test]
fn a_granted_page_outlives_its_owner_until_it_is_unmapped() {
    let mut world = World::new(9999, 9);
    let (at, frame) = granted(&mut world);
    while teardown::relinquish(&mut world.frames, OTHER, &mut Budget::new(3)) == Progress::More {}
    assert_eq!(world.frames.owner(frame), Owner::Orphan);
    assert!(world.frames.get_page(frame, OTHER).is_err());
    let _ = grant_unmap(&mut world.frames, DOM, at, frame);
    world.frames.put_writable(frame);
    assert_eq!(world.frames.owner(frame), Owner::Free);
}

#[test]
fn preserving_accessed_and_dirty_bits_keeps_what_the_processor_set() {
    let mut world = World::new(9999, 9);
    let at = validate::entry_at(world.candidates[3], 0);
    let old = world.frames.mem().fetch_or_u64(at, Pte::DIRTY | Pte::ACCESSED);
    let mut budget = Budget::default();
    let keep = Pte::ACCESSED | Pte::DIRTY;
    let result = walk(&mut budget, |w| {
        write_entry(
            &mut world.frames,
            Owners::only(DOM),
            at,
            |now| (old & !Pte::RW) | now & keep,
            w,
        )
    });
    assert_eq!(result, Ok(old | keep));
    assert_eq!(world.frames.mem().read_u64(at), (old & !Pte::RW) | keep);
    world.check();
}

#[test]
fn dom0_maps_a_page_of_another_domain_only_by_its_name() {
    let mut world = World::new(9999, 9);
    let (at, frame) = (validate::entry_at(world.candidates[3], 9), world.candidates[24]);
    let value = frame.maddr().get() | Pte::PRESENT | Pte::RW;
    let mut set = |pages| {
        let mut budget = Budget::default();
        walk(&mut budget, |w| {
            write_entry(&mut world.frames, Owners { tables: DOM, pages }, at, |_| value, w)
        })
    };
    assert!(set(DOM).is_err());
    assert!(set(OTHER).is_ok());
    assert_eq!(world.frames.counts(frame), (2, 1, FrameType::Writable));
}

#[test]
fn an_address_without_an_l1_has_no_entry() {
    let world = World::new(9999, 9);
    let l4 = world.candidates[0];
    assert!(l1_entry_of(&world.frames, l4, GuestVa::new(0x1000)).is_some());
    for va in [1 << 22, 1 << 30, 1 << 39, 0xffff_8000_0000_0000, 0x8000_0000_0000] {
        assert_eq!(l1_entry_of(&world.frames, l4, GuestVa::new(va)), None, "{va:#x}");
    }
}
