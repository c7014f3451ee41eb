//! Copying between a granted frame and one's own, or between two grants, without mapping.

use super::{GrantError, Use, acquire, drop_frame, release_use, take_frame};
use crate::Core;
use bulkhead_abi::{DomId, Gref, Maddr, Mfn, PAGE_SIZE};

/// What an end of a copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// A frame that its domain granted to the caller.
    Grant(Gref),
    /// A frame of the caller.
    Frame(Mfn),
}

/// One end of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    pub dom: DomId,
    pub what: What,
    /// Bytes into the frame.
    pub offset: u16,
}

/// What an end holds while bytes move.
enum Held {
    Grant(Use),
    Own { frame: Mfn, writable: bool },
}

impl Held {
    fn at(&self, offset: u16) -> Maddr {
        let (Self::Grant(Use { frame, .. }) | Self::Own { frame, .. }) = self;
        Maddr::new(frame.maddr().get() + u64::from(offset))
    }

    fn release(self, core: &mut Core) {
        match self {
            Self::Grant(used) => release_use(core, used),
            Self::Own { frame, writable } => drop_frame(core, frame, writable),
        }
    }
}

/// Copies `len` bytes within one frame each.
///
/// Errors: `BadRange`, `NotPermitted`, `NoDomain`, `BadGref`, `NotGranted`, `BadFrame`, `NotWritable`;
/// on error nothing was copied.
pub fn copy(
    core: &mut Core,
    caller: DomId,
    from: End,
    to: End,
    len: u16,
) -> Result<(), GrantError> {
    check(caller, from, len)?;
    check(caller, to, len)?;
    let source = hold(core, caller, from, false)?;
    let dest = match hold(core, caller, to, true) {
        Ok(dest) => dest,
        Err(refused) => {
            source.release(core);
            return Err(refused);
        }
    };
    if len > 0 {
        // Both offsets are within their frames: checked above, with at least a byte behind them.
        core.frames.mem().copy(source.at(from.offset), dest.at(to.offset), usize::from(len));
    }
    dest.release(core);
    source.release(core);
    Ok(())
}

fn check(caller: DomId, end: End, len: u16) -> Result<(), GrantError> {
    if matches!(end.what, What::Frame(_)) && end.dom != caller {
        return Err(GrantError::NotPermitted);
    }
    if usize::from(end.offset) + usize::from(len) > PAGE_SIZE {
        return Err(GrantError::BadRange);
    }
    Ok(())
}

fn hold(core: &mut Core, caller: DomId, end: End, writable: bool) -> Result<Held, GrantError> {
    match end.what {
        What::Grant(gref) => acquire(core, end.dom, gref, caller, writable).map(Held::Grant),
        What::Frame(frame) => {
            take_frame(core, caller, frame, writable).map(|()| Held::Own { frame, writable })
        }
    }
}
