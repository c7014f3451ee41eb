//! Pages whose mapping a case may change, and page tables built by hand.

use crate::hv::{hv, rc, said};
use alloc::string::String;
use domain_rt::abi::hypercall::{MMU_UPDATE, MMUEXT_OP, UPDATE_VA_MAPPING};
use domain_rt::abi::mmu::{MmuUpdate, MmuextOp, UVMF_INVLPG};
use domain_rt::abi::{DomId, Maddr, Mfn, PAGE_SIZE};
use domain_rt::mem::{self, Pages};

pub const PRESENT: u64 = 1;
pub const WRITE: u64 = 2;
pub const USER: u64 = 4;
pub const ACCESSED: u64 = 0x20;
pub const DIRTY: u64 = 0x40;
pub const NO_EXECUTE: u64 = 1 << 63;
/// Frame number of an entry.
pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// A read-only data entry.
pub const RO: u64 = PRESENT | USER | ACCESSED | NO_EXECUTE;
/// A writable data entry.
pub const RW: u64 = RO | WRITE | DIRTY;
/// An entry that names a table.
pub const TABLE: u64 = PRESENT | WRITE | USER | ACCESSED | DIRTY;

/// A page of our own; mapped writable again when dropped.
pub struct Scratch {
    pages: Pages,
}

impl Scratch {
    pub fn new() -> Self {
        Self { pages: mem::alloc_pages(1).expect("a page") }
    }

    pub fn va(&self) -> u64 {
        self.pages.va()
    }

    pub fn mfn(&self) -> Mfn {
        self.pages.mfn(0)
    }

    pub fn pfn(&self) -> u64 {
        self.pages.pfn(0).get()
    }

    pub fn maddr(&self) -> u64 {
        self.mfn().maddr().get()
    }

    pub fn read_only(&self) -> u64 {
        self.maddr() | RO
    }

    pub fn data(&self) -> u64 {
        self.maddr() | RW
    }

    pub fn table(&self) -> u64 {
        self.maddr() | TABLE
    }

    /// Replaces the entry that maps this page's address.
    pub fn remap(&self, entry: u64) -> String {
        uvm(self.va(), entry)
    }

    pub fn read(&self, index: usize) -> u64 {
        self.pages.shared().read_u64(index * 8)
    }

    pub fn write(&self, index: usize, value: u64) {
        self.pages.shared().write_u64(index * 8, value);
    }

    pub fn shared(&self) -> domain_rt::Shared<'_> {
        self.pages.shared()
    }

    /// Writes entries, then takes write permission away: a table to be.
    pub fn into_table(self, entries: &[(usize, u64)]) -> Self {
        for &(index, value) in entries {
            self.write(index, value);
        }
        self.remap(self.read_only());
        self
    }

    /// Machine address of entry `index`.
    pub fn entry(&self, index: usize) -> u64 {
        self.maddr() + index as u64 * 8
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if uvm(self.va(), self.data()) == "0" {
            self.pages.shared().fill(0, PAGE_SIZE, 0);
            return;
        }
        // A case found what it should not have: the page stays in use for ever.
        if let Some(other) = mem::alloc_pages(1) {
            core::mem::forget(core::mem::replace(&mut self.pages, other));
        }
    }
}

/// `update_va_mapping` with a flush of that page.
pub fn uvm(va: u64, entry: u64) -> String {
    said(UPDATE_VA_MAPPING, &[va, entry, UVMF_INVLPG])
}

/// One page-table update; result in words.
pub fn update(ptr: u64, val: u64) -> String {
    let update = MmuUpdate { ptr, val };
    said(MMU_UPDATE, &[(&raw const update) as u64, 1, 0, DomId::SELF.get().into()])
}

/// Several updates; result in words and how many were done.
pub fn updates(list: &[MmuUpdate], domain: DomId) -> (String, u32) {
    let mut done = 99u32;
    let at = (&raw mut done) as u64;
    let result =
        hv(MMU_UPDATE, &[list.as_ptr() as u64, list.len() as u64, at, domain.get().into()]);
    (rc(result), done)
}

/// One extended operation; result in words.
pub fn mmuext(cmd: u32, arg1: u64, arg2: u64) -> String {
    let op = MmuextOp { cmd, arg1, arg2, ..Default::default() };
    said(MMUEXT_OP, &[(&raw const op) as u64, 1, 0, DomId::SELF.get().into()])
}

/// The L4 that this program runs on.
pub fn root() -> Mfn {
    mem::root().expect("the root is an own frame")
}

/// An entry of one of our own tables.
pub fn peek(table: Mfn, index: usize) -> u64 {
    mem::own_page(table).expect("an own frame").read_u64(index * 8)
}

/// The L1 entry that maps `va`: its machine address and its value.
pub fn leaf(va: u64) -> (u64, u64) {
    let mut table = root();
    for level in [3u32, 2, 1] {
        let entry = peek(table, slot(va, level));
        table = Maddr::new(entry & FRAME).mfn();
    }
    let index = slot(va, 0);
    (table.maddr().get() + index as u64 * 8, peek(table, index))
}

pub const fn slot(va: u64, level: u32) -> usize {
    (va >> (12 + 9 * level)) as usize % 512
}

/// A frame of the core: what the first used slot of the hole in our L4 names.
pub fn frame_of_the_core() -> Mfn {
    let entry = (256..272).map(|i| peek(root(), i)).find(|e| e & PRESENT != 0);
    Maddr::new(entry.expect("the core maps itself") & FRAME).mfn()
}
