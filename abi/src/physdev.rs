//! `physdev_op` (public/physdev.h): the few that a domain without devices issues.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const PHYSDEVOP_IRQ_STATUS_QUERY: u64 = 5;
pub const PHYSDEVOP_SET_IOPL: u64 = 6;
pub const PHYSDEVOP_SET_IOBITMAP: u64 = 7;
pub const PHYSDEVOP_EOI: u64 = 12;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Eoi {
    pub irq: u32,
}
crate::layout!(Eoi, 4);

/// `console_io` commands (xen.h).
pub const CONSOLEIO_WRITE: u64 = 0;
pub const CONSOLEIO_READ: u64 = 1;
