//! `update_va_mapping` and `mmu_update`.

use crate::catch::attempt;
use crate::hv::{HOLE, UNMAPPED, said};
use crate::tables::{
    ACCESSED, DIRTY, FRAME, PRESENT, RO, RW, Scratch, TABLE, USER, WRITE, frame_of_the_core, leaf,
    mmuext, peek, root, slot, update, updates, uvm,
};
use crate::tap::check;
use alloc::format;
use domain_rt::abi::DomId;
use domain_rt::abi::hypercall::{MMU_UPDATE, UPDATE_VA_MAPPING, UPDATE_VA_MAPPING_OTHERDOMAIN};
use domain_rt::abi::mmu::{
    HOLE_START, M2P_START, MMU_MACHPHYS_UPDATE, MMU_PT_UPDATE_NO_TRANSLATE,
    MMU_PT_UPDATE_PRESERVE_AD, MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE, MmuUpdate, UVMF_INVLPG,
};

/// An address whose L4 slot is free.
const FREE: u64 = 0xffff_9600_0000_0000;

pub fn run(is_dom0: bool) {
    va_mapping();
    va_refusals();
    entries();
    batches(is_dom0);
    machphys();
    upper_levels();
    bad_tables();
}

fn va_mapping() {
    let (a, b) = (Scratch::new(), Scratch::new());
    a.write(0, 0xa);
    b.write(0, 0xb);
    let result = a.remap(b.data());
    check("update_va_mapping: shows another frame", format!("{result} {:#x}", a.read(0)));
    a.remap(a.data());
    let result = a.remap(0);
    let outcome = attempt!("mov rax, [{a}]", a = in(reg) a.va(), out("rax") _);
    check("update_va_mapping: unmaps", format!("{result}, {outcome}"));
    let result = a.remap(0x1234_5678_9abc_def0);
    check(
        "update_va_mapping: keeps any content without the present bit",
        format!("{result} {:#x}", leaf(a.va()).1),
    );
    let result = a.remap(a.read_only());
    let outcome = attempt!("mov [{a}], rax", a = in(reg) a.va());
    check("update_va_mapping: makes read-only", format!("{result}, {outcome}"));
    a.remap(a.maddr() | PRESENT | WRITE | ACCESSED);
    let stored = leaf(a.va()).1;
    check(
        "update_va_mapping: a kernel entry is stored with the user bit",
        format!("{:#x}", stored & !FRAME),
    );
    a.remap(a.data());
    let stored = leaf(a.va()).1;
    check(
        "update_va_mapping: flags of an entry with the user bit",
        format!("{:#x}", stored & !FRAME & !(1 << 8)),
    );
    for (name, flags) in
        [("none", 0), ("local flush", 1), ("all", 1 | 1 << 2), ("page on all", 2 | 1 << 2)]
    {
        check(
            &format!("update_va_mapping: flush kind {name}"),
            said(UPDATE_VA_MAPPING, &[a.va(), a.data(), flags]),
        );
    }
    check("update_va_mapping: flush kind 3", said(UPDATE_VA_MAPPING, &[a.va(), a.data(), 3]));
}

fn va_refusals() {
    let page = Scratch::new();
    let core = frame_of_the_core().maddr().get();
    let table = root().maddr().get();
    for (name, va, entry) in [
        ("a writable mapping of a page table", page.va(), table | RW),
        ("a writable mapping of a frame of the core", page.va(), core | RW),
        ("a mapping of a frame of the core", page.va(), core | RO),
        ("a frame past the end of memory", page.va(), (1 << 51) | RO),
        ("an address without a table", FREE, page.data()),
        ("an address in the hole", HOLE, page.data()),
        ("the machine-to-phys table", M2P_START, page.data()),
        ("an address that is not canonical", 1 << 63, page.data()),
    ] {
        check(
            &format!("update_va_mapping: refuses {name}"),
            said(UPDATE_VA_MAPPING, &[va, entry, UVMF_INVLPG]),
        );
    }
    check("update_va_mapping: a read-only mapping of a page table", uvm(page.va(), table | RO));
    page.remap(page.data());
    let result = page.remap(page.data() | 1 << 7);
    check("update_va_mapping: an entry with the PAT bit", result);
    page.remap(page.data());
    check(
        "update_va_mapping_otherdomain: refuses a domain that is not there",
        said(UPDATE_VA_MAPPING_OTHERDOMAIN, &[page.va(), page.data(), 0, 0x1234]),
    );
}

