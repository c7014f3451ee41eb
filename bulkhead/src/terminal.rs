//! What a person sees while a machine runs: lines of consoles, labelled and coloured
//! where several share a terminal, and the tool's own progress. One guest may have the
//! terminal to itself.

use crate::{
    attach::{Attachment, Output},
    progress::Progress,
};
use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

/// Longest line kept until its end comes; a longer one is cut into pieces.
const LINE_BYTES: usize = 4096;
/// Foreground colours of labels, told apart on light and dark grounds.
const COLOURS: [&str; 6] = ["36", "33", "35", "32", "34", "31"];

/// Where guests' text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guests {
    /// To the standard output, which a person may pipe.
    Stdout,
    /// To the standard error, because the standard output holds JSON.
    Stderr,
}

/// Prints consoles line by line.
#[derive(Debug)]
pub struct Terminal {
    guests: Guests,
    /// Guests' lines bear the guest's name.
    label_guests: bool,
    colour_out: bool,
    colour_err: bool,
    partial: BTreeMap<String, Vec<u8>>,
    order: Vec<String>,
    attached: Option<Attachment>,
    progress: Progress,
}

impl Terminal {
    /// `guest_count` guests share the output: with one, and no terminal to read it, its
    /// lines go out as they are.
    pub fn new(guests: Guests, guest_count: usize) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some();
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            guests,
            label_guests: out || guests == Guests::Stderr || guest_count > 1,
            colour_out: out && !plain,
            colour_err: err && !plain,
            partial: BTreeMap::new(),
            order: Vec::new(),
            attached: None,
            progress: Progress::on_stderr(),
        }
    }

    /// Lends the terminal to this guest while it runs.
    #[must_use]
    pub fn attach(mut self, guest: &str) -> Self {
        let output = match self.guests {
            Guests::Stdout => Output::Stdout,
            Guests::Stderr => Output::Stderr,
        };
        self.attached = Some(Attachment::new(guest, output));
        self
    }

    /// The machine was started; what is typed goes to this socket.
    pub fn reached_at(&mut self, socket: PathBuf) {
        if let Some(attached) = &mut self.attached {
            attached.reached_at(socket);
        }
    }

    /// A domain runs.
    pub fn runs(&mut self, name: &str) {
        if let Some(attached) = self.attached.as_mut().filter(|a| a.guest() == name) {
            attached.guest_runs();
        }
    }

    /// A domain has ended.
    pub fn ended(&mut self, name: &str) {
        if let Some(attached) = self.attached.as_mut().filter(|a| a.guest() == name) {
            attached.guest_ended();
        }
        self.release();
    }

    /// Takes bytes of a domain's console and prints the lines that are whole.
    pub fn console(&mut self, name: &str, is_guest: bool, bytes: &[u8]) {
        self.release();
        if let Some(attached) = self.attached.as_mut().filter(|a| a.guest() == name)
            && attached.show(bytes)
        {
            return self.release();
        }
        let mut partial = self.partial.remove(name).unwrap_or_default();
        for line in lines(&mut partial, bytes) {
            self.line(name, is_guest, &line);
        }
        self.partial.insert(name.to_owned(), partial);
    }

    /// Prints what is left of lines without an end.
    pub fn finish(&mut self, is_guest: impl Fn(&str) -> bool) {
        if let Some(attached) = &mut self.attached {
            attached.finish();
        }
        self.release();
        for (name, partial) in std::mem::take(&mut self.partial) {
            if !partial.is_empty() {
                let line = String::from_utf8_lossy(&partial).into_owned();
                self.line(&name, is_guest(&name), &line);
            }
        }
    }

    /// A line of the tool's own.
    pub fn say(&mut self, text: &str) {
        let line = if self.colour_err { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() };
        self.tell(Output::Stderr, line);
    }

    /// Prints a line as soon as that disturbs nobody.
    fn tell(&mut self, to: Output, line: String) {
        self.release();
        match self.attached.as_mut().filter(|a| a.must_wait()) {
            Some(attached) => attached.hold(to, line),
            None => self.print(to, &line),
        }
    }

    /// Prints the lines that had to wait.
    fn release(&mut self) {
        let lines = self.attached.as_mut().map(Attachment::released);
        for (to, line) in lines.unwrap_or_default() {
            self.print(to, &line);
        }
    }

    fn print(&self, to: Output, line: &str) {
        // A reader that left (`| head`) is no reason to stop the machine.
        self.progress.aside(|| match to {
            Output::Stdout => drop(writeln!(io::stdout(), "{line}")),
            Output::Stderr => drop(writeln!(io::stderr(), "{line}")),
        });
    }

    /// Bars or lines on the standard error, which its own lines do not disturb.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// A line about or of one domain, on the standard error.
    pub fn note(&mut self, name: &str, text: &str) {
        let line = format!("{} {text}", self.label(name, self.colour_err));
        self.tell(Output::Stderr, line);
    }

    fn line(&mut self, name: &str, is_guest: bool, line: &str) {
        if !is_guest || self.guests == Guests::Stderr {
            return self.note(name, line);
        }
        let text = match self.label_guests {
            true => format!("{} {line}", self.label(name, self.colour_out)),
            false => line.to_owned(),
        };
        self.tell(Output::Stdout, text);
    }

    fn label(&mut self, name: &str, colour: bool) -> String {
        let index = self.order.iter().position(|n| n == name).unwrap_or_else(|| {
            self.order.push(name.to_owned());
            self.order.len() - 1
        });
        match colour {
            true => format!("\x1b[{}m{name:<10}|\x1b[0m", COLOURS[index % COLOURS.len()]),
            false => format!("{name:<10}|"),
        }
    }
}

/// Adds bytes to a partial line and takes the whole ones out. Control bytes other than
/// tab are dropped: a guest does not get to steer the terminal.
fn lines(partial: &mut Vec<u8>, bytes: &[u8]) -> Vec<String> {
    let mut whole = Vec::new();
    for &byte in bytes {
        match byte {
            b'\n' => whole.push(std::mem::take(partial)),
            b'\t' | 0x20..=0x7e | 0x80.. => partial.push(byte),
            _ => {}
        }
        if partial.len() >= LINE_BYTES {
            whole.push(std::mem::take(partial));
        }
    }
    whole
        .iter()
        .map(|line| {
            String::from_utf8_lossy(line)
                .chars()
                .filter(|c| !c.is_control() || *c == '\t')
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_and_without_terminal_controls() {
        let mut partial = Vec::new();
        assert_eq!(lines(&mut partial, b"he"), [""; 0]);
        assert_eq!(lines(&mut partial, b"llo\r\n\x1b[2Jx\ty\n..."), ["hello", "[2Jx\ty"]);
        assert_eq!(partial, b"...");
        assert_eq!(lines(&mut partial, "\u{9b}31m\n".as_bytes()), ["...31m"]);
    }

    #[test]
    fn a_line_without_end_is_cut_rather_than_kept_for_ever() {
        let mut partial = Vec::new();
        let cut = lines(&mut partial, &vec![b'x'; 3 * LINE_BYTES + 1]);
        assert_eq!((cut.len(), partial.len()), (3, 1));
    }
}
