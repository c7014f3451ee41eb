//! One command in a guest, as the terminal that asked for it sees it: waits for the
//! guest's agent, passes input and output on, and tells how the command ended. How the
//! run passes it on is [`crate::relay`]'s.

use crate::{
    remote::RemoteError,
    wire::{self, AgentState, Ask, Sender, Tell},
};
use bulkhead_link::{
    Event, FromDom0,
    agent::{End, FromAgent, INPUT_WINDOW, OUTPUT_WINDOW, PIECE_BYTES, Stream, ToAgent},
};
use std::{
    io::{self, Read},
    path::Path,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// How long an agent may take until it is there, if the user does not say.
pub const WAIT: Duration = Duration::from_secs(60);
/// A wait is told of when it has lasted this long.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often interrupts and deadlines are looked at.
const TICK: Duration = Duration::from_millis(50);
/// What a command has to end after its time is over, before the next harder step.
const GRACE: Duration = Duration::from_secs(2);
/// How much output is taken before the agent is told.
const TELL_BYTES: u32 = OUTPUT_WINDOW / 4;
/// The number of the command; each has a connection of its own.
const ID: u32 = 1;

const SIGINT: u8 = 2;
const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;

/// What to run.
pub struct Command {
    /// The program, looked up in the guest's `PATH`, and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// Its standard input; none is an empty one.
    pub input: Option<Box<dyn Read + Send>>,
    /// How long the agent may take until it is there.
    pub wait: Duration,
    /// How long the command may take.
    pub timeout: Option<Duration>,
}

impl Command {
    /// A command without input or limits.
    pub fn new<A: AsRef<[u8]>>(argv: impl IntoIterator<Item = A>) -> Self {
        let argv = argv.into_iter().map(|a| a.as_ref().to_vec()).collect();
        Self { argv, input: None, wait: WAIT, timeout: None }
    }

    /// With these bytes as its input.
    #[must_use]
    pub fn input(self, bytes: impl Into<Vec<u8>>) -> Self {
        Self { input: Some(Box::new(io::Cursor::new(bytes.into()))), ..self }
    }
}

/// Where the output goes.
pub trait Sink {
    /// Takes bytes that the command wrote.
    ///
    /// # Errors
    /// If they cannot be passed on; the command is killed then.
    fn output(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()>;
    /// A line of the tool's own.
    fn say(&mut self, text: &str);
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// It ended by itself.
    Ended(End),
    /// The guest could not start it: the number of Linux's error, 0 if there is none.
    Refused { errno: i32, reason: String },
    /// Its time was over, and it was killed.
    TimedOut,
    /// The user did not wait for it.
    Interrupted,
}

impl Finished {
    /// The exit code that a shell would give.
    pub fn code(&self) -> u8 {
        /// Linux's number for a file that is not there.
        const ENOENT: i32 = 2;
        match self {
            Self::Ended(end) => end.code(),
            Self::Refused { errno: ENOENT, .. } => 127,
            Self::Refused { .. } => 126,
            Self::TimedOut => 124,
            Self::Interrupted => 130,
        }
    }
}

/// All that is waited for.
enum Got {
    Told(Option<Tell>),
    /// A piece of input; empty at its end.
    Input(Vec<u8>),
}

/// Runs a command in a guest of the run that listens at `socket`. The first of
/// `interrupts` is passed on to the command, the second ends the wait for it.
///
/// Holds: when this returns, the command has ended or is being killed.
///
/// # Errors
/// If the guest has no agent, or the connection to it is lost.
pub fn exec(
    socket: &Path,
    domain: &str,
    command: Command,
    interrupts: &AtomicU32,
    sink: &mut dyn Sink,
) -> Result<Finished, RemoteError> {
    let (give, inbox) = mpsc::channel();
    let told = give.clone();
    let sender = wire::join(socket, move |told_us| told.send(Got::Told(told_us)).is_ok())?;
    let mut session =
        Session { sender, inbox, domain, interrupts, interrupted: 0, untold: 0, sink };
    let finished = session.carry_out(command, give);
    session.sender.close();
    finished
}

struct Session<'a> {
    sender: Sender,
    inbox: Receiver<Got>,
    domain: &'a str,
    interrupts: &'a AtomicU32,
    /// Interrupts that were passed on.
    interrupted: u32,
    /// Bytes of output that the agent has not been told of.
    untold: u32,
    sink: &'a mut dyn Sink,
}

impl Session<'_> {
    fn carry_out(
        &mut self,
        command: Command,
        give: mpsc::Sender<Got>,
    ) -> Result<Finished, RemoteError> {
        if !self.wait_for_agent(command.wait)? {
            return Ok(Finished::Interrupted);
        }
        let input = command.input.is_some();
        self.send(ToAgent::Start { id: ID, argv: command.argv, input })?;
        let mut feed = Feed::new(command.input, give);
        let mut limit = command.timeout.map(Limit::new);
        loop {
            let found = match self.inbox.recv_timeout(TICK) {
                Ok(Got::Told(Some(told))) => self.hear(told, &mut feed)?,
                Ok(Got::Told(None)) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(RemoteError::Over);
                }
                Ok(Got::Input(bytes)) => {
                    feed.take(bytes);
                    None
                }
                Err(RecvTimeoutError::Timeout) => None,
            };
            if let Some(finished) = found {
                let is_late = limit.as_ref().is_some_and(|l| l.has_struck);
                return Ok(if is_late { Finished::TimedOut } else { finished });
            }
            for message in feed.next() {
                self.send(message)?;
            }
            if self.pass_interrupts()? {
                return Ok(Finished::Interrupted);
            }
            match limit.as_mut().map(Limit::look) {
                Some(Step::Signal(signal)) => self.send(ToAgent::Signal { id: ID, signal })?,
                Some(Step::GiveUp) => return Ok(Finished::TimedOut),
                Some(Step::Wait) | None => {}
            }
        }
    }

    fn send(&mut self, message: ToAgent) -> io::Result<()> {
        self.sender.send(&Ask::Agent { domain: self.domain.into(), message })
    }

    /// `false` if the user did not wait for it.
    fn wait_for_agent(&mut self, wait: Duration) -> Result<bool, RemoteError> {
        self.sender.send(&Ask::AgentState { domain: self.domain.into() })?;
        let (since, mut is_told) = (Instant::now(), false);
        loop {
            match self.inbox.recv_timeout(TICK) {
                Ok(Got::Told(Some(told))) => {
                    if self.is_ready(&told)? {
                        return Ok(true);
                    }
                }
                Ok(Got::Told(None)) => return Err(RemoteError::Over),
                Ok(Got::Input(_)) | Err(_) => {}
            }
            if self.interrupts.load(Ordering::Relaxed) > 0 {
                return Ok(false);
            }
            if since.elapsed() >= wait {
                let waited_s = wait.as_secs();
                return Err(RemoteError::SilentAgent { domain: self.domain.into(), waited_s });
            }
            if since.elapsed() >= PATIENCE && !is_told {
                is_told = true;
                let (domain, limit) = (self.domain, wait.as_secs());
                self.sink.say(&format!("waiting for the agent of {domain}, at most {limit} s"));
            }
        }
    }

    fn is_ready(&self, told: &Tell) -> Result<bool, RemoteError> {
        match told {
            Tell::AgentState { domain, state } if domain == self.domain => match state {
                AgentState::Ready => Ok(true),
                AgentState::Silent => Ok(false),
                AgentState::None => Err(RemoteError::NoAgent { domain: domain.clone() }),
                AgentState::OtherVersion(theirs) => {
                    Err(RemoteError::AgentVersion { domain: domain.clone(), theirs: *theirs })
                }
            },
            Tell::Dom0(FromDom0::Event(Event::Ended { domain, .. })) if domain == self.domain => {
                Err(RemoteError::Ended { domain: domain.clone() })
            }
            _ => Ok(false),
        }
    }

    /// Takes what the run tells; gives the command's end.
    fn hear(&mut self, told: Tell, feed: &mut Feed) -> Result<Option<Finished>, RemoteError> {
        let message = match told {
            Tell::Agent { message, .. } => message,
            Tell::AgentLost { domain, why, .. } => return Err(RemoteError::Lost { domain, why }),
            // Its agent went between our question and the start.
            Tell::AgentState { domain, state } if domain == self.domain => match state {
                AgentState::Ready => return Ok(None),
                _ => return Err(RemoteError::Lost { domain, why: "the agent is gone".into() }),
            },
            Tell::AgentState { .. } | Tell::Dom0(_) => return Ok(None),
        };
        match message {
            FromAgent::Output { stream, bytes, .. } => {
                self.sink.output(stream, &bytes)?;
                self.untold += bytes.len() as u32;
                if self.untold >= TELL_BYTES {
                    let bytes = std::mem::take(&mut self.untold);
                    self.send(ToAgent::Taken { id: ID, bytes })?;
                }
                Ok(None)
            }
            FromAgent::Taken { bytes, .. } => {
                feed.give_room(bytes);
                Ok(None)
            }
            FromAgent::Ended { end, .. } => Ok(Some(Finished::Ended(end))),
            FromAgent::Refused { errno, reason, .. } => {
                Ok(Some(Finished::Refused { errno, reason }))
            }
            FromAgent::Hello { .. } | FromAgent::ClockWanted { .. } => Ok(None),
        }
    }

    /// Whether the user has had enough.
    fn pass_interrupts(&mut self) -> io::Result<bool> {
        let count = self.interrupts.load(Ordering::Relaxed);
        if count > self.interrupted {
            self.interrupted = count;
            self.send(ToAgent::Signal { id: ID, signal: SIGINT })?;
        }
        Ok(count > 1)
    }
}

