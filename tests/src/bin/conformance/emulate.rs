//! Privileged instructions that a guest kernel may use, and those it may not.

use crate::catch::{Outcome, attempt};
use crate::hv::{HOLE, said};
use crate::tables::{FRAME, Scratch, mmuext, root};
use crate::tap::check;
use alloc::format;
use alloc::string::String;
use domain_rt::abi::hypercall::{FPU_TASKSWITCH, GET_DEBUGREG, SET_DEBUGREG, VM_ASSIST};

const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const PAT: u32 = 0x277;

pub fn run() {
    cpuid();
    msrs();
    control_registers();
    xcr();
    others();
    debug_registers();
    assists();
}

/// CPUID by the forced-emulation prefix.
fn forced(leaf: u32, sub: u32) -> (Outcome, [u32; 4]) {
    let (mut a, mut b, mut c, mut d) = (leaf, 0u32, sub, 0u32);
    let outcome = attempt!(
        ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e; push rbx; cpuid; mov {b:e}, ebx; pop rbx",
        b = out(reg) b, inout("eax") a, inout("ecx") c, out("edx") d
    );
    (outcome, [a, b, c, d])
}

/// The prefix must stand right before CPUID: RBX is saved around both.
fn cpuid_leaf(leaf: u32, sub: u32) -> (Outcome, [u32; 4]) {
    let (mut a, mut b, mut c, mut d) = (leaf, 0u64, sub, 0u32);
    let outcome = attempt!(
        "xchg {b}, rbx; .byte 0x0f, 0x0b, 0x78, 0x65, 0x6e; cpuid; xchg {b}, rbx",
        b = inout(reg) b, inout("eax") a, inout("ecx") c, out("edx") d
    );
    (outcome, [a, b as u32, c, d])
}

fn cpuid() {
    let (outcome, _) = forced(0, 0);
    check("forced emulation: the prefix before another instruction faults", outcome);
    let (outcome, [max, b, c, d]) = cpuid_leaf(0x4000_0000, 0);
    let text: alloc::vec::Vec<u8> = [b, c, d].iter().flat_map(|r| r.to_le_bytes()).collect();
    let text = String::from_utf8_lossy(&text).into_owned();
    check("cpuid 0x40000000: the signature", format!("{outcome} {text} {max:#x}"));
    let (outcome, [a, ..]) = cpuid_leaf(0x4000_0001, 0);
    check("cpuid 0x40000001: the version", format!("{outcome} {}.{}", a >> 16, a & 0xffff));
    let (outcome, [a, b, c, _]) = cpuid_leaf(0x4000_0002, 0);
    check(
        "cpuid 0x40000002: hypercall pages and features",
        format!("{outcome} {a} {b:#x} {:#x}", c & 1),
    );
    let (_, [_, _, c, d]) = cpuid_leaf(1, 0);
    // MONITOR, VMX, SMX, EST, TM2, PDCM, PCID, DCA, x2APIC, TSC deadline.
    let never = 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 15 | 1 << 17 | 1 << 18 | 1 << 24;
    check("cpuid 1: what a PV guest must not see in ecx", format!("{:#x}", c & never));
    check(
        "cpuid 1: runs on a hypervisor, CX16, OSXSAVE",
        format!("{:#x}", c & (1 << 31 | 1 << 13 | 1 << 27)),
    );
    // PSE, PGE, VME, PSE36, DS, TM, PBE.
    let never = 1 << 3 | 1 << 13 | 1 << 1 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 31;
    check("cpuid 1: what a PV guest must not see in edx", format!("{:#x}", d & never));
    // FPU, TSC, MSR, PAE, CX8, CMOV, PAT, CLFLUSH, FXSR, SSE, SSE2.
    let always = 1
        | 1 << 4
        | 1 << 5
        | 1 << 6
        | 1 << 8
        | 1 << 15
        | 1 << 16
        | 1 << 19
        | 1 << 24
        | 1 << 25
        | 1 << 26;
    check("cpuid 1: what every guest needs is there", d & always == always);
    let (_, [_, b, c, _]) = cpuid_leaf(7, 0);
    // SMEP, INVPCID, MPX, SMAP, PT.
    check(
        "cpuid 7: what a PV guest must not see in ebx",
        format!("{:#x}", b & (1 << 7 | 1 << 10 | 1 << 14 | 1 << 20 | 1 << 25)),
    );
    // PKU, OSPKE, CET shadow stacks, LA57.
    check(
        "cpuid 7: what a PV guest must not see in ecx",
        format!("{:#x}", c & (1 << 3 | 1 << 4 | 1 << 7 | 1 << 16)),
    );
    let (_, [_, _, c, d]) = cpuid_leaf(0x8000_0001, 0);
    check(
        "cpuid 0x80000001: syscall, no-execute, long mode",
        format!("{:#x}", d & (1 << 11 | 1 << 20 | 1 << 29)),
    );
    // SVM, EXTAPIC, SKINIT.
    check(
        "cpuid 0x80000001: what a PV guest must not see in ecx",
        format!("{:#x}", c & (1 << 2 | 1 << 3 | 1 << 12)),
    );
    let (outcome, _) = cpuid_leaf(0, 0);
    check("cpuid: forced emulation works for leaf 0", outcome);
}

