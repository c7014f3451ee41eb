use super::*;
use crate::{
    fixture::{self, HOLE, PAGES, frame_at, get, page, put},
    memory::{
        frame::{FrameType, Owner},
        reserve,
    },
};
use bulkhead_abi::VcpuId;

/// Where the tests keep lists and counts.
const LIST: u64 = page(1);
const DONE: u64 = page(2);
const SELF: u64 = 0x7ff0;
const RW: u64 = Pte::PRESENT | Pte::RW | Pte::USER;

fn machine() -> (Core, Caller) {
    let mut core = fixture::core();
    let caller = fixture::domain(&mut core, 1, 1);
    (core, caller)
}

/// Repeats a call as the guest would, until it ends.
fn run(
    core: &mut Core,
    caller: Caller,
    call: fn(&mut Core, Caller, [u64; 6]) -> Outcome,
    mut args: [u64; 6],
) -> (i64, usize) {
    for stays in 1..1000 {
        match call(core, caller, args) {
            Outcome::Done(result) => return (result, stays),
            Outcome::Again(next) => args[..5].copy_from_slice(&next),
            Outcome::Replaced => panic!("the registers are nobody's business here"),
        }
    }
    panic!("it never ends");
}

fn update(core: &mut Core, caller: Caller, requests: &[(u64, u64)], dom: u64) -> i64 {
    for (n, &(ptr, val)) in requests.iter().enumerate() {
        put(core, caller, LIST + 16 * n as u64, &nr::MmuUpdate { ptr, val });
    }
    run(core, caller, mmu_update, [LIST, requests.len() as u64, DONE, dom, 0, 0]).0
}

fn extended(core: &mut Core, caller: Caller, ops: &[(u32, u64, u64)], dom: u64) -> i64 {
    for (n, &(cmd, arg1, arg2)) in ops.iter().enumerate() {
        put(core, caller, LIST + 24 * n as u64, &nr::MmuextOp { cmd, _pad: 0, arg1, arg2 });
    }
    run(core, caller, mmuext_op, [LIST, ops.len() as u64, DONE, dom, 0, 0]).0
}

fn map(core: &mut Core, caller: Caller, va: u64, value: u64, flags: u64) -> i64 {
    run(core, caller, update_va_mapping, [va, value, flags, 0, 0, 0]).0
}

fn done(core: &Core, caller: Caller) -> u32 {
    get(core, caller, DONE)
}

fn no(errno: Errno) -> i64 {
    errno.to_rax()
}

fn kernel_root(core: &Core, caller: Caller) -> Mfn {
    core.vcpu(caller).unwrap().roots.kernel.unwrap()
}

fn entry_of(core: &Core, caller: Caller, va: u64) -> u64 {
    update::l1_entry_of(&core.frames, kernel_root(core, caller), GuestVa::new(va)).unwrap().get()
}

/// A zeroed frame of the domain that nothing maps.
fn spare(core: &mut Core, dom: DomId) -> Mfn {
    reserve::populate(core, dom, 0, None).unwrap()
}

#[test]
fn a_batch_stops_at_the_first_refusal_and_says_how_far_it_came() {
    let (mut core, caller) = machine();
    let a = entry_of(&core, caller, HOLE);
    let frame = spare(&mut core, caller.dom).maddr().get();
    let requests = [(a, frame | RW), (a + 8, 0xdead_0000_0000 | RW), (a + 16, frame | RW)];
    assert_eq!(update(&mut core, caller, &requests, SELF), no(Errno::EPERM));
    assert_eq!(done(&core, caller), 1);
    assert_eq!(core.frames.mem().read_u64(Maddr::new(a)), frame | RW);
    assert_eq!(core.frames.mem().read_u64(Maddr::new(a + 16)), 0);
}

