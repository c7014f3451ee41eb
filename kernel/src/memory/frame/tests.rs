use super::{
    fake,
    table::{Budget, Walk},
    *,
};
use crate::memory::validate::{self, Pte};
use proptest::prelude::*;

const DOM: DomId = DomId::new(1);
const OTHER: DomId = DomId::new(2);
const LINK: u64 = Pte::PRESENT | Pte::RW | Pte::USER;

fn frames<const N: usize>(table: &mut FrameTable) -> [Mfn; N] {
    core::array::from_fn(|_| table.alloc_domain(DOM, 0).unwrap())
}

fn link(table: &FrameTable, from: Mfn, index: u16, to: Mfn) {
    table.mem().write_u64(validate::entry_at(from, index), to.maddr().get() | LINK);
}

/// Runs `f` with so many steps and no right to any device.
fn walk<R>(steps: u32, f: impl FnOnce(&mut Walk) -> R) -> R {
    f(&mut Walk { budget: &mut Budget::new(steps), io: &|_| false })
}

fn pin(table: &mut FrameTable, mfn: Mfn, level: Level) -> Result {
    walk(u32::MAX, |w| table.pin(mfn, DOM, level, w))
}

fn drain(table: &mut FrameTable) {
    assert!(table.drain(DOM, &mut Budget::new(u32::MAX)));
}

#[test]
fn a_frame_is_freed_with_its_last_reference_and_not_before() {
    let mut table = fake::table(64);
    let free = table.free_frames();
    let [mfn] = frames(&mut table);
    table.get_page(mfn, DOM).unwrap();
    table.let_go(mfn, DOM).unwrap();
    assert_eq!(table.owner(mfn), Owner::Domain(DOM));
    assert_eq!(table.tot_pages(DOM), 1);
    table.put_page(mfn);
    assert_eq!(table.owner(mfn), Owner::Free);
    assert_eq!((table.tot_pages(DOM), table.free_frames()), (0, free));
}

#[test]
fn nobody_takes_references_on_frames_of_others_or_of_nobody() {
    let mut table = fake::table(64);
    let [mfn] = frames(&mut table);
    let core = table.alloc_core(1).unwrap();
    assert!(matches!(table.get_page(mfn, OTHER), Err(FrameError::NotOwner { .. })));
    assert!(matches!(table.get_writable(core, DOM), Err(FrameError::NotOwner { .. })));
    for absent in [64, u64::from(u32::MAX), u64::MAX] {
        assert!(matches!(table.get_page(Mfn::new(absent), DOM), Err(FrameError::NoFrame { .. })));
    }
}

#[test]
fn a_writable_frame_can_not_become_a_table_nor_descriptors() {
    let mut table = fake::table(64);
    let [mfn] = frames(&mut table);
    table.get_writable(mfn, DOM).unwrap();
    assert!(matches!(pin(&mut table, mfn, Level::L1), Err(FrameError::WrongType { .. })));
    assert!(table.get_descriptors(mfn, DOM, |_, _| true).is_err());
    table.put_writable(mfn);
    assert_eq!(pin(&mut table, mfn, Level::L1), Ok(()));
}

#[test]
fn a_table_can_not_become_writable_nor_a_table_of_another_level() {
    let mut table = fake::table(64);
    let [mfn] = frames(&mut table);
    pin(&mut table, mfn, Level::L2).unwrap();
    assert!(matches!(
        table.get_writable(mfn, DOM),
        Err(FrameError::WrongType { is: FrameType::Table(Level::L2), .. })
    ));
    assert!(walk(9999, |w| table.get_table(mfn, DOM, Level::L1, w)).is_err());
    assert_eq!(table.counts(mfn), (2, 1, FrameType::Table(Level::L2)));
}

#[test]
fn descriptors_are_judged_once_and_a_refusal_leaves_no_type() {
    let mut table = fake::table(64);
    let [mfn] = frames(&mut table);
    assert!(matches!(
        table.get_descriptors(mfn, DOM, |_, _| false),
        Err(FrameError::BadDescriptor { .. })
    ));
    assert_eq!(table.frame_type(mfn), FrameType::None);
    table.get_descriptors(mfn, DOM, |_, _| true).unwrap();
    table.get_descriptors(mfn, DOM, |_, _| panic!("judged twice")).unwrap();
    assert!(table.get_writable(mfn, DOM).is_err());
    table.put_descriptors(mfn);
    table.put_descriptors(mfn);
    assert_eq!(table.get_writable(mfn, DOM), Ok(()));
}

#[test]
fn a_frame_shared_with_the_core_is_never_a_table_and_outlives_its_mappings() {
    let mut table = fake::table(64);
    let free = table.free_frames();
    let mfn = table.alloc_shared(DOM).unwrap();
    assert_eq!(table.tot_pages(DOM), 0);
    assert!(pin(&mut table, mfn, Level::L4).is_err());
    assert!(table.let_go(mfn, DOM).is_err());
    table.get_writable(mfn, DOM).unwrap();
    table.free_shared(mfn);
    assert_eq!(table.owner(mfn), Owner::Orphan);
    table.free_shared(mfn);
    assert!(table.get_page(mfn, DOM).is_err());
    table.put_writable(mfn);
    assert_eq!((table.owner(mfn), table.free_frames()), (Owner::Free, free));
}