fn entries() {
    let page = Scratch::new();
    let (ptr, _) = leaf(page.va());
    check("mmu_update: an entry in use", update(ptr, page.read_only()));
    check("mmu_update: the entry is read-only now", leaf(page.va()).1 & WRITE);
    check(
        "mmu_update: an entry without translation",
        update(ptr | MMU_PT_UPDATE_NO_TRANSLATE, page.data()),
    );
    update(ptr, page.data() | ACCESSED | DIRTY);
    update(ptr | MMU_PT_UPDATE_PRESERVE_AD, page.data() & !(ACCESSED | DIRTY));
    check(
        "mmu_update: keeps accessed and dirty when asked to",
        format!("{:#x}", leaf(page.va()).1 & (ACCESSED | DIRTY)),
    );
    update(ptr, page.maddr() | PRESENT | WRITE | USER);
    check(
        "mmu_update: sets them as given otherwise",
        format!("{:#x}", leaf(page.va()).1 & (ACCESSED | DIRTY)),
    );
    update(ptr, page.data());
    let target = Scratch::new();
    let result = update(target.entry(5), 0x1122);
    check("mmu_update: writes a plain page", format!("{result} {:#x}", target.read(5)));
    for (name, ptr, val) in [
        ("a writable mapping of a page table", ptr, root().maddr().get() | RW),
        ("a mapping of a frame of the core", ptr, frame_of_the_core().maddr().get() | RO),
        ("an entry in a frame of the core", frame_of_the_core().maddr().get(), 0),
        ("an entry past the end of memory", 1 << 51, 0),
    ] {
        check(&format!("mmu_update: refuses {name}"), update(ptr, val));
    }
}

fn batches(is_dom0: bool) {
    let page = Scratch::new();
    let (ptr, _) = leaf(page.va());
    let good = MmuUpdate { ptr, val: page.data() };
    let bad = MmuUpdate { ptr, val: root().maddr().get() | RW };
    check(
        "mmu_update: counts what it did",
        format!("{:?}", updates(&[good, good, good], DomId::SELF)),
    );
    check(
        "mmu_update: stops at the first refusal",
        format!("{:?}", updates(&[good, bad, good], DomId::SELF)),
    );
    check("mmu_update: of nothing", format!("{:?}", updates(&[], DomId::SELF)));
    let (nobody, denied) = (DomId::new(0x1234), if is_dom0 { "-ESRCH" } else { "-EPERM" });
    let (found, _) = updates(&[good], nobody);
    check("mmu_update: refuses a domain that is not there", found == "-ESRCH" || found == denied);
    check(
        "mmu_update: refuses an unmapped list",
        said(MMU_UPDATE, &[UNMAPPED, 1, 0, DomId::SELF.get().into()]),
    );
    check(
        "mmu_update: refuses a list in the hole",
        said(MMU_UPDATE, &[HOLE, 1, 0, DomId::SELF.get().into()]),
    );
}

fn machphys() {
    let page = Scratch::new();
    // SAFETY: the table is mapped readable for every guest.
    let look = || unsafe { ((M2P_START + page.mfn().get() * 8) as *const u64).read_volatile() };
    let before = look() == page.pfn();
    let ptr = page.maddr() | MMU_MACHPHYS_UPDATE;
    let result = update(ptr, 0x123);
    let during = look();
    update(ptr, page.pfn());
    check(
        "machphys update: shows in the table",
        format!("{before} {result} {during:#x} {}", look() == page.pfn()),
    );
    let core = frame_of_the_core().maddr().get() | MMU_MACHPHYS_UPDATE;
    check("machphys update: refuses a frame of the core", update(core, 5));
    check(
        "machphys update: refuses a frame past the end",
        update(1 << 51 | MMU_MACHPHYS_UPDATE, 5),
    );
}

