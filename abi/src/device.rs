//! What the owner of a PCI device may ask of the core: hypercall
//! [`crate::hypercall::DEVICE`] with RDI = command, RSI = address of its structure.
//! `ENODEV` for a device that is not the caller's; Dom0 may list them all, read their
//! configuration space and own those that are memory and nothing else (class 05 00).
//!
//! BARs are mapped by ordinary page-table entries that name their frames: the core
//! allows a domain the frames of its own devices' memory BARs, except those that hold
//! an MSI-X table, and no others outside RAM. Such entries should set PCD.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`Describe`]
pub const DESCRIBE: u64 = 1;
/// [`Config`]
pub const CONFIG_READ: u64 = 2;
/// [`Config`]: only the bits of the command register that switch decoding and bus
/// mastering, and device-specific capability bodies; `EPERM` for BARs, MSI, MSI-X, ROM.
pub const CONFIG_WRITE: u64 = 3;
/// [`Bar`]
pub const BAR: u64 = 4;
/// [`Irq`]: programs the interrupt and gives a pirq for `EVTCHNOP_BIND_PIRQ`.
pub const IRQ: u64 = 5;
/// [`Describe`] (only `sbdf` is read): bus master off and function reset;
/// its interrupts are taken back, and are asked for anew.
pub const RESET: u64 = 6;

macro_rules! op {
    ($(#[$d:meta])* $name:ident { $($(#[$fd:meta])* $f:ident : $t:ty),* $(,)? } $size:expr) => {
        $(#[$d])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fd])* pub $f: $t),* }
        crate::layout!($name, $size);
    };
}

op!(Describe {
    /** in: 0, 1, .. until `ENOENT`; the caller's devices, for Dom0 all */ index: u32,
    /** out: bus << 8 | device << 3 | function */ sbdf: u32,
    /** out */ vendor: u16, /** out */ device: u16,
    /** out: class << 16 | subclass << 8 | prog-if */ class: u32,
    /** out */ owner: u16, /** out: entries of its MSI-X table, 0 for none */ msix_vectors: u16,
    _pad: u32,
} 24);
op!(Config { sbdf: u32, /** bytes */ offset: u16, /** 1, 2 or 4 */ width: u16, value: u32 } 12);
op!(Bar { sbdf: u32, /** 0..=5 */ index: u32, /** out */ maddr: u64, /** out: bytes, 0 if absent */ bytes: u64,
    /** out: [`BAR_IO`], [`BAR_PREFETCHABLE`] */ flags: u32, _pad: u32 } 32);
/// `Bar::flags`: I/O ports.
pub const BAR_IO: u32 = 1;
/// `Bar::flags`: memory that may be read ahead.
pub const BAR_PREFETCHABLE: u32 = 2;
op!(Irq { sbdf: u32, /** MSI-X entry, or [`INTX`] */ entry: u32, /** out */ pirq: u32 } 12);
/// `Irq::entry`: the pin interrupt. Level-triggered: after each event the domain
/// calls `PHYSDEVOP_EOI` with the pirq.
pub const INTX: u32 = u32::MAX;
