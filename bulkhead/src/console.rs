//! A domain's console as a user has it: what is typed goes in as fast as the domain
//! reads, what it writes is passed on, until Ctrl-] or the end. Where the bytes are shown
//! is not known here.

use crate::wire::{self, Ask, Sender, Tell};
use bulkhead_link::{Event, FromDom0, Reply, Request, ToDom0};
use std::{
    collections::VecDeque,
    io::{self, Read},
    path::Path,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::Duration,
};

/// Ctrl-], which leaves a console.
pub const DETACH: u8 = 0x1d;
/// Most bytes typed in one request.
const PIECE_BYTES: usize = 1024;
/// How often interrupts are looked at.
const TICK: Duration = Duration::from_millis(50);

/// What is typed and not taken yet. The domain takes what it has room for; then it is
/// waited for.
#[derive(Debug, Default)]
pub struct Typing {
    waiting: VecDeque<u8>,
    /// The request on its way, by its number.
    asked: Option<(u32, Vec<u8>)>,
    is_full: bool,
    next: u32,
}

impl Typing {
    /// Adds what was typed.
    pub fn add(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
    }

    /// Whether all has been taken.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.asked.is_none()
    }

    /// The next bytes to send, with the number of their request.
    pub fn to_send(&mut self) -> Option<(u32, Vec<u8>)> {
        if self.is_full || self.asked.is_some() || self.waiting.is_empty() {
            return None;
        }
        let count = self.waiting.len().min(PIECE_BYTES);
        let bytes: Vec<u8> = self.waiting.drain(..count).collect();
        self.next += 1;
        self.asked = Some((self.next, bytes.clone()));
        Some((self.next, bytes))
    }

    /// A reply came. What was not taken is typed again when there is room.
    pub fn replied(&mut self, number: u32, reply: &Reply) {
        let Some((_, bytes)) = self.asked.take_if(|(asked, _)| *asked == number) else {
            return;
        };
        // Without a domain nobody is there to type to.
        let Reply::Taken { bytes: taken } = reply else { return };
        let rest = bytes.get(*taken as usize..).unwrap_or_default();
        self.is_full = !rest.is_empty();
        for &byte in rest.iter().rev() {
            self.waiting.push_front(byte);
        }
    }

    /// There is room again.
    pub fn room(&mut self) {
        self.is_full = false;
    }
}

/// Why a console was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// The user pressed Ctrl-].
    Detached,
    /// The domain has ended, for this reason.
    Ended(String),
    /// The machine has ended.
    Over,
    /// The user was asked to leave by a signal.
    Interrupted,
}

/// How a console is attended.
pub struct Manner<'a> {
    /// What is typed; none if nothing is.
    pub input: Option<Box<dyn Read + Send>>,
    /// Ctrl-] leaves. Otherwise it is typed like anything else.
    pub detach: bool,
    /// The end of the domain leaves; otherwise it may come back.
    pub leave_at_end: bool,
    /// Leaves when it is no longer zero.
    pub interrupts: &'a AtomicU32,
}

/// All that is waited for.
enum Got {
    Told(Option<Tell>),
    /// Bytes that were typed; none at the end.
    Typed(Vec<u8>),
}

