//! Page tables: `mmu_update`, `update_va_mapping`, `update_va_mapping_otherdomain` and
//! `mmuext_op` (xen.h).
//!
//! Each operation is all or nothing, and starts when what the one before left to be taken
//! apart is. A batch says how far it came. Work past the budget of a stay continues: the guest executes
//! the call again with the rest of the batch.
#![deny(unsafe_code)]

use super::Outcome;
use crate::{
    domain::Life,
    memory::{
        flush::Flush,
        frame::{
            FrameError,
            table::{Budget, TableError},
        },
        update::{self, Owners},
        validate::{self, Level, Pte},
    },
    state::{Caller, Core},
    trap::descriptor,
};
use bulkhead_abi::{DomId, Errno, GuestVa, Maddr, Mfn, mmu as nr};
use zerocopy::FromBytes;

/// Why an operation of a batch did not end well.
enum Stop {
    /// Not finished, or something had to be sent off first: try again.
    Again,
    Refused(Errno),
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Refused(error)
    }
}

impl From<TableError> for Stop {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Again | TableError::Frame(FrameError::Busy { .. }) => Self::Again,
            other => Self::Refused(other.into()),
        }
    }
}

impl From<FrameError> for Stop {
    fn from(error: FrameError) -> Self {
        TableError::from(error).into()
    }
}

type Operation<T> = fn(&mut Core, Caller, Owners, T, &mut Budget) -> Result<(), Stop>;

/// `mmu_update(requests, count, done, dom)`.
pub fn mmu_update(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    batch::<nr::MmuUpdate>(core, caller, args, update_entry)
}

/// `mmuext_op(operations, count, done, dom)`.
pub fn mmuext_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    batch::<nr::MmuextOp>(core, caller, args, extended)
}

/// `update_va_mapping(va, entry, flags)`.
pub fn update_va_mapping(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    set_mapping(core, caller, args, Ok(Owners::only(caller.dom)))
}

/// `update_va_mapping_otherdomain(va, entry, flags, dom)`: Dom0 maps a page of `dom`.
pub fn update_va_mapping_otherdomain(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let owners = resolve(core, caller, DomId::new(args[3] as u16))
        .map(|pages| Owners { tables: caller.dom, pages });
    set_mapping(core, caller, args, owners)
}

/// Runs the operations of a list of `T` in guest memory one by one.
fn batch<T: FromBytes>(
    core: &mut Core,
    caller: Caller,
    args: [u64; 6],
    operation: Operation<T>,
) -> Outcome {
    let [list, count, done_at, dom, ..] = args;
    let is_continued = count as u32 & nr::MMU_UPDATE_PREEMPTED != 0;
    let count = count as u32 & !nr::MMU_UPDATE_PREEMPTED;
    let before = if is_continued { read_done(core, caller, done_at) } else { 0 };
    let owners = match owners(core, caller, dom) {
        Ok(owners) => owners,
        Err(refused) => return refused.into(),
    };
    let mut budget = Budget::default();
    let mut result = Ok(());
    let mut index = 0;
    while index < count && result.is_ok() {
        let at = list.wrapping_add(u64::from(index) * size_of::<T>() as u64);
        match step(core, caller, owners, GuestVa::new(at), operation, &mut budget) {
            Ok(()) => index += 1,
            Err(Stop::Refused(errno)) => result = Err(errno),
            Err(Stop::Again) if budget.is_spent() => break,
            Err(Stop::Again) => {}
        }
    }
    let is_drained = drain(core, caller, owners, &mut budget);
    write_done(core, caller, done_at, before.wrapping_add(index));
    match result {
        Ok(()) if index < count || !is_drained => {
            let rest = list.wrapping_add(u64::from(index) * size_of::<T>() as u64);
            let left = u64::from((count - index) | nr::MMU_UPDATE_PREEMPTED);
            Outcome::Again([rest, left, done_at, dom, args[4]])
        }
        // What a refused operation left to be taken apart waits for the next call.
        other => other.map(|()| 0).into(),
    }
}