#[test]
fn no_entry_makes_a_page_table_writable_by_any_of_the_calls() {
    let (mut core, caller) = machine();
    let hole = entry_of(&core, caller, HOLE);
    let l1 = Maddr::new(hole).mfn().maddr().get();
    let root = kernel_root(&core, caller).maddr().get();
    for table in [l1, root] {
        assert_eq!(update(&mut core, caller, &[(hole, table | RW)], SELF), no(Errno::EBUSY));
        assert_eq!(map(&mut core, caller, HOLE, table | RW, 0), no(Errno::EBUSY));
        assert_eq!(map(&mut core, caller, HOLE, table | Pte::PRESENT, 0), 0);
        assert_eq!(map(&mut core, caller, HOLE, table | RW, 0), no(Errno::EBUSY));
        assert_eq!(map(&mut core, caller, HOLE, 0, 0), 0);
    }
    let clear = (nr::MMUEXT_CLEAR_PAGE, l1 >> 12, 0);
    assert_eq!(extended(&mut core, caller, &[clear], SELF), no(Errno::EINVAL));
    let copy = (nr::MMUEXT_COPY_PAGE, l1 >> 12, frame_at(&core, caller, page(3)).get());
    assert_eq!(extended(&mut core, caller, &[copy], SELF), no(Errno::EINVAL));
}

#[test]
fn frames_of_others_can_be_neither_mapped_nor_pinned_nor_written() {
    let (mut core, caller) = machine();
    let other = fixture::domain(&mut core, 2, 1);
    let theirs = frame_at(&core, other, page(3));
    let hole = entry_of(&core, caller, HOLE);
    for bits in [RW, Pte::PRESENT] {
        assert_eq!(
            update(&mut core, caller, &[(hole, theirs.maddr().get() | bits)], SELF),
            no(Errno::EBUSY)
        );
    }
    assert_eq!(update(&mut core, caller, &[(theirs.maddr().get(), 0)], SELF), no(Errno::EINVAL));
    assert_eq!(
        update(&mut core, caller, &[(theirs.maddr().get() | 1, 7)], SELF),
        no(Errno::EINVAL)
    );
    assert_eq!(
        extended(&mut core, caller, &[(nr::MMUEXT_PIN_L1_TABLE, theirs.get(), 0)], SELF),
        no(Errno::EINVAL)
    );
    assert_eq!(
        extended(&mut core, caller, &[(nr::MMUEXT_UNPIN_TABLE, theirs.get(), 0)], SELF),
        no(Errno::EINVAL)
    );
    for dom in [0, 2, 5, 1 << 16 | SELF, 3 << 16 | SELF] {
        assert_eq!(update(&mut core, caller, &[(hole, 0)], dom), no(Errno::EPERM), "{dom:#x}");
    }
    for dom in [0, 2, 5] {
        let unpin = (nr::MMUEXT_UNPIN_TABLE, theirs.get(), 0);
        assert_eq!(extended(&mut core, caller, &[unpin], dom), no(Errno::EPERM));
    }
}

#[test]
fn dom0_fills_and_pins_the_tables_of_a_domain_it_builds() {
    let mut core = fixture::core();
    let dom0 = fixture::domain(&mut core, 0, 1);
    let guest = fixture::domain(&mut core, 5, 1);
    let table = spare(&mut core, guest.dom);
    let hole = entry_of(&core, dom0, HOLE);
    let foreign = table.maddr().get() | RW;
    assert_eq!(update(&mut core, dom0, &[(hole, foreign)], SELF), no(Errno::EBUSY));
    assert_eq!(update(&mut core, dom0, &[(hole, foreign)], 5), 0);
    put(&core, dom0, HOLE + 8, &(frame_at(&core, guest, page(2)).maddr().get() | RW));
    let pin = [(nr::MMUEXT_PIN_L1_TABLE, table.get(), 0)];
    assert_eq!(extended(&mut core, dom0, &pin, 5), no(Errno::EINVAL), "still mapped writable");
    assert_eq!(update(&mut core, dom0, &[(hole, 0)], SELF), 0);
    assert_eq!(extended(&mut core, dom0, &pin, SELF), no(Errno::EINVAL), "not Dom0's own");
    assert_eq!(extended(&mut core, dom0, &pin, 5), 0);
    assert_eq!(core.frames.frame_type(table), FrameType::Table(Level::L1));
    assert_eq!(
        update(&mut core, dom0, &[(table.maddr().get() | nr::MMU_MACHPHYS_UPDATE, 99)], 5),
        0
    );
    assert_eq!(core.frames.m2p(table), 99);
    assert_eq!(update(&mut core, dom0, &[(hole, 0)], 77), no(Errno::ESRCH));
    assert_eq!(extended(&mut core, dom0, &[(nr::MMUEXT_NEW_BASEPTR, 1, 0)], 5), no(Errno::EPERM));
    let args = [HOLE, table.maddr().get() | Pte::PRESENT, 0, 5, 0, 0];
    assert_eq!(run(&mut core, dom0, update_va_mapping_otherdomain, args).0, 0);
    assert_eq!(
        run(&mut core, guest, update_va_mapping_otherdomain, [HOLE, 0, 0, 0, 0, 0]).0,
        no(Errno::EPERM)
    );
}

