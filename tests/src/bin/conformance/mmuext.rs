//! `mmuext_op`.

use crate::catch::attempt;
use crate::hv::{HOLE, NON_CANONICAL, UNMAPPED, hv, rc, said};
use crate::tables::{
    FRAME, PRESENT, Scratch, frame_of_the_core, leaf, mmuext, peek, root, slot, update, uvm,
};
use crate::tap::check;
use alloc::format;
use alloc::vec::Vec;
use domain_rt::abi::DomId;
use domain_rt::abi::hypercall::MMUEXT_OP;
use domain_rt::abi::mmu::{self, MmuextOp};

pub fn run() {
    pins();
    levels();
    base_pointers();
    user_base_pointers();
    flushes();
    contents();
    batches();
}

fn pins() {
    let l1 = Scratch::new().into_table(&[]);
    let frame = l1.mfn().get();
    check("pin: an L1", mmuext(mmu::MMUEXT_PIN_L1_TABLE, frame, 0));
    check("pin: refuses a second pin", mmuext(mmu::MMUEXT_PIN_L1_TABLE, frame, 0));
    check("pin: refuses an L1 as L2", mmuext(mmu::MMUEXT_PIN_L2_TABLE, frame, 0));
    check("pin: a pinned table refuses to become writable", uvm(l1.va(), l1.data()));
    let page = Scratch::new();
    check("mmu_update: an entry of a pinned table", update(l1.entry(8), page.data()));
    check(
        "mmu_update: refuses a bad entry in a pinned table",
        update(l1.entry(9), l1.maddr() | crate::tables::RW),
    );
    check("mmu_update: the refused entry is unchanged", peek(l1.mfn(), 9));
    check("unpin: a pinned table", mmuext(mmu::MMUEXT_UNPIN_TABLE, frame, 0));
    check("unpin: refuses a second time", mmuext(mmu::MMUEXT_UNPIN_TABLE, frame, 0));
    check("unpin: then it may become writable", uvm(l1.va(), l1.data()));
    check(
        "pin: refuses a page with a writable mapping",
        mmuext(mmu::MMUEXT_PIN_L1_TABLE, frame, 0),
    );
    for (name, frame) in
        [("a frame of the core", frame_of_the_core().get()), ("a frame past the end", 1 << 39)]
    {
        check(&format!("pin: refuses {name}"), mmuext(mmu::MMUEXT_PIN_L1_TABLE, frame, 0));
        check(&format!("unpin: refuses {name}"), mmuext(mmu::MMUEXT_UNPIN_TABLE, frame, 0));
    }
}

fn levels() {
    let page = Scratch::new();
    let l1 = Scratch::new().into_table(&[(0, page.data())]);
    let l2 = Scratch::new().into_table(&[(1, l1.table())]);
    let l3 = Scratch::new().into_table(&[(2, l2.table())]);
    let l4 = Scratch::new().into_table(&[(3, l3.table())]);
    for (name, cmd, table) in [
        ("pin: an L4 with all below it", mmu::MMUEXT_PIN_L4_TABLE, &l4),
        ("pin: an L3 in use", mmu::MMUEXT_PIN_L3_TABLE, &l3),
        ("pin: an L2 in use", mmu::MMUEXT_PIN_L2_TABLE, &l2),
        ("pin: an L1 in use", mmu::MMUEXT_PIN_L1_TABLE, &l1),
    ] {
        check(name, mmuext(cmd, table.mfn().get(), 0));
    }
    let core: Vec<_> = (256..272).filter(|&i| peek(l4.mfn(), i) & PRESENT != 0).collect();
    check("pin: an L4 gets the slots of the core", !core.is_empty());
    for (name, table) in [("L4", &l4), ("L3", &l3), ("L2", &l2)] {
        check(&format!("unpin: {name}"), mmuext(mmu::MMUEXT_UNPIN_TABLE, table.mfn().get(), 0));
    }
    check("unpin: an L1 pinned by itself stays a table", uvm(l1.va(), l1.data()));
    check("unpin: L1", mmuext(mmu::MMUEXT_UNPIN_TABLE, l1.mfn().get(), 0));
    let l2 = Scratch::new().into_table(&[(0, l1.table()), (1, page.table())]);
    check(
        "pin: refuses an L2 whose second L1 is a writable page",
        mmuext(mmu::MMUEXT_PIN_L2_TABLE, l2.mfn().get(), 0),
    );
    check("pin: lets go of the first L1 then", uvm(l1.va(), l1.data()));
}