#[test]
fn a_change_of_type_asks_for_a_flush_and_a_first_use_does_not() {
    let mut table = fake::table(64);
    let [mfn] = frames(&mut table);
    table.get_writable(mfn, DOM).unwrap();
    table.put_writable(mfn);
    assert_eq!(table.take_flush(), Flush::None);
    pin(&mut table, mfn, Level::L1).unwrap();
    assert_eq!(
        table.take_flush(),
        Flush::All,
        "a processor may still write through its old translation"
    );
    table.unpin(mfn, DOM).unwrap();
    drain(&mut table);
    assert_eq!(table.take_flush(), Flush::None);
    table.get_writable(mfn, DOM).unwrap();
    assert_eq!(table.take_flush(), Flush::All, "a processor may still walk it");
    table.put_writable(mfn);
    table.let_go(mfn, DOM).unwrap();
    assert_eq!(table.take_flush(), Flush::All, "the next owner must not be reachable");
}

#[test]
fn a_linear_page_table_is_refused() {
    let mut table = fake::table(64);
    let [l4] = frames(&mut table);
    link(&table, l4, 511, l4);
    assert!(pin(&mut table, l4, Level::L4).is_err());
    drain(&mut table);
    assert_eq!(table.counts(l4).0, 1);
}

#[test]
fn a_failed_validation_gives_back_what_it_took() {
    let mut table = fake::table(64);
    let [l4, l3, l2, l1, page] = frames(&mut table);
    for (from, to) in [(l4, l3), (l3, l2), (l2, l1), (l1, page)] {
        link(&table, from, 3, to);
    }
    link(&table, l1, 511, l4);
    assert!(pin(&mut table, l4, Level::L4).is_err(), "maps its own root writable");
    drain(&mut table);
    for mfn in [l4, l3, l2, l1, page] {
        assert_eq!((table.counts(mfn).0, table.counts(mfn).1), (1, 0), "{mfn}");
    }
}

#[test]
fn a_validation_stops_at_its_budget_and_goes_on_where_it_stopped() {
    let mut table = fake::table(64);
    let [l4, l3, l2, l1, page] = frames(&mut table);
    for (from, to) in [(l4, l3), (l3, l2), (l2, l1), (l1, page)] {
        link(&table, from, 100, to);
    }
    let mut stays = 1;
    while let Err(error) = walk(64, |w| table.pin(l4, DOM, Level::L4, w)) {
        assert_eq!(error, FrameError::Again);
        stays += 1;
    }
    let entries = 3 * 512 + 512 - 16u32;
    assert!((entries / 64..=entries / 64 + 5).contains(&stays), "{stays} stays");
    assert_eq!(table.counts(page), (2, 1, FrameType::Writable));
    assert!(table.is_settled());
}

#[test]
fn half_a_validation_gives_way_to_another_use() {
    let mut table = fake::table(64);
    let [l2, l1, page] = frames(&mut table);
    link(&table, l2, 0, l1);
    link(&table, l1, 0, page);
    assert_eq!(walk(10, |w| table.pin(l2, DOM, Level::L2, w)), Err(FrameError::Again));
    assert_eq!(table.get_writable(l1, DOM), Err(FrameError::Busy { mfn: l1 }));
    assert!(matches!(table.get_writable(l2, DOM), Err(FrameError::Busy { .. })));
    drain(&mut table);
    assert_eq!(table.get_writable(l1, DOM), Ok(()));
    assert_eq!(table.get_writable(l2, DOM), Ok(()));
    assert_eq!(table.counts(page).0, 1);
}

#[test]
fn taking_apart_stops_at_its_budget_and_frees_all_in_the_end() {
    let mut table = fake::table(64);
    let [l2, l1, page] = frames(&mut table);
    link(&table, l2, 0, l1);
    link(&table, l1, 0, page);
    pin(&mut table, l2, Level::L2).unwrap();
    table.unpin(l2, DOM).unwrap();
    assert!(!table.drain(DOM, &mut Budget::new(600)));
    assert_eq!(walk(9, |w| table.pin(l2, DOM, Level::L2, w)), Err(FrameError::Busy { mfn: l2 }));
    assert!(!table.drain(DOM, &mut Budget::new(400)));
    assert!(table.drain(DOM, &mut Budget::new(24)));
    for mfn in [l2, l1, page] {
        assert_eq!((table.counts(mfn).0, table.counts(mfn).1), (1, 0));
    }
}

