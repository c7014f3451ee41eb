//! The block device of a service: a virtio disk, or none, in a domain that only refuses.

use crate::platform::GrantBuffer;
use crate::virtio::VirtioBlk;
use blkback::{BlockDevice, Completion, DeviceFacts, Job, Token};

/// What a service has under it.
pub enum Drive {
    /// A disk.
    Virtio(VirtioBlk),
    /// Nothing that may be touched. Any range fits on it, and nobody hands it a job: each
    /// request is refused before.
    Absent,
}

impl BlockDevice for Drive {
    type Buffer = GrantBuffer;

    fn facts(&self) -> DeviceFacts {
        match self {
            Self::Virtio(disk) => disk.facts(),
            Self::Absent => {
                DeviceFacts { sectors: u64::MAX, read_only: false, flush: true, discard: false }
            }
        }
    }

    fn submit(&mut self, token: Token, job: Job<GrantBuffer>) -> Result<(), Job<GrantBuffer>> {
        match self {
            Self::Virtio(disk) => disk.submit(token, job),
            Self::Absent => Err(job),
        }
    }

    fn kick(&mut self) {
        if let Self::Virtio(disk) = self {
            disk.kick();
        }
    }

    fn poll(&mut self) -> Option<Completion<GrantBuffer>> {
        match self {
            Self::Virtio(disk) => disk.poll(),
            Self::Absent => None,
        }
    }
}
