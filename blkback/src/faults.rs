//! Ways to do wrong on order, to see whether others survive it: parts of a back end that
//! are as honest as what they wrap until they are told otherwise. The back end itself
//! knows nothing of them. Never in a driver domain that is to serve.
//!
//! What can be ordered is in `bulkhead_abi::ledger::fault`.

use crate::{BlockDevice, Completion, DeviceError, DeviceFacts, Job, Notifier, Token};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use bulkhead_abi::ledger::{self as at, fault};
use core::cell::Cell;
use ring_proto::blkif::{Blk, RawResponse};
use ring_proto::{Geometry, Protocol, RingMemory, layout};
use zerocopy::{FromBytes, IntoBytes};

/// Where orders come from.
pub trait Orders {
    /// The argument of this order, if it is given and not yet obeyed; notes that it is now.
    fn take(&self, fault: u64) -> Option<u64>;
    /// System time, ns.
    fn now(&self) -> u64;
}

/// Orders in the header of the ledger.
pub struct LedgerOrders<M> {
    memory: M,
    clock: fn() -> u64,
}

impl<M: RingMemory> LedgerOrders<M> {
    /// Orders in these pages. `clock` gives the system time, ns.
    pub fn new(memory: M, clock: fn() -> u64) -> Self {
        Self { memory, clock }
    }

    fn wide(&self, offset: usize) -> u64 {
        u64::from(self.memory.load(offset)) | u64::from(self.memory.load(offset + 4)) << 32
    }

    /// Counts a word down; whether there was anything to count.
    fn count_down(&self, offset: usize) -> bool {
        let left = self.memory.load(offset).checked_sub(1);
        if let Some(left) = left {
            self.memory.store(offset, left);
        }
        left.is_some()
    }
}

impl<M: RingMemory> Orders for LedgerOrders<M> {
    fn take(&self, fault: u64) -> Option<u64> {
        let is_given = fault != 0 && self.wide(at::FAULT_COMMAND) == fault;
        if !is_given || self.count_down(at::FAULT_SKIP) {
            return None;
        }
        let is_first = self.wide(at::FAULT_ACTIVATED_NS) == 0;
        if is_first {
            self.memory.store_wide(at::FAULT_ACTIVATED_NS, self.now().max(1));
        }
        (is_first || self.count_down(at::FAULT_MORE)).then(|| self.wide(at::FAULT_ARGUMENT))
    }

    fn now(&self) -> u64 {
        (self.clock)()
    }
}

/// What is meant by an argument.
fn or(argument: u64, otherwise: u64) -> u64 {
    if argument == 0 { otherwise } else { argument }
}

/// A ring on which responses go wrong.
pub struct FaultyRing<M, O> {
    memory: M,
    orders: O,
    /// Where the last response went, and what it was.
    last: Cell<(usize, RawResponse)>,
    /// Responses that are on the ring twice: what follows comes as much later.
    twice: Cell<u32>,
    /// What is added to the producer beside that.
    skew: Cell<u32>,
}

impl<M: RingMemory, O: Orders> FaultyRing<M, O> {
    /// Wraps the memory of a ring.
    pub fn new(memory: M, orders: O) -> Self {
        let last = Cell::new((layout::SLOTS, RawResponse::new(0, 0, 0)));
        Self { memory, orders, last, twice: Cell::new(0), skew: Cell::new(0) }
    }

    /// The slot so many after the one at `offset`.
    fn slot_after(&self, offset: usize, slots: u32) -> usize {
        let index = (offset - layout::SLOTS) / Blk::SLOT_BYTES;
        let geometry = Geometry::<Blk>::of(self.memory.bytes());
        geometry.map_or(offset, |geometry| geometry.offset(index as u32 + slots))
    }

    fn write(&self, offset: usize, mut response: RawResponse) {
        if let Some(by) = self.orders.take(fault::WRONG_ID) {
            response.id = response.id.wrapping_add(or(by, 1));
        }
        let offset = self.slot_after(offset, self.twice.get());
        self.last.set((offset, response));
        self.memory.copy_in(offset, response.as_bytes());
    }

    fn publish(&self, producer: u32) {
        if self.orders.take(fault::DUPLICATE).is_some() {
            let (offset, response) = self.last.get();
            self.twice.set(self.twice.get().wrapping_add(1));
            self.memory.copy_in(self.slot_after(offset, 1), response.as_bytes());
        }
        if let Some(by) = self.orders.take(fault::ABSURD_PRODUCER) {
            self.skew.set(or(by, 0x4000_0000) as u32);
        }
        let wrong = self.skew.get().wrapping_add(self.twice.get());
        self.memory.store(layout::RSP_PROD, producer.wrapping_add(wrong));
    }
}

