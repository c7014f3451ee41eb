//! The accessor of memory that somebody else may change at any time: granted and
//! mapped pages, rings, registers.
//!
//! There are never references into such memory. Every access is volatile or atomic,
//! bounds-checked, and copies: read once, then judge the copy.

use core::marker::PhantomData;
use core::sync::atomic::{
    AtomicU8, AtomicU16, AtomicU32, AtomicU64,
    Ordering::{Acquire, Release, SeqCst},
};

/// A range of memory shared with somebody, borrowed from what keeps it mapped.
///
/// Offsets are in bytes from its start. An access past the end or not aligned to its
/// width panics: offsets are this domain's own arithmetic, never a peer's word.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    base: *mut u8,
    bytes: usize,
    mapped_by: PhantomData<&'a ()>,
}

// SAFETY: all accesses are volatile or atomic and copy; the lifetime keeps the
// mapping alive whichever thread of control uses it.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

/// Words that [`Shared::update`] compares at once, and their bytes.
const WORDS: usize = 4;
const BLOCK: usize = WORDS * size_of::<u64>();

macro_rules! atomics {
    ($($load:ident $store:ident $ty:ident $atomic:ident $ordered_load:ident $ordered_store:ident;)*) => {$(
        /// Reads once, no ordering.
        pub fn $load(self, offset: usize) -> $ty {
            // SAFETY: `at` checked range and alignment; the mapping outlives `self`.
            unsafe { self.at::<$ty>(offset).read_volatile() }
        }

        /// Writes once, no ordering.
        pub fn $store(self, offset: usize, value: $ty) {
            // SAFETY: as for the read; nobody holds references into this memory.
            unsafe { self.at::<$ty>(offset).write_volatile(value) }
        }

        /// Reads; later accesses of this side stay after it.
        pub fn $ordered_load(self, offset: usize) -> $ty {
            self.$atomic(offset).load(Acquire)
        }

        /// Writes; earlier accesses of this side stay before it.
        pub fn $ordered_store(self, offset: usize, value: $ty) {
            self.$atomic(offset).store(value, Release)
        }
    )*};
}

impl<'a> Shared<'a> {
    /// Wraps `bytes` bytes at `base`.
    ///
    /// # Safety
    /// The range must stay mapped for `'a`, readable, writable unless only reads are
    /// made, and no Rust reference into it may exist meanwhile.
    pub const unsafe fn new(base: *mut u8, bytes: usize) -> Self {
        Self { base, bytes, mapped_by: PhantomData }
    }

    /// Bytes of the range.
    pub const fn bytes(self) -> usize {
        self.bytes
    }

    /// Linear address of the first byte.
    pub fn va(self) -> usize {
        self.base as usize
    }

    /// The first byte, for code that has its own volatile accessor.
    pub const fn as_ptr(self) -> *mut u8 {
        self.base
    }

    /// The part from `offset`, `bytes` long.
    pub fn slice(self, offset: usize, bytes: usize) -> Shared<'a> {
        self.check(offset, bytes);
        Self {
            // SAFETY: `offset` is within the range, checked above.
            base: unsafe { self.base.add(offset) },
            bytes,
            mapped_by: PhantomData,
        }
    }

    atomics! {
        read_u8 write_u8 u8 atomic_u8 load_u8 store_u8;
        read_u16 write_u16 u16 atomic_u16 load_u16 store_u16;
        read_u32 write_u32 u32 atomic_u32 load_u32 store_u32;
        read_u64 write_u64 u64 atomic_u64 load_u64 store_u64;
    }

    fn atomic_u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: `at` checked range and alignment; atomics tolerate other writers.
        unsafe { AtomicU8::from_ptr(self.at(offset)) }
    }

    /// The atomic at `offset`, for compare-and-swap protocols.
    pub fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `at` checked range and alignment; atomics tolerate other writers.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }
    }

    /// The atomic at `offset`.
    pub fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `at` checked range and alignment; atomics tolerate other writers.
        unsafe { AtomicU32::from_ptr(self.at(offset)) }
    }

    /// The atomic at `offset`.
    pub fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: `at` checked range and alignment; atomics tolerate other writers.
        unsafe { AtomicU64::from_ptr(self.at(offset)) }
    }

    /// Exchanges the byte at `offset`.
    pub fn swap_u8(self, offset: usize, value: u8) -> u8 {
        self.atomic_u8(offset).swap(value, SeqCst)
    }

    /// Copies from the shared memory into `to`.
    pub fn copy_out(self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        // SAFETY: the source range was checked; `to` is ours and cannot overlap
        // memory that no reference points into.
        unsafe { copy(self.base.add(offset), to.as_mut_ptr(), to.len()) }
    }

    /// Copies `from` into the shared memory, but does not write where it holds that already, by
    /// blocks of a few words. Its place must be aligned to words for that; otherwise this is
    /// [`Self::copy_in`].
    pub fn update(self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        let (blocks, rest) = from.as_chunks::<BLOCK>();
        let place = self.base.wrapping_add(offset).cast::<[u64; WORDS]>();
        if !place.is_aligned() {
            return self.copy_in(offset, from);
        }
        for (index, block) in blocks.iter().enumerate() {
            let new: [u64; WORDS] = zerocopy::transmute!(*block);
            let place = place.wrapping_add(index).cast::<u64>();
            // SAFETY: the words lie in the range that was checked, aligned as was checked, and no
            // reference points into this memory.
            unsafe {
                let differs = |i| place.add(i).read_volatile() ^ new[i];
                if (0..WORDS).fold(0, |so_far, i| so_far | differs(i)) != 0 {
                    (0..WORDS).for_each(|i| place.add(i).write_volatile(new[i]));
                }
            }
        }
        self.copy_in(offset + blocks.len() * BLOCK, rest);
    }

    /// Copies `from` into the shared memory.
    pub fn copy_in(self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        // SAFETY: as for `copy_out`, the other way round.
        unsafe { copy(from.as_ptr(), self.base.add(offset), from.len()) }
    }

    /// Copies between two shared ranges.
    pub fn copy_from(self, offset: usize, from: Shared<'_>) {
        self.check(offset, from.bytes);
        // SAFETY: both ranges are mapped; overlap would only copy bytes twice.
        unsafe { copy(from.base, self.base.add(offset), from.bytes) }
    }

    /// Fills `bytes` bytes from `offset`.
    pub fn fill(self, offset: usize, bytes: usize, value: u8) {
        self.check(offset, bytes);
        // SAFETY: the range was checked.
        unsafe { fill(self.base.add(offset), bytes, value) }
    }

    fn check(self, offset: usize, bytes: usize) {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(inside, "{offset}+{bytes} of {} shared bytes", self.bytes);
    }

    fn at<T>(self, offset: usize) -> *mut T {
        self.check(offset, size_of::<T>());
        // SAFETY: `offset` is within the range, checked above.
        let at = unsafe { self.base.add(offset) }.cast::<T>();
        assert!(at.is_aligned(), "offset {offset} is not aligned");
        at
    }
}

