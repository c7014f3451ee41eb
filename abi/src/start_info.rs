//! What a domain finds at RSI when it starts (`struct start_info`, xen.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `magic` of a 64-bit PV domain.
pub const MAGIC: &[u8; 14] = b"xen-3.0-x86_64";
/// `flags`: the domain may use privileged calls.
pub const SIF_PRIVILEGED: u32 = 1 << 0;
/// `flags`: the first domain.
pub const SIF_INITDOMAIN: u32 = 1 << 1;
/// `flags`: `mod_start` is a pfn, the ramdisk is not mapped.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StartInfo {
    /// [`MAGIC`], zero-padded.
    pub magic: [u8; 32],
    /// Frames of the domain.
    pub nr_pages: u64,
    /// Machine address of the shared-info frame.
    pub shared_info: u64,
    pub flags: u32,
    pub _pad0: u32,
    /// Frame of the xenstore ring.
    pub store_mfn: u64,
    pub store_evtchn: u32,
    pub _pad1: u32,
    /// Frame of the console ring; 0 for the first domain.
    pub console_mfn: u64,
    pub console_evtchn: u32,
    pub _pad2: u32,
    /// Linear address of the L4.
    pub pt_base: u64,
    pub nr_pt_frames: u64,
    /// Linear address of the pfn-to-mfn list.
    pub mfn_list: u64,
    /// Linear address, or pfn with [`SIF_MOD_START_PFN`], of the ramdisk.
    pub mod_start: u64,
    /// Bytes.
    pub mod_len: u64,
    pub cmd_line: [u8; 1024],
    pub first_p2m_pfn: u64,
    pub nr_p2m_frames: u64,
}
crate::layout!(StartInfo, 1168, nr_pages @ 32, shared_info @ 40, flags @ 48, store_mfn @ 56,
    store_evtchn @ 64, console_mfn @ 72, console_evtchn @ 80, pt_base @ 88, nr_pt_frames @ 96,
    mfn_list @ 104, mod_start @ 112, mod_len @ 120, cmd_line @ 128, first_p2m_pfn @ 1152);
