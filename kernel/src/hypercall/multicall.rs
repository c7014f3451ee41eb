//! `multicall`: a batch of hypercalls from an array in guest memory. Each result is stored
//! beside its call; an error does not stop the batch.

use super::{Outcome, dispatch};
use crate::{Core, state::Caller};
use bulkhead_abi::{
    Errno, GuestVa,
    hypercall::{IRET, MULTICALL, MulticallEntry},
};

/// Calls of a batch before the caller's events and the scheduler have their turn.
const BATCH: u64 = 64;
const ENTRY_BYTES: u64 = size_of::<MulticallEntry>() as u64;

/// `multicall(entries, count)`.
///
/// Errors: `EFAULT` where an entry can not be read or written; calls before it are done.
/// An entry gets `ENOSYS` for a number that does not exist or `iret`, `EINVAL` for a batch within a
/// batch.
pub fn multicall(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [mut at, count, ..] = args;
    // A count is 32 bits wide.
    let mut left = count & 0xffff_ffff;
    for _ in 0..BATCH {
        if left == 0 {
            return Outcome::Done(0);
        }
        match one(core, caller, GuestVa::new(at)) {
            Ok(Step::Next) => {}
            Ok(Step::Stay) => return Outcome::Again([at, left, 0, 0, 0]),
            Ok(Step::Gone) => return Outcome::Replaced,
            Err(error) => return error.into(),
        }
        at = at.wrapping_add(ENTRY_BYTES);
        left -= 1;
    }
    if left == 0 { Outcome::Done(0) } else { Outcome::Again([at, left, 0, 0, 0]) }
}

enum Step {
    /// The entry is done.
    Next,
    /// The entry wants to be called again, with the arguments that are in it now.
    Stay,
    /// The caller no longer runs.
    Gone,
}

fn one(core: &mut Core, caller: Caller, at: GuestVa) -> Result<Step, Errno> {
    let mut entry: MulticallEntry = core.guest(caller).read(at)?;
    let outcome = match entry.op {
        MULTICALL => Errno::EINVAL.into(),
        IRET => Errno::ENOSYS.into(),
        op => dispatch(core, caller, op, entry.args),
    };
    let step = match outcome {
        Outcome::Done(result) => {
            entry.result = result as u64;
            Step::Next
        }
        Outcome::Again(args) => {
            entry.args[..5].copy_from_slice(&args);
            Step::Stay
        }
        Outcome::Replaced => return Ok(Step::Gone),
    };
    core.guest(caller).write(at, &entry)?;
    Ok(step)
}
