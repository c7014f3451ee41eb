//! Exceptions and callbacks: every way the core can enter this domain.
//!
//! All entries go through one stub that saves the registers as a [`Frame`] and leaves
//! by the `iret` hypercall. The event callback does nothing but keep events masked:
//! the executor collects them (see [`crate::event`]). Any other entry that no hook
//! claims is a fault of this program: registers are printed and the domain crashes.

use crate::hypercall;
use bulkhead_abi::hypercall::SET_TRAP_TABLE;
use bulkhead_abi::trap::{
    CALLBACKTYPE_EVENT, CALLBACKTYPE_FAILSAFE, CALLBACKTYPE_SYSCALL, FLAT_RING3_CS64, TrapInfo,
};
use core::fmt;
use core::sync::atomic::{AtomicPtr, Ordering};

/// [`Frame::vector`] of the event callback.
pub const EVENT: u64 = 0x100;
/// [`Frame::vector`] of the syscall callback.
pub const SYSCALL: u64 = 0x101;
/// [`Frame::vector`] of the failsafe callback.
pub const FAILSAFE: u64 = 0x102;

/// Interrupt flag in [`Frame::rflags`]: clear means that events stay masked.
pub const RFLAGS_IF: u64 = 1 << 9;

/// Vectors that have a stub.
const VECTORS: usize = 32;
/// Exceptions that push an error code: 8, 10-14, 17, 21.
const WITH_ERROR: u32 = 0x0022_7d00;

/// The interrupted context. A hook may change it: it is what is returned to.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "the machine's own register names")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// Exception number, or [`EVENT`] and its kin.
    pub vector: u64,
    pub rax: u64,
    pub r11: u64,
    pub rcx: u64,
    /// 0 where the exception has none.
    pub error_code: u64,
    pub rip: u64,
    /// Bits 0-1: 0 guest kernel, 3 guest user. Bits 32-39: events were masked.
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Frame {
    /// Whether guest user mode was interrupted.
    pub const fn is_user(&self) -> bool {
        self.cs & 3 == 3
    }

    /// Whether events were masked.
    pub const fn was_masked(&self) -> bool {
        self.cs >> 32 & 0xff != 0
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "vector {:#x} error {:#x} cs {:#x} rflags {:#x} ss {:#x}",
            self.vector, self.error_code, self.cs, self.rflags, self.ss
        )?;
        writeln!(f, "rip {:016x} rsp {:016x} rbp {:016x}", self.rip, self.rsp, self.rbp)?;
        writeln!(
            f,
            "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
            self.rax, self.rbx, self.rcx, self.rdx
        )?;
        writeln!(
            f,
            "rsi {:016x} rdi {:016x} r8  {:016x} r9  {:016x}",
            self.rsi, self.rdi, self.r8, self.r9
        )?;
        writeln!(
            f,
            "r10 {:016x} r11 {:016x} r12 {:016x} r13 {:016x}",
            self.r10, self.r11, self.r12, self.r13
        )?;
        writeln!(f, "r14 {:016x} r15 {:016x}", self.r14, self.r15)
    }
}

/// Sees every entry first; `true` means "dealt with, return to the frame".
pub type Hook = fn(&mut Frame) -> bool;

static HOOK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Installs a hook before the default behaviour, or takes it away.
///
/// # Safety
/// The hook runs in the middle of any code, must take no lock that code holds, and
/// what it makes of the frame must be sound to continue with.
pub unsafe fn set_hook(hook: Option<Hook>) {
    let raw = hook.map_or(core::ptr::null_mut(), |h| h as *mut ());
    HOOK.store(raw, Ordering::Release);
}

#[inline(always)] // As for `dispatch`.
fn hook() -> Option<Hook> {
    let raw = HOOK.load(Ordering::Acquire);
    // SAFETY: only `set_hook` stores here, null or a `Hook`.
    (!raw.is_null()).then(|| unsafe { core::mem::transmute::<*mut (), Hook>(raw) })
}

/// Called by the stub with the frame it built on the stack. On the way to the hook it
/// runs nothing outside of its section, so that a breakpoint anywhere else can be dealt
/// with.
#[cfg_attr(target_os = "none", unsafe(link_section = ".text.trap.dispatch"))]
extern "C" fn dispatch(frame: &mut Frame) {
    if let Some(hook) = hook()
        && hook(frame)
    {
        return;
    }
    if frame.vector == EVENT {
        frame.rflags &= !RFLAGS_IF;
        return;
    }
    let cr2 = crate::event::fault_address();
    crate::console::emergency(format_args!("unexpected trap, cr2 {cr2:016x}\n{frame}"));
    hypercall::shutdown(bulkhead_abi::sched::SHUTDOWN_CRASH)
}

