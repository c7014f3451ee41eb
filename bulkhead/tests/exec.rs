//! `exec` from end to end without a machine: the real client, the real relay and the real
//! agent, which runs its commands on this host. Only the link and Dom0 between the relay
//! and the agent are played.

use bulkhead::{
    agents::Agents,
    exec::{self, Collected, Command, Finished},
    relay::{FromClient, Relay},
    remote::RemoteError,
};
use bulkhead_link::{
    Event, Exit, FromDom0, Request,
    agent::{End, OUTPUT_WINDOW},
};
use guest_tools::agent::{
    Agent,
    clock::{Clocks, Reading},
};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(60);

/// A run with a guest `g` that has a second console, and a guest `h` that has none.
struct Run {
    folder: tempfile::TempDir,
    tell: mpsc::Sender<Got>,
}

enum Got {
    Client(FromClient),
    Dom0(Event),
    /// The guest's end of the line.
    Line(UnixStream),
    End,
}

impl From<FromClient> for Got {
    fn from(from: FromClient) -> Self {
        Self::Client(from)
    }
}

/// Nobody answers the agent's questions for the time here, and nothing may set this system's.
struct NoClocks;

impl Clocks for NoClocks {
    fn now(&self) -> Reading {
        Reading { monotonic_ns: 0, unix_ns: 0 }
    }