/// Joins a console of the run that listens at `socket`; `show` gets what the domain
/// writes, beginning with the end of what it wrote before.
///
/// # Errors
/// If the run is not there, or `show` fails.
pub fn attend(
    socket: &Path,
    domain: &str,
    manner: Manner<'_>,
    show: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Left> {
    let (give, inbox) = mpsc::channel();
    let told = give.clone();
    let mut sender = wire::join(socket, move |m| told.send(Got::Told(m)).is_ok())?;
    let (go_on, asked) = mpsc::channel();
    if let Some(input) = manner.input {
        // It may wait for a key for ever, and ends with the process then.
        thread::spawn(move || read_keys(input, manner.detach, &give, &asked));
    }
    let mut typing = Typing::default();
    let (mut has_typed, mut has_left) = (false, false);
    loop {
        match inbox.recv_timeout(TICK) {
            Ok(Got::Told(Some(Tell::Dom0(message)))) => {
                let left = hear(&message, domain, &mut typing, show)?;
                if let Some(reason) = left.filter(|_| manner.leave_at_end) {
                    return Ok(Left::Ended(reason));
                }
            }
            Ok(Got::Told(None)) => return Ok(Left::Over),
            Ok(Got::Told(Some(_))) | Err(_) => {}
            Ok(Got::Typed(bytes)) => {
                let end = bytes.iter().position(|&b| manner.detach && b == DETACH);
                typing.add(&bytes[..end.unwrap_or(bytes.len())]);
                has_typed = true;
                has_left |= end.is_some();
            }
        }
        send(&mut typing, domain, &mut sender)?;
        if has_left {
            return Ok(Left::Detached);
        }
        if manner.interrupts.load(Ordering::Relaxed) > 0 {
            return Ok(Left::Interrupted);
        }
        if typing.is_empty() && std::mem::take(&mut has_typed) {
            // An error: the input has ended.
            let _ = go_on.send(());
        }
    }
}

fn send(typing: &mut Typing, domain: &str, sender: &mut Sender) -> io::Result<()> {
    let Some((number, bytes)) = typing.to_send() else { return Ok(()) };
    let request = Request::ConsoleInput { domain: domain.into(), bytes };
    sender.send(&Ask::Dom0(ToDom0 { number, request }))
}

/// Takes what the run tells; gives the reason once the domain has ended.
fn hear(
    message: &FromDom0,
    domain: &str,
    typing: &mut Typing,
    show: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Option<String>> {
    match message {
        FromDom0::Reply { number, reply } => typing.replied(*number, reply),
        FromDom0::Event(Event::Console { domain: of, bytes }) if of == domain => show(bytes)?,
        FromDom0::Event(Event::ConsoleRoom { domain: of }) if of == domain => typing.room(),
        FromDom0::Event(Event::Ended { domain: of, reason, .. }) if of == domain => {
            // What it did not read, its successor shall not.
            *typing = Typing { next: typing.next, ..Typing::default() };
            return Ok(Some(reason.clone()));
        }
        FromDom0::Event(_) => {}
    }
    Ok(None)
}

/// Reads what is typed, no further ahead than one read, and no further than Ctrl-].
fn read_keys(
    mut input: Box<dyn Read + Send>,
    detach: bool,
    give: &mpsc::Sender<Got>,
    asked: &Receiver<()>,
) {
    let mut bytes = [0; 4096];
    loop {
        let count = match input.read(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Ok(count @ 1..) => count,
            // The end, or a terminal that is gone.
            _ => return,
        };
        let typed = bytes[..count].to_vec();
        let leaves = detach && typed.contains(&DETACH);
        if give.send(Got::Typed(typed)).is_err() || leaves || asked.recv().is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(bytes: u32) -> Reply {
        Reply::Taken { bytes }
    }

    #[test]
    fn what_finds_no_room_is_typed_again_when_there_is_room() {
        let mut typing = Typing::default();
        typing.add(b"abcdef");
        assert_eq!(typing.to_send(), Some((1, b"abcdef".to_vec())));
        typing.add(b"gh");
        assert_eq!(typing.to_send(), None, "one request at a time");
        typing.replied(7, &taken(6));
        assert_eq!(typing.to_send(), None, "that was another's reply");
        typing.replied(1, &taken(2));
        assert_eq!(typing.to_send(), None, "it is full");
        typing.room();
        assert_eq!(typing.to_send(), Some((2, b"cdefgh".to_vec())));
        typing.replied(2, &taken(6));
        assert!(typing.is_empty());
    }

    #[test]
    fn what_is_typed_to_nobody_is_dropped() {
        let mut typing = Typing::default();
        typing.add(b"hello?");
        assert!(typing.to_send().is_some());
        typing.replied(1, &Reply::Error("there is no domain".into()));
        assert!(typing.is_empty());
    }

    proptest! {
        #[test]
        fn all_that_is_typed_arrives_once_and_in_order(
            text in prop::collection::vec(any::<u8>(), 0..5000),
            rooms in prop::collection::vec(0usize..2000, 1..20),
        ) {
            let (mut typing, mut got) = (Typing::default(), Vec::<u8>::new());
            let mut rooms = rooms.into_iter().cycle();
            typing.add(&text);
            let mut rounds = 0;
            while let Some((number, bytes)) = typing.to_send() {
                rounds += 1;
                let room = if rounds > 200 { usize::MAX } else { rooms.next().unwrap_or(1) };
                let count = bytes.len().min(room);
                got.extend(&bytes[..count]);
                typing.replied(number, &taken(count as u32));
                typing.room();
            }
            prop_assert_eq!(got, text);
        }
    }
}
