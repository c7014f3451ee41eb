//! One command that runs: its pipes, its end, and how much of its output may leave.

use bulkhead_link::agent::{End, INPUT_WINDOW, OUTPUT_WINDOW, PIECE_BYTES, Stream};
use rustix::{
    event::{PollFd, PollFlags},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs, io,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt, process::ExitStatusExt},
    },
    path::Path,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
};

/// What commands find in their environment, and nothing else.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", HOME),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("TERM", "dumb"),
    ("LANG", "C.UTF-8"),
];
/// Where commands start, if it is there.
const HOME: &str = "/root";

/// A command and what is between it and the line.
pub struct Running {
    child: Child,
    group: Pid,
    /// Becomes readable when the child ends.
    ended: OwnedFd,
    stdin: Option<ChildStdin>,
    input: VecDeque<u8>,
    input_ends: bool,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    /// Bytes of output that may be sent.
    room: u32,
    end: Option<End>,
}

impl Running {
    /// Starts a command in a process group of its own.
    pub fn start(argv: &[Vec<u8>], has_input: bool) -> io::Result<Self> {
        let (program, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let home = if Path::new(HOME).is_dir() { HOME } else { "/" };
        let mut child = Command::new(OsStr::from_bytes(program))
            .args(arguments.iter().map(|a| OsStr::from_bytes(a)))
            .env_clear()
            .envs(ENVIRONMENT)
            .current_dir(home)
            .process_group(0)
            .stdin(if has_input { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        match Self::follow(&mut child) {
            Ok((group, ended)) => {
                // The agent's own is low, so that it outlives a shortage.
                let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0");
                Ok(Self {
                    group,
                    ended,
                    stdin: child.stdin.take(),
                    input: VecDeque::new(),
                    input_ends: false,
                    stdout: child.stdout.take(),
                    stderr: child.stderr.take(),
                    room: OUTPUT_WINDOW,
                    end: None,
                    child,
                })
            }
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e)
            }
        }
    }

    fn follow(child: &mut Child) -> io::Result<(Pid, OwnedFd)> {
        let pid = Pid::from_child(child);
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        if let Some(pipe) = &child.stdin {
            do_not_block(pipe)?;
        }
        if let Some(pipe) = &child.stdout {
            do_not_block(pipe)?;
        }
        if let Some(pipe) = &child.stderr {
            do_not_block(pipe)?;
        }
        Ok((pid, ended))
    }

    /// What is to be waited for.
    pub fn interests<'a>(&'a self, into: &mut Vec<PollFd<'a>>) {
        if self.end.is_none() {
            into.push(PollFd::new(&self.ended, PollFlags::IN));
        }
        if let Some(pipe) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            into.push(PollFd::new(pipe, PollFlags::OUT));
        }
        if self.room == 0 {
            return;
        }
        if let Some(pipe) = &self.stdout {
            into.push(PollFd::new(pipe, PollFlags::IN));
        }
        if let Some(pipe) = &self.stderr {
            into.push(PollFd::new(pipe, PollFlags::IN));
        }
    }

    /// Takes input for the command. `false` if that is more than the window holds.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        self.input.extend(bytes);
        self.input.len() <= INPUT_WINDOW as usize
    }

    /// No more input will come.
    pub fn end_input(&mut self) {
        self.input_ends = true;
    }

    /// So much output has arrived.
    pub fn give_room(&mut self, bytes: u32) {
        self.room = self.room.saturating_add(bytes).min(OUTPUT_WINDOW);
    }

    /// Writes what the command takes; gives the bytes that need no room any more.
    pub fn move_input(&mut self) -> u32 {
        let mut moved = 0;
        while let Some(pipe) = &mut self.stdin
            && !self.input.is_empty()
        {
            let (piece, _) = self.input.as_slices();
            match pipe.write(piece) {
                Ok(count) => {
                    self.input.drain(..count);
                    moved += count as u32;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // It does not want any more.
                Err(_) => self.stdin = None,
            }
        }
        if self.stdin.is_none() {
            moved += self.input.len() as u32;
            self.input.clear();
        }
        if self.input_ends && self.input.is_empty() {
            self.stdin = None;
        }
        moved
    }

    /// The next piece that the command wrote, as far as there is room.
    pub fn output(&mut self) -> Option<(Stream, Vec<u8>)> {
        if self.room == 0 {
            return None;
        }
        let most = PIECE_BYTES.min(self.room as usize);
        let found = read(&mut self.stdout, most)
            .map(|bytes| (Stream::Stdout, bytes))
            .or_else(|| read(&mut self.stderr, most).map(|bytes| (Stream::Stderr, bytes)));
        if let Some((_, bytes)) = &found {
            self.room -= bytes.len() as u32;
        }
        found
    }

    /// Whether it has ended. Ask before the last output is taken: what it wrote is in the
    /// pipes then.
    pub fn has_ended(&mut self) -> Option<End> {
        if self.end.is_none() {
            // An error means that somebody else reaped it; nothing more can be known.
            let status = self.child.try_wait().unwrap_or(Some(ExitStatus::from_raw(0xff00)));
            self.end = status.map(end_of);
        }
        self.end
    }

    /// Whether it has ended and only its last output and its end are to be told.
    pub fn is_to_be_told(&self) -> bool {
        self.end.is_some() && !self.is_held_back()
    }

    /// Kills it and lets go of its pipes; only its end is to be waited for.
    pub fn doom(&mut self) {
        self.signal(Signal::KILL);
        (self.stdin, self.stdout, self.stderr) = (None, None, None);
    }

    /// Whether output waits for room.
    pub fn is_held_back(&self) -> bool {
        self.room == 0
    }

    /// Sends a signal to the command and what it started. Once it has ended its number may
    /// be somebody else's.
    pub fn signal(&mut self, signal: Signal) {
        if self.has_ended().is_none() {
            // What could be refused here is only that nobody is left.
            let _ = kill_process_group(self.group, signal);
        }
    }
}

fn do_not_block(pipe: &impl AsFd) -> Result<(), Errno> {
    fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)
}

/// Reads up to `most` bytes; `None` if there are none now. A pipe at its end is closed.
fn read<R: Read>(pipe: &mut Option<R>, most: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; most];
    loop {
        match pipe.as_mut()?.read(&mut bytes) {
            Ok(0) => *pipe = None,
            Ok(count) => {
                bytes.truncate(count);
                return Some(bytes);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
            Err(_) => *pipe = None,
        }
    }
}

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exited(code as u8),
        (None, signal) => End::Signalled(signal.unwrap_or(0) as u8),
    }
}
