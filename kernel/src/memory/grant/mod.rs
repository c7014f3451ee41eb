//! Grant tables, version 1: a domain lets another map or copy frames of its own, and
//! takes nothing back while they are in use.
//!
//! [`table`] is the granter's side: entries it writes, and the core's private count of who uses
//! which. [`track`] is the mapper's side: what it has mapped, by handle. [`map`] and [`copy`]
//! join the two with page tables and reference counts.
//!
//! Invariants
//! 1. While an entry's private count is above zero, its bit `reading` is set, and `writing` while
//!    one of the users may write; the last use clears them. A guest that clears them itself fools
//!    nobody but its own driver.
//! 2. Each use holds a general reference on the frame, and a `Writable` type reference if it may
//!    write, besides those of the page-table entry. So the frame stays what it is until the
//!    handle is given back, whatever the mapper does to its tables and the granter to its entry.
//! 3. A handle names the granter's life too: what was mapped from a domain that has been reset
//!    or replaced is let go without touching the new one's table.
#![deny(unsafe_code)]

pub mod copy;
pub mod map;
pub mod table;
pub mod track;

#[cfg(test)]
mod tests;

use crate::{
    Core,
    domain::Life,
    memory::{frame::FrameError, frame_box::FrameBox, teardown::Progress},
};
use bulkhead_abi::{DomId, Errno, Gref, Mfn, grant};
use table::{MAX_FRAMES, Table};
use track::Tracks;

/// A domain's table and what it has mapped of others. Both take memory on first use, charged
/// to the domain.
#[derive(Default)]
pub struct GrantTable {
    table: Option<FrameBox<Table>>,
    tracks: Option<FrameBox<Tracks>>,
}

impl GrantTable {
    /// Grants of others it has mapped.
    pub fn mapped(&self) -> u32 {
        self.tracks.as_deref().map_or(0, Tracks::in_use)
    }

    /// Frames of its table.
    pub fn nr_frames(&self) -> u32 {
        self.table.as_deref().map_or(0, Table::nr_frames)
    }
}

/// Why one grant operation of a batch is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrantError {
    /// No such domain, or it is going.
    NoDomain { dom: DomId },
    /// Beyond the granter's table, or flags that ask for nothing.
    BadGref { gref: Gref },
    /// The entry does not permit this, or keeps changing, or is in use by somebody else.
    NotGranted { gref: Gref },
    /// No such mapping.
    BadHandle { handle: u32 },
    /// The frame in the entry is not the granter's memory.
    BadFrame { mfn: Mfn },
    /// The frame is in use as something that may not be written.
    NotWritable { mfn: Mfn },
    /// The entry to be written or cleared is not there, or does not map the frame.
    BadAddress,
    /// No memory for more handles, or too many of them.
    NoHandle,
    /// The range leaves the page.
    BadRange,
    /// A frame by number must be the caller's own.
    NotPermitted,
}

impl GrantError {
    /// `GNTST_*`, as Xen 4.17 chooses it.
    pub const fn status(self) -> i16 {
        match self {
            Self::NoDomain { .. } => grant::GNTST_BAD_DOMAIN,
            Self::BadGref { .. } => grant::GNTST_BAD_GNTREF,
            Self::NotGranted { .. } | Self::NotWritable { .. } | Self::BadAddress => {
                grant::GNTST_GENERAL_ERROR
            }
            Self::BadHandle { .. } => grant::GNTST_BAD_HANDLE,
            Self::BadFrame { .. } => grant::GNTST_BAD_PAGE,
            Self::NoHandle => grant::GNTST_NO_DEVICE_SPACE,
            Self::BadRange => grant::GNTST_BAD_COPY_ARG,
            Self::NotPermitted => grant::GNTST_PERMISSION_DENIED,
        }
    }
}

/// Makes the table of `dom` at least `nr_frames` large and gives its size.
///
/// Errors: `EINVAL` above [`MAX_FRAMES`], `ESRCH`, `ENOMEM`; what has grown stays.
pub fn grow(core: &mut Core, dom: DomId, nr_frames: u32) -> Result<u32, Errno> {
    if nr_frames > MAX_FRAMES {
        return Err(Errno::EINVAL);
    }
    let domain = core.domains.get_mut(dom).filter(|d| d.life != Life::Dying).ok_or(Errno::ESRCH)?;
    if domain.grants.table.is_none() {
        let table = FrameBox::new(&mut core.frames, Table::new()).ok_or(Errno::ENOMEM)?;
        domain.grants.table = Some(table);
        domain.memory.overhead_pages += 1;
    }
    let table = domain.grants.table.as_deref_mut().ok_or(Errno::ENOMEM)?;
    while table.nr_frames() < nr_frames {
        domain.memory.overhead_pages += table.grow(&mut core.frames, dom).ok_or(Errno::ENOMEM)?;
    }
    Ok(table.nr_frames())
}

