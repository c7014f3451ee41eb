//! What Dom0 may ask of the core: hypercall [`crate::hypercall::CONTROL`] with
//! RDI = command, RSI = address of its structure, RAX = 0 or a negated errno. Every
//! other domain gets `EPERM`. Creating a domain is more than these calls: memory
//! comes by `memory_op(populate_physmap)`, contents by foreign mappings
//! (`mmu_update` with the domain as its foreign domain), pinning by `mmuext_op`
//! with it, event channels by `alloc_unbound` with `dom` set.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`CreateDomain`]: a paused domain with shared-info, no memory, no vCPU running.
pub const CREATE_DOMAIN: u64 = 1;
/// [`DomainOnly`]: ends it and gives back all it holds; restarts itself until done.
pub const DESTROY_DOMAIN: u64 = 2;
/// [`DomainOnly`]; pauses nest.
pub const PAUSE_DOMAIN: u64 = 3;
/// [`DomainOnly`]
pub const UNPAUSE_DOMAIN: u64 = 4;
/// [`DomainOnly`]: in-place reset. Same domid, next incarnation: memory, mappings, vCPU
/// contexts, timers and pirqs go, devices are quiesced and stay assigned, its ports close
/// (peers fall back to unbound for the same domid), grants made *to* it stay. It is left as
/// after its creation: paused once, a new shared-info, default scheduling parameters.
pub const RESET_DOMAIN: u64 = 5;
/// [`DomainInfo`]
pub const DOMAIN_INFO: u64 = 6;
/// [`SetVcpuContext`]: once per life; the vCPU comes online with it.
pub const SET_VCPU_CONTEXT: u64 = 7;
/// [`SchedParams`]
pub const SET_SCHED: u64 = 8;
/// [`SchedParams`]
pub const GET_SCHED: u64 = 9;
/// [`VcpuTimes`]
pub const VCPU_TIMES: u64 = 10;
/// [`SetGrant`]
pub const SET_GRANT: u64 = 11;
/// [`DeviceRef`]: to a domain created with [`CREATE_DRIVER`], or to Dom0 if the device is
/// memory and nothing else (class 05 00). `EPERM` for others and for bridges; `EBUSY` if it
/// has an owner.
pub const ASSIGN_DEVICE: u64 = 12;
/// [`DeviceRef`]; `domid` is the present owner. `EBUSY` once that has a vCPU context, for
/// then it may have mapped the device: reset or destroy it first.
pub const DEASSIGN_DEVICE: u64 = 13;
/// [`MachineInfo`]
pub const MACHINE_INFO: u64 = 14;
/// [`Shutdown`]: does not return.
pub const MACHINE_SHUTDOWN: u64 = 15;
/// [`SetMaxPages`]
pub const SET_MAX_PAGES: u64 = 16;
/// [`DomainOnly`]: [`RESET_DOMAIN`], but frames that Dom0 gave it (populated) and that nobody
/// refers to any more stay its own, with what is in them. `tot_pages` then tells whether all
/// did; `RESET_DOMAIN` takes them too.
pub const RESET_KEEPING: u64 = 17;

