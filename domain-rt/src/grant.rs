//! Grants: letting another domain at one of our frames, and using a frame that
//! another domain has let us at.

use crate::hypercall::{Result, grant_table_op};
use crate::mem::{Area, Pages, map_shared_by_core};
use crate::shared::Shared;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_abi::errno::Errno;
use bulkhead_abi::grant::{
    self, CopyPtr, GNTMAP_HOST_MAP, GNTMAP_READONLY, GNTST_OKAY, GTF_PERMIT_ACCESS, GTF_READING,
    GTF_READONLY, GTF_WRITING, GrantCopy, MapGrantRef, QuerySize, SetupTable, UnmapGrantRef,
};
use bulkhead_abi::{DomId, Gref, Maddr, Mfn, PAGE_SIZE};
use core::fmt;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use spin::Mutex;

/// Bytes of a version-1 entry.
const ENTRY: usize = 8;

static TABLE: Mutex<Table> = Mutex::new(Table { frames: Vec::new(), free: Vec::new() });

/// This domain's own table.
struct Table {
    frames: Vec<Shared<'static>>,
    free: Vec<u32>,
}

impl Table {
    fn take(&mut self) -> Result<u32> {
        if self.free.is_empty() {
            self.grow()?;
        }
        self.free.pop().ok_or(Errno::ENOSPC)
    }

    /// Adds a frame to the table.
    fn grow(&mut self) -> Result<()> {
        let wanted = self.frames.len() + 1;
        let mut query = [QuerySize { dom: DomId::SELF.get(), ..Default::default() }];
        grant_table_op(grant::GNTTABOP_QUERY_SIZE, &mut query)?;
        if wanted > query[0].max_nr_frames as usize {
            return Err(Errno::ENOSPC);
        }
        let mut list = vec![0u64; wanted];
        let mut setup = [SetupTable {
            dom: DomId::SELF.get(),
            nr_frames: wanted as u32,
            frame_list: list.as_mut_ptr() as u64,
            ..Default::default()
        }];
        grant_table_op(grant::GNTTABOP_SETUP_TABLE, &mut setup)?;
        if setup[0].status != GNTST_OKAY {
            return Err(Errno::ENOSPC);
        }
        let frame = map_shared_by_core(&[Mfn::new(list[wanted - 1])])?.leak();
        let first = self.frames.len() as u32 * grant::ENTRIES_PER_FRAME;
        let usable = first.max(grant::NR_RESERVED)..first + grant::ENTRIES_PER_FRAME;
        self.frames.push(frame);
        self.free.extend(usable.rev());
        Ok(())
    }

    fn entry(&self, gref: u32) -> Option<Shared<'static>> {
        let per_frame = grant::ENTRIES_PER_FRAME;
        let frame = self.frames.get((gref / per_frame) as usize)?;
        Some(frame.slice((gref % per_frame) as usize * ENTRY, ENTRY))
    }
}

/// Lets `domain` map or copy `frame`, one of this domain's.
///
/// The memory must stay allocated until [`end_access`] has succeeded.
///
/// # Errors
/// `ENOSPC` when the table is full and may not grow.
pub fn grant_access(domain: DomId, frame: Mfn, readonly: bool) -> Result<Gref> {
    let frame = u32::try_from(frame.get()).map_err(|_| Errno::ERANGE)?;
    let mut table = TABLE.lock();
    let gref = table.take()?;
    let entry = table.entry(gref).expect("just taken from the table");
    entry.write_u16(2, domain.get());
    entry.write_u32(4, frame);
    let flags = GTF_PERMIT_ACCESS | if readonly { GTF_READONLY } else { 0 };
    entry.atomic_u16(0).store(flags, Release);
    Ok(Gref::new(gref))
}

/// Takes a grant back.
///
/// # Errors
/// `EBUSY` while the other domain uses it (the grant stands), `EINVAL` for a
/// reference that is not granted.
pub fn end_access(gref: Gref) -> Result<()> {
    let mut table = TABLE.lock();
    let entry = table.entry(gref.get()).ok_or(Errno::EINVAL)?;
    let atomic = entry.atomic_u16(0);
    let mut flags = atomic.load(Acquire);
    loop {
        if flags == 0 {
            return Err(Errno::EINVAL);
        }
        if flags & (GTF_READING | GTF_WRITING) != 0 {
            return Err(Errno::EBUSY);
        }
        match atomic.compare_exchange(flags, 0, AcqRel, Acquire) {
            Ok(_) => break,
            Err(changed) => flags = changed,
        }
    }
    table.free.push(gref.get());
    Ok(())
}

/// Why grants could not be mapped or copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrantError {
    /// Which element of the batch, by position.
    pub index: usize,
    /// Its `GNTST_*` status.
    pub status: i16,
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grant #{} failed with status {}", self.index, self.status)
    }
}

impl core::error::Error for GrantError {}

/// Granted frames mapped in a row; unmapped when dropped.
#[derive(Debug)]
pub struct GrantMapping {
    area: Option<Area>,
    handles: Vec<u32>,
}