/// The frames of a domain's table, in order.
pub fn table_frame(core: &Core, dom: DomId, index: u32) -> Option<Mfn> {
    core.domains.get(dom)?.grants.table.as_deref()?.frame(index)
}

/// Writes an entry of a domain's table for it: `SET_GRANT`, before it runs.
///
/// Errors: `ESRCH`, `EINVAL` for a gref beyond the table's first frame or a frame number
/// that does not fit, `ENOMEM`.
pub fn set_entry(
    core: &mut Core,
    dom: DomId,
    gref: Gref,
    grantee: DomId,
    mfn: Mfn,
) -> Result<(), Errno> {
    let frame = u32::try_from(mfn.get()).map_err(|_| Errno::EINVAL)?;
    grow(core, dom, 1)?;
    let table = core.domains.get(dom).and_then(|domain| domain.grants.table.as_deref());
    let at = table.and_then(|table| table.entry_at(gref)).ok_or(Errno::EINVAL)?;
    let entry = table::Entry { flags: grant::GTF_PERMIT_ACCESS, domid: grantee.get(), frame };
    core.frames.mem().write_u64(at, entry.word());
    Ok(())
}

/// Lets go of everything a domain has mapped: it is reset or destroyed. Its page tables may
/// still hold entries; they go with them, and no vCPU of it runs any more. Each mapping takes a step
/// of `budget`.
pub fn release_maps(core: &mut Core, dom: DomId, budget: &mut u32) -> Progress {
    loop {
        let Some(domain) = core.domains.get_mut(dom) else {
            return Progress::Done;
        };
        let Some(tracks) = domain.grants.tracks.as_deref_mut() else {
            return Progress::Done;
        };
        let Some(handle) = tracks.first_used() else {
            break;
        };
        if *budget == 0 {
            return Progress::More;
        }
        *budget -= 1;
        if map::release(core, dom, handle).is_err() {
            break;
        }
    }
    if let Some(domain) = core.domains.get_mut(dom)
        && let Some(tracks) = domain.grants.tracks.take()
    {
        let given = track::free(tracks, &mut core.frames);
        domain.memory.overhead_pages = domain.memory.overhead_pages.saturating_sub(given);
    }
    Progress::Done
}

/// Takes a domain's table away: it is reset or destroyed. Mappings that others have made from it
/// stay until they let go.
///
/// Cost: a few steps per frame of the table, of which there are at most [`MAX_FRAMES`].
pub fn free_table(core: &mut Core, dom: DomId) {
    if let Some(domain) = core.domains.get_mut(dom)
        && let Some(table) = domain.grants.table.take()
    {
        let given = table::free(table, &mut core.frames);
        domain.memory.overhead_pages = domain.memory.overhead_pages.saturating_sub(given);
    }
}

/// A frame of a granter that is in use: what must be given back.
#[derive(Clone, Copy, Debug)]
struct Use {
    granter: DomId,
    gref: Gref,
    writable: bool,
    frame: Mfn,
}

/// Takes a use of `gref` for `by`: entry marked, references held.
fn acquire(
    core: &mut Core,
    granter: DomId,
    gref: Gref,
    by: DomId,
    writable: bool,
) -> Result<Use, GrantError> {
    let mem = core.frames.mem();
    let domain = core.domains.get_mut(granter).filter(|d| d.life != Life::Dying);
    let domain = domain.ok_or(GrantError::NoDomain { dom: granter })?;
    let table = domain.grants.table.as_deref_mut().ok_or(GrantError::BadGref { gref })?;
    let frame = table.acquire(mem, gref, by, writable)?;
    match take_frame(core, granter, frame, writable) {
        Ok(()) => Ok(Use { granter, gref, writable, frame }),
        Err(refused) => {
            unmark(core, granter, gref, writable);
            Err(refused)
        }
    }
}

/// Gives a use back.
fn release_use(core: &mut Core, used: Use) {
    drop_frame(core, used.frame, used.writable);
    unmark(core, used.granter, used.gref, used.writable);
}

fn unmark(core: &mut Core, granter: DomId, gref: Gref, writable: bool) {
    let mem = core.frames.mem();
    let table = core.domains.get_mut(granter).and_then(|domain| domain.grants.table.as_deref_mut());
    if let Some(table) = table {
        table.release(mem, gref, writable);
    }
}

fn take_frame(core: &mut Core, owner: DomId, mfn: Mfn, writable: bool) -> Result<(), GrantError> {
    let taken = if writable {
        core.frames.get_writable(mfn, owner)
    } else {
        core.frames.get_page(mfn, owner)
    };
    taken.map_err(|refused| match refused {
        FrameError::NoFrame { mfn } | FrameError::NotOwner { mfn, .. } => {
            GrantError::BadFrame { mfn }
        }
        _ => GrantError::NotWritable { mfn },
    })
}

fn drop_frame(core: &mut Core, mfn: Mfn, writable: bool) {
    if writable {
        core.frames.put_writable(mfn);
    } else {
        core.frames.put_page(mfn);
    }
}
