//! Page tables: `mmu_update`, `update_va_mapping`, `update_va_mapping_otherdomain` and
//! `mmuext_op` (xen.h).
//!
//! Each operation is all or nothing, and starts when what the one before left to be taken
//! apart is. A batch says how far it came. Work past the budget of a stay continues: the guest executes
//! the call again with the rest of the batch.
#![deny(unsafe_code)]

use super::Outcome;
use crate::{
    domain::{Life, vcpu::Roots},
    memory::{
        flush::Flush,
        frame::{
            FrameType, Owner,
            table::{Budget, Owners},
        },
        update,
        validate::{self, Level, Pte},
    },
    state::{Caller, Core},
    trap::descriptor,
};
use bulkhead_abi::{DomId, Errno, GuestVa, Maddr, Mfn, mmu as nr};
use zerocopy::FromBytes;

/// How an operation ends. `EAGAIN`, which no guest gets to see: not finished, or something had to be
/// sent off first.
type Result<T = ()> = core::result::Result<T, Errno>;

/// A call under way.
struct Call<'a> {
    core: &'a mut Core,
    caller: Caller,
    owners: Owners,
    budget: Budget,
}

/// `mmu_update(requests, count, done, dom)`.
pub fn mmu_update(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    batch(core, caller, args, |call, request| call.update_entry(request))
}

/// `mmuext_op(operations, count, done, dom)`.
pub fn mmuext_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    batch(core, caller, args, |call, op| call.extended(op))
}

/// `update_va_mapping(va, entry, flags)`.
pub fn update_va_mapping(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    set_mapping(core, caller, args, caller.dom)
}

/// `update_va_mapping_otherdomain(va, entry, flags, dom)`: Dom0 maps a page of `dom`.
pub fn update_va_mapping_otherdomain(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    match resolve(core, caller, DomId::new(args[3] as u16)) {
        Ok(pages) => set_mapping(core, caller, args, pages),
        Err(refused) => refused.into(),
    }
}

