//! `set_trap_table` and the exceptions of guest-kernel mode.

use crate::catch::{MASKED_INSIDE, Outcome, attempt};
use crate::hv::{HOLE, NON_CANONICAL, UNMAPPED, said, shared_info};
use crate::tables::Scratch;
use crate::tap::check;
use alloc::format;
use core::sync::atomic::Ordering::Relaxed;
use domain_rt::abi::hypercall::{FPU_TASKSWITCH, SET_TRAP_TABLE};
use domain_rt::abi::trap::{FLAT_RING3_CS64, TI_MASK_EVENTS, TrapInfo};
use domain_rt::trap::{install_traps, trap_address};

/// An exception that never comes by itself: its stub serves software interrupts.
const SPARE: usize = 9;

pub fn run() {
    table();
    plain();
    page_faults();
    frames();
    software_interrupts();
    stepping();
    masking();
    lazy_fpu();
}

fn set(entries: &[TrapInfo]) -> alloc::string::String {
    let mut table = alloc::vec::Vec::from(entries);
    table.push(TrapInfo::default());
    said(SET_TRAP_TABLE, &[table.as_ptr() as u64])
}

fn entry(vector: u8, flags: u8, address: u64) -> TrapInfo {
    TrapInfo { vector, flags, cs: FLAT_RING3_CS64, address, ..Default::default() }
}

fn table() {
    check("set_trap_table: takes an empty table", set(&[]));
    check(
        "set_trap_table: refuses an address that is not canonical",
        set(&[entry(200, 0, NON_CANONICAL)]),
    );
    check("set_trap_table: refuses an unmapped table", said(SET_TRAP_TABLE, &[UNMAPPED]));
    check("set_trap_table: refuses a table in the hole", said(SET_TRAP_TABLE, &[HOLE]));
    check(
        "set_trap_table: takes selectors without RPL",
        set(&[TrapInfo { cs: FLAT_RING3_CS64 & !3, ..entry(200, 0, trap_address(SPARE)) }]),
    );
    check("set_trap_table: a null table clears", said(SET_TRAP_TABLE, &[0]));
    install_traps();
    check("set_trap_table: takes all exceptions again", attempt!("ud2"));
}

fn plain() {
    check(
        "trap: division by zero",
        attempt!("div {z}", z = in(reg) 0u64, inout("rax") 1u64 => _, inout("rdx") 0u64 => _),
    );
    check("trap: int3", attempt!("int3"));
    check("trap: int 3 in two bytes", attempt!(".byte 0xcd, 0x03"));
    check("trap: ud2", attempt!("ud2"));
    check("trap: icebp", attempt!(".byte 0xf1"));
    check(
        "trap: read of an address that is not canonical",
        attempt!("mov rax, [{a}]", a = in(reg) NON_CANONICAL, out("rax") _),
    );
    check(
        "trap: load of a selector past the table",
        attempt!("mov fs, {s:x}", s = in(reg) 0xfff8u32),
    );
    check("trap: load of a selector of the core", attempt!("mov fs, {s:x}", s = in(reg) 0xe00bu32));
    check("trap: load of a null selector", attempt!("mov fs, {s:x}", s = in(reg) 0u32));
    check("trap: load of the flat data selector", attempt!("mov fs, {s:x}", s = in(reg) 0xe02bu32));
}

fn cr2_is(outcome: &Outcome, va: u64) -> &'static str {
    match &outcome.0 {
        Some(trap) if trap.cr2 == va => "cr2 right",
        Some(_) => "cr2 wrong",
        None => "no cr2",
    }
}

fn fault(name: &str, outcome: Outcome, va: u64) {
    let cr2 = cr2_is(&outcome, va);
    check(name, format!("{outcome}, {cr2}"));
}