fn rdmsr(msr: u32) -> (Outcome, u64) {
    let (mut low, mut high) = (0u32, 0u32);
    let outcome = attempt!("rdmsr", in("ecx") msr, inout("eax") low, inout("edx") high);
    (outcome, u64::from(high) << 32 | u64::from(low))
}

fn wrmsr(msr: u32, value: u64) -> Outcome {
    attempt!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

fn msrs() {
    let (outcome, value) = rdmsr(EFER);
    check("rdmsr efer: long mode, no-execute, syscall", format!("{outcome} {:#x}", value & 0xd01));
    check("wrmsr efer: the same value", wrmsr(EFER, value));
    let (outcome, value) = rdmsr(PAT);
    check("rdmsr pat", format!("{outcome} {value:#x}"));
    check("wrmsr pat: another value faults", wrmsr(PAT, 0x0606_0606_0606_0606));
    let page = Scratch::new();
    for (name, msr) in
        [("fs base", FS_BASE), ("gs base", GS_BASE), ("kernel gs base", KERNEL_GS_BASE)]
    {
        let outcome = wrmsr(msr, page.va());
        let (read, value) = rdmsr(msr);
        check(
            &format!("wrmsr {name}: can be read back"),
            format!("{outcome}, {read}, {}", value == page.va()),
        );
        check(
            &format!("wrmsr {name}: an address that is not canonical faults"),
            wrmsr(msr, 1 << 63),
        );
        let _ = wrmsr(msr, 0);
    }
    let (outcome, _) = rdmsr(0xdead);
    check("rdmsr: an unknown register faults", outcome);
    check("wrmsr: an unknown register faults", wrmsr(0xdead, 0));
    let (outcome, tsc) = rdmsr(0x10);
    check("rdmsr: the time stamp counter", format!("{outcome} {}", tsc > 0));
}

fn read_cr0() -> (Outcome, u64) {
    let mut value = 0u64;
    let outcome = attempt!("mov {v}, cr0", v = inout(reg) value);
    (outcome, value)
}

fn control_registers() {
    let (outcome, cr0) = read_cr0();
    check("cr0: protection and paging on, TS off", format!("{outcome} {:#x}", cr0 & 0x8000_0009));
    said(FPU_TASKSWITCH, &[1]);
    check("cr0: shows the virtual TS", format!("{:#x}", read_cr0().1 & 8));
    check("clts", attempt!("clts"));
    check("cr0: TS is gone after clts", format!("{:#x}", read_cr0().1 & 8));
    check("cr0: TS may be written", attempt!("mov cr0, {v}", v = in(reg) cr0 | 8));
    check("cr0: it is set then", format!("{:#x}", read_cr0().1 & 8));
    let _ = attempt!("mov cr0, {v}", v = in(reg) cr0);
    check("cr0: another bit faults", attempt!("mov cr0, {v}", v = in(reg) cr0 ^ 1 << 18));
    let mut value = 0u64;
    let outcome = attempt!("mov {v}, cr2", v = inout(reg) value);
    check("cr2: can be read", outcome);
    let outcome = attempt!("mov {v}, cr3", v = inout(reg) value);
    check("cr3: is the L4", format!("{outcome} {}", value & FRAME == root().maddr().get()));
    check(
        "cr3: the same value may be written",
        attempt!("mov cr3, {v}", v = in(reg) root().maddr().get()),
    );
    let outcome = attempt!("mov {v}, cr4", v = inout(reg) value);
    // PAE, OSFXSR, OSXMMEXCPT.
    check(
        "cr4: shows what the guest relies on",
        format!("{outcome} {:#x}", value & (1 << 5 | 1 << 9 | 1 << 10)),
    );
    check("cr4: the same value may be written", attempt!("mov cr4, {v}", v = in(reg) value));
    check("cr8: faults", attempt!("mov {v}, cr8", v = out(reg) _));
    let _ = mmuext(domain_rt::abi::mmu::MMUEXT_TLB_FLUSH_LOCAL, 0, 0);
}

fn xcr() {
    let mut cr4 = 0u64;
    let _ = attempt!("mov {v}, cr4", v = inout(reg) cr4);
    let set = attempt!("mov cr4, {v}", v = in(reg) cr4 | 1 << 18);
    let _ = attempt!("mov {v}, cr4", v = inout(reg) cr4);
    check("cr4: OSXSAVE can be set", format!("{set} {:#x}", cr4 & 1 << 18));
    let (mut low, mut high) = (0u32, 0u32);
    let outcome = attempt!("xgetbv", in("ecx") 0, inout("eax") low, inout("edx") high);
    check("xgetbv: x87 and SSE are on", format!("{outcome} {:#x}", low & 1));
    check(
        "xsetbv: the same value, with OSXSAVE",
        attempt!("xsetbv", in("ecx") 0, in("eax") low, in("edx") high),
    );
    check("xsetbv: x87 off faults", attempt!("xsetbv", in("ecx") 0, in("eax") 0, in("edx") 0));
    check(
        "xsetbv: an unknown register faults",
        attempt!("xsetbv", in("ecx") 5, in("eax") low, in("edx") high),
    );
}

fn others() {
    check("rdtsc", attempt!("rdtsc", out("rax") _, out("rdx") _));
    check("rdpmc faults", attempt!("rdpmc", in("ecx") 0, out("rax") _, out("rdx") _));
    check("wbinvd", attempt!("wbinvd"));
    check("invd", attempt!("invd"));
    check("invlpg", attempt!("invlpg [{a}]", a = in(reg) HOLE));
    check("lgdt faults", attempt!("lgdt [{a}]", a = in(reg) Scratch::new().va()));
    check("lidt faults", attempt!("lidt [{a}]", a = in(reg) Scratch::new().va()));
    check("ltr faults", attempt!("ltr {s:x}", s = in(reg) 0u32));
    check("lldt faults", attempt!("lldt {s:x}", s = in(reg) 0u32));
    check("swapgs faults", attempt!("swapgs"));
    check("sysretq faults", attempt!("sysretq", out("rcx") _));
    check("lmsw faults", attempt!("lmsw {s:x}", s = in(reg) 0u32));
    check("cli", attempt!("cli"));
    check("sti", attempt!("sti"));
    check(
        "popf leaves the interrupt flag alone",
        attempt!("pushfq; and qword ptr [rsp], ~0x200; popfq"),
    );
    let flags: u64;
    // SAFETY: reads the flags.
    unsafe { core::arch::asm!("pushfq; pop {f}", f = out(reg) flags) };
    check("flags: interrupts are on, IOPL 0", format!("{} {}", flags >> 9 & 1, flags >> 12 & 3));
    check(
        "native iret faults without its stack",
        attempt!("push 0; push 0; push 0; push 0; push 0; iretq; 3: add rsp, 40").0.is_some(),
    );
    check("vmmcall faults", attempt!("vmmcall"));
    check("monitor faults", attempt!("monitor", in("rax") 0, in("ecx") 0, in("edx") 0));
}

fn debug_registers() {
    let set = |reg: u64, value: u64| said(SET_DEBUGREG, &[reg, value]);
    let get = |reg: u64| said(GET_DEBUGREG, &[reg]);
    let word = 0u64;
    let at = (&raw const word) as u64;
    check("set_debugreg: an address", set(0, 0x12_3000));
    check("get_debugreg: reads it back", get(0));
    check("set_debugreg: refuses an address in the hole", set(1, HOLE));
    check("set_debugreg: refuses an address that is not canonical", set(1, 1 << 63));
    check("set_debugreg: refuses register 8", set(8, 0));
    check("get_debugreg: refuses register 8", get(8));
    check("set_debugreg: refuses register 9", set(9, 0));
    check("set_debugreg: takes an address of the kernel", set(0, at));
    check("set_debugreg: arms a write breakpoint", set(7, 0x000d_0401));
    let outcome = attempt!("mov qword ptr [{a}], 5; nop", a = in(reg) at);
    check("breakpoint: traps behind the write", outcome);
    let hit = crate::hv::hv(GET_DEBUGREG, &[6]) & 0xf;
    check("breakpoint: register 6 says which", hit);
    check("set_debugreg: disarms", set(7, 0x400));
    check("set_debugreg: clears register 6", set(6, 0xffff_0ff0));
    let outcome = attempt!("mov qword ptr [{a}], 6; nop", a = in(reg) at);
    check(
        "breakpoint: none when disarmed",
        format!("{outcome} {}", core::hint::black_box(word) != 7),
    );
    check("mov from a debug register", attempt!("mov {v}, dr0", v = out(reg) _));
    check("mov to a debug register", attempt!("mov dr0, {v}", v = in(reg) 0u64));
}

fn assists() {
    for (name, cmd, kind) in [
        ("enables type 0", 0, 0),
        ("enables type 2", 0, 2),
        ("enables type 3", 0, 3),
        ("enables type 5", 0, 5),
        ("disables type 5", 1, 5),
        ("refuses type 63", 0, 63),
        ("refuses an unknown command", 9, 2),
    ] {
        check(&format!("vm_assist: {name}"), said(VM_ASSIST, &[cmd, kind]));
    }
}
