//! What a guest registered about its traps, and its segment and FPU state: the part
//! of a vCPU that traps are made of. How these values reach the processor is `arch`'s business.
#![deny(unsafe_code)]

use crate::{
    Core,
    arch::{self, Base},
    memory::update,
    trap::descriptor::{self, GDT_PAGES, Ldt},
};
use bulkhead_abi::{
    DomId, Errno, GuestVa, Mfn, VcpuId,
    mmu::{HOLE_END, HOLE_START},
    trap::{FLAT_RING3_CS64, FLAT_RING3_SS64, TrapInfo},
    vcpu::{
        UserRegs, VGCF_I387_VALID, VGCF_IN_KERNEL, VGCF_SYSCALL_DISABLES_EVENTS, VcpuGuestContext,
    },
};

/// RFLAGS bits that a guest never chooses: IOPL, VM, VIF, VIP, and what is reserved.
const RFLAGS_FIXED: u64 =
    3 << 12 | 1 << 17 | 1 << 19 | 1 << 20 | !0x3f_ffff | 1 << 3 | 1 << 5 | 1 << 15;
/// RFLAGS.IF and the bit that always reads as one.
const RFLAGS_ALWAYS: u64 = 1 << 9 | 1 << 1;
/// XCR0 of a new vCPU: x87 and SSE.
const XCR0_FP_SSE: u64 = 3;
/// MXCSR bits that every x86-64 processor takes.
const MXCSR_MASK: u32 = 0xffbf;
/// MXCSR after reset: all exceptions masked.
const MXCSR_RESET: u32 = 0x1f80;
/// x87 control word after FNINIT.
const FCW_RESET: u16 = 0x37f;

/// Bytes of an XSAVE area in standard form with x87, SSE, AVX and AVX-512.
pub const XSAVE_BYTES: usize = 2688;

/// RFLAGS as the hardware gets them for a guest: interrupts on, I/O privilege 0.
pub const fn sanitize_rflags(rflags: u64) -> u64 {
    rflags & !RFLAGS_FIXED | RFLAGS_ALWAYS
}

/// Whether an address lies in the core's hole.
pub const fn in_hole(va: u64) -> bool {
    va >= HOLE_START && va < HOLE_END
}

/// Whether a guest may have its code, stack or table at this address.
pub const fn is_guest_address(va: u64) -> bool {
    GuestVa::new(va).is_canonical() && !in_hole(va)
}

/// Which of its two roots a vCPU runs on. Both run in ring 3.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// The guest's kernel: SYSCALL is a hypercall.
    #[default]
    Kernel,
    /// The guest's user programs: SYSCALL is the guest's system call.
    User,
}

impl Mode {
    /// Puts FS base, GS base and inactive GS base, as the processor has them in this mode, into the
    /// order of [`GuestContext::bases`]; and the other way round.
    pub fn order(self, [fs, gs, inactive]: [u64; 3]) -> [u64; 3] {
        match self {
            Self::Kernel => [fs, gs, inactive],
            Self::User => [fs, inactive, gs],
        }
    }
}

/// Where a callback enters the guest's kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Callback {
    /// 0: not registered.
    pub address: u64,
    /// Events are masked on entry.
    pub mask_events: bool,
}

/// The XSAVE area of a vCPU, standard form. The core writes it only by XSAVE, by
/// [`FpuArea::new`] and by [`FpuArea::load_legacy`], so XRSTOR of it can not fault.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct FpuArea(pub [u8; XSAVE_BYTES]);

impl FpuArea {
    /// The state after reset.
    pub const fn new() -> Self {
        let mut area = [0; XSAVE_BYTES];
        [area[0], area[1]] = FCW_RESET.to_le_bytes();
        [area[24], area[25], ..] = MXCSR_RESET.to_le_bytes();
        // XSTATE_BV: x87 and SSE are what the legacy region says.
        area[512] = 3;
        Self(area)
    }

    /// Takes an FXSAVE image whose author is not trusted.
    pub fn load_legacy(&mut self, image: &[u8; 512]) {
        *self = Self::new();
        let (legacy, _) = self.0.split_at_mut(512);
        legacy.copy_from_slice(image);
        let mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]) & MXCSR_MASK;
        legacy[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        // Bytes 464.. are for software, MXCSR_MASK (28..32) is ignored by XRSTOR.
    }
}

impl Default for FpuArea {
    fn default() -> Self {
        Self::new()
    }
}