/// Tells the core where to enter this domain.
pub(crate) fn init() {
    install_traps();
    for (kind, vector) in [
        (CALLBACKTYPE_EVENT, EVENT),
        (CALLBACKTYPE_FAILSAFE, FAILSAFE),
        (CALLBACKTYPE_SYSCALL, SYSCALL),
    ] {
        hypercall::register_callback(kind, callback_address(vector))
            .expect("every PV interface has these callbacks");
    }
}

/// Installs the trap table: all exceptions, software interrupts from user mode for
/// breakpoint and overflow only.
pub fn install_traps() {
    let mut table = [TrapInfo::default(); VECTORS + 1];
    for (vector, entry) in table[..VECTORS].iter_mut().enumerate() {
        *entry = TrapInfo {
            vector: vector as u8,
            flags: if matches!(vector, 3 | 4) { 3 } else { 0 },
            cs: FLAT_RING3_CS64,
            address: trap_address(vector),
            ..Default::default()
        };
    }
    // SAFETY: the table is terminated by its zero entry and only read.
    unsafe { hypercall::call(SET_TRAP_TABLE, [table.as_ptr() as u64, 0, 0, 0, 0]) }
        .expect("a trap table of flat selectors is valid");
}

/// Linear address of the stub for exception `vector` (0..32).
pub fn trap_address(vector: usize) -> u64 {
    assert!(vector < VECTORS, "no stub for vector {vector}");
    stubs::start() + (vector * stubs::STRIDE) as u64
}

/// Linear address of the stub for [`EVENT`], [`SYSCALL`] or [`FAILSAFE`].
pub fn callback_address(vector: u64) -> u64 {
    let index = VECTORS as u64 + (vector - EVENT);
    assert!(vector <= FAILSAFE, "no stub for vector {vector:#x}");
    stubs::start() + index * stubs::STRIDE as u64
}

#[cfg(target_os = "none")]
mod stubs {
    /// Bytes between stubs.
    pub const STRIDE: usize = 32;

    pub fn start() -> u64 {
        unsafe extern "C" {
            static __trap_stubs: u8;
        }
        (&raw const __trap_stubs) as u64
    }

    // On entry the stack holds rcx, r11, [error], rip, cs, rflags, rsp, ss. A stub
    // drops the first two (restoring the registers), makes the error word exist, and
    // pushes rcx, r11, rax above it: the tail of `Frame`, in the order that the iret
    // hypercall takes. The failsafe frame has four selectors more, which it drops.
    core::arch::global_asm!(
        r#"
        .macro trap_tail vector:req
            push rcx
            push r11
            push rax
            push \vector
            jmp __trap_common
        .endm

        .section .text.trap, "ax"
        .global __trap_stubs
        .balign 32
        __trap_stubs:
        .set vector, 0
        .rept 32
            .balign 32
            pop rcx
            pop r11
            .if (({with_error} >> vector) & 1) == 0
            push 0
            .endif
            trap_tail vector
            .set vector, vector + 1
        .endr
        .rept 2
            .balign 32
            pop rcx
            pop r11
            push 0
            trap_tail 0x100+vector-32
            .set vector, vector + 1
        .endr
            .balign 32
            pop rcx
            pop r11
            lea rsp, [rsp + 32]
            push 0
            trap_tail 0x102

        __trap_common:
            push rdi
            push rsi
            push rdx
            push r8
            push r9
            push r10
            push rbx
            push rbp
            push r12
            push r13
            push r14
            push r15
            cld
            mov rdi, rsp
            call {dispatch}
            pop r15
            pop r14
            pop r13
            pop r12
            pop rbp
            pop rbx
            pop r10
            pop r9
            pop r8
            pop rdx
            pop rsi
            pop rdi
            add rsp, 8
            mov qword ptr [rsp + 24], 0
            mov eax, 23
            syscall
            ud2
        .text
        "#,
        with_error = const super::WITH_ERROR,
        dispatch = sym super::dispatch,
    );
}

#[cfg(not(target_os = "none"))]
mod stubs {
    pub const STRIDE: usize = 32;

    pub fn start() -> u64 {
        0
    }
}
