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
use bulkhead_abi::{DomId, Errno, Gref, Mfn, grant as nr};
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

    /// Frames that both take, those that it shares with the domain included.
    pub fn overhead(&self) -> u64 {
        self.table.as_deref().map_or(0, Table::overhead)
            + self.tracks.as_deref().map_or(0, Tracks::overhead)
    }

    /// Frames of its table.
    pub fn nr_frames(&self) -> u32 {
        self.table.as_deref().map_or(0, Table::nr_frames)
    }
}

/// Why one grant operation of a batch is refused: `GNTST_*`, as Xen 4.17 chooses it.
///
/// `BAD_DOMAIN`: no such domain, or it is going. `BAD_GNTREF`: beyond the granter's table, or
/// flags that ask for nothing. `BAD_HANDLE`: no such mapping. `BAD_PAGE`: the frame in the entry
/// is not the granter's memory. `NO_DEVICE_SPACE`: no memory for more handles, or too many of
/// them. `BAD_COPY_ARG`: the range leaves the page. `PERMISSION_DENIED`: a frame by number must be
/// the caller's own. `GENERAL_ERROR`: the entry does not permit this, keeps changing, or is in use
/// by somebody else; the frame is in use as something that may not be written; the entry to be
/// written or cleared is not there, or does not map the frame.
pub type Refusal = i16;

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
    }
    let table = domain.grants.table.as_deref_mut().ok_or(Errno::ENOMEM)?;
    while table.nr_frames() < nr_frames {
        table.grow(&mut core.frames, dom).ok_or(Errno::ENOMEM)?;
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
    let flags = nr::GTF_PERMIT_ACCESS;
    let entry = nr::GrantEntryV1 { flags, domid: grantee.get(), frame };
    core.frames.mem().write_u64(at, zerocopy::transmute!(entry));
    Ok(())
}

/// Lets go of everything a domain has mapped: it is reset or destroyed. Its page tables may
/// still hold entries; they go with them, and no vCPU of it runs any more. Each mapping takes a step
/// of `budget`.
pub fn release_maps(core: &mut Core, dom: DomId, budget: &mut u32) -> Progress {
    while let Some(handle) = map::tracks_mut(core, dom).and_then(Tracks::first_used) {
        if *budget == 0 {
            return Progress::More;
        }
        *budget -= 1;
        // The handle is in use: there is nothing to refuse.
        let _ = map::release(core, dom, handle);
    }
    let tracks = core.domains.get_mut(dom).and_then(|domain| domain.grants.tracks.take());
    if let Some(tracks) = tracks {
        track::free(tracks, &mut core.frames);
    }
    Progress::Done
}

/// Takes a domain's table away: it is reset or destroyed. Mappings that others have made from it
/// stay until they let go.
///
/// Cost: a few steps per frame of the table, of which there are at most [`MAX_FRAMES`].
pub fn free_table(core: &mut Core, dom: DomId) {
    let table = core.domains.get_mut(dom).and_then(|domain| domain.grants.table.take());
    if let Some(table) = table {
        table::free(table, &mut core.frames);
    }
}

/// A frame that is in use: what must be given back.
#[derive(Clone, Copy, Debug)]
struct Use {
    frame: Mfn,
    writable: bool,
    /// The entry that is marked, unless the frame is the user's own.
    grant: Option<(DomId, Gref)>,
}

/// Takes a use of `gref` for `by`: entry marked, references held.
fn acquire(
    core: &mut Core,
    granter: DomId,
    gref: Gref,
    by: DomId,
    writable: bool,
) -> Result<Use, Refusal> {
    let mem = core.frames.mem();
    let domain = core.domains.get_mut(granter).filter(|d| d.life != Life::Dying);
    let domain = domain.ok_or(nr::GNTST_BAD_DOMAIN)?;
    let table = domain.grants.table.as_deref_mut().ok_or(nr::GNTST_BAD_GNTREF)?;
    let frame = table.acquire(mem, gref, by, writable)?;
    let taken = take_frame(core, granter, frame, writable);
    if taken.is_err() {
        unmark(core, granter, gref, writable);
    }
    Ok(Use { grant: Some((granter, gref)), ..taken? })
}

/// Takes a use of a frame of `owner` by number.
fn take_frame(core: &mut Core, owner: DomId, frame: Mfn, writable: bool) -> Result<Use, Refusal> {
    match core.frames.get_mapped(frame, owner, writable) {
        Ok(()) => Ok(Use { frame, writable, grant: None }),
        Err(FrameError::NoFrame { .. } | FrameError::NotOwner { .. }) => Err(nr::GNTST_BAD_PAGE),
        Err(_) => Err(nr::GNTST_GENERAL_ERROR),
    }
}

/// Gives a use back.
fn release_use(core: &mut Core, used: Use) {
    core.frames.put_mapped(used.frame, used.writable);
    if let Some((granter, gref)) = used.grant {
        unmark(core, granter, gref, used.writable);
    }
}

fn unmark(core: &mut Core, granter: DomId, gref: Gref, writable: bool) {
    let mem = core.frames.mem();
    let table = core.domains.get_mut(granter).and_then(|domain| domain.grants.table.as_deref_mut());
    if let Some(table) = table {
        table.release(mem, gref, writable);
    }
}