#[test]
fn preserving_bits_keeps_accessed_and_dirty_and_a_plain_update_does_not() {
    let (mut core, caller) = machine();
    let at = entry_of(&core, caller, page(5));
    put(&core, caller, page(5), &1u8);
    let value = frame_at(&core, caller, page(5)).maddr().get() | Pte::PRESENT | Pte::USER;
    let read = |core: &Core| core.frames.mem().read_u64(Maddr::new(at));
    assert_eq!(update(&mut core, caller, &[(at | nr::MMU_PT_UPDATE_PRESERVE_AD, value)], SELF), 0);
    assert_eq!(read(&core), value | Pte::ACCESSED | Pte::DIRTY);
    assert_eq!(update(&mut core, caller, &[(at | nr::MMU_PT_UPDATE_NO_TRANSLATE, value)], SELF), 0);
    assert_eq!(read(&core), value);
}

#[test]
fn a_frame_that_is_no_table_is_written_as_it_is() {
    let (mut core, caller) = machine();
    let at = frame_at(&core, caller, page(5)).maddr().get();
    put(&core, caller, page(5), &u64::MAX);
    let nonsense = 0xffff_ffff_ffff_f001;
    assert_eq!(
        update(&mut core, caller, &[(at | nr::MMU_PT_UPDATE_PRESERVE_AD, nonsense)], SELF),
        0
    );
    assert_eq!(get::<u64>(&core, caller, page(5)), nonsense);
    assert_eq!(update(&mut core, caller, &[(at + 4, 0)], SELF), no(Errno::EINVAL), "not aligned");
}

#[test]
fn core_slots_of_an_l4_are_refused() {
    let (mut core, caller) = machine();
    let root = kernel_root(&core, caller).maddr().get();
    for slot in [256, 264, 271] {
        assert_eq!(update(&mut core, caller, &[(root + 8 * slot, 0)], SELF), no(Errno::EINVAL));
    }
    for slot in [255, 272] {
        assert_eq!(update(&mut core, caller, &[(root + 8 * slot, 0)], SELF), 0);
    }
}

#[test]
fn update_va_mapping_wants_a_table_and_an_address_that_is_the_guests() {
    let (mut core, caller) = machine();
    for va in [1 << 30, 1 << 39, nr::HOLE_START, nr::M2P_START + 8, 0x8000_0000_0000] {
        assert_eq!(map(&mut core, caller, va, 0, 0), no(Errno::EINVAL), "{va:#x}");
    }
}

#[test]
fn update_va_mapping_flushes_as_asked() {
    let (mut core, caller) = machine();
    let mut flush = |flags| {
        core.cpus[0].flush = Flush::None;
        let result = map(&mut core, caller, HOLE, 0, flags);
        (result, core.cpus[0].flush)
    };
    assert_eq!(flush(0), (0, Flush::None));
    assert_eq!(flush(nr::UVMF_INVLPG | nr::UVMF_ALL), (0, Flush::Page(GuestVa::new(HOLE))));
    assert_eq!(flush(nr::UVMF_TLB_FLUSH), (0, Flush::All));
    assert_eq!(flush(nr::UVMF_INVLPG | page(3)), (0, Flush::Page(GuestVa::new(HOLE))));
    assert_eq!(flush(nr::UVMF_INVLPG | nr::HOLE_START).0, no(Errno::EFAULT));
}

