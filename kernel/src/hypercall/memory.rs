//! `memory_op` (public/memory.h): reservations, exchange, and what a guest asks about memory.
//!
//! Lists of extents answer with the number of extents done, also where the request as a whole is
//! refused: that is how the interface says "none". Long lists continue, with the position in the
//! upper bits of the command.
#![deny(unsafe_code)]

use super::Outcome;
use crate::{
    event,
    memory::reserve,
    state::{Caller, Core},
};
use bulkhead_abi::{
    DomId, Errno, GuestVa, Maddr, Mfn, PAGE_SHIFT,
    memory::{
        self as nr, E820_RAM, E820Entry, MAX_ORDER, MachphysMapping, MemoryExchange, MemoryMap,
        MemoryReservation,
    },
    mmu::M2P_START,
    shared_info::SharedInfo,
};
use core::ops::Range;

/// Frames that one stay may hand out or take back: zeroing dominates.
const FRAMES_PER_STAY: u64 = 1024;
/// End of the linear range that the machine-to-phys table may take (arch-x86/xen-x86_64.h).
const M2P_END: u64 = 0xffff_8040_0000_0000;

/// `memory_op(command, argument)`.
pub fn memory_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let argument = GuestVa::new(args[1]);
    // The domain that a `domid` in guest memory names.
    let named = |core: &Core| event::named(core, caller.dom, core.guest(caller).read(argument)?);
    match args[0] & nr::MEMOP_CMD_MASK {
        nr::XENMEM_INCREASE_RESERVATION
        | nr::XENMEM_DECREASE_RESERVATION
        | nr::XENMEM_POPULATE_PHYSMAP => reservation(core, caller, args),
        nr::XENMEM_EXCHANGE => exchange(core, caller, args),
        nr::XENMEM_MAXIMUM_RAM_PAGE => Ok(core.frames.max_mfn() as i64 - 1).into(),
        nr::XENMEM_CURRENT_RESERVATION => {
            named(core).map(|dom| core.frames.tot_pages(dom) as i64).into()
        }
        nr::XENMEM_MAXIMUM_RESERVATION => named(core).and_then(|dom| max_pages(core, dom)).into(),
        nr::XENMEM_MAXIMUM_GPFN => named(core).and_then(|dom| max_gpfn(core, dom)).into(),
        nr::XENMEM_MEMORY_MAP => memory_map(core, caller, argument).into(),
        nr::XENMEM_MACHPHYS_MAPPING => machphys_mapping(core, caller, argument).into(),
        _ => Errno::ENOSYS.into(),
    }
}

fn again(command: u64, args: [u64; 6]) -> Outcome {
    Outcome::Again([command, args[1], args[2], args[3], args[4]])
}

/// A list of extents, decoded.
#[derive(Clone, Copy)]
struct Extents {
    dom: DomId,
    list: u64,
    order: u32,
}

impl Extents {
    fn of(dom: DomId, asked: &MemoryReservation) -> Self {
        Self { dom, list: asked.extent_start, order: asked.extent_order }
    }

    /// Address of the list's element.
    fn element(&self, index: u64) -> GuestVa {
        GuestVa::new(self.list.wrapping_add(index.wrapping_mul(8)))
    }

    fn read(&self, core: &Core, caller: Caller, index: u64) -> Result<u64, Errno> {
        Ok(core.guest(caller).read(self.element(index))?)
    }

    fn write(&self, core: &Core, caller: Caller, index: u64, mfn: Mfn) -> Result<(), Errno> {
        Ok(core.guest(caller).write(self.element(index), &mfn.get())?)
    }

    /// One extent of a `populate_physmap` (new frames at the pfn that the list names; the list gets
    /// the mfn), an `increase_reservation` (without a pfn, and perhaps without a list), or
    /// a `decrease_reservation` (gives back the frames whose mfn the list names).
    fn change(
        &self,
        core: &mut Core,
        caller: Caller,
        command: u64,
        index: u64,
    ) -> Result<(), Errno> {
        let pfn = match command {
            nr::XENMEM_POPULATE_PHYSMAP => Some(self.read(core, caller, index)?),
            nr::XENMEM_INCREASE_RESERVATION => None,
            _ => {
                let mfn = Mfn::new(self.read(core, caller, index)?);
                return Ok(reserve::decrease(&mut core.frames, self.dom, mfn, self.order)?);
            }
        };
        let mfn = reserve::populate(core, self.dom, self.order, pfn)?;
        if self.dom != caller.dom {
            core.frames.note_given(mfn, self.order);
        }
        if pfn.is_none() && self.list == 0 {
            return Ok(());
        }
        let told = self.write(core, caller, index, mfn);
        if told.is_err() {
            // Memory that its owner does not know of is no use to anyone.
            reserve::decrease(&mut core.frames, self.dom, mfn, self.order)?;
        }
        told
    }
}

fn reservation(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let asked: MemoryReservation = match core.guest(caller).read(GuestVa::new(args[1])) {
        Ok(asked) => asked,
        Err(fault) => return Errno::from(fault).into(),
    };
    let (command, start) = (args[0] & nr::MEMOP_CMD_MASK, args[0] >> nr::MEMOP_EXTENT_SHIFT);
    let is_sane =
        asked.nr_extents <= u64::MAX >> nr::MEMOP_EXTENT_SHIFT && asked.extent_order <= MAX_ORDER;
    let (Ok(dom), true) = (event::named(core, caller.dom, asked.domid), is_sane) else {
        return Ok(start as i64).into();
    };
    let extents = Extents::of(dom, &asked);
    let end = asked.nr_extents.min(start.saturating_add((FRAMES_PER_STAY >> extents.order).max(1)));
    for index in start..end {
        if extents.change(core, caller, command, index).is_err() {
            return Ok(index as i64).into();
        }
    }
    if end < asked.nr_extents && end > start {
        return again(command | end << nr::MEMOP_EXTENT_SHIFT, args);
    }
    Ok(end.max(start) as i64).into()
}

