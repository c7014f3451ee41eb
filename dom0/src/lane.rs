//! One direction of the fast lane ([`bulkhead_link::lane`]), for either of its ends. What
//! the memory is, and how the bell is rung, is not known here.

use crate::shared::{AbsurdIndices, Lane, SharedPage};
use bulkhead_link::lane::Way;
use core::sync::atomic::{Ordering::SeqCst, fence};

/// What a writer did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Sent {
    /// So many bytes found room.
    pub bytes: usize,
    /// The reader sleeps: ring the bell.
    pub wake: bool,
}

fn lane(way: &Way) -> Lane {
    Lane { buffer: way.buffer, size: way.size, cons: way.cons, prod: way.prod }
}

/// Writes as many of `bytes` as there is room for.
pub fn send(way: &Way, memory: &impl SharedPage, bytes: &[u8]) -> Result<Sent, AbsurdIndices> {
    let count = lane(way).put(memory, bytes)?;
    // The index is seen before the flag is read: the reader does it the other way round,
    // so at least one of them notices.
    fence(SeqCst);
    let wake = count > 0 && memory.read_u32(way.sleeps) != 0;
    if wake {
        memory.write_u32(way.sleeps, 0);
    }
    Ok(Sent { bytes: count, wake })
}

/// Reads up to `into.len()` bytes.
pub fn receive(
    way: &Way,
    memory: &impl SharedPage,
    into: &mut [u8],
) -> Result<usize, AbsurdIndices> {
    lane(way).take(memory, into)
}

/// The reader found nothing and wants to wait for the bell; `false` if it has to look
/// again instead.
pub fn may_sleep(way: &Way, memory: &impl SharedPage) -> bool {
    memory.write_u32(way.sleeps, 1);
    fence(SeqCst);
    let is_empty = memory.read_u32(way.prod) == memory.read_u32(way.cons);
    if !is_empty {
        memory.write_u32(way.sleeps, 0);
    }
    is_empty
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_link::lane::{BYTES, TO_DOM0, TO_TOOL};
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU8, AtomicU32, Ordering},
            mpsc,
        },
        thread,
        time::Duration,
        vec::Vec,
    };

    /// Memory that two threads share: words below the buffers, bytes in them.
    struct Memory {
        words: Vec<AtomicU32>,
        bytes: Vec<AtomicU8>,
    }

    impl Memory {
        fn new() -> Arc<Self> {
            let words = (0..1024).map(|_| AtomicU32::new(0)).collect();
            Arc::new(Self { words, bytes: (0..BYTES).map(|_| AtomicU8::new(0)).collect() })
        }
    }

    impl SharedPage for Memory {
        fn read_u32(&self, offset: usize) -> u32 {
            self.words[offset / 4].load(Ordering::Acquire)
        }
        fn write_u32(&self, offset: usize, value: u32) {
            self.words[offset / 4].store(value, Ordering::Release);
        }
        fn read_bytes(&self, offset: usize, into: &mut [u8]) {
            let from = &self.bytes[offset..offset + into.len()];
            into.iter_mut().zip(from).for_each(|(to, from)| *to = from.load(Ordering::Relaxed));
        }
        fn write_bytes(&self, offset: usize, from: &[u8]) {
            let to = &self.bytes[offset..offset + from.len()];
            to.iter().zip(from).for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
        }
    }

    /// Sends numbered bytes through `way`, in pieces of `piece`, to a thread that sleeps
    /// whenever it may.
    fn pass(way: &'static Way, total: usize, piece: usize) {
        let memory = Memory::new();
        let (bell, rung) = mpsc::channel();
        let theirs = memory.clone();
        let reader = thread::spawn(move || {
            let (mut got, mut into) = (0, std::vec![0; piece / 2 + 1]);
            while got < total {
                let count = receive(way, &*theirs, &mut into).unwrap();
                for byte in &into[..count] {
                    assert_eq!(*byte, (got % 251) as u8);
                    got += 1;
                }
                if count == 0 && may_sleep(way, &*theirs) {
                    let limit = Duration::from_secs(60);
                    rung.recv_timeout(limit).expect("a reader that sleeps is woken");
                }
            }
        });
        let mut sent = 0;
        while sent < total {
            let bytes: Vec<u8> =
                (sent..(sent + piece).min(total)).map(|n| (n % 251) as u8).collect();
            let done = send(way, &*memory, &bytes).unwrap();
            sent += done.bytes;
            if done.wake {
                bell.send(()).unwrap();
            }
        }
        reader.join().unwrap();
    }

    #[test]
    fn all_arrives_in_order_and_no_reader_oversleeps() {
        for piece in [1, 7, 1000, 300_000] {
            let total = if cfg!(miri) { 200 } else { 2000.max(piece * 8) };
            pass(&TO_TOOL, total, piece);
            pass(&TO_DOM0, total, piece);
        }
    }

    #[test]
    fn the_bell_is_rung_once_for_a_reader_that_sleeps_and_not_for_one_that_reads() {
        let memory = Memory::new();
        let way = &TO_TOOL;
        assert!(may_sleep(way, &*memory));
        assert_eq!(send(way, &*memory, b"ab"), Ok(Sent { bytes: 2, wake: true }));
        assert_eq!(send(way, &*memory, b"cd"), Ok(Sent { bytes: 2, wake: false }));
        assert!(!may_sleep(way, &*memory), "there is something to read");
        assert_eq!(receive(way, &*memory, &mut [0; 9]), Ok(4));
        assert!(may_sleep(way, &*memory));
        assert_eq!(send(way, &*memory, b""), Ok(Sent { bytes: 0, wake: false }));
    }

    #[test]
    fn absurd_indices_are_told() {
        let memory = Memory::new();
        memory.write_u32(TO_DOM0.prod, 1 << 30);
        assert!(send(&TO_DOM0, &*memory, b"x").is_err());
        assert!(receive(&TO_DOM0, &*memory, &mut [0; 9]).is_err());
    }
}
