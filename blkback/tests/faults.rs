//! Each order to do wrong: obeyed once, noted with its time, seen by the front end as
//! what it is; and without an order everything is as it should be.

mod common;

use blkback::faults::{FaultyDevice, FaultyNotifier, FaultyRing, LedgerOrders, Orders};
use blkback::{Parts, Platform, Range, Server, SharedLedger, Step, Vbd};
use bulkhead_abi::ledger::{self as at, fault};
use common::{Bell, Disk, Fuel, Guest, Pages, Platter, Words, facts};
use ring_proto::blkif::{Direction, List, RawRequest, RawResponse, Request, Segment};
use ring_proto::{Broken, Gref, RingMemory, layout};
use std::cell::Cell;

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
}

fn now() -> u64 {
    NOW.get()
}

type FromLedger = LedgerOrders<Words>;

struct Faulty;

impl Platform for Faulty {
    type Ring = FaultyRing<Words, FromLedger>;
    type Memory = Pages;
    type Ledger = SharedLedger<Words>;
    type Notifier = FaultyNotifier<Bell, FromLedger>;
    type Device = FaultyDevice<Disk, FromLedger>;
}

struct Bench {
    guest: Guest,
    platter: Platter,
    server: Server<Faulty>,
    next: u64,
}

/// A page for each request, written with its number.
impl Bench {
    fn new() -> Self {
        NOW.set(1_000);
        let fuel = Fuel::default();
        let platter = Platter::default();
        let range = Range::new(&facts(), 0, 0, true).unwrap();
        let guest = Guest::new(&fuel, range);
        let orders = || LedgerOrders::new(guest.ledger.clone(), now);
        let disk = Disk::new(&platter, facts(), &fuel, 5);
        let mut server = Server::<Faulty>::new(FaultyDevice::new(disk, orders()));
        let parts = Parts {
            ring: FaultyRing::new(guest.ring_words.clone(), orders()),
            memory: guest.pages.clone(),
            ledger: SharedLedger::new(guest.ledger.clone(), 3).unwrap(),
            notifier: FaultyNotifier::new(guest.bell.clone(), orders()),
            range,
        };
        server.add(Vbd::new(parts).unwrap());
        Self { guest, platter, server, next: 0 }
    }

    fn order(&self, fault: u64, argument: u64) {
        let ledger = &self.guest.ledger;
        ledger.store_wide(at::FAULT_ACTIVATED_NS, 0);
        ledger.store_wide(at::FAULT_ARGUMENT, argument);
        ledger.store_wide(at::FAULT_COMMAND, fault);
    }

    fn activated(&self) -> u32 {
        self.guest.ledger.load(at::FAULT_ACTIVATED_NS)
    }

    /// Writes one page to the disk, at sector 0.
    fn ask(&mut self) {
        let gref = 100 + self.next as u32;
        self.guest.pages.grant(gref, vec![self.next as u8 + 1; 4096], true);
        let segments = List::from_slice(&[Segment::page(Gref::new(gref))]).unwrap();
        let request = Request::Transfer { direction: Direction::Write, sector: 0, segments };
        self.guest.push(&RawRequest::encode(self.next, 0xca00, &request));
        self.next += 1;
    }

    fn settle(&mut self) {
        let mut idle = 0;
        while idle < 20 {
            idle = if self.server.step() == Step::More { 0 } else { idle + 1 };
            // As before a sleep: asks for events.
            self.server.may_sleep();
        }
    }

    fn take(&mut self) -> Vec<u64> {
        self.guest.responses().iter().map(|response| response.id).collect()
    }

    /// Asks once with an order given, and says which ids come back.
    fn under(&mut self, fault: u64, argument: u64) -> Vec<u64> {
        self.order(fault, argument);
        self.ask();
        self.settle();
        self.take()
    }
}

#[test]
fn without_orders_and_with_one_that_was_obeyed_all_is_well() {
    let mut b = Bench::new();
    assert_eq!(b.under(0, 0), [0]);
    assert_eq!(b.under(999, 0), [1]);
    assert_eq!(b.activated(), 0);
    assert_eq!(b.under(fault::WRONG_ID, 7), [9]);
    assert_eq!(b.activated(), 1_000);
    NOW.set(2_000);
    b.ask();
    b.settle();
    assert_eq!((b.take(), b.activated()), (vec![3], 1_000), "obeyed once");
}

#[test]
fn an_order_lets_some_go_right_and_then_as_many_go_wrong_as_it_says() {
    let mut b = Bench::new();
    b.guest.ledger.store(at::FAULT_SKIP, 2);
    b.guest.ledger.store(at::FAULT_MORE, 1);
    b.order(fault::WRONG_ID, 100);
    let mut ids = Vec::new();
    for _ in 0..6 {
        b.ask();
        b.settle();
        ids.extend(b.take());
    }
    assert_eq!(ids, [0, 1, 102, 103, 4, 5]);
}