fn step<T: FromBytes>(
    core: &mut Core,
    caller: Caller,
    owners: Owners,
    at: GuestVa,
    operation: Operation<T>,
    budget: &mut Budget,
) -> Result<(), Stop> {
    if !drain(core, caller, owners, budget) || !budget.step() {
        return Err(Stop::Again);
    }
    let request = core.guest(caller).read::<T>(at).map_err(Errno::from)?;
    operation(core, caller, owners, request, budget)
}

/// Takes apart what lost its last reference, of all domains the call is about.
fn drain(core: &mut Core, caller: Caller, owners: Owners, budget: &mut Budget) -> bool {
    [caller.dom, owners.tables, owners.pages].into_iter().all(|dom| core.frames.drain(dom, budget))
}

/// `*done`, for which null is no address.
fn read_done(core: &Core, caller: Caller, at: u64) -> u32 {
    if at == 0 { 0 } else { core.guest(caller).read(GuestVa::new(at)).unwrap_or(0) }
}

fn write_done(core: &Core, caller: Caller, at: u64, done: u32) {
    if at != 0 {
        // The interface has no way to report that this alone failed.
        let _ = core.guest(caller).write(GuestVa::new(at), &done);
    }
}

/// The domain argument of a batch: pages in the low half, tables in the high half (plus one).
fn owners(core: &Core, caller: Caller, raw: u64) -> Result<Owners, Errno> {
    let tables = match (raw >> 16) as u16 {
        0 => caller.dom,
        other => resolve(core, caller, DomId::new(other - 1))?,
    };
    let pages = match DomId::new(raw as u16) {
        // Device memory is a matter of the tables' owner's rights.
        DomId::IO => tables,
        other => resolve(core, caller, other)?,
    };
    Ok(Owners { tables, pages })
}

/// Which domain the caller means, if it may.
fn resolve(core: &Core, caller: Caller, dom: DomId) -> Result<DomId, Errno> {
    if dom == DomId::SELF || dom == caller.dom {
        return Ok(caller.dom);
    }
    if caller.dom != DomId::DOM0 {
        return Err(Errno::EPERM);
    }
    match core.domains.get(dom) {
        Some(domain) if domain.life != Life::Dying => Ok(dom),
        _ => Err(Errno::ESRCH),
    }
}

/// One request of `mmu_update`.
fn update_entry(
    core: &mut Core,
    _: Caller,
    owners: Owners,
    request: nr::MmuUpdate,
    budget: &mut Budget,
) -> Result<(), Stop> {
    let at = Maddr::new(request.ptr & !3);
    let value = request.val;
    let command = request.ptr & 3;
    if command == nr::MMU_MACHPHYS_UPDATE {
        core.frames.get_page(at.mfn(), owners.pages)?;
        core.frames.set_m2p(at.mfn(), value);
        core.frames.put_page(at.mfn());
        return Ok(());
    }
    let keep = match command {
        nr::MMU_PT_UPDATE_PRESERVE_AD if validate_is_table(core, at) => Pte::ACCESSED | Pte::DIRTY,
        _ => 0,
    };
    write(core, owners, at, |old| value | old & keep, budget)
}

fn validate_is_table(core: &Core, at: Maddr) -> bool {
    Level::of(core.frames.frame_type(at.mfn())).is_some()
}

fn write(
    core: &mut Core,
    owners: Owners,
    at: Maddr,
    new: impl Fn(u64) -> u64,
    budget: &mut Budget,
) -> Result<(), Stop> {
    if !at.offset().is_multiple_of(8) {
        return Err(Errno::EINVAL.into());
    }
    update::with_walk(core, owners.tables, budget, |frames, walk| {
        update::write_entry(frames, owners, at, new, walk)
    })??;
    Ok(())
}

fn set_mapping(
    core: &mut Core,
    caller: Caller,
    args: [u64; 6],
    owners: Result<Owners, Errno>,
) -> Outcome {
    let [va, value, flags, ..] = args;
    let va = GuestVa::new(va);
    let mut budget = Budget::default();
    let result = owners.map_err(Stop::from).and_then(|owners| {
        loop {
            match map_one(core, caller, owners, va, value, &mut budget) {
                Err(Stop::Again) if !budget.is_spent() => {}
                other => break other,
            }
        }
    });
    match result {
        Ok(()) => flush_mapping(core, caller, va, flags).into(),
        Err(Stop::Refused(errno)) => errno.into(),
        Err(Stop::Again) => Outcome::Again([args[0], args[1], args[2], args[3], args[4]]),
    }
}

