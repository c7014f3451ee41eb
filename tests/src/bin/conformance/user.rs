//! Guest user mode: its own L4, the ways out of it and the `iret` into it.

use crate::catch::{EVENTS, MASKED_INSIDE};
use crate::events::{bind_ipi, clear, close, send, set_mask};
use crate::hv::{HOLE, said, shared_info};
use crate::tables::{ACCESSED, DIRTY, NO_EXECUTE, PRESENT, Scratch, TABLE, USER, WRITE, mmuext};
use crate::tap::check;
use alloc::format;
use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use domain_rt::abi::hypercall::{SET_SEGMENT_BASE, SET_TRAP_TABLE, STACK_SWITCH};
use domain_rt::abi::mmu::{MMUEXT_NEW_USER_BASEPTR, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE};
use domain_rt::abi::trap::{
    FLAT_RING3_CS64, FLAT_RING3_SS64, IretContext, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, TrapInfo,
    VGCF_IN_SYSCALL,
};
use domain_rt::mem;
use domain_rt::trap::{EVENT, Frame, SYSCALL, install_traps, trap_address};
use spin::Mutex;

/// Where user mode finds its pages.
const CODE: u64 = 0x40_0000;
const STACK: u64 = 0x40_1000;
const CONSTANT: u64 = 0x40_2000;
const NOTHING: u64 = 0x40_3000;

static SAVED_RSP: AtomicU64 = AtomicU64::new(0);
static LEFT: Mutex<Option<(Frame, u64)>> = Mutex::new(None);

// `enter(context)` saves the kernel's registers and enters what the context names;
// the hook comes back to `__user_back`.
core::arch::global_asm!(
    r#"
    .global __user_enter
    __user_enter:
        push rbx
        push rbp
        push r12
        push r13
        push r14
        push r15
        mov [rip + {saved}], rsp
        mov rsp, rdi
        mov eax, 23
        syscall
        ud2
    .global __user_back
    __user_back:
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbp
        pop rbx
        ret
    "#,
    saved = sym SAVED_RSP,
);

unsafe extern "C" {
    fn __user_enter(context: *const IretContext);
    fn __user_back();
}

/// Called by the hook when user mode was left: back to the kernel.
pub fn left(frame: &mut Frame) -> bool {
    *LEFT.lock() = Some((*frame, shared_info().read_u64(16)));
    frame.rip = __user_back as *const () as u64;
    frame.rsp = SAVED_RSP.load(Relaxed);
    frame.cs = u64::from(FLAT_RING3_CS64 & !3);
    frame.ss = u64::from(FLAT_RING3_SS64);
    frame.rflags &= !(1 << 9 | 1 << 8);
    true
}

/// The user address space, and the kernel stack that its entries use.
struct Space {
    l4: Scratch,
    _lower: [Scratch; 3],
    code: Scratch,
    stack: Scratch,
    _constant: Scratch,
    _kernel_stack: mem::Pages,
}

impl Space {
    fn new() -> Self {
        let (code, stack, constant) = (Scratch::new(), Scratch::new(), Scratch::new());
        let common = PRESENT | USER | ACCESSED;
        let entries = [
            (0, code.maddr() | common),
            (1, stack.maddr() | common | WRITE | DIRTY | NO_EXECUTE),
            (2, constant.maddr() | common | NO_EXECUTE),
        ];
        let l1 = Scratch::new().into_table(&entries);
        let l2 = Scratch::new().into_table(&[(2, l1.maddr() | TABLE)]);
        let l3 = Scratch::new().into_table(&[(0, l2.maddr() | TABLE)]);
        let l4 = Scratch::new().into_table(&[(0, l3.maddr() | TABLE)]);
        let kernel_stack = mem::alloc_pages(4).expect("four pages");
        let top = kernel_stack.va() + kernel_stack.bytes() as u64;
        check("user: pins the L4", mmuext(MMUEXT_PIN_L4_TABLE, l4.mfn().get(), 0));
        check("user: makes it the user table", mmuext(MMUEXT_NEW_USER_BASEPTR, l4.mfn().get(), 0));
        check("stack_switch", said(STACK_SWITCH, &[FLAT_RING3_SS64.into(), top]));
        Self {
            l4,
            _lower: [l3, l2, l1],
            code,
            stack,
            _constant: constant,
            _kernel_stack: kernel_stack,
        }
    }

    /// Runs `program` in user mode until it leaves; frame and CR2 of how.
    fn run(&self, program: &[u8]) -> (Frame, u64) {
        self.run_with(program, IretContext::default())
    }

