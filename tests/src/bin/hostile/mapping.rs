//! Attempts to get a mapping of a frame that is not this domain's, or a writable one
//! of its own tables.

use super::{
    Attempt, Env, Verdict,
    env::{RO, RW, call},
    expect_errno, trap,
};
use bulkhead_abi::{
    DomId, Maddr, Mfn,
    hypercall::{UPDATE_VA_MAPPING, UPDATE_VA_MAPPING_OTHERDOMAIN},
    mmu::{HOLE_START, M2P_START, MMU_MACHPHYS_UPDATE},
};

const LAPIC: Mfn = Mfn::new(0xfee00);
const IOAPIC: Mfn = Mfn::new(0xfec00);

fn foreign(env: &mut Env, attempt: impl FnOnce(&mut Env, Mfn) -> i64) -> Verdict {
    match env.foreign {
        Some(mfn) => expect_errno(attempt(env, mfn)),
        None => Verdict::Skipped("no frame of another domain in sight"),
    }
}

/// Refused for every frame that the core keeps; the first that is not breaks it.
fn every_core_frame(env: &mut Env, flags: u64) -> Verdict {
    let frames = core::mem::take(&mut env.core);
    let verdict = frames
        .iter()
        .map(|&mfn| expect_errno(env.map(mfn, flags)))
        .find(|v| matches!(v, Verdict::Broken(_)))
        .unwrap_or(Verdict::Refused(frames.len() as i64));
    env.core = frames;
    verdict
}

fn faults(result: Result<u64, u64>) -> Verdict {
    match result {
        Err(vector) => Verdict::Refused(vector as i64),
        Ok(value) => Verdict::Broken(value as i64),
    }
}