fn map_one(
    core: &mut Core,
    caller: Caller,
    owners: Owners,
    va: GuestVa,
    value: u64,
    budget: &mut Budget,
) -> Result<(), Stop> {
    if !drain(core, caller, owners, budget) || !budget.step() {
        return Err(Stop::Again);
    }
    let root = roots(core, caller)?.kernel.ok_or(Errno::EINVAL)?;
    let at = update::l1_entry_of(&core.frames, root, va).ok_or(Errno::EINVAL)?;
    write(core, owners, at, |_| value, budget)
}

/// The flush that `update_va_mapping` asks for.
///
/// Errors: `EFAULT` for a bad pointer to a set of vCPUs; the mapping has changed.
fn flush_mapping(core: &mut Core, caller: Caller, va: GuestVa, flags: u64) -> Result<i64, Errno> {
    let flush = match flags & nr::UVMF_FLUSHTYPE_MASK {
        nr::UVMF_TLB_FLUSH => Flush::All,
        nr::UVMF_INVLPG => Flush::Page(va),
        _ => return Ok(0),
    };
    core.request_flush(caller.cpu, flush);
    match flags & !nr::UVMF_FLUSHTYPE_MASK {
        nr::UVMF_LOCAL | nr::UVMF_ALL => {}
        set => drop(core.guest(caller).read::<u64>(GuestVa::new(set))?),
    }
    Ok(0)
}

/// One operation of `mmuext_op`.
fn extended(
    core: &mut Core,
    caller: Caller,
    owners: Owners,
    op: nr::MmuextOp,
    budget: &mut Budget,
) -> Result<(), Stop> {
    let (frame, va) = (Mfn::new(op.arg1), GuestVa::new(op.arg1));
    let whose = owners.pages;
    match op.cmd {
        nr::MMUEXT_PIN_L1_TABLE => pin(core, whose, frame, Level::L1, budget),
        nr::MMUEXT_PIN_L2_TABLE => pin(core, whose, frame, Level::L2, budget),
        nr::MMUEXT_PIN_L3_TABLE => pin(core, whose, frame, Level::L3, budget),
        nr::MMUEXT_PIN_L4_TABLE => pin(core, whose, frame, Level::L4, budget),
        nr::MMUEXT_UNPIN_TABLE => Ok(core.frames.unpin(frame, whose)?),
        nr::MMUEXT_CLEAR_PAGE => clear_page(core, whose, frame),
        nr::MMUEXT_COPY_PAGE => copy_page(core, whose, frame, Mfn::new(op.arg2)),
        nr::MMUEXT_MARK_SUPER | nr::MMUEXT_UNMARK_SUPER => Err(Errno::EOPNOTSUPP.into()),
        // The rest is about the caller's own vCPU.
        nr::MMUEXT_NEW_BASEPTR..=nr::MMUEXT_FLUSH_CACHE_GLOBAL if whose != caller.dom => {
            Err(Errno::EPERM.into())
        }
        nr::MMUEXT_NEW_BASEPTR => new_root(core, caller, frame, budget),
        nr::MMUEXT_NEW_USER_BASEPTR => new_user_root(core, caller, frame, budget),
        nr::MMUEXT_SET_LDT => Ok(descriptor::set_ldt(core, caller, va, op.arg2)?),
        nr::MMUEXT_FLUSH_CACHE | nr::MMUEXT_FLUSH_CACHE_GLOBAL => flush_cache(core, caller),
        _ => flush_tlb(core, caller, op),
    }
}

fn pin(
    core: &mut Core,
    dom: DomId,
    mfn: Mfn,
    level: Level,
    budget: &mut Budget,
) -> Result<(), Stop> {
    Ok(update::with_walk(core, dom, budget, |frames, walk| frames.pin(mfn, dom, level, walk))??)
}