/// Room `trap`'s share of a vCPU.
pub struct GuestContext {
    pub mode: Mode,
    /// By vector; address 0: no handler.
    pub traps: [TrapInfo; 256],
    pub event: Callback,
    pub failsafe: Callback,
    pub syscall: Callback,
    /// Stack of the guest's kernel, used when a trap comes from its user mode.
    pub kernel_ss: u16,
    pub kernel_sp: u64,
    /// FS base, and the GS bases of guest-kernel and guest-user mode, while it does not run:
    /// the processor has them then ([`set_base`]).
    pub bases: [u64; 3],
    /// Frames of the guest's GDT; each holds a general and a `SegDesc` type reference.
    pub gdt: [Option<Mfn>; GDT_PAGES],
    pub ldt: Ldt,
    /// Debug registers; 4 and 5 do not exist.
    pub debug: [u64; 8],
    /// Guest's view of CR4's bits that are its own.
    pub cr4: u64,
    /// Virtual CR0.TS: the next FPU instruction gives #NM.
    pub task_switched: bool,
    /// Virtual I/O privilege level (`PHYSDEVOP_set_iopl`).
    pub iopl: u8,
    pub xcr0: u64,
    /// TSC_AUX, where the processor has it.
    pub tsc_aux: u32,
    /// The last protection fault that the tables did not explain, so that the same one is
    /// taken for stale TLB once only: `(rip, address)`.
    pub last_spurious: (u64, u64),
    pub fpu: FpuArea,
}

impl Default for GuestContext {
    fn default() -> Self {
        Self {
            mode: Mode::Kernel,
            traps: [TrapInfo::default(); 256],
            event: Callback::default(),
            failsafe: Callback::default(),
            syscall: Callback::default(),
            kernel_ss: FLAT_RING3_SS64,
            kernel_sp: 0,
            bases: [0; 3],
            gdt: [None; GDT_PAGES],
            ldt: Ldt::default(),
            debug: [0, 0, 0, 0, 0, 0, super::DR6_RESET, super::DR7_RESET],
            cr4: 0,
            task_switched: false,
            iopl: 0,
            xcr0: XCR0_FP_SSE,
            tsc_aux: 0,
            last_spurious: (0, 0),
            fpu: FpuArea::new(),
        }
    }
}

impl GuestContext {
    /// Takes over everything of `context` that needs no reference: traps, callbacks,
    /// stack, bases, debug registers, FPU. [`set_context`] checked it.
    pub fn install(&mut self, context: &VcpuGuestContext) {
        self.mode = if context.flags & VGCF_IN_KERNEL != 0 { Mode::Kernel } else { Mode::User };
        for (n, (to, from)) in self.traps.iter_mut().zip(&context.trap_ctxt).enumerate() {
            *to = TrapInfo { vector: n as u8, cs: from.cs | 3, ..*from };
        }
        self.event = Callback { address: context.event_callback_eip, mask_events: true };
        self.failsafe = Callback { address: context.failsafe_callback_eip, mask_events: true };
        self.syscall = Callback {
            address: context.syscall_callback_eip,
            mask_events: context.flags & VGCF_SYSCALL_DISABLES_EVENTS != 0,
        };
        self.kernel_ss = context.kernel_ss as u16 | 3;
        self.kernel_sp = context.kernel_sp;
        self.bases = bases(context);
        for n in [0, 1, 2, 3, 7] {
            // Refused values leave the register as after reset, as 0 does.
            let value = context.debugreg[n as usize];
            let _ = (value != 0).then(|| super::debug::set(self, n, value));
        }
        if context.flags & VGCF_I387_VALID != 0 {
            self.fpu.load_legacy(&context.fpu);
        }
    }
}

fn bases(context: &VcpuGuestContext) -> [u64; 3] {
    [context.fs_base, context.gs_base_kernel, context.gs_base_user]
}

/// Sets a segment base of the current vCPU, which is in kernel mode.
///
/// Errors: `EINVAL` not canonical.
pub fn set_base(base: Base, va: u64) -> Result<(), Errno> {
    if !GuestVa::new(va).is_canonical() {
        return Err(Errno::EINVAL);
    }
    arch::write_base(base, va);
    Ok(())
}

