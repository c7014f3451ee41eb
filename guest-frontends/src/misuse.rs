//! A guest whose block front ends do wrong on order, to see whether the back end and other
//! guests survive it. It is as honest as the platform it wraps until it is told otherwise, and
//! the front end itself knows nothing of it. Never for a guest that wants its data.
//!
//! An order is a line: `order WHAT ARGUMENT SKIP TIMES`. What could go wrong does not `SKIP`
//! times, and then goes wrong `TIMES` times, 0 for ever. One connection has one ring, the first
//! pages that it shares: make a platform for each.

use crate::platform::{Channel, NoRoom, Pages, Peer, Platform};
use alloc::rc::Rc;
use core::cell::Cell;
use core::str::FromStr;
use ring_proto::blkif::{Blk, RawRequest};
use ring_proto::{Geometry, Gref, Protocol, RingMemory, layout};
use zerocopy::{FromBytes, IntoBytes};

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// A request has the id of the one before it.
    WrongId,
    /// A request is on the ring twice.
    Duplicate,
    /// A request is published and written after that.
    Early,
    /// Answers are looked at the argument, in ns, later.
    Late,
    /// Answers are looked at no more.
    Never,
    /// The published producer index is too high by the argument from then on.
    AbsurdProducer,
    /// As many events as the argument in place of one.
    EventStorm,
    /// An event is not sent.
    NoEvent,
}

impl FromStr for Misuse {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Ok(match name {
            "front-wrong-id" => Self::WrongId,
            "front-duplicate" => Self::Duplicate,
            "front-early" => Self::Early,
            "front-late" => Self::Late,
            "front-never" => Self::Never,
            "front-absurd-producer" => Self::AbsurdProducer,
            "front-event-storm" => Self::EventStorm,
            "front-no-event" => Self::NoEvent,
            _ => return Err(()),
        })
    }
}

#[derive(Clone, Copy, Debug)]
struct Order {
    what: Misuse,
    argument: u64,
    skip: u32,
    /// `None`: for ever.
    times: Option<u32>,
}

/// The order that is to be obeyed; clones share it.
#[derive(Clone, Default)]
pub struct Orders(Rc<Inner>);

#[derive(Default)]
struct Inner {
    order: Cell<Option<Order>>,
    /// Of the present order.
    is_activated: Cell<bool>,
    activations: Cell<u64>,
}

impl Orders {
    /// Takes a line; false if it is no order.
    pub fn hear(&self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        let order = (|| {
            let what = (words.next() == Some("order")).then(|| words.next()?.parse().ok())??;
            let argument = words.next()?.parse().ok()?;
            let skip = words.next()?.parse().ok()?;
            let times: u32 = words.next()?.parse().ok()?;
            Some(Order { what, argument, skip, times: (times > 0).then_some(times) })
        })();
        if order.is_some() {
            self.0.is_activated.set(false);
            self.0.order.set(order);
        }
        order.is_some()
    }

    /// Forgets the order.
    pub fn forget(&self) {
        self.0.order.set(None);
    }

    /// How many orders there were that something went wrong by.
    pub fn activations(&self) -> u64 {
        self.0.activations.get()
    }

    /// The argument, if this is to go wrong now.
    fn take(&self, what: Misuse) -> Option<u64> {
        let mut order = self.0.order.get().filter(|order| order.what == what)?;
        if let Some(skip) = order.skip.checked_sub(1) {
            order.skip = skip;
            self.0.order.set(Some(order));
            return None;
        }
        if !self.0.is_activated.replace(true) {
            self.0.activations.set(self.0.activations.get() + 1);
        }
        order.times = order.times.map(|times| times - 1);
        self.0.order.set((order.times != Some(0)).then_some(order));
        Some(order.argument)
    }
}

/// A platform for one connection that goes wrong.
pub struct Misusing<'a, P> {
    inner: &'a P,
    orders: Orders,
    clock: fn() -> u64,
    has_ring: Cell<bool>,
}

impl<'a, P: Platform> Misusing<'a, P> {
    /// For one connection. `clock` gives ns.
    pub fn new(inner: &'a P, orders: Orders, clock: fn() -> u64) -> Self {
        Self { inner, orders, clock, has_ring: Cell::new(false) }
    }
}