    fn step(&mut self, _: i64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

impl Run {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (tell, inbox) = mpsc::channel();
        let agents = Agents::new(["g".to_owned()], None);
        let relay = Relay::listen(&folder.path().join("s"), tell.clone(), agents).expect("listens");
        thread::spawn(move || serve(relay, &inbox));
        Self { folder, tell }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn say(&self, got: Got) {
        self.tell.send(got).unwrap_or_else(|_| panic!("the run goes on"));
    }

    /// Starts the agent of `g`.
    fn start_agent(&self) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        thread::spawn(move || Agent::new(theirs.into(), Box::new(NoClocks)).serve());
        let (mut line, tell) = (ours.try_clone().expect("a handle"), self.tell.clone());
        self.say(Got::Line(ours));
        thread::spawn(move || {
            let mut bytes = [0; 2048];
            while let Ok(count @ 1..) = line.read(&mut bytes) {
                let event = Event::Agent { domain: "g".into(), bytes: bytes[..count].to_vec() };
                if tell.send(Got::Dom0(event)).is_err() {
                    return;
                }
            }
        });
    }

    fn exec(&self, command: Command) -> (Collected, Result<Finished, RemoteError>) {
        let mut sink = Collected::default();
        let finished = exec::exec(&self.socket(), "g", command, &AtomicU32::new(0), &mut sink);
        (sink, finished)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.tell.send(Got::End);
    }
}

/// Plays the run and Dom0.
fn serve(mut relay: Relay, inbox: &mpsc::Receiver<Got>) {
    let (mut next, mut line) = (0, None);
    loop {
        relay.accept();
        let requests = match inbox.recv_timeout(Duration::from_millis(5)) {
            Ok(Got::Client(said)) => relay.requests(said, &mut next),
            Ok(Got::Dom0(event)) => relay.pass(&FromDom0::Event(event), &mut next),
            Ok(Got::Line(stream)) => {
                line = Some(stream);
                continue;
            }
            Ok(Got::End) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => continue,
        };
        for request in requests {
            let Request::AgentInput { bytes, .. } = request.request else { continue };
            line.as_mut().map(|line: &mut UnixStream| line.write_all(&bytes));
        }
    }
}

fn ended(code: u8) -> Finished {
    Finished::Ended(End::Exited(code))
}

fn shell(script: &str) -> Command {
    Command::new(["sh", "-c", script])
}

#[test]
fn a_command_has_its_output_its_errors_its_code_and_its_input() {
    let run = Run::new();
    run.start_agent();
    let command = shell("tr a-z A-Z; echo oops >&2; exit 5").input("hello\n");
    let (wrote, finished) = run.exec(command);
    assert_eq!(finished.expect("it ran"), ended(5));
    assert_eq!((&*wrote.stdout, &*wrote.stderr), (&b"HELLO\n"[..], &b"oops\n"[..]));
    let (_, finished) = run.exec(Command::new(["/no/such/program"]));
    assert_eq!(finished.expect("it was refused").code(), 127);
    let (_, finished) = run.exec(shell("kill -9 $$"));
    assert_eq!(finished.expect("it ran").code(), 137);
}

#[test]
fn megabytes_go_through_both_ways_and_nothing_is_lost() {
    let run = Run::new();
    run.start_agent();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    let (wrote, finished) = run.exec(Command::new(["cat"]).input(bytes.clone()));
    assert_eq!(finished.expect("it ran"), ended(0));
    assert!(wrote.stdout == bytes, "{} bytes came back", wrote.stdout.len());
}

#[test]
fn commands_that_run_at_once_do_not_mix() {
    let run = Run::new();
    run.start_agent();
    thread::scope(|scope| {
        for number in 0..8 {
            let run = &run;
            scope.spawn(move || {
                let script = format!("yes {number} | head -c 200000; exit {number}");
                let (wrote, finished) = run.exec(shell(&script));
                assert_eq!(finished.expect("it ran"), ended(number));
                let line = format!("{number}\n");
                assert!(wrote.stdout.chunks(2).all(|c| c == line.as_bytes()));
                assert_eq!(wrote.stdout.len(), 200_000);
            });
        }
    });
}

#[test]
fn an_agent_that_is_not_up_yet_is_waited_for() {
    let run = Run::new();
    thread::scope(|scope| {
        let asked = scope.spawn(|| run.exec(Command::new(["true"])));
        thread::sleep(Duration::from_millis(100));
        run.start_agent();
        assert_eq!(asked.join().expect("no panic").1.expect("it ran"), ended(0));
    });
}

#[test]
fn a_guest_whose_agent_will_not_come_is_told_of() {
    let run = Run::new();
    let command = Command { wait: Duration::from_millis(100), ..Command::new(["true"]) };
    let error = run.exec(command).1.expect_err("nobody is there");
    assert!(error.to_string().contains("the agent of g was not heard of"), "{error}");
    let mut sink = Collected::default();
    let (socket, none) = (run.socket(), AtomicU32::new(0));
    let other = exec::exec(&socket, "h", Command::new(["true"]), &none, &mut sink);
    let error = other.expect_err("it has none").to_string();
    assert!(error.contains("h has no agent"), "{error}");
}

#[test]
fn a_guest_that_ends_takes_its_commands_along() {
    let run = Run::new();
    run.start_agent();
    thread::scope(|scope| {
        let asked = scope.spawn(|| run.exec(shell("echo up; sleep 1000")));
        thread::sleep(Duration::from_millis(200));
        let (domain, exit, reason) = ("g".into(), Exit::Crash, String::new());
        run.say(Got::Dom0(Event::Ended { domain, exit, reason }));
        let error = asked.join().expect("no panic").1.expect_err("it is lost").to_string();
        assert!(error.contains("the guest has ended"), "{error}");
    });
}

#[test]
fn time_that_is_over_ends_a_command_even_one_that_will_not_listen() {
    let run = Run::new();
    run.start_agent();
    let limit = Some(Duration::from_millis(300));
    for script in ["sleep 1000", "trap '' TERM; while :; do sleep 0.1; done"] {
        let (_, finished) = run.exec(Command { timeout: limit, ..shell(script) });
        assert_eq!(finished.expect("it ran"), Finished::TimedOut, "{script}");
    }
}

/// Whether a process is there, until it is as it should be.
fn wait_until_gone(pid: &str) {
    let deadline = Instant::now() + LIMIT;
    while std::path::Path::new("/proc").join(pid).exists() {
        assert!(Instant::now() < deadline, "process {pid} is killed");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Interrupts as soon as the command has written something.
struct Impatient<'a> {
    got: Vec<u8>,
    interrupts: &'a AtomicU32,
}

impl exec::Sink for Impatient<'_> {
    fn output(&mut self, _: bulkhead_link::agent::Stream, bytes: &[u8]) -> std::io::Result<()> {
        self.got.extend(bytes);
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn say(&mut self, _: &str) {}
}

#[test]
fn an_interrupt_is_the_commands_and_two_leave_it_dead() {
    let run = Run::new();
    run.start_agent();
    let interrupts = AtomicU32::new(0);
    let mut sink = Impatient { got: Vec::new(), interrupts: &interrupts };
    let command = shell("trap 'exit 9' INT; echo up; while :; do sleep 0.1; done");
    let finished = exec::exec(&run.socket(), "g", command, &interrupts, &mut sink);
    assert_eq!(finished.expect("it ran"), ended(9));

    interrupts.store(0, Ordering::Relaxed);
    let mut sink = Impatient { got: Vec::new(), interrupts: &interrupts };
    let command = shell("trap 'echo no' INT; echo $$; while :; do sleep 0.1; done");
    let finished = exec::exec(&run.socket(), "g", command, &interrupts, &mut sink);
    assert_eq!(finished.expect("it ran"), Finished::Interrupted);
    let text = String::from_utf8(sink.got).expect("text");
    wait_until_gone(text.lines().next().expect("its number"));
}

/// Takes nothing more after the first bytes.
struct Closed(Vec<u8>);

impl exec::Sink for Closed {
    fn output(&mut self, _: bulkhead_link::agent::Stream, bytes: &[u8]) -> std::io::Result<()> {
        self.0.extend(bytes);
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
    fn say(&mut self, _: &str) {}
}

#[test]
fn a_reader_that_leaves_kills_the_command_and_frees_its_place() {
    let run = Run::new();
    run.start_agent();
    for _ in 0..20 {
        let mut sink = Closed(Vec::new());
        let (socket, none) = (run.socket(), AtomicU32::new(0));
        let command = shell("echo $$; exec yes");
        let error = exec::exec(&socket, "g", command, &none, &mut sink).expect_err("closed");
        assert!(matches!(error, RemoteError::Io(_)), "{error}");
        assert!(sink.0.len() < OUTPUT_WINDOW as usize);
        let text = String::from_utf8(sink.0).expect("text");
        wait_until_gone(text.lines().next().expect("its number"));
    }
}
