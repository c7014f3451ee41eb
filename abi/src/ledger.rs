//! The ledger: pages of Dom0 that a driver domain maps by grant and that survive
//! its death. It holds the heartbeat, the counters of each ring, and the one redo
//! record that the ring itself can not hold (a response overwrites its request).
//!
//! A header of 128 bytes, then slots of 128 bytes; a slot belongs to one ring. Dom0
//! reads it as the word of a stranger. Offsets are within the pages in order.
//!
//! Where it is: `/local/domain/<driver>/bulkhead/ledger/{pages,ref0,ref1,..}`; which
//! slot a device has: `ledger-slot` in its back-end folder.

/// Bytes of the header and of each slot.
pub const UNIT: usize = 128;
/// u64 `BHLEDGER`, written by Dom0.
pub const MAGIC_OFFSET: usize = 0;
pub const MAGIC: u64 = u64::from_le_bytes(*b"BHLEDGER");
/// u64 counter, written by the driver domain at least every [`HEARTBEAT_NS`].
pub const HEARTBEAT_OFFSET: usize = 8;
pub const HEARTBEAT_NS: u64 = 40_000_000;
/// u64 system times of this life of the driver domain, each written once by it, 0 before:
/// its first instruction, all its devices up, its first response published. `BOOT_NS` is
/// written last of a reset of all three, so that a reader who sees a new one sees no old
/// value of the others.
pub const BOOT_NS: usize = 16;
pub const DEVICE_NS: usize = 24;
pub const FIRST_RESPONSE_NS: usize = 32;

/// One order to do wrong, for driver domains that are built with fault hooks; others do not
/// look. u64 each. Dom0 sets `FAULT_ACTIVATED_NS` to 0, writes the argument and the system
/// time, and last the command: a number of [`fault`], 0 for none. The driver domain writes the
/// system time at which it happens, never 0, and obeys no order that has one.
pub const FAULT_COMMAND: usize = 48;
pub const FAULT_ARGUMENT: usize = 56;
pub const FAULT_ARMED_NS: usize = 64;
pub const FAULT_ACTIVATED_NS: usize = 72;
/// u64 written by Dom0 before it changes any code: offset of the first [`patch`] entry in the
/// pages in bits 0-31, how many there are in bits 32-63; 0 for none.
pub const PATCHES: usize = 80;
/// Part of an order, u32 each, written before its command. What could go wrong at first does
/// not, so often; then it does so once, and so often again. The driver domain counts both down.
pub const FAULT_SKIP: usize = 88;
pub const FAULT_MORE: usize = 92;
/// u64 linear addresses, written by a driver domain that is built with fault hooks: its heap
/// and its stack, each from its start to its end. Bits are flipped there.
pub const HEAP_START: usize = 96;
pub const HEAP_END: usize = 104;
pub const STACK_START: usize = 112;
pub const STACK_END: usize = 120;

/// u32 written by Dom0 before each life of the driver domain: one of [`on_failure`].
pub const ON_FAILURE: usize = 40;

/// What becomes of the requests of a back end that died, in the words of Linux' ublk. Those
/// that it had taken are *outstanding*; those that the front end publishes while nobody serves
/// are *issued* later.
pub mod on_failure {
    /// Outstanding requests are run again; those issued later wait.
    pub const REISSUE: u32 = 0;
    /// Outstanding requests are answered with an error; those issued later wait.
    pub const QUEUE: u32 = 1;
    /// Outstanding requests, and those issued until there is a new life, are answered with an
    /// error.
    pub const FAIL: u32 = 2;
    /// This life answers every request with an error and leaves its devices alone: the driver
    /// domain is in quarantine.
    pub const REFUSE: u32 = 3;
}