/// Builds a small tree under a free slot, uses it and takes it down.
fn upper_levels() {
    let page = Scratch::new();
    page.write(0, 0x77);
    let l1 = Scratch::new().into_table(&[(3, page.data()), (4, page.read_only())]);
    let l2 = Scratch::new().into_table(&[(0, l1.table())]);
    let l3 = Scratch::new().into_table(&[]);
    let l4_entry = root().maddr().get() + slot(FREE, 3) as u64 * 8;
    check("mmu_update: links an empty L3 into the L4", update(l4_entry, l3.table()));
    check("mmu_update: links an L2 with its L1", update(l3.entry(0), l2.table()));
    // SAFETY: mapped by the entries above.
    let seen = unsafe { ((FREE + 3 * 4096) as *const u64).read_volatile() };
    check("mmu_update: the new address shows the page", format!("{seen:#x}"));
    check("mmu_update: a live table refuses to become writable", uvm(l1.va(), l1.data()));
    check("mmu_update: an entry of a live L1", update(l1.entry(5), page.read_only()));
    check(
        "mmu_update: refuses a large page in the L2",
        update(l2.entry(1), page.maddr() | TABLE | 1 << 7),
    );
    check(
        "mmu_update: refuses a large page in the L3",
        update(l3.entry(1), page.maddr() | TABLE | 1 << 7),
    );
    check("mmu_update: refuses a writable page as L1", update(l2.entry(1), page.table()));
    check("mmu_update: refuses an L1 as L2", update(l3.entry(1), l1.table()));
    check("mmu_update: refuses an L2 as L1", update(l2.entry(1), l2.table()));
    check("mmu_update: an L1 in two places", update(l2.entry(1), l1.table()));
    check("mmu_update: takes the second place away", update(l2.entry(1), 0));
    check("mmu_update: upper entries are stored with the user bit", upper_flags(&l3, &l2));
    check("mmu_update: unlinks the L3", update(l4_entry, 0));
    check("mmu_update: an unlinked table may become writable", uvm(l1.va(), l1.data()));
    for (name, slot) in [("first", 256), ("last", 271)] {
        let ptr = root().maddr().get() + slot * 8;
        check(&format!("mmu_update: refuses the {name} slot of the hole"), update(ptr, 0));
    }
    let hole = slot(HOLE_START, 3);
    check("mmu_update: the hole is the core's own", peek(root(), hole) & PRESENT);
}

fn upper_flags(l3: &Scratch, l2: &Scratch) -> alloc::string::String {
    let bare = l2.maddr() | PRESENT | WRITE;
    let result = update(l3.entry(2), bare);
    let stored = peek(l3.mfn(), 2) & !FRAME;
    update(l3.entry(2), 0);
    format!("{result} {stored:#x}")
}

/// Tables whose contents must not pass.
fn bad_tables() {
    let page = Scratch::new();
    for (name, entry) in [
        ("maps a frame of the core", frame_of_the_core().maddr().get() | RO),
        ("maps a page table writable", root().maddr().get() | RW),
        ("maps a frame past the end", 1 << 51 | RO),
    ] {
        let l1 = Scratch::new().into_table(&[(0, page.data()), (511, entry)]);
        let result = mmuext(MMUEXT_PIN_L1_TABLE, l1.mfn().get(), 0);
        check(&format!("pin: refuses an L1 that {name}"), &result);
        if result == "0" {
            mmuext(MMUEXT_UNPIN_TABLE, l1.mfn().get(), 0);
        }
        check(&format!("pin: nothing is left of an L1 that {name}"), uvm(l1.va(), l1.data()));
    }
    let own = Scratch::new();
    let l1 = own.into_table(&[]);
    l1.remap(l1.data());
    l1.write(7, l1.data());
    l1.remap(l1.read_only());
    check(
        "pin: refuses an L1 that maps itself writable",
        mmuext(MMUEXT_PIN_L1_TABLE, l1.mfn().get(), 0),
    );
}
