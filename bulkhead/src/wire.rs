//! The link over a socket: sends messages, and reads them on a thread of its own. The
//! same on both sides of the relay, and between the tool and Dom0. Other terminals say
//! [`Ask`] to the run that holds the link, and it says [`Tell`].

use bulkhead_link::{
    self as link, Decoder, FromDom0, Reply, Request, ToDom0,
    agent::{FromAgent, ToAgent},
};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

/// How long a peer may leave its socket full before it is given up.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// From another terminal to the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// To be passed on to Dom0.
    Dom0(ToDom0),
    /// To be passed on to the agent of a guest; numbers are the terminal's own.
    Agent { domain: String, message: ToAgent },
    /// How the agent of a guest is.
    AgentState { domain: String },
}

/// From the run to another terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tell {
    /// What Dom0 said.
    Dom0(FromDom0),
    /// What the agent of a guest said about a command of this terminal.
    Agent { domain: String, message: FromAgent },
    /// How the agent of a guest is: when asked, and when that changes.
    AgentState { domain: String, state: AgentState },
    /// Nothing more will be heard of a command.
    AgentLost { domain: String, id: u32, why: String },
}

/// How the agent of a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentState {
    /// The guest has no second console that one could be on.
    None,
    /// It has not been heard of.
    Silent,
    /// It runs commands.
    Ready,
    /// It speaks this other version.
    OtherVersion(u32),
}

/// The sending half.
#[derive(Debug)]
pub struct Sender {
    stream: UnixStream,
}

impl Sender {
    /// Sends one message.
    ///
    /// # Errors
    /// If the peer is gone or does not read.
    pub fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        self.stream.write_all(&link::encode(message))
    }

    /// Ends both directions; the reading thread ends with it.
    pub fn close(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Splits a connection: `take` gets each message on a thread, and `None` at the end.
/// It stops when `take` returns false. Frames that make no sense are dropped.
///
/// # Errors
/// If the socket cannot be set up.
pub fn split<T, F>(stream: UnixStream, mut take: F) -> io::Result<Sender>
where
    T: for<'a> Deserialize<'a>,
    F: FnMut(Option<T>) -> bool + Send + 'static,
{
    stream.set_write_timeout(Some(SEND_LIMIT))?;
    let mut reader = stream.try_clone()?;
    thread::spawn(move || {
        let mut decoder = Decoder::default();
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut bytes) {
            for &byte in &bytes[..count] {
                if let Some(Ok(message)) = decoder.push(byte)
                    && !take(Some(message))
                {
                    return;
                }
            }
        }
        take(None);
    });
    Ok(Sender { stream })
}

/// Connects to the socket of a run; see [`split`].
///
/// # Errors
/// If nobody listens there.
pub fn join<F>(socket: &Path, take: F) -> io::Result<Sender>
where
    F: FnMut(Option<Tell>) -> bool + Send + 'static,
{
    split(UnixStream::connect(socket)?, take)
}

/// A connection to Dom0 of a running machine, by way of the run that started it.
pub struct Client {
    sender: Sender,
    messages: Receiver<Option<FromDom0>>,
    next: u32,
}

impl Client {
    /// Connects to the socket of a run.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let (give, messages) = mpsc::channel();
        let sender = join(socket, move |told| match told {
            Some(Tell::Dom0(message)) => give.send(Some(message)).is_ok(),
            Some(_) => true,
            None => give.send(None).is_ok(),
        })?;
        Ok(Self { sender, messages, next: 1 })
    }

    /// Sends a request without waiting for its reply.
    ///
    /// # Errors
    /// If the run is gone.
    pub fn send(&mut self, request: Request) -> io::Result<u32> {
        let number = self.next;
        self.next += 1;
        self.sender.send(&Ask::Dom0(ToDom0 { number, request }))?;
        Ok(number)
    }

    /// Sends a request and waits for its reply; events meanwhile are dropped.
    ///
    /// # Errors
    /// If the run is gone or does not reply within `limit`.
    pub fn ask(&mut self, request: Request, limit: Duration) -> io::Result<Reply> {
        let asked = self.send(request)?;
        let deadline = Instant::now() + limit;
        loop {
            match self.receive(deadline.saturating_duration_since(Instant::now()))? {
                Some(FromDom0::Reply { number, reply }) if number == asked => return Ok(reply),
                Some(_) => {}
                None => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "Dom0 does not reply"));
                }
            }
        }
    }

    /// The next message, or None if none comes within `limit`.
    ///
    /// # Errors
    /// If the run has ended.
    pub fn receive(&mut self, limit: Duration) -> io::Result<Option<FromDom0>> {
        let gone = || io::Error::new(io::ErrorKind::ConnectionAborted, "the machine has ended");
        match self.messages.recv_timeout(limit) {
            Ok(Some(message)) => Ok(Some(message)),
            Ok(None) | Err(mpsc::RecvTimeoutError::Disconnected) => Err(gone()),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
        }
    }
}
