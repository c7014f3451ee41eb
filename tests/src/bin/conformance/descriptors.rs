//! Descriptor tables: `set_gdt`, `update_descriptor`, the local table.

use crate::catch::{Outcome, attempt};
use crate::hv::{HOLE, UNMAPPED, rc, said};
use crate::tables::{Scratch, frame_of_the_core, mmuext};
use crate::tap::check;
use alloc::format;
use alloc::string::String;
use domain_rt::abi::hypercall::{SET_GDT, UPDATE_DESCRIPTOR};
use domain_rt::abi::mmu::MMUEXT_SET_LDT;

/// Flat 4 GiB data segment, DPL 3.
const DATA: u64 = 0x00cf_f300_0000_ffff;
/// Flat 4 GiB data segment, DPL 0.
const DATA_DPL0: u64 = 0x00cf_9300_0000_ffff;
/// 64-bit code segment, DPL 3.
const CODE: u64 = 0x00af_fb00_0000_ffff;
/// Available 64-bit TSS.
const TSS: u64 = 0x0000_8900_0000_0067;
/// Present call gate to the flat code segment.
const GATE: u64 = 0x0000_ec00_0000_0000 | 0xe033 << 16;
/// Not present, of any content.
const ABSENT: u64 = 0x0000_0900_1234_5678;

pub fn run() {
    let table = Scratch::new();
    for (slot, descriptor) in [(1, DATA), (2, CODE), (3, DATA_DPL0), (4, ABSENT)] {
        table.write(slot, descriptor);
    }
    global(&table);
    gate(&table);
    global_refusals();
    updates(&table);
    check("set_gdt: none", set(&[], 0));
    local();
    bases();
}

fn set(frames: &[u64], entries: u64) -> String {
    said(SET_GDT, &[frames.as_ptr() as u64, entries])
}

fn load_fs(selector: u32) -> Outcome {
    attempt!("mov fs, {s:x}", s = in(reg) selector)
}

fn clear_fs() {
    let _ = load_fs(0);
}

fn global(table: &Scratch) {
    let frame = table.mfn().get();
    check("set_gdt: refuses a page with a writable mapping", set(&[frame], 16));
    table.remap(table.read_only());
    check("set_gdt: one frame", set(&[frame], 16));
    check("set_gdt: its frame refuses to become writable", table.remap(table.data()));
    check("gdt: loads a data selector", load_fs(1 << 3 | 3));
    check("gdt: a selector whose privilege was raised", load_fs(3 << 3 | 3));
    check("gdt: the raised privilege can be read back", format!("{:#x}", table.read(3) >> 45 & 3));
    check("gdt: an absent descriptor faults", load_fs(4 << 3 | 3));
    check("gdt: an empty descriptor faults", load_fs(5 << 3 | 3));
    check("gdt: the flat selectors are still there", load_fs(0xe02b));
    clear_fs();
}

/// A gate to guest code gives nothing that the guest has not.
fn gate(table: &Scratch) {
    let gates = Scratch::new().into_table(&[(7, GATE)]);
    check("set_gdt: a call gate to flat code", set(&[gates.mfn().get()], 16));
    check("set_gdt: back to the first table", set(&[table.mfn().get()], 16));
    check("set_gdt: the table left behind may become writable", gates.remap(gates.data()));
}

fn global_refusals() {
    for (name, descriptor) in
        [("a task state segment", TSS), ("a local table", 0x0000_8200_0000_0067)]
    {
        let table = Scratch::new().into_table(&[(1, DATA), (7, descriptor)]);
        check(&format!("set_gdt: refuses {name}"), set(&[table.mfn().get()], 16));
        check(
            &format!("set_gdt: nothing is left of a table with {name}"),
            table.remap(table.data()),
        );
    }
    let table = Scratch::new().into_table(&[]);
    check("set_gdt: refuses more entries than there are", set(&[table.mfn().get(); 16], 7169));
    check("set_gdt: refuses a frame of the core", set(&[frame_of_the_core().get()], 16));
    check("set_gdt: refuses a frame past the end", set(&[1 << 39], 16));
    check("set_gdt: refuses an unmapped list", said(SET_GDT, &[UNMAPPED, 16]));
    check("set_gdt: refuses a list in the hole", said(SET_GDT, &[HOLE, 16]));
    check("gdt: refusals leave the old one", load_fs(1 << 3 | 3));
    clear_fs();
}