    fn run_with(&self, program: &[u8], with: IretContext) -> (Frame, u64) {
        self.code.shared().fill(0, 4096, 0xcc);
        self.code.shared().copy_in(0, program);
        let context = IretContext {
            rip: CODE,
            cs: FLAT_RING3_CS64.into(),
            ss: FLAT_RING3_SS64.into(),
            rsp: STACK + 0x800,
            // IF clear: events stay masked, unless the case says otherwise.
            rflags: with.rflags | 2,
            ..with
        };
        // SAFETY: the context lives on this stack, which `__user_back` restores.
        unsafe { __user_enter(&raw const context) };
        LEFT.lock().take().expect("user mode was left through the hook")
    }
}

/// How user mode was left, in words.
fn how((frame, cr2): (Frame, u64)) -> String {
    let at = frame.rip.wrapping_sub(CODE);
    let what = match frame.vector {
        SYSCALL => "syscall".into(),
        EVENT => "event".into(),
        14 => format!("page fault error {:#x} cr2 {cr2:#x}", frame.error_code),
        v => format!("trap {v} error {:#x}", frame.error_code),
    };
    format!("{what} at +{at:#x} user {}", frame.is_user())
}

pub fn run() {
    let space = Space::new();
    syscalls(&space);
    faults(&space);
    software_interrupts(&space);
    segments(&space);
    events(&space);
    returns(&space);
    check("user: takes the user table away", mmuext(MMUEXT_NEW_USER_BASEPTR, 0, 0));
    check("user: unpins the L4", mmuext(MMUEXT_UNPIN_TABLE, space.l4.mfn().get(), 0));
}

const SYSCALL_INSN: &[u8] = &[0x0f, 0x05];

fn syscalls(space: &Space) {
    let left = space.run(SYSCALL_INSN);
    check("user: a syscall enters the callback", how(left));
    let (frame, _) = left;
    let found = format!(
        "cs {:#x} ss {:#x} rsp {:#x} masked {}",
        frame.cs & 0xffff,
        frame.ss,
        frame.rsp,
        frame.was_masked()
    );
    check("user: selectors and stack of a syscall", found);
    let returns = (frame.rcx == frame.rip, frame.r11 ^ frame.rflags);
    check("user: rcx and r11 of a syscall are its return, but for IF", format!("{returns:?}"));
    // mov eax, 17 (xen_version); xor edi, edi; syscall
    let (frame, _) = space.run(&[0xb8, 17, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]);
    check(
        "user: a hypercall number is an ordinary syscall",
        format!("rax {} {}", frame.rax, how((frame, 0))),
    );
    let with = IretContext { rax: 0x11, rcx: 0x22, r11: 0x33, ..Default::default() };
    // int3
    let (frame, _) = space.run_with(&[0xcc], with);
    check(
        "iret: gives rax, rcx and r11",
        format!("{:#x} {:#x} {:#x}", frame.rax, frame.rcx, frame.r11),
    );
    let with = IretContext { flags: VGCF_IN_SYSCALL, ..Default::default() };
    let (frame, _) = space.run_with(&[0xcc], with);
    check("iret: as return of a syscall", how((frame, 0)));
}

fn faults(space: &Space) {
    for (name, program) in [
        // ud2
        ("an invalid instruction", &[0x0f, 0x0b][..]),
        // int3
        ("a breakpoint", &[0xcc]),
        // hlt
        ("a privileged instruction", &[0xf4]),
        // xor eax, eax; mov cr3, rax
        ("a write to cr3", &[0x31, 0xc0, 0x0f, 0x22, 0xd8]),
        // in al, 0x21
        ("port input", &[0xe4, 0x21]),
        // out 0x80, al
        ("port output", &[0xe6, 0x80]),
        // rdmsr
        ("rdmsr", &[0x0f, 0x32]),
        // cli
        ("cli", &[0xfa]),
        // xor ecx, ecx; div ecx
        ("a division by zero", &[0x31, 0xc9, 0xf7, 0xf1]),
        // cpuid; int3
        ("cpuid goes on", &[0x0f, 0xa2, 0xcc]),
        // ud2 "xen" cpuid
        ("forced emulation", &[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2, 0xcc]),
    ] {
        check(&format!("user: {name}"), how(space.run(program)));
    }
    for (name, address) in
        [("reads nothing", NOTHING), ("reads a page of its own, then stops", CONSTANT)]
    {
        check(&format!("user: {name}"), how(space.run(&access(0x8b, address))));
    }
    for (name, address) in [
        ("writes nothing", NOTHING),
        ("writes a read-only page", CONSTANT),
        ("writes its stack, then stops", STACK),
        ("writes its code", CODE),
    ] {
        check(&format!("user: {name}"), how(space.run(&access(0x89, address))));
    }
    let (frame, cr2) = space.run(&access(0x8b, HOLE));
    let found = (frame.vector, frame.error_code & !1, cr2 == HOLE);
    check("user: reads the hole, present or not", format!("{found:?}"));
    let (frame, cr2) = space.run(&access(0x8b, space.stack.va()));
    check(
        "user: reads a page of the kernel",
        format!(
            "trap {} error {:#x} right {}",
            frame.vector,
            frame.error_code,
            cr2 == space.stack.va()
        ),
    );
    // mov eax, STACK; jmp rax
    let mut jump = [0xb8, 0, 0, 0, 0, 0xff, 0xe0];
    jump[1..5].copy_from_slice(&(STACK as u32).to_le_bytes());
    check("user: executes a no-execute page", how(space.run(&jump)));
}

