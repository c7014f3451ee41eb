//! The cursors and the suppression of notifications under a model checker: every
//! interleaving that the memory model allows of a few requests between two ends that
//! sleep. A lost wake-up is a deadlock, which loom reports.
#![cfg(not(miri))]

mod common;

use common::Words;
use loom::sync::Arc;
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use ring_proto::{BackRing, FrontRing, RingMemory};

/// Only the words of a ring of two one-word slots, so that loom has little to track.
struct Model {
    words: Vec<AtomicU32>,
}

const SLOTS: usize = 2;

impl Model {
    fn new() -> Self {
        Self { words: (0..4 + SLOTS).map(|_| AtomicU32::new(0)).collect() }
    }
    fn cell(&self, offset: usize) -> Option<&AtomicU32> {
        match offset / 4 {
            i @ 0..4 => self.words.get(i),
            4..16 => None,
            i => self.words.get(i - 12),
        }
    }
}

impl RingMemory for Model {
    fn bytes(&self) -> usize {
        64 + 4 * SLOTS
    }
    fn load(&self, offset: usize) -> u32 {
        self.cell(offset).map_or(0, |c| c.load(Ordering::Acquire))
    }
    fn store(&self, offset: usize, value: u32) {
        if let Some(cell) = self.cell(offset) {
            cell.store(value, Ordering::Release);
        }
    }
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

fn back_end(memory: &Model, requests: u32, my_events: &Notify, their_events: &Notify) {
    let mut back = BackRing::<Words, _>::new(memory).unwrap();
    let mut served = 0;
    loop {
        while let Some(request) = back.take().unwrap() {
            back.write(&(request + 100)).unwrap();
            back.publish().unwrap();
            served += 1;
        }
        if back.must_notify() {
            their_events.notify();
        }
        if served == requests {
            return;
        }
        if !back.final_check().unwrap() {
            my_events.wait();
        }
    }
}

fn front_end(mut front: FrontRing<Words, &Model>, requests: u32, mine: &Notify, theirs: &Notify) {
    let (mut sent, mut got) = (0, 0);
    while got < requests {
        while sent < requests && front.push(&sent).is_ok() {
            sent += 1;
            if front.publish() {
                theirs.notify();
            }
        }
        while let Some(response) = front.take().unwrap() {
            assert_eq!(response, got + 100);
            got += 1;
        }
        let must_wait = sent == requests || front.free() == 0;
        if got < requests && must_wait && !front.final_check().unwrap() {
            mine.wait();
        }
    }
}

fn check(requests: u32, preemptions: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        let memory = Arc::new(Model::new());
        let (to_back, to_front) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        // The front end initialises the ring before it tells anybody of it.
        let ring = memory.clone();
        let front = FrontRing::<Words, _>::new(&*ring).unwrap();
        let thread = {
            let (memory, mine, theirs) = (memory.clone(), to_back.clone(), to_front.clone());
            loom::thread::spawn(move || back_end(&memory, requests, &mine, &theirs))
        };
        front_end(front, requests, &to_front, &to_back);
        thread.join().unwrap();
    });
}

#[test]
fn no_wake_up_is_lost_and_no_entry_torn_in_any_order_of_two_requests() {
    check(2, 3);
}

#[test]
fn no_wake_up_is_lost_when_the_ring_wraps() {
    check(3, 2);
}
