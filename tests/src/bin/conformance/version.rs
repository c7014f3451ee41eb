//! `xen_version`, `console_io`, numbers that do not exist, `multicall`.

use crate::hv::{HOLE, UNMAPPED, hv, op, rc, said};
use crate::tap::check;
use domain_rt::abi::hypercall::{self as nr, MulticallEntry};
use domain_rt::abi::version::{self, FeatureInfo};

pub fn run() {
    facts();
    texts();
    console();
    numbers();
    multicall();
    registers();
}

fn facts() {
    let version = hv(nr::XEN_VERSION, &[version::XENVER_VERSION]);
    check("xen_version: version", alloc::format!("{}.{}", version >> 16, version & 0xffff));
    check("xen_version: page size", said(nr::XEN_VERSION, &[version::XENVER_PAGESIZE]));
    let mut hole = 0u64;
    let result = op(nr::XEN_VERSION, version::XENVER_PLATFORM_PARAMETERS, &mut hole);
    check("xen_version: platform parameters", alloc::format!("{} {hole:#x}", rc(result)));
    let mut info = FeatureInfo::default();
    let result = op(nr::XEN_VERSION, version::XENVER_GET_FEATURES, &mut info);
    let never = info.submap & 0b1101;
    let preserve = info.submap >> version::XENFEAT_MMU_PT_UPDATE_PRESERVE_AD & 1;
    check(
        "get_features: neither writable page tables nor translation, but preserve-AD",
        alloc::format!("{} {never:#x} {preserve}", rc(result)),
    );
    let mut info = FeatureInfo { submap_idx: 7, submap: 0 };
    let result = op(nr::XEN_VERSION, version::XENVER_GET_FEATURES, &mut info);
    check("get_features: refuses a submap that is not there", rc(result));
}

fn texts() {
    for (name, cmd) in [
        ("xen_version: extra version", version::XENVER_EXTRAVERSION),
        ("xen_version: compile info", version::XENVER_COMPILE_INFO),
        ("xen_version: changeset", version::XENVER_CHANGESET),
        ("xen_version: guest handle", version::XENVER_GUEST_HANDLE),
    ] {
        let mut text = [0u8; 1024];
        check(name, rc(op(nr::XEN_VERSION, cmd, &mut text)));
    }
    let mut text = [0u8; 1024];
    let result = op(nr::XEN_VERSION, version::XENVER_CAPABILITIES, &mut text);
    let found = text.windows(14).any(|w| w == b"xen-3.0-x86_64");
    check(
        "xen_version: capabilities name this kind of guest",
        alloc::format!("{} {found}", rc(result)),
    );
    check(
        "xen_version: refuses an unmapped buffer",
        said(nr::XEN_VERSION, &[version::XENVER_EXTRAVERSION, UNMAPPED]),
    );
    check(
        "xen_version: refuses a buffer in the hole",
        said(nr::XEN_VERSION, &[version::XENVER_EXTRAVERSION, HOLE]),
    );
    check("xen_version: refuses an unknown command", said(nr::XEN_VERSION, &[99, 0]));
}

fn console() {
    check("console_io: writes nothing", said(nr::CONSOLE_IO, &[0, 0, 0]));
    check(
        "console_io: writes a line",
        said(nr::CONSOLE_IO, &[0, 16, b"# a line of TAP\n".as_ptr() as u64]),
    );
    check("console_io: refuses an unmapped buffer", said(nr::CONSOLE_IO, &[0, 10, UNMAPPED]));
    check("console_io: refuses an unknown command", said(nr::CONSOLE_IO, &[9, 0, 0]));
}

fn numbers() {
    for (name, number) in [
        ("hypercall 11: does not exist", 11),
        ("hypercall 47: does not exist", 47),
        ("hypercall 63: does not exist", 63),
        ("hypercall 64: does not exist", 64),
        ("hypercall 1000: does not exist", 1000),
        ("hypercall 2^63: does not exist", 1 << 63),
        ("hypercall 2^32: upper half of the number counts", 1 << 32 | nr::XEN_VERSION),
    ] {
        check(name, said(number, &[99]));
    }
}

fn entry(op: u64, args: &[u64]) -> MulticallEntry {
    let mut entry = MulticallEntry { op, result: 77, ..Default::default() };
    entry.args[..args.len()].copy_from_slice(args);
    entry
}

fn multicall() {
    let mut batch = [
        entry(nr::XEN_VERSION, &[version::XENVER_PAGESIZE]),
        entry(63, &[]),
        entry(nr::CONSOLE_IO, &[9]),
        entry(nr::XEN_VERSION, &[version::XENVER_PAGESIZE]),
    ];
    let at = batch.as_mut_ptr() as u64;
    let result = hv(nr::MULTICALL, &[at, batch.len() as u64]);
    let results = batch.map(|e| rc(e.result as i64)).join(" ");
    check("multicall: goes on after errors", alloc::format!("{}: {results}", rc(result)));
    let mut inner = [entry(nr::XEN_VERSION, &[version::XENVER_PAGESIZE])];
    let mut outer = [entry(nr::MULTICALL, &[inner.as_mut_ptr() as u64, 1])];
    let result = hv(nr::MULTICALL, &[outer.as_mut_ptr() as u64, 1]);
    let nested = rc(outer[0].result as i64);
    check(
        "multicall: refuses to nest",
        alloc::format!("{}: {nested} {}", rc(result), inner[0].result),
    );
    check("multicall: of nothing", said(nr::MULTICALL, &[0, 0]));
    check("multicall: refuses an unmapped list", said(nr::MULTICALL, &[UNMAPPED, 1]));
    check("multicall: refuses a list in the hole", said(nr::MULTICALL, &[HOLE, 1]));
}

/// A hypercall keeps every register but RAX, RCX and R11.
fn registers() {
    let (mut rdi, mut rsi, mut rdx, mut r8, mut r9, mut r10) = (1u64, 2u64, 3u64, 4u64, 5u64, 6u64);
    let (mut r12, mut r13, mut r14, mut r15) = (7u64, 8u64, 9u64, 10u64);
    // SAFETY: an unknown hypercall has no effect.
    unsafe {
        core::arch::asm!("syscall", inout("rax") 63u64 => _, inout("rdi") rdi, inout("rsi") rsi, inout("rdx") rdx,
            inout("r8") r8, inout("r9") r9, inout("r10") r10, inout("r12") r12, inout("r13") r13,
            inout("r14") r14, inout("r15") r15, out("rcx") _, out("r11") _);
    }
    let all = [rdi, rsi, rdx, r8, r9, r10, r12, r13, r14, r15];
    check("hypercall: preserves registers", alloc::format!("{all:?}"));
}
