//! `memory_op` (public/memory.h): reservations, exchange, and what a guest asks about memory.
//!
//! Lists of extents answer with the number of extents done, also where the request as a whole is
//! refused: that is how the interface says "none". Long lists continue, with the position in the
//! upper bits of the command.
#![deny(unsafe_code)]

use super::Outcome;
use crate::{
    memory::{frame::Stolen, reserve},
    state::{Caller, Core},
};
use bulkhead_abi::{
    DomId, Errno, GuestVa, Maddr, Mfn,
    memory::{
        self as nr, E820_RAM, E820Entry, MAX_ORDER, MachphysMapping, MemoryExchange, MemoryMap,
        MemoryReservation,
    },
    mmu::M2P_START,
    shared_info::SharedInfo,
};

/// Frames that one stay may hand out or take back: zeroing dominates.
const FRAMES_PER_STAY: u64 = 1024;
/// End of the linear range that the machine-to-phys table may take (arch-x86/xen-x86_64.h).
const M2P_END: u64 = 0xffff_8040_0000_0000;

/// `memory_op(command, argument)`.
pub fn memory_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let argument = GuestVa::new(args[1]);
    match args[0] & nr::MEMOP_CMD_MASK {
        nr::XENMEM_INCREASE_RESERVATION => reservation(core, caller, args, increase),
        nr::XENMEM_DECREASE_RESERVATION => reservation(core, caller, args, decrease),
        nr::XENMEM_POPULATE_PHYSMAP => reservation(core, caller, args, populate),
        nr::XENMEM_EXCHANGE => exchange(core, caller, args),
        nr::XENMEM_MAXIMUM_RAM_PAGE => Ok(core.frames.max_mfn() as i64 - 1).into(),
        nr::XENMEM_CURRENT_RESERVATION => {
            named(core, caller, argument).map(|dom| core.frames.tot_pages(dom) as i64).into()
        }
        nr::XENMEM_MAXIMUM_RESERVATION => {
            named(core, caller, argument).and_then(|dom| max_pages(core, dom)).into()
        }
        nr::XENMEM_MAXIMUM_GPFN => {
            named(core, caller, argument).and_then(|dom| max_gpfn(core, dom)).into()
        }
        nr::XENMEM_MEMORY_MAP => memory_map(core, caller, argument).into(),
        nr::XENMEM_MACHPHYS_MAPPING => machphys_mapping(core, caller, argument).into(),
        _ => Errno::ENOSYS.into(),
    }
}

/// One list of extents, decoded.
#[derive(Clone, Copy)]
struct Extents {
    dom: DomId,
    list: u64,
    order: u32,
}

impl Extents {
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
}

type Extent = fn(&mut Core, Caller, &Extents, u64) -> Result<(), Errno>;

fn reservation(core: &mut Core, caller: Caller, args: [u64; 6], one: Extent) -> Outcome {
    let asked: MemoryReservation = match core.guest(caller).read(GuestVa::new(args[1])) {
        Ok(asked) => asked,
        Err(fault) => return Errno::from(fault).into(),
    };
    let start = args[0] >> nr::MEMOP_EXTENT_SHIFT;
    let is_sane =
        asked.nr_extents <= u64::MAX >> nr::MEMOP_EXTENT_SHIFT && asked.extent_order <= MAX_ORDER;
    let (Ok(dom), true) = (resolve(core, caller, DomId::new(asked.domid)), is_sane) else {
        return Ok(start as i64).into();
    };
    let extents = Extents { dom, list: asked.extent_start, order: asked.extent_order };
    let end = asked.nr_extents.min(start.saturating_add((FRAMES_PER_STAY >> extents.order).max(1)));
    for index in start..end {
        if one(core, caller, &extents, index).is_err() {
            return Ok(index as i64).into();
        }
    }
    if end < asked.nr_extents && end > start {
        let command = args[0] & nr::MEMOP_CMD_MASK | end << nr::MEMOP_EXTENT_SHIFT;
        return Outcome::Again([command, args[1], args[2], args[3], args[4]]);
    }
    Ok(end.max(start) as i64).into()
}

/// New frames at the pfn that the list names; the list gets the mfn.
fn populate(core: &mut Core, caller: Caller, extents: &Extents, index: u64) -> Result<(), Errno> {
    let pfn = extents.read(core, caller, index)?;
    grow(core, caller, extents, index, Some(pfn))
}

/// New frames without a pfn; the list gets the mfn, unless there is no list.
fn increase(core: &mut Core, caller: Caller, extents: &Extents, index: u64) -> Result<(), Errno> {
    grow(core, caller, extents, index, None)
}

fn grow(
    core: &mut Core,
    caller: Caller,
    extents: &Extents,
    index: u64,
    pfn: Option<u64>,
) -> Result<(), Errno> {
    let mfn = reserve::populate(core, extents.dom, extents.order, pfn)?;
    if pfn.is_none() && extents.list == 0 {
        return Ok(());
    }
    let told = extents.write(core, caller, index, mfn);
    if told.is_err() {
        // Memory that its owner does not know of is no use to anyone.
        reserve::decrease(&mut core.frames, extents.dom, mfn, extents.order)?;
    }
    told
}

