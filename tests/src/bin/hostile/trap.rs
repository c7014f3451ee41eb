//! Touching what must not be touched, and living on: a fault inside a probe resumes
//! after it with the vector in hand.

use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use domain_rt::trap::{Frame, set_hook};

static RESUME: AtomicU64 = AtomicU64::new(0);
static VECTOR: AtomicU64 = AtomicU64::new(NONE);
const NONE: u64 = u64::MAX;

/// Installs the hook that ends a probe.
pub fn install() {
    // SAFETY: the hook acts only while a probe armed `RESUME`, whose code expects to
    // go on there with any register but those it declares unchanged.
    unsafe { set_hook(Some(hook)) }
}

fn hook(frame: &mut Frame) -> bool {
    if frame.vector >= 32 {
        return false;
    }
    let resume = RESUME.swap(0, Relaxed);
    if resume == 0 {
        return false;
    }
    VECTOR.store(frame.vector, Relaxed);
    frame.rip = resume;
    true
}

fn outcome(value: u64) -> Result<u64, u64> {
    RESUME.store(0, Relaxed);
    match VECTOR.swap(NONE, Relaxed) {
        NONE => Ok(value),
        vector => Err(vector),
    }
}

/// Runs instructions that may fault; `Err` holds the vector. `$v` is loaded into RAX
/// before and given back from it after.
macro_rules! probe {
    ($value:expr, $($insn:literal),+ $(, in($reg:tt) $in:expr)* $(,)?) => {{
        let mut rax: u64 = $value;
        // SAFETY: what is probed is refused or harmless to this program; RSP and RBX are
        // restored after a fault, and everything else the instructions touch is declared.
        unsafe {
            asm!(
                "push rbx",
                "mov r15, rsp",
                "lea r14, [rip + 2f]",
                "mov [r13], r14",
                $($insn,)+
                "2:",
                "mov rsp, r15",
                "pop rbx",
                inout("rax") rax,
                in("r13") RESUME.as_ptr(),
                $(in($reg) $in,)*
                lateout("rcx") _, lateout("rdx") _, out("r14") _, out("r15") _,
            );
        }
        outcome(rax)
    }};
}

/// Reads eight bytes.
pub fn read(at: u64) -> Result<u64, u64> {
    probe!(0, "mov rax, [rdi]", in("rdi") at)
}

/// Writes eight bytes.
pub fn write(at: u64, value: u64) -> Result<u64, u64> {
    probe!(value, "mov [rdi], rax", in("rdi") at)
}

/// Exchanges eight bytes, as a kernel does with a live page-table entry.
pub fn exchange(at: u64, value: u64) -> Result<u64, u64> {
    probe!(value, "xchg [rdi], rax", in("rdi") at)
}

/// Calls an address.
pub fn execute(at: u64) -> Result<u64, u64> {
    probe!(0, "call rdi", in("rdi") at)
}

/// One privileged instruction, by name.
pub fn privileged(name: &str, argument: u64) -> Result<u64, u64> {
    match name {
        "cli" => probe!(0, "cli"),
        "hlt" => probe!(0, "cli", "hlt"),
        "lgdt" => probe!(0, "sub rsp, 16", "lgdt [rsp]"),
        "lidt" => probe!(0, "sub rsp, 16", "lidt [rsp]"),
        "lldt" => probe!(argument, "lldt ax"),
        "ltr" => probe!(argument, "ltr ax"),
        "invlpg" => probe!(0, "invlpg [rdi]", in("rdi") argument),
        "mov cr0" => probe!(argument, "mov cr0, rax"),
        "mov cr3" => probe!(argument, "mov cr3, rax"),
        "mov cr4" => probe!(argument, "mov cr4, rax"),
        "mov dr7" => probe!(argument, "mov dr7, rax"),
        "wrmsr" => probe!(0xdead_0000, "xor edx, edx", "wrmsr", in("rcx") argument),
        "rdmsr" => probe!(0, "rdmsr", in("rcx") argument),
        "swapgs" => probe!(0, "swapgs"),
        "sysretq" => probe!(0, "lea rcx, [rip + 2f]", "sysretq"),
        "out" => probe!(0xff, "out dx, al", in("rdx") argument),
        "in" => probe!(0, "in eax, dx", in("rdx") argument),
        "vmrun" => probe!(argument, "vmrun"),
        _ => Ok(0),
    }
}
