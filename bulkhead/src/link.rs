//! The run's end of the link to Dom0: a socket that is the machine's second UART, and the
//! fast lane beside it if Dom0 uses it. The messages are [`bulkhead_link`]'s; what they do
//! is not known here.

use bulkhead_link::{
    self as link, Decoder, FromDom0,
    lane::{BELL, BYTES, IN_USE, MAGIC, MAGIC_OFFSET, TO_DOM0, TO_TOOL, VERSION_OFFSET},
};
use dom0::{
    lane,
    shared::{AbsurdIndices, SharedPage},
};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// How long Dom0 may leave the way to it full before it is given up.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// How often a full way is looked at.
const RETRY: Duration = Duration::from_millis(1);
/// Bytes read at once.
const BURST: usize = 64 << 10;

/// The memory of a fast lane: a file that QEMU maps too.
#[derive(Debug)]
pub struct Memory(MmapRegion);

impl Memory {
    /// Makes the file, ready for a machine.
    ///
    /// # Errors
    /// If it cannot be made or mapped.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(BYTES as u64)?;
        let region = MmapRegion::from_file(FileOffset::new(file, 0), BYTES);
        let memory = Self(region.map_err(io::Error::other)?);
        // Our reader waits for the bell from the start.
        memory.write_u32(TO_TOOL.sleeps, 1);
        memory.write_u32(VERSION_OFFSET, link::VERSION);
        memory.write_u32(MAGIC_OFFSET, MAGIC);
        Ok(memory)
    }

    fn is_in_use(&self) -> bool {
        self.read_u32(IN_USE) == 1
    }
}

/// Offsets are those of the layout, which is within the memory: no access can fail.
impl SharedPage for Memory {
    fn read_u32(&self, offset: usize) -> u32 {
        self.0.as_volatile_slice().load(offset, Ordering::Acquire).unwrap_or(0)
    }
    fn write_u32(&self, offset: usize, value: u32) {
        let _ = self.0.as_volatile_slice().store(value, offset, Ordering::Release);
    }
    fn read_bytes(&self, offset: usize, into: &mut [u8]) {
        let _ = self.0.as_volatile_slice().read_slice(into, offset);
    }
    fn write_bytes(&self, offset: usize, from: &[u8]) {
        let _ = self.0.as_volatile_slice().write_slice(from, offset);
    }
}

/// The sending half of the link.
#[derive(Debug)]
pub struct Link {
    uart: UnixStream,
    lane: Option<Arc<Memory>>,
    /// Dom0 has said something: only then is it clear which way it listens.
    heard: Arc<AtomicBool>,
    /// What is said before that.
    held: Vec<u8>,
}

impl Link {
    /// Opens the link over the socket of the second UART. `take` gets each message on a
    /// thread, and `None` at the end; it stops when `take` returns false.
    ///
    /// # Errors
    /// If the socket cannot be set up.
    pub fn open<F>(uart: UnixStream, lane: Option<Memory>, take: F) -> io::Result<Self>
    where
        F: FnMut(Option<FromDom0>) -> bool + Send + 'static,
    {
        uart.set_write_timeout(Some(SEND_LIMIT))?;
        let (lane, heard) = (lane.map(Arc::new), Arc::<AtomicBool>::default());
        let reader = Reader {
            uart: uart.try_clone()?,
            lane: lane.clone(),
            heard: Arc::clone(&heard),
            decoder: Decoder::default(),
            take,
        };
        thread::spawn(move || reader.run());
        Ok(Self { uart, lane, heard, held: Vec::new() })
    }

    /// Sends a message, or keeps it until Dom0 has said something.
    ///
    /// # Errors
    /// If the machine is gone or Dom0 does not read.
    pub fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        self.held.extend(link::encode(message));
        self.flush()
    }

    /// Sends what was kept, if Dom0 has said something.
    ///
    /// # Errors
    /// As for [`Link::send`].
    pub fn flush(&mut self) -> io::Result<()> {
        if self.held.is_empty() || !self.heard.load(Ordering::Acquire) {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.held);
        match self.lane.clone().filter(|lane| lane.is_in_use()) {
            Some(lane) => self.send_by(&lane, &bytes),
            None => self.uart.write_all(&bytes),
        }
    }

    fn send_by(&mut self, memory: &Memory, mut bytes: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + SEND_LIMIT;
        while !bytes.is_empty() {
            let sent = lane::send(&TO_DOM0, memory, bytes).map_err(spoilt)?;
            if sent.wake {
                self.uart.write_all(&[BELL])?;
            }
            bytes = &bytes[sent.bytes..];
            if sent.bytes == 0 {
                if Instant::now() > deadline {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "Dom0 does not read"));
                }
                thread::sleep(RETRY);
            }
        }
        Ok(())
    }
}

fn spoilt(absurd: AbsurdIndices) -> io::Error {
    io::Error::other(format!("the fast lane holds absurd indices ({absurd:?})"))
}

/// The receiving half.
struct Reader<F> {
    uart: UnixStream,
    lane: Option<Arc<Memory>>,
    heard: Arc<AtomicBool>,
    decoder: Decoder,
    take: F,
}

