//! The interface between the core and the domains above it: numbers, structures
//! and names, with their layout checked at compile time. There is no behaviour
//! here, and nothing here knows how either side works.
//!
//! Two families live side by side:
//! - the Xen x86-64 PV interface, byte for byte as Xen's public headers (MIT)
//!   define it, so that stock guests run unmodified;
//! - Bulkhead's own, in [`control`] (what Dom0 may ask of the core), [`device`]
//!   (what the owner of a device may ask), [`archive`] (what the boot loader hands
//!   to the core) and [`ledger`] (what survives the death of a driver domain).
//!
//! Structures hold raw integers because they are the wire; code decodes them into
//! the newtypes of [`types`] at the border and never passes a bare number on.
#![no_std]
#![forbid(unsafe_code)]

pub mod archive;
pub mod console;
pub mod control;
pub mod device;
pub mod elfnote;
pub mod errno;
pub mod event;
pub mod grant;
pub mod hypercall;
pub mod ledger;
pub mod memory;
pub mod mmu;
pub mod physdev;
pub mod sched;
pub mod shared_info;
pub mod start_info;
pub mod trap;
pub mod types;
pub mod vcpu;
pub mod version;
pub mod xs_wire;

pub use errno::Errno;
pub use types::{DomId, Gref, GuestVa, Maddr, Mfn, Ns, Pfn, Port, VcpuId};

/// Bytes in a page and in a machine frame.
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// Asserts size and field offsets of a wire structure at compile time.
#[macro_export]
macro_rules! layout {
    ($t:ty, $size:expr $(, $field:ident @ $off:expr)* $(,)?) => {
        const _: () = assert!(core::mem::size_of::<$t>() == $size, "size");
        $(const _: () = assert!(core::mem::offset_of!($t, $field) == $off, stringify!($field));)*
    };
}