/// The way of the input: read ahead by one piece, and sent as the window allows.
struct Feed {
    /// Tells the reading thread to go on.
    go_on: Option<mpsc::Sender<()>>,
    piece: Vec<u8>,
    has_ended: bool,
    room: u32,
}

impl Feed {
    fn new(input: Option<Box<dyn Read + Send>>, give: mpsc::Sender<Got>) -> Self {
        let go_on = input.map(|input| {
            let (go_on, asked) = mpsc::channel();
            // It may wait for a key for ever, and ends with the process then.
            thread::spawn(move || read(input, &give, &asked));
            go_on
        });
        Self { go_on, piece: Vec::new(), has_ended: false, room: INPUT_WINDOW }
    }

    fn take(&mut self, piece: Vec<u8>) {
        self.has_ended = piece.is_empty();
        self.piece = piece;
    }

    fn give_room(&mut self, bytes: u32) {
        self.room = self.room.saturating_add(bytes).min(INPUT_WINDOW);
    }

    /// What may be sent now.
    fn next(&mut self) -> Vec<ToAgent> {
        if std::mem::take(&mut self.has_ended) {
            return vec![ToAgent::InputEnd { id: ID }];
        }
        let count = self.piece.len().min(self.room as usize);
        if count == 0 {
            return Vec::new();
        }
        let bytes: Vec<u8> = self.piece.drain(..count).collect();
        self.room -= count as u32;
        if self.piece.is_empty()
            && let Some(go_on) = &self.go_on
        {
            // An error: it has ended.
            let _ = go_on.send(());
        }
        vec![ToAgent::Input { id: ID, bytes }]
    }
}