/// Makes `context` the state of a vCPU that has none: the one road for
/// `VCPUOP_initialise`, `SET_VCPU_CONTEXT` and the first vCPU of Dom0.
///
/// Holds: afterwards the roots and descriptor frames carry this vCPU's references, every
/// selector has RPL 3, RFLAGS are a guest's, and `initialised` is set.
/// Errors: `ENOENT` no such vCPU; `EEXIST` it has a context; `EINVAL` an address that is
/// not canonical or lies in the hole, a root or descriptor frame that is not the
/// domain's or not of that type; `EAGAIN` the root's validation wants another
/// step: call again. On error nothing has changed.
pub fn set_context(
    core: &mut Core,
    dom: DomId,
    id: VcpuId,
    context: &VcpuGuestContext,
) -> Result<(), Errno> {
    let vcpu = core.domains.get(dom).and_then(|d| d.vcpu(id)).ok_or(Errno::ENOENT)?;
    if vcpu.initialised {
        return Err(Errno::EEXIST);
    }
    check(context)?;
    let kernel = root(context.ctrlreg[3])?.ok_or(Errno::EINVAL)?;
    let user = root(context.ctrlreg[1])?;

    update::get_root(core, dom, kernel)?;
    let gdt =
        hold_rest(core, dom, user, context).inspect_err(|_| update::put_root(core, dom, kernel))?;
    let vcpu = core.domains.get_mut(dom).and_then(|d| d.vcpu_mut(id)).expect("looked up above");
    vcpu.guest.install(context);
    vcpu.guest.gdt = gdt;
    vcpu.guest.ldt = Ldt::new(context.ldt_base, context.ldt_ents as u32);
    vcpu.roots.kernel = Some(kernel);
    vcpu.roots.user = user;
    vcpu.save.regs = registers(&context.user_regs);
    vcpu.initialised = true;
    Ok(())
}

/// Takes the references of a context beside that on its kernel root, or none.
fn hold_rest(
    core: &mut Core,
    dom: DomId,
    user: Option<Mfn>,
    context: &VcpuGuestContext,
) -> Result<[Option<Mfn>; GDT_PAGES], Errno> {
    if let Some(user) = user {
        update::get_root(core, dom, user)?;
    }
    let gdt = descriptor::get_gdt(core, dom, &context.gdt_frames[..GDT_PAGES], context.gdt_ents);
    if let (Err(_), Some(user)) = (gdt, user) {
        update::put_root(core, dom, user);
    }
    gdt
}

/// Drops the descriptor frames that a vCPU's context holds and forgets the context. The
/// roots are the caller's to put: that may take several steps.
pub fn release_context(core: &mut Core, dom: DomId, id: VcpuId) {
    let Some(vcpu) = core.domains.get_mut(dom).and_then(|d| d.vcpu_mut(id)) else {
        return;
    };
    let (gdt, ldt) = (vcpu.guest.gdt, vcpu.guest.ldt.frames);
    vcpu.guest = GuestContext::default();
    vcpu.initialised = false;
    descriptor::put(core, &gdt);
    descriptor::put(core, &ldt);
}

/// The frame that a `ctrlreg` names: bits 12..52; 0 for none.
fn root(cr3: u64) -> Result<Option<Mfn>, Errno> {
    if cr3 >> 52 != 0 {
        return Err(Errno::EINVAL);
    }
    Ok((cr3 >> 12 != 0).then(|| Mfn::new(cr3 >> 12)))
}

fn check(context: &VcpuGuestContext) -> Result<(), Errno> {
    let addresses = [
        context.user_regs.rip,
        context.event_callback_eip,
        context.failsafe_callback_eip,
        context.syscall_callback_eip,
        context.kernel_sp,
    ];
    let traps = context.trap_ctxt.iter().map(|trap| trap.address);
    let fine = addresses.into_iter().chain(traps).all(is_guest_address)
        && bases(context).into_iter().all(|base| GuestVa::new(base).is_canonical())
        && Ldt::is_acceptable(context.ldt_base, context.ldt_ents);
    fine.then_some(()).ok_or(Errno::EINVAL)
}

/// Registers as a guest may have them.
fn registers(asked: &UserRegs) -> UserRegs {
    let or_flat = |selector: u16, flat: u16| {
        if selector & !3 == 0 { flat } else { selector | 3 }
    };
    UserRegs {
        cs: or_flat(asked.cs, FLAT_RING3_CS64),
        ss: or_flat(asked.ss, FLAT_RING3_SS64),
        ds: guest_selector(asked.ds),
        es: guest_selector(asked.es),
        fs: guest_selector(asked.fs),
        gs: guest_selector(asked.gs),
        rflags: sanitize_rflags(asked.rflags),
        error_code: 0,
        entry_vector: 0,
        saved_upcall_mask: 0,
        _pad0: 0,
        _pad1: [0; 3],
        _pad2: [0; 3],
        ..*asked
    }
}

/// A data selector with RPL 3; null stays null.
pub const fn guest_selector(selector: u16) -> u16 {
    if selector & !3 == 0 { 0 } else { selector | 3 }
}
