//! The domain builder: from a kernel image to the bytes of a domain about to start
//! (abi-notes 1). It plans and writes through a trait; which hypercalls create the
//! domain and how its memory is reached is the binary's.

mod error;
mod kernel;
mod layout;
mod start;
mod tables;

#[cfg(test)]
mod tests;

pub use error::BuildError;
pub use kernel::{Kernel, Segment};
pub use layout::{Layout, Ramdisk};

use bulkhead_abi::{Mfn, PAGE_SIZE, Pfn, Port, vcpu::VcpuGuestContext};
use zerocopy::IntoBytes;

/// Memory of the domain under construction, by guest-physical address. It may be memory
/// that a life before this one has used.
pub trait GuestMemory {
    type Error;
    /// Makes the bytes at `paddr` these. The range is within the domain's frames.
    fn write(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), Self::Error>;
    /// Makes so many bytes at `paddr` zero; nothing is to be done to fresh memory.
    fn clear(&mut self, paddr: u64, bytes: u64) -> Result<(), Self::Error>;
}

/// Machine frames of a domain, by pfn.
#[derive(Clone, Copy)]
pub struct MfnList<'a>(&'a [u64]);

impl<'a> MfnList<'a> {
    /// Takes a list; it must be as long as the domain that it is used for.
    pub fn new(mfns: &'a [u64]) -> Self {
        Self(mfns)
    }

    /// The machine frame of `pfn`.
    ///
    /// Panics for a pfn outside of the domain, which a [`Layout`] never has.
    pub fn of(self, pfn: Pfn) -> Mfn {
        Mfn::new(self.0[pfn.get() as usize])
    }
}

/// What the start-of-day page says besides the layout.
#[derive(Clone, Copy, Debug)]
pub struct StartFacts<'a> {
    pub shared_info: Mfn,
    /// The domain's own ends.
    pub store_port: Port,
    pub console_port: Port,
    /// Cut after 1023 bytes.
    pub cmdline: &'a str,
}

/// A domain as planned.
pub struct Plan<'a> {
    kernel: Kernel<'a>,
    ramdisk: &'a [u8],
    pub layout: Layout,
}

impl<'a> Plan<'a> {
    /// Plans a domain of `nr_pages` frames. An empty `ramdisk` is none.
    pub fn new(image: &'a [u8], ramdisk: &'a [u8], nr_pages: u64) -> Result<Self, BuildError> {
        Self::of(Kernel::parse(image)?, ramdisk, nr_pages)
    }

    /// [`Self::new`] for a kernel that is taken apart already.
    pub fn of(kernel: Kernel<'a>, ramdisk: &'a [u8], nr_pages: u64) -> Result<Self, BuildError> {
        let layout = Layout::plan(&kernel, ramdisk.len() as u64, nr_pages)?;
        Ok(Self { kernel, ramdisk, layout })
    }

    /// Writes everything that the domain may rely on into its memory.
    ///
    /// `mfns` has an entry for each of the domain's frames.
    pub fn write<M: GuestMemory>(
        &self,
        memory: &mut M,
        mfns: &[u64],
        facts: &StartFacts<'_>,
    ) -> Result<(), M::Error> {
        let list = MfnList::new(mfns);
        for segment in &self.kernel.segments {
            memory.write(segment.paddr, segment.bytes)?;
            if !segment.is_scratch {
                let written = segment.bytes.len() as u64;
                memory.clear(segment.paddr + written, segment.mem_bytes - written)?;
            }
        }
        for ring in [self.layout.store, self.layout.console] {
            memory.clear(ring.get() * PAGE_SIZE as u64, PAGE_SIZE as u64)?;
        }
        if let Some(page) = self.kernel.hypercall_page
            && let Some(paddr) = self.layout.paddr(page)
        {
            memory.write(paddr, &start::hypercall_page())?;
        }
        if let Some(ramdisk) = &self.layout.ramdisk {
            memory.write(ramdisk.frames.start * PAGE_SIZE as u64, self.ramdisk)?;
        }
        memory.write(self.layout.p2m.start * PAGE_SIZE as u64, mfns.as_bytes())?;
        let info = start::start_info(&self.layout, list, facts);
        let at = self.layout.start_info.get() * PAGE_SIZE as u64;
        memory.write(at, info.as_bytes())?;
        tables::write(memory, &self.layout, list)
    }

    /// The first vCPU's registers.
    pub fn context(&self, mfns: &[u64]) -> VcpuGuestContext {
        start::context(&self.layout, MfnList::new(mfns), self.kernel.entry)
    }
}
