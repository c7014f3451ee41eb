//! `grant_table_op`: RDI = operation, RSI = array of its structures, RDX = how many. Each
//! element of a batch has a status of its own; a batch that takes long goes on where it stopped.

use super::Outcome;
use crate::{
    Core, event,
    memory::grant::{self, Refusal, copy::copy, map, table::MAX_FRAMES},
    state::Caller,
};
use bulkhead_abi::{DomId, Errno, GuestVa, Mfn, grant as nr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Elements of a batch done in one stay in ring 0.
const BATCH: u64 = 32;

/// `grant_table_op`.
///
/// Errors: `ENOSYS` for operations that are not offered (transfer and everything of version 2),
/// `EINVAL` for a count that is none, `EFAULT` when the array can not be read or written; what came
/// before in the array is done then.
pub fn grant_table_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [op, at, count, ..] = args;
    // Both are ints: the upper half says nothing. A count that looks negative is refused.
    let op = op & 0xffff_ffff;
    let count = count as u32;
    if count > i32::MAX as u32 {
        return Errno::EINVAL.into();
    }
    let batch = Batch { op, at, count: count.into() };
    match op {
        nr::GNTTABOP_MAP_GRANT_REF => batch.run(core, caller, map_one),
        nr::GNTTABOP_UNMAP_GRANT_REF => batch.run(core, caller, unmap_one),
        nr::GNTTABOP_COPY => batch.run(core, caller, copy_one),
        nr::GNTTABOP_SETUP_TABLE => single(core, caller, at, count, setup_table),
        nr::GNTTABOP_QUERY_SIZE => single(core, caller, at, count, query_size),
        nr::GNTTABOP_SET_VERSION => single(core, caller, at, count, set_version),
        nr::GNTTABOP_GET_VERSION => single(core, caller, at, count, get_version),
        _ => Errno::ENOSYS.into(),
    }
}

/// What is left of a call.
struct Batch {
    op: u64,
    at: u64,
    count: u64,
}

/// Acts on one structure and leaves the answer in it.
type One<T> = fn(&mut Core, Caller, &mut T) -> Result<(), Errno>;

impl Batch {
    /// Reads, does and answers element by element.
    fn run<T: FromBytes + IntoBytes + Immutable>(
        self,
        core: &mut Core,
        caller: Caller,
        one: One<T>,
    ) -> Outcome {
        let now = self.count.min(BATCH);
        let element = |n| self.at.checked_add(n * size_of::<T>() as u64).ok_or(Errno::EFAULT);
        for n in 0..now {
            if let Err(refused) = element(n).and_then(|at| done_at(core, caller, at, one)) {
                return refused.into();
            }
        }
        match (self.count - now, element(now)) {
            (0, _) => Outcome::Done(0),
            (left, Ok(at)) => Outcome::Again([self.op, at, left, 0, 0]),
            (_, Err(refused)) => refused.into(),
        }
    }
}

/// Reads a structure, lets `one` act on it, and writes the answer in its place.
fn done_at<T: FromBytes + IntoBytes + Immutable>(
    core: &mut Core,
    caller: Caller,
    at: u64,
    one: One<T>,
) -> Result<(), Errno> {
    let at = GuestVa::new(at);
    let mut op = core.guest(caller).read(at)?;
    one(core, caller, &mut op)?;
    Ok(core.guest(caller).write(at, &op)?)
}

/// For operations on one structure only.
fn single<T: FromBytes + IntoBytes + Immutable>(
    core: &mut Core,
    caller: Caller,
    at: u64,
    count: u32,
    one: One<T>,
) -> Outcome {
    if count != 1 {
        return Errno::EINVAL.into();
    }
    done_at(core, caller, at, one).into()
}

fn status_of(result: Result<(), Refusal>) -> i16 {
    result.err().unwrap_or(nr::GNTST_OKAY)
}

fn map_one(core: &mut Core, caller: Caller, op: &mut nr::MapGrantRef) -> Result<(), Errno> {
    let result = map::map(core, caller, op);
    if let Ok(map::Mapped { handle, frame }) = result {
        (op.handle, op.dev_bus_addr) = (handle, frame.maddr().get());
    }
    op.status = status_of(result.map(drop));
    Ok(())
}

fn unmap_one(core: &mut Core, caller: Caller, op: &mut nr::UnmapGrantRef) -> Result<(), Errno> {
    op.status = status_of(map::unmap(core, caller, op.host_addr, op.handle));
    Ok(())
}

fn copy_one(core: &mut Core, caller: Caller, op: &mut nr::GrantCopy) -> Result<(), Errno> {
    op.status = status_of(copy(core, caller.dom, op));
    Ok(())
}

/// Whose table an operation is about.
fn subject(core: &Core, caller: Caller, raw: u16) -> Result<DomId, Refusal> {
    event::named(core, caller.dom, raw).map_err(|refused| match refused {
        Errno::EPERM => nr::GNTST_PERMISSION_DENIED,
        _ => nr::GNTST_BAD_DOMAIN,
    })
}

fn setup_table(core: &mut Core, caller: Caller, op: &mut nr::SetupTable) -> Result<(), Errno> {
    op.status = status_of(set_up(core, caller, op));
    Ok(())
}

/// Grows the table and lists its frames.
fn set_up(core: &mut Core, caller: Caller, op: &nr::SetupTable) -> Result<(), Refusal> {
    let dom = subject(core, caller, op.dom)?;
    grant::grow(core, dom, op.nr_frames).map_err(|_| nr::GNTST_GENERAL_ERROR)?;
    for n in 0..op.nr_frames {
        let at = op.frame_list.checked_add(u64::from(n) * size_of::<u64>() as u64);
        let frame = grant::table_frame(core, dom, n).map(Mfn::get);
        let (Some(at), Some(frame)) = (at, frame) else {
            return Err(nr::GNTST_BAD_VIRT_ADDR);
        };
        let told = core.guest(caller).write(GuestVa::new(at), &frame);
        told.map_err(|_| nr::GNTST_BAD_VIRT_ADDR)?;
    }
    Ok(())
}

fn query_size(core: &mut Core, caller: Caller, op: &mut nr::QuerySize) -> Result<(), Errno> {
    let subject = subject(core, caller, op.dom);
    if let Ok(domain) = subject.map(|dom| core.domains.get(dom)) {
        op.nr_frames = domain.map_or(0, |domain| domain.grants.nr_frames()).max(1);
        op.max_nr_frames = MAX_FRAMES;
    }
    op.status = status_of(subject.map(drop));
    Ok(())
}

/// Only version 1 exists.
fn set_version(_: &mut Core, _: Caller, op: &mut nr::SetVersion) -> Result<(), Errno> {
    match op.version {
        1 => Ok(()),
        2 => Err(Errno::ENOSYS),
        _ => Err(Errno::EINVAL),
    }
}

fn get_version(core: &mut Core, caller: Caller, op: &mut nr::GetVersion) -> Result<(), Errno> {
    event::named(core, caller.dom, op.dom)?;
    op.version = 1;
    Ok(())
}
