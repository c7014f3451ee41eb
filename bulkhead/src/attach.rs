//! The terminal of `run`, lent to one guest: from when the guest runs until it ends or
//! the user presses Ctrl-]. What else there is to print waits meanwhile, since a line in
//! the middle of a guest's screen would help nobody. Without a terminal the guest's bytes
//! pass through as they are, and its input is what was piped in.

use crate::{
    console::{self, Left, Manner},
    raw::{self, Raw},
};
use std::{
    io::{self, IsTerminal, Read, Write},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

/// Most lines kept while the terminal is lent.
const MOST_LINES: usize = 500;

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout,
    /// The standard output holds JSON.
    Stderr,
}

/// A guest's hold on the terminal.
#[derive(Debug)]
pub struct Attachment {
    guest: String,
    output: Output,
    /// Keys go to the guest, and Ctrl-] detaches.
    is_interactive: bool,
    socket: Option<PathBuf>,
    is_typing: bool,
    /// Its last byte did not end a line.
    is_in_line: bool,
    held: Vec<(Output, String)>,
    left_out: usize,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    raw: Mutex<Option<Raw>>,
    is_detached: AtomicBool,
}

impl Shared {
    fn set_raw(&self, raw: Option<Raw>) {
        *self.raw.lock().unwrap_or_else(PoisonError::into_inner) = raw;
    }

    fn is_raw(&self) -> bool {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl Attachment {
    /// Nothing happens before the guest runs.
    pub fn new(guest: &str, output: Output) -> Self {
        Self {
            guest: guest.to_owned(),
            output,
            is_interactive: output == Output::Stdout && raw::is_possible(),
            socket: None,
            is_typing: false,
            is_in_line: false,
            held: Vec::new(),
            left_out: 0,
            shared: Arc::default(),
        }
    }

    /// The guest whose console it is.
    pub fn guest(&self) -> &str {
        &self.guest
    }

    /// The machine was started; keys will go this way.
    pub fn reached_at(&mut self, socket: PathBuf) {
        self.socket = Some(socket);
    }

    /// The guest runs.
    pub fn guest_runs(&mut self) {
        if self.is_detached() {
            return;
        }
        if self.is_interactive && !self.shared.is_raw() {
            let guest = &self.guest;
            eprintln!("the terminal is the console of {guest}; Ctrl-] detaches it");
            self.shared.set_raw(Raw::enter());
        }
        if !self.is_typing && (self.is_interactive || !io::stdin().is_terminal()) {
            self.is_typing = true;
            self.type_on();
        }
    }

    /// The guest has ended; it may come back.
    pub fn guest_ended(&mut self) {
        if self.shared.is_raw() {
            self.shared.set_raw(None);
            eprintln!();
        }
    }

    /// Shows what the guest wrote as it is. `false` if that is not done here, because the
    /// user has detached.
    pub fn show(&mut self, bytes: &[u8]) -> bool {
        if self.is_detached() {
            return false;
        }
        if let Some(last) = bytes.last() {
            self.is_in_line = *last != b'\n';
        }
        // A reader that left (`| head`) is no reason to stop the machine.
        let _ = match self.output {
            Output::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Output::Stderr => io::stderr().write_all(bytes),
        };
        true
    }

    /// Whether a line of somebody else's has to wait now.
    pub fn must_wait(&self) -> bool {
        !self.is_detached() && (self.shared.is_raw() || (!self.is_interactive && self.is_in_line))
    }

    /// Keeps such a line, and where it goes.
    pub fn hold(&mut self, to: Output, line: String) {
        if self.held.len() == MOST_LINES {
            self.held.remove(0);
            self.left_out += 1;
        }
        self.held.push((to, line));
    }

    /// The lines that need not wait any more.
    pub fn released(&mut self) -> Vec<(Output, String)> {
        if self.held.is_empty() || self.must_wait() {
            return Vec::new();
        }
        let mut lines = Vec::new();
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            lines.push((Output::Stderr, format!("({left_out} lines are left out)")));
        }
        lines.append(&mut self.held);
        lines
    }

    /// Gives the terminal back for good.
    pub fn finish(&mut self) {
        self.guest_ended();
        if !self.is_interactive && std::mem::take(&mut self.is_in_line) {
            let _ = match self.output {
                Output::Stdout => writeln!(io::stdout()),
                Output::Stderr => writeln!(io::stderr()),
            };
        }
    }

    fn is_detached(&self) -> bool {
        self.shared.is_detached.load(Ordering::Relaxed)
    }

    /// Passes on what is typed, on a thread of its own.
    fn type_on(&self) {
        let Some(socket) = self.socket.clone() else { return };
        let (guest, detach) = (self.guest.clone(), self.is_interactive);
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            let manner = Manner {
                input: Some(Box::new(io::stdin()) as Box<dyn Read + Send>),
                detach,
                leave_at_end: false,
                // The run itself sees them.
                interrupts: &AtomicU32::new(0),
            };
            // What the guest writes is shown by the run.
            let left = console::attend(&socket, &guest, manner, &mut |_| Ok(()));
            if matches!(left, Ok(Left::Detached)) {
                shared.set_raw(None);
                eprintln!(
                    "\ndetached; the run goes on, and Ctrl-C ends it. `bulkhead console {guest}` attaches again"
                );
                shared.is_detached.store(true, Ordering::Relaxed);
            }
        });
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.shared.set_raw(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piped() -> Attachment {
        let mut attachment = Attachment::new("g", Output::Stderr);
        attachment.is_interactive = false;
        attachment
    }

    #[test]
    fn lines_of_others_wait_for_the_end_of_the_guests_line() {
        let mut attachment = piped();
        assert!(!attachment.must_wait());
        assert!(attachment.show(b"login: "));
        assert!(attachment.must_wait());
        attachment.hold(Output::Stderr, "disk: running".into());
        attachment.hold(Output::Stdout, "other: hello".into());
        assert_eq!(attachment.released(), []);
        attachment.show(b"root\r\n");
        let lines = [(Output::Stderr, "disk: running"), (Output::Stdout, "other: hello")];
        assert_eq!(attachment.released(), lines.map(|(to, line)| (to, line.to_owned())));
        assert_eq!(attachment.released(), []);
    }

    #[test]
    fn lines_that_wait_too_long_are_counted_instead_of_kept() {
        let mut attachment = piped();
        attachment.show(b"$ ");
        for number in 0..MOST_LINES + 3 {
            attachment.hold(Output::Stderr, number.to_string());
        }
        attachment.finish();
        let lines = attachment.released();
        assert_eq!(lines.len(), MOST_LINES + 1);
        assert_eq!((&*lines[0].1, &*lines[1].1), ("(3 lines are left out)", "3"));
    }

    #[test]
    fn after_detaching_the_guest_is_shown_like_any_other() {
        let mut attachment = piped();
        attachment.show(b"$ ");
        attachment.hold(Output::Stderr, "note".into());
        attachment.shared.is_detached.store(true, Ordering::Relaxed);
        assert!(!attachment.show(b"more"));
        assert_eq!(attachment.released(), [(Output::Stderr, "note".to_owned())]);
    }
}
