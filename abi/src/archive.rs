//! The boot archive: the one module that the boot loader hands to the core
//! (QEMU's `-initrd`). One header page, then what it points at. The host tool
//! writes it; the core reads the header and nothing else: it holds no parser of
//! guest images, so Dom0's program comes as plain ranges to be copied.
//!
//! All offsets are bytes from the start of the archive and multiples of 4096.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes: `BULKHEAD`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"BULKHEAD");
/// Version of this layout.
pub const VERSION: u32 = 1;
/// Most ranges Dom0's program may have.
pub const MAX_SEGMENTS: usize = 8;

/// One loadable range of Dom0's program.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Segment {
    /// Where its bytes are in the archive.
    pub offset: u64,
    /// Bytes there.
    pub file_bytes: u64,
    /// Bytes in memory; the rest is zero.
    pub mem_bytes: u64,
    /// Pseudo-physical address of its first byte in Dom0.
    pub paddr: u64,
}
crate::layout!(Segment, 32);

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    pub magic: u64,
    pub version: u32,
    pub nr_segments: u32,
    /// Bytes of the whole archive.
    pub total_bytes: u64,
    /// Frames of memory Dom0 gets besides its ramdisk.
    pub dom0_frames: u64,
    /// Linear address of Dom0's pfn 0.
    pub dom0_virt_base: u64,
    /// Linear address where Dom0 starts.
    pub dom0_entry: u64,
    /// Linear address of the page to fill with hypercall stubs, 0 for none.
    pub dom0_hypercall_page: u64,
    /// Dom0's ramdisk (a `link` manifest and the images it names); its frames become Dom0's.
    pub payload_offset: u64,
    pub payload_bytes: u64,
    /// Symbols of the core for its last words; see [`SymbolEntry`].
    pub symbols_offset: u64,
    pub symbols_bytes: u64,
    /// Dom0's command line, NUL-padded.
    pub dom0_cmdline: [u8; 256],
    pub segments: [Segment; MAX_SEGMENTS],
}
crate::layout!(Header, 600, segments @ 344);

/// The symbol table starts with a u32 count and a u32 zero, then this many
/// entries sorted by `offset`, then the names.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SymbolEntry {
    /// Address minus the core's link base ([`CORE_BASE`]).
    pub offset: u32,
    /// Bytes from the start of the names.
    pub name_offset: u32,
    pub name_bytes: u32,
}
crate::layout!(SymbolEntry, 12);

/// Linear address at which the core is linked.
pub const CORE_BASE: u64 = 0xffff_8200_0000_0000;
/// I/O port of QEMU's `isa-debug-exit`, by which the core ends the machine.
pub const EXIT_PORT: u16 = 0xf4;
/// Codes written to [`EXIT_PORT`]; QEMU exits with `(code << 1) | 1`.
pub const EXIT_OK: u32 = 0x10;
/// The core faulted; its last words are on the debug UART.
pub const EXIT_CORE_FAULT: u32 = 0x21;
/// Dom0 crashed or shut down with a reason other than poweroff.
pub const EXIT_DOM0_DIED: u32 = 0x22;
