//! Attempts to have a page table accepted that it must not have.

use super::{
    Attempt, Env, Verdict,
    env::{RO, RW, TABLE},
    expect_errno,
};
use bulkhead_abi::{DomId, Mfn, mmu::*};

const PSE: u64 = 1 << 7;

fn pin(env: &Env, cmd: u32, mfn: Mfn) -> i64 {
    env.extended(cmd, mfn.get(), 0, DomId::SELF)
}

/// Fills the spare page with one entry, makes it read-only, pins it.
fn pin_filled(env: &mut Env, cmd: u32, index: usize, entry: u64) -> Verdict {
    env.spare.shared().write_u64(index * 8, entry);
    let rax = env.with_spare_read_only(|env| {
        let rax = pin(env, cmd, env.spare.mfn(0));
        if rax == 0 {
            let _ = pin(env, MMUEXT_UNPIN_TABLE, env.spare.mfn(0));
        }
        rax
    });
    expect_errno(rax)
}

fn foreign(env: &mut Env, attempt: impl FnOnce(&mut Env, Mfn) -> i64) -> Verdict {
    match env.foreign {
        Some(mfn) => expect_errno(attempt(env, mfn)),
        None => Verdict::Skipped("no frame of another domain in sight"),
    }
}

/// An L4 entry of a slot nobody uses.
fn free_l4_entry(env: &Env) -> bulkhead_abi::Maddr {
    bulkhead_abi::Maddr::new(env.path[0].maddr().get() + 200 * 8)
}

fn slot(env: &Env, slot: u64) -> i64 {
    let entry = bulkhead_abi::Maddr::new(env.path[0].maddr().get() + slot * 8);
    env.update(entry, env.path[1].maddr().get() | TABLE)
}

