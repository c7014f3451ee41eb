//! Requests in flight on a ring, and the judgement of what comes back. Does not wait,
//! does not know pages.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use ring_proto::blkif::{Blk, RawRequest, Request, Status};
use ring_proto::{Broken, FrontRing, RingMemory, TooSmall};

/// Names a request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(u16);

impl Tag {
    /// Its place, below the number of slots of the ring.
    pub fn place(self) -> usize {
        self.0.into()
    }
}

/// The back end did what no honest one does. The ring is of no more use; what is in flight
/// goes on with another one ([`super::recover`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A cursor that makes no sense.
    Ring(Broken),
    /// A response to a request that is not in flight.
    UnknownId {
        /// What it said.
        id: u64,
    },
    /// A response that repeats another operation.
    WrongOperation {
        /// What it said.
        operation: u8,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(broken) => broken.fmt(f),
            Self::UnknownId { id } => write!(f, "a response to id {id}, which is not in flight"),
            Self::WrongOperation { operation } => {
                write!(f, "a response to operation {operation}, which was not asked for")
            }
        }
    }
}

/// No request may be added before one is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A ring and what is in flight on it.
pub struct Queue<M> {
    ring: FrontRing<Blk, M>,
    ring_bytes: usize,
    handle: u16,
    /// By tag.
    in_flight: Vec<Option<Asked>>,
    free: Vec<Tag>,
    /// Requests pushed so far, which makes ids that no other request ever had: a second
    /// response to one that had this tag before is not taken for the answer.
    pushed: u64,
}

/// What the response to a request in flight must repeat.
#[derive(Clone, Copy)]
struct Asked {
    id: u64,
    operation: u8,
}

/// Bits of an id that are the tag.
const TAG_BITS: u32 = u16::BITS;

impl<M: RingMemory> Queue<M> {
    /// Sets up a ring in memory that is shared afterwards. `handle` is the low half of
    /// the device's number.
    pub fn new(memory: M, handle: u16) -> Result<Self, TooSmall> {
        let ring_bytes = memory.bytes();
        let ring = FrontRing::new(memory)?;
        let slots = ring.slots().min(u32::from(u16::MAX)) as u16;
        Ok(Self {
            handle,
            in_flight: vec![None; slots.into()],
            free: (0..slots).rev().map(Tag).collect(),
            ring_bytes,
            pushed: 0,
            ring,
        })
    }

    /// Slots of the ring: the most requests in flight.
    pub fn slots(&self) -> usize {
        self.in_flight.len()
    }

