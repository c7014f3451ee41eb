//! What the back end asks of a block device: to take jobs as long as it has room,
//! and to give them back when they are done, in any order.

use ring_proto::blkif::Direction;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// 512-byte sectors.
    pub sectors: u64,
    /// Writes fail.
    pub read_only: bool,
    /// It has a cache that [`Job::Flush`] writes out. Without one a flush is done at once.
    pub flush: bool,
    /// It takes [`Job::Discard`].
    pub discard: bool,
}

/// Which request a job belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Slot of the front end.
    pub(crate) vbd: u32,
    /// Which of the front ends that the slot has had.
    pub(crate) generation: u32,
    /// Ring index of the request.
    pub(crate) index: u32,
}

/// Something for a device to do. Sectors are the device's own.
#[derive(Debug)]
pub enum Job<B> {
    /// Moves data between `sector` onward and the buffer, all of it.
    Transfer {
        /// Which way.
        direction: Direction,
        /// First sector.
        sector: u64,
        /// Mapped pages of a guest, which may change under us.
        buffer: B,
    },
    /// Makes all writes completed so far durable.
    Flush,
    /// Forgets a range.
    Discard {
        /// First sector.
        sector: u64,
        /// How many; not 0.
        sectors: u64,
    },
}

/// The device failed to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceError;

/// A job that is over.
#[derive(Debug)]
pub struct Completion<B> {
    /// As it was submitted.
    pub token: Token,
    /// The buffer of a transfer. The device does not touch it any more.
    pub buffer: Option<B>,
    /// How it went.
    pub result: Result<(), DeviceError>,
}

/// A block device.
pub trait BlockDevice {
    /// Mapped pages of a guest, in a form that the device can use.
    type Buffer;

    /// What it is; does not change.
    fn facts(&self) -> DeviceFacts;

    /// Takes a job, or gives it back when there is no room before one is completed.
    fn submit(&mut self, token: Token, job: Job<Self::Buffer>) -> Result<(), Job<Self::Buffer>>;

    /// Lets the device know of the jobs submitted since the last call.
    fn kick(&mut self);

    /// Gives back a job that is done, in any order, each exactly once.
    fn poll(&mut self) -> Option<Completion<Self::Buffer>>;
}
