//! What must outlive a back end, for one ring: the redo record, how far it has come, and
//! the counters.
//!
//! A response is written over a request. A back end that dies between that and the
//! advance of the producer leaves a slot that is neither; so the response is put into
//! the record first, and whoever comes next finds it there. A record counts if its
//! index is the ring's next response; any other one is spent. Where the ring and these
//! notes disagree, the notes are right: what stands in the ring may be a mistake of the one
//! that died, or the front end's doing.

use bulkhead_abi::ledger as at;
use ring_proto::RingMemory;

/// A response that may or may not have reached the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redo {
    /// Its ring index.
    pub index: u32,
    /// The id that it answers.
    pub id: u64,
    /// The operation that it repeats.
    pub operation: u8,
    /// Its status.
    pub status: i16,
}

/// Totals since the disk exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes read by the guest.
    pub read_bytes: u64,
    /// Bytes written by the guest.
    pub written_bytes: u64,
    /// Requests answered.
    pub requests: u64,
    /// Those answered with an error.
    pub errors: u64,
}

/// How far a back end has come with a ring: free-running indices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursors {
    /// After the last response published, or the last but one: it is noted after each.
    pub answered: u32,
    /// After the last request taken, noted before anything is done about it.
    pub taken: u32,
}

/// Memory that survives the death of the back end.
pub trait Ledger {
    /// The record, if there is one.
    fn redo(&self) -> Option<Redo>;
    /// Replaces the record. Visible in full before any later store to the ring; half of
    /// one is never visible as one.
    fn set_redo(&mut self, redo: &Redo);
    /// Removes the record: the ring starts anew.
    fn clear_redo(&mut self);
    /// How far it has come.
    fn cursors(&self) -> Cursors;
    /// Notes the index after the last response published.
    fn set_answered(&mut self, index: u32);
    /// Notes the index after the last request taken.
    fn set_taken(&mut self, index: u32);
    /// The totals.
    fn counters(&self) -> Counters;
    /// Replaces the totals.
    fn set_counters(&mut self, counters: &Counters);
    /// Hears, right after it, of each response that was published.
    fn published(&mut self) {}
}

/// One slot of the ledger pages (`bulkhead_abi::ledger`).
pub struct SharedLedger<M> {
    memory: M,
    base: usize,
}

impl<M: RingMemory> SharedLedger<M> {
    /// Slot `slot` of the pages; `None` if they do not have it.
    pub fn new(memory: M, slot: usize) -> Option<Self> {
        if slot >= (memory.bytes() / at::UNIT).saturating_sub(1) {
            return None;
        }
        Some(Self { memory, base: at::slot(slot) })
    }

    fn word(&self, offset: usize) -> u32 {
        self.memory.load(self.base + offset)
    }

    fn set_word(&self, offset: usize, value: u32) {
        self.memory.store(self.base + offset, value);
    }

    fn wide(&self, offset: usize) -> u64 {
        u64::from(self.word(offset)) | u64::from(self.word(offset + 4)) << 32
    }

    fn set_wide(&self, offset: usize, value: u64) {
        self.memory.store_wide(self.base + offset, value);
    }
}

impl<M: RingMemory> Ledger for SharedLedger<M> {
    fn redo(&self) -> Option<Redo> {
        if self.word(at::REDO_VALID) != 1 {
            return None;
        }
        let op_status = self.word(at::REDO_OP_STATUS);
        Some(Redo {
            index: self.word(at::REDO_INDEX),
            id: self.wide(at::REDO_ID),
            operation: op_status as u8,
            status: (op_status >> 16) as i16,
        })
    }

    fn set_redo(&mut self, redo: &Redo) {
        self.clear_redo();
        self.set_word(at::REDO_INDEX, redo.index);
        self.set_wide(at::REDO_ID, redo.id);
        let status = u32::from(redo.status as u16) << 16;
        self.set_word(at::REDO_OP_STATUS, u32::from(redo.operation) | status);
        self.set_word(at::REDO_VALID, 1);
    }

    fn clear_redo(&mut self) {
        self.set_word(at::REDO_VALID, 0);
    }

    fn cursors(&self) -> Cursors {
        Cursors { answered: self.word(at::ANSWERED), taken: self.word(at::TAKEN) }
    }

    fn set_answered(&mut self, index: u32) {
        self.set_word(at::ANSWERED, index);
    }

    fn set_taken(&mut self, index: u32) {
        self.set_word(at::TAKEN, index);
    }

    fn counters(&self) -> Counters {
        Counters {
            read_bytes: self.wide(at::READ_BYTES),
            written_bytes: self.wide(at::WRITTEN_BYTES),
            requests: self.wide(at::REQUESTS),
            errors: self.wide(at::ERRORS),
        }
    }

    fn set_counters(&mut self, counters: &Counters) {
        self.set_wide(at::READ_BYTES, counters.read_bytes);
        self.set_wide(at::WRITTEN_BYTES, counters.written_bytes);
        self.set_wide(at::REQUESTS, counters.requests);
        self.set_wide(at::ERRORS, counters.errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicU32;

    #[test]
    fn a_record_and_the_counters_come_back_as_they_were_and_slots_are_apart() {
        let pages = [const { AtomicU32::new(0) }; 1024];
        let mut first = SharedLedger::new(pages.as_slice(), 0).unwrap();
        let mut last = SharedLedger::new(pages.as_slice(), 30).unwrap();
        let redo = Redo { index: u32::MAX, id: u64::MAX - 1, operation: 0xff, status: -2 };
        let counters = Counters { read_bytes: 1 << 40, written_bytes: 2, requests: 3, errors: 4 };
        let cursors = Cursors { answered: u32::MAX - 5, taken: 6 };
        first.set_redo(&redo);
        first.set_counters(&counters);
        first.set_answered(cursors.answered);
        first.set_taken(cursors.taken);
        assert_eq!((first.redo(), first.counters()), (Some(redo), counters));
        assert_eq!((first.cursors(), last.cursors()), (cursors, Cursors::default()));
        assert_eq!((last.redo(), last.counters()), (None, Counters::default()));
        last.set_redo(&redo);
        first.clear_redo();
        assert_eq!((first.redo(), last.redo()), (None, Some(redo)));
    }

    #[test]
    fn there_is_no_slot_past_the_end_of_the_pages() {
        let pages = [const { AtomicU32::new(0) }; 1024];
        assert_eq!(at::slots(1), 31);
        assert!(SharedLedger::new(pages.as_slice(), 31).is_none());
        assert!(SharedLedger::new(pages.as_slice(), usize::MAX).is_none());
    }
}
