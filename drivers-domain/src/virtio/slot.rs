//! One request on its way through the device: the header it reads, the status it
//! writes, and what goes back to the back end afterwards.
#![allow(unsafe_code)] // Describes buffers to a queue, which is an unsafe contract.

use crate::dma::{Machine, Slices, Window};
use crate::made_of;
use crate::platform::GrantBuffer;
use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::vec::Vec;
use blkback::{Completion, DeviceError, Direction, Job, Token};
use bulkhead_abi::Maddr;
use virtio_drivers::queue::VirtQueue;
use zerocopy::{Immutable, IntoBytes};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
/// Status of a request that went well; also what is not yet written looks unlike.
const OKAY: u8 = 0;
const UNWRITTEN: u8 = 0xff;

/// What the device reads: `virtio_blk_req`, and the one segment of a discard.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
    discard_sector: u64,
    discard_sectors: u32,
    discard_flags: u32,
}

/// Header and status of a request; within a page because of its alignment.
#[repr(C, align(64))]
struct Frame {
    header: Header,
    status: u8,
}

/// A request that the device has.
pub(super) struct Slot {
    token: Token,
    frame: Box<Frame>,
    direction: Direction,
    buffer: Option<GrantBuffer>,
}

impl Slot {
    /// Prepares a job.
    pub(super) fn new(token: Token, job: Job<GrantBuffer>) -> Self {
        let mut header = Header {
            kind: FLUSH,
            reserved: 0,
            sector: 0,
            discard_sector: 0,
            discard_sectors: 0,
            discard_flags: 0,
        };
        let (mut direction, mut pages) = (Direction::Write, None);
        match job {
            Job::Transfer { direction: way, sector, buffer } => {
                header.kind = if way == Direction::Read { IN } else { OUT };
                header.sector = sector;
                direction = way;
                pages = Some(buffer);
            }
            Job::Flush => {}
            Job::Discard { sector, sectors } => {
                header.kind = DISCARD;
                header.discard_sector = sector;
                // Longer ones are cut by the back end's caller, see `VirtioBlk::facts`.
                header.discard_sectors = u32::try_from(sectors).unwrap_or(u32::MAX);
            }
        }
        let status = UNWRITTEN;
        Self { token, frame: Box::new(Frame { header, status }), direction, buffer: pages }
    }

    /// The job again, for a device that had no room.
    pub(super) fn into_job(self) -> Job<GrantBuffer> {
        let header = self.frame.header;
        match (self.buffer, header.kind) {
            (Some(buffer), _) => {
                Job::Transfer { direction: self.direction, sector: header.sector, buffer }
            }
            (None, DISCARD) => Job::Discard {
                sector: header.discard_sector,
                sectors: header.discard_sectors.into(),
            },
            (None, _) => Job::Flush,
        }
    }

    /// Descriptors that it takes.
    pub(super) fn descriptors(&self) -> usize {
        let data = self.buffer.as_ref().map_or(0, |buffer| buffer.parts().len());
        2 + data + usize::from(self.frame.header.kind == DISCARD)
    }

    /// Puts it on the queue; the caller made sure that there is room. Gives its name there.
    pub(super) fn add<const N: usize>(
        &mut self,
        queue: &mut VirtQueue<Machine, N>,
        window: &mut Window,
    ) -> Option<u16> {
        self.with_slices(window, made_of::aim, |inputs, outputs| {
            // SAFETY: 1. the frame is boxed and stays in this slot, untouched, until `pop`
            // succeeds; 2. the other slices are of the window's stand-in, which is never
            // accessed, and the pages they mean stay mapped with `self.buffer`.
            unsafe { queue.add(inputs, outputs) }.ok()
        })
    }

    /// Takes it off the queue, on which it is `name` and done.
    pub(super) fn pop<const N: usize>(
        &mut self,
        queue: &mut VirtQueue<Machine, N>,
        window: &mut Window,
        name: u16,
    ) -> bool {
        self.with_slices(
            window,
            |parts| Cow::Borrowed(parts),
            |inputs, outputs| {
                // SAFETY: these are as many slices of the same lengths as were added under
                // this name, and `unshare` looks at none of them.
                unsafe { queue.pop_used(name, inputs, outputs) }.is_ok()
            },
        )
    }

    /// Describes the request: what the device reads, then what it writes. `aim` has the last
    /// word on where its pages are.
    fn with_slices<R>(
        &mut self,
        window: &mut Window,
        aim: impl for<'a> FnOnce(&'a [(Maddr, usize)]) -> Cow<'a, [(Maddr, usize)]>,
        f: impl for<'a> FnOnce(&'a [&'a [u8]], &'a mut [&'a mut [u8]]) -> R,
    ) -> R {
        let none: &[(Maddr, usize)] = &[];
        let parts = self.buffer.as_ref().map_or(none, GrantBuffer::parts);
        let Frame { header, status } = &mut *self.frame;
        let direction = self.direction;
        window.with(&aim(parts), |data: Slices<'_>| {
            let (request, range) = header.as_bytes().split_at(16);
            let mut inputs: Vec<&[u8]> = alloc::vec![request];
            let mut outputs: Vec<&mut [u8]> = Vec::new();
            if header.kind == DISCARD {
                inputs.push(range);
            }
            match direction {
                Direction::Read => outputs.extend(data),
                Direction::Write => inputs.extend(data.into_iter().map(|slice| &*slice)),
            }
            outputs.push(core::slice::from_mut(status));
            f(&inputs, &mut outputs)
        })
    }

    /// What the back end gets.
    pub(super) fn complete(self) -> Completion<GrantBuffer> {
        let status: *const u8 = &raw const self.frame.status;
        // SAFETY: the byte is ours; volatile because it was the device that wrote it. The
        // queue has said that the request is done.
        let status = unsafe { status.read_volatile() };
        Completion {
            token: self.token,
            buffer: self.buffer,
            result: match status {
                OKAY => Ok(()),
                _ => Err(DeviceError),
            },
        }
    }
}
