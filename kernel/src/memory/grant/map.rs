//! Mapping and unmapping what others granted.

use super::{
    GrantError, Use, acquire, release_use,
    track::{Track, Tracks},
};
use crate::{
    Core,
    memory::{
        frame_box::FrameBox,
        update::{self, PteTarget},
        validate::Pte,
    },
    state::Caller,
};
use bulkhead_abi::{
    DomId, Gref, GuestVa, Maddr, Mfn,
    grant::{GNTMAP_CONTAINS_PTE, GNTMAP_HOST_MAP, GNTMAP_READONLY},
};

/// One element of a `map_grant_ref`.
#[derive(Clone, Copy, Debug)]
pub struct MapRequest {
    /// `GNTMAP_*`
    pub flags: u32,
    /// Address of the page, or machine address of the entry with `GNTMAP_CONTAINS_PTE`.
    pub host_addr: u64,
    pub granter: DomId,
    pub gref: Gref,
}

impl MapRequest {
    fn target(&self) -> PteTarget {
        if self.flags & GNTMAP_CONTAINS_PTE != 0 {
            PteTarget::Pte(Maddr::new(self.host_addr))
        } else {
            PteTarget::Va(GuestVa::new(self.host_addr))
        }
    }
}

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
pub fn map(core: &mut Core, caller: Caller, asked: &MapRequest) -> Result<Mapped, GrantError> {
    let gref = asked.gref;
    if asked.flags & GNTMAP_HOST_MAP == 0 {
        return Err(GrantError::BadGref { gref });
    }
    let granter =
        core.domains.get(asked.granter).ok_or(GrantError::NoDomain { dom: asked.granter })?;
    let life = granter.incarnation;
    reserve_handle(core, caller.dom)?;
    let writable = asked.flags & GNTMAP_READONLY == 0;
    let used = acquire(core, asked.granter, gref, caller.dom, writable)?;
    let pte = match enter(core, caller, asked, &used) {
        Ok(pte) => pte,
        Err(refused) => {
            release_use(core, used);
            return Err(refused);
        }
    };
    let by_pte = asked.flags & GNTMAP_CONTAINS_PTE != 0;
    let frame = used.frame;
    let track = Track { granter: asked.granter, life, gref, writable, by_pte, pte, frame };
    let tracks = tracks_mut(core, caller.dom).ok_or(GrantError::NoHandle)?;
    let handle = tracks.insert(track).ok_or(GrantError::NoHandle)?;
    Ok(Mapped { handle, frame })
}

fn tracks_mut(core: &mut Core, dom: DomId) -> Option<&mut Tracks> {
    core.domains.get_mut(dom)?.grants.tracks.as_deref_mut()
}

fn reserve_handle(core: &mut Core, dom: DomId) -> Result<(), GrantError> {
    let domain = core.domains.get_mut(dom).ok_or(GrantError::NoHandle)?;
    if domain.grants.tracks.is_none() {
        let tracks = FrameBox::new(&mut core.frames, Tracks::new()).ok_or(GrantError::NoHandle)?;
        domain.grants.tracks = Some(tracks);
        domain.memory.overhead_pages += 1;
    }
    let tracks = domain.grants.tracks.as_deref_mut().ok_or(GrantError::NoHandle)?;
    let taken = tracks.reserve(&mut core.frames).ok_or(GrantError::NoHandle)?;
    domain.memory.overhead_pages += taken;
    Ok(())
}

/// Puts the frame into the caller's tables.
fn enter(
    core: &mut Core,
    caller: Caller,
    asked: &MapRequest,
    used: &Use,
) -> Result<Maddr, GrantError> {
    let root = root_of(core, caller).ok_or(GrantError::BadAddress)?;
    let Use { frame, writable, .. } = *used;
    let (pte, flush) =
        update::grant_map(core, caller.dom, root, asked.target(), frame, writable, asked.flags)
            .map_err(|_| GrantError::BadAddress)?;
    core.request_flush(caller.cpu, flush);
    Ok(pte)
}

fn root_of(core: &Core, caller: Caller) -> Option<Mfn> {
    core.domains.get(caller.dom)?.vcpu(caller.vcpu)?.roots.kernel
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
    let pte = if track.by_pte {
        Some(track.pte).filter(|pte| pte.get() == host_addr)
    } else {
        root_of(core, caller)
            .and_then(|root| update::l1_entry_of(&core.frames, root, GuestVa::new(host_addr)))
    };
    let pte = pte.filter(|&pte| maps_frame(core, caller.dom, pte, track.frame));
    let pte = pte.ok_or(GrantError::BadAddress)?;
    let flush = update::grant_unmap(&mut core.frames, caller.dom, pte, track.frame);
    core.request_flush(caller.cpu, flush);
    release(core, caller.dom, handle)
}

/// Whether `pte` is an entry of the mapper's own live tables that maps `frame`.
fn maps_frame(core: &Core, mapper: DomId, pte: Maddr, frame: Mfn) -> bool {
    update::is_live_l1_of(&core.frames, pte.mfn(), mapper) && {
        let entry = Pte::new(core.frames.mem().read_u64(pte));
        entry.is_present() && entry.mfn() == frame
    }
}

/// Gives a handle back with all that it holds but the page-table entry.
///
/// Errors: `BadHandle`.
pub(super) fn release(core: &mut Core, mapper: DomId, handle: u32) -> Result<(), GrantError> {
    let bad = GrantError::BadHandle { handle };
    let track = tracks_mut(core, mapper).and_then(|tracks| tracks.remove(handle)).ok_or(bad)?;
    let Track { granter, gref, writable, frame, .. } = track;
    let is_same_life =
        core.domains.get(granter).is_some_and(|domain| domain.incarnation == track.life);
    if is_same_life {
        release_use(core, Use { granter, gref, writable, frame });
    } else {
        super::drop_frame(core, frame, writable);
    }
    Ok(())
}
