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
pub const HEARTBEAT_NS: u64 = 100_000_000;
/// u64 system times of this life of the driver domain, each written once by it, 0 before:
/// its first instruction, all its devices up, its first response published. `BOOT_NS` is
/// written last of a reset of all three, so that a reader who sees a new one sees no old
/// value of the others.
pub const BOOT_NS: usize = 16;
pub const DEVICE_NS: usize = 24;
pub const FIRST_RESPONSE_NS: usize = 32;

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
/// u64 counters, written by the driver domain.
pub const READ_BYTES: usize = 64;
pub const WRITTEN_BYTES: usize = 72;
pub const REQUESTS: usize = 80;
pub const ERRORS: usize = 88;
