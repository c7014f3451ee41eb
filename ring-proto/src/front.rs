//! The front end of a ring: publishes requests, takes responses. Does not know
//! what they say, nor when to sleep.

use crate::layout::{
    Broken, Geometry, Protocol, REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD, SLOTS, TooSmall, passed,
};
use crate::memory::RingMemory;
use zerocopy::{FromZeros, IntoBytes};

/// The private side of a front end.
///
/// Holds at all times: `rsp_cons <= published <= req_prod <= rsp_cons + slots`
/// (free-running).
pub struct FrontRing<P, M> {
    memory: M,
    geometry: Geometry<P>,
    req_prod: u32,
    published: u32,
    rsp_cons: u32,
}

/// Every slot holds a request that is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl<P: Protocol, M: RingMemory> FrontRing<P, M> {
    /// Initialises the shared header and takes the front end's place. The memory is
    /// not shared yet.
    pub fn new(memory: M) -> Result<Self, TooSmall> {
        let geometry = Geometry::of(memory.bytes())?;
        for offset in (0..SLOTS).step_by(4) {
            memory.store(offset, 0);
        }
        memory.store(REQ_EVENT, 1);
        memory.store(RSP_EVENT, 1);
        Ok(Self { memory, geometry, req_prod: 0, published: 0, rsp_cons: 0 })
    }

    /// Slots of the ring.
    pub fn slots(&self) -> u32 {
        self.geometry.slots()
    }

    /// Requests that still fit.
    pub fn free(&self) -> u32 {
        self.slots() - self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Writes a request into the next slot; [`FrontRing::publish`] shows it.
    pub fn push(&mut self, request: &P::Request) -> Result<(), Full> {
        if self.free() == 0 {
            return Err(Full);
        }
        let offset = self.geometry.offset(self.req_prod);
        self.memory.copy_in(offset, request.as_bytes());
        self.req_prod = self.req_prod.wrapping_add(1);
        Ok(())
    }

    /// Publishes all requests written. True if the back end asked to be notified.
    #[must_use = "a notification not sent leaves the back end asleep"]
    pub fn publish(&mut self) -> bool {
        let old = core::mem::replace(&mut self.published, self.req_prod);
        self.memory.store(REQ_PROD, self.req_prod);
        self.memory.full_fence();
        passed(self.memory.load(REQ_EVENT), old, self.req_prod)
    }

    /// Responses that wait to be taken.
    pub fn pending(&self) -> Result<u32, Broken> {
        let rsp_prod = self.memory.load(RSP_PROD);
        let pending = rsp_prod.wrapping_sub(self.rsp_cons);
        if pending > self.published.wrapping_sub(self.rsp_cons) {
            return Err(Broken::Responses {
                rsp_prod,
                rsp_cons: self.rsp_cons,
                req_prod: self.published,
            });
        }
        Ok(pending)
    }

    /// Copies the next response out, once.
    pub fn take(&mut self) -> Result<Option<P::Response>, Broken> {
        if self.pending()? == 0 {
            return Ok(None);
        }
        let mut response = P::Response::new_zeroed();
        let offset = self.geometry.offset(self.rsp_cons);
        self.memory.copy_out(offset, response.as_mut_bytes());
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Ok(Some(response))
    }

    /// Before sleeping: asks for an event at the next response, then looks once more.
    /// True if there is one already.
    pub fn final_check(&self) -> Result<bool, Broken> {
        if self.pending()? > 0 {
            return Ok(true);
        }
        self.memory.store(RSP_EVENT, self.rsp_cons.wrapping_add(1));
        self.memory.full_fence();
        Ok(self.pending()? > 0)
    }
}
