//! Hypercall numbers (xen.h) and calling convention: RAX = number, arguments in
//! RDI, RSI, RDX, R10, R8; result in RAX; RCX and R11 are destroyed.

pub const SET_TRAP_TABLE: u64 = 0;
pub const MMU_UPDATE: u64 = 1;
pub const SET_GDT: u64 = 2;
pub const STACK_SWITCH: u64 = 3;
pub const SET_CALLBACKS: u64 = 4;
pub const FPU_TASKSWITCH: u64 = 5;
pub const SCHED_OP_COMPAT: u64 = 6;
pub const PLATFORM_OP: u64 = 7;
pub const SET_DEBUGREG: u64 = 8;
pub const GET_DEBUGREG: u64 = 9;
pub const UPDATE_DESCRIPTOR: u64 = 10;
pub const MEMORY_OP: u64 = 12;
pub const MULTICALL: u64 = 13;
pub const UPDATE_VA_MAPPING: u64 = 14;
pub const SET_TIMER_OP: u64 = 15;
pub const XEN_VERSION: u64 = 17;
pub const CONSOLE_IO: u64 = 18;
pub const GRANT_TABLE_OP: u64 = 20;
pub const VM_ASSIST: u64 = 21;
pub const UPDATE_VA_MAPPING_OTHERDOMAIN: u64 = 22;
pub const IRET: u64 = 23;
pub const VCPU_OP: u64 = 24;
pub const SET_SEGMENT_BASE: u64 = 25;
pub const MMUEXT_OP: u64 = 26;
pub const XSM_OP: u64 = 27;
pub const NMI_OP: u64 = 28;
pub const SCHED_OP: u64 = 29;
pub const CALLBACK_OP: u64 = 30;
pub const EVENT_CHANNEL_OP: u64 = 32;
pub const PHYSDEV_OP: u64 = 33;
pub const HVM_OP: u64 = 34;
pub const SYSCTL: u64 = 35;
pub const DOMCTL: u64 = 36;
pub const XENPMU_OP: u64 = 40;
/// Bulkhead's own: [`crate::control`], Dom0 only (`__HYPERVISOR_arch_1`).
pub const CONTROL: u64 = 49;
/// Bulkhead's own: [`crate::device`], for owners of devices (`__HYPERVISOR_arch_2`).
pub const DEVICE: u64 = 50;
/// Numbers from here on do not exist.
pub const LIMIT: u64 = 64;

/// One call of a batch (`multicall_entry`, 64 bytes).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
#[repr(C)]
pub struct MulticallEntry {
    /// `[guest]` hypercall number.
    pub op: u64,
    /// `[core]` result, as RAX would hold it.
    pub result: u64,
    /// `[guest]` arguments.
    pub args: [u64; 6],
}
crate::layout!(MulticallEntry, 64, result @ 8, args @ 16);
