//! The global allocator: `talc` over runs of frames from [`crate::mem`].

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Linear addresses of its lowest and behind its highest byte.
static START: AtomicU64 = AtomicU64::new(u64::MAX);
static END: AtomicU64 = AtomicU64::new(0);

/// From the lowest byte of the heap to behind the highest; there may be gaps. Empty before the
/// first allocation.
#[cfg_attr(not(feature = "faults"), allow(dead_code, reason = "for fault injection only"))]
pub fn range() -> Range<u64> {
    START.load(Relaxed)..END.load(Relaxed)
}

#[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "of the machine's allocator"))]
fn note(start: u64, bytes: u64) {
    START.fetch_min(start, Relaxed);
    END.fetch_max(start + bytes, Relaxed);
}

#[cfg(target_os = "none")]
pub use machine::used_bytes;

#[cfg(target_os = "none")]
mod machine {
    use bulkhead_abi::PAGE_SIZE;
    use core::alloc::Layout;
    use talc::base::{Talc, binning::Binning};
    use talc::source::Source;

    /// Least frames taken from the frame allocator at once.
    const GROW_FRAMES: usize = 64;

    /// Asks the frame allocator for more. What it gave is never given back.
    #[derive(Debug)]
    struct Frames;

    // SAFETY: `mem::take_frames` is a bitmap under its own lock and allocates nothing.
    unsafe impl Source for Frames {
        fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
            // Room for the block, its alignment and the allocator's own bookkeeping.
            let bytes = layout.size().checked_add(layout.align()).ok_or(())?;
            let wanted = bytes.div_ceil(PAGE_SIZE) + 2;
            let (start, count) = crate::mem::take_frames(wanted.max(GROW_FRAMES))
                .map(|at| (at, wanted.max(GROW_FRAMES)))
                .or_else(|| crate::mem::take_frames(wanted).map(|at| (at, wanted)))
                .ok_or(())?;
            super::note(start as u64, (count * PAGE_SIZE) as u64);
            // SAFETY: the frames are mapped, ours alone, and never released.
            unsafe { talc.claim(start, count * PAGE_SIZE) }.map(drop).ok_or(())
        }
    }

    #[global_allocator]
    static HEAP: talc::TalcLock<spin::Mutex<()>, Frames> = talc::TalcLock::new(Frames);

    /// Bytes that are allocated.
    pub fn used_bytes() -> usize {
        HEAP.lock().counters().allocated_bytes
    }
}
