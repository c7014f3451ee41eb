//! Page-table updates (xen.h: `mmu_update`, `mmuext_op`, `UVMF_*`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Low two bits of [`MmuUpdate::ptr`].
pub const MMU_NORMAL_PT_UPDATE: u64 = 0;
pub const MMU_MACHPHYS_UPDATE: u64 = 1;
pub const MMU_PT_UPDATE_PRESERVE_AD: u64 = 2;
pub const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;
/// Bit of a count argument that marks a continuation.
pub const MMU_UPDATE_PREEMPTED: u32 = 1 << 31;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MmuUpdate {
    /// Machine address of the entry, with the command in bits 0-1.
    pub ptr: u64,
    pub val: u64,
}
crate::layout!(MmuUpdate, 16, val @ 8);

pub const MMUEXT_PIN_L1_TABLE: u32 = 0;
pub const MMUEXT_PIN_L2_TABLE: u32 = 1;
pub const MMUEXT_PIN_L3_TABLE: u32 = 2;
pub const MMUEXT_PIN_L4_TABLE: u32 = 3;
pub const MMUEXT_UNPIN_TABLE: u32 = 4;
pub const MMUEXT_NEW_BASEPTR: u32 = 5;
pub const MMUEXT_TLB_FLUSH_LOCAL: u32 = 6;
pub const MMUEXT_INVLPG_LOCAL: u32 = 7;
pub const MMUEXT_TLB_FLUSH_MULTI: u32 = 8;
pub const MMUEXT_INVLPG_MULTI: u32 = 9;
pub const MMUEXT_TLB_FLUSH_ALL: u32 = 10;
pub const MMUEXT_INVLPG_ALL: u32 = 11;
pub const MMUEXT_FLUSH_CACHE: u32 = 12;
pub const MMUEXT_SET_LDT: u32 = 13;
pub const MMUEXT_NEW_USER_BASEPTR: u32 = 15;
pub const MMUEXT_CLEAR_PAGE: u32 = 16;
pub const MMUEXT_COPY_PAGE: u32 = 17;
pub const MMUEXT_FLUSH_CACHE_GLOBAL: u32 = 18;
pub const MMUEXT_MARK_SUPER: u32 = 19;
pub const MMUEXT_UNMARK_SUPER: u32 = 20;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MmuextOp {
    pub cmd: u32,
    pub _pad: u32,
    /// Frame or linear address, by `cmd`.
    pub arg1: u64,
    /// Count, pointer or source frame, by `cmd`.
    pub arg2: u64,
}
crate::layout!(MmuextOp, 24, arg1 @ 8, arg2 @ 16);

/// Flags of `update_va_mapping`.
pub const UVMF_NONE: u64 = 0;
pub const UVMF_TLB_FLUSH: u64 = 1;
pub const UVMF_INVLPG: u64 = 2;
pub const UVMF_FLUSHTYPE_MASK: u64 = 3;
pub const UVMF_MULTI: u64 = 0;
pub const UVMF_LOCAL: u64 = 0;
pub const UVMF_ALL: u64 = 1 << 2;

/// First linear address of the core's hole: L4 slots 256..=271.
pub const HOLE_START: u64 = 0xffff_8000_0000_0000;
/// First linear address past the core's hole.
pub const HOLE_END: u64 = 0xffff_8800_0000_0000;
/// Linear address of the machine-to-phys table, readable by guests.
pub const M2P_START: u64 = 0xffff_8000_0000_0000;
/// What the table holds for a frame that is no guest's.
pub const M2P_INVALID: u64 = u64::MAX;
