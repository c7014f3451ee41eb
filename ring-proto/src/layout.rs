//! Where things are in a ring, and what can be wrong with a cursor. No access to
//! memory here beyond naming offsets.

use core::fmt;
use core::marker::PhantomData;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `[front]` cursor after the last request published.
pub const REQ_PROD: usize = 0;
/// `[back]` wants an event when `req_prod` passes this.
pub const REQ_EVENT: usize = 4;
/// `[back]` cursor after the last response published.
pub const RSP_PROD: usize = 8;
/// `[front]` wants an event when `rsp_prod` passes this.
pub const RSP_EVENT: usize = 12;
/// The first slot.
pub const SLOTS: usize = 64;

/// What travels on a ring. Both types have no padding and a multiple of 4 bytes.
pub trait Protocol {
    /// From front to back.
    type Request: FromBytes + IntoBytes + Immutable;
    /// From back to front.
    type Response: FromBytes + IntoBytes + Immutable;

    /// Bytes of a slot.
    const SLOT_BYTES: usize = {
        let (req, rsp) = (size_of::<Self::Request>(), size_of::<Self::Response>());
        assert!(req.is_multiple_of(4) && rsp.is_multiple_of(4));
        if req > rsp { req } else { rsp }
    };
}

/// Memory too small for even one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooSmall {
    /// Bytes offered.
    pub bytes: usize,
}

/// The peer moved a cursor where no honest one can be. Nothing on this ring can be
/// trusted any more: stop serving it and say why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// `req_prod` is more than a ring ahead of the last response, or behind a request
    /// that we took.
    Requests {
        /// What the peer stored.
        req_prod: u32,
        /// Our cursor after the last request taken.
        req_cons: u32,
        /// Our cursor after the last response published.
        rsp_prod: u32,
    },
    /// `rsp_prod` is ahead of the last request, or behind a response that we took.
    Responses {
        /// What the peer stored.
        rsp_prod: u32,
        /// Our cursor after the last response taken.
        rsp_cons: u32,
        /// Our cursor after the last request published.
        req_prod: u32,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests { req_prod, req_cons, rsp_prod } => write!(
                f,
                "absurd req_prod {req_prod:#x} (taken to {req_cons:#x}, answered to {rsp_prod:#x})"
            ),
            Self::Responses { rsp_prod, rsp_cons, req_prod } => write!(
                f,
                "absurd rsp_prod {rsp_prod:#x} (taken to {rsp_cons:#x}, asked to {req_prod:#x})"
            ),
        }
    }
}

/// Slots of a ring of protocol `P`: how many, and where.
pub struct Geometry<P> {
    slots: u32,
    protocol: PhantomData<fn() -> P>,
}

impl<P> Clone for Geometry<P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P> Copy for Geometry<P> {}

impl<P: Protocol> Geometry<P> {
    /// The ring that fits in `bytes`: as many slots as the largest power of two.
    pub const fn of(bytes: usize) -> Result<Self, TooSmall> {
        let fit = bytes.saturating_sub(SLOTS) / P::SLOT_BYTES;
        if fit == 0 || fit > 1 << 30 {
            return Err(TooSmall { bytes });
        }
        Ok(Self { slots: 1 << fit.ilog2(), protocol: PhantomData })
    }

    /// How many slots there are: a power of two.
    pub const fn slots(self) -> u32 {
        self.slots
    }

    /// Byte offset of the slot for a free-running index.
    pub const fn offset(self, index: u32) -> usize {
        SLOTS + (index & (self.slots - 1)) as usize * P::SLOT_BYTES
    }
}

/// Whether moving a producer from `old` to `new` passed `event`.
pub(crate) const fn passed(event: u32, old: u32, new: u32) -> bool {
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_due_exactly_when_the_push_passes_it_even_across_the_wrap() {
        // The oracle walks the pushed entries: index i is the one that makes the
        // producer i + 1.
        for start in [0_u32, 5, u32::MAX - 2] {
            for pushed in 0..6 {
                for event in 0..8 {
                    let (new, event) = (start.wrapping_add(pushed), start.wrapping_add(event));
                    let oracle = (0..pushed).any(|i| start.wrapping_add(i + 1) == event);
                    assert_eq!(passed(event, start, new), oracle);
                }
            }
        }
    }
}
