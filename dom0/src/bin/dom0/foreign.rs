//! Memory of other domains, as the library's traits want it.

use alloc::vec::Vec;
use bulkhead_abi::{DomId, Errno, Mfn, PAGE_SIZE};
use core::ops::Range;
use dom0::{builder::GuestMemory, shared::SharedPage};
use domain_rt::{
    Shared,
    mem::{Mapping, map_foreign},
};

/// Frames mapped at once while a domain is written: all of a fresh one's are; of used memory
/// only some parts are looked at.
const WINDOW_FRAMES: u64 = 256;
const SMALL_WINDOW_FRAMES: u64 = 32;

/// A page of another domain that both sides use for as long as it runs.
pub struct ForeignPage(Mapping);

impl ForeignPage {
    /// Maps `mfn` of `domid`.
    pub fn map(domid: DomId, mfn: Mfn) -> Result<Self, Errno> {
        Ok(Self(map_foreign(domid, &[mfn], true)?))
    }
}

impl SharedPage for ForeignPage {
    fn read_u32(&self, offset: usize) -> u32 {
        self.0.shared().load_u32(offset)
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.0.shared().store_u32(offset, value);
    }
    fn read_bytes(&self, offset: usize, into: &mut [u8]) {
        self.0.shared().copy_out(offset, into);
    }
    fn write_bytes(&self, offset: usize, from: &[u8]) {
        self.0.shared().copy_in(offset, from);
    }
}

/// All memory of a domain under construction, through a window that moves.
pub struct ForeignMemory<'a> {
    domid: DomId,
    mfns: &'a [u64],
    /// Nobody has used it, so it is zero.
    is_fresh: bool,
    /// First pfn of the window.
    first: u64,
    window: Option<Mapping>,
}

impl<'a> ForeignMemory<'a> {
    /// `mfns` are the domain's frames by pfn.
    pub fn new(domid: DomId, mfns: &'a [u64], is_fresh: bool) -> Self {
        Self { domid, mfns, is_fresh, first: 0, window: None }
    }

    /// Has `put` do its work on the part of `paddr..paddr + bytes` that each window shows: the
    /// memory, and the place of the part's first byte.
    fn each_part(
        &mut self,
        paddr: u64,
        bytes: usize,
        mut put: impl FnMut(Shared<'_>, Range<usize>),
    ) -> Result<(), Errno> {
        let mut done = 0;
        while done < bytes {
            let at = paddr + done as u64;
            let length = self.window(at / PAGE_SIZE as u64)?.bytes();
            let offset = (at - self.first * PAGE_SIZE as u64) as usize;
            let room = length.checked_sub(offset).filter(|room| *room > 0).ok_or(Errno::EINVAL)?;
            let part = done..bytes.min(done + room);
            let window = self.window.as_ref().ok_or(Errno::EINVAL)?;
            done = part.end;
            put(window.shared().slice(offset, part.len()), part);
        }
        Ok(())
    }

    /// Moves the window over `pfn`; gives the bytes from the window's start.
    fn window(&mut self, pfn: u64) -> Result<&Mapping, Errno> {
        let frames = if self.is_fresh { WINDOW_FRAMES } else { SMALL_WINDOW_FRAMES };
        let first = pfn - pfn % frames;
        if first != self.first {
            self.window = None;
        }
        if self.window.is_none() {
            let end = (first + frames).min(self.mfns.len() as u64);
            let frames = self.mfns.get(first as usize..end as usize);
            let frames = frames.ok_or(Errno::EINVAL)?.iter();
            let frames: Vec<Mfn> = frames.map(|&mfn| Mfn::new(mfn)).collect();
            self.window = Some(map_foreign(self.domid, &frames, true)?);
            self.first = first;
        }
        self.window.as_ref().ok_or(Errno::EINVAL)
    }
}

impl GuestMemory for ForeignMemory<'_> {
    type Error = Errno;

    fn write(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), Errno> {
        let is_fresh = self.is_fresh;
        self.each_part(paddr, bytes.len(), |memory, part| match is_fresh {
            true => memory.copy_in(0, &bytes[part]),
            // Code that is as it was is not touched: whoever keeps translations of it (an
            // emulator, a processor's caches) need not make them again.
            false => memory.update(0, &bytes[part]),
        })
    }

    fn clear(&mut self, paddr: u64, bytes: u64) -> Result<(), Errno> {
        match self.is_fresh {
            true => Ok(()),
            false => self.each_part(paddr, bytes as usize, |memory, part| {
                memory.fill(0, part.len(), 0);
            }),
        }
    }
}
