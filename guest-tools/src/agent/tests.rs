//! The agent with real commands, over a pair of sockets.

use super::*;
use bulkhead_link::agent::{End, INPUT_WINDOW, OUTPUT_WINDOW, Stream};
use clock::Reading;
use std::{
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

const LIMIT: Duration = Duration::from_secs(30);

/// Clocks that stand still, and the steps they were told to make.
#[derive(Clone, Default)]
struct Stopped(Arc<Mutex<Vec<i64>>>);

impl Clocks for Stopped {
    fn now(&self) -> Reading {
        let unix_ns = self.0.lock().expect("whole").iter().sum();
        Reading { monotonic_ns: 0, unix_ns }
    }

    fn step(&mut self, by_ns: i64) -> io::Result<()> {
        self.0.lock().expect("whole").push(by_ns);
        Err(Errno::PERM.into())
    }
}

/// The host tool's side.
struct Host {
    clocks: Stopped,
    line: UnixStream,
    encoder: Encoder,
    reader: Reader<FromAgent>,
    waiting: Vec<FromAgent>,
}

impl Host {
    /// An agent that has said Hello.
    fn new() -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(LIMIT)).expect("set");
        let clocks = Stopped::default();
        let theirs_too = Box::new(clocks.clone());
        thread::spawn(move || Agent::new(theirs.into(), theirs_too).serve());
        let (encoder, reader) = Default::default();
        let mut host = Self { clocks, line: ours, encoder, reader, waiting: Vec::new() };
        host.expect_hello(0);
        host
    }

    /// The next is Hello, and then a question for the time.
    fn expect_hello(&mut self, question: u32) {
        assert_eq!(self.receive(), FromAgent::Hello { version: VERSION });
        assert_eq!(self.receive(), FromAgent::ClockWanted { question });
    }

    fn send(&mut self, message: &ToAgent) {
        let bytes = self.encoder.encode(message);
        self.line.write_all(bytes).expect("the agent reads");
    }

    fn start(&mut self, id: u32, argv: &[&str], input: bool) {
        let argv = argv.iter().map(|a| a.as_bytes().to_vec()).collect();
        self.send(&ToAgent::Start { id, argv, input });
    }

    fn receive(&mut self) -> FromAgent {
        let mut bytes = [0; 4096];
        while self.waiting.is_empty() {
            let count = match self.line.read(&mut bytes) {
                // A read with a time limit is not restarted after a signal.
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                read => read.expect("the agent says something in time"),
            };
            assert!(count > 0, "the agent is there");
            let mut bytes = &bytes[..count];
            while let Some(found) = self.reader.next(&mut bytes) {
                self.waiting.push(found.expect("a sound frame"));
            }
        }
        self.waiting.remove(0)
    }

    /// What a command writes until it ends, taken as it comes.
    fn finish(&mut self, id: u32) -> (Vec<u8>, Vec<u8>, End) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.receive() {
                FromAgent::Output { id: of, stream, bytes } if of == id => {
                    self.send(&ToAgent::Taken { id, bytes: bytes.len() as u32 });
                    match stream {
                        Stream::Stdout => out.extend(bytes),
                        Stream::Stderr => err.extend(bytes),
                    }
                }
                FromAgent::Ended { id: of, end } if of == id => return (out, err, end),
                FromAgent::Taken { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_command_gives_its_output_its_errors_and_its_code() {
    let mut host = Host::new();
    host.start(7, &["sh", "-c", "echo out; echo err >&2; exit 3"], false);
    assert_eq!(host.finish(7), (b"out\n".to_vec(), b"err\n".to_vec(), End::Exited(3)));
    host.start(7, &["sh", "-c", "kill -9 $$"], false);
    assert_eq!(host.finish(7).2, End::Signalled(9));
}

#[test]
fn arguments_arrive_as_they_are() {
    let mut host = Host::new();
    host.start(1, &["printf", "%s|", "a b", "$HOME", "", "*", "\"'\\"], false);
    assert_eq!(host.finish(1).0, b"a b|$HOME||*|\"'\\|");
}

#[test]
fn what_cannot_be_started_is_refused_with_the_reason() {
    let mut host = Host::new();
    for (argv, errno) in [(vec!["/no/such/program"], 2), (vec!["/"], 13), (vec![], 0)] {
        host.start(1, &argv, false);
        match host.receive() {
            FromAgent::Refused { id: 1, errno: found, reason } => {
                assert_eq!(found, errno, "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_reader_that_takes_nothing_gets_a_window_and_later_all_of_it() {
    let mut host = Host::new();
    host.start(1, &["sh", "-c", "yes 0123456 | head -c 1000000"], false);
    let mut got = Vec::new();
    while got.len() < OUTPUT_WINDOW as usize {
        let FromAgent::Output { bytes, .. } = host.receive() else { panic!("output") };
        got.extend(bytes);
    }
    assert_eq!(got.len(), OUTPUT_WINDOW as usize);
    // Another command is not held up meanwhile, and nothing more comes of the first.
    host.start(2, &["echo", "hello"], false);
    assert_eq!(host.finish(2).0, b"hello\n");
    host.send(&ToAgent::Taken { id: 1, bytes: OUTPUT_WINDOW });
    let (rest, _, end) = host.finish(1);
    got.extend(rest);
    assert_eq!((got.len(), end), (1_000_000, End::Exited(0)));
    assert!(got.chunks(8).all(|line| line == b"0123456\n"));
}

#[test]
fn input_goes_in_as_it_is_taken_and_its_end_is_seen() {
    let mut host = Host::new();
    host.start(1, &["sh", "-c", "sleep 0.2; exec md5sum"], true);
    let (mut sent, mut room) = (0, INPUT_WINDOW);
    while sent < 200_000 {
        while room < 1000 {
            let FromAgent::Taken { id: 1, bytes } = host.receive() else { panic!("room") };
            room += bytes;
        }
        host.send(&ToAgent::Input { id: 1, bytes: vec![b'x'; 1000] });
        (sent, room) = (sent + 1000, room - 1000);
    }
    host.send(&ToAgent::InputEnd { id: 1 });
    // From `head -c 200000 /dev/zero | tr '\0' x | md5sum`.
    assert_eq!(host.finish(1).0, b"4b98146705d4b0b98b758a78ff6fb73f  -\n");
}

#[test]
fn a_command_that_does_not_read_takes_its_input_all_the_same() {
    let mut host = Host::new();
    host.start(1, &["sh", "-c", "exec 0<&-; sleep 0.3"], true);
    for _ in 0..INPUT_WINDOW / 4096 {
        host.send(&ToAgent::Input { id: 1, bytes: vec![0; 4096] });
    }
    assert_eq!(host.finish(1).2, End::Exited(0));
}

#[test]
fn a_signal_reaches_all_that_the_command_started() {
    let mut host = Host::new();
    host.start(1, &["sh", "-c", "sh -c 'sleep 100; echo no'; echo no"], false);
    host.send(&ToAgent::Signal { id: 1, signal: 15 });
    assert_eq!(host.finish(1), (Vec::new(), Vec::new(), End::Signalled(15)));
}

#[test]
fn what_a_command_leaves_behind_does_not_keep_it() {
    let mut host = Host::new();
    let since = Instant::now();
    host.start(1, &["sh", "-c", "sleep 20 & echo $!"], false);
    let (out, _, end) = host.finish(1);
    assert_eq!(end, End::Exited(0));
    assert!(since.elapsed() < Duration::from_secs(15));
    let pid: i32 = String::from_utf8_lossy(&out).trim().parse().expect("a number");
    let pid = rustix::process::Pid::from_raw(pid).expect("a process");
    rustix::process::kill_process(pid, Signal::KILL).expect("it still runs");
}

#[test]
fn noise_on_the_line_kills_what_runs_and_the_agent_begins_anew() {
    let mut host = Host::new();
    let dir = std::env::temp_dir().join(format!("agent-{}", std::process::id()));
    let script = format!("echo $$ > {}; echo up; exec sleep 100", dir.display());
    host.start(1, &["sh", "-c", &script], false);
    assert!(matches!(host.receive(), FromAgent::Output { .. }));
    host.line.write_all(b"\0hello?\0").expect("written");
    host.expect_hello(1);
    // Noise is no news until something that makes sense has come.
    host.line.write_all(b"\0hello?\0").expect("written");
    host.encoder = Encoder::default();
    host.start(1, &["echo", "again"], false);
    assert_eq!(host.finish(1).0, b"again\n");
    let pid = std::fs::read_to_string(&dir).expect("written");
    std::fs::remove_file(&dir).expect("removed");
    let deadline = Instant::now() + LIMIT;
    while std::path::Path::new("/proc").join(pid.trim()).exists() {
        assert!(Instant::now() < deadline, "{pid} was killed and reaped");
        thread::yield_now();
    }
}

#[test]
fn more_commands_than_there_is_room_for_are_refused() {
    let mut host = Host::new();
    for id in 0..MOST_COMMANDS as u32 {
        host.start(id, &["cat"], true);
    }
    host.start(99, &["true"], false);
    assert!(matches!(host.receive(), FromAgent::Refused { id: 99, errno: 0, .. }));
    host.send(&ToAgent::InputEnd { id: 0 });
    assert_eq!(host.finish(0).2, End::Exited(0));
    host.start(99, &["true"], false);
    assert_eq!(host.finish(99).2, End::Exited(0));
}

#[test]
fn the_clock_is_stepped_once_after_each_hello_and_may_refuse() {
    let mut host = Host::new();
    for question in [0, 1] {
        let unix_ns = 5_000_000_000 * u64::from(question + 1);
        for _ in 0..2 {
            host.send(&ToAgent::Clock { question, unix_ns });
        }
        host.send(&ToAgent::Clock { question: 77, unix_ns: 1 });
        host.send(&ToAgent::Reset);
        host.expect_hello(question + 1);
        host.encoder = Encoder::default();
    }
    assert_eq!(*host.clocks.0.lock().expect("whole"), [5_000_000_000, 5_000_000_000]);
}
