//! The accessor for physical memory: the one place that turns a machine address
//! into a pointer. On the machine it stands on the core's map of all RAM, in tests
//! on a plain allocation; everything above is the same code in both.
//!
//! Guests write these frames at any time, so no Rust reference into them is ever
//! made: words are read and written atomically (relaxed unless said), bytes volatile.

use bulkhead_abi::{Maddr, Mfn, PAGE_SIZE};
use core::ops::Range;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// A window onto `frames` machine frames that starts at frame 0.
///
/// Frames in it that are not RAM (holes of the memory map) must not be accessed;
/// [`super::frame::FrameTable`] knows which they are and is asked first.
#[derive(Clone, Copy)]
pub struct PhysMem {
    base: *mut u8,
    frames: u64,
}

// SAFETY: the window is plain memory that lives as long as the core, and every access
// below is atomic or volatile, so it may be used from any CPU.
unsafe impl Send for PhysMem {}

impl PhysMem {
    /// # Safety
    /// `base` is page-aligned and maps `frames` consecutive frames, of which all RAM
    /// stays readable and writable as long as the value or a copy of it lives, and
    /// is not reached through Rust references made elsewhere, except by
    /// [`super::frame_box::FrameBox`].
    pub const unsafe fn new(base: *mut u8, frames: u64) -> Self {
        Self { base, frames }
    }

    /// First frame number past the window.
    pub const fn max_mfn(&self) -> u64 {
        self.frames
    }

    /// The address of a frame's first byte, `None` outside the window.
    pub fn frame_ptr(&self, mfn: Mfn) -> Option<*mut u8> {
        // The product can not overflow: the window is an allocation, below 2^63 bytes.
        (mfn.get() < self.frames).then(|| self.base.wrapping_add(mfn.get() as usize * PAGE_SIZE))
    }

    /// A pointer to `N` naturally aligned bytes; panics outside the window, which is a
    /// bug of the core: callers hold frame numbers that the frame table vouches for.
    fn at<const N: usize>(&self, at: Maddr) -> *mut u8 {
        let ptr = self.frame_ptr(at.mfn()).expect("machine address vouched for by the frame table");
        assert!(at.offset().is_multiple_of(N), "aligned by its caller");
        ptr.wrapping_add(at.offset())
    }

    fn word(&self, at: Maddr) -> &AtomicU64 {
        // SAFETY: 1. `at` gives a pointer into the window, 8-byte aligned, so the
        // word does not leave its frame. 2. Guests and other CPUs write it only
        // by atomic-sized stores, and all access here is atomic.
        unsafe { AtomicU64::from_ptr(self.at::<8>(at).cast()) }
    }

    /// Reads an aligned u64.
    pub fn read_u64(&self, at: Maddr) -> u64 {
        self.word(at).load(Ordering::Acquire)
    }

    /// The words of a frame.
    fn words(&self, mfn: Mfn) -> &[AtomicU64; PAGE_SIZE / 8] {
        // SAFETY: as for `word`: the frame is in the window, page-aligned, and all access to it is
        // atomic.
        unsafe { &*self.at::<PAGE_SIZE>(mfn.maddr()).cast() }
    }

    /// The first of these words of a frame that has any of `bits` set; none in a range that does
    /// not lie in the frame.
    pub fn first_word(&self, mfn: Mfn, words: Range<u16>, bits: u64) -> Option<u16> {
        let range = usize::from(words.start)..usize::from(words.end);
        let mut found = self.words(mfn).get(range)?.iter();
        let at = found.position(|word| word.load(Ordering::Relaxed) & bits != 0)?;
        Some(words.start + at as u16)
    }

    /// The last of them.
    pub fn last_word(&self, mfn: Mfn, words: Range<u16>, bits: u64) -> Option<u16> {
        let range = usize::from(words.start)..usize::from(words.end);
        let mut found = self.words(mfn).get(range)?.iter();
        let at = found.rposition(|word| word.load(Ordering::Relaxed) & bits != 0)?;
        Some(words.start + at as u16)
    }

    /// Writes an aligned u64.
    pub fn write_u64(&self, at: Maddr, value: u64) {
        self.word(at).store(value, Ordering::Release);
    }

