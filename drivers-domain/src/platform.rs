//! `blkback`'s traits on the runtime of domains: grants are mapped, and the device works
//! on the mapped pages themselves.

use alloc::rc::Rc;
use alloc::vec::Vec;
use blkback::{Direction, GrantRefused, GuestMemory, Notifier, Platform, Segment};
use bulkhead_abi::{DomId, Gref as CoreGref, Maddr, PAGE_SIZE};
use domain_rt::event::Channel;
use domain_rt::grant::{self, GrantMapping};
use domain_rt::mem;
use ring_proto::{Gref, RingMemory};

use crate::ledger::RingLedger;
use crate::made_of;

/// The service of a virtio disk in this domain.
pub struct OnDomain;

impl Platform for OnDomain {
    type Ring = made_of::Ring;
    type Memory = FrontMemory;
    type Ledger = RingLedger;
    type Notifier = made_of::Notifier;
    type Device = made_of::Device;
}

/// Pages of a front end's ring, mapped in a row.
pub struct MappedRing(GrantMapping);

impl MappedRing {
    /// Maps them.
    pub fn map(front: DomId, pages: &[CoreGref]) -> Result<Self, grant::GrantError> {
        grant::map_grants(front, pages, false).map(Self)
    }
}

impl RingMemory for MappedRing {
    fn bytes(&self) -> usize {
        self.0.count() * PAGE_SIZE
    }
    fn load(&self, offset: usize) -> u32 {
        self.0.shared().load_u32(offset)
    }
    fn store(&self, offset: usize, value: u32) {
        self.0.shared().store_u32(offset, value);
    }
    fn store_wide(&self, offset: usize, value: u64) {
        self.0.shared().store_u64(offset, value);
    }
}

/// Segments of a request, mapped.
pub struct GrantBuffer {
    /// Held so that the pages stay ours as long as the device has them.
    _mapping: GrantMapping,
    parts: Vec<(Maddr, usize)>,
}

impl GrantBuffer {
    /// Machine address and bytes of each segment, none of which crosses a page.
    pub fn parts(&self) -> &[(Maddr, usize)] {
        &self.parts
    }
}

/// The pages of one front end.
pub struct FrontMemory {
    front: DomId,
    /// Where what is copied lands.
    scratch: mem::Pages,
}

impl FrontMemory {
    /// The pages of `front`; `None` when memory is short.
    pub fn new(front: DomId) -> Option<Self> {
        let scratch = mem::alloc_pages(1)?;
        Some(Self { front, scratch })
    }
}

impl GuestMemory for FrontMemory {
    type Buffer = GrantBuffer;

    fn map(
        &mut self,
        segments: &[Segment],
        direction: Direction,
    ) -> Result<GrantBuffer, GrantRefused> {
        let grefs: Vec<_> = segments.iter().map(|s| CoreGref::new(s.gref().get())).collect();
        let read_only = direction == Direction::Write;
        let mapping = grant::map_grants(self.front, &grefs, read_only).map_err(|_| GrantRefused)?;
        let parts = segments.iter().enumerate().map(|(i, segment)| {
            let at = mapping.maddr(i).get() + segment.offset_bytes() as u64;
            (Maddr::new(at), segment.bytes())
        });
        Ok(GrantBuffer { parts: parts.collect(), _mapping: mapping })
    }

    fn unmap(&mut self, buffer: GrantBuffer) {
        drop(buffer);
    }

    fn copy_from(&mut self, page: Gref, into: &mut [u8]) -> Result<(), GrantRefused> {
        let bytes = u16::try_from(into.len()).map_err(|_| GrantRefused)?;
        let copy = grant::Copy {
            domain: self.front,
            gref: CoreGref::new(page.get()),
            remote_offset: 0,
            pages: &self.scratch,
            local_offset: 0,
            bytes,
            direction: grant::Direction::In,
        };
        grant::copy(&[copy]).map_err(|_| GrantRefused)?;
        self.scratch.shared().copy_out(0, into);
        Ok(())
    }
}

/// The event channel to a front end.
pub struct Bell(pub Rc<Channel>);

impl Notifier for Bell {
    fn notify(&mut self) {
        // Fails only when the front end is gone; then nobody has to be woken.
        let _ = self.0.notify();
    }
}