fn page_faults() {
    let page = Scratch::new();
    let va = page.va();
    fault(
        "page fault: read of nothing",
        attempt!("mov rax, [{a}]", a = in(reg) UNMAPPED, out("rax") _),
        UNMAPPED,
    );
    fault(
        "page fault: write of nothing",
        attempt!("mov [{a}], rax", a = in(reg) UNMAPPED + 9),
        UNMAPPED + 9,
    );
    fault("page fault: jump to nothing", attempt!("jmp {a}", a = in(reg) UNMAPPED), UNMAPPED);
    let outcome = attempt!("mov rax, [{a}]", a = in(reg) HOLE, out("rax") _);
    let found = outcome.0.map(|t| (t.frame.vector, t.frame.error_code & !1, t.cr2 == HOLE));
    check("page fault: read of the hole, present or not", format!("{found:?}"));
    fault(
        "page fault: write to the machine-to-phys table",
        attempt!("mov [{a}], rax", a = in(reg) 0xffff_8000_0000_0000u64),
        0xffff_8000_0000_0000,
    );
    page.remap(page.read_only());
    fault(
        "page fault: write to a read-only page",
        attempt!("mov [{a}], rax", a = in(reg) va + 16),
        va + 16,
    );
    check(
        "page fault: read of a read-only page",
        attempt!("mov rax, [{a}]", a = in(reg) va, out("rax") _),
    );
    page.remap(page.data());
    fault("page fault: jump to a no-execute page", attempt!("jmp {a}", a = in(reg) va), va);
}

fn frames() {
    let outcome = attempt!("ud2", inout("rcx") 0x1111u64 => _, inout("r11") 0x2222u64 => _);
    let frame = outcome.0.map(|t| t.frame);
    let words = frame.map(|f| (f.rcx, f.r11));
    check("frame: carries rcx and r11", format!("{:x?}", words));
    let selectors = frame.map(|f| (f.cs & 0xffff, f.ss));
    check("frame: code selector without RPL, stack selector", format!("{selectors:x?}"));
    let masked = frame.map(|f| (f.was_masked(), f.rflags >> 9 & 1, f.rflags >> 12 & 3));
    check("frame: masked events show as IF clear, IOPL as 0", format!("{masked:?}"));
    let mut rcx = 0x1234u64;
    let mut r11 = 0x5678u64;
    let _ = attempt!("ud2", inout("rcx") rcx, inout("r11") r11);
    check("iret: restores rcx and r11", format!("{rcx:x} {r11:x}"));
    let mut before = 0u64;
    let outcome = attempt!("mov {b}, rsp; sub rsp, 40; ud2; 3: add rsp, 40", b = out(reg) before);
    let found = outcome.0.map(|t| (before.wrapping_sub(t.frame.rsp), t.frame_va % 16));
    check("frame: old stack pointer, frame aligned", format!("{found:?}"));
}

/// Vector 0x80 only: for others QEMU reports a wrong error code (n * 16 + 2).
fn software_interrupts() {
    check("int 0x80: without an entry", attempt!("int 0x80"));
    check("set_trap_table: takes an entry for 0x80", set(&[entry(0x80, 3, trap_address(SPARE))]));
    check("int 0x80: with an entry", attempt!("int 0x80"));
}

fn stepping() {
    check(
        "single step: traps behind the next instruction",
        attempt!("pushfq; or qword ptr [rsp], 0x100; popfq; nop; nop"),
    );
}

/// Entries with the mask flag set mask events, others leave the mask alone.
fn masking() {
    for (name, flags) in [
        ("trap entry: leaves the event mask alone", 0),
        ("trap entry: masks events when asked to", TI_MASK_EVENTS),
    ] {
        set(&[entry(6, flags, trap_address(6))]);
        shared_info().swap_u8(0, 0);
        shared_info().write_u8(1, 0);
        let outcome = attempt!("ud2");
        let after = shared_info().swap_u8(1, 1);
        let frame = outcome.0.map(|t| (t.frame.was_masked(), t.frame.rflags >> 9 & 1));
        let inside = MASKED_INSIDE.load(Relaxed);
        check(name, format!("{frame:?}, inside {inside}, after {after}"));
    }
    install_traps();
}

fn lazy_fpu() {
    check("fpu_taskswitch: sets the virtual TS", said(FPU_TASKSWITCH, &[1]));
    check("fpu: the first use traps", attempt!("movaps xmm0, xmm0"));
    check("fpu: the trap has cleared TS", attempt!("movaps xmm0, xmm0"));
    check("fpu_taskswitch: sets it again", said(FPU_TASKSWITCH, &[1]));
    check("fpu_taskswitch: clears it", said(FPU_TASKSWITCH, &[0]));
    check("fpu: no trap without TS", attempt!("fnop"));
}
