//! Writes the pattern over a disk and reads it back, with as many requests in flight
//! as the disk takes. Runs on any front end, so that the host can test it too.

use crate::blkfront::{Disk, DiskError, SECTOR_BYTES};
use crate::pattern;
use crate::platform::Platform;
use alloc::vec;
use core::fmt;

/// Why the check failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckError {
    /// A write from this sector on failed.
    Write(u64, DiskError),
    /// A read from this sector on failed.
    Read(u64, DiskError),
    /// The flush failed.
    Flush(DiskError),
    /// This sector does not hold what was written.
    Mismatch(u64),
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(sector, error) => write!(f, "write at sector {sector}: {error}"),
            Self::Read(sector, error) => write!(f, "read at sector {sector}: {error}"),
            Self::Flush(error) => write!(f, "flush: {error}"),
            Self::Mismatch(sector) => write!(f, "sector {sector} does not hold the pattern"),
        }
    }
}

/// The requests of one pass over a disk, by the places of their tickets.
struct Pass {
    sectors: u64,
    next: u64,
    at: [u64; 1024],
}

impl Pass {
    fn over(sectors: u64) -> Self {
        Self { sectors, next: 0, at: [0; 1024] }
    }

    /// The next piece: its first sector and its bytes.
    fn piece(&self, max_bytes: usize) -> Option<(u64, usize)> {
        let left = self.sectors.checked_sub(self.next).filter(|&left| left > 0)?;
        let most = (max_bytes / SECTOR_BYTES) as u64;
        Some((self.next, left.min(most) as usize * SECTOR_BYTES))
    }

    fn started(&mut self, place: usize, sector: u64, bytes: usize) {
        if let Some(at) = self.at.get_mut(place) {
            *at = sector;
        }
        self.next = sector + (bytes / SECTOR_BYTES) as u64;
    }

    fn sector(&self, place: usize) -> u64 {
        self.at.get(place).copied().unwrap_or_default()
    }
}

/// Writes the pattern over the first `sectors` sectors and flushes.
pub async fn write<P: Platform>(
    disk: &mut Disk<P>,
    seed: u64,
    sectors: u64,
) -> Result<(), CheckError> {
    let mut pass = Pass::over(sectors);
    let mut buffer = vec![0; disk.facts().max_bytes];
    loop {
        while let Some((sector, bytes)) = pass.piece(buffer.len()) {
            if disk.in_flight() == disk.facts().max_in_flight {
                break;
            }
            let data = buffer.get_mut(..bytes).unwrap_or_default();
            pattern::fill(seed, sector, data);
            let started = disk.start_write(sector, data);
            let ticket = started.map_err(|error| CheckError::Write(sector, error))?;
            pass.started(ticket.place(), sector, bytes);
        }
        if disk.in_flight() == 0 {
            break;
        }
        let done = disk.next().await;
        let done = done.map_err(|error| CheckError::Write(pass.next, error))?;
        let (sector, result) = (pass.sector(done.ticket.place()), done.result);
        let result = result.and(disk.finish(done, &mut []));
        result.map_err(|error| CheckError::Write(sector, error))?;
    }
    disk.flush().await.map_err(CheckError::Flush)
}

/// Reads the first `sectors` sectors and compares them with the pattern.
pub async fn verify<P: Platform>(
    disk: &mut Disk<P>,
    seed: u64,
    sectors: u64,
) -> Result<(), CheckError> {
    let mut pass = Pass::over(sectors);
    let mut buffer = vec![0; disk.facts().max_bytes];
    loop {
        while let Some((sector, bytes)) = pass.piece(buffer.len()) {
            if disk.in_flight() == disk.facts().max_in_flight {
                break;
            }
            let started = disk.start_read(sector, bytes);
            let ticket = started.map_err(|error| CheckError::Read(sector, error))?;
            pass.started(ticket.place(), sector, bytes);
        }
        if disk.in_flight() == 0 {
            return Ok(());
        }
        let done = disk.next().await;
        let done = done.map_err(|error| CheckError::Read(pass.next, error))?;
        let (sector, result) = (pass.sector(done.ticket.place()), done.result);
        let data = buffer.get_mut(..done.bytes()).unwrap_or_default();
        let result = result.and(disk.finish(done, data));
        result.map_err(|error| CheckError::Read(sector, error))?;
        if let Some(wrong) = pattern::first_wrong(seed, sector, data) {
            return Err(CheckError::Mismatch(wrong));
        }
    }
}
