//! Grant tables, version 1 (public/grant_table.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const GNTTABOP_MAP_GRANT_REF: u64 = 0;
pub const GNTTABOP_UNMAP_GRANT_REF: u64 = 1;
pub const GNTTABOP_SETUP_TABLE: u64 = 2;
pub const GNTTABOP_DUMP_TABLE: u64 = 3;
pub const GNTTABOP_TRANSFER: u64 = 4;
pub const GNTTABOP_COPY: u64 = 5;
pub const GNTTABOP_QUERY_SIZE: u64 = 6;
pub const GNTTABOP_UNMAP_AND_REPLACE: u64 = 7;
pub const GNTTABOP_SET_VERSION: u64 = 8;
pub const GNTTABOP_GET_STATUS_FRAMES: u64 = 9;
pub const GNTTABOP_GET_VERSION: u64 = 10;
pub const GNTTABOP_SWAP_GRANT_REF: u64 = 11;
pub const GNTTABOP_CACHE_FLUSH: u64 = 12;

/// Status of one element of a batch.
pub const GNTST_OKAY: i16 = 0;
pub const GNTST_GENERAL_ERROR: i16 = -1;
pub const GNTST_BAD_DOMAIN: i16 = -2;
pub const GNTST_BAD_GNTREF: i16 = -3;
pub const GNTST_BAD_HANDLE: i16 = -4;
pub const GNTST_BAD_VIRT_ADDR: i16 = -5;
pub const GNTST_BAD_DEV_ADDR: i16 = -6;
pub const GNTST_NO_DEVICE_SPACE: i16 = -7;
pub const GNTST_PERMISSION_DENIED: i16 = -8;
pub const GNTST_BAD_PAGE: i16 = -9;
pub const GNTST_BAD_COPY_ARG: i16 = -10;
pub const GNTST_ADDRESS_TOO_BIG: i16 = -11;
pub const GNTST_EAGAIN: i16 = -12;
pub const GNTST_NO_SPACE: i16 = -13;

/// Entry flags.
pub const GTF_TYPE_MASK: u16 = 3;
pub const GTF_INVALID: u16 = 0;
pub const GTF_PERMIT_ACCESS: u16 = 1;
pub const GTF_READONLY: u16 = 1 << 2;
/// `[core]` mapped for reading.
pub const GTF_READING: u16 = 1 << 3;
/// `[core]` mapped for writing.
pub const GTF_WRITING: u16 = 1 << 4;
/// Entries below this are reserved: 0 console, 1 xenstore.
pub const NR_RESERVED: u32 = 8;
pub const RESERVED_CONSOLE: u32 = 0;
pub const RESERVED_XENSTORE: u32 = 1;
/// Entries in one frame.
pub const ENTRIES_PER_FRAME: u32 = 512;

/// Map flags.
pub const GNTMAP_DEVICE_MAP: u32 = 1 << 0;
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
pub const GNTMAP_READONLY: u32 = 1 << 2;
pub const GNTMAP_APPLICATION_MAP: u32 = 1 << 3;
/// `host_addr` is the machine address of the page-table entry.
pub const GNTMAP_CONTAINS_PTE: u32 = 1 << 4;

/// Copy flags.
pub const GNTCOPY_SOURCE_GREF: u16 = 1;
pub const GNTCOPY_DEST_GREF: u16 = 2;

macro_rules! op {
    ($(#[$d:meta])* $name:ident { $($(#[$fd:meta])* $f:ident : $t:ty),* $(,)? } $size:expr) => {
        $(#[$d])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fd])* pub $f: $t),* }
        crate::layout!($name, $size);
    };
}

op!(
    /// One entry of a table. `flags` last on grant, first on revoke.
    GrantEntryV1 { flags: u16, domid: u16, frame: u32 } 8);
op!(MapGrantRef { host_addr: u64, flags: u32, gref: u32, dom: u16, /** out */ status: i16,
    /** out */ handle: u32, /** out */ dev_bus_addr: u64 } 32);
op!(UnmapGrantRef { host_addr: u64, dev_bus_addr: u64, handle: u32, /** out */ status: i16, _pad: u16 } 24);
op!(SetupTable { dom: u16, _pad: u16, nr_frames: u32, /** out */ status: i16, _pad1: [u16; 3],
    frame_list: u64 } 24);
op!(QuerySize { dom: u16, _pad: u16, /** out */ nr_frames: u32, /** out */ max_nr_frames: u32,
    /** out */ status: i16, _pad1: u16 } 16);
op!(
    /// One end of a copy: a gref or a frame of `domid`.
    CopyPtr { gref_or_gmfn: u64, domid: u16, offset: u16, _pad: u32 } 16);
op!(GrantCopy { source: CopyPtr, dest: CopyPtr, len: u16, flags: u16, /** out */ status: i16, _pad: u16 } 40);
op!(SetVersion { /** in and out */ version: u32 } 4);
op!(GetVersion { dom: u16, _pad: u16, /** out */ version: u32 } 8);
crate::layout!(MapGrantRef, 32, flags @ 8, gref @ 12, dom @ 16, status @ 18, handle @ 20, dev_bus_addr @ 24);
crate::layout!(UnmapGrantRef, 24, handle @ 16, status @ 20);
crate::layout!(GrantCopy, 40, dest @ 16, len @ 32, flags @ 34, status @ 36);