#[test]
fn every_l4_gets_the_core_slots_and_loses_them_with_its_type() {
    let mut table = fake::table(64);
    table.set_core_slots(core::array::from_fn(|i| 0xabc000 + i as u64));
    let [l4, page] = frames(&mut table);
    link(&table, l4, 260, page);
    pin(&mut table, l4, Level::L4).unwrap();
    for i in 0..16 {
        assert_eq!(table.mem().read_u64(validate::entry_at(l4, 256 + i)), 0xabc000 + u64::from(i));
    }
    assert_eq!(table.counts(page).0, 1);
    table.unpin(l4, DOM).unwrap();
    drain(&mut table);
    assert_eq!(table.mem().read_u64(validate::entry_at(l4, 260)), 0);
}

#[test]
fn pin_and_unpin_do_not_nest() {
    let mut table = fake::table(64);
    let [mfn] = frames(&mut table);
    assert!(matches!(table.unpin(mfn, DOM), Err(FrameError::Pin { .. })));
    pin(&mut table, mfn, Level::L1).unwrap();
    assert_eq!(pin(&mut table, mfn, Level::L1), Err(FrameError::Pin { mfn }));
    assert!(table.unpin(mfn, OTHER).is_err());
    table.unpin(mfn, DOM).unwrap();
    assert!(matches!(table.unpin(mfn, DOM), Err(FrameError::Pin { .. })));
}

#[test]
fn stolen_frames_come_back_as_they_were_or_are_freed() {
    let mut table = fake::table(64);
    let [a, b, held] = frames(&mut table);
    table.get_page(held, DOM).unwrap();
    let (core, free) = (table.core_frames(), table.free_frames());
    table.steal(a, DOM).unwrap();
    table.steal(b, DOM).unwrap();
    assert!(table.steal(b, DOM).is_err(), "named twice");
    assert!(table.steal(held, DOM).is_err(), "referenced");
    assert_eq!(table.tot_pages(DOM), 1);
    table.settle_stolen(Some(DOM));
    assert_eq!((table.tot_pages(DOM), table.core_frames()), (3, core));
    table.steal(a, DOM).unwrap();
    table.settle_stolen(None);
    assert_eq!(
        (table.owner(a), table.core_frames(), table.free_frames()),
        (Owner::Free, core, free + 1)
    );
}

#[test]
fn a_frame_of_the_boot_archive_can_become_a_domains() {
    let mut table = fake::table(64);
    let mfn = table.alloc_core(1).unwrap();
    table.mem().write_u64(mfn.maddr(), 77);
    table.adopt(mfn, DOM).unwrap();
    assert_eq!(table.mem().read_u64(mfn.maddr()), 77);
    assert_eq!(table.tot_pages(DOM), 1);
    assert!(table.adopt(mfn, OTHER).is_err());
    table.let_go(mfn, DOM).unwrap();
    assert_eq!(table.owner(mfn), Owner::Free);
}

#[test]
fn frames_come_zeroed_and_aligned_to_their_order() {
    let mut table = fake::table(256);
    let mfn = table.alloc_domain(DOM, 3).unwrap();
    assert!(mfn.get().is_multiple_of(8));
    for i in 0..8 {
        table.mem().write_u64(Maddr::new((mfn.get() + i) << 12), 5);
        table.let_go(Mfn::new(mfn.get() + i), DOM).unwrap();
    }
    let again = table.alloc_core(8).unwrap();
    assert_eq!(table.mem().read_u64(again.maddr()), 0);
    assert!(table.alloc_domain(DOM, 10).is_none());
    assert!(table.alloc_domain(DomId::new(MAX_DOMAINS as u16), 0).is_none());
    assert!(table.alloc_core(513).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 64 }, failure_persistence: None, ..Default::default() })]

    /// Against a plain set: no frame is handed out twice, and when all is given back
    /// everything can be had again in the largest blocks.
    #[test]
    fn the_free_list_hands_out_each_frame_once(ops in prop::collection::vec((0usize..12, any::<bool>()), 1..60)) {
        let mut table = fake::table(300);
        let free = table.free_frames();
        let mut held: Vec<(Mfn, usize)> = Vec::new();
        let mut taken = std::collections::BTreeSet::new();
        for (count, is_alloc) in ops {
            if is_alloc || held.is_empty() {
                let Some(mfn) = table.alloc_core(count) else { continue };
                let count = count.max(1);
                for n in mfn.get()..mfn.get() + count as u64 {
                    prop_assert!(taken.insert(n), "{n} handed out twice");
                }
                held.push((mfn, count));
            } else {
                let (mfn, count) = held.swap_remove(count % held.len());
                (mfn.get()..mfn.get() + count as u64).for_each(|n| { taken.remove(&n); });
                table.free_core(mfn, count);
            }
            prop_assert_eq!(table.free_frames(), free - taken.len() as u64);
        }
        for (mfn, count) in held {
            table.free_core(mfn, count);
        }
        prop_assert_eq!(table.free_frames(), free);
        prop_assert!(table.alloc_core(128).is_some(), "blocks were not merged");
    }
}
