//! One run of a machine: starts QEMU, holds the link to Dom0, serves other terminals,
//! and brings everything down again, whatever happens in between.

use crate::{
    agents::{Agents, WallClock},
    link::{Link, Memory},
    plan::wallclock_ns,
    progress::Progress,
    qemu::Ended,
    relay::{FromClient, Relay},
    session::Session,
    watch::{Stop, Watch},
};
use bulkhead_link::{CLOCK_TELLS, FromDom0, Request, ToDom0};
use std::{
    fs, io,
    os::unix::net::UnixListener,
    path::Path,
    process::Child,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

/// The socket in a session's folder that the machine's second UART connects to.
pub const LINK: &str = "link";
/// The file there that is the memory of the link's fast lane.
pub const LANE: &str = "lane";
/// The file there that gets what the core prints.
pub const CORE_LOG: &str = "core.log";
/// The file there that gets QEMU's complaints.
pub const QEMU_LOG: &str = "qemu.log";
/// How long Dom0 may take until it serves requests; TCG on a busy host is slow.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long the last listing and the shutdown may take, each.
const CLOSING_LIMIT: Duration = Duration::from_secs(10);
/// How long guests may take to power off once they were asked; a Linux with services to stop is
/// slow under TCG.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(30);
/// How often Dom0 is told the time: the machine's clock may drift against the host's.
const CLOCK_EVERY: Duration = Duration::from_secs(60);
/// How often other things than messages are looked at.
const TICK: Duration = Duration::from_millis(50);

/// Who is told what happens.
pub trait Observer {
    /// A message from Dom0.
    fn message(&mut self, message: &FromDom0);
    /// A line of the tool's own.
    fn say(&mut self, text: &str);
    /// Where long work shows how far it has come; nowhere unless there is a terminal or a log.
    fn progress(&self) -> Progress {
        Progress::default()
    }

    /// QEMU was started; this is its process.
    fn process(&mut self, _pid: u32) {}

    /// The machine was started; this is the socket that other terminals use, until the run
    /// is over.
    fn started(&mut self, _socket: &Path) {}
}

/// All that a run waits for.
#[derive(Debug)]
enum Input {
    /// From Dom0; None when the link is closed.
    Link(Option<FromDom0>),
    Client(FromClient),
}

impl From<FromClient> for Input {
    fn from(from: FromClient) -> Self {
        Self::Client(from)
    }
}

/// Limits of a run.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The run is stopped after this long.
    pub timeout: Option<Duration>,
    /// Times the user has asked to stop: once to shut down, twice to end at once.
    pub interrupts: Arc<AtomicU32>,
    /// Dom0 and the agents in guests are told the host's wall clock.
    pub tell_clock: bool,
}

/// What a run came to.
#[derive(Debug)]
pub struct Finished {
    pub stop: Stop,
    pub watch: Watch,
    pub elapsed: Duration,
    /// What the core printed.
    pub core_log: String,
    /// What QEMU complained about.
    pub qemu_errors: String,
}

/// A machine that runs. Dropping it ends QEMU.
struct Running<'a> {
    child: Child,
    link: Link,
    inbox: Receiver<Input>,
    link_is_open: bool,
    relay: Relay,
    next: u32,
    watch: Watch,
    started: Instant,
    /// How often Dom0 was told the time, and when last.
    clock_told: (usize, Instant),
    limits: &'a Limits,
    observer: &'a mut dyn Observer,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a machine until it is over, one way or another.
