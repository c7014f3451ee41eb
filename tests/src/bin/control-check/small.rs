//! The smallest domain that can run: four page tables, a page of code, a page of data.

use crate::calls::{create, populate};
use crate::program::Program;
use alloc::{boxed::Box, vec::Vec};
use domain_rt::abi::trap::{FLAT_RING3_CS64, FLAT_RING3_SS64};
use domain_rt::abi::vcpu::{VGCF_IN_KERNEL, VGCF_ONLINE, VcpuGuestContext};
use domain_rt::abi::{DomId, Errno, Mfn, PAGE_SIZE, VcpuId};
use domain_rt::mem::{Mapping, map_foreign};
use domain_rt::{control, hypercall};
use zerocopy::FromZeros;

/// What its pages are, by pfn.
pub const L4: usize = 0;
const L3: usize = 1;
pub const L2: usize = 2;
pub const L1: usize = 3;
const CODE: usize = 4;
pub const DATA_PAGE: usize = 5;
/// Frames it has.
pub const FRAMES: u64 = 6;

/// Linear address of its pfn 0: slot 1 of the L2.
const BASE: u64 = 0x20_0000;
/// Linear address of its data.
pub const DATA: u64 = BASE + (DATA_PAGE * PAGE_SIZE) as u64;
/// An address that has page tables, and nothing mapped.
pub const EMPTY: u64 = DATA + 4 * PAGE_SIZE as u64;

/// Page-table entries: present, user, accessed, dirty; writable; not executable.
pub const READ: u64 = 0x65;
pub const WRITE: u64 = READ | 2;
pub const NO_EXECUTE: u64 = 1 << 63;

/// A domain and the frames it was given.
pub struct Small {
    pub domid: DomId,
    pub frames: Vec<Mfn>,
}

impl Small {
    /// Makes a domain and loads a program into it; its tables are not pinned.
    pub fn create(program: &Program) -> Result<Self, Errno> {
        Self::load(create(0, 1, 0)?, program)
    }

    /// Gives a domain without memory its six pages.
    pub fn load(domid: DomId, program: &Program) -> Result<Self, Errno> {
        let frames = populate(domid, 0, 0, FRAMES);
        if frames.len() as u64 != FRAMES {
            return Err(Errno::ENOMEM);
        }
        let small = Self { domid, frames };
        small.map(CODE)?.shared().copy_in(0, program.code());
        let entry = |table, slot: usize, page: usize, flags| {
            small.write(table, slot, small.frames[page].maddr().get() | flags)
        };
        entry(L4, 0, L3, WRITE)?;
        entry(L3, 0, L2, WRITE)?;
        entry(L2, 1, L1, WRITE)?;
        for table in [L4, L3, L2, L1] {
            entry(L1, table, table, READ | NO_EXECUTE)?;
        }
        entry(L1, CODE, CODE, READ)?;
        entry(L1, DATA_PAGE, DATA_PAGE, WRITE | NO_EXECUTE)?;
        Ok(small)
    }

    /// Maps one of its pages writable.
    pub fn map(&self, page: usize) -> Result<Mapping, Errno> {
        Ok(map_foreign(self.domid, &[self.frames[page]], true)?)
    }

    /// Its data.
    pub fn data(&self) -> Mapping {
        self.map(DATA_PAGE).expect("an ordinary page of a domain that is there")
    }

    /// Writes a word of one of its pages, which must not be a table by now.
    pub fn write(&self, page: usize, index: usize, value: u64) -> Result<(), Errno> {
        self.map(page)?.shared().write_u64(index * 8, value);
        Ok(())
    }

    /// The registers to start with.
    pub fn context(&self) -> Box<VcpuGuestContext> {
        let mut context = Box::new(VcpuGuestContext::new_zeroed());
        context.flags = VGCF_IN_KERNEL | VGCF_ONLINE;
        let stack_top = DATA + PAGE_SIZE as u64;
        let regs = &mut context.user_regs;
        regs.rip = BASE + (CODE * PAGE_SIZE) as u64;
        regs.rsp = stack_top;
        regs.rflags = 0x202;
        (regs.cs, regs.ss) = (FLAT_RING3_CS64, FLAT_RING3_SS64);
        context.kernel_ss = FLAT_RING3_SS64.into();
        context.kernel_sp = stack_top;
        context.ctrlreg[3] = self.frames[L4].maddr().get();
        context
    }

    pub fn set_context(&self, context: &VcpuGuestContext) -> Result<(), Errno> {
        control::set_vcpu_context(self.domid, VcpuId::new(0), context)
    }

    /// Pins its root and gives it registers: it runs once it is unpaused.
    pub fn prepare(&self) -> Result<(), Errno> {
        hypercall::pin_foreign(self.domid, 4, self.frames[L4])?;
        self.set_context(&self.context())
    }

    /// Lets it run.
    pub fn start(&self) -> Result<(), Errno> {
        self.prepare()?;
        control::unpause_domain(self.domid)
    }

    pub fn destroy(self) {
        crate::calls::destroy(self.domid).expect("a domain that is there can be destroyed");
    }
}
