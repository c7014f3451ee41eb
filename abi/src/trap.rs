//! Trap tables, callbacks and frames (public/arch-x86/xen.h, xen-x86_64.h, callback.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Selectors every guest finds in the reserved part of its GDT.
pub const FLAT_RING3_CS32: u16 = 0xe023;
pub const FLAT_RING3_SS64: u16 = 0xe02b;
pub const FLAT_RING3_CS64: u16 = 0xe033;
/// First GDT page, and entry, that belongs to the core.
pub const FIRST_RESERVED_GDT_PAGE: usize = 14;
pub const FIRST_RESERVED_GDT_ENTRY: u32 = 7168;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TrapInfo {
    pub vector: u8,
    /// Bits 0-1: DPL for software interrupts; bit 2: mask events on entry.
    pub flags: u8,
    pub cs: u16,
    pub _pad: u32,
    /// 0 ends a table.
    pub address: u64,
}
crate::layout!(TrapInfo, 16, cs @ 2, address @ 8);
/// `TrapInfo::flags`: mask events on entry.
pub const TI_MASK_EVENTS: u8 = 1 << 2;

pub const CALLBACKOP_REGISTER: u64 = 0;
pub const CALLBACKOP_UNREGISTER: u64 = 1;
pub const CALLBACKTYPE_EVENT: u16 = 0;
pub const CALLBACKTYPE_FAILSAFE: u16 = 1;
pub const CALLBACKTYPE_SYSCALL: u16 = 2;
pub const CALLBACKTYPE_SYSENTER_LEGACY: u16 = 3;
pub const CALLBACKTYPE_NMI: u16 = 4;
pub const CALLBACKTYPE_SYSENTER: u16 = 5;
pub const CALLBACKTYPE_SYSCALL32: u16 = 7;
/// Mask events when the callback is entered.
pub const CALLBACKF_MASK_EVENTS: u16 = 1;

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CallbackRegister {
    pub kind: u16,
    pub flags: u16,
    pub _pad: u32,
    pub address: u64,
}
crate::layout!(CallbackRegister, 16, address @ 8);

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CallbackUnregister {
    pub kind: u16,
    pub _pad: u16,
}
crate::layout!(CallbackUnregister, 4);

/// What the `iret` hypercall finds at RSP (xen-x86_64.h).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IretContext {
    pub rax: u64,
    pub r11: u64,
    pub rcx: u64,
    pub flags: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}
crate::layout!(IretContext, 72);
/// `IretContext::flags`: R11 and RCX need not be restored.
pub const VGCF_IN_SYSCALL: u64 = 1 << 8;

pub const SEGBASE_FS: u64 = 0;
pub const SEGBASE_GS_USER: u64 = 1;
pub const SEGBASE_GS_KERNEL: u64 = 2;
pub const SEGBASE_GS_USER_SEL: u64 = 3;

/// `vm_assist` commands and types (xen.h).
pub const VMASST_CMD_ENABLE: u64 = 0;
pub const VMASST_CMD_DISABLE: u64 = 1;
pub const VMASST_4GB_SEGMENTS: u64 = 0;
pub const VMASST_4GB_SEGMENTS_NOTIFY: u64 = 1;
pub const VMASST_WRITABLE_PAGETABLES: u64 = 2;
pub const VMASST_PAE_EXTENDED_CR3: u64 = 3;
pub const VMASST_ARCHITECTURAL_IOPL: u64 = 4;
pub const VMASST_RUNSTATE_UPDATE_FLAG: u64 = 5;
pub const VMASST_M2P_STRICT: u64 = 32;

/// The five bytes that announce a forced emulation: `ud2; "xen"`.
pub const FORCED_EMULATION_PREFIX: [u8; 5] = [0x0f, 0x0b, 0x78, 0x65, 0x6e];