impl<P: Platform> Platform for Misusing<'_, P> {
    type Pages = MisusedPages<P::Pages>;
    type Channel = MisusedChannel<P::Channel>;
    type Store = P::Store;

    fn share(&self, peer: Peer, count: usize) -> Result<Self::Pages, NoRoom> {
        let inner = self.inner.share(peer, count)?;
        let ring = (!self.has_ring.replace(true)).then(|| Ring {
            orders: self.orders.clone(),
            clock: self.clock,
            last: Cell::new(None),
            unwritten: Cell::new(None),
            skew: Cell::new(0),
            twice: Cell::new(0),
            blind: Cell::new(None),
        });
        Ok(MisusedPages { inner, ring })
    }

    fn open_channel(&self, peer: Peer) -> Result<Self::Channel, NoRoom> {
        let inner = self.inner.open_channel(peer)?;
        Ok(MisusedChannel { inner, orders: self.orders.clone() })
    }

    fn store(&self) -> &Self::Store {
        self.inner.store()
    }
}

/// A channel that is too quiet or too loud.
pub struct MisusedChannel<C> {
    inner: C,
    orders: Orders,
}

impl<C: Channel> Channel for MisusedChannel<C> {
    fn port(&self) -> u32 {
        self.inner.port()
    }

    fn notify(&self) {
        if self.orders.take(Misuse::NoEvent).is_some() {
            return;
        }
        let events = self.orders.take(Misuse::EventStorm).unwrap_or(1);
        (0..events).for_each(|_| self.inner.notify());
    }

    async fn wait(&self) {
        self.inner.wait().await;
    }
}

/// Pages of a connection; those of its ring go wrong.
pub struct MisusedPages<M> {
    inner: M,
    ring: Option<Ring>,
}

struct Ring {
    orders: Orders,
    clock: fn() -> u64,
    /// Where the last request went, and what it was.
    last: Cell<Option<(usize, RawRequest)>>,
    /// A request that is published before it is there.
    unwritten: Cell<Option<(usize, RawRequest)>>,
    /// What is added to the producer, and how many slots requests are behind.
    skew: Cell<u32>,
    twice: Cell<u32>,
    /// Answers until this one are seen before that time.
    blind: Cell<Option<(u32, u64)>>,
}

impl<M: RingMemory> MisusedPages<M> {
    fn slot_after(&self, offset: usize, slots: u32) -> usize {
        let index = offset.saturating_sub(layout::SLOTS) / Blk::SLOT_BYTES;
        let geometry = Geometry::<Blk>::of(self.inner.bytes());
        geometry.map_or(offset, |geometry| geometry.offset((index as u32).wrapping_add(slots)))
    }

    fn write_late(&self, ring: &Ring) {
        if let Some((offset, request)) = ring.unwritten.take() {
            self.inner.copy_in(offset, request.as_bytes());
        }
    }

    fn write(&self, ring: &Ring, offset: usize, mut request: RawRequest) {
        if let Some((_, last)) = ring.last.get()
            && ring.orders.take(Misuse::WrongId).is_some()
        {
            request.id = last.id;
        }
        let offset = self.slot_after(offset, ring.twice.get());
        ring.last.set(Some((offset, request)));
        match ring.orders.take(Misuse::Early) {
            Some(_) => ring.unwritten.set(Some((offset, request))),
            None => self.inner.copy_in(offset, request.as_bytes()),
        }
    }

    fn publish(&self, ring: &Ring, producer: u32) {
        if let Some((offset, request)) = ring.last.get()
            && ring.orders.take(Misuse::Duplicate).is_some()
        {
            ring.twice.set(ring.twice.get().wrapping_add(1));
            self.inner.copy_in(self.slot_after(offset, 1), request.as_bytes());
        }
        if let Some(by) = ring.orders.take(Misuse::AbsurdProducer) {
            ring.skew.set(by as u32);
        }
        let wrong = ring.skew.get().wrapping_add(ring.twice.get());
        self.inner.store(layout::REQ_PROD, producer.wrapping_add(wrong));
    }

    /// The producer of answers as it is seen.
    fn answered(&self, ring: &Ring) -> u32 {
        self.write_late(ring);
        let there = self.inner.load(layout::RSP_PROD);
        let now = (ring.clock)();
        if let Some((seen, until)) = ring.blind.get() {
            if now < until {
                return seen;
            }
            ring.blind.set(None);
        }
        let until = match ring.orders.take(Misuse::Never) {
            Some(_) => u64::MAX,
            None => match ring.orders.take(Misuse::Late) {
                Some(ns) => now.saturating_add(ns),
                None => return there,
            },
        };
        ring.blind.set(Some((there, until)));
        there
    }
}