/// Maps frames that `domain` granted, in a row, with one hypercall.
///
/// # Errors
/// The first element that was refused; then nothing is mapped.
pub fn map_grants(
    domain: DomId,
    grefs: &[Gref],
    readonly: bool,
) -> core::result::Result<GrantMapping, GrantError> {
    let no_space = GrantError { index: 0, status: grant::GNTST_NO_SPACE };
    let area = Area::new(grefs.len().max(1)).map_err(|_| no_space)?;
    let flags = GNTMAP_HOST_MAP | if readonly { GNTMAP_READONLY } else { 0 };
    let mut ops: Vec<_> = (0..)
        .zip(grefs)
        .map(|(index, gref)| MapGrantRef {
            host_addr: area.va(index),
            flags,
            gref: gref.get(),
            dom: domain.get(),
            // What an element keeps that the core never reached.
            status: grant::GNTST_GENERAL_ERROR,
            ..Default::default()
        })
        .collect();
    // The call itself fails only after some elements: their status tells.
    let _ = grant_table_op(grant::GNTTABOP_MAP_GRANT_REF, &mut ops);
    let failed = ops.iter().position(|op| op.status != GNTST_OKAY);
    let Some(index) = failed else {
        let handles = ops.iter().map(|op| op.handle).collect();
        return Ok(GrantMapping { area: Some(area), handles });
    };
    let mapped = ops.iter().filter(|op| op.status == GNTST_OKAY);
    let undo = mapped.map(|op| (op.host_addr, op.handle)).collect();
    if !unmap(undo) {
        core::mem::forget(area);
    }
    let status = ops[index].status;
    Err(GrantError { index, status })
}

/// Unmaps; `false` if the core refused some, whose addresses must not be used again.
fn unmap(pages: Vec<(u64, u32)>) -> bool {
    let mut ops: Vec<_> = pages
        .into_iter()
        .map(|(host_addr, handle)| UnmapGrantRef {
            host_addr,
            handle,
            status: grant::GNTST_GENERAL_ERROR,
            ..Default::default()
        })
        .collect();
    // As for mapping: the elements tell.
    let _ = ops.is_empty() || grant_table_op(grant::GNTTABOP_UNMAP_GRANT_REF, &mut ops).is_ok();
    let refused = ops.iter().filter(|op| op.status != GNTST_OKAY).count();
    if refused > 0 {
        log::error!("{refused} grants could not be unmapped");
    }
    refused == 0
}

impl GrantMapping {
    /// Number of frames.
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// The mapped bytes.
    pub fn shared(&self) -> Shared<'_> {
        let area = self.area();
        // SAFETY: mapped until `self` is dropped; references into it are never made.
        unsafe { Shared::new(area.va(0) as *mut u8, self.handles.len() * PAGE_SIZE) }
    }

    /// Machine address of frame `index`, for devices.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn maddr(&self, index: usize) -> Maddr {
        assert!(index < self.handles.len(), "frame {index} is not mapped");
        let mfn = self.area().mfn(index);
        mfn.expect("mapped since the mapping was made").maddr()
    }

    fn area(&self) -> &Area {
        self.area.as_ref().expect("held until dropped")
    }

    fn pages(&self) -> Vec<(u64, u32)> {
        let area = self.area();
        let handles = self.handles.iter().enumerate();
        handles.map(|(index, &h)| (area.va(index), h)).collect()
    }

    /// Unmaps several mappings with one hypercall.
    pub fn unmap_all(mappings: impl IntoIterator<Item = Self>) {
        let mut mappings: Vec<Self> = mappings.into_iter().collect();
        let done = unmap(mappings.iter().flat_map(Self::pages).collect());
        for mapping in &mut mappings {
            mapping.handles.clear();
            if let (false, Some(area)) = (done, mapping.area.take()) {
                core::mem::forget(area);
            }
        }
    }
}

impl Drop for GrantMapping {
    fn drop(&mut self) {
        let Some(area) = self.area.take() else { return };
        let handles = self.handles.iter().enumerate();
        let pages = handles.map(|(index, &h)| (area.va(index), h)).collect();
        if !unmap(pages) {
            core::mem::forget(area);
        }
    }
}

/// Which way a copy goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the granted frame into our pages.
    In,
    /// From our pages into the granted frame.
    Out,
}

/// One copy between a granted frame and own pages; neither side may cross a page.
#[derive(Clone, Copy, Debug)]
pub struct Copy<'a> {
    /// Who granted.
    pub domain: DomId,
    /// What.
    pub gref: Gref,
    /// Offset in the granted frame, bytes.
    pub remote_offset: u16,
    /// Our side.
    pub pages: &'a Pages,
    /// Offset in our pages, bytes.
    pub local_offset: usize,
    /// Bytes.
    pub bytes: u16,
    /// Which way.
    pub direction: Direction,
}

impl Copy<'_> {
    fn op(&self) -> GrantCopy {
        let remote = CopyPtr {
            gref_or_gmfn: self.gref.get().into(),
            domid: self.domain.get(),
            offset: self.remote_offset,
            ..Default::default()
        };
        let local = CopyPtr {
            gref_or_gmfn: self.pages.mfn(self.local_offset / PAGE_SIZE).get(),
            domid: DomId::SELF.get(),
            offset: (self.local_offset % PAGE_SIZE) as u16,
            ..Default::default()
        };
        let (source, dest, flags) = match self.direction {
            Direction::In => (remote, local, grant::GNTCOPY_SOURCE_GREF),
            Direction::Out => (local, remote, grant::GNTCOPY_DEST_GREF),
        };
        GrantCopy {
            source,
            dest,
            len: self.bytes,
            flags,
            status: grant::GNTST_GENERAL_ERROR,
            ..Default::default()
        }
    }
}

/// Performs all copies with one hypercall.
///
/// # Errors
/// The first that failed; others may have been done.
pub fn copy(copies: &[Copy<'_>]) -> core::result::Result<(), GrantError> {
    let mut ops: Vec<_> = copies.iter().map(Copy::op).collect();
    // The elements tell, see `map_grants`.
    let _ = ops.is_empty() || grant_table_op(grant::GNTTABOP_COPY, &mut ops).is_ok();
    match ops.iter().position(|op| op.status != GNTST_OKAY) {
        None => Ok(()),
        Some(index) => Err(GrantError { index, status: ops[index].status }),
    }
}
