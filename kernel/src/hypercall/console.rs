//! `console_io`: a domain's early lines, onto the debug UART. Real consoles are Dom0's.

use super::Outcome;
use crate::{Core, arch, state::Caller};
use bulkhead_abi::{
    DomId, Errno, GuestVa,
    physdev::{CONSOLEIO_READ, CONSOLEIO_WRITE},
};
use core::fmt::Write;

/// Bytes written before the call continues: a UART is slow.
const CHUNK: usize = 128;

/// Who wrote last, and whether a line is open.
#[derive(Default)]
pub struct ConsoleState {
    open_line_of: Option<DomId>,
}

struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        arch::console_write(text.as_bytes());
        Ok(())
    }
}

/// `console_io(cmd, count, buffer)`: writes; there is nothing to read.
///
/// Lines of domains other than Dom0 begin with `(d<id>) `, and an open line of somebody else is
/// ended first, so that no domain can speak in another's name. Control characters other than
/// tab and newline become `?`, carriage returns vanish.
/// Errors: `EFAULT` bad buffer; `ENOSYS` unknown `cmd`.
pub fn console_io(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [cmd, count, buffer, ..] = args;
    match cmd & 0xffff_ffff {
        CONSOLEIO_READ => Outcome::Done(0),
        CONSOLEIO_WRITE => write(core, caller, count & 0x7fff_ffff, buffer),
        _ => Errno::ENOSYS.into(),
    }
}

fn write(core: &mut Core, caller: Caller, count: u64, buffer: u64) -> Outcome {
    let mut bytes = [0; CHUNK];
    let now = count.min(CHUNK as u64);
    let chunk = &mut bytes[..now as usize];
    if let Err(fault) = core.guest(caller).read_bytes(GuestVa::new(buffer), chunk) {
        return Errno::from(fault).into();
    }
    print(&mut core.console, caller.dom, chunk);
    if now == count {
        Outcome::Done(0)
    } else {
        Outcome::Again([CONSOLEIO_WRITE, count - now, buffer.wrapping_add(now), 0, 0])
    }
}

fn print(state: &mut ConsoleState, dom: DomId, bytes: &[u8]) {
    for &byte in bytes {
        if byte == b'\r' {
            continue;
        }
        if state.open_line_of != Some(dom) {
            if state.open_line_of.is_some() {
                arch::console_write(b"\n");
            }
            state.open_line_of = Some(dom);
            if dom != DomId::DOM0 {
                // The UART takes everything.
                let _ = write!(Uart, "({dom}) ");
            }
        }
        let shown = if byte >= b' ' || matches!(byte, b'\n' | b'\t') { byte } else { b'?' };
        arch::console_write(&[shown]);
        if byte == b'\n' {
            state.open_line_of = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_can_not_end_its_line_in_anothers_name() {
        let mut state = ConsoleState::default();
        print(&mut state, DomId::new(3), b"one");
        print(&mut state, DomId::new(4), b"two\r\nthr\x1bee\n");
        print(&mut state, DomId::DOM0, b"zero\n");
        assert_eq!(arch::fake::take_console(), b"(d3) one\n(d4) two\n(d4) thr?ee\nzero\n");
    }
}