/// Gives back the frames whose mfn the list names.
fn decrease(core: &mut Core, caller: Caller, extents: &Extents, index: u64) -> Result<(), Errno> {
    let mfn = Mfn::new(extents.read(core, caller, index)?);
    Ok(reserve::decrease(&mut core.frames, extents.dom, mfn, extents.order)?)
}

/// Trades frames for others, to get contiguous ones. One chunk (the larger of
/// the two extent sizes) per stay; `nr_exchanged` is the position.
fn exchange(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let at = GuestVa::new(args[1]);
    let mut asked: MemoryExchange = match core.guest(caller).read(at) {
        Ok(asked) => asked,
        Err(fault) => return Errno::from(fault).into(),
    };
    if let Err(refused) = check_exchange(core, caller, &asked) {
        return refused.into();
    }
    if asked.nr_exchanged == asked.input.nr_extents {
        return Ok(0).into();
    }
    let result = exchange_chunk(core, caller, &asked);
    if result.is_ok() {
        let order = asked.input.extent_order;
        asked.nr_exchanged += 1 << (order.max(asked.output.extent_order) - order);
    }
    let told = core.guest(caller).write(at, &asked).map_err(Errno::from);
    match result.and(told) {
        Ok(()) if asked.nr_exchanged < asked.input.nr_extents => {
            Outcome::Again([args[0], args[1], args[2], args[3], args[4]])
        }
        other => other.map(|()| 0).into(),
    }
}

fn check_exchange(core: &Core, caller: Caller, asked: &MemoryExchange) -> Result<(), Errno> {
    let (input, output) = (&asked.input, &asked.output);
    if input.domid != output.domid
        || input.extent_order > MAX_ORDER
        || output.extent_order > MAX_ORDER
    {
        return Err(Errno::EINVAL);
    }
    if resolve(core, caller, DomId::new(input.domid))? != caller.dom {
        return Err(Errno::EPERM);
    }
    let frames = |r: &MemoryReservation| r.nr_extents.checked_mul(1 << r.extent_order);
    let per_chunk = 1u64 << input.extent_order.max(output.extent_order) >> input.extent_order;
    let is_whole =
        asked.nr_exchanged.is_multiple_of(per_chunk) && input.nr_extents.is_multiple_of(per_chunk);
    let is_same_size = frames(input).is_some() && frames(input) == frames(output);
    if !is_same_size || !is_whole || asked.nr_exchanged > input.nr_extents {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// On error nothing has changed, but for `EFAULT` on the output list: then the frames
/// are there and the caller does not know where.
fn exchange_chunk(core: &mut Core, caller: Caller, asked: &MemoryExchange) -> Result<(), Errno> {
    let input = Extents {
        dom: caller.dom,
        list: asked.input.extent_start,
        order: asked.input.extent_order,
    };
    let output = Extents {
        dom: caller.dom,
        list: asked.output.extent_start,
        order: asked.output.extent_order,
    };
    let order = input.order.max(output.order);
    let mut stolen = Stolen::new();
    let taken = steal_chunk(core, caller, &input, asked.nr_exchanged, order, &mut stolen);
    let block =
        taken.and_then(|()| core.frames.alloc_domain(caller.dom, order).ok_or(Errno::ENOMEM));
    let block = match block {
        Ok(block) => block,
        Err(refused) => {
            core.frames.restore(stolen, caller.dom);
            return Err(refused);
        }
    };
    core.frames.free_stolen(stolen);
    let first = asked.nr_exchanged << input.order >> output.order;
    for i in 0..1u64 << (order - output.order) {
        let pfn = output.read(core, caller, first + i)?;
        let mfn = Mfn::new(block.get() + (i << output.order));
        reserve::set_pfns(&mut core.frames, mfn, output.order, Some(pfn));
        output.write(core, caller, first + i, mfn)?;
    }
    Ok(())
}

fn steal_chunk(
    core: &mut Core,
    caller: Caller,
    input: &Extents,
    first: u64,
    order: u32,
    stolen: &mut Stolen,
) -> Result<(), Errno> {
    for index in first..first + (1 << (order - input.order)) {
        let mfn = Mfn::new(input.read(core, caller, index)?);
        for i in 0..1 << input.order {
            core.frames.steal(stolen, mfn.checked_add(i).ok_or(Errno::EINVAL)?, caller.dom)?;
        }
    }
    Ok(())
}

/// The domain that a `domid` in guest memory names.
fn named(core: &Core, caller: Caller, at: GuestVa) -> Result<DomId, Errno> {
    resolve(core, caller, DomId::new(core.guest(caller).read(at)?))
}

fn resolve(core: &Core, caller: Caller, dom: DomId) -> Result<DomId, Errno> {
    if dom == DomId::SELF || dom == caller.dom {
        return Ok(caller.dom);
    }
    if core.domains.get(dom).is_none() {
        return Err(Errno::ESRCH);
    }
    if caller.dom == DomId::DOM0 { Ok(dom) } else { Err(Errno::EPERM) }
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
    let size = core.frames.tot_pages(caller.dom) << bulkhead_abi::PAGE_SHIFT;
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