    /// Bytes of the ring.
    pub fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() - self.free.len()
    }

    /// The tag that the next request gets.
    pub fn next_tag(&self) -> Option<Tag> {
        self.free.last().copied()
    }

    /// Writes a request; [`Queue::publish`] shows it.
    pub fn push(&mut self, request: &Request) -> Result<Tag, Full> {
        let tag = self.next_tag().ok_or(Full)?;
        self.push_as(tag, request)?;
        self.free.pop();
        Ok(tag)
    }

    fn push_as(&mut self, tag: Tag, request: &Request) -> Result<(), Full> {
        let id = self.pushed << TAG_BITS | u64::from(tag.0);
        let raw = RawRequest::encode(id, self.handle, request);
        self.ring.push(&raw).map_err(|_| Full)?;
        self.pushed += 1;
        if let Some(slot) = self.in_flight.get_mut(tag.place()) {
            *slot = Some(Asked { id, operation: raw.echo() });
        }
        Ok(())
    }

    /// Publishes what was written. True if the back end is to be notified.
    #[must_use = "a notification not sent leaves the back end asleep"]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Takes over what is in flight on another ring of as many slots, under the same tags, and
    /// asks for all of it again; `request` gives each. [`Queue::publish`] shows it. Nothing may
    /// be in flight here yet.
    ///
    /// # Errors
    /// This ring is not as large. Nothing has changed then.
    pub fn inherit<N: RingMemory>(
        &mut self,
        other: &Queue<N>,
        request: impl Fn(Tag) -> Option<Request>,
    ) -> Result<(), Full> {
        if self.slots() != other.slots() || self.in_flight() != 0 {
            return Err(Full);
        }
        self.pushed = other.pushed;
        self.in_flight.clone_from(&other.in_flight);
        self.free.clone_from(&other.free);
        for (tag, asked) in (0..).map(Tag).zip(&other.in_flight) {
            // What is in flight was asked for: its request is known.
            if let Some(request) = asked.and_then(|_| request(tag)) {
                self.push_as(tag, &request)?;
            }
        }
        Ok(())
    }

    /// Takes the next response.
    pub fn take(&mut self) -> Result<Option<(Tag, Status)>, Violation> {
        let Some(response) = self.ring.take().map_err(Violation::Ring)? else {
            return Ok(None);
        };
        let id = response.id;
        // The low bits are the tag.
        let tag = Tag(id as u16);
        let slot = self.in_flight.get_mut(tag.place());
        let slot = slot.filter(|slot| slot.is_some_and(|asked| asked.id == id));
        let Some(slot) = slot else {
            return Err(Violation::UnknownId { id });
        };
        if slot.is_some_and(|asked| asked.operation != response.operation) {
            let operation = response.operation;
            return Err(Violation::WrongOperation { operation });
        }
        *slot = None;
        self.free.push(tag);
        Ok(Some((tag, Status::from_raw(response.status))))
    }

    /// Before sleeping: asks for an event. True if there is a response already.
    pub fn final_check(&mut self) -> Result<bool, Violation> {
        self.ring.final_check().map_err(Violation::Ring)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU32;
    use proptest::prelude::*;
    use ring_proto::layout;

    fn memory() -> Vec<AtomicU32> {
        (0..1024).map(|_| AtomicU32::new(0)).collect()
    }

    fn respond(memory: &[AtomicU32], index: u32, id: u64, operation: u8) {
        let at = layout::SLOTS + 112 * (index as usize % 32);
        memory.store(at, id as u32);
        memory.store(at + 4, (id >> 32) as u32);
        memory.store(at + 8, operation.into());
        memory.store(layout::RSP_PROD, index + 1);
    }

    /// The id that the request in a slot of the ring has.
    fn id(memory: &[AtomicU32], index: u32) -> u64 {
        let at = layout::SLOTS + 112 * (index as usize % 32) + 8;
        u64::from(memory.load(at)) | u64::from(memory.load(at + 4)) << 32
    }

    #[test]
    fn refuses_a_response_to_nothing_a_second_one_and_one_to_another_operation() {
        let memory = memory();
        let mut queue = Queue::new(memory.as_slice(), 0).unwrap();
        let tags: Vec<_> = (0..3).map(|_| queue.push(&Request::Flush).unwrap()).collect();
        let ids: Vec<_> = (0..3).map(|index| id(&memory, index)).collect();
        assert!(queue.publish());
        respond(&memory, 0, ids[0], 3);
        assert_eq!(queue.take(), Ok(Some((tags[0], Status::Okay))));
        respond(&memory, 1, ids[0], 3);
        assert_eq!(queue.take(), Err(Violation::UnknownId { id: ids[0] }));
        respond(&memory, 2, ids[1], 1);
        assert_eq!(queue.take(), Err(Violation::WrongOperation { operation: 1 }));
        assert_eq!(queue.in_flight(), 2, "none of them has its answer");
    }

    #[test]
    fn a_second_response_is_not_taken_for_that_to_a_later_request_with_the_same_tag() {
        let memory = memory();
        let mut queue = Queue::new(memory.as_slice(), 0).unwrap();
        let tag = queue.push(&Request::Flush).unwrap();
        let first = id(&memory, 0);
        assert!(queue.publish());
        respond(&memory, 0, first, 3);
        assert_eq!(queue.take(), Ok(Some((tag, Status::Okay))));
        assert_eq!(queue.push(&Request::Flush), Ok(tag));
        let _ = queue.publish();
        respond(&memory, 1, first, 3);
        assert_eq!(queue.take(), Err(Violation::UnknownId { id: first }));
        assert_eq!(queue.in_flight(), 1);
    }

    #[test]
    fn what_is_in_flight_is_asked_for_again_on_another_ring_under_the_same_tags() {
        let (old, new, small) = (memory(), memory(), memory());
        let mut queue = Queue::new(old.as_slice(), 0).unwrap();
        let tags: Vec<_> = (0..4).map(|_| queue.push(&Request::Flush).unwrap()).collect();
        let ids: Vec<_> = (0..4).map(|index| id(&old, index)).collect();
        assert!(queue.publish());
        respond(&old, 0, ids[1], 3);
        assert_eq!(queue.take(), Ok(Some((tags[1], Status::Okay))));
        let mut other = Queue::new(&small[..512], 0).unwrap();
        assert_eq!(other.inherit(&queue, |_| Some(Request::Flush)), Err(Full));
        let mut next = Queue::new(new.as_slice(), 0).unwrap();
        next.inherit(&queue, |_| Some(Request::Flush)).unwrap();
        assert_eq!((next.in_flight(), next.next_tag()), (3, queue.next_tag()));
        assert!(next.publish());
        assert_eq!(new.load(layout::REQ_PROD), 3);
        let again: Vec<_> = (0..3).map(|index| id(&new, index)).collect();
        assert!(again.iter().all(|id| !ids.contains(id)), "as if never asked before");
        for (index, id) in (0..).zip(again) {
            respond(&new, index, id, 3);
            let tag = Tag(id as u16);
            assert!(tags.contains(&tag));
            assert_eq!(next.take(), Ok(Some((tag, Status::Okay))));
        }
        assert_eq!(next.in_flight(), 0);
    }

    proptest! {
        #[test]
        fn no_back_end_makes_the_queue_panic_or_lose_count(
            steps in prop::collection::vec((0_u8..4, any::<u64>(), 0_u8..8, any::<u32>()), 1..100),
        ) {
            let memory = memory();
            let mut queue = Queue::new(memory.as_slice(), 0).unwrap();
            for (what, id, operation, word) in steps {
                match what {
                    0 => { let _ = queue.push(&Request::Flush); let _ = queue.publish(); }
                    1 => respond(&memory, memory.load(layout::RSP_PROD), id % 40, operation),
                    2 => memory.store(layout::RSP_PROD, word % 70),
                    _ => { let _ = queue.take(); let _ = queue.final_check(); }
                }
                prop_assert!(queue.in_flight() <= queue.slots());
            }
        }
    }
}
