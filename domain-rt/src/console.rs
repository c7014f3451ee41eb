//! Where text goes: the console ring if the domain has one, else the core's debug
//! console. Also the backend of [`log`].
//!
//! Writers wait, letting others run, while the ring is full. Nothing is lost unless
//! the domain is dying.

use crate::boot::Boot;
use crate::event::Channel;
use crate::hypercall;
use crate::shared::Shared;
use bulkhead_abi::console::{IN_CONS, IN_OFFSET, IN_PROD, IN_SIZE};
use bulkhead_abi::console::{OUT_CONS, OUT_OFFSET, OUT_PROD, OUT_SIZE};
use core::fmt::{self, Write};
use spin::{Mutex, Once};

/// Rounds of yielding after which a dying domain gives up on its console.
const PATIENCE: usize = 1000;
/// Bytes passed to the debug console at once.
const CHUNK: usize = 128;

struct Ring {
    page: Shared<'static>,
    channel: Channel,
}

static RING: Once<Ring> = Once::new();
static WRITER: Mutex<()> = Mutex::new(());

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::write_fmt(::core::format_args!($($arg)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)*) => { $crate::print!("{}\n", ::core::format_args!($($arg)*)) };
}

/// Finds the ring and becomes the logger. Option `loglevel=` of the command line sets
/// the least level shown; `info` by default.
pub(crate) fn init(boot: &Boot) {
    if let Some(ring) = boot.console
        && let Some(page) = crate::mem::own_page(ring.mfn)
    {
        RING.call_once(|| Ring { page, channel: Channel::adopt(ring.port) });
    }
    let level = boot.option("loglevel").and_then(|l| l.parse().ok());
    log::set_max_level(level.unwrap_or(log::LevelFilter::Info));
    // A second logger can only be set by the domain itself, before this: its choice.
    let _ = log::set_logger(&Logger);
}

/// Writes bytes to the console.
pub fn write(bytes: &[u8]) {
    let _writer = WRITER.lock();
    match RING.get() {
        Some(ring) => ring.write(bytes, usize::MAX),
        None => write_debug(bytes),
    }
}

/// Formats to the console; what `print!` calls.
pub fn write_fmt(args: fmt::Arguments<'_>) {
    struct Out;
    impl Write for Out {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            write(s.as_bytes());
            Ok(())
        }
    }
    // `Out` never fails; a failing `Display` has printed what it could.
    let _ = Out.write_fmt(args);
}

/// Waits for input and copies some of it out; `None` without a ring.
pub async fn read(buffer: &mut [u8]) -> Option<usize> {
    let ring = RING.get()?;
    loop {
        let n = ring.read(buffer);
        if n > 0 || buffer.is_empty() {
            return Some(n);
        }
        ring.channel.wait().await;
    }
}

/// Prints on both consoles, locks or no locks: for a domain about to end.
pub(crate) fn emergency(args: fmt::Arguments<'_>) {
    struct Out;
    impl Write for Out {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            write_debug(s.as_bytes());
            if let Some(ring) = RING.get() {
                ring.write(s.as_bytes(), PATIENCE);
            }
            Ok(())
        }
    }
    // `Out` never fails, and there is nobody left to tell.
    let _ = Out.write_fmt(args);
}

/// Waits, not for ever, until the other side has read everything.
pub(crate) fn drain() {
    let Some(ring) = RING.get() else { return };
    for _ in 0..PATIENCE {
        if ring.page.load_u32(OUT_CONS) == ring.page.load_u32(OUT_PROD) {
            return;
        }
        hypercall::yield_now();
    }
}

fn write_debug(bytes: &[u8]) {
    for chunk in bytes.chunks(CHUNK) {
        // A core that keeps its console to itself says EPERM: then there is none.
        let _ = hypercall::console_write(chunk);
    }
}

impl Ring {
    /// Writes all of `bytes`, or gives up after `patience` rounds on a full ring.
    fn write(&self, mut bytes: &[u8], mut patience: usize) {
        while !bytes.is_empty() {
            let n = self.put(bytes);
            bytes = &bytes[n..];
            // A channel that broke is no reason to lose text: the other side may poll.
            let _ = self.channel.notify();
            if n == 0 {
                if patience == 0 {
                    return;
                }
                patience -= 1;
                hypercall::yield_now();
            }
        }
    }

    fn put(&self, bytes: &[u8]) -> usize {
        let prod = self.page.read_u32(OUT_PROD);
        let used = prod.wrapping_sub(self.page.load_u32(OUT_CONS)) as usize;
        // An absurd index of the other side leaves no room: we wait, it suffers.
        let n = OUT_SIZE.saturating_sub(used).min(bytes.len());
        for (i, &byte) in bytes[..n].iter().enumerate() {
            let at = (prod as usize).wrapping_add(i) % OUT_SIZE;
            self.page.write_u8(OUT_OFFSET + at, byte);
        }
        self.page.store_u32(OUT_PROD, prod.wrapping_add(n as u32));
        n
    }

    fn read(&self, buffer: &mut [u8]) -> usize {
        let cons = self.page.read_u32(IN_CONS);
        let ready = self.page.load_u32(IN_PROD).wrapping_sub(cons) as usize;
        let n = ready.min(IN_SIZE).min(buffer.len());
        for (i, byte) in buffer[..n].iter_mut().enumerate() {
            let at = (cons as usize).wrapping_add(i) % IN_SIZE;
            *byte = self.page.read_u8(IN_OFFSET + at);
        }
        self.page.store_u32(IN_CONS, cons.wrapping_add(n as u32));
        if n > 0 {
            // As for writing: the other side may poll.
            let _ = self.channel.notify();
        }
        n
    }
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let ms = crate::time::now().get() / 1_000_000;
        let (level, target) = (record.level(), record.target());
        let (s, ms) = (ms / 1000, ms % 1000);
        println!("[{s:5}.{ms:03}] {level:5} {target}: {}", record.args());
    }

    fn flush(&self) {}
}