/// Copies without letting the compiler reason about memory that may change under it.
///
/// # Safety
/// Both ranges must be mapped for the whole of `bytes`.
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller vouches for both ranges; `rep movs` touches nothing else,
    // the direction flag is clear by the ABI.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            "mov rcx, {rest}",
            "rep movsb",
            rest = in(reg) bytes % 8,
            inout("rcx") bytes / 8 => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// # Safety
/// The range must be mapped and writable.
unsafe fn fill(to: *mut u8, bytes: usize, value: u8) {
    // SAFETY: the caller vouches for the range; the direction flag is clear.
    unsafe {
        core::arch::asm!(
            "rep stosq",
            "mov rcx, {rest}",
            "rep stosb",
            rest = in(reg) bytes % 8,
            inout("rcx") bytes / 8 => _,
            inout("rdi") to => _,
            in("rax") u64::from_ne_bytes([value; 8]),
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn over(memory: &mut [u64]) -> Shared<'_> {
        // SAFETY: the borrow keeps the memory alive and exclusive.
        unsafe { Shared::new(memory.as_mut_ptr().cast(), size_of_val(memory)) }
    }

    proptest! {
        #[test]
        fn an_update_leaves_what_a_copy_would(data: Vec<u8>, at in 0usize..64, same in 0usize..300) {
            let mut memory = vec![0u64; 64 + data.len().div_ceil(8)];
            let shared = over(&mut memory);
            shared.fill(0, shared.bytes(), 0x5a);
            // Some of it is there already.
            shared.copy_in(at, &data[..same.min(data.len())]);
            shared.update(at, &data);
            let mut expect = vec![0x5au8; shared.bytes()];
            expect[at..at + data.len()].copy_from_slice(&data);
            let mut found = vec![0u8; shared.bytes()];
            shared.copy_out(0, &mut found);
            prop_assert_eq!(found, expect);
        }

        #[test]
        fn copies_agree_with_slices(data: Vec<u8>, at in 0usize..64) {
            let mut memory = vec![0u64; 64 + data.len().div_ceil(8)];
            let shared = over(&mut memory);
            shared.fill(0, shared.bytes(), 0x5a);
            shared.copy_in(at, &data);
            let mut expect = vec![0x5au8; shared.bytes()];
            expect[at..at + data.len()].copy_from_slice(&data);
            let mut found = vec![0u8; shared.bytes()];
            shared.copy_out(0, &mut found);
            prop_assert_eq!(found, expect);
        }
    }

    #[test]
    fn words_are_little_endian_at_their_offset() {
        let mut memory = [0u64; 2];
        let shared = over(&mut memory);
        shared.write_u32(4, 0x1234_5678);
        assert_eq!(shared.read_u8(4), 0x78);
        assert_eq!(shared.load_u64(0), 0x1234_5678_0000_0000);
    }

    #[test]
    #[should_panic(expected = "shared bytes")]
    fn an_access_past_the_end_panics() {
        let mut memory = [0u64; 2];
        over(&mut memory).read_u64(16);
    }
}