/// Runs the operations of a list of `T` in guest memory one by one.
fn batch<T: FromBytes>(
    core: &mut Core,
    caller: Caller,
    args: [u64; 6],
    operation: fn(&mut Call, T) -> Result,
) -> Outcome {
    let [list, count, done_at, dom, ..] = args;
    let is_continued = count as u32 & nr::MMU_UPDATE_PREEMPTED != 0;
    let count = count as u32 & !nr::MMU_UPDATE_PREEMPTED;
    let before = if is_continued { read_done(core, caller, done_at) } else { 0 };
    let owners = match owners(core, caller, dom) {
        Ok(owners) => owners,
        Err(refused) => return refused.into(),
    };
    let mut call = Call { core, caller, owners, budget: Budget::default() };
    let at = |index| GuestVa::new(list.wrapping_add(u64::from(index) * size_of::<T>() as u64));
    let mut result = Ok(());
    let mut index = 0;
    while index < count && result.is_ok() {
        result = call.insist(|call| {
            let request = call.core.guest(caller).read(at(index))?;
            operation(call, request)
        });
        index += u32::from(result.is_ok());
    }
    let is_drained = call.drain();
    write_done(core, caller, done_at, before.wrapping_add(index));
    match result {
        Ok(()) if is_drained => Outcome::Done(0),
        Ok(()) | Err(Errno::EAGAIN) => {
            let left = u64::from((count - index) | nr::MMU_UPDATE_PREEMPTED);
            Outcome::Again([at(index).get(), left, done_at, dom, args[4]])
        }
        // What a refused operation left to be taken apart waits for the next call.
        Err(refused) => refused.into(),
    }
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
fn owners(core: &Core, caller: Caller, raw: u64) -> Result<Owners> {
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
fn resolve(core: &Core, caller: Caller, dom: DomId) -> Result<DomId> {
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

/// Maps a page of `pages` at an address of the caller's.
fn set_mapping(core: &mut Core, caller: Caller, args: [u64; 6], pages: DomId) -> Outcome {
    let [va, value, flags, ..] = args;
    let va = GuestVa::new(va);
    let owners = Owners { tables: caller.dom, pages };
    let mut call = Call { core, caller, owners, budget: Budget::default() };
    let result = call.insist(|call| {
        let root = call.roots()?.kernel.ok_or(Errno::EINVAL)?;
        let at = update::l1_entry_of(&call.core.frames, root, va).ok_or(Errno::EINVAL)?;
        call.write(at, |_| value)
    });
    match result {
        Ok(()) => flush_mapping(core, caller, va, flags).into(),
        Err(Errno::EAGAIN) => Outcome::Again([args[0], args[1], args[2], args[3], args[4]]),
        Err(refused) => refused.into(),
    }
}

/// The flush that `update_va_mapping` asks for.
///
/// Errors: `EFAULT` for a bad pointer to a set of vCPUs; the mapping has changed.
fn flush_mapping(core: &mut Core, caller: Caller, va: GuestVa, flags: u64) -> Result {
    let flush = match flags & nr::UVMF_FLUSHTYPE_MASK {
        nr::UVMF_TLB_FLUSH => Flush::All,
        nr::UVMF_INVLPG => Flush::Page(va),
        _ => return Ok(()),
    };
    core.request_flush(caller.cpu, flush);
    match flags & !nr::UVMF_FLUSHTYPE_MASK {
        nr::UVMF_LOCAL | nr::UVMF_ALL => {}
        set => drop(core.guest(caller).read::<u64>(GuestVa::new(set))?),
    }
    Ok(())
}

impl Call<'_> {
    /// Tries an operation until it is done or refused; `EAGAIN` when the budget ended first.
    fn insist(&mut self, mut operation: impl FnMut(&mut Self) -> Result) -> Result {
        loop {
            let is_ready = self.drain() && self.budget.step();
            match if is_ready { operation(self) } else { Err(Errno::EAGAIN) } {
                Err(Errno::EAGAIN) if !self.budget.is_spent() => {}
                other => return other,
            }
        }
    }

    /// Takes apart what lost its last reference, of all domains the call is about.
    fn drain(&mut self) -> bool {
        [self.caller.dom, self.owners.tables, self.owners.pages]
            .into_iter()
            .all(|dom| self.core.frames.drain(dom, &mut self.budget))
    }

    /// One request of `mmu_update`.
    fn update_entry(&mut self, request: nr::MmuUpdate) -> Result {
        let (at, value) = (Maddr::new(request.ptr & !3), request.val);
        let frames = &mut self.core.frames;
        let keep = match request.ptr & 3 {
            nr::MMU_MACHPHYS_UPDATE
                if frames.owner(at.mfn()) != Owner::Domain(self.owners.pages) =>
            {
                return Err(Errno::EINVAL);
            }
            nr::MMU_MACHPHYS_UPDATE => {
                frames.set_m2p(at.mfn(), value);
                return Ok(());
            }
            nr::MMU_PT_UPDATE_PRESERVE_AD
                if matches!(frames.frame_type(at.mfn()), FrameType::Table(_)) =>
            {
                Pte::ACCESSED | Pte::DIRTY
            }
            _ => 0,
        };
        self.write(at, |old| value | old & keep)
    }

    fn write(&mut self, at: Maddr, new: impl Fn(u64) -> u64) -> Result {
        if !at.offset().is_multiple_of(8) {
            return Err(Errno::EINVAL);
        }
        let owners = self.owners;
        update::with_walk(self.core, owners.tables, &mut self.budget, |frames, walk| {
            update::write_entry(frames, owners, at, new, walk).map(drop)
        })
    }

    /// One operation of `mmuext_op`.
    fn extended(&mut self, op: nr::MmuextOp) -> Result {
        let (frame, va) = (Mfn::new(op.arg1), GuestVa::new(op.arg1));
        let whose = self.owners.pages;
        match op.cmd {
            nr::MMUEXT_PIN_L1_TABLE => self.pin(frame, Level::L1),
            nr::MMUEXT_PIN_L2_TABLE => self.pin(frame, Level::L2),
            nr::MMUEXT_PIN_L3_TABLE => self.pin(frame, Level::L3),
            nr::MMUEXT_PIN_L4_TABLE => self.pin(frame, Level::L4),
            nr::MMUEXT_UNPIN_TABLE => Ok(self.core.frames.unpin(frame, whose)?),
            nr::MMUEXT_CLEAR_PAGE => self.fill_page(frame, None),
            nr::MMUEXT_COPY_PAGE => self.fill_page(frame, Some(Mfn::new(op.arg2))),
            nr::MMUEXT_MARK_SUPER | nr::MMUEXT_UNMARK_SUPER => Err(Errno::EOPNOTSUPP),
            // The rest is about the caller's own vCPU.
            nr::MMUEXT_NEW_BASEPTR..=nr::MMUEXT_FLUSH_CACHE_GLOBAL if whose != self.caller.dom => {
                Err(Errno::EPERM)
            }
            nr::MMUEXT_NEW_BASEPTR => self.new_root(Some(frame), |roots| &mut roots.kernel),
            // Frame 0 stands for none.
            nr::MMUEXT_NEW_USER_BASEPTR => {
                self.new_root(Some(frame).filter(|mfn| mfn.get() != 0), |roots| &mut roots.user)
            }
            nr::MMUEXT_SET_LDT => descriptor::set_ldt(self.core, self.caller, va, op.arg2),
            nr::MMUEXT_FLUSH_CACHE | nr::MMUEXT_FLUSH_CACHE_GLOBAL => self.flush_cache(),
            _ => self.flush_tlb(op),
        }
    }

    fn pin(&mut self, mfn: Mfn, level: Level) -> Result {
        let dom = self.owners.pages;
        update::with_walk(self.core, dom, &mut self.budget, |frames, walk| {
            frames.pin(mfn, dom, level, walk)
        })
    }

    /// Copies a page, or clears it.
    fn fill_page(&mut self, to: Mfn, from: Option<Mfn>) -> Result {
        let (frames, dom) = (&mut self.core.frames, self.owners.pages);
        if from.is_some_and(|from| frames.owner(from) != Owner::Domain(dom)) {
            return Err(Errno::EINVAL);
        }
        frames.get_writable(to, dom)?;
        match from {
            Some(from) => frames.mem().copy(from.maddr(), to.maddr(), bulkhead_abi::PAGE_SIZE),
            None => frames.mem().zero_frame(to),
        }
        frames.put_writable(to);
        Ok(())
    }

    fn roots(&mut self) -> Result<&mut Roots> {
        Ok(&mut self.core.vcpu_mut(self.caller).ok_or(Errno::ESRCH)?.roots)
    }

    /// Takes the references of a root and drops those of the one before; the exit loads it, and
    /// [`Flush::All`] makes sure that it does.
    fn new_root(&mut self, new: Option<Mfn>, which: fn(&mut Roots) -> &mut Option<Mfn>) -> Result {
        let dom = self.caller.dom;
        if let Some(mfn) = new {
            update::with_walk(self.core, dom, &mut self.budget, |frames, walk| {
                frames.get_table(mfn, dom, Level::L4, walk)
            })?;
            self.core.request_flush(self.caller.cpu, Flush::All);
        }
        if let Some(old) = core::mem::replace(which(self.roots()?), new) {
            update::put_root(self.core, dom, old);
        }
        Ok(())
    }

    /// Memory is mapped write-back only, so caches hold nothing that must be written out for a
    /// device: for who has one, there is nothing to do.
    fn flush_cache(&self) -> Result {
        match self.core.domains.get(self.caller.dom) {
            Some(domain) if domain.is_driver || domain.is_privileged() => Ok(()),
            _ => Err(Errno::EACCES),
        }
    }

    /// TLB flushes. With one CPU, every vCPU's flush is this CPU's.
    fn flush_tlb(&mut self, op: nr::MmuextOp) -> Result {
        let va = GuestVa::new(op.arg1);
        if matches!(op.cmd, nr::MMUEXT_TLB_FLUSH_MULTI | nr::MMUEXT_INVLPG_MULTI) {
            let set = self.core.guest(self.caller).read::<u64>(GuestVa::new(op.arg2));
            set.map_err(|_| Errno::EINVAL)?;
        }
        let flush = match op.cmd {
            nr::MMUEXT_TLB_FLUSH_LOCAL | nr::MMUEXT_TLB_FLUSH_MULTI | nr::MMUEXT_TLB_FLUSH_ALL => {
                Flush::All
            }
            nr::MMUEXT_INVLPG_LOCAL | nr::MMUEXT_INVLPG_MULTI | nr::MMUEXT_INVLPG_ALL => {
                if validate::is_guest_va(va) {
                    Flush::Page(va)
                } else {
                    Flush::None
                }
            }
            _ => return Err(Errno::ENOSYS),
        };
        self.core.request_flush(self.caller.cpu, flush);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