#[test]
fn a_bad_list_is_a_fault_and_a_bad_count_pointer_is_no_matter() {
    let (mut core, caller) = machine();
    for list in [HOLE, nr::HOLE_START, u64::MAX - 3] {
        assert_eq!(
            run(&mut core, caller, mmu_update, [list, 1, 0, SELF, 0, 0]).0,
            no(Errno::EFAULT)
        );
        assert_eq!(
            run(&mut core, caller, mmuext_op, [list, 1, 0, SELF, 0, 0]).0,
            no(Errno::EFAULT)
        );
    }
    assert_eq!(run(&mut core, caller, mmu_update, [HOLE, 0, HOLE, SELF, 0, 0]).0, 0);
    // Zeroes are requests too: a store to frame 0, which is not the guest's.
    let largest = u64::from(u32::MAX >> 1);
    assert_eq!(
        run(&mut core, caller, mmu_update, [page(PAGES - 1), largest, DONE, SELF, 0, 0]).0,
        no(Errno::EINVAL)
    );
}

#[test]
fn a_long_batch_continues_and_counts_on() {
    let (mut core, caller) = machine();
    let frame = frame_at(&core, caller, page(13)).maddr().get();
    // Nine pages of requests, each a harmless store into a page of data.
    let count = 9 * 256;
    for n in 0..count {
        put(&core, caller, page(3) + 16 * n, &nr::MmuUpdate { ptr: frame + 0xff8, val: n });
    }
    let args = [page(3), count, DONE, SELF, 0, 0];
    let (result, stays) = run(&mut core, caller, mmu_update, args);
    assert_eq!((result, done(&core, caller)), (0, count as u32));
    assert_eq!(stays, 1);
    // Twenty empty tables take more than one stay to pin, and to unpin.
    let tables: Vec<Mfn> = (0..20).map(|_| spare(&mut core, caller.dom)).collect();
    for (command, stop) in [
        (nr::MMUEXT_PIN_L1_TABLE, FrameType::Table(Level::L1)),
        (nr::MMUEXT_UNPIN_TABLE, FrameType::None),
    ] {
        for (n, table) in tables.iter().enumerate() {
            let op = nr::MmuextOp { cmd: command, _pad: 0, arg1: table.get(), arg2: 0 };
            put(&core, caller, LIST + 24 * n as u64, &op);
        }
        let (result, stays) = run(&mut core, caller, mmuext_op, [LIST, 20, DONE, SELF, 0, 0]);
        assert_eq!((result, done(&core, caller)), (0, 20));
        assert!((3..=5).contains(&stays), "{stays} stays");
        assert!(tables.iter().all(|&table| core.frames.frame_type(table) == stop));
    }
}

#[test]
fn a_new_root_holds_its_tables_and_the_old_one_is_let_go() {
    let (mut core, caller) = machine();
    let old = kernel_root(&core, caller);
    let new = spare(&mut core, caller.dom);
    for slot in 0..512 {
        let entry = core.frames.mem().read_u64(validate::entry_at(old, slot));
        core.frames.mem().write_u64(validate::entry_at(new, slot), entry);
    }
    let ops = [(nr::MMUEXT_NEW_BASEPTR, new.get(), 0), (nr::MMUEXT_NEW_USER_BASEPTR, old.get(), 0)];
    assert_eq!(extended(&mut core, caller, &ops, SELF), 0);
    assert_eq!((kernel_root(&core, caller), core.cpus[0].flush), (new, Flush::All));
    assert_eq!(core.vcpu(caller).unwrap().roots.user, Some(old));
    // The builder pinned the old one: as Linux does, unpin it and write it.
    let ops = [(nr::MMUEXT_NEW_USER_BASEPTR, 0, 0), (nr::MMUEXT_UNPIN_TABLE, old.get(), 0)];
    assert_eq!(extended(&mut core, caller, &ops, SELF), 0);
    assert_eq!(core.vcpu(caller).unwrap().roots.user, None);
    assert_eq!(map(&mut core, caller, HOLE, old.maddr().get() | RW, nr::UVMF_INVLPG), 0);
    put(&core, caller, HOLE, &[0u8; 4096]);
}

#[test]
fn a_root_must_be_a_table_of_the_fourth_level() {
    let (mut core, caller) = machine();
    let root = kernel_root(&core, caller);
    let l1 = Maddr::new(entry_of(&core, caller, 0)).mfn();
    let data = frame_at(&core, caller, page(4));
    for bad in [0, l1.get(), data.get(), 1 << 40] {
        assert_eq!(
            extended(&mut core, caller, &[(nr::MMUEXT_NEW_BASEPTR, bad, 0)], SELF),
            no(Errno::EINVAL)
        );
    }
    assert_eq!(kernel_root(&core, caller), root);
}