impl<M: RingMemory> RingMemory for MisusedPages<M> {
    fn bytes(&self) -> usize {
        self.inner.bytes()
    }
    fn load(&self, offset: usize) -> u32 {
        match &self.ring {
            Some(ring) if offset == layout::RSP_PROD => self.answered(ring),
            _ => self.inner.load(offset),
        }
    }
    fn store(&self, offset: usize, value: u32) {
        match &self.ring {
            Some(ring) if offset == layout::REQ_PROD => self.publish(ring, value),
            _ => self.inner.store(offset, value),
        }
    }
    fn store_wide(&self, offset: usize, value: u64) {
        self.inner.store_wide(offset, value);
    }
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.inner.copy_out(offset, into);
    }
    fn copy_in(&self, offset: usize, from: &[u8]) {
        match (&self.ring, RawRequest::read_from_bytes(from)) {
            (Some(ring), Ok(request)) => {
                self.write_late(ring);
                self.write(ring, offset, request);
            }
            _ => self.inner.copy_in(offset, from),
        }
    }
    fn full_fence(&self) {
        self.inner.full_fence();
    }
}

impl<M: Pages> Pages for MisusedPages<M> {
    fn grefs(&self) -> &[Gref] {
        self.inner.grefs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU32;

    fn words() -> alloc::vec::Vec<AtomicU32> {
        (0..1024).map(|_| AtomicU32::new(0)).collect()
    }

    fn pages<'a>(orders: &Orders, inner: &'a [AtomicU32]) -> MisusedPages<&'a [AtomicU32]> {
        let ring = Ring {
            orders: orders.clone(),
            clock: || 0,
            last: Cell::new(None),
            unwritten: Cell::new(None),
            skew: Cell::new(0),
            twice: Cell::new(0),
            blind: Cell::new(None),
        };
        MisusedPages { inner, ring: Some(ring) }
    }

    /// Puts a request with that id on the ring as the `index`th, and publishes it.
    fn ask<M: RingMemory>(pages: &MisusedPages<M>, index: u32, id: u64) {
        let geometry = Geometry::<Blk>::of(4096).unwrap();
        let mut request: RawRequest = zerocopy::FromZeros::new_zeroed();
        request.id = id;
        pages.copy_in(geometry.offset(index), request.as_bytes());
        pages.store(layout::REQ_PROD, index + 1);
    }

    fn id_at<M: RingMemory>(pages: &MisusedPages<M>, index: u32) -> u64 {
        let mut request: RawRequest = zerocopy::FromZeros::new_zeroed();
        let geometry = Geometry::<Blk>::of(4096).unwrap();
        pages.inner.copy_out(geometry.offset(index), request.as_mut_bytes());
        request.id
    }

    #[test]
    fn an_order_is_a_line_and_has_its_dose() {
        let orders = Orders::default();
        for wrong in
            ["", "order", "order kill 0 0 1", "order front-never 0 0", "order front-never x 0 1"]
        {
            assert!(!orders.hear(wrong), "{wrong}");
        }
        assert!(orders.hear("order front-no-event 7 2 2"));
        let taken = [(); 6].map(|()| orders.take(Misuse::NoEvent));
        assert_eq!(taken, [None, None, Some(7), Some(7), None, None]);
        assert_eq!((orders.take(Misuse::Never), orders.activations()), (None, 1));
        assert!(orders.hear("order front-never 0 0 0"));
        assert!((0..9).all(|_| orders.take(Misuse::Never).is_some()));
        assert_eq!(orders.activations(), 2);
    }

    #[test]
    fn a_ring_goes_wrong_as_it_is_told_and_not_before() {
        let orders = Orders::default();
        let words = words();
        let pages = pages(&orders, &words);
        ask(&pages, 0, 10);
        assert_eq!((id_at(&pages, 0), pages.inner.load(layout::REQ_PROD)), (10, 1));
        assert!(orders.hear("order front-wrong-id 0 0 1"));
        ask(&pages, 1, 11);
        assert_eq!(id_at(&pages, 1), 10);
        assert!(orders.hear("order front-early 0 0 1"));
        ask(&pages, 2, 12);
        assert_eq!((id_at(&pages, 2), pages.inner.load(layout::REQ_PROD)), (0, 3));
        pages.load(layout::RSP_PROD);
        assert_eq!(id_at(&pages, 2), 12);
        assert!(orders.hear("order front-never 0 0 1"));
        pages.inner.store(layout::RSP_PROD, 1);
        assert_eq!(pages.load(layout::RSP_PROD), 1);
        pages.inner.store(layout::RSP_PROD, 2);
        assert_eq!(pages.load(layout::RSP_PROD), 1);
        assert!(orders.hear("order front-duplicate 0 0 1"));
        ask(&pages, 3, 13);
        assert_eq!((id_at(&pages, 4), pages.inner.load(layout::REQ_PROD)), (13, 5));
        ask(&pages, 4, 14);
        assert_eq!((id_at(&pages, 5), pages.inner.load(layout::REQ_PROD)), (14, 6));
        assert!(orders.hear("order front-absurd-producer 1000 0 1"));
        ask(&pages, 5, 15);
        assert_eq!(pages.inner.load(layout::REQ_PROD), 1007);
    }
}
