//! A value that lives in frames of its own: how the core keeps what it knows of
//! domains without a heap. The frames are taken from the free list and charged as
//! the core's.

use super::frame::FrameTable;
use bulkhead_abi::{Mfn, PAGE_SIZE};
use core::{
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

/// An owned `T` in `frames_for::<T>()` contiguous frames. Not freed on drop: give it
/// back with [`FrameBox::free`].
#[must_use = "its frames are lost unless freed"]
pub struct FrameBox<T> {
    ptr: NonNull<T>,
    mfn: Mfn,
}

// SAFETY: it owns its `T`, as `Box` does.
unsafe impl<T: Send> Send for FrameBox<T> {}

/// Frames one `T` takes.
pub const fn frames_for<T>() -> usize {
    core::mem::size_of::<T>().div_ceil(PAGE_SIZE)
}

impl<T> FrameBox<T> {
    /// Takes frames and moves `value` there. `None` when memory is out.
    pub fn new(frames: &mut FrameTable, value: T) -> Option<Self> {
        const { assert!(core::mem::align_of::<T>() <= PAGE_SIZE) };
        let mfn = frames.alloc_core(frames_for::<T>())?;
        let ptr = frames.mem().frame_ptr(mfn).expect("the allocator gives frames of the window");
        let ptr = NonNull::new(ptr.cast::<T>()).expect("the window does not start at address 0");
        // SAFETY: the pointer is to frames that nobody else knows, large and aligned enough
        // for `T`.
        unsafe { ptr.write(value) };
        Some(Self { ptr, mfn })
    }

    /// Drops the value and gives its frames back.
    pub fn free(self, frames: &mut FrameTable) {
        // SAFETY: `self` owned the value, which `new` had written.
        unsafe { self.ptr.drop_in_place() };
        frames.free_core(self.mfn, frames_for::<T>());
    }
}

impl<T> Deref for FrameBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the frames are the core's own (`alloc_core`): no guest can map them,
        // and the box is their only owner.
        unsafe { self.ptr.as_ref() }
    }
}

impl<T> DerefMut for FrameBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; `&mut self` excludes any other reference.
        unsafe { self.ptr.as_mut() }
    }
}