/// Trades frames for others, to get contiguous ones. One chunk (the larger of
/// the two extent sizes) per stay; `nr_exchanged` is the position.
fn exchange(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    match exchange_next(core, caller, GuestVa::new(args[1])) {
        Ok(true) => Outcome::Done(0),
        Ok(false) => again(args[0], args),
        Err(refused) => refused.into(),
    }
}

/// Whether that was all.
fn exchange_next(core: &mut Core, caller: Caller, at: GuestVa) -> Result<bool, Errno> {
    let mut asked: MemoryExchange = core.guest(caller).read(at)?;
    let per_chunk = check_exchange(core, caller, &asked)?;
    if asked.nr_exchanged < asked.input.nr_extents {
        let result = exchange_chunk(core, caller, &asked, per_chunk);
        asked.nr_exchanged += if result.is_ok() { per_chunk } else { 0 };
        let told = core.guest(caller).write(at, &asked);
        result?;
        told?;
    }
    Ok(asked.nr_exchanged >= asked.input.nr_extents)
}

/// How many input extents make a chunk.
fn check_exchange(core: &Core, caller: Caller, asked: &MemoryExchange) -> Result<u64, Errno> {
    let (input, output) = (&asked.input, &asked.output);
    let order = input.extent_order.max(output.extent_order);
    if input.domid != output.domid || order > MAX_ORDER {
        return Err(Errno::EINVAL);
    }
    if event::named(core, caller.dom, input.domid)? != caller.dom {
        return Err(Errno::EPERM);
    }
    let frames = |r: &MemoryReservation| r.nr_extents.checked_mul(1 << r.extent_order);
    let per_chunk = 1 << (order - input.extent_order);
    let is_whole =
        asked.nr_exchanged.is_multiple_of(per_chunk) && input.nr_extents.is_multiple_of(per_chunk);
    let is_same_size = frames(input).is_some() && frames(input) == frames(output);
    if !is_same_size || !is_whole || asked.nr_exchanged > input.nr_extents {
        return Err(Errno::EINVAL);
    }
    Ok(per_chunk)
}

/// On error nothing has changed, but for `EFAULT` on the output list: then the frames
/// are there and the caller does not know where.
fn exchange_chunk(
    core: &mut Core,
    caller: Caller,
    asked: &MemoryExchange,
    per_chunk: u64,
) -> Result<(), Errno> {
    let [input, output] = [&asked.input, &asked.output].map(|r| Extents::of(caller.dom, r));
    let order = input.order.max(output.order);
    let first = asked.nr_exchanged;
    let taken = steal(core, caller, &input, first..first + per_chunk);
    let block =
        taken.and_then(|()| core.frames.alloc_domain(caller.dom, order).ok_or(Errno::ENOMEM));
    core.frames.settle_stolen(block.is_err().then_some(caller.dom));
    let block = block?;
    let first = first << input.order >> output.order;
    for i in 0..1u64 << (order - output.order) {
        let pfn = output.read(core, caller, first + i)?;
        let mfn = Mfn::new(block.get() + (i << output.order));
        reserve::set_pfns(&mut core.frames, mfn, output.order, Some(pfn));
        output.write(core, caller, first + i, mfn)?;
    }
    Ok(())
}

fn steal(
    core: &mut Core,
    caller: Caller,
    input: &Extents,
    indices: Range<u64>,
) -> Result<(), Errno> {
    for index in indices {
        let mfn = Mfn::new(input.read(core, caller, index)?);
        for i in 0..1 << input.order {
            core.frames.steal(mfn.checked_add(i).ok_or(Errno::EINVAL)?, caller.dom)?;
        }
    }
    Ok(())
}

fn max_pages(core: &Core, dom: DomId) -> Result<i64, Errno> {
    let max = core.domains.get(dom).ok_or(Errno::ESRCH)?.memory.max_pages;
    Ok(i64::try_from(max).unwrap_or(i64::MAX))
}

/// The guest's own word for it, in shared-info.
fn max_gpfn(core: &Core, dom: DomId) -> Result<i64, Errno> {
    let shared = core.domains.get(dom).ok_or(Errno::ESRCH)?.shared_info.maddr();
    let at = Maddr::new(shared.get() + core::mem::offset_of!(SharedInfo, max_pfn) as u64);
    Ok(core.frames.mem().read_u64(at).wrapping_sub(1) as i64)
}

/// One entry: all of the domain's memory, from pfn 0.
fn memory_map(core: &Core, caller: Caller, at: GuestVa) -> Result<i64, Errno> {
    let guest = core.guest(caller);
    let mut map: MemoryMap = guest.read(at)?;
    if map.nr_entries == 0 {
        return Err(Errno::EINVAL);
    }
    let size = core.frames.tot_pages(caller.dom) << PAGE_SHIFT;
    guest.write(GuestVa::new(map.buffer), &E820Entry { addr: 0, size, kind: E820_RAM })?;
    map.nr_entries = 1;
    guest.write(at, &map)?;
    Ok(0)
}

fn machphys_mapping(core: &Core, caller: Caller, at: GuestVa) -> Result<i64, Errno> {
    let answer =
        MachphysMapping { v_start: M2P_START, v_end: M2P_END, max_mfn: core.frames.max_mfn() - 1 };
    core.guest(caller).write(at, &answer)?;
    Ok(0)
}

#[cfg(test)]
mod tests;
