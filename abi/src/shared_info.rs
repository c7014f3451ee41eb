//! The page a domain shares with the core (`struct shared_info`, xen.h and
//! arch-x86/xen.h). Both sides write it at any time: access is by offset, volatile
//! or atomic, never through a reference.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// vCPUs that have their information in the shared page itself.
pub const LEGACY_MAX_VCPUS: usize = 32;
/// Ports of the two-level interface: 64 words of 64 bits.
pub const EVTCHN_2L_PORTS: u32 = 4096;
/// `vcpu_time_info.flags`: the TSC is stable over all CPUs.
pub const TIME_TSC_STABLE: u8 = 1;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuTimeInfo {
    /// `[core]` odd while the rest is written.
    pub version: u32,
    pub _pad0: u32,
    pub tsc_timestamp: u64,
    /// ns since the core booted at `tsc_timestamp`.
    pub system_time: u64,
    pub tsc_to_system_mul: u32,
    pub tsc_shift: i8,
    pub flags: u8,
    pub _pad1: [u8; 2],
}
crate::layout!(VcpuTimeInfo, 32, tsc_timestamp @ 8, system_time @ 16, tsc_to_system_mul @ 24, tsc_shift @ 28, flags @ 29);

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuInfo {
    /// `[core]` sets, `[guest]` clears.
    pub evtchn_upcall_pending: u8,
    /// `[guest]`, and `[core]` on upcalls.
    pub evtchn_upcall_mask: u8,
    pub _pad0: [u8; 6],
    /// `[core]` sets bits, `[guest]` exchanges with 0.
    pub evtchn_pending_sel: u64,
    /// `[core]` address of the last page fault.
    pub cr2: u64,
    pub _pad1: u64,
    pub time: VcpuTimeInfo,
}
crate::layout!(VcpuInfo, 64, evtchn_upcall_mask @ 1, evtchn_pending_sel @ 8, cr2 @ 16, time @ 32);

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SharedInfo {
    pub vcpu_info: [VcpuInfo; LEGACY_MAX_VCPUS],
    pub evtchn_pending: [u64; 64],
    pub evtchn_mask: [u64; 64],
    /// `[core]` sequence of the wall clock.
    pub wc_version: u32,
    pub wc_sec: u32,
    pub wc_nsec: u32,
    pub wc_sec_hi: u32,
    /// `[guest]` highest pfn + 1.
    pub max_pfn: u64,
    pub pfn_to_mfn_frame_list_list: u64,
    pub nmi_reason: u64,
    pub p2m_cr3: u64,
    pub p2m_vaddr: u64,
    pub p2m_generation: u64,
}
crate::layout!(SharedInfo, 3136, evtchn_pending @ 2048, evtchn_mask @ 2560, wc_version @ 3072,
    wc_sec @ 3076, wc_nsec @ 3080, wc_sec_hi @ 3084, max_pfn @ 3088, pfn_to_mfn_frame_list_list @ 3096,
    p2m_cr3 @ 3112, p2m_vaddr @ 3120, p2m_generation @ 3128);