/// movabs rdx, address; mov eax, [rdx] or mov [rdx], eax; int3
fn access(opcode: u8, address: u64) -> [u8; 13] {
    let mut program = [0x48, 0xba, 0, 0, 0, 0, 0, 0, 0, 0, opcode, 0x02, 0xcc];
    program[2..10].copy_from_slice(&address.to_le_bytes());
    program
}

fn software_interrupts(space: &Space) {
    let entry = |vector, flags| TrapInfo {
        vector,
        flags,
        cs: FLAT_RING3_CS64,
        address: trap_address(9),
        ..Default::default()
    };
    let table = [entry(0x80, 3), entry(0x81, 0), TrapInfo::default()];
    said(SET_TRAP_TABLE, &[table.as_ptr() as u64]);
    let left = space.run(&[0xcd, 0x80]);
    check("user: int 0x80 with an entry of privilege 3", how(left));
    install_traps();
}

fn segments(space: &Space) {
    said(SET_SEGMENT_BASE, &[SEGBASE_GS_USER, CONSTANT]);
    said(SET_SEGMENT_BASE, &[SEGBASE_GS_KERNEL, space.stack.va()]);
    space._constant.write(1, 0xc0ffee);
    space.stack.write(1, 0xbad);
    // mov rax, gs:[8]; int3
    let (frame, _) = space.run(&[0x65, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0, 0xcc]);
    check("user: gs is its own", format!("{:#x}", frame.rax));
    let value: u64;
    // SAFETY: the kernel's base is a page of ours.
    unsafe { core::arch::asm!("mov {v}, gs:[8]", v = out(reg) value) };
    check("user: the kernel has its gs again", format!("{value:#x}"));
    said(SET_SEGMENT_BASE, &[SEGBASE_GS_KERNEL, 0]);
    said(SET_SEGMENT_BASE, &[SEGBASE_GS_USER, 0]);
}

fn events(space: &Space) {
    let port = bind_ipi(0).expect("a free port");
    clear(port);
    set_mask(port, false);
    send(port);
    EVENTS.store(0, Relaxed);
    let with = IretContext { rflags: 1 << 9, ..Default::default() };
    let left = space.run_with(&[0xcc], with);
    let inside = MASKED_INSIDE.load(Relaxed);
    let mask = shared_info().swap_u8(1, 1);
    check(
        "iret: a pending event comes before the first instruction",
        format!(
            "{}, upcalls {}, masked inside {inside}, after {mask}",
            how(left),
            EVENTS.load(Relaxed)
        ),
    );
    let flags = (left.0.was_masked(), left.0.rflags >> 9 & 1);
    check("iret: the flags it set", format!("{flags:?}"));
    clear(port);
    send(port);
    EVENTS.store(0, Relaxed);
    let left = space.run(&[0xcc]);
    check(
        "iret: a masked event does not come",
        format!("{}, upcalls {}", how(left), EVENTS.load(Relaxed)),
    );
    clear(port);
    close(port);
}

fn returns(space: &Space) {
    let with = IretContext { rflags: 3 << 12 | 1, ..Default::default() };
    let (frame, _) = space.run_with(&[0xcc], with);
    check(
        "iret: IOPL is not given, other flags are",
        format!("{} {}", frame.rflags >> 12 & 3, frame.rflags & 1),
    );
    // pushfq; pop rax; int3
    let (frame, _) = space.run(&[0x9c, 0x58, 0xcc]);
    check("user: sees interrupts on", frame.rax >> 9 & 1);
    let with = IretContext { rflags: 1 << 8, ..Default::default() };
    // nop; nop
    let left = space.run_with(&[0x90, 0x90], with);
    check("user: single step", how(left));
    // A stack pointer that is not aligned: the frame is on the kernel's stack anyway.
    // sub rsp, 3; int3
    let (frame, _) = space.run(&[0x48, 0x83, 0xec, 0x03, 0xcc]);
    check("user: a stack pointer that is not aligned is kept", format!("{:#x}", frame.rsp));
}
