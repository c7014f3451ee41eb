//! What the attempts work with: frames of this domain, of others and of the core,
//! and the entries of its own page tables.

use alloc::vec::Vec;
use bulkhead_abi::{
    DomId, Maddr, Mfn, PAGE_SIZE,
    hypercall::{MMU_UPDATE, MMUEXT_OP, UPDATE_VA_MAPPING},
    mmu::{M2P_INVALID, M2P_START, MmuUpdate, MmuextOp},
};
use domain_rt::{
    hypercall,
    mem::{self, Pages},
};

/// Flags of a read-only and of a writable data mapping.
pub const RO: u64 = 0x8000_0000_0000_0025;
pub const RW: u64 = 0x8000_0000_0000_0067;
/// Flags of a link to a lower table.
pub const TABLE: u64 = 0x67;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// What the spare page holds, to see that nobody else writes it.
const CANARY: u64 = 0x5afe_c0de_5afe_c0de;

pub struct Env {
    /// A data page whose own mapping the attempts try to replace.
    pub spare: Pages,
    /// A data page that is never touched, full of [`CANARY`].
    canary: Pages,
    /// Frames on the way to the mapping of `spare`: L4, L3, L2, L1.
    pub path: [Mfn; 4],
    /// One frame of another domain, if the machine-to-phys table shows any.
    pub foreign: Option<Mfn>,
    /// Frames that are no guest's: the core's, or free.
    pub core: Vec<Mfn>,
    /// First frame past the memory.
    pub past_end: Mfn,
}

impl Env {
    pub fn new() -> Self {
        let spare = mem::alloc_pages(1).expect("a page");
        let canary = mem::alloc_pages(1).expect("a page");
        for word in 0..PAGE_SIZE / 8 {
            canary.shared().write_u64(word * 8, CANARY);
        }
        let path = walk(spare.va());
        let (mut foreign, mut core, mut max) = (None, Vec::new(), 0);
        for n in 0.. {
            let Ok(pfn) = super::trap::read(M2P_START + n * 8) else {
                break;
            };
            max = n + 1;
            if pfn == M2P_INVALID {
                if core.len() < 4096 {
                    core.push(Mfn::new(n));
                }
            } else if foreign.is_none() && mem::pfn_of(Mfn::new(n)).is_none() {
                foreign = Some(Mfn::new(n));
            }
        }
        Self { spare, canary, path, foreign, core, past_end: Mfn::new(max) }
    }

    /// A frame of the core, somewhere in the middle of those it keeps.
    pub fn core_frame(&self) -> Mfn {
        self.core.get(self.core.len() / 2).copied().unwrap_or(Mfn::new(0))
    }

    /// Machine address of the entry of level `level` (1..=4) that maps the spare page.
    pub fn entry(&self, level: usize) -> Maddr {
        let index = self.spare.va() >> (12 + 9 * (level - 1)) & 511;
        Maddr::new(self.path[4 - level].maddr().get() + index * 8)
    }

    /// Where this domain sees frame `mfn` of its own.
    pub fn view(&self, mfn: Mfn) -> u64 {
        mem::own_page(mfn).map_or(0, |page| page.va() as u64)
    }

    /// Tries to make the spare page's address map `mfn` with `flags`, by `mmu_update`.
    pub fn map(&mut self, mfn: Mfn, flags: u64) -> i64 {
        let rax = self.update(self.entry(1), mfn.maddr().get() | flags);
        self.restore();
        rax
    }

    /// The same by `update_va_mapping`.
    pub fn map_va(&mut self, mfn: Mfn, flags: u64) -> i64 {
        let rax = call(UPDATE_VA_MAPPING, [self.spare.va(), mfn.maddr().get() | flags, 2, 0, 0]);
        self.restore();
        rax
    }

    /// Maps the spare page as it was, whatever an attempt made of it.
    fn restore(&mut self) {
        let own = self.spare.maddr(0).get() | RW;
        let _ = call(UPDATE_VA_MAPPING, [self.spare.va(), own, 2, 0, 0]);
    }

    /// One `mmu_update` of this domain's tables.
    pub fn update(&self, entry: Maddr, value: u64) -> i64 {
        self.update_as(entry.get(), value, DomId::SELF)
    }

    /// One `mmu_update` with command bits in `ptr` and a foreign domain.
    pub fn update_as(&self, ptr: u64, value: u64, domain: DomId) -> i64 {
        let request = [MmuUpdate { ptr, val: value }];
        call(MMU_UPDATE, [request.as_ptr() as u64, 1, 0, domain.get().into(), 0])
    }

    /// One `mmuext_op`.
    pub fn extended(&self, cmd: u32, arg1: u64, arg2: u64, domain: DomId) -> i64 {
        let op = [MmuextOp { cmd, arg1, arg2, ..Default::default() }];
        call(MMUEXT_OP, [op.as_ptr() as u64, 1, 0, domain.get().into(), 0])
    }

    /// Makes the spare page read-only, runs `body`, makes it writable again.
    pub fn with_spare_read_only(&mut self, body: impl FnOnce(&mut Self) -> i64) -> i64 {
        let _ = self.update(self.entry(1), self.spare.maddr(0).get() | RO);
        let _ = self.extended(bulkhead_abi::mmu::MMUEXT_TLB_FLUSH_LOCAL, 0, 0, DomId::SELF);
        let rax = body(self);
        self.restore();
        self.spare.shared().fill(0, PAGE_SIZE, 0);
        rax
    }

    pub fn is_intact(&self) -> bool {
        (0..PAGE_SIZE / 8).all(|word| self.canary.shared().read_u64(word * 8) == CANARY)
            && walk(self.spare.va()) == self.path
    }
}

/// Issues a hypercall that is meant to be refused.
pub fn call(number: u64, args: [u64; 5]) -> i64 {
    // SAFETY: the attempts are refused, or hit only the spare page and the frames this
    // program set aside for them; if one gets through, the verdict says so and the run has failed.
    unsafe { hypercall::raw(number, args) }
}

/// The frames of the tables that map `va`, top down, by reading this domain's own tables.
fn walk(va: u64) -> [Mfn; 4] {
    let mut mfn = root();
    let mut path = [mfn; 4];
    for level in (1..4).rev() {
        let page = mem::own_page(mfn).expect("own tables are own pages");
        let entry = page.read_u64((va >> (12 + 9 * level) & 511) as usize * 8);
        mfn = Maddr::new(entry & FRAME).mfn();
        path[4 - level] = mfn;
    }
    path
}

fn root() -> Mfn {
    let cr3: u64;
    // SAFETY: reading CR3 traps and is emulated: it gives the machine address of this
    // domain's own L4 and changes nothing.
    unsafe { core::arch::asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack)) };
    Maddr::new(cr3).mfn()
}