/// Reads input, a piece at a time; an error is its end.
fn read(mut input: Box<dyn Read + Send>, give: &mpsc::Sender<Got>, asked: &Receiver<()>) {
    loop {
        let mut bytes = vec![0; PIECE_BYTES];
        let count = match input.read(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            found => found.unwrap_or(0),
        };
        bytes.truncate(count);
        if give.send(Got::Input(bytes)).is_err() || count == 0 || asked.recv().is_err() {
            return;
        }
    }
}

/// A command's time: it is asked to end, then killed, then given up.
struct Limit {
    strikes: Instant,
    has_struck: bool,
    left: Vec<u8>,
}

enum Step {
    Wait,
    Signal(u8),
    GiveUp,
}

impl Limit {
    fn new(limit: Duration) -> Self {
        Self { strikes: Instant::now() + limit, has_struck: false, left: vec![SIGKILL, SIGTERM] }
    }

    fn look(&mut self) -> Step {
        if Instant::now() < self.strikes {
            return Step::Wait;
        }
        self.has_struck = true;
        self.strikes += GRACE;
        self.left.pop().map_or(Step::GiveUp, Step::Signal)
    }
}

/// Keeps what a command wrote.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Sink for Collected {
    fn output(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        match stream {
            Stream::Stdout => self.stdout.extend(bytes),
            Stream::Stderr => self.stderr.extend(bytes),
        }
        Ok(())
    }

    fn say(&mut self, _: &str) {}
}

/// What a command wrote and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub finished: Finished,
}

/// As [`exec`], with the output collected.
///
/// # Errors
/// As for [`exec`].
pub fn output(socket: &Path, domain: &str, command: Command) -> Result<Output, RemoteError> {
    let mut sink = Collected::default();
    let finished = exec(socket, domain, command, &AtomicU32::new(0), &mut sink)?;
    Ok(Output { stdout: sink.stdout, stderr: sink.stderr, finished })
}