///
/// Holds: afterwards QEMU has ended. Call it from a thread that stays until then.
///
/// `start` starts QEMU; its second UART connects to the socket [`LINK`] of the session, and
/// the fast lane's memory is the file [`LANE`] there.
///
/// # Errors
/// If QEMU or a socket cannot be started; nothing runs then.
pub fn run(
    session: &Session,
    start: impl FnOnce() -> io::Result<Child>,
    watch: Watch,
    limits: &Limits,
    observer: &mut dyn Observer,
) -> io::Result<Finished> {
    let (give, inbox) = mpsc::channel();
    let with_agent = watch.domains.iter().filter(|d| d.spec.agent);
    let clock = limits.tell_clock.then_some(wallclock_ns as WallClock);
    let agents = Agents::new(with_agent.map(|d| d.spec.name.clone()), clock);
    let relay = Relay::listen(&session.control(), give.clone(), agents)?;
    let listener = UnixListener::bind(session.file(LINK))?;
    listener.set_nonblocking(true)?;
    let lane = Memory::create(&session.file(LANE))?;
    let started = Instant::now();
    let mut child = start()?;
    let take = move |m| give.send(Input::Link(m)).is_ok();
    let (stop, watch) = match connect(&listener, &mut child, &limits.interrupts, lane, take) {
        Ok(Ok(link)) => {
            observer.process(child.id());
            observer.started(&session.control());
            let mut running = Running {
                child,
                link,
                inbox,
                link_is_open: true,
                relay,
                next: 0,
                watch,
                started,
                clock_told: (0, started),
                limits,
                observer,
            };
            let stop = running.serve();
            let stop = running.close(stop);
            (stop, std::mem::replace(&mut running.watch, Watch::new(&[])))
        }
        Ok(Err(stop)) => {
            end(&mut child);
            (stop, watch)
        }
        Err(error) => {
            end(&mut child);
            return Err(error);
        }
    };
    let text = |name| {
        let bytes = fs::read(session.file(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(Finished {
        stop,
        watch,
        elapsed: started.elapsed(),
        core_log: text(CORE_LOG),
        qemu_errors: text(QEMU_LOG),
    })
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits for QEMU to connect the second UART, or to leave. The listener must not block.
/// `take` gets what Dom0 says; see [`Link::open`].
pub(crate) fn connect(
    listener: &UnixListener,
    child: &mut Child,
    interrupts: &AtomicU32,
    lane: Memory,
    take: impl FnMut(Option<FromDom0>) -> bool + Send + 'static,
) -> io::Result<Result<Link, Stop>> {
    let deadline = Instant::now() + BOOT_LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Link::open(stream, Some(lane), take).map(Ok);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        if let Some(status) = child.try_wait()? {
            return Ok(Err(Stop::Machine(Ended::from_status(status))));
        }
        if interrupts.load(Ordering::Relaxed) > 0 {
            return Ok(Err(Stop::Interrupted));
        }
        if Instant::now() > deadline {
            return Ok(Err(Stop::Machine(Ended::Unasked(None))));
        }
        std::thread::sleep(TICK / 5);
    }
}

impl Running<'_> {
    /// Passes messages until there is a reason to stop.
    fn serve(&mut self) -> Stop {
        loop {
            let is_telling = self.limits.tell_clock && self.clock_told.0 < CLOCK_TELLS;
            self.receive(Instant::now() + if is_telling { TICK / 5 } else { TICK });
            self.relay.accept();
            self.tell_clock();
            if let Some(stop) = self.reason_to_stop() {
                return stop;
            }
        }
    }

    fn reason_to_stop(&mut self) -> Option<Stop> {
        let elapsed = self.started.elapsed();
        if let Ok(Some(status)) = self.child.try_wait() {
            self.drain();
            return Some(Stop::Machine(Ended::from_status(status)));
        }
        if self.limits.interrupts.load(Ordering::Relaxed) > 0 {
            return Some(Stop::Interrupted);
        }
        if let Some(stop) = self.watch.stop(elapsed) {
            return Some(stop);
        }
        if self.limits.timeout.is_some_and(|limit| elapsed >= limit) {
            return Some(Stop::Timeout);
        }
        (!self.watch.ready && elapsed > BOOT_LIMIT).then_some(Stop::NoDom0)
    }

    /// Takes what comes until a deadline, and what is there already.
    fn receive(&mut self, deadline: Instant) {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(input) => self.take(input),
                Err(_) => return,
            }
            if left.is_zero() {
                return;
            }
        }
    }

    /// What QEMU had still sent when it left.
    fn drain(&mut self) {
        while self.link_is_open
            && let Ok(input) = self.inbox.recv_timeout(TICK)
        {
            self.take(input);
        }
    }

    fn tell_clock(&mut self) {
        let (tells, last) = self.clock_told;
        let is_due = tells < CLOCK_TELLS || last.elapsed() > CLOCK_EVERY;
        if self.limits.tell_clock && self.watch.ready && is_due {
            self.clock_told = (tells + 1, Instant::now());
            self.send(Request::SetWallClock { unix_ns: wallclock_ns() });
        }
    }

    fn take(&mut self, input: Input) {
        let requests = match input {
            Input::Link(Some(message)) => {
                // A link that broke shows as the end of the machine.
                let _ = self.link.flush();
                // A guest that does not listen for requests to power off is no news.
                let is_ours = self.watch.answers_power_off(&message);
                self.watch.take(&message, self.started.elapsed());
                let requests = self.relay.pass(&message, &mut self.next);
                if !is_ours {
                    self.observer.message(&message);
                }
                requests
            }
            Input::Link(None) => {
                self.link_is_open = false;
                Vec::new()
            }
            Input::Client(said) => self.relay.requests(said, &mut self.next),
        };
        for request in requests {
            // As above.
            let _ = self.link.send(&request);
        }
    }

    fn send(&mut self, request: Request) {
        self.next += 1;
        let _ = self.link.send(&ToDom0 { number: self.next, request });
    }

    /// Asks for the last listing and for the shutdown, and ends QEMU if that takes too long.
    fn close(&mut self, stop: Stop) -> Stop {
        if matches!(stop, Stop::Machine(_)) || !self.watch.ready {
            return stop;
        }
        if stop == Stop::Interrupted {
            self.power_guests_off();
        }
        self.watch.listing = None;
        self.send(Request::List);
        self.wait(CLOSING_LIMIT, |s| s.watch.listing.is_some());
        self.watch.closing = true;
        self.send(Request::Shutdown);
        let mut status = None;
        self.wait(CLOSING_LIMIT, |s| {
            status = s.child.try_wait().ok().flatten();
            status.is_some()
        });
        self.drain();
        match status.map(Ended::from_status) {
            Some(Ended::Properly) => stop,
            Some(ended) => Stop::Machine(ended),
            None if stop == Stop::Finished => Stop::NoShutdown,
            None => stop,
        }
    }

    /// Asks guests to power off, and waits for those that agree: a disk that was written
    /// is left in order.
    fn power_guests_off(&mut self) {
        for domain in self.watch.running_guests() {
            self.send(Request::PowerOff { domain: domain.clone() });
            self.watch.expect_power_off(self.next, domain);
        }
        self.wait(POWER_OFF_LIMIT, |s| !s.watch.is_powering_off());
        if self.watch.is_powering_off() {
            self.observer.say("a guest has not powered off in time, and is ended");
        }
    }

    /// Passes messages until `done`, for at most `limit`, or a second Ctrl-C.
    fn wait(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + limit;
        while !done(self) && Instant::now() < deadline {
            if self.limits.interrupts.load(Ordering::Relaxed) > 1 {
                return;
            }
            self.receive(Instant::now() + TICK);
        }
    }
}

#[cfg(test)]
mod tests;
