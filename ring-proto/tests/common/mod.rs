//! A tiny protocol and plain memory for the tests of this folder.
#![allow(dead_code)] // Each test program uses its own part.

use ring_proto::Protocol;
use std::sync::atomic::AtomicU32;

/// One word each way: `4 * slots + 64` bytes make a ring.
pub struct Words;

impl Protocol for Words {
    type Request = u32;
    type Response = u32;
}

/// Zeroed memory for `slots` slots of `slot_bytes` each.
pub fn memory(slots: usize, slot_bytes: usize) -> Vec<AtomicU32> {
    let words = (64 + slots * slot_bytes) / 4;
    (0..words).map(|_| AtomicU32::new(0)).collect()
}
