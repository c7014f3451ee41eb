//! Mapping and unmapping what others granted.

use super::{
    Refusal, Use, acquire, release_use,
    track::{Track, Tracks},
};
use crate::{
    Core,
    memory::{frame_box::FrameBox, update},
    state::Caller,
};
use bulkhead_abi::{
    DomId, Gref, GuestVa, Maddr, Mfn,
    grant::{self as nr, MapGrantRef},
};

/// What a map gives: the handle to unmap with, and the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    pub handle: u32,
    pub frame: Mfn,
}

/// Maps a granted frame at the caller's address.
///
/// Errors: `BAD_GNTREF`, `BAD_DOMAIN`, `NO_DEVICE_SPACE`, `BAD_PAGE`, `GENERAL_ERROR`; on error
/// nothing has changed.
pub fn map(core: &mut Core, caller: Caller, asked: &MapGrantRef) -> Result<Mapped, Refusal> {
    let (granter, gref) = (DomId::new(asked.dom), Gref::new(asked.gref));
    if asked.flags & nr::GNTMAP_HOST_MAP == 0 {
        return Err(nr::GNTST_BAD_GNTREF);
    }
    let life = core.domains.get(granter).ok_or(nr::GNTST_BAD_DOMAIN)?.incarnation;
    reserve_handle(core, caller.dom).ok_or(nr::GNTST_NO_DEVICE_SPACE)?;
    let writable = asked.flags & nr::GNTMAP_READONLY == 0;
    let by_pte = asked.flags & nr::GNTMAP_CONTAINS_PTE != 0;
    let used = acquire(core, granter, gref, caller.dom, writable)?;
    let frame = used.frame;
    let entered = entry_of(core, caller, by_pte, asked.host_addr).and_then(|pte| {
        let (to, from) = ((caller.dom, pte), (granter, frame));
        Some((pte, update::grant_map(&mut core.frames, to, from, writable, asked.flags)?))
    });
    let Some((pte, flush)) = entered else {
        release_use(core, used);
        return Err(nr::GNTST_GENERAL_ERROR);
    };
    core.request_flush(caller.cpu, flush);
    let track = Track { granter, life, gref, writable, by_pte, pte, frame };
    let handle = tracks_mut(core, caller.dom).and_then(|tracks| tracks.insert(track));
    Ok(Mapped { handle: handle.ok_or(nr::GNTST_NO_DEVICE_SPACE)?, frame })
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

fn reserve_handle(core: &mut Core, dom: DomId) -> Option<()> {
    let domain = core.domains.get_mut(dom)?;
    if domain.grants.tracks.is_none() {
        domain.grants.tracks = Some(FrameBox::new(&mut core.frames, Tracks::new())?);
    }
    domain.grants.tracks.as_deref_mut()?.reserve(&mut core.frames)
}

/// Undoes a map: the entry at `host_addr` (the same kind of address as the map was given) must still
/// map the frame. With `host_addr` 0 nothing is undone and nothing refused, as on Xen.
///
/// Errors: `BAD_HANDLE`, `GENERAL_ERROR`; on error nothing has changed.
pub fn unmap(core: &mut Core, caller: Caller, host_addr: u64, handle: u32) -> Result<(), Refusal> {
    let track = tracks_mut(core, caller.dom).and_then(|tracks| tracks.get(handle));
    let track = track.ok_or(nr::GNTST_BAD_HANDLE)?;
    if host_addr == 0 {
        return Ok(());
    }
    let pte = entry_of(core, caller, track.by_pte, host_addr)
        .filter(|pte| !track.by_pte || *pte == track.pte)
        .ok_or(nr::GNTST_GENERAL_ERROR)?;
    let flush = update::grant_unmap(&mut core.frames, caller.dom, pte, track.frame);
    core.request_flush(caller.cpu, flush.ok_or(nr::GNTST_GENERAL_ERROR)?);
    release(core, caller.dom, handle)
}

/// Gives a handle back with all that it holds but the page-table entry.
///
/// Errors: `BAD_HANDLE`.
pub(super) fn release(core: &mut Core, mapper: DomId, handle: u32) -> Result<(), Refusal> {
    let track = tracks_mut(core, mapper).and_then(|tracks| tracks.remove(handle));
    let track = track.ok_or(nr::GNTST_BAD_HANDLE)?;
    let granter = core.domains.get(track.granter);
    let is_same_life = granter.is_some_and(|granter| granter.incarnation == track.life);
    let grant = is_same_life.then_some((track.granter, track.gref));
    release_use(core, Use { frame: track.frame, writable: track.writable, grant });
    Ok(())
}
