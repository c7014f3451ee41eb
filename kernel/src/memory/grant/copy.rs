//! Copying between a granted frame and one's own, or between two grants, without mapping.

use super::{Refusal, Use, acquire, release_use, take_frame};
use crate::Core;
use bulkhead_abi::{
    DomId, Gref, Maddr, Mfn, PAGE_SIZE,
    grant::{self as nr, CopyPtr, GrantCopy},
};

/// Copies `len` bytes within one frame each: one element of a `copy`.
///
/// Errors: `BAD_COPY_ARG`, `PERMISSION_DENIED`, `BAD_DOMAIN`, `BAD_GNTREF`, `BAD_PAGE`,
/// `GENERAL_ERROR`; on error nothing was copied.
pub fn copy(core: &mut Core, caller: DomId, asked: &GrantCopy) -> Result<(), Refusal> {
    let GrantCopy { source, dest, len, flags, .. } = asked;
    let from = End { ptr: source, is_gref: flags & nr::GNTCOPY_SOURCE_GREF != 0 };
    let to = End { ptr: dest, is_gref: flags & nr::GNTCOPY_DEST_GREF != 0 };
    from.check(*len)?;
    to.check(*len)?;
    let source = from.hold(core, caller, false)?;
    let dest = match to.hold(core, caller, true) {
        Ok(dest) => dest,
        Err(refused) => {
            release_use(core, source);
            return Err(refused);
        }
    };
    if *len > 0 {
        // Both offsets are within their frames: checked above, with at least a byte behind them.
        core.frames.mem().copy(from.at(&source), to.at(&dest), usize::from(*len));
    }
    release_use(core, dest);
    release_use(core, source);
    Ok(())
}

/// One end of a copy: a frame that its domain granted to the caller, or one of the caller's own.
struct End<'a> {
    ptr: &'a CopyPtr,
    is_gref: bool,
}

impl End<'_> {
    fn check(&self, len: u16) -> Result<(), Refusal> {
        // A frame by number is the caller's, and that only as SELF.
        if !self.is_gref && DomId::new(self.ptr.domid) != DomId::SELF {
            return Err(nr::GNTST_PERMISSION_DENIED);
        }
        if usize::from(self.ptr.offset) + usize::from(len) > PAGE_SIZE {
            return Err(nr::GNTST_BAD_COPY_ARG);
        }
        Ok(())
    }

    fn hold(&self, core: &mut Core, caller: DomId, writable: bool) -> Result<Use, Refusal> {
        if !self.is_gref {
            return take_frame(core, caller, Mfn::new(self.ptr.gref_or_gmfn), writable);
        }
        let granter = match DomId::new(self.ptr.domid) {
            DomId::SELF => caller,
            dom => dom,
        };
        // The field is a union: a gref is its lower half.
        acquire(core, granter, Gref::new(self.ptr.gref_or_gmfn as u32), caller, writable)
    }

    fn at(&self, used: &Use) -> Maddr {
        Maddr::new(used.frame.maddr().get() + u64::from(self.ptr.offset))
    }
}