macro_rules! op {
    ($(#[$d:meta])* $name:ident { $($(#[$fd:meta])* $f:ident : $t:ty),* $(,)? } $size:expr) => {
        $(#[$d])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fd])* pub $f: $t),* }
        crate::layout!($name, $size);
        impl Default for $name {
            fn default() -> Self { zerocopy::FromZeros::new_zeroed() }
        }
    };
}

op!(CreateDomain {
    /** in: wanted domid, 0 for the lowest free; out: the domid */ domid: u16,
    _pad: u16,
    max_vcpus: u32,
    /** most frames it may own */ max_pages: u64,
    /** [`CREATE_DRIVER`] */ flags: u32,
    _pad1: u32,
    /** out */ shared_info_mfn: u64,
    /** what XENVER_guest_handle tells it: a UUID, or zeroes */ handle: [u8; 16],
} 48);
/// `CreateDomain::flags`: devices may be assigned to it.
pub const CREATE_DRIVER: u32 = 1;

op!(DomainOnly { domid: u16, _pad: [u16; 3] } 8);
op!(SetMaxPages { domid: u16, _pad: [u16; 3], max_pages: u64 } 16);
op!(
    /// Iterates: the answer is for the first domain whose id is at least `domid`,
    /// `ESRCH` when there is none.
    DomainInfo {
    /** in and out */ domid: u16,
    _pad: u16,
    /** [`STATE_PAUSED`] and its kin */ state: u32,
    /** SHUTDOWN_* once shut down */ shutdown_reason: u32,
    incarnation: u32,
    max_vcpus: u32,
    online_vcpus: u32,
    tot_pages: u64,
    max_pages: u64,
    shared_info_mfn: u64,
    /** all vCPUs, ns */ cpu_time_ns: u64,
    /** frames of the core that hold this domain's structures */ overhead_pages: u64,
    /** event channels in use */ ports: u32,
    /** grants of others it has mapped */ maps: u32,
    /** system time of its shutdown, ns; 0 while it runs */ ended_ns: u64,
    /** why it crashed, NUL-padded text */ reason: [u8; 120],
} 200);
pub const STATE_PAUSED: u32 = 1 << 0;
pub const STATE_BLOCKED: u32 = 1 << 1;
pub const STATE_RUNNING: u32 = 1 << 2;
pub const STATE_SHUTDOWN: u32 = 1 << 3;
pub const STATE_DYING: u32 = 1 << 4;
pub const STATE_DRIVER: u32 = 1 << 5;

op!(SetVcpuContext { domid: u16, _pad: u16, vcpu: u32,
    /** address of a [`crate::vcpu::VcpuGuestContext`]; its cr3 must be an L4 of the domain,
    pinned or not: it is validated where it is not one yet */ context: u64 } 16);
op!(
    /// Borrowed Virtual Time (Duda and Cheriton, SOSP 1999).
    SchedParams {
    domid: u16, _pad: u16,
    /** `u32::MAX`: all vCPUs of the domain (set only) */ vcpu: u32,
    /** share; 1..=65535, 256 is the default */ weight: u32, _pad1: u32,
    /** W: how far back in virtual time a woken vCPU goes, ns; 0 switches warping off */ warp_ns: u64,
    /** L: longest run while warped, ns; 0 for no limit */ warp_limit_ns: u64,
    /** U: least time between warps, ns */ unwarp_ns: u64,
    /** C: context switch allowance, ns */ allowance_ns: u64,
} 48);
op!(VcpuTimes { domid: u16, _pad: u16, vcpu: u32,
    /** RUNSTATE_* */ state: u32, _pad1: u32,
    /** ns in each state */ time: [u64; 4],
    /** actual virtual time, ns of weight 256 */ actual_vt: u64,
    /** times it was dispatched */ dispatches: u64 } 64);
op!(
    /// Writes an entry of a domain's own grant table, before it runs.
    SetGrant { domid: u16, /** who may map it */ grantee: u16, gref: u32, mfn: u64 } 16);
op!(DeviceRef { domid: u16, _pad: u16, /** bus << 8 | device << 3 | function */ sbdf: u32 } 8);
op!(MachineInfo {
    total_frames: u64, free_frames: u64, /** frames the core itself took */ core_frames: u64,
    tsc_khz: u64, /** ns since boot */ system_time_ns: u64, cpus: u32,
    nr_devices: u32, /** longest stay in ring 0 since boot, ns */ longest_stay_ns: u64,
    /** traps taken from ring 3 */ entries: u64, /** vCPU switches */ switches: u64, max_mfn: u64,
} 80);
op!(Shutdown { /** EXIT_* of [`crate::archive`] */ code: u32, _pad: u32 } 8);