    /// Replaces an aligned u64 if it still is `current`; gives what was there.
    pub fn compare_exchange_u64(&self, at: Maddr, current: u64, new: u64) -> Result<u64, u64> {
        self.word(at).compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Sets bits of an aligned u64; gives what was there.
    pub fn fetch_or_u64(&self, at: Maddr, bits: u64) -> u64 {
        self.word(at).fetch_or(bits, Ordering::AcqRel)
    }

    /// Keeps only `bits` of an aligned u64; gives what was there.
    pub fn fetch_and_u64(&self, at: Maddr, bits: u64) -> u64 {
        self.word(at).fetch_and(bits, Ordering::AcqRel)
    }

    fn half(&self, at: Maddr) -> &AtomicU32 {
        // SAFETY: as in `word`, for four bytes.
        unsafe { AtomicU32::from_ptr(self.at::<4>(at).cast()) }
    }

    /// Reads an aligned u32.
    pub fn read_u32(&self, at: Maddr) -> u32 {
        self.half(at).load(Ordering::Acquire)
    }

    /// Writes an aligned u32.
    pub fn write_u32(&self, at: Maddr, value: u32) {
        self.half(at).store(value, Ordering::Release);
    }

    fn byte(&self, at: Maddr) -> &AtomicU8 {
        // SAFETY: as in `word`, for one byte.
        unsafe { AtomicU8::from_ptr(self.at::<1>(at)) }
    }

    /// Reads a byte.
    pub fn read_u8(&self, at: Maddr) -> u8 {
        self.byte(at).load(Ordering::Acquire)
    }

    /// Writes a byte.
    pub fn write_u8(&self, at: Maddr, value: u8) {
        self.byte(at).store(value, Ordering::Release);
    }

    /// Writes a byte; gives what was there.
    pub fn swap_u8(&self, at: Maddr, value: u8) -> u8 {
        self.byte(at).swap(value, Ordering::AcqRel)
    }

    /// Copies bytes out of one frame. The range must not leave the frame.
    pub fn read_bytes(&self, at: Maddr, out: &mut [u8]) {
        assert!(at.offset() + out.len() <= PAGE_SIZE, "range within one frame");
        let from = self.at::<1>(at);
        // SAFETY: 1. the range lies in one frame of the window (asserted). 2. `out` is
        // the core's own memory, so the two do not overlap. 3. A guest may store
        // into it meanwhile: what is copied is then a mix of bytes, which is all that
        // is promised, and no reference to the source exists.
        unsafe { core::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) }
    }

    /// Copies bytes into one frame. The range must not leave the frame.
    pub fn write_bytes(&self, at: Maddr, bytes: &[u8]) {
        assert!(at.offset() + bytes.len() <= PAGE_SIZE, "range within one frame");
        let to = self.at::<1>(at);
        // SAFETY: as in `read_bytes`, the other way round.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Copies within physical memory; each range must stay in its frame.
    pub fn copy(&self, from: Maddr, to: Maddr, bytes: usize) {
        assert!(
            from.offset() + bytes <= PAGE_SIZE && to.offset() + bytes <= PAGE_SIZE,
            "ranges within frames"
        );
        let (from, to) = (self.at::<1>(from), self.at::<1>(to));
        // SAFETY: both ranges lie in frames of the window (asserted); `copy` allows
        // them to overlap, for a guest may name the same frame twice.
        unsafe { core::ptr::copy(from, to, bytes) }
    }

    /// Fills a frame with zeroes.
    pub fn zero_frame(&self, mfn: Mfn) {
        let to = self.at::<PAGE_SIZE>(mfn.maddr()).cast::<[AtomicU64; 8]>();
        for line in 0..PAGE_SIZE / size_of::<[AtomicU64; 8]>() {
            // SAFETY: the whole frame is in the window, and is only accessed atomically. Word by
            // word, for emulators take several times as long over a string instruction.
            let words = unsafe { &*to.add(line) };
            words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }
}

/// Plain memory that plays the machine's, for tests.
#[cfg(test)]
pub mod fake {
    use super::*;

    /// Leaks `frames` zeroed frames: tests are short.
    pub fn memory(frames: usize) -> PhysMem {
        let layout = std::alloc::Layout::from_size_align(frames * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: the layout has a non-zero size.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!base.is_null());
        // SAFETY: freshly allocated, page-aligned, leaked, and known to nobody else.
        unsafe { PhysMem::new(base, frames as u64) }
    }
}
