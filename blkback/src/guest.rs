//! What the back end asks of the domain it runs in, for one front end: pages by
//! grant, and a way to wake it.

use ring_proto::Gref;
use ring_proto::blkif::{Direction, Segment};

/// The front end's domain did not grant it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantRefused;

/// The pages that a front end grants us.
pub trait GuestMemory {
    /// Segments mapped for a device. Dropping one without [`GuestMemory::unmap`] must
    /// leave nothing mapped either.
    type Buffer;

    /// Makes the segments reachable, in order; all or none. A read needs pages that may
    /// be written.
    fn map(
        &mut self,
        segments: &[Segment],
        direction: Direction,
    ) -> Result<Self::Buffer, GrantRefused>;

    /// Gives them back. After a read the data is in the guest's pages when this returns.
    fn unmap(&mut self, buffer: Self::Buffer);

    /// Copies the start of a page, once.
    fn copy_from(&mut self, page: Gref, into: &mut [u8]) -> Result<(), GrantRefused>;
}

/// The way to wake a front end.
pub trait Notifier {
    /// Sends one event.
    fn notify(&mut self);
}
