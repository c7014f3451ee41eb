//! `memory_op` (public/memory.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const XENMEM_INCREASE_RESERVATION: u64 = 0;
pub const XENMEM_DECREASE_RESERVATION: u64 = 1;
pub const XENMEM_MAXIMUM_RAM_PAGE: u64 = 2;
pub const XENMEM_CURRENT_RESERVATION: u64 = 3;
pub const XENMEM_MAXIMUM_RESERVATION: u64 = 4;
pub const XENMEM_MACHPHYS_MFN_LIST: u64 = 5;
pub const XENMEM_POPULATE_PHYSMAP: u64 = 6;
pub const XENMEM_ADD_TO_PHYSMAP: u64 = 7;
pub const XENMEM_MEMORY_MAP: u64 = 9;
pub const XENMEM_MACHINE_MEMORY_MAP: u64 = 10;
pub const XENMEM_EXCHANGE: u64 = 11;
pub const XENMEM_MACHPHYS_MAPPING: u64 = 12;
pub const XENMEM_MAXIMUM_GPFN: u64 = 14;
/// Sub-operation in the low bits of `cmd`; the rest is the continuation (memory.h).
pub const MEMOP_CMD_MASK: u64 = 0x3f;
/// Shift of the continuation in `cmd`.
pub const MEMOP_EXTENT_SHIFT: u32 = 6;

/// Largest order one extent may have.
pub const MAX_ORDER: u32 = 9;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryReservation {
    /// Array of u64: pfns in, mfns out (populate); mfns in (decrease).
    pub extent_start: u64,
    pub nr_extents: u64,
    pub extent_order: u32,
    pub mem_flags: u32,
    pub domid: u16,
    pub _pad: [u8; 6],
}
crate::layout!(MemoryReservation, 32, nr_extents @ 8, extent_order @ 16, mem_flags @ 20, domid @ 24);

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryExchange {
    pub input: MemoryReservation,
    pub output: MemoryReservation,
    /// `[core]` extents of `input` done.
    pub nr_exchanged: u64,
}
crate::layout!(MemoryExchange, 72, output @ 32, nr_exchanged @ 64);

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MachphysMapping {
    pub v_start: u64,
    pub v_end: u64,
    pub max_mfn: u64,
}
crate::layout!(MachphysMapping, 24);

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryMap {
    /// In: room in `buffer`; out: entries written.
    pub nr_entries: u32,
    pub _pad: u32,
    pub buffer: u64,
}
crate::layout!(MemoryMap, 16, buffer @ 8);

/// One entry of the memory map (`e820entry`).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
pub struct E820Entry {
    pub addr: u64,
    pub size: u64,
    pub kind: u32,
}
crate::layout!(E820Entry, 20);
/// `E820Entry::kind`: usable memory.
pub const E820_RAM: u32 = 1;
/// `E820Entry::kind`: reserved.
pub const E820_RESERVED: u32 = 2;
