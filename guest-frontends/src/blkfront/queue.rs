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

/// The back end did what no honest one does. The disk is of no more use.
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
    handle: u16,
    /// By tag: the operation that the response must repeat.
    in_flight: Vec<Option<u8>>,
    free: Vec<Tag>,
}

impl<M: RingMemory> Queue<M> {
    /// Sets up a ring in memory that is shared afterwards. `handle` is the low half of
    /// the device's number.
    pub fn new(memory: M, handle: u16) -> Result<Self, TooSmall> {
        let ring = FrontRing::new(memory)?;
        let slots = ring.slots().min(u32::from(u16::MAX)) as u16;
        Ok(Self {
            handle,
            in_flight: vec![None; slots.into()],
            free: (0..slots).rev().map(Tag).collect(),
            ring,
        })
    }

    /// Slots of the ring: the most requests in flight.
    pub fn slots(&self) -> usize {
        self.in_flight.len()
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
        let raw = RawRequest::encode(tag.0.into(), self.handle, request);
        self.ring.push(&raw).map_err(|_| Full)?;
        self.free.pop();
        if let Some(slot) = self.in_flight.get_mut(tag.place()) {
            *slot = Some(raw.echo());
        }
        Ok(tag)
    }

    /// Publishes what was written. True if the back end is to be notified.
    #[must_use = "a notification not sent leaves the back end asleep"]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Takes the next response.
    pub fn take(&mut self) -> Result<Option<(Tag, Status)>, Violation> {
        let Some(response) = self.ring.take().map_err(Violation::Ring)? else {
            return Ok(None);
        };
        let id = response.id;
        let place = usize::try_from(id).ok();
        let slot = place.and_then(|place| self.in_flight.get_mut(place));
        let Some(slot) = slot else {
            return Err(Violation::UnknownId { id });
        };
        let asked = slot.take().ok_or(Violation::UnknownId { id })?;
        if asked != response.operation {
            let operation = response.operation;
            return Err(Violation::WrongOperation { operation });
        }
        let tag = Tag(id as u16);
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

    #[test]
    fn refuses_a_response_to_nothing_a_second_one_and_one_to_another_operation() {
        let memory = memory();
        let mut queue = Queue::new(memory.as_slice(), 0).unwrap();
        let tag = queue.push(&Request::Flush).unwrap();
        let other = queue.push(&Request::Flush).unwrap();
        queue.push(&Request::Flush).unwrap();
        assert!(queue.publish());
        respond(&memory, 0, tag.place() as u64, 3);
        assert_eq!(queue.take(), Ok(Some((tag, Status::Okay))));
        respond(&memory, 1, tag.place() as u64, 3);
        let id = tag.place() as u64;
        assert_eq!(queue.take(), Err(Violation::UnknownId { id }));
        respond(&memory, 2, other.place() as u64, 1);
        assert_eq!(queue.take(), Err(Violation::WrongOperation { operation: 1 }));
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
