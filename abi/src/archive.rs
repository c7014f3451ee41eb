//! The boot archive: the one module that the boot loader hands to the core
//! (QEMU's `-initrd`). One header page, then what it points at. The host tool
//! writes it; the core reads the header and nothing else: it holds no parser of
//! guest images and plans no address space. Dom0 comes as the memory it starts with,
//! laid out as if its pfns were machine frames; the core makes these pages Dom0's
//! where they are and fills in what depends on machine frames:
//!
//! - adds the machine address of the image to each present entry of `tables`;
//! - writes the pfn-to-mfn list into `p2m`;
//! - writes `shared_info` of the start-of-day page.

use crate::vcpu::UserRegs;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes: `BULKHEAD`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"BULKHEAD");
/// Version of this layout.
pub const VERSION: u32 = 2;

/// Consecutive pages.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Run {
    pub first: u64,
    pub pages: u64,
}
crate::layout!(Run, 16);

/// The first page of the archive; zero after these fields.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    pub magic: u64,
    pub version: u32,
    pub _pad: u32,
    /// Pages of the whole archive, this one included.
    pub pages: u64,
    /// Symbols of the core for its last words, see [`SymbolEntry`]; by page of the archive,
    /// as are `image` and `payload`, which follow it in this order without overlap.
    pub symbols: Run,
    /// Becomes Dom0's first frames, pfn 0 and up: all that is mapped when it starts.
    pub image: Run,
    /// Dom0's ramdisk (a `link` manifest and the images it names); becomes Dom0's last frames.
    pub payload: Run,
    /// Frames Dom0 gets, image and payload included; those between them are zero.
    pub dom0_frames: u64,
    /// Page tables in the image, the L4 first; by pfn, as are `p2m` and `start_info`.
    pub tables: Run,
    /// Room in the image for the pfn-to-mfn list: eight bytes for each of `dom0_frames`.
    pub p2m: Run,
    /// The start-of-day page in the image.
    pub start_info: u64,
    /// What Dom0's first vCPU starts with; `ss:rsp` is the stack of its kernel, too.
    pub regs: UserRegs,
}
crate::layout!(Header, 320, symbols @ 24, dom0_frames @ 72, start_info @ 112, regs @ 120);

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