pub const ATTEMPTS: &[Attempt] = &[
    ("make a 2 MiB mapping", |e| expect_errno(e.update(e.entry(2), 0x20_0000 | TABLE | PSE))),
    ("make a 1 GiB mapping", |e| expect_errno(e.update(e.entry(3), TABLE | PSE))),
    ("replace the core's first slot", |e| expect_errno(slot(e, 256))),
    ("replace the core's map of memory", |e| expect_errno(slot(e, 262))),
    ("replace the core's last slot", |e| expect_errno(slot(e, 271))),
    ("clear the core's own slot", |e| {
        let entry = bulkhead_abi::Maddr::new(e.path[0].maddr().get() + 260 * 8);
        expect_errno(e.update(entry, 0))
    }),
    ("link an L4 slot to another domain's frame", |e| {
        foreign(e, |e, mfn| e.update(free_l4_entry(e), mfn.maddr().get() | TABLE))
    }),
    ("link an L4 slot to a core frame", |e| {
        expect_errno(e.update(free_l4_entry(e), e.core_frame().maddr().get() | TABLE))
    }),
    ("link an L4 slot to itself, writable", |e| {
        expect_errno(e.update(free_l4_entry(e), e.path[0].maddr().get() | TABLE))
    }),
    ("link an L2 entry to a data page", |e| {
        let entry = bulkhead_abi::Maddr::new(e.path[2].maddr().get() + 511 * 8);
        expect_errno(e.update(entry, e.spare.maddr(0).get() | TABLE))
    }),
    ("link an L2 entry to an L4", |e| {
        let entry = bulkhead_abi::Maddr::new(e.path[2].maddr().get() + 511 * 8);
        expect_errno(e.update(entry, e.path[0].maddr().get() | TABLE))
    }),
    ("link an L3 entry to an L1", |e| {
        let entry = bulkhead_abi::Maddr::new(e.path[1].maddr().get() + 511 * 8);
        expect_errno(e.update(entry, e.path[3].maddr().get() | TABLE))
    }),
    ("pin its L1 as an L2", |e| expect_errno(pin(e, MMUEXT_PIN_L2_TABLE, e.path[3]))),
    ("pin its L4 as an L1", |e| expect_errno(pin(e, MMUEXT_PIN_L1_TABLE, e.path[0]))),
    ("pin a page it can write", |e| expect_errno(pin(e, MMUEXT_PIN_L1_TABLE, e.spare.mfn(0)))),
    ("pin a page it can write as a root", |e| {
        expect_errno(pin(e, MMUEXT_PIN_L4_TABLE, e.spare.mfn(0)))
    }),
    ("pin a core frame", |e| expect_errno(pin(e, MMUEXT_PIN_L1_TABLE, e.core_frame()))),
    ("pin another domain's frame", |e| foreign(e, |e, mfn| pin(e, MMUEXT_PIN_L1_TABLE, mfn))),
    ("pin a table of Dom0 by naming Dom0", |e| {
        foreign(e, |e, mfn| e.extended(MMUEXT_PIN_L4_TABLE, mfn.get(), 0, DomId::DOM0))
    }),
    ("pin an L1 that maps a core frame", |e| {
        let entry = e.core_frame().maddr().get() | RO;
        pin_filled(e, MMUEXT_PIN_L1_TABLE, 17, entry)
    }),
    ("pin an L1 that maps another domain's frame", |e| match e.foreign {
        Some(mfn) => pin_filled(e, MMUEXT_PIN_L1_TABLE, 511, mfn.maddr().get() | RO),
        None => Verdict::Skipped("no frame of another domain in sight"),
    }),
    ("pin an L1 that maps itself writable", |e| {
        let entry = e.spare.maddr(0).get() | RW;
        pin_filled(e, MMUEXT_PIN_L1_TABLE, 0, entry)
    }),
    ("pin an L1 that maps the root writable", |e| {
        let entry = e.path[0].maddr().get() | RW;
        pin_filled(e, MMUEXT_PIN_L1_TABLE, 3, entry)
    }),
    ("pin an L2 with a large page", |e| pin_filled(e, MMUEXT_PIN_L2_TABLE, 1, TABLE | PSE)),
    ("pin an L3 that links to a data page it can write", |e| {
        let other = domain_rt::mem::alloc_pages(1).expect("a page");
        pin_filled(e, MMUEXT_PIN_L3_TABLE, 1, other.maddr(0).get() | TABLE)
    }),
    ("pin an L4 that links to itself", |e| {
        let entry = e.spare.maddr(0).get() | TABLE;
        pin_filled(e, MMUEXT_PIN_L4_TABLE, 0, entry)
    }),
    ("unpin what is not pinned", |e| expect_errno(pin(e, MMUEXT_UNPIN_TABLE, e.spare.mfn(0)))),
    ("unpin a core frame", |e| expect_errno(pin(e, MMUEXT_UNPIN_TABLE, e.core_frame()))),
    ("unpin another domain's frame", |e| foreign(e, |e, mfn| pin(e, MMUEXT_UNPIN_TABLE, mfn))),
    ("take a data page as root", |e| expect_errno(pin(e, MMUEXT_NEW_BASEPTR, e.spare.mfn(0)))),
    ("take its own L1 as root", |e| expect_errno(pin(e, MMUEXT_NEW_BASEPTR, e.path[3]))),
    ("take another domain's frame as root", |e| {
        foreign(e, |e, mfn| pin(e, MMUEXT_NEW_BASEPTR, mfn))
    }),
    ("take a core frame as user root", |e| {
        expect_errno(pin(e, MMUEXT_NEW_USER_BASEPTR, e.core_frame()))
    }),
    ("take a frame past the end as root", |e| expect_errno(pin(e, MMUEXT_NEW_BASEPTR, e.past_end))),
    ("clear a core frame", |e| expect_errno(pin(e, MMUEXT_CLEAR_PAGE, e.core_frame()))),
    ("clear its own L1", |e| expect_errno(pin(e, MMUEXT_CLEAR_PAGE, e.path[3]))),
    ("copy a core frame to its own page", |e| {
        expect_errno(e.extended(
            MMUEXT_COPY_PAGE,
            e.spare.mfn(0).get(),
            e.core_frame().get(),
            DomId::SELF,
        ))
    }),
    ("copy its page over its own L2", |e| {
        expect_errno(e.extended(
            MMUEXT_COPY_PAGE,
            e.path[2].get(),
            e.spare.mfn(0).get(),
            DomId::SELF,
        ))
    }),
    ("load a local descriptor table in the core's hole", |e| {
        expect_errno(e.extended(MMUEXT_SET_LDT, HOLE_START, 8, DomId::SELF))
    }),
    ("load a local descriptor table of 8193 entries", |e| {
        expect_errno(e.extended(MMUEXT_SET_LDT, e.spare.va(), 8193, DomId::SELF))
    }),
];