impl<F: FnMut(Option<FromDom0>) -> bool> Reader<F> {
    fn run(mut self) {
        let mut bytes = vec![0; BURST];
        while let Ok(count @ 1..) = self.uart.read(&mut bytes) {
            let goes_on = match self.lane.clone().filter(|lane| lane.is_in_use()) {
                Some(lane) => self.read_lane(&lane),
                None => self.hear(&bytes[..count]),
            };
            if !goes_on {
                return;
            }
        }
        // What was said last, with a bell that the end of the machine drowned.
        if let Some(lane) = self.lane.clone()
            && !self.read_lane(&lane)
        {
            return;
        }
        (self.take)(None);
    }

    /// Takes what is on the lane until there is nothing more.
    fn read_lane(&mut self, memory: &Memory) -> bool {
        let mut bytes = vec![0; BURST];
        loop {
            match lane::receive(&TO_TOOL, memory, &mut bytes) {
                Ok(0) if lane::may_sleep(&TO_TOOL, memory) => return true,
                Ok(0) => {}
                Ok(count) => {
                    if !self.hear(&bytes[..count]) {
                        return false;
                    }
                }
                Err(absurd) => {
                    // Shows as a Dom0 that says nothing any more.
                    eprintln!("{}", spoilt(absurd));
                    return true;
                }
            }
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> bool {
        self.heard.store(true, Ordering::Release);
        for &byte in bytes {
            if let Some(Ok(message)) = self.decoder.push(byte)
                && !(self.take)(Some(message))
            {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_link::{Event, Request, ToDom0};
    use std::sync::mpsc;

    const LIMIT: Duration = Duration::from_secs(20);

    fn ready() -> FromDom0 {
        FromDom0::Event(Event::Ready { version: 1 })
    }

    /// A link with a lane, Dom0's ends of it, and what the tool hears.
    struct Both {
        link: Link,
        uart: UnixStream,
        memory: Arc<Memory>,
        heard: mpsc::Receiver<Option<FromDom0>>,
    }

    impl Both {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let memory = Memory::create(&folder.path().join("lane")).expect("made");
            let (ours, uart) = UnixStream::pair().expect("a pair");
            uart.set_read_timeout(Some(LIMIT)).expect("set");
            let (give, heard) = mpsc::channel();
            let link = Link::open(ours, Some(memory), move |m| give.send(m).is_ok());
            let link = link.expect("opened");
            let memory = link.lane.clone().expect("a lane");
            Self { link, uart, memory, heard }
        }

        /// Dom0 sends by the lane; the bell is rung as it says.
        fn say(&mut self, message: &FromDom0) {
            let bytes = link::encode(message);
            let sent = lane::send(&TO_TOOL, &*self.memory, &bytes).expect("sane");
            assert_eq!(sent.bytes, bytes.len());
            if sent.wake {
                self.uart.write_all(&[BELL]).expect("rung");
            }
        }

        fn hears(&self) -> Option<FromDom0> {
            self.heard.recv_timeout(LIMIT).expect("in time")
        }
    }

    fn kill() -> ToDom0 {
        ToDom0 { number: 1, request: Request::Kill { domain: "g".into() } }
    }

    #[test]
    fn with_a_lane_in_use_messages_go_by_it_and_the_uart_only_wakes() {
        let mut both = Both::new();
        // Before Dom0 has spoken nobody knows which way it listens.
        both.link.send(&kill()).expect("kept");
        both.memory.write_u32(IN_USE, 1);
        both.say(&ready());
        assert_eq!(both.hears(), Some(ready()));
        assert!(lane::may_sleep(&TO_DOM0, &*both.memory));
        both.link.flush().expect("sent");
        assert_eq!(both.uart.read(&mut [0; 9]).expect("a bell"), 1);
        let mut got = [0; 100];
        let count = lane::receive(&TO_DOM0, &*both.memory, &mut got).expect("sane");
        assert_eq!(got[..count], link::encode(&kill()));
        for _ in 0..1000 {
            both.say(&ready());
        }
        assert!((0..1000).all(|_| both.hears() == Some(ready())));
    }

    #[test]
    fn what_was_said_last_is_heard_though_the_machine_is_gone() {
        let both = Both::new();
        both.memory.write_u32(IN_USE, 1);
        let bytes = link::encode(&ready());
        let _ = lane::send(&TO_TOOL, &*both.memory, &bytes).expect("sane");
        both.uart.shutdown(std::net::Shutdown::Both).expect("shut");
        assert_eq!(both.hears(), Some(ready()));
        assert_eq!(both.hears(), None);
    }

    #[test]
    fn without_a_lane_in_use_the_uart_carries_the_messages() {
        let mut both = Both::new();
        both.link.send(&kill()).expect("kept");
        both.uart.write_all(&link::encode(&ready())).expect("sent");
        assert_eq!(both.hears(), Some(ready()));
        both.link.flush().expect("sent");
        let mut got = [0; 100];
        let count = both.uart.read(&mut got).expect("the message");
        assert_eq!(got[..count], link::encode(&kill()));
    }
}
