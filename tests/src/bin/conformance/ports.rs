//! Port input and output from the kernel, and `physdev_op`.

use crate::catch::attempt;
use crate::hv::{UNMAPPED, op, rc, said};
use crate::tap::check;
use alloc::format;
use domain_rt::abi::hypercall::PHYSDEV_OP;
use domain_rt::abi::physdev::{self, Eoi};

pub fn run() {
    accesses("without IOPL");
    let mut iopl = 1u32;
    let result = rc(op(PHYSDEV_OP, physdev::PHYSDEVOP_SET_IOPL, &mut iopl));
    check("set_iopl: 1", result);
    accesses("with IOPL 1");
    physdev_ops();
}

/// The interrupt controller is kept from every guest, Dom0 too.
fn accesses(how: &str) {
    let mut value = 0u32;
    let o = attempt!("in al, dx", in("dx") 0x21u16, inout("eax") value);
    check(&format!("in: {how}"), format!("{o} {value:#x}"));
    let mut value = 0u32;
    let o = attempt!("in al, 0xa1", inout("eax") value);
    check(&format!("in: an immediate port, {how}"), format!("{o} {value:#x}"));
    let mut value = 0u32;
    let o = attempt!("in ax, dx", in("dx") 0x20u16, inout("eax") value);
    check(&format!("in: of two bytes, {how}"), format!("{o} {value:#x}"));
    let mut value = 0u64;
    let o = attempt!("in eax, dx", in("dx") 0x20u16, inout("rax") value);
    check(&format!("in: of four bytes, {how}"), format!("{o} {value:#x}"));
    let o = attempt!("out dx, al", in("dx") 0x21u16, in("al") 0u8);
    check(&format!("out: {how}"), o);
    let o = attempt!("out 0xa1, al", in("al") 0u8);
    check(&format!("out: an immediate port, {how}"), o);
}

fn physdev_ops() {
    let flags: u64;
    // SAFETY: reads the flags.
    unsafe { core::arch::asm!("pushfq; pop {f}", f = out(reg) flags) };
    check("set_iopl: does not show in the flags", flags >> 12 & 3);
    check("cli: with IOPL 1", attempt!("cli"));
    let mut iopl = 4u32;
    check("set_iopl: refuses 4", rc(op(PHYSDEV_OP, physdev::PHYSDEVOP_SET_IOPL, &mut iopl)));
    let mut iopl = 0u32;
    check("set_iopl: 0", rc(op(PHYSDEV_OP, physdev::PHYSDEVOP_SET_IOPL, &mut iopl)));
    let mut none = [0u64; 2];
    check("set_iobitmap: none", rc(op(PHYSDEV_OP, physdev::PHYSDEVOP_SET_IOBITMAP, &mut none)));
    let mut eoi = Eoi { irq: 100_000 };
    check(
        "eoi: refuses an interrupt that is not ours",
        rc(op(PHYSDEV_OP, physdev::PHYSDEVOP_EOI, &mut eoi)),
    );
    check(
        "physdev_op: refuses an unmapped structure",
        said(PHYSDEV_OP, &[physdev::PHYSDEVOP_SET_IOPL, UNMAPPED]),
    );
    check("physdev_op: refuses an unknown operation", said(PHYSDEV_OP, &[99, 0]));
}
