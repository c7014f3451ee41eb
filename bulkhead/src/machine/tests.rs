//! Runs against a made-up machine: a shell for QEMU, and Dom0 played by a thread.

use super::*;
use crate::{
    watch::Outcome,
    wire::{self, Sender},
};
use bulkhead_link::{DomainSpec, Event, Exit, Kind, Listing, Reply, Sched};
use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

struct Recorder(Vec<FromDom0>);

impl Observer for Recorder {
    fn message(&mut self, message: &FromDom0) {
        self.0.push(message.clone());
    }
    fn say(&mut self, _: &str) {}
}

/// A process that waits for a file and ends with the code in it.
fn shell(end: &Path) -> io::Result<Child> {
    let script = "while ! [ -s \"$0\" ]; do sleep 0.02; done; exit $(cat \"$0\")";
    Command::new("sh").args(["-c", script]).arg(end).spawn()
}

fn guest() -> DomainSpec {
    DomainSpec {
        name: "g".into(),
        uuid: [0; 16],
        kind: Kind::Guest,
        kernel: 0,
        ramdisk: None,
        cmdline: String::new(),
        memory_kib: 1024,
        vcpus: 1,
        sched: Sched::default(),
        devices: Vec::new(),
        disks: Vec::new(),
        on_reboot: Default::default(),
        care: Default::default(),
        agent: false,
    }
}

fn ended(exit: Exit) -> Event {
    Event::Ended { domain: "g".into(), exit, reason: String::new() }
}

/// Plays Dom0: tells `events` once it is up, answers requests, and on `Shutdown` ends
/// the shell with `code`.
fn dom0(socket: PathBuf, end: PathBuf, events: Vec<Event>, code: Option<u8>) {
    let stream = (0..500)
        .find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            UnixStream::connect(&socket).ok()
        })
        .expect("the tool listens");
    let sender = Arc::new(Mutex::new(None::<Sender>));
    let answer = Arc::clone(&sender);
    let mut told = sender.lock().expect("a lock");
    let take = move |message: Option<ToDom0>| {
        let Some(ToDom0 { number, request }) = message else {
            return false;
        };
        let reply = match &request {
            Request::List => Reply::List(Listing::default()),
            Request::Shutdown => {
                if let Some(code) = code {
                    fs::write(&end, code.to_string()).expect("written");
                }
                return true;
            }
            _ => Reply::Done,
        };
        let powers_off = matches!(request, Request::PowerOff { .. });
        let mut sender = answer.lock().expect("a lock");
        sender.as_mut().is_some_and(|s| {
            s.send(&FromDom0::Reply { number, reply }).expect("sent");
            // It takes a while to power off.
            !powers_off || s.send(&FromDom0::Event(ended(Exit::PowerOff))).is_ok()
        })
    };
    let mut link = wire::split(stream, take).expect("splits");
    for event in events {
        link.send(&FromDom0::Event(event)).expect("sent");
    }
    *told = Some(link);
}

/// Runs a machine whose Dom0 tells `events`; gives what came of it.
fn play(
    events: Vec<Event>,
    code: Option<u8>,
    limits: &Limits,
) -> (Finished, Outcome, Vec<FromDom0>) {
    let session = Session::create("test.toml").expect("a session");
    let (socket, end) = (session.file(LINK), session.file("end"));
    let file = end.clone();
    let thread = std::thread::spawn(move || dom0(socket, file, events, code));
    let mut seen = Recorder(Vec::new());
    let watch = Watch::new(&[guest()]);
    let finished = run(&session, || shell(&end), watch, limits, &mut seen).expect("runs");
    thread.join().expect("Dom0 did its part");
    let outcome = finished.watch.judge(&finished.stop);
    (finished, outcome, seen.0)
}

const READY: Event = Event::Ready { version: bulkhead_link::VERSION };

#[test]
fn a_run_that_goes_well_ends_with_a_listing_and_a_shutdown() {
    let (finished, outcome, seen) =
        play(vec![READY, ended(Exit::PowerOff)], Some(0x21), &Limits::default());
    assert_eq!((finished.stop, outcome), (Stop::Finished, Outcome::Ok));
    assert!(finished.watch.listing.is_some());
    assert_eq!(seen[..2], [FromDom0::Event(READY), FromDom0::Event(ended(Exit::PowerOff))]);
}

#[test]
fn a_core_that_faults_while_shutting_down_is_a_core_fault() {
    let (finished, outcome, _) =
        play(vec![READY, ended(Exit::PowerOff)], Some(0x43), &Limits::default());
    assert_eq!(finished.stop, Stop::Machine(Ended::CoreFault));
    assert_eq!(outcome, Outcome::CoreFault);
}

#[test]
fn a_guest_that_never_ends_is_stopped_by_the_timeout() {
    let limits = Limits { timeout: Some(Duration::from_millis(400)), ..Limits::default() };
    let (finished, outcome, _) = play(vec![READY], Some(0x21), &limits);
    assert_eq!((finished.stop, outcome), (Stop::Timeout, Outcome::Timeout));
    assert!(finished.watch.listing.is_some(), "what it did so far is still reported");
}

#[test]
fn an_interrupt_first_asks_guests_to_power_off() {
    let limits = Limits::default();
    let interrupts = Arc::clone(&limits.interrupts);
    let event = Event::Progress { domain: "g".into(), step: "running".into() };
    let interrupter = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(600));
        interrupts.store(1, Ordering::Relaxed);
    });
    let (finished, outcome, _) = play(vec![READY, event], Some(0x21), &limits);
    interrupter.join().expect("interrupted");
    assert_eq!((finished.stop, outcome), (Stop::Interrupted, Outcome::Interrupted));
    assert_eq!(finished.watch.domains[0].exit, Some(Exit::PowerOff));
}

#[test]
fn two_interrupts_end_a_machine_that_does_not_listen() {
    let limits = Limits::default();
    limits.interrupts.store(2, Ordering::Relaxed);
    let begun = Instant::now();
    let session = Session::create("test.toml").expect("a session");
    let end = session.file("end");
    let mut seen = Recorder(Vec::new());
    let finished =
        run(&session, || shell(&end), Watch::new(&[guest()]), &limits, &mut seen).expect("runs");
    assert_eq!(finished.stop, Stop::Interrupted);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_machine_that_leaves_before_it_speaks_is_told_by_its_exit_code() {
    let session = Session::create("test.toml").expect("a session");
    let mut seen = Recorder(Vec::new());
    let fault = || Command::new("sh").args(["-c", "exit 67"]).spawn();
    let watch = Watch::new(&[guest()]);
    let finished = run(&session, fault, watch, &Limits::default(), &mut seen).expect("runs");
    assert_eq!(finished.stop, Stop::Machine(Ended::CoreFault));
}
