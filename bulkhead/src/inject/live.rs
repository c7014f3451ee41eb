//! One boot of a campaign's machine: QEMU, and the link to Dom0. Messages are waited for,
//! requests are sent; what they mean is not known here.

use crate::{
    link::{Link, Memory},
    machine::{self, CORE_LOG, LANE, LINK, QEMU_LOG},
    qemu::{self, Ended},
    run::Prepared,
    session::Session,
    watch::Stop,
};
use bulkhead_link::{FromDom0, Request, ToDom0};
use faults::runner::MachineLost;
use std::{
    fs, io,
    os::unix::net::UnixListener,
    process::Child,
    sync::{
        atomic::AtomicU32,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

/// How long QEMU may take to leave once the link is closed.
const LEAVING: Duration = Duration::from_secs(10);
/// Lines of the core's output that tell why it ended.
const LAST_WORDS: usize = 40;

/// A machine that runs. Dropping it ends QEMU.
pub struct Live {
    child: Child,
    link: Link,
    inbox: Receiver<Option<FromDom0>>,
    next: u32,
    session: Session,
}

/// What came of waiting.
pub enum Heard {
    Message(FromDom0),
    /// Nothing, until the deadline.
    Nothing,
    /// The machine has ended.
    Ended(Ended),
}

impl Live {
    /// Starts a machine.
    ///
    /// # Errors
    /// What the host could not do.
    pub fn start(
        prepared: &Prepared,
        name: &str,
        interrupts: &AtomicU32,
    ) -> Result<Self, MachineLost> {
        Self::try_start(prepared, name, interrupts)
            .map_err(|error| MachineLost(format!("it cannot be started: {error}")))
    }

    fn try_start(prepared: &Prepared, name: &str, interrupts: &AtomicU32) -> io::Result<Self> {
        let plan = &prepared.plan;
        let session = Session::create(name)?;
        let archive = session.file("archive");
        fs::write(&archive, &plan.archive)?;
        let (debug_log, link) = (session.file(CORE_LOG), session.file(LINK));
        let lane = session.file(LANE);
        let options = qemu::Options {
            core: &plan.core,
            archive: &archive,
            memory: plan.memory,
            kvm: prepared.kvm,
            icount: false,
            drives: &plan.drives,
            debug_log: &debug_log,
            link: Some(&link),
            lane: Some(&lane),
        };
        let listener = UnixListener::bind(&link)?;
        listener.set_nonblocking(true)?;
        let memory = Memory::create(&lane)?;
        let (give, inbox) = mpsc::channel();
        let mut child = options.start(&session.file(QEMU_LOG))?;
        let take = move |message| give.send(message).is_ok();
        match machine::connect(&listener, &mut child, interrupts, memory, take) {
            Ok(Ok(link)) => Ok(Self { child, link, inbox, next: 0, session }),
            other => {
                end(&mut child);
                let errors = fs::read_to_string(session.file(QEMU_LOG)).unwrap_or_default();
                Err(match other {
                    Ok(Err(Stop::Interrupted)) => io::Error::other("interrupted"),
                    Err(error) => error,
                    _ => io::Error::other(format!("QEMU left\n{}", errors.trim())),
                })
            }
        }
    }

    /// Sends a request; gives its number, which the reply repeats.
    ///
    /// # Errors
    /// Dom0 does not read any more; see [`Live::hear`] for the machine's end.
    pub fn send(&mut self, request: Request) -> io::Result<u32> {
        self.next += 1;
        self.link.send(&ToDom0 { number: self.next, request })?;
        Ok(self.next)
    }

    /// Waits for a message until a deadline.
    pub fn hear(&mut self, deadline: Instant) -> Heard {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.inbox.recv_timeout(left) {
            Ok(Some(message)) => {
                // What was held back until Dom0 spoke. A broken link shows as the end.
                let _ = self.link.flush();
                Heard::Message(message)
            }
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Ok(None) | Err(RecvTimeoutError::Disconnected) => Heard::Ended(self.leave()),
        }
    }

    fn leave(&mut self) -> Ended {
        let status = qemu::wait_until(&mut self.child, Instant::now() + LEAVING);
        status.map_or(Ended::Unasked(None), Ended::from_status)
    }

    /// What the core said last.
    pub fn last_words(&self) -> String {
        let log = fs::read(self.session.file(CORE_LOG)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<_> = log.lines().map(str::trim_end).collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