impl<M: RingMemory, O: Orders> RingMemory for FaultyRing<M, O> {
    fn bytes(&self) -> usize {
        self.memory.bytes()
    }
    fn load(&self, offset: usize) -> u32 {
        self.memory.load(offset)
    }
    fn store(&self, offset: usize, value: u32) {
        match offset {
            layout::RSP_PROD => self.publish(value),
            _ => self.memory.store(offset, value),
        }
    }
    fn store_wide(&self, offset: usize, value: u64) {
        self.memory.store_wide(offset, value);
    }
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.memory.copy_out(offset, into);
    }
    fn copy_in(&self, offset: usize, from: &[u8]) {
        match RawResponse::read_from_bytes(from) {
            Ok(response) => self.write(offset, response),
            Err(_) => self.memory.copy_in(offset, from),
        }
    }
    fn full_fence(&self) {
        self.memory.full_fence();
    }
}

/// A way to wake a front end that is too quiet or too loud.
pub struct FaultyNotifier<N, O> {
    inner: N,
    orders: O,
}

impl<N, O> FaultyNotifier<N, O> {
    /// Wraps a notifier.
    pub fn new(inner: N, orders: O) -> Self {
        Self { inner, orders }
    }
}

impl<N: Notifier, O: Orders> Notifier for FaultyNotifier<N, O> {
    fn notify(&mut self) {
        if self.orders.take(fault::NO_EVENT).is_some() {
            return;
        }
        let storm = self.orders.take(fault::EVENT_STORM);
        for _ in 0..storm.map_or(1, |events| or(events, 10_000)) {
            self.inner.notify();
        }
    }
}

/// A device that answers early, late, never or wrongly.
pub struct FaultyDevice<D: BlockDevice, O> {
    inner: D,
    orders: O,
    /// Answered before they are done: told, and not told again.
    early: VecDeque<Token>,
    told: Vec<Token>,
    /// Done, and answered from a time on.
    held: VecDeque<(u64, Completion<D::Buffer>)>,
    slow_ns: u64,
    is_stuck: bool,
    failing: u64,
}

impl<D: BlockDevice, O: Orders> FaultyDevice<D, O> {
    /// Wraps a device.
    pub fn new(inner: D, orders: O) -> Self {
        Self {
            inner,
            orders,
            early: VecDeque::new(),
            told: Vec::new(),
            held: VecDeque::new(),
            slow_ns: 0,
            is_stuck: false,
            failing: 0,
        }
    }

    /// When it is worth to ask again, if nothing else happens.
    pub fn next_due(&self) -> Option<u64> {
        self.held.iter().map(|(due, _)| *due).min()
    }

    fn take_due(&mut self) -> Option<Completion<D::Buffer>> {
        let now = self.orders.now();
        let at = self.held.iter().position(|(due, _)| *due <= now)?;
        self.held.remove(at).map(|(_, done)| done)
    }

    /// Delays what is done, if it is to be.
    fn hold(&mut self, done: Completion<D::Buffer>) -> Option<Completion<D::Buffer>> {
        if let Some(ns) = self.orders.take(fault::SLOW) {
            self.slow_ns = ns;
        }
        let late = self.orders.take(fault::LATE).unwrap_or(0);
        let delay = self.slow_ns.saturating_add(late);
        if delay == 0 {
            return Some(done);
        }
        self.held.push_back((self.orders.now().saturating_add(delay), done));
        None
    }

    fn spoil(&mut self, done: &mut Completion<D::Buffer>) {
        if let Some(requests) = self.orders.take(fault::STUCK_STATUS) {
            self.failing = or(requests, 1);
        }
        if self.failing > 0 {
            self.failing -= 1;
            done.result = Err(DeviceError);
        }
    }
}

impl<D: BlockDevice, O: Orders> BlockDevice for FaultyDevice<D, O> {
    type Buffer = D::Buffer;

    fn facts(&self) -> DeviceFacts {
        self.inner.facts()
    }

    fn submit(&mut self, token: Token, job: Job<D::Buffer>) -> Result<(), Job<D::Buffer>> {
        self.inner.submit(token, job)?;
        if self.orders.take(fault::EARLY).is_some() {
            self.early.push_back(token);
        }
        Ok(())
    }

    fn kick(&mut self) {
        self.inner.kick();
    }

    fn poll(&mut self) -> Option<Completion<D::Buffer>> {
        if self.is_stuck || self.orders.take(fault::STUCK_DEVICE).is_some() {
            self.is_stuck = true;
            return None;
        }
        if let Some(token) = self.early.pop_front() {
            self.told.push(token);
            return Some(Completion { token, buffer: None, result: Ok(()) });
        }
        if let Some(done) = self.take_due() {
            return Some(done);
        }
        loop {
            let mut done = self.inner.poll()?;
            if let Some(at) = self.told.iter().position(|token| *token == done.token) {
                // Its pages are given back now that the device is really done.
                self.told.swap_remove(at);
                continue;
            }
            if self.orders.take(fault::NEVER).is_some() {
                continue;
            }
            self.spoil(&mut done);
            if let Some(done) = self.hold(done) {
                return Some(done);
            }
        }
    }
}
