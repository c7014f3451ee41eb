//! The verbs as a person uses them: the tool as a process of its own, with signals and
//! with a terminal. What is waited for is looked at until it is there.

mod common;

use bulkhead::artifacts::workspace;
use common::{ECHO, wait};
use nix::{
    pty::openpty,
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, OnceLock},
    thread,
};

/// The tool, as `cargo bulkhead` builds it.
fn tool() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--release", "--package", "bulkhead"])
            .arg("--message-format=json-render-diagnostics")
            .current_dir(workspace())
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo runs");
        assert!(built.status.success(), "the tool is built");
        let messages = String::from_utf8_lossy(&built.stdout).into_owned();
        let messages = messages.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        let mut made = messages.filter(|m| m["target"]["name"] == "bulkhead");
        let path = made.find_map(|m| m["executable"].as_str().map(PathBuf::from));
        path.expect("cargo names the tool")
    })
}

/// A user of their own: a folder with a set-up, and no machine but those started in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("x.toml"), ECHO).expect("written");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(tool());
        command.current_dir(self.path()).env("XDG_RUNTIME_DIR", self.path()).args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the tool runs")
    }

    /// Starts a run; its output goes to the files `out` and `err`.
    fn start(&self, more: &[&str]) -> Run<'_> {
        let file = |name| File::create(self.path().join(name)).expect("made");
        let child = self
            .command(&[&["run", "x.toml", "--accel", "tcg", "--timeout", "300"], more].concat())
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .expect("the tool runs");
        Run { place: self, child }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }

    /// Folders of runs that are there.
    fn runs(&self) -> usize {
        fs::read_dir(self.path().join("bulkhead")).map_or(0, Iterator::count)
    }
}

/// A run of the tool; ended when dropped.
struct Run<'a> {
    place: &'a Place,
    child: Child,
}

impl Run<'_> {
    fn wait_until_ready(&mut self) {
        let ready = wait(|| {
            let over = self.child.try_wait().expect("a child").is_some();
            let printed = ["out", "err"].map(|name| self.place.text(name)).concat();
            (over || printed.contains("echo: ready")).then_some(!over)
        });
        assert_eq!(ready, Some(true), "{}", self.place.text("err"));
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("sent");
    }

    fn exit_code(&mut self) -> Option<i32> {
        let status = wait(|| self.child.try_wait().expect("a child")).expect("the run ends");
        status.code()
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes whose command line names something in this folder.
fn processes_in(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&folder))
        .collect()
}

