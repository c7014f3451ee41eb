//! Memory of other domains, as the library's traits want it.

use alloc::vec::Vec;
use bulkhead_abi::{DomId, Errno, Mfn, PAGE_SIZE};
use dom0::{builder::GuestMemory, shared::SharedPage};
use domain_rt::mem::{Mapping, map_foreign};

/// Frames mapped at once while a domain is written.
const WINDOW_FRAMES: u64 = 256;

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
    /// First pfn of the window.
    first: u64,
    window: Option<Mapping>,
}

impl<'a> ForeignMemory<'a> {
    /// `mfns` are the domain's frames by pfn.
    pub fn new(domid: DomId, mfns: &'a [u64]) -> Self {
        Self { domid, mfns, first: 0, window: None }
    }

    /// Moves the window over `pfn`; gives the bytes from the window's start.
    fn window(&mut self, pfn: u64) -> Result<&Mapping, Errno> {
        let first = pfn - pfn % WINDOW_FRAMES;
        if first != self.first {
            self.window = None;
        }
        if self.window.is_none() {
            let end = (first + WINDOW_FRAMES).min(self.mfns.len() as u64);
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
        let mut at = paddr;
        let mut left = bytes;
        while !left.is_empty() {
            let window = self.window(at / PAGE_SIZE as u64)?;
            let length = window.bytes();
            let first = self.first * PAGE_SIZE as u64;
            let offset = (at - first) as usize;
            let room = length.checked_sub(offset).filter(|room| *room > 0);
            let (now, later) = left.split_at(left.len().min(room.ok_or(Errno::EINVAL)?));
            if let Some(window) = &self.window {
                window.shared().copy_in(offset, now);
            }
            at += now.len() as u64;
            left = later;
        }
        Ok(())
    }
}