#[test]
fn pages_are_cleared_and_copied() {
    let (mut core, caller) = machine();
    put(&core, caller, page(4), &0x1234_5678u64);
    let [from, to] = [page(4), page(5)].map(|va| frame_at(&core, caller, va).get());
    assert_eq!(extended(&mut core, caller, &[(nr::MMUEXT_COPY_PAGE, to, from)], SELF), 0);
    assert_eq!(get::<u64>(&core, caller, page(5)), 0x1234_5678);
    assert_eq!(extended(&mut core, caller, &[(nr::MMUEXT_CLEAR_PAGE, to, 0)], SELF), 0);
    assert_eq!(get::<u64>(&core, caller, page(5)), 0);
    assert_eq!(
        extended(&mut core, caller, &[(nr::MMUEXT_COPY_PAGE, to, 1 << 40)], SELF),
        no(Errno::EINVAL)
    );
}

#[test]
fn flushes_reach_the_processor_and_unknown_operations_do_not_exist() {
    let (mut core, caller) = machine();
    let mut flush = |cmd, arg1, arg2| {
        core.cpus[0].flush = Flush::None;
        (extended(&mut core, caller, &[(cmd, arg1, arg2)], SELF), core.cpus[0].flush)
    };
    let one = Flush::Page(GuestVa::new(HOLE));
    assert_eq!(flush(nr::MMUEXT_TLB_FLUSH_LOCAL, 0, 0), (0, Flush::All));
    assert_eq!(flush(nr::MMUEXT_TLB_FLUSH_ALL, 0, 0), (0, Flush::All));
    assert_eq!(flush(nr::MMUEXT_INVLPG_LOCAL, HOLE, 0), (0, one));
    assert_eq!(flush(nr::MMUEXT_INVLPG_LOCAL, nr::HOLE_START, 0), (0, Flush::None));
    assert_eq!(flush(nr::MMUEXT_TLB_FLUSH_MULTI, 0, page(3)), (0, Flush::All));
    assert_eq!(
        flush(nr::MMUEXT_INVLPG_MULTI, HOLE, nr::HOLE_START),
        (no(Errno::EINVAL), Flush::None)
    );
    assert_eq!(flush(nr::MMUEXT_FLUSH_CACHE, 0, 0).0, no(Errno::EACCES));
    assert_eq!(flush(nr::MMUEXT_MARK_SUPER, 0, 0).0, no(Errno::EOPNOTSUPP));
    for unknown in [14, 21, u32::MAX] {
        assert_eq!(flush(unknown, 0, 0).0, no(Errno::ENOSYS), "{unknown}");
    }
}

#[test]
fn a_vcpu_without_tables_gets_faults_and_refusals() {
    let (mut core, caller) = machine();
    let root = core
        .domains
        .get_mut(caller.dom)
        .unwrap()
        .vcpu_mut(VcpuId::new(0))
        .unwrap()
        .roots
        .kernel
        .take();
    assert_eq!(run(&mut core, caller, mmu_update, [LIST, 1, 0, SELF, 0, 0]).0, no(Errno::EFAULT));
    assert_eq!(map(&mut core, caller, HOLE, 0, 0), no(Errno::EINVAL));
    assert_eq!(core.frames.owner(root.unwrap()), Owner::Domain(caller.dom));
}

#[test]
fn an_emulated_write_changes_live_l1_entries_and_nothing_else() {
    let (mut core, caller) = machine();
    let at = Maddr::new(entry_of(&core, caller, page(9)));
    let old = core.frames.mem().read_u64(at);
    assert_eq!(update::emulated_write(&mut core, caller, at, |_| 0), Ok(old));
    assert_eq!(core.frames.mem().read_u64(at), 0);
    let table = at.mfn().maddr().get();
    assert_eq!(update::emulated_write(&mut core, caller, at, |_| table | RW), Err(Errno::EBUSY));
    let elsewhere = [
        kernel_root(&core, caller).maddr(),
        frame_at(&core, caller, page(4)).maddr(),
        Maddr::new(at.get() + 4),
        Maddr::new(1 << 50),
    ];
    for at in elsewhere {
        assert_eq!(
            update::emulated_write(&mut core, caller, at, |_| 0),
            Err(Errno::EINVAL),
            "{at}"
        );
    }
}
