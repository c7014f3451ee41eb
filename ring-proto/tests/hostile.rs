//! A peer that writes whatever it likes, wherever it likes, between any two steps:
//! neither end may panic, loop or take an entry that its own cursors do not allow.

mod common;

use common::{Words, memory};
use proptest::prelude::*;
use ring_proto::{BackRing, Broken, FrontRing, RingMemory, layout};
use std::sync::atomic::AtomicU32;

const SLOTS: u32 = 4;
/// Under Miri each step costs a thousand times as much.
const STEPS: usize = if cfg!(miri) { 12 } else { 200 };

fn cases() -> ProptestConfig {
    match cfg!(miri) {
        true => ProptestConfig { cases: 3, failure_persistence: None, ..ProptestConfig::default() },
        false => ProptestConfig::default(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// The peer stores a word at one of the cursors, near a given distance from the
    /// honest value or anywhere.
    Poke {
        word: usize,
        value: u32,
    },
    /// The peer moves its producer by a small step.
    Nudge(i32),
    Take,
    Answer,
    Check,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_usize..20, prop_oneof![Just(0_u32), 0_u32..9, any::<u32>()])
            .prop_map(|(word, value)| Step::Poke { word, value }),
        (-3_i32..6).prop_map(Step::Nudge),
        Just(Step::Take),
        Just(Step::Take),
        Just(Step::Answer),
        Just(Step::Check),
    ]
}

fn poke(memory: &[AtomicU32], word: usize, value: u32) {
    let word = if word < 4 { word } else { word + 12 };
    if let Some(cell) = memory.get(word) {
        cell.store(value, std::sync::atomic::Ordering::SeqCst);
    }
}

fn nudge(memory: &[AtomicU32], offset: usize, by: i32) {
    let old = memory.load(offset);
    memory.store(offset, old.wrapping_add_signed(by));
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_back_end_bears_any_front_end(
        start in prop_oneof![Just(0_u32), Just(u32::MAX - 2), any::<u32>()],
        steps in prop::collection::vec(step(), 1..STEPS),
    ) {
        let memory = memory(SLOTS as usize, 4);
        memory.store(layout::RSP_PROD, start);
        memory.store(layout::REQ_PROD, start);
        let mut ring = BackRing::<Words, _>::resume(memory.as_slice()).unwrap();
        // The oracle: plain counts that never wrap.
        let (mut taken, mut answered) = (0_u64, 0_u64);
        for step in steps {
            match step {
                Step::Poke { word, value } => poke(&memory, word, value),
                Step::Nudge(by) => nudge(&memory, layout::REQ_PROD, by),
                Step::Take => {
                    let shown = memory.load(layout::REQ_PROD).wrapping_sub(start);
                    let published = u64::from(shown) | (taken & !0xffff_ffff);
                    let honest = published >= taken && published <= answered + u64::from(SLOTS);
                    match ring.take() {
                        Ok(Some(_)) => { prop_assert!(honest && published > taken); taken += 1; }
                        Ok(None) => prop_assert!(honest && published == taken),
                        Err(Broken::Requests { .. }) => prop_assert!(!honest),
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
                Step::Answer => {
                    let owed = taken > answered;
                    prop_assert_eq!(ring.write(&7).is_ok(), owed);
                    prop_assert_eq!(ring.publish().is_ok(), owed);
                    if owed {
                        answered += 1;
                        prop_assert_eq!(memory.load(layout::RSP_PROD), ring.rsp_prod());
                    }
                    let _ = ring.must_notify();
                }
                Step::Check => { let _ = ring.final_check(); }
            }
            prop_assert!(taken - answered <= u64::from(SLOTS));
            prop_assert_eq!(u64::from(ring.owed()), taken - answered);
        }
    }

    #[test]
    fn a_front_end_bears_any_back_end(steps in prop::collection::vec(step(), 1..STEPS)) {
        let memory = memory(SLOTS as usize, 4);
        let mut ring = FrontRing::<Words, _>::new(memory.as_slice()).unwrap();
        let (mut pushed, mut taken) = (0_u32, 0_u32);
        for step in steps {
            match step {
                Step::Poke { word, value } => poke(&memory, word, value),
                Step::Nudge(by) => nudge(&memory, layout::RSP_PROD, by),
                Step::Answer => {
                    let room = pushed - taken < SLOTS;
                    prop_assert_eq!(ring.push(&1).is_ok(), room);
                    pushed += u32::from(room);
                    let _ = ring.publish();
                }
                Step::Take => {
                    let shown = memory.load(layout::RSP_PROD);
                    let honest = shown >= taken && shown <= pushed;
                    match ring.take() {
                        Ok(Some(_)) => { prop_assert!(honest && shown > taken); taken += 1; }
                        Ok(None) => prop_assert!(honest && shown == taken),
                        Err(Broken::Responses { .. }) => prop_assert!(!honest),
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
                Step::Check => { let _ = ring.final_check(); }
            }
            prop_assert_eq!(ring.free(), SLOTS - (pushed - taken));
        }
    }
}

#[test]
fn a_ring_resumes_at_the_last_published_response() {
    let memory = memory(SLOTS as usize, 4);
    let mut front = FrontRing::<Words, _>::new(memory.as_slice()).unwrap();
    for request in [10, 11, 12] {
        front.push(&request).unwrap();
    }
    assert!(front.publish(), "the first push wakes the back end");
    let mut first = BackRing::<Words, _>::new(memory.as_slice()).unwrap();
    assert_eq!(first.take(), Ok(Some(10)));
    assert_eq!(first.take(), Ok(Some(11)));
    first.write(&100).unwrap();
    first.publish().unwrap();

    let mut second = BackRing::<Words, _>::resume(memory.as_slice()).unwrap();
    assert_eq!(second.take(), Ok(Some(11)), "taken, never answered: again");
    assert_eq!(second.take(), Ok(Some(12)));
    assert_eq!(second.take(), Ok(None));
    assert_eq!(front.take(), Ok(Some(100)));
}

#[test]
fn one_notification_covers_a_batch_and_none_is_sent_to_one_who_is_awake() {
    let memory = memory(SLOTS as usize, 4);
    let mut front = FrontRing::<Words, _>::new(memory.as_slice()).unwrap();
    let mut back = BackRing::<Words, _>::new(memory.as_slice()).unwrap();
    front.push(&1).unwrap();
    front.push(&2).unwrap();
    assert!(front.publish());
    front.push(&3).unwrap();
    assert!(!front.publish(), "the back end has not slept since");
    for _ in 0..3 {
        back.take().unwrap().unwrap();
        back.write(&0).unwrap();
        back.publish().unwrap();
    }
    assert!(back.must_notify(), "the front end waits for the first one");
    assert!(!back.must_notify());
    assert_eq!(back.final_check(), Ok(false));
    front.push(&4).unwrap();
    assert!(front.publish());
}
