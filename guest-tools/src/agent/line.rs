//! The agent's end of the second console: a terminal device of which nothing but its
//! bytes is wanted.

use rustix::{
    fs::{Mode, OFlags, open as open_file},
    io,
    termios::{self, OptionalActions, QueueSelector},
};
use std::{os::fd::OwnedFd, thread, time::Duration};

/// The second console, as Linux calls it.
const DEVICE: &str = "/dev/hvc1";
/// How often it is looked for while it is not there.
pub const RETRY: Duration = Duration::from_millis(250);
/// How often before it is given up.
const TRIES: u32 = 120;

/// Opens the second console, raw. `None` if there is none.
pub fn open() -> Option<OwnedFd> {
    for _ in 0..TRIES {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        match open_file(DEVICE, flags, Mode::empty()) {
            Ok(line) => match make_raw(&line) {
                Ok(()) => return Some(line),
                Err(e) => eprintln!("bulkhead: {DEVICE} cannot be set up: {e}"),
            },
            Err(io::Errno::NOENT | io::Errno::NXIO | io::Errno::NODEV) => {}
            Err(e) => eprintln!("bulkhead: {DEVICE} cannot be opened: {e}"),
        }
        thread::sleep(RETRY);
    }
    None
}

/// No echo, no signals, no line editing; what came before is dropped.
fn make_raw(line: &OwnedFd) -> io::Result<()> {
    let mut settings = termios::tcgetattr(line)?;
    settings.make_raw();
    termios::tcsetattr(line, OptionalActions::Now, &settings)?;
    termios::tcflush(line, QueueSelector::IFlush)
}
