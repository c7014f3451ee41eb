//! Mapping and unmapping what others granted.

use super::{
    GrantError, Use, acquire, release_use,
    track::{Track, Tracks},
};
use crate::{
    Core,
    memory::{frame_box::FrameBox, update},
    state::Caller,
};
use bulkhead_abi::{
    DomId, Gref, GuestVa, Maddr, Mfn,
    grant::{GNTMAP_CONTAINS_PTE, GNTMAP_HOST_MAP, GNTMAP_READONLY, MapGrantRef},
};

/// What a map gives: the handle to unmap with, and the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    pub handle: u32,
    pub frame: Mfn,
}

/// Maps a granted frame at the caller's address.
///
/// Errors: `BadGref` (also for flags without `GNTMAP_HOST_MAP`), `NoDomain`, `NoHandle`, `NotGranted`,
/// `BadFrame`, `NotWritable`, `BadAddress`; on error nothing has changed.
pub fn map(core: &mut Core, caller: Caller, asked: &MapGrantRef) -> Result<Mapped, GrantError> {
    let (granter, gref) = (DomId::new(asked.dom), Gref::new(asked.gref));
    if asked.flags & GNTMAP_HOST_MAP == 0 {
        return Err(GrantError::BadGref { gref });
    }
    let life = core.domains.get(granter).ok_or(GrantError::NoDomain { dom: granter })?.incarnation;
    reserve_handle(core, caller.dom)?;
    let writable = asked.flags & GNTMAP_READONLY == 0;
    let by_pte = asked.flags & GNTMAP_CONTAINS_PTE != 0;
    let used = acquire(core, granter, gref, caller.dom, writable)?;
    let frame = used.frame;
    let entered = entry_of(core, caller, by_pte, asked.host_addr).and_then(|pte| {
        let (to, from) = ((caller.dom, pte), (granter, frame));
        Some((pte, update::grant_map(&mut core.frames, to, from, writable, asked.flags)?))
    });
    let Some((pte, flush)) = entered else {
        release_use(core, used);
        return Err(GrantError::BadAddress);
    };
    core.request_flush(caller.cpu, flush);
    let track = Track { granter, life, gref, writable, by_pte, pte, frame };
    let tracks = tracks_mut(core, caller.dom).ok_or(GrantError::NoHandle)?;
    let handle = tracks.insert(track).ok_or(GrantError::NoHandle)?;
    Ok(Mapped { handle, frame })
}

/// The entry that an address in a request means: that at the address, or that of the page there.
fn entry_of(core: &Core, caller: Caller, by_pte: bool, addr: u64) -> Option<Maddr> {
    if by_pte {
        return Some(Maddr::new(addr)).filter(|at| at.offset().is_multiple_of(8));
    }
    let root = core.vcpu(caller)?.roots.kernel?;
    update::l1_entry_of(&core.frames, root, GuestVa::new(addr))
}

pub(super) fn tracks_mut(core: &mut Core, dom: DomId) -> Option<&mut Tracks> {
    core.domains.get_mut(dom)?.grants.tracks.as_deref_mut()
}

fn reserve_handle(core: &mut Core, dom: DomId) -> Result<(), GrantError> {
    let domain = core.domains.get_mut(dom).ok_or(GrantError::NoHandle)?;
    if domain.grants.tracks.is_none() {
        let tracks = FrameBox::new(&mut core.frames, Tracks::new()).ok_or(GrantError::NoHandle)?;
        domain.grants.tracks = Some(tracks);
    }
    let tracks = domain.grants.tracks.as_deref_mut().ok_or(GrantError::NoHandle)?;
    tracks.reserve(&mut core.frames).ok_or(GrantError::NoHandle)
}

/// Undoes a map: the entry at `host_addr` (the same kind of address as the map was given) must still
/// map the frame. With `host_addr` 0 nothing is undone and nothing refused, as on Xen.
///
/// Errors: `BadHandle`, `BadAddress`; on error nothing has changed.
pub fn unmap(
    core: &mut Core,
    caller: Caller,
    host_addr: u64,
    handle: u32,
) -> Result<(), GrantError> {
    let bad = GrantError::BadHandle { handle };
    let track = tracks_mut(core, caller.dom).and_then(|tracks| tracks.get(handle)).ok_or(bad)?;
    if host_addr == 0 {
        return Ok(());
    }
    let pte = entry_of(core, caller, track.by_pte, host_addr)
        .filter(|pte| !track.by_pte || *pte == track.pte)
        .ok_or(GrantError::BadAddress)?;
    let flush = update::grant_unmap(&mut core.frames, caller.dom, pte, track.frame);
    core.request_flush(caller.cpu, flush.ok_or(GrantError::BadAddress)?);
    release(core, caller.dom, handle)
}

/// Gives a handle back with all that it holds but the page-table entry.
///
/// Errors: `BadHandle`.
pub(super) fn release(core: &mut Core, mapper: DomId, handle: u32) -> Result<(), GrantError> {
    let bad = GrantError::BadHandle { handle };
    let track = tracks_mut(core, mapper).and_then(|tracks| tracks.remove(handle)).ok_or(bad)?;
    let granter = core.domains.get(track.granter);
    let is_same_life = granter.is_some_and(|granter| granter.incarnation == track.life);
    let grant = is_same_life.then_some((track.granter, track.gref));
    release_use(core, Use { frame: track.frame, writable: track.writable, grant });
    Ok(())
}