/// A second L4 with everything that the first has.
fn copy_of_root() -> Scratch {
    let entries: Vec<_> =
        (0..512).filter(|i| !(256..272).contains(i)).map(|i| (i, peek(root(), i))).collect();
    Scratch::new().into_table(&entries)
}

fn cr3() -> u64 {
    let value: u64;
    // SAFETY: emulated; has no effect.
    unsafe { core::arch::asm!("mov {v}, cr3", v = out(reg) value) };
    value & FRAME
}

fn base_pointers() {
    let l4 = copy_of_root();
    check("cr3: shows the L4", cr3() == root().maddr().get());
    check("new_baseptr: the one in use", mmuext(mmu::MMUEXT_NEW_BASEPTR, root().get(), 0));
    check(
        "new_baseptr: another L4, not pinned",
        mmuext(mmu::MMUEXT_NEW_BASEPTR, l4.mfn().get(), 0),
    );
    check("cr3: shows the new one", cr3() == l4.maddr());
    check("new_baseptr: the L4 in use refuses to become writable", uvm(l4.va(), l4.data()));
    check("new_baseptr: back", mmuext(mmu::MMUEXT_NEW_BASEPTR, root().get(), 0));
    check("new_baseptr: the L4 left behind may become writable", uvm(l4.va(), l4.data()));
    check(
        "new_baseptr: refuses a writable page",
        mmuext(mmu::MMUEXT_NEW_BASEPTR, l4.mfn().get(), 0),
    );
    let (leaf_entry, _) = leaf(l4.va());
    check("new_baseptr: refuses an L1", mmuext(mmu::MMUEXT_NEW_BASEPTR, leaf_entry >> 12, 0));
    check(
        "new_baseptr: refuses a frame of the core",
        mmuext(mmu::MMUEXT_NEW_BASEPTR, frame_of_the_core().get(), 0),
    );
    check("new_baseptr: refuses a frame past the end", mmuext(mmu::MMUEXT_NEW_BASEPTR, 1 << 39, 0));
    check("new_baseptr: refusals leave the old one", cr3() == root().maddr().get());
}

fn user_base_pointers() {
    let l4 = Scratch::new().into_table(&[]);
    check("new_user_baseptr: an empty L4", mmuext(mmu::MMUEXT_NEW_USER_BASEPTR, l4.mfn().get(), 0));
    check("new_user_baseptr: it refuses to become writable", uvm(l4.va(), l4.data()));
    check("new_user_baseptr: none", mmuext(mmu::MMUEXT_NEW_USER_BASEPTR, 0, 0));
    check("new_user_baseptr: the L4 left behind may become writable", uvm(l4.va(), l4.data()));
    check(
        "new_user_baseptr: refuses a writable page",
        mmuext(mmu::MMUEXT_NEW_USER_BASEPTR, l4.mfn().get(), 0),
    );
    check(
        "new_user_baseptr: refuses a frame of the core",
        mmuext(mmu::MMUEXT_NEW_USER_BASEPTR, frame_of_the_core().get(), 0),
    );
}