/// A process on a terminal of its own.
struct OnTerminal {
    child: Child,
    keys: File,
    /// Our handle of its side, which outlives it.
    side: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    fn start(mut command: Command) -> Self {
        let pty = openpty(None, None).expect("a terminal");
        let side = || Stdio::from(pty.slave.try_clone().expect("a handle"));
        let child = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("runs");
        // The command keeps handles of the slave's side, which would keep it open.
        drop(command);
        let keys = File::from(pty.master);
        let (mut screen, shown) = (keys.try_clone().expect("a handle"), Arc::default());
        let filled: Arc<Mutex<Vec<u8>>> = Arc::clone(&shown);
        thread::spawn(move || {
            let mut bytes = [0; 1024];
            // Ends with an error once no process has the other side.
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                filled.lock().expect("no panic").extend(&bytes[..count]);
            }
        });
        Self { child, keys, side: pty.slave, shown }
    }

    /// Whether keys go through as they are pressed.
    fn is_raw(&self) -> bool {
        let settings = tcgetattr(&self.side).expect("a terminal");
        !settings.local_flags.contains(LocalFlags::ICANON)
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("no panic")).into_owned()
    }

    fn wait_for(&self, text: &str) {
        let seen = wait(|| self.screen().contains(text).then_some(()));
        assert!(seen.is_some(), "{text:?} should be in:\n{}", self.screen());
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).expect("typed");
    }

    fn exit_code(&mut self) -> Option<i32> {
        let status = wait(|| self.child.try_wait().expect("a child")).expect("it ends");
        status.code()
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_console_is_joined_typed_at_and_left_and_the_run_goes_on() {
    let place = Place::new();
    let mut run = place.start(&["--json"]);
    run.wait_until_ready();
    let mut terminal = OnTerminal::start(place.command(&["console", "echo"]));
    terminal.wait_for("Ctrl-] leaves");
    terminal.wait_for("echo: ready");
    terminal.press(b"one two\r");
    terminal.wait_for("echo: one two");
    // Ctrl-C is the guest's, not the tool's.
    terminal.press(b"\x03three\r");
    terminal.wait_for("three");
    terminal.press(b"\x1d");
    assert_eq!(terminal.exit_code(), Some(0), "{}", terminal.screen());
    assert!(run.child.try_wait().expect("a child").is_none(), "the run goes on");

    let mut again = OnTerminal::start(place.command(&["console", "echo"]));
    again.wait_for("echo: one two");
    again.press(b"end\r");
    again.wait_for("echo has ended");
    assert_eq!(again.exit_code(), Some(0));
    assert_eq!(run.exit_code(), Some(0), "{}", place.text("err"));
    one_object(&place.text("out"));
}

#[test]
fn the_terminal_of_a_run_is_its_guests_until_detached_and_is_put_back() {
    let place = Place::new();
    let setup = format!("{ECHO}console = true\n");
    fs::write(place.path().join("x.toml"), setup).expect("written");
    let arguments = ["run", "x.toml", "--accel", "tcg", "--timeout", "300"];
    let mut run = OnTerminal::start(place.command(&arguments));
    let before = run.is_raw();
    run.wait_for("Ctrl-] detaches");
    run.wait_for("echo: ready");
    assert!(!before && run.is_raw());
    run.press(b"one two\r");
    run.wait_for("echo: one two");
    // Ctrl-C is the guest's, not the tool's.
    run.press(b"\x03three\r");
    run.wait_for("three");
    run.press(b"\x1d");
    run.wait_for("attaches again");
    assert!(!run.is_raw());
    assert!(run.child.try_wait().expect("a child").is_none(), "the run goes on");

    let mut again = OnTerminal::start(place.command(&["console", "echo"]));
    again.wait_for("echo: one two");
    again.press(b"end\r");
    again.wait_for("echo has ended");
    run.wait_for("ok after");
    assert_eq!((run.exit_code(), again.exit_code()), (Some(0), Some(0)));
    assert!(!run.is_raw() && !again.is_raw());
}

#[test]
fn a_signal_puts_the_terminal_back() {
    let place = Place::new();
    let setup = format!("{ECHO}console = true\n");
    fs::write(place.path().join("x.toml"), setup).expect("written");
    let arguments = ["run", "x.toml", "--accel", "tcg", "--timeout", "300"];
    let mut run = OnTerminal::start(place.command(&arguments));
    run.wait_for("echo: ready");
    assert!(run.is_raw());
    kill(Pid::from_raw(run.child.id() as i32), Signal::SIGTERM).expect("sent");
    assert_eq!(run.exit_code(), Some(130), "{}", run.screen());
    assert!(!run.is_raw());
}

#[test]
fn what_is_piped_into_a_run_is_typed_at_its_guest_and_the_output_is_bare() {
    let place = Place::new();
    let setup = format!("{ECHO}console = true\n");
    fs::write(place.path().join("x.toml"), setup).expect("written");
    // More than Dom0 keeps of what is typed.
    let lines: Vec<_> = (0..600).map(|n| format!("line number {n}\n")).collect();
    let script = place.path().join("script");
    fs::write(&script, lines.concat() + "end\n").expect("written");
    let out = place
        .command(&["run", "x.toml", "--accel", "tcg", "--timeout", "300"])
        .stdin(File::open(&script).expect("opens"))
        .output()
        .expect("the tool runs");
    let (told, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(0), "{why}");
    let said = told.lines().filter_map(|line| line.trim().strip_prefix("echo: line number "));
    let said: Vec<_> = said.collect();
    let expected: Vec<_> = (0..600).map(|n: u32| n.to_string()).collect();
    assert_eq!(said, expected, "{told}");
}

#[test]
fn a_command_for_a_guest_without_an_agent_is_refused_with_the_reason() {
    let place = Place::new();
    let mut run = place.start(&[]);
    run.wait_until_ready();
    for (guest, reason) in [("echo", "echo has no agent"), ("ehco", "did you mean `echo`?")] {
        let out = place.output(&["exec", guest, "--", "true"]);
        let told = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2));
        assert!(told.contains(reason), "{told}");
    }
    run.signal(Signal::SIGINT);
    assert_eq!(run.exit_code(), Some(130));
}