/// What can be ordered to go wrong, and what the argument means; where 0 is an argument that
/// makes no sense, it stands for the value in brackets.
pub mod fault {
    /// Interface: the next response has another id: the argument is added (1).
    pub const WRONG_ID: u64 = 1;
    /// The next response is published twice.
    pub const DUPLICATE: u64 = 2;
    /// The next request is answered well before the device has done it.
    pub const EARLY: u64 = 3;
    /// The next request that is done is answered so many ns later.
    pub const LATE: u64 = 4;
    /// The next request that is done is never answered.
    pub const NEVER: u64 = 5;
    /// From now on the published producer index is too high by the argument (0x40000000).
    pub const ABSURD_PRODUCER: u64 = 6;
    /// With the next event, so many (10,000).
    pub const EVENT_STORM: u64 = 7;
    /// The next event is not sent.
    pub const NO_EVENT: u64 = 8;
    /// Device: the next interrupt is not seen.
    pub const LOST_INTERRUPT: u64 = 16;
    /// An interrupt is seen that was not.
    pub const SPURIOUS_INTERRUPT: u64 = 17;
    /// From now on the device seems to be done with nothing.
    pub const STUCK_DEVICE: u64 = 18;
    /// So many requests that are done (1) seem to have failed.
    pub const STUCK_STATUS: u64 = 19;
    /// The first page of the next transfer is this pfn of the driver domain's own (the pages
    /// of the ledger are not among them).
    pub const DMA_INSIDE: u64 = 20;
    /// The first page of the next transfer is at this machine address.
    pub const DMA_OUTSIDE: u64 = 21;
    /// Resources and timing: loops for ever.
    pub const HANG: u64 = 32;
    /// Loops for ever and lets other tasks run: the heart beats on.
    pub const HANG_YIELDING: u64 = 33;
    /// From now on each answer is so many ns later.
    pub const SLOW: u64 = 34;
    /// Takes all memory, and goes on.
    pub const HEAP_EXHAUSTION: u64 = 35;
    /// Runs over the end of its stack.
    pub const STACK_OVERFLOW: u64 = 36;
    /// Panics.
    pub const PANIC: u64 = 37;
    /// Reads at address 0.
    pub const NULL_DEREFERENCE: u64 = 38;
    /// Writes over the start of the ledger's header, and panics.
    pub const LEDGER_DAMAGE: u64 = 39;
    /// Kill: stops for good in the path of a request, at the boundary behind one instruction;
    /// which request and where is in a [`super::step::Place`].
    pub const STEP_KILL: u64 = 48;

    /// Each by its name.
    pub const NAMES: &[(&str, u64)] = &[
        ("wrong-id", WRONG_ID),
        ("duplicate", DUPLICATE),
        ("early", EARLY),
        ("late", LATE),
        ("never", NEVER),
        ("absurd-producer", ABSURD_PRODUCER),
        ("event-storm", EVENT_STORM),
        ("no-event", NO_EVENT),
        ("lost-interrupt", LOST_INTERRUPT),
        ("spurious-interrupt", SPURIOUS_INTERRUPT),
        ("stuck-device", STUCK_DEVICE),
        ("stuck-status", STUCK_STATUS),
        ("dma-inside", DMA_INSIDE),
        ("dma-outside", DMA_OUTSIDE),
        ("hang", HANG),
        ("hang-yielding", HANG_YIELDING),
        ("slow", SLOW),
        ("heap-exhaustion", HEAP_EXHAUSTION),
        ("stack-overflow", STACK_OVERFLOW),
        ("panic", PANIC),
        ("null-dereference", NULL_DEREFERENCE),
        ("ledger-damage", LEDGER_DAMAGE),
        ("step-kill", STEP_KILL),
    ];
}

/// The argument of [`fault::STEP_KILL`], and how far it is obeyed.
pub mod step {
    /// Of an order that several lives obey, written by the driver domain in what is free of the
    /// first slot, u64 each: instructions of the phases that are done;
    pub const PATH: usize = super::slot(0) + 104;
    /// a mark of those up to the last death in this phase, 0 for none;
    pub const MARK: usize = super::slot(0) + 112;
    /// deaths (bits 0-31), and those among them whose way was not that of the one before (bits
    /// 32-63); 0 unless more are to come.
    pub const DEATHS: usize = super::slot(0) + 120;

    /// [`Place::operation`]: these as on the ring.
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const FLUSH: u8 = 3;

    /// [`Place::phase`]: from the look at the event that announces the request,
    pub const EVENT: u8 = 0;
    /// from its copy off the ring,
    pub const REQUEST: u8 = 1;
    /// from its way to the queue of the device,
    pub const SUBMIT: u8 = 2;
    /// from the sleep until the device is done,
    pub const INTERRUPT: u8 = 3;
    /// from the look at what the device did,
    pub const COMPLETION: u8 = 4;
    /// and from the store of the producer index until the next sleep.
    pub const PUBLISHED: u8 = 5;