fn flushes() {
    let vcpus = 1u64;
    let at = (&raw const vcpus) as u64;
    let va = at;
    for (name, cmd, arg1, arg2) in [
        ("tlb_flush_local", mmu::MMUEXT_TLB_FLUSH_LOCAL, 0, 0),
        ("invlpg_local", mmu::MMUEXT_INVLPG_LOCAL, va, 0),
        ("invlpg_local: of the hole", mmu::MMUEXT_INVLPG_LOCAL, HOLE, 0),
        (
            "invlpg_local: of an address that is not canonical",
            mmu::MMUEXT_INVLPG_LOCAL,
            NON_CANONICAL,
            0,
        ),
        ("tlb_flush_multi", mmu::MMUEXT_TLB_FLUSH_MULTI, 0, at),
        ("tlb_flush_multi: refuses an unmapped set", mmu::MMUEXT_TLB_FLUSH_MULTI, 0, UNMAPPED),
        ("invlpg_multi", mmu::MMUEXT_INVLPG_MULTI, va, at),
        ("tlb_flush_all", mmu::MMUEXT_TLB_FLUSH_ALL, 0, 0),
        ("invlpg_all", mmu::MMUEXT_INVLPG_ALL, va, 0),
        ("operation 14: is not used", 14, 0, 0),
        ("mark_super: is not offered", mmu::MMUEXT_MARK_SUPER, 0, 0),
        ("operation 99: does not exist", 99, 0, 0),
    ] {
        check(&format!("mmuext_op: {name}"), mmuext(cmd, arg1, arg2));
    }
    stale();
}

/// A flush takes effect: the old translation is gone.
fn stale() {
    let page = Scratch::new();
    page.write(0, 1);
    let (ptr, _) = leaf(page.va());
    update(ptr, 0);
    mmuext(mmu::MMUEXT_INVLPG_LOCAL, page.va(), 0);
    let outcome = attempt!("mov rax, [{a}]", a = in(reg) page.va(), out("rax") _);
    check("invlpg_local: the old translation is gone", outcome);
}

fn contents() {
    let (a, b) = (Scratch::new(), Scratch::new());
    a.write(17, 0xabcd);
    let result = mmuext(mmu::MMUEXT_COPY_PAGE, b.mfn().get(), a.mfn().get());
    check("copy_page: copies", format!("{result} {:#x}", b.read(17)));
    let result = mmuext(mmu::MMUEXT_CLEAR_PAGE, b.mfn().get(), 0);
    check("clear_page: clears", format!("{result} {:#x}", b.read(17)));
    check("clear_page: refuses a page table", mmuext(mmu::MMUEXT_CLEAR_PAGE, root().get(), 0));
    check(
        "clear_page: refuses a frame of the core",
        mmuext(mmu::MMUEXT_CLEAR_PAGE, frame_of_the_core().get(), 0),
    );
    check(
        "copy_page: refuses a page table as target",
        mmuext(mmu::MMUEXT_COPY_PAGE, root().get(), a.mfn().get()),
    );
    check(
        "copy_page: refuses a frame of the core as source",
        mmuext(mmu::MMUEXT_COPY_PAGE, b.mfn().get(), frame_of_the_core().get()),
    );
    check("copy_page: a refusal leaves the root alone", peek(root(), slot(a.va(), 3)) & PRESENT);
}

fn batches() {
    let flush = MmuextOp { cmd: mmu::MMUEXT_TLB_FLUSH_LOCAL, ..Default::default() };
    let bad = MmuextOp { cmd: 99, ..Default::default() };
    let mut done = 77u32;
    let mut run = |ops: &[MmuextOp]| {
        let args = [
            ops.as_ptr() as u64,
            ops.len() as u64,
            (&raw mut done) as u64,
            DomId::SELF.get().into(),
        ];
        let result = rc(hv(MMUEXT_OP, &args));
        format!("{result} done {done}")
    };
    check("mmuext_op: counts what it did", run(&[flush, flush]));
    check("mmuext_op: stops at the first refusal", run(&[flush, bad, flush]));
    check("mmuext_op: of nothing", run(&[]));
    check(
        "mmuext_op: refuses an unmapped list",
        said(MMUEXT_OP, &[UNMAPPED, 1, 0, DomId::SELF.get().into()]),
    );
    check(
        "mmuext_op: refuses a domain that is not there",
        rc(hv(MMUEXT_OP, &[(&raw const flush) as u64, 1, 0, 0x1234])),
    );
}