fn updates(table: &Scratch) {
    let slot = |index: u64| table.maddr() + index * 8;
    let put = |at: u64, descriptor: u64| said(UPDATE_DESCRIPTOR, &[at, descriptor]);
    check("update_descriptor: in the table in use", put(slot(5), DATA));
    check("gdt: the new descriptor can be loaded", load_fs(5 << 3 | 3));
    clear_fs();
    check("update_descriptor: clears", put(slot(5), 0));
    check("gdt: the cleared descriptor faults", load_fs(5 << 3 | 3));
    check("update_descriptor: refuses a task state segment", put(slot(6), TSS));
    check("update_descriptor: refuses an address that is not aligned", put(slot(6) + 4, DATA));
    check(
        "update_descriptor: refuses a frame of the core",
        put(frame_of_the_core().maddr().get(), DATA),
    );
    check("update_descriptor: refuses an address past the end", put(1 << 51, DATA));
    let page = Scratch::new();
    let result = put(page.maddr() + 8, DATA);
    check("update_descriptor: writes a plain page", format!("{result} {:#x}", page.read(1)));
}

fn local() {
    let table = Scratch::new().into_table(&[(1, DATA), (2, CODE)]);
    check("set_ldt: none", mmuext(MMUEXT_SET_LDT, 0, 0));
    check("set_ldt: of one page", mmuext(MMUEXT_SET_LDT, table.va(), 8));
    check("ldt: loads a data selector", load_fs(1 << 3 | 7));
    check("set_ldt: its frame refuses to become writable", table.remap(table.data()));
    clear_fs();
    check("ldt: a selector past its end faults", load_fs(9 << 3 | 7));
    check("set_ldt: refuses a base that is not aligned", mmuext(MMUEXT_SET_LDT, table.va() + 8, 8));
    check("set_ldt: refuses too many entries", mmuext(MMUEXT_SET_LDT, table.va(), 8193));
    check("set_ldt: none again", mmuext(MMUEXT_SET_LDT, 0, 0));
    check("ldt: selectors fault without one", load_fs(1 << 3 | 7));
    check("set_ldt: then the frame may become writable", table.remap(table.data()));
    let bad = Scratch::new().into_table(&[(1, TSS)]);
    mmuext(MMUEXT_SET_LDT, bad.va(), 8);
    check("ldt: a table with a task state segment cannot be used", load_fs(1 << 3 | 7).0.is_some());
    mmuext(MMUEXT_SET_LDT, 0, 0);
}

fn bases() {
    use domain_rt::abi::hypercall::SET_SEGMENT_BASE;
    use domain_rt::abi::trap::{
        SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL,
    };
    let page = Scratch::new();
    page.write(2, 0xfeed);
    let base = |which, base| rc(crate::hv::hv(SET_SEGMENT_BASE, &[which, base]));
    check("set_segment_base: fs", base(SEGBASE_FS, page.va()));
    let value: u64;
    // SAFETY: the base was set to a page of ours.
    unsafe { core::arch::asm!("mov {v}, fs:[16]", v = out(reg) value) };
    check("fs: reads from the new base", format!("{value:#x}"));
    check("set_segment_base: gs in kernel mode", base(SEGBASE_GS_KERNEL, page.va()));
    let value: u64;
    // SAFETY: as above.
    unsafe { core::arch::asm!("mov {v}, gs:[16]", v = out(reg) value) };
    check("gs: reads from the new base", format!("{value:#x}"));
    check("set_segment_base: gs of user mode", base(SEGBASE_GS_USER, 0x1000));
    check("set_segment_base: gs selector of user mode", base(SEGBASE_GS_USER_SEL, 0));
    check("set_segment_base: a bad gs selector counts as null", base(SEGBASE_GS_USER_SEL, 0xfff8));
    for (name, which) in [
        ("fs", SEGBASE_FS),
        ("gs of user mode", SEGBASE_GS_USER),
        ("gs in kernel mode", SEGBASE_GS_KERNEL),
    ] {
        check(
            &format!("set_segment_base: refuses an address that is not canonical for {name}"),
            base(which, 1 << 63),
        );
    }
    check("set_segment_base: refuses an unknown register", base(9, 0));
    base(SEGBASE_FS, 0);
    base(SEGBASE_GS_KERNEL, 0);
    base(SEGBASE_GS_USER, 0);
}
