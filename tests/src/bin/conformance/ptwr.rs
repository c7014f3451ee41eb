//! Writes to page tables by ordinary instructions: the ones that are emulated, and
//! the ones that fault.

use crate::catch::{Outcome, attempt};
use crate::tables::{ACCESSED, DIRTY, FRAME, NO_EXECUTE, Scratch, WRITE, mmuext, root, slot, uvm};
use crate::tap::check;
use alloc::format;
use domain_rt::abi::hypercall::VM_ASSIST;
use domain_rt::abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_UNPIN_TABLE};
use domain_rt::abi::trap::{VMASST_CMD_ENABLE, VMASST_WRITABLE_PAGETABLES};

pub fn run() {
    check(
        "vm_assist: writable page tables",
        crate::hv::said(VM_ASSIST, &[VMASST_CMD_ENABLE, VMASST_WRITABLE_PAGETABLES]),
    );
    let page = Scratch::new();
    let l1 = Scratch::new().into_table(&[(0, page.data())]);
    mmuext(MMUEXT_PIN_L1_TABLE, l1.mfn().get(), 0);
    stores(&l1, &page);
    exchanges(&l1, &page);
    bits(&l1, &page);
    refusals(&l1, &page);
    mmuext(MMUEXT_UNPIN_TABLE, l1.mfn().get(), 0);
    not_tables(&page);
}

/// Outcome, and what the entry holds now without its frame and global bit.
fn after(outcome: Outcome, l1: &Scratch, index: usize) -> alloc::string::String {
    let value = l1.read(index);
    let frame = if value & FRAME == 0 { "no frame" } else { "a frame" };
    format!("{outcome}, {frame} {:#x}", value & !FRAME & !(1 << 8))
}

fn stores(l1: &Scratch, page: &Scratch) {
    let at = |index: usize| l1.va() + index as u64 * 8;
    let o = attempt!("mov [{a}], {v}", a = in(reg) at(1), v = in(reg) page.data());
    check("ptwr: mov of 8 bytes", after(o, l1, 1));
    let o = attempt!("mov qword ptr [{a}], 0", a = in(reg) at(1));
    check("ptwr: mov of an immediate", after(o, l1, 1));
    let o = attempt!("mov [{b} + {i} * 8 + 8], {v}", b = in(reg) l1.va(), i = in(reg) 1u64, v = in(reg) page.read_only());
    check("ptwr: mov with index and displacement", after(o, l1, 2));
    let o = attempt!("mov [r13], r9", in("r13") at(3), in("r9") page.read_only());
    check("ptwr: mov with extended registers", after(o, l1, 3));
    let upper = (page.read_only() & !NO_EXECUTE) >> 32;
    let o = attempt!("mov [{a}], {v:e}", a = in(reg) at(3) + 4, v = in(reg) upper);
    check("ptwr: mov of the upper half", after(o, l1, 3));
    let o = attempt!("stosq", in("rdi") at(2), in("rax") 0u64, lateout("rdi") _);
    check("ptwr: stos", after(o, l1, 2));
    let o = attempt!("mov byte ptr [{a}], 0", a = in(reg) at(3));
    check("ptwr: mov of a byte", after(o, l1, 3));
    crate::tables::update(l1.entry(3), 0);
}

fn exchanges(l1: &Scratch, page: &Scratch) {
    let at = l1.va() + 8;
    let mut value = page.data();
    let o = attempt!("xchg [{a}], {v}", a = in(reg) at, v = inout(reg) value);
    check("ptwr: xchg sets", format!("{}, old {value:#x}", after(o, l1, 1)));
    let mut value = 0u64;
    let o = attempt!("xchg [{a}], {v}", a = in(reg) at, v = inout(reg) value);
    let old = (value & FRAME == page.maddr(), value & !FRAME & !(1 << 8));
    check(
        "ptwr: xchg clears and gives the old value",
        format!("{}, old {old:x?}", after(o, l1, 1)),
    );
    let mut old = 0u64;
    let o = attempt!("lock cmpxchg [{a}], {v}", a = in(reg) at, v = in(reg) page.data(), inout("rax") old);
    check("ptwr: cmpxchg that matches", format!("{}, rax {old:#x}", after(o, l1, 1)));
    let mut old = 5u64;
    let o = attempt!("lock cmpxchg [{a}], {v}", a = in(reg) at, v = in(reg) 0u64, inout("rax") old);
    let seen = old & FRAME == page.maddr();
    check(
        "ptwr: cmpxchg that does not match",
        format!("{}, rax the entry {seen}", after(o, l1, 1)),
    );
}

fn bits(l1: &Scratch, page: &Scratch) {
    let at = l1.va() + 8;
    crate::tables::update(l1.entry(1), page.data() | ACCESSED | DIRTY);
    let o = attempt!("lock and byte ptr [{a}], {m}", a = in(reg) at, m = const !(WRITE as i8));
    check("ptwr: lock and of a byte takes the write bit", after(o, l1, 1));
    let o = attempt!("lock btr qword ptr [{a}], 5", a = in(reg) at);
    check("ptwr: lock btr takes the accessed bit", after(o, l1, 1));
    let o = attempt!("lock or qword ptr [{a}], {m}", a = in(reg) at, m = const WRITE as i32);
    check("ptwr: lock or gives the write bit", after(o, l1, 1));
}

fn refusals(l1: &Scratch, page: &Scratch) {
    let at = |index: usize| l1.va() + index as u64 * 8;
    let bad = root().maddr().get() | crate::tables::RW;
    let o = attempt!("mov [{a}], {v}", a = in(reg) at(5), v = in(reg) bad);
    check("ptwr: refuses a writable mapping of a page table", after(o, l1, 5));
    let core = crate::tables::frame_of_the_core().maddr().get() | crate::tables::RO;
    let o = attempt!("mov [{a}], {v}", a = in(reg) at(5), v = in(reg) core);
    check("ptwr: refuses a mapping of a frame of the core", after(o, l1, 5));
    let o = attempt!("mov [{a}], {v}", a = in(reg) at(5) + 4, v = in(reg) page.data());
    check("ptwr: refuses a write across two entries", after(o, l1, 5));
}

fn not_tables(page: &Scratch) {
    let plain = Scratch::new();
    plain.remap(plain.read_only());
    let o = attempt!("mov [{a}], {v}", a = in(reg) plain.va(), v = in(reg) page.data());
    check("ptwr: a read-only page that is no table faults", o);
    let l2 = Scratch::new().into_table(&[]);
    mmuext(MMUEXT_PIN_L2_TABLE, l2.mfn().get(), 0);
    let o = attempt!("mov qword ptr [{a}], 0", a = in(reg) l2.va());
    check("ptwr: a write to an L2 faults", o);
    mmuext(MMUEXT_UNPIN_TABLE, l2.mfn().get(), 0);
    let window = Scratch::new();
    uvm(window.va(), root().maddr().get() | crate::tables::RO);
    let index = slot(0x1000, 3) as u64;
    let o = attempt!("mov qword ptr [{a}], 0", a = in(reg) window.va() + index * 8);
    check("ptwr: a write to the L4 faults", o);
}
