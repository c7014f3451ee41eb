//! What is said over a guest's second console: the host tool asks the agent, a small
//! program in the guest, to run commands, and tells it the time. Knows nothing of terminals
//! or processes; Dom0 passes the bytes on unread.
//!
//! Wire: each message is a sequence number and the message in `postcard`, followed by
//! its CRC-32 (ISO-HDLC, little-endian), framed by COBS with a zero byte at the end.
//! Number 0 begins anew: [`FromAgent::Hello`] has it, [`ToAgent::Reset`] has it, and so has
//! the first message to an agent that has said Hello. A frame that does not decode, or a gap
//! in the numbers, means that bytes were lost or that somebody else wrote on the line. The
//! host tool then sends Reset; the agent kills its commands and says Hello, as it does when it
//! starts and after Reset. Until number 0 comes, both take no further notice of such frames.
//!
//! Flow control: of each command, at most [`OUTPUT_WINDOW`] bytes of output and
//! [`INPUT_WINDOW`] bytes of input are under way; `Taken` gives room back. So nothing
//! is dropped when one side is slow, and a command that nobody reads stops the others
//! as little as it does on one machine.
//!
//! Time: after its Hello the agent asks what the host's clock says, up to [`CLOCK_QUESTIONS`]
//! times. It is the agent that asks, since only who knows when a question left and when its
//! answer came can tell how old the answer may be.

use alloc::{string::String, vec::Vec};
use core::marker::PhantomData;
use crc::{CRC_32_ISO_HDLC, Crc, Table};
use serde::{Deserialize, Serialize};

/// Version of this protocol; both ends must have the same.
pub const VERSION: u32 = 2;
/// Most bytes of a command's output, on both streams together, that are under way.
pub const OUTPUT_WINDOW: u32 = 64 << 10;
/// Most bytes of a command's input that are under way.
pub const INPUT_WINDOW: u32 = 16 << 10;
/// Most bytes of one [`FromAgent::Output`] or [`ToAgent::Input`].
pub const PIECE_BYTES: usize = 4096;
/// Most bytes of a command's arguments together.
pub const ARGUMENT_BYTES: usize = 64 << 10;
/// Most commands that a guest runs at once.
pub const MOST_COMMANDS: usize = 16;
/// Most questions for the time that are answered after each Hello.
pub const CLOCK_QUESTIONS: u32 = 8;
/// Longest frame; a longer one makes no sense.
pub const FRAME_BYTES: usize = 2 * ARGUMENT_BYTES;

static CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISO_HDLC);

/// From the host tool to the agent. The sender chooses `id`s, and uses one again only when
/// its command has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Kill all commands and say Hello again.
    Reset,
    /// Run a command.
    Start {
        id: u32,
        /// The program, looked up in `PATH`, and its arguments.
        argv: Vec<Vec<u8>>,
        /// Its input comes in [`ToAgent::Input`]; otherwise it is empty.
        input: bool,
    },
    /// Bytes for its standard input.
    Input {
        id: u32,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Its standard input ends.
    InputEnd { id: u32 },
    /// So many bytes of its output have arrived where they go.
    Taken { id: u32, bytes: u32 },
    /// Send a signal to its process group.
    Signal { id: u32, signal: u8 },
    /// The host's wall clock when it took the question, ns since 1970.
    Clock { question: u32, unix_ns: u64 },
}

/// From the agent to the host tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// The agent listens, and runs nothing.
    Hello { version: u32 },
    /// The command could not be started.
    Refused {
        id: u32,
        /// Linux's number, 0 if it is not the system that refused.
        errno: i32,
        reason: String,
    },
    /// Bytes it wrote.
    Output {
        id: u32,
        stream: Stream,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// So many bytes of its input were taken.
    Taken { id: u32, bytes: u32 },
    /// It ended; all of its output went before.
    Ended { id: u32, end: End },
    /// What time is it? Not answered where guests are not to know the host's time.
    ClockWanted {
        /// Comes back in [`ToAgent::Clock`].
        question: u32,
    },
}

impl ToAgent {
    /// The command that it is about.
    pub fn id_mut(&mut self) -> Option<&mut u32> {
        match self {
            Self::Reset | Self::Clock { .. } => None,
            Self::Start { id, .. }
            | Self::Input { id, .. }
            | Self::InputEnd { id }
            | Self::Taken { id, .. }
            | Self::Signal { id, .. } => Some(id),
        }
    }
}

