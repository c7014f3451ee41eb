//! Machines for tests: a core on plain memory, and domains with page tables of their own,
//! in which the first pages of the address space are ordinary writable memory.

use crate::{
    Core,
    domain::lifecycle,
    memory::{
        frame::{
            fake,
            table::{Budget, Walk},
        },
        update,
        validate::{self, Level, Pte},
    },
    state::{Caller, CpuId},
};
use bulkhead_abi::{DomId, GuestVa, Mfn, PAGE_SIZE, VcpuId, control::CreateDomain};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Pages of a test domain, mapped one after the other from address 0.
pub const PAGES: u64 = 16;
/// Address of an entry that maps nothing, in a table that is there.
pub const HOLE: u64 = 0x10_0000;

const RW: u64 = Pte::PRESENT | Pte::RW | Pte::USER;

/// A core with 2.5 MiB of memory and no domain.
pub fn core() -> Core {
    core_of(640)
}

/// A core with `frames` frames of memory and no domain.
pub fn core_of(frames: usize) -> Core {
    Core::new(fake::table(frames))
}

/// Adds a running domain with `vcpus` vCPUs, the first of which is online and gives the caller.
pub fn domain(core: &mut Core, id: u16, vcpus: u32) -> Caller {
    let dom = DomId::new(id);
    let asked = CreateDomain { max_vcpus: vcpus, max_pages: 1000, ..Default::default() };
    lifecycle::new_domain(core, dom, &asked).unwrap();
    let [l4, l3, l2, l1] = core::array::from_fn(|_| core.frames.alloc_domain(dom, 0).unwrap());
    let mem = core.frames.mem();
    for (table, target) in [(l4, l3), (l3, l2), (l2, l1)] {
        mem.write_u64(table.maddr(), target.maddr().get() | RW);
    }
    for n in 0..PAGES {
        let page = core.frames.alloc_domain(dom, 0).unwrap();
        mem.write_u64(validate::entry_at(l1, n as u16), page.maddr().get() | RW);
    }
    let mut budget = Budget::default();
    let mut walk = Walk { budget: &mut budget, io: &|_| false };
    core.frames.pin(l4, dom, Level::L4, &mut walk).unwrap();
    for n in 0..vcpus {
        update::get_root(core, dom, l4).unwrap();
        let vcpu = core.domains.get_mut(dom).unwrap().vcpu_mut(VcpuId::new(n)).unwrap();
        vcpu.roots.kernel = Some(l4);
        vcpu.initialised = true;
    }
    core.domains.get_mut(dom).unwrap().pauses = 0;
    lifecycle::bring_online(core, dom, VcpuId::new(0));
    Caller { cpu: CpuId(0), dom, vcpu: VcpuId::new(0) }
}

/// Address of a test domain's page.
pub const fn page(n: u64) -> u64 {
    n * PAGE_SIZE as u64
}

/// The frame behind an address of a domain.
pub fn frame_at(core: &Core, caller: Caller, va: u64) -> Mfn {
    let at = core.guest(caller).translate(GuestVa::new(va), crate::memory::guest::Access::Read);
    at.unwrap().mfn()
}

/// Writes into a domain's memory.
pub fn put<T: IntoBytes + Immutable>(core: &Core, caller: Caller, va: u64, value: &T) {
    core.guest(caller).write(GuestVa::new(va), value).unwrap();
}

/// Reads from a domain's memory.
pub fn get<T: FromBytes>(core: &Core, caller: Caller, va: u64) -> T {
    core.guest(caller).read(GuestVa::new(va)).unwrap()
}
