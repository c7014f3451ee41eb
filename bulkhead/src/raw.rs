//! The user's terminal in raw mode: keys go to a guest as they are pressed, and what the
//! guest writes is shown as it is. Whatever happens to the tool, the terminal is put back.

use nix::{
    sys::termios::{self, SetArg, Termios},
    unistd,
};
use std::{
    io::{self, IsTerminal},
    panic,
    sync::{Mutex, Once, PoisonError},
};

/// How the terminal was before; there is one terminal.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal is raw for as long as this is there.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// `None` if there is no terminal to be raw: see [`is_possible`].
    pub fn enter() -> Option<Self> {
        if !is_possible() {
            return None;
        }
        restore_after_panic();
        let before = termios::tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        Some(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether keys can go to a guest: input and output are a terminal, and it is ours. (A
/// process in the background that changed it would be stopped.)
pub fn is_possible() -> bool {
    io::stdin().is_terminal()
        && io::stdout().is_terminal()
        && unistd::tcgetpgrp(io::stdin()).is_ok_and(|group| group == unistd::getpgrp())
}

fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
    }
}

/// A panic of any thread puts the terminal back before it is told.
fn restore_after_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            told(info);
        }));
    });
}