impl FromAgent {
    /// The command that it is about.
    pub fn id_mut(&mut self) -> Option<&mut u32> {
        match self {
            Self::Hello { .. } | Self::ClockWanted { .. } => None,
            Self::Refused { id, .. }
            | Self::Output { id, .. }
            | Self::Taken { id, .. }
            | Self::Ended { id, .. } => Some(id),
        }
    }
}

/// Where a command writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// With this code.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
}

impl End {
    /// The exit code that a shell would give: 128 and the number for a signal.
    pub const fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(signal) => 128u8.saturating_add(signal),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Frame<T> {
    sequence: u32,
    message: T,
}

/// Makes frames of messages. Its buffers stay: an agent's allocator may go to the kernel for
/// each new one.
#[derive(Debug, Default)]
pub struct Encoder {
    next: u32,
    plain: Vec<u8>,
    framed: Vec<u8>,
}

impl Encoder {
    /// The bytes of a message; its number is the next.
    pub fn encode<T: Serialize>(&mut self, message: &T) -> &[u8] {
        self.framed.clear();
        self.append(message);
        &self.framed
    }

    /// As [`Encoder::encode`], with number 0. It begins with a byte that ends whatever else is on
    /// the line.
    pub fn restart<T: Serialize>(&mut self, message: &T) -> &[u8] {
        self.next = 0;
        self.framed.clear();
        self.framed.push(0);
        self.append(message);
        &self.framed
    }

    fn append<T: Serialize>(&mut self, message: &T) {
        let frame = Frame { sequence: self.next, message };
        self.next = self.next.wrapping_add(1);
        let mut plain = core::mem::take(&mut self.plain);
        plain.clear();
        // Only running out of memory can fail here, and that panics in `alloc` itself.
        self.plain = postcard::to_extend(&frame, plain).unwrap_or_default();
        self.plain.extend(CRC.checksum(&self.plain).to_le_bytes());
        let start = self.framed.len();
        self.framed.resize(start + cobs::max_encoding_length(self.plain.len()), 0);
        let count = cobs::encode(&self.plain, &mut self.framed[start..]);
        self.framed.truncate(start + count);
        self.framed.push(0);
    }
}

/// What a [`Reader`] found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A frame that does not decode.
    Garbled,
    /// A message whose number is neither the next nor 0.
    Gap,
}

/// Cuts a byte stream into messages of type `T`.
#[derive(Debug)]
pub struct Reader<T> {
    frame: Vec<u8>,
    next: u32,
    is_too_long: bool,
    of: PhantomData<T>,
}

impl<T> Default for Reader<T> {
    fn default() -> Self {
        Self { frame: Vec::new(), next: 0, is_too_long: false, of: PhantomData }
    }
}

impl<T: for<'a> Deserialize<'a>> Reader<T> {
    /// Takes bytes off the front of `bytes`, up to the end of the first message or fault.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<Result<T, Fault>> {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|&byte| byte == 0);
            let (piece, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.keep(piece);
            *bytes = rest.get(1..).unwrap_or_default();
            if end.is_some()
                && let Some(found) = self.finish()
            {
                return Some(found);
            }
        }
        None
    }

    fn keep(&mut self, piece: &[u8]) {
        match self.frame.len() + piece.len() <= FRAME_BYTES {
            true => self.frame.extend(piece),
            false => self.is_too_long = true,
        }
    }

    fn finish(&mut self) -> Option<Result<T, Fault>> {
        let mut frame = core::mem::take(&mut self.frame);
        let is_too_long = core::mem::take(&mut self.is_too_long);
        if frame.is_empty() && !is_too_long {
            return None;
        }
        let found = if is_too_long { None } else { decode(&mut frame) };
        let Some(Frame { sequence, message }) = found else {
            return Some(Err(Fault::Garbled));
        };
        if sequence != 0 && sequence != self.next {
            return Some(Err(Fault::Gap));
        }
        self.next = sequence.wrapping_add(1);
        Some(Ok(message))
    }
}

fn decode<T: for<'a> Deserialize<'a>>(frame: &mut [u8]) -> Option<Frame<T>> {
    let bytes = cobs::decode_in_place(frame).ok()?;
    let (text, sum) = frame.get(..bytes)?.split_last_chunk::<4>()?;
    if CRC.checksum(text) != u32::from_le_bytes(*sum) {
        return None;
    }
    postcard::from_bytes(text).ok()
}

#[cfg(test)]
mod tests;
