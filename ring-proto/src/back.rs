//! The back end of a ring: takes requests, publishes responses. Does not know
//! what they say, nor when to sleep.

use crate::layout::{
    Broken, Geometry, Protocol, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, TooSmall,
};
use crate::memory::RingMemory;
use zerocopy::{FromZeros, IntoBytes};

/// The private side of a back end.
///
/// Holds at all times: `rsp_prod <= req_cons <= rsp_prod + slots` (free-running), and
/// the shared `rsp_prod` is ours (the front end can only fool itself by changing it).
pub struct BackRing<P, M> {
    memory: M,
    geometry: Geometry<P>,
    req_cons: u32,
    rsp_prod: u32,
    /// `rsp_prod` when a notification was last considered.
    rsp_told: u32,
}

/// A response with no request waiting for one: our own mistake, and harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NothingOwed;

impl<P: Protocol, M: RingMemory> BackRing<P, M> {
    /// Attaches to a ring that its front end has just initialised.
    pub fn new(memory: M) -> Result<Self, TooSmall> {
        let geometry = Geometry::of(memory.bytes())?;
        Ok(Self { memory, geometry, req_cons: 0, rsp_prod: 0, rsp_told: 0 })
    }

    /// Attaches to a ring that a back end before us has served: everything in
    /// `[rsp_prod, req_prod)` is taken again. Judged like any word of the front end.
    ///
    /// The caller notifies once when it is done, since the last notification of the
    /// one before may be lost.
    pub fn resume(memory: M) -> Result<Self, TooSmall> {
        let rsp_prod = Self::published(&memory)?;
        Self::resume_at(memory, rsp_prod)
    }

    /// The index of the next response, as it stands in a ring that was served before.
    pub fn published(memory: &M) -> Result<u32, TooSmall> {
        Geometry::<P>::of(memory.bytes())?;
        Ok(memory.load(RSP_PROD))
    }

    /// As [`BackRing::resume`], where the caller knows the index of the next response; it is
    /// published if the ring says otherwise.
    pub fn resume_at(memory: M, rsp_prod: u32) -> Result<Self, TooSmall> {
        let mut ring = Self::new(memory)?;
        if ring.memory.load(RSP_PROD) != rsp_prod {
            ring.memory.store(RSP_PROD, rsp_prod);
        }
        ring.req_cons = rsp_prod;
        ring.rsp_prod = rsp_prod;
        ring.rsp_told = rsp_prod;
        Ok(ring)
    }

    /// Slots of the ring.
    pub fn slots(&self) -> u32 {
        self.geometry.slots()
    }

    /// The index that the next response gets.
    pub fn rsp_prod(&self) -> u32 {
        self.rsp_prod
    }

    /// Requests taken and not yet answered.
    pub fn owed(&self) -> u32 {
        self.req_cons.wrapping_sub(self.rsp_prod)
    }

    /// Requests that wait to be taken.
    pub fn pending(&self) -> Result<u32, Broken> {
        let req_prod = self.memory.load(REQ_PROD);
        let outstanding = req_prod.wrapping_sub(self.rsp_prod);
        if outstanding > self.slots() || outstanding < self.owed() {
            return Err(Broken::Requests {
                req_prod,
                req_cons: self.req_cons,
                rsp_prod: self.rsp_prod,
            });
        }
        Ok(outstanding - self.owed())
    }

    /// Copies the next request out, once.
    pub fn take(&mut self) -> Result<Option<P::Request>, Broken> {
        if self.pending()? == 0 {
            return Ok(None);
        }
        let mut request = P::Request::new_zeroed();
        let offset = self.geometry.offset(self.req_cons);
        self.memory.copy_out(offset, request_bytes::<P>(&mut request));
        self.req_cons = self.req_cons.wrapping_add(1);
        Ok(Some(request))
    }

    /// Before sleeping: asks for an event at the next request, then looks once more.
    /// True if there is one already.
    pub fn final_check(&self) -> Result<bool, Broken> {
        if self.pending()? > 0 {
            return Ok(true);
        }
        self.memory.store(REQ_EVENT, self.req_cons.wrapping_add(1));
        self.memory.full_fence();
        Ok(self.pending()? > 0)
    }

    /// Writes a response over the next slot without publishing it.
    ///
    /// Between this and [`BackRing::publish`] the slot is neither request nor
    /// response: whoever must survive a crash there keeps the response elsewhere first.
    pub fn write(&self, response: &P::Response) -> Result<(), NothingOwed> {
        if self.owed() == 0 {
            return Err(NothingOwed);
        }
        let offset = self.geometry.offset(self.rsp_prod);
        self.memory.copy_in(offset, response.as_bytes());
        Ok(())
    }

    /// Publishes the slot last written: one store.
    pub fn publish(&mut self) -> Result<(), NothingOwed> {
        if self.owed() == 0 {
            return Err(NothingOwed);
        }
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
        self.memory.store(RSP_PROD, self.rsp_prod);
        Ok(())
    }

    /// Whether what was published since the last call asks for a notification.
    #[must_use = "a notification not sent leaves the front end asleep"]
    pub fn must_notify(&mut self) -> bool {
        self.memory.full_fence();
        let event = self.memory.load(RSP_EVENT);
        let told = core::mem::replace(&mut self.rsp_told, self.rsp_prod);
        crate::layout::passed(event, told, self.rsp_prod)
    }
}

/// The bytes of a request, to be filled.
fn request_bytes<P: Protocol>(request: &mut P::Request) -> &mut [u8] {
    request.as_mut_bytes()
}