/// The standard output of `run --json` is one object and nothing else.
fn one_object(out: &str) {
    let told: Value = serde_json::from_str(out).unwrap_or_else(|e| panic!("{e}\n{out}"));
    assert_eq!(told["outcome"], "ok", "{told:#}");
    assert!(told["domains"].as_array().is_some_and(|d| d.len() == 3), "{told:#}");
}

#[test]
fn a_console_of_a_domain_that_is_not_there_is_refused_with_a_hint() {
    let place = Place::new();
    let mut run = place.start(&[]);
    run.wait_until_ready();
    let out = place.output(&["console", "ehco"]);
    assert_eq!(out.status.code(), Some(2));
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(told.contains("no domain `ehco`") && told.contains("did you mean `echo`?"), "{told}");
    let out = place.output(&["kill", "echo"]);
    assert_eq!(out.status.code(), Some(0));
    assert_eq!(run.exit_code(), Some(1), "a killed guest is a failed one");
}

#[test]
fn an_interrupt_ends_the_machine_and_leaves_nothing_behind() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let place = Place::new();
        let mut run = place.start(&[]);
        run.wait_until_ready();
        let machines = processes_in(place.path());
        assert!(machines.iter().any(|line| line.contains("qemu-system-x86_64")), "{machines:?}");
        assert_eq!(place.runs(), 1);
        run.signal(signal);
        assert_eq!(run.exit_code(), Some(130), "{}", place.text("err"));
        assert_eq!(processes_in(place.path()), [""; 0]);
        assert_eq!(place.runs(), 0);
        assert!(place.text("err").contains("interrupted"), "{}", place.text("err"));
    }
}

#[test]
fn two_interrupts_end_the_machine_at_once() {
    let place = Place::new();
    let mut run = place.start(&[]);
    run.wait_until_ready();
    run.signal(Signal::SIGINT);
    wait(|| place.text("err").contains("once more to end").then_some(())).expect("told so");
    run.signal(Signal::SIGINT);
    assert_eq!(run.exit_code(), Some(130), "{}", place.text("err"));
    assert_eq!((processes_in(place.path()), place.runs()), (Vec::new(), 0));
}

#[test]
fn a_tool_that_is_killed_takes_its_machine_along() {
    let place = Place::new();
    let mut run = place.start(&[]);
    run.wait_until_ready();
    run.signal(Signal::SIGKILL);
    assert_eq!(run.exit_code(), None);
    let gone = wait(|| processes_in(place.path()).is_empty().then_some(()));
    assert!(gone.is_some(), "{:?}", processes_in(place.path()));
    let out = place.output(&["list", "--json"]);
    let told: Value = serde_json::from_slice(&out.stdout).expect("one object");
    assert_eq!(told["runs"].as_array().map(Vec::len), Some(0));
    assert_eq!(place.runs(), 0, "the folder it left is cleared away");
}

#[test]
fn an_image_in_use_is_refused_to_a_second_run_and_the_first_goes_on() {
    let place = Place::new();
    let mut run = place.start(&[]);
    run.wait_until_ready();
    let out = place.output(&["run", "x.toml", "--json"]);
    assert_eq!(out.status.code(), Some(2));
    let told: Value = serde_json::from_slice(&out.stdout).expect("one object");
    assert_eq!(told["outcome"], "bad-request");
    let error = told["error"].as_str().expect("text");
    assert!(error.contains("scratch.raw is in use by another machine"), "{error}");
    assert!(told["help"].as_str().is_some_and(|h| h.contains("bulkhead list")), "{told}");
    let listed = place.output(&["list"]);
    assert_eq!(listed.status.code(), Some(0));
    let table = String::from_utf8_lossy(&listed.stdout);
    assert!(table.contains("echo") && table.contains("running"), "{table}");
    run.signal(Signal::SIGINT);
    assert_eq!(run.exit_code(), Some(130));
}

#[test]
fn a_list_without_a_machine_is_empty_and_no_failure() {
    let place = Place::new();
    let out = place.output(&["list"]);
    assert_eq!((out.status.code(), out.stdout.len()), (Some(0), 0));
    assert!(String::from_utf8_lossy(&out.stderr).contains("no machine is running"));
}