    /// A place in the path of a request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Place {
        /// Instructions of the phase that are executed; bits 0-23, 0 stands for 1.
        pub after: u32,
        /// The phase; bits 24-31. Ends where the next one begins.
        pub phase: u8,
        /// 0: the domain dies once. Else it moves `after` on by so many for its next life as it
        /// dies, and so on; after the last instruction of a phase comes the next phase, and
        /// with that of the last phase the order is obeyed. Bits 32-47.
        pub every: u16,
        /// The request: an operation, 0 to 127. Bits 48-54.
        pub operation: u8,
        /// Its segments are in a page of their own. Bit 55.
        pub is_indirect: bool,
        /// So many segments; 0 for any number. Bits 56-63.
        pub segments: u8,
    }

    /// Most of [`Place::after`].
    const MOST: u32 = (1 << 24) - 1;

    impl Place {
        /// As it is written in the ledger.
        pub const fn argument(self) -> u64 {
            let after = if self.after < MOST { self.after } else { MOST };
            after as u64
                | (self.phase as u64) << 24
                | (self.every as u64) << 32
                | ((self.operation & 0x7f) as u64) << 48
                | (self.is_indirect as u64) << 55
                | (self.segments as u64) << 56
        }

        /// What an argument means.
        pub const fn of(argument: u64) -> Self {
            let after = argument as u32 & MOST;
            Self {
                after: if after == 0 { 1 } else { after },
                phase: (argument >> 24) as u8,
                every: (argument >> 32) as u16,
                operation: (argument >> 48) as u8 & 0x7f,
                is_indirect: argument >> 55 & 1 != 0,
                segments: (argument >> 56) as u8,
            }
        }

        /// The place of the next life's death.
        pub const fn next(self) -> Self {
            Self { after: self.after + self.every as u32, ..self }
        }
    }
}

/// An entry of the table of armed changes to the code of a driver domain. Dom0 fills it, then
/// writes a breakpoint (0xcc) over the first byte at the address; the runtime carries the
/// change out when the breakpoint is reached, and goes on there.
pub mod patch {
    /// Bytes of an entry.
    pub const BYTES: usize = 64;
    /// u64 linear address of the first instruction, in the text of the domain.
    pub const VA: usize = 0;
    /// u32: what to do.
    pub const KIND: usize = 8;
    /// Write the new bytes.
    pub const KIND_CODE: u32 = 1;
    /// Write the old bytes back, and change a bit of a register, once.
    pub const KIND_REGISTER: u32 = 2;
    /// u32: bytes of code, 1 to 16.
    pub const LENGTH: usize = 12;
    /// The code as it was, and as it will be.
    pub const OLD: usize = 16;
    pub const NEW: usize = 32;
    /// u64 system time when it was reached, written by the driver domain; never 0 then.
    pub const ACTIVATED_NS: usize = 48;
    /// u32: number of a register as instructions encode it, rax 0 to r15 15; 16 rflags, 17 rip.
    pub const REGISTER: usize = 56;
    /// u32: number of a bit, 0 to 63.
    pub const BIT: usize = 60;
}

/// Where slot `index` starts.
pub const fn slot(index: usize) -> usize {
    (index + 1) * UNIT
}
/// Slots that `pages` pages hold.
pub const fn slots(pages: usize) -> usize {
    pages * crate::PAGE_SIZE / UNIT - 1
}

/// Redo record: u32, 1 while it holds a response that may not be published yet.
pub const REDO_VALID: usize = 0;
/// u32 ring index (free-running) of the response.
pub const REDO_INDEX: usize = 4;
/// u64 id of the response.
pub const REDO_ID: usize = 8;
/// u32: operation in bits 0-7, status in bits 16-31.
pub const REDO_OP_STATUS: usize = 16;
/// u32 ring index after the last response published: written after each.
pub const ANSWERED: usize = 20;
/// u32 ring index after the last request taken: written before anything is done about it.
pub const TAKEN: usize = 24;
/// u64 counters, written by the driver domain.
pub const READ_BYTES: usize = 64;
pub const WRITTEN_BYTES: usize = 72;
pub const REQUESTS: usize = 80;
pub const ERRORS: usize = 88;

#[cfg(test)]
mod tests {
    use super::step::Place;

    #[test]
    fn a_place_is_read_as_it_was_written_and_moves_on_in_its_own_bits() {
        for bits in [1, 0x8123_4567_89ab_cdef, u64::MAX, u64::MAX - 7] {
            assert_eq!(Place::of(bits).argument(), bits);
        }
        assert_eq!(Place::of(0).after, 1);
        let last = Place::of(u64::MAX);
        assert_eq!(last.next().argument(), last.argument(), "the count does not spill over");
        assert_eq!(Place::of(3 << 32).next().argument(), 3 << 32 | 4);
    }
}