#[test]
fn a_duplicate_is_on_the_ring_twice_and_what_follows_comes_after_it() {
    let mut b = Bench::new();
    b.order(fault::DUPLICATE, 0);
    for asked in 1..32 {
        b.ask();
        b.settle();
        let words = b.guest.ring_words.clone();
        let id = |slot: u32| words.load(layout::SLOTS + 112 * slot as usize);
        assert_eq!(words.load(layout::RSP_PROD), asked + 1);
        assert_eq!(id(asked), asked - 1);
        assert!(asked > 1 || id(0) == id(1), "before the second request comes there");
    }
}

#[test]
fn an_absurd_producer_stays_absurd() {
    let mut b = Bench::new();
    b.order(fault::ABSURD_PRODUCER, 0);
    b.ask();
    b.settle();
    for _ in 0..2 {
        assert!(matches!(b.guest.front.take(), Err(Broken::Responses { .. })));
        b.ask();
        b.settle();
    }
}

#[test]
fn an_early_answer_comes_before_the_data_is_on_the_disk() {
    let mut b = Bench::new();
    b.order(fault::EARLY, 0);
    b.ask();
    while b.guest.ledger.load(at::FAULT_ACTIVATED_NS) == 0 {
        let _ = b.server.step();
    }
    // The device does nothing, and yet there is an answer.
    assert_eq!(b.platter.data.borrow()[0], 0);
    let _ = b.server.step();
    assert_eq!(b.take(), [0]);
    b.settle();
    assert_eq!(b.platter.data.borrow()[0], 1);
    assert!(b.take().is_empty(), "answered once");
}

#[test]
fn a_late_answer_comes_when_its_time_has_come_and_a_slow_device_is_slow_for_good() {
    let mut b = Bench::new();
    assert!(b.under(fault::LATE, 500).is_empty());
    assert_eq!(b.server.device().next_due(), Some(1_500));
    NOW.set(1_499);
    b.settle();
    assert!(b.take().is_empty());
    NOW.set(1_500);
    b.settle();
    assert_eq!(b.take(), [0]);
    assert!(b.under(fault::SLOW, 100).is_empty());
    NOW.set(1_600);
    b.settle();
    assert_eq!(b.take(), [1]);
    b.ask();
    b.settle();
    assert!(b.take().is_empty());
    assert_eq!(b.server.device().next_due(), Some(1_700));
}

#[test]
fn what_is_never_answered_holds_back_all_that_follows() {
    let mut b = Bench::new();
    assert!(b.under(fault::NEVER, 0).is_empty());
    b.ask();
    b.settle();
    assert!(b.take().is_empty(), "answers come in order");
}

#[test]
fn a_stuck_device_is_done_with_nothing_and_a_stuck_status_is_an_error_for_so_many() {
    let mut b = Bench::new();
    b.order(fault::STUCK_STATUS, 2);
    (0..3).for_each(|_| b.ask());
    b.settle();
    let failed = |r: &RawResponse| r.status != 0;
    assert_eq!(b.guest.responses().iter().filter(|r| failed(r)).count(), 2);
    assert!(b.under(fault::STUCK_DEVICE, 0).is_empty());
    b.ask();
    b.settle();
    assert!(b.take().is_empty());
}

#[test]
fn events_storm_or_stay_away_once() {
    let mut b = Bench::new();
    b.ask();
    b.settle();
    let before = b.guest.bell.rung.get();
    assert_eq!(b.take(), [0]);
    b.guest.front.final_check().unwrap();
    b.under(fault::NO_EVENT, 0);
    assert_eq!(b.guest.bell.rung.get(), before);
    assert_ne!(b.activated(), 0);
    b.guest.front.final_check().unwrap();
    b.under(fault::EVENT_STORM, 17);
    assert_eq!(b.guest.bell.rung.get(), before + 17);
    b.guest.front.final_check().unwrap();
    b.under(0, 0);
    assert_eq!(b.guest.bell.rung.get(), before + 18);
}

#[test]
fn an_order_names_what_can_be_done_wrong_by_one_name_and_number_each() {
    for (i, (name, number)) in fault::NAMES.iter().enumerate() {
        assert!(*number != 0);
        let others = &fault::NAMES[i + 1..];
        assert!(others.iter().all(|(n, other)| n != name && other != number), "{name}");
    }
    let orders = LedgerOrders::new(Words::new(4096, &Fuel::default()), now);
    assert_eq!(orders.take(0), None);
}
