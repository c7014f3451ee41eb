//! How a ring reaches the memory it shares with a stranger: a trait, so that a ring
//! runs on a domain's pages, on plain host memory and under a model checker alike,
//! and [`RawPages`], the one implementation over a bare address.
//!
//! Must not know what the bytes mean.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Memory that another domain may change at any moment.
///
/// All offsets are in bytes from its start and multiples of 4 (of 8 where 64 bits
/// are moved); an offset past [`RingMemory::bytes`] is our own bug and may panic.
pub trait RingMemory {
    /// How long it is.
    fn bytes(&self) -> usize;

    /// Loads a word; nothing after it in program order is done before.
    fn load(&self, offset: usize) -> u32;

    /// Stores a word once everything before it in program order is visible.
    fn store(&self, offset: usize, value: u32);

    /// Stores 64 bits, with nothing said about order. The peer may see the halves
    /// apart where the implementation has only words.
    fn store_wide(&self, offset: usize, value: u64) {
        self.store(offset, value as u32);
        self.store(offset + 4, (value >> 32) as u32);
    }

    /// Copies words out, each read exactly once. `into` is a multiple of 4 long.
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        for (i, word) in into.chunks_exact_mut(4).enumerate() {
            word.copy_from_slice(&self.load(offset + 4 * i).to_le_bytes());
        }
    }

    /// Copies words in, each written exactly once. `from` is a multiple of 4 long.
    fn copy_in(&self, offset: usize, from: &[u8]) {
        for (i, word) in from.chunks_exact(4).enumerate() {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(word);
            self.store(offset + 4 * i, u32::from_le_bytes(bytes));
        }
    }

    /// Orders every store before it against every load after it.
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl<T: RingMemory + ?Sized> RingMemory for &T {
    fn bytes(&self) -> usize {
        (**self).bytes()
    }
    fn load(&self, offset: usize) -> u32 {
        (**self).load(offset)
    }
    fn store(&self, offset: usize, value: u32) {
        (**self).store(offset, value);
    }
    fn store_wide(&self, offset: usize, value: u64) {
        (**self).store_wide(offset, value);
    }
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        (**self).copy_out(offset, into);
    }
    fn copy_in(&self, offset: usize, from: &[u8]) {
        (**self).copy_in(offset, from);
    }
    fn full_fence(&self) {
        (**self).full_fence();
    }
}

/// Plain memory of one process: for tests and for two ends in one address space.
impl RingMemory for [AtomicU32] {
    fn bytes(&self) -> usize {
        self.len() * 4
    }
    fn load(&self, offset: usize) -> u32 {
        self[offset / 4].load(Ordering::Acquire)
    }
    fn store(&self, offset: usize, value: u32) {
        self[offset / 4].store(value, Ordering::Release);
    }
}

/// Pages at a bare address, contiguous in our own address space.
///
/// Whoever made it keeps them mapped; it unmaps nothing.
#[derive(Debug)]
pub struct RawPages {
    base: NonNull<u8>,
    bytes: usize,
}

#[allow(unsafe_code)] // It is part of what makes this the accessor of shared memory.
// SAFETY: the pages stay mapped for its whole life wherever it is used (promised to
// `new`), and every access is atomic.
unsafe impl Send for RawPages {}

impl RawPages {
    /// Wraps `bytes` bytes at `base`.
    ///
    /// # Safety
    /// 1. The range stays mapped, readable and writable, while the value lives.
    /// 2. Nobody in this domain makes a reference into it or accesses it otherwise
    ///    than by atomics or volatile accesses; what other domains do is free.
    /// 3. `base` is aligned to 8.
    #[allow(unsafe_code)] // It is the promise that the rest of the crate lives on.
    pub const unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self { base, bytes }
    }

    /// Address of `width` bytes at `offset`, checked to lie inside and to be aligned.
    fn at(&self, offset: usize, width: usize) -> *mut u8 {
        let inside = self.bytes.checked_sub(width).is_some_and(|m| offset <= m);
        assert!(inside && offset.is_multiple_of(width), "ring access out of range");
        self.base.as_ptr().wrapping_add(offset)
    }

    #[allow(unsafe_code)] // An accessor of shared memory is what this module is.
    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `at` gave an aligned address inside the range, which is mapped as long
        // as `self` lives (promised to `new`); all accesses in this domain are atomic.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }
}

impl RingMemory for RawPages {
    fn bytes(&self) -> usize {
        self.bytes
    }
    fn load(&self, offset: usize) -> u32 {
        self.word(offset).load(Ordering::Acquire)
    }
    fn store(&self, offset: usize, value: u32) {
        self.word(offset).store(value, Ordering::Release);
    }
    #[allow(unsafe_code)] // An accessor of shared memory is what this module is.
    fn store_wide(&self, offset: usize, value: u64) {
        // SAFETY: as in `word`, for 8 aligned bytes.
        let wide = unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) };
        wide.store(value, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code)] // Wraps an array of its own.
    fn raw_pages_move_words_in_little_endian_order() {
        let array = [const { AtomicU64::new(0) }; 8];
        let base = NonNull::from(&array).cast();
        // SAFETY: the array outlives `pages` and is touched by nothing else meanwhile.
        let pages = unsafe { RawPages::new(base, 64) };
        pages.copy_in(4, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(pages.load(4), 0x0403_0201);
        pages.store_wide(16, 0x1122_3344_5566_7788);
        let mut out = [0; 8];
        pages.copy_out(16, &mut out);
        assert_eq!(u64::from_le_bytes(out), 0x1122_3344_5566_7788);
    }

    #[test]
    #[should_panic(expected = "out of range")]
    #[allow(unsafe_code)] // Wraps an array of its own.
    fn raw_pages_refuse_an_offset_past_their_end() {
        let array = [const { AtomicU64::new(0) }; 1];
        // SAFETY: the array outlives the value.
        let pages = unsafe { RawPages::new(NonNull::from(&array).cast(), 8) };
        pages.load(8);
    }
}
