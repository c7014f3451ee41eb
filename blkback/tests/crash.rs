//! A back end that dies between any two of its effects (a store to the ring or to the
//! ledger, a sector moved, an event sent), and another one that goes on: every request
//! is answered exactly once, in order, and the data is what an undisturbed disk holds.

mod common;

use blkback::{Direction, Range, Vbd};
use common::{Fuel, Guest, Platter, facts, server, settle};
use proptest::prelude::*;
use ring_proto::Gref;
use ring_proto::blkif::{List, RawRequest, Request, Segment};
use std::collections::HashMap;

/// One request of a script: a block of a sector of its own, so that no two in flight
/// touch the same data.
#[derive(Clone, Copy, Debug)]
enum Op {
    Write { block: u64, fill: u8 },
    Read { block: u64 },
    Flush,
    Nonsense,
}

/// Plays `script` against back ends of which the first ones die after `lives[i]` effects.
fn play(script: &[Op], lives: &[u64], seed: u64) -> Result<(), TestCaseError> {
    let (fuel, platter) = (Fuel::default(), Platter::default());
    let mut guest = Guest::new(&fuel, Range::new(&facts(), 0, 0, true).unwrap());
    let mut server = server(&platter, facts(), &fuel, seed);
    server.add(Vbd::new(guest.parts()).unwrap());
    let mut lives = lives.iter();
    fuel.set(lives.next().copied());

    // The oracle: what each block holds, and what each response must say.
    let mut blocks: HashMap<u64, u8> = HashMap::new();
    let mut in_flight: Vec<(u64, Op)> = Vec::new();
    let (mut next, mut idle) = (0, 0);
    while next < script.len() || !in_flight.is_empty() {
        while let Some(&op) = script.get(next) {
            if guest.front.free() == 0 || conflicts(op, &in_flight) {
                break;
            }
            send(&mut guest, next as u64, op);
            in_flight.push((next as u64, op));
            next += 1;
        }
        let _ = server.step();
        for response in guest.responses() {
            prop_assert!(!in_flight.is_empty(), "a response to nothing");
            let (id, op) = in_flight.remove(0);
            prop_assert_eq!(response.id, id, "once each, in order");
            let status = if matches!(op, Op::Nonsense) { -1 } else { 0 };
            prop_assert_eq!(response.status, status);
            match op {
                Op::Write { block, fill } => {
                    blocks.insert(block, fill);
                }
                Op::Read { block } => {
                    let held = blocks.get(&block).copied().unwrap_or(0);
                    let page = guest.pages.bytes(id as u32);
                    prop_assert!(page.iter().all(|&b| b == held), "block {} reads back", block);
                }
                Op::Flush | Op::Nonsense => {}
            }
            idle = 0;
        }
        if fuel.is_out() {
            fuel.set(lives.next().copied());
            guest.pages.force_unmap();
            let before = guest.bell.rung.get();
            server = common::server(&platter, facts(), &fuel, seed ^ 0x55);
            server.add(Vbd::resume(guest.parts()).unwrap());
            if !fuel.is_out() {
                let _ = server.step();
                prop_assert!(
                    fuel.is_out() || guest.bell.rung.get() > before,
                    "one event on resume"
                );
            }
        }
        idle += 1;
        prop_assert!(idle < 500, "the guest waits for ever");
    }
    fuel.set(None);
    settle(&mut server);
    prop_assert!(guest.responses().is_empty());
    let disk = platter.data.borrow();
    for (block, fill) in blocks {
        let at = block as usize * 4096;
        prop_assert!(disk[at..at + 4096].iter().all(|&b| b == fill));
    }
    Ok(())
}

fn conflicts(op: Op, in_flight: &[(u64, Op)]) -> bool {
    let of = |op: Op| match op {
        Op::Write { block, .. } | Op::Read { block } => Some(block),
        Op::Flush | Op::Nonsense => None,
    };
    let mine = of(op);
    mine.is_some() && in_flight.iter().any(|(_, other)| of(*other) == mine)
}

fn send(guest: &mut Guest, id: u64, op: Op) {
    let gref = id as u32;
    let transfer = |direction, sector| Request::Transfer {
        direction,
        sector,
        segments: List::from_slice(&[Segment::page(Gref::new(gref))]).unwrap(),
    };
    let request = match op {
        Op::Write { block, fill } => {
            guest.pages.grant(gref, vec![fill; 4096], true);
            transfer(Direction::Write, block * 8)
        }
        Op::Read { block } => {
            guest.pages.grant(gref, vec![0xee; 4096], false);
            transfer(Direction::Read, block * 8)
        }
        Op::Flush => Request::Flush,
        Op::Nonsense => transfer(Direction::Read, 1 << 40),
    };
    guest.push(&RawRequest::encode(id, 0xca00, &request));
}

#[test]
fn dying_after_each_single_effect_of_a_mixed_load_loses_and_repeats_nothing() {
    let script = [
        Op::Write { block: 0, fill: 1 },
        Op::Write { block: 1, fill: 2 },
        Op::Nonsense,
        Op::Read { block: 0 },
        Op::Flush,
        Op::Write { block: 1, fill: 3 },
        Op::Read { block: 1 },
    ];
    for life in 0..200 {
        for seed in [1, 2, 3] {
            play(&script, &[life], seed).unwrap_or_else(|e| panic!("life {life}: {e}"));
            play(&script, &[life, 3, 1, 0, 5], seed).unwrap_or_else(|e| panic!("{life}: {e}"));
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0_u64..8, 1_u8..=255).prop_map(|(block, fill)| Op::Write { block, fill }),
        3 => (0_u64..8).prop_map(|block| Op::Read { block }),
        1 => Just(Op::Flush),
        1 => Just(Op::Nonsense),
    ]
}

proptest! {
    #[test]
    fn any_number_of_deaths_at_any_point_loses_and_repeats_nothing(
        script in prop::collection::vec(op(), 1..60),
        lives in prop::collection::vec(0_u64..120, 0..8),
        seed: u64,
    ) {
        play(&script, &lives, seed)?;
    }
}
