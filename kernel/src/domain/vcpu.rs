//! One virtual CPU: registers, what its guest registered, and each room's share.

use super::Incarnation;
use crate::{
    sched::VcpuSched,
    trap::context::{GuestContext, Mode},
};
use bulkhead_abi::{DomId, Maddr, Mfn, VcpuId, vcpu::UserRegs};

/// Where the machine saves the registers of the running vCPU: the entry path pushes
/// straight into `regs`, whose end (after `ss`) must be 16-byte aligned, for the
/// processor aligns RSP down before it pushes.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
pub struct SaveArea {
    _align: u64,
    pub regs: UserRegs,
    /// Top of the stack of the CPU this vCPU runs on; room `trap` sets it when it goes out, and
    /// the entry path finds its stack here, without any register of the guest's.
    pub stack_top: u64,
}

const _: () = {
    assert!(core::mem::offset_of!(SaveArea, regs) == 8);
    assert!(core::mem::offset_of!(SaveArea, stack_top) == 208);
};

/// The page tables a vCPU runs on. Each holds a general and an L4 type reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Roots {
    /// L4 of guest-kernel mode (`NEW_BASEPTR`); `None` before the context is set.
    pub kernel: Option<Mfn>,
    /// L4 of guest-user mode (`NEW_USER_BASEPTR`).
    pub user: Option<Mfn>,
}

#[repr(C)]
pub struct Vcpu {
    pub save: SaveArea,
    pub dom: DomId,
    pub id: VcpuId,
    pub incarnation: Incarnation,
    pub roots: Roots,
    /// Machine address of its `vcpu_info`: in shared-info, or where it was registered.
    pub info: Maddr,
    pub info_registered: bool,
    /// A context was set (`VCPUOP_initialise` or control).
    pub initialised: bool,
    /// `VCPUOP_up`; an offline vCPU is never run.
    pub online: bool,
    /// Traps, callbacks, segments, FPU: room `trap`.
    pub guest: GuestContext,
    /// Run state, virtual time, timers, poll set: room `sched`.
    pub sched: VcpuSched,
}

impl Vcpu {
    /// A vCPU as before its first context.
    pub fn new(dom: DomId, id: VcpuId, incarnation: Incarnation, info: Maddr) -> Self {
        Self {
            save: SaveArea::default(),
            dom,
            id,
            incarnation,
            roots: Roots::default(),
            info,
            info_registered: false,
            initialised: false,
            online: false,
            guest: GuestContext::default(),
            sched: VcpuSched::default(),
        }
    }

    /// The root of the mode it is in.
    pub fn root(&self) -> Option<Mfn> {
        match self.guest.mode {
            Mode::Kernel => self.roots.kernel,
            Mode::User => self.roots.user,
        }
    }

    pub fn regs(&self) -> &UserRegs {
        &self.save.regs
    }

    pub fn regs_mut(&mut self) -> &mut UserRegs {
        &mut self.save.regs
    }
}