fn clear_page(core: &mut Core, dom: DomId, mfn: Mfn) -> Result<(), Stop> {
    core.frames.get_writable(mfn, dom)?;
    core.frames.mem().zero_frame(mfn);
    core.frames.put_writable(mfn);
    Ok(())
}

fn copy_page(core: &mut Core, dom: DomId, to: Mfn, from: Mfn) -> Result<(), Stop> {
    core.frames.get_page(from, dom)?;
    let result = core.frames.get_writable(to, dom);
    if result.is_ok() {
        core.frames.mem().copy(from.maddr(), to.maddr(), bulkhead_abi::PAGE_SIZE);
        core.frames.put_writable(to);
    }
    core.frames.put_page(from);
    Ok(result?)
}

fn roots(core: &mut Core, caller: Caller) -> Result<&mut crate::domain::vcpu::Roots, Errno> {
    let domain = core.domains.get_mut(caller.dom).ok_or(Errno::ESRCH)?;
    Ok(&mut domain.vcpu_mut(caller.vcpu).ok_or(Errno::ESRCH)?.roots)
}

/// Takes the references of a root; the exit loads it, and [`Flush::All`] makes sure that it does.
fn take_root(core: &mut Core, caller: Caller, mfn: Mfn, budget: &mut Budget) -> Result<(), Stop> {
    let dom = caller.dom;
    update::with_walk(core, dom, budget, |frames, walk| {
        frames.get_table(mfn, dom, Level::L4, walk)
    })??;
    core.request_flush(caller.cpu, Flush::All);
    Ok(())
}

fn new_root(core: &mut Core, caller: Caller, mfn: Mfn, budget: &mut Budget) -> Result<(), Stop> {
    take_root(core, caller, mfn, budget)?;
    if let Some(old) = roots(core, caller)?.kernel.replace(mfn) {
        update::put_root(core, caller.dom, old);
    }
    Ok(())
}

/// Frame 0 stands for none.
fn new_user_root(
    core: &mut Core,
    caller: Caller,
    mfn: Mfn,
    budget: &mut Budget,
) -> Result<(), Stop> {
    let new = (mfn.get() != 0).then_some(mfn);
    if let Some(mfn) = new {
        take_root(core, caller, mfn, budget)?;
    }
    if let Some(old) = core::mem::replace(&mut roots(core, caller)?.user, new) {
        update::put_root(core, caller.dom, old);
    }
    Ok(())
}

/// Memory is mapped write-back only, so caches hold nothing that must be written out for a
/// device: for who has one, there is nothing to do.
fn flush_cache(core: &Core, caller: Caller) -> Result<(), Stop> {
    match core.domains.get(caller.dom) {
        Some(domain) if domain.is_driver || domain.is_privileged() => Ok(()),
        _ => Err(Errno::EACCES.into()),
    }
}

/// TLB flushes. With one CPU, every vCPU's flush is this CPU's.
fn flush_tlb(core: &mut Core, caller: Caller, op: nr::MmuextOp) -> Result<(), Stop> {
    let page = Some(GuestVa::new(op.arg1))
        .filter(|&va| validate::is_guest_va(va))
        .map_or(Flush::None, Flush::Page);
    if matches!(op.cmd, nr::MMUEXT_TLB_FLUSH_MULTI | nr::MMUEXT_INVLPG_MULTI) {
        let set = core.guest(caller).read::<u64>(GuestVa::new(op.arg2));
        set.map_err(|_| Errno::EINVAL)?;
    }
    let flush = match op.cmd {
        nr::MMUEXT_TLB_FLUSH_LOCAL | nr::MMUEXT_TLB_FLUSH_MULTI | nr::MMUEXT_TLB_FLUSH_ALL => {
            Flush::All
        }
        nr::MMUEXT_INVLPG_LOCAL | nr::MMUEXT_INVLPG_MULTI | nr::MMUEXT_INVLPG_ALL => page,
        _ => return Err(Errno::ENOSYS.into()),
    };
    core.request_flush(caller.cpu, flush);
    Ok(())
}

#[cfg(test)]
mod tests;
