//! `grant_table_op`: RDI = operation, RSI = array of its structures, RDX = how many. Each
//! element of a batch has a status of its own; a batch that takes long goes on where it stopped.

use super::Outcome;
use crate::{
    Core, event,
    memory::{
        grant::{
            self, GrantError,
            copy::{End, What, copy},
            map::{MapRequest, map, unmap},
            table::MAX_FRAMES,
        },
        guest::Fault,
    },
    state::Caller,
};
use bulkhead_abi::{DomId, Errno, Gref, GuestVa, Mfn, grant as nr};
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

impl Batch {
    /// Reads, does and answers element by element.
    fn run<T: FromBytes + IntoBytes + Immutable>(
        self,
        core: &mut Core,
        caller: Caller,
        one: fn(&mut Core, Caller, T) -> T,
    ) -> Outcome {
        let now = self.count.min(BATCH);
        for n in 0..now {
            let Some(at) = self.element::<T>(n) else {
                return Errno::EFAULT.into();
            };
            if let Err(fault) = done_at(core, caller, at, one) {
                return Errno::from(fault).into();
            }
        }
        let left = self.count - now;
        match self.element::<T>(now) {
            _ if left == 0 => Outcome::Done(0),
            Some(at) => Outcome::Again([self.op, at.get(), left, 0, 0]),
            None => Errno::EFAULT.into(),
        }
    }

    fn element<T>(&self, n: u64) -> Option<GuestVa> {
        self.at.checked_add(n * size_of::<T>() as u64).map(GuestVa::new)
    }
}

fn done_at<T: FromBytes + IntoBytes + Immutable>(
    core: &mut Core,
    caller: Caller,
    at: GuestVa,
    one: fn(&mut Core, Caller, T) -> T,
) -> Result<(), Fault> {
    let asked = core.guest(caller).read(at)?;
    let told = one(core, caller, asked);
    core.guest(caller).write(at, &told)
}

/// For operations on one structure only.
fn single<T: FromBytes + IntoBytes + Immutable>(
    core: &mut Core,
    caller: Caller,
    at: u64,
    count: u32,
    one: fn(&mut Core, Caller, T) -> Result<T, Errno>,
) -> Outcome {
    if count != 1 {
        return Errno::EINVAL.into();
    }
    let at = GuestVa::new(at);
    let asked = core.guest(caller).read(at).map_err(Errno::from);
    let told = asked.and_then(|asked| one(core, caller, asked));
    told.and_then(|told| Ok(core.guest(caller).write(at, &told)?)).into()
}

fn status_of<T>(result: Result<T, GrantError>) -> i16 {
    result.map_or_else(GrantError::status, |_| nr::GNTST_OKAY)
}

fn map_one(core: &mut Core, caller: Caller, asked: nr::MapGrantRef) -> nr::MapGrantRef {
    let request = MapRequest {
        flags: asked.flags,
        host_addr: asked.host_addr,
        granter: DomId::new(asked.dom),
        gref: Gref::new(asked.gref),
    };
    match map(core, caller, &request) {
        Ok(mapped) => nr::MapGrantRef {
            status: nr::GNTST_OKAY,
            handle: mapped.handle,
            dev_bus_addr: mapped.frame.maddr().get(),
            ..asked
        },
        Err(refused) => nr::MapGrantRef { status: refused.status(), ..asked },
    }
}

fn unmap_one(core: &mut Core, caller: Caller, asked: nr::UnmapGrantRef) -> nr::UnmapGrantRef {
    let result = unmap(core, caller, asked.host_addr, asked.handle);
    nr::UnmapGrantRef { status: status_of(result), ..asked }
}

fn copy_one(core: &mut Core, caller: Caller, asked: nr::GrantCopy) -> nr::GrantCopy {
    let from = end_of(caller, &asked.source, asked.flags & nr::GNTCOPY_SOURCE_GREF != 0);
    let to = end_of(caller, &asked.dest, asked.flags & nr::GNTCOPY_DEST_GREF != 0);
    let result = copy(core, caller.dom, from, to, asked.len);
    nr::GrantCopy { status: status_of(result), ..asked }
}

fn end_of(caller: Caller, end: &nr::CopyPtr, is_gref: bool) -> End {
    let dom = match DomId::new(end.domid) {
        DomId::SELF => caller.dom,
        // A frame by number is the caller's only as SELF.
        dom if dom == caller.dom && !is_gref => DomId::INVALID,
        dom => dom,
    };
    let what = if is_gref {
        // The field is a union: a gref is its lower half.
        What::Grant(Gref::new(end.gref_or_gmfn as u32))
    } else {
        What::Frame(Mfn::new(end.gref_or_gmfn))
    };
    End { dom, what, offset: end.offset }
}

/// Whose table an operation is about; the status if the caller may not say so.
fn subject(core: &Core, caller: Caller, raw: u16) -> Result<DomId, i16> {
    event::named(core, caller.dom, raw).map_err(|refused| match refused {
        Errno::EPERM => nr::GNTST_PERMISSION_DENIED,
        _ => nr::GNTST_BAD_DOMAIN,
    })
}

fn setup_table(
    core: &mut Core,
    caller: Caller,
    asked: nr::SetupTable,
) -> Result<nr::SetupTable, Errno> {
    let status = match subject(core, caller, asked.dom) {
        Ok(dom) => set_up(core, caller, dom, &asked),
        Err(status) => status,
    };
    Ok(nr::SetupTable { status, ..asked })
}

/// Grows the table and lists its frames.
fn set_up(core: &mut Core, caller: Caller, dom: DomId, asked: &nr::SetupTable) -> i16 {
    if grant::grow(core, dom, asked.nr_frames).is_err() {
        return nr::GNTST_GENERAL_ERROR;
    }
    for n in 0..asked.nr_frames {
        let at = asked.frame_list.checked_add(u64::from(n) * size_of::<u64>() as u64);
        let frame = grant::table_frame(core, dom, n).map(Mfn::get);
        let (Some(at), Some(frame)) = (at, frame) else {
            return nr::GNTST_BAD_VIRT_ADDR;
        };
        if core.guest(caller).write(GuestVa::new(at), &frame).is_err() {
            return nr::GNTST_BAD_VIRT_ADDR;
        }
    }
    nr::GNTST_OKAY
}

fn query_size(
    core: &mut Core,
    caller: Caller,
    asked: nr::QuerySize,
) -> Result<nr::QuerySize, Errno> {
    Ok(match subject(core, caller, asked.dom) {
        Ok(dom) => nr::QuerySize {
            nr_frames: core.domains.get(dom).map_or(0, |domain| domain.grants.nr_frames()).max(1),
            max_nr_frames: MAX_FRAMES,
            status: nr::GNTST_OKAY,
            ..asked
        },
        Err(status) => nr::QuerySize { status, ..asked },
    })
}

/// Only version 1 exists.
fn set_version(_: &mut Core, _: Caller, asked: nr::SetVersion) -> Result<nr::SetVersion, Errno> {
    match asked.version {
        1 => Ok(asked),
        2 => Err(Errno::ENOSYS),
        _ => Err(Errno::EINVAL),
    }
}

fn get_version(
    core: &mut Core,
    caller: Caller,
    asked: nr::GetVersion,
) -> Result<nr::GetVersion, Errno> {
    event::named(core, caller.dom, asked.dom)?;
    Ok(nr::GetVersion { version: 1, ..asked })
}
