//! A back end that dies, and the next one under each policy on failure: what is refused is
//! answered all the same, once and in order; what is not to be run twice is not.

mod common;

use blkback::{Direction, OnFailure, Range, Server, Vbd};
use common::{Fake, Fuel, Guest, Platter, facts, server, settle};
use proptest::prelude::*;
use ring_proto::blkif::{List, RawRequest, Request, Segment};
use ring_proto::{Gref, RingMemory, layout};

/// A guest that writes sector `n` with its request `n`, and what it serves from.
struct Bench {
    guest: Guest,
    platter: Platter,
    fuel: Fuel,
    server: Server<Fake>,
    sent: u64,
    /// Status of each answer, in order.
    answers: Vec<i16>,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let (fuel, platter) = (Fuel::default(), Platter::default());
        let guest = Guest::new(&fuel, Range::new(&facts(), 0, 0, true).unwrap());
        let mut server = server(&platter, facts(), &fuel, seed);
        server.add(Vbd::new(guest.parts()).unwrap());
        Self { guest, platter, fuel, server, sent: 0, answers: Vec::new() }
    }

    fn send(&mut self, count: u64) {
        for id in self.sent..(self.sent + count).min(common::DISK_SECTORS) {
            if self.guest.front.free() == 0 {
                return;
            }
            let gref = id as u32;
            self.guest.pages.grant(gref, vec![id as u8 + 1; 4096], true);
            let segments = [Segment::new(Gref::new(gref), 0, 0).unwrap()];
            let segments = List::from_slice(&segments).unwrap();
            let request = Request::Transfer { direction: Direction::Write, sector: id, segments };
            self.guest.push(&RawRequest::encode(id, 0xca00, &request));
            self.sent += 1;
        }
    }

    fn listen(&mut self) {
        for response in self.guest.responses() {
            assert_eq!(response.id, self.answers.len() as u64, "once each, in order");
            self.answers.push(response.status);
        }
    }

    /// The next life begins. Gives how many requests have no answer then.
    fn revive(&mut self, policy: OnFailure, fuel: Option<u64>, seed: u64) -> u64 {
        self.fuel.set(fuel);
        self.guest.pages.force_unmap();
        self.server = server(&self.platter, facts(), &self.fuel, seed);
        self.server.add(Vbd::resume(self.guest.parts()).unwrap().treating(policy));
        self.sent - self.answers.len() as u64
    }

    fn settle(&mut self) {
        settle(&mut self.server);
        self.listen();
    }

    fn refused(&self) -> usize {
        self.answers.iter().filter(|&&status| status == -1).count()
    }

    /// What was answered well is on the disk.
    fn assert_no_lie(&self) {
        let disk = self.platter.data.borrow();
        for (id, status) in self.answers.iter().enumerate() {
            let is_there = disk[id * 512..][..512].iter().all(|&b| b == id as u8 + 1);
            assert!(*status != 0 || is_there, "write {id} is lost");
        }
    }
}

#[test]
fn requests_that_nobody_took_wait_under_queue_and_fail_under_fail() {
    for (policy, refused) in [(OnFailure::Reissue, 0), (OnFailure::Queue, 5), (OnFailure::Fail, 9)]
    {
        let mut bench = Bench::new(1);
        bench.server.device_mut().works = false;
        bench.send(5);
        settle(&mut bench.server);
        // The device has them; then it dies, and more come.
        bench.send(4);
        bench.revive(policy, None, 2);
        bench.settle();
        bench.send(3);
        bench.settle();
        assert_eq!((bench.answers.len(), bench.refused()), (12, refused), "{policy:?}");
        assert!(bench.answers[..refused].iter().all(|&status| status == -1));
        bench.assert_no_lie();
    }
}

#[test]
fn a_back_end_that_refuses_leaves_the_device_alone() {
    let mut bench = Bench::new(1);
    bench.send(3);
    bench.revive(OnFailure::Refuse, None, 2);
    bench.settle();
    bench.send(3);
    bench.settle();
    assert_eq!(bench.answers, [-1; 6]);
    assert!(bench.platter.submitted.borrow().is_empty());
    bench.revive(OnFailure::Reissue, None, 3);
    bench.send(1);
    bench.settle();
    assert_eq!(bench.answers.last(), Some(&0));
    assert_eq!(*bench.platter.submitted.borrow(), [6]);
}

#[test]
fn a_producer_that_was_spoilt_is_published_right_again() {
    for skew in [1, 2, 0x4000_0000, u32::MAX - 7] {
        let mut bench = Bench::new(1);
        bench.send(7);
        bench.settle();
        bench.send(2);
        let words = bench.guest.ring_words.immortal();
        let right = words.load(layout::RSP_PROD);
        words.store(layout::RSP_PROD, right.wrapping_add(skew));
        bench.revive(OnFailure::Reissue, None, 2);
        assert_eq!(words.load(layout::RSP_PROD), right, "skew {skew:#x}");
        bench.settle();
        assert_eq!(bench.answers, [0; 9]);
    }
}

proptest! {
    #[test]
    fn whatever_the_moment_of_death_nothing_is_run_twice_unless_it_is_to_be_reissued(
        sends in prop::collection::vec(1_u64..8, 1..12),
        lives in prop::collection::vec(0_u64..60, 0..6),
        policy in prop_oneof![Just(OnFailure::Queue), Just(OnFailure::Fail)],
        seed: u64,
    ) {
        let mut bench = Bench::new(seed);
        let mut lives = lives.into_iter();
        bench.fuel.set(lives.next());
        let mut may_be_refused = 0;
        for count in sends {
            bench.send(count);
            let _ = bench.server.step();
            bench.listen();
            while bench.fuel.is_out() {
                may_be_refused += bench.revive(policy, lives.next(), seed ^ 0x33);
                let _ = bench.server.step();
                bench.listen();
            }
        }
        bench.fuel.set(None);
        bench.settle();
        prop_assert_eq!(bench.answers.len() as u64, bench.sent);
        prop_assert!(bench.refused() as u64 <= may_be_refused);
        bench.assert_no_lie();
        let mut run = bench.platter.submitted.borrow().clone();
        run.sort_unstable();
        prop_assert!(run.windows(2).all(|pair| pair[0] != pair[1]), "{run:?}");
    }
}