pub const ATTEMPTS: &[Attempt] = &[
    ("map every frame of the core read-only", |e| every_core_frame(e, RO)),
    ("map every frame of the core writable", |e| every_core_frame(e, RW)),
    ("map another domain's frame read-only", |e| foreign(e, |e, mfn| e.map(mfn, RO))),
    ("map another domain's frame writable", |e| foreign(e, |e, mfn| e.map(mfn, RW))),
    ("map another domain's frame by update_va_mapping", |e| foreign(e, |e, mfn| e.map_va(mfn, RW))),
    ("map another domain's frame executable", |e| foreign(e, |e, mfn| e.map(mfn, 0x25))),
    ("map the local APIC", |e| expect_errno(e.map(LAPIC, RW))),
    ("map the I/O APIC", |e| expect_errno(e.map(IOAPIC, RW))),
    ("map the PCI configuration window", |e| expect_errno(e.map(Mfn::new(0xb0000), RW))),
    ("map the frame past the end of memory", |e| expect_errno(e.map(e.past_end, RW))),
    ("map a frame number of 40 bits", |e| expect_errno(e.map(Mfn::new((1 << 40) - 1), RO))),
    ("map the frame of real-mode vectors", |e| expect_errno(e.map(Mfn::new(0), RW))),
    ("map its own L1 writable", |e| expect_errno(e.map(e.path[3], RW))),
    ("map its own L2 writable", |e| expect_errno(e.map(e.path[2], RW))),
    ("map its own L3 writable", |e| expect_errno(e.map(e.path[1], RW))),
    ("map its own L4 writable", |e| expect_errno(e.map(e.path[0], RW))),
    ("map its own L1 writable by update_va_mapping", |e| expect_errno(e.map_va(e.path[3], RW))),
    ("map its own L4 writable and preserve A and D", |e| {
        let ptr = e.entry(1).get() | 2;
        expect_errno(e.update_as(ptr, e.path[0].maddr().get() | RW, DomId::SELF))
    }),
    ("make its own L1 writable through its own alias", |e| {
        let va = e.view(e.path[3]);
        expect_errno(call(UPDATE_VA_MAPPING, [va, e.path[3].maddr().get() | RW, 2, 0, 0]))
    }),
    ("store into its own L4", |e| faults(trap::write(e.view(e.path[0]), 0))),
    ("store into its own L2", |e| faults(trap::write(e.view(e.path[2]) + 8, 0))),
    ("store a core frame into its own L1", |e| {
        let at = e.view(e.path[3]) + e.entry(1).offset() as u64;
        faults(trap::write(at, e.core_frame().maddr().get() | RW))
    }),
    ("exchange a core frame into its own L1", |e| {
        let at = e.view(e.path[3]) + e.entry(1).offset() as u64;
        faults(trap::exchange(at, e.core_frame().maddr().get() | RO))
    }),
    ("store its own L4, writable, into its own L1", |e| {
        let at = e.view(e.path[3]) + e.entry(1).offset() as u64;
        faults(trap::write(at, e.path[0].maddr().get() | RW))
    }),
    ("store over an entry boundary of its own L1", |e| {
        let at = e.view(e.path[3]) + e.entry(1).offset() as u64 - 4;
        faults(trap::write(at, 0))
    }),
    ("update_va_mapping of an address in the core's hole", |e| {
        let own = e.spare.maddr(0).get() | RW;
        expect_errno(call(UPDATE_VA_MAPPING, [HOLE_START + (3 << 40), own, 2, 0, 0]))
    }),
    ("update_va_mapping of the machine-to-phys table", |e| {
        let own = e.spare.maddr(0).get() | RW;
        expect_errno(call(UPDATE_VA_MAPPING, [M2P_START, own, 2, 0, 0]))
    }),
    ("update_va_mapping of a non-canonical address", |e| {
        let own = e.spare.maddr(0).get() | RW;
        expect_errno(call(UPDATE_VA_MAPPING, [1 << 47, own, 2, 0, 0]))
    }),
    ("update_va_mapping in Dom0", |e| {
        let own = e.spare.maddr(0).get() | RW;
        expect_errno(call(UPDATE_VA_MAPPING_OTHERDOMAIN, [e.spare.va(), own, 2, 0, 0]))
    }),
    ("map Dom0's frame by naming Dom0", |e| {
        foreign(e, |e, mfn| e.update_as(e.entry(1).get(), mfn.maddr().get() | RW, DomId::DOM0))
    }),
    ("update Dom0's tables by naming Dom0 as their owner", |e| {
        let request = [bulkhead_abi::mmu::MmuUpdate { ptr: e.core_frame().maddr().get(), val: 0 }];
        expect_errno(call(
            bulkhead_abi::hypercall::MMU_UPDATE,
            [request.as_ptr() as u64, 1, 0, 1 << 16, 0],
        ))
    }),
    ("map device memory by naming DOMID_IO", |e| {
        expect_errno(e.update_as(e.entry(1).get(), LAPIC.maddr().get() | RW, DomId::IO))
    }),
    ("map a core frame by naming DOMID_XEN", |e| {
        expect_errno(e.update_as(e.entry(1).get(), e.core_frame().maddr().get() | RW, DomId::XEN))
    }),
    ("update an entry inside a core frame", |e| {
        expect_errno(e.update(e.core_frame().maddr(), e.spare.maddr(0).get() | RW))
    }),
    ("update an entry inside another domain's frame", |e| {
        foreign(e, |e, mfn| e.update(mfn.maddr(), e.spare.maddr(0).get() | RW))
    }),
    ("update an entry past the end of memory", |e| expect_errno(e.update(e.past_end.maddr(), 0))),
    ("update an entry at the last machine address", |e| expect_errno(e.update(Maddr::new(!7), 0))),
    ("rename a core frame in the machine-to-phys table", |e| {
        let ptr = e.core_frame().maddr().get() | MMU_MACHPHYS_UPDATE;
        expect_errno(e.update_as(ptr, 1, DomId::SELF))
    }),
    ("rename another domain's frame in the machine-to-phys table", |e| {
        foreign(e, |e, mfn| e.update_as(mfn.maddr().get() | MMU_MACHPHYS_UPDATE, 1, DomId::SELF))
    }),
    ("write the machine-to-phys table", |_| faults(trap::write(M2P_START, 0))),
    ("execute the machine-to-phys table", |_| faults(trap::execute(M2P_START))),
    ("read the core's map of memory", |_| faults(trap::read(0xffff_8300_0000_0000))),
    ("write the core's map of memory", |_| faults(trap::write(0xffff_8300_0000_1000, 0))),
    ("read the core's text", |_| faults(trap::read(bulkhead_abi::archive::CORE_BASE))),
    ("write the core's text", |_| faults(trap::write(bulkhead_abi::archive::CORE_BASE, 0))),
    ("execute the core's text", |_| faults(trap::execute(bulkhead_abi::archive::CORE_BASE))),
    ("execute its own data", |e| faults(trap::execute(e.spare.va()))),
];
