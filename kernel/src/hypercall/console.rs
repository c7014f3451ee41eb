//! `console_io`: a domain's early lines, onto the debug UART. Real consoles are Dom0's.

use super::Outcome;
use crate::{Core, arch, state::Caller, trace::words::Uart};
use bulkhead_abi::{
    DomId, Errno, GuestVa,
    physdev::{CONSOLEIO_READ, CONSOLEIO_WRITE},
};
use core::fmt::Write;

/// Bytes on the UART, which is slow, after which the call continues.
const CHUNK: usize = 128;

/// Who wrote last, and whether a line is open.
#[derive(Default)]
pub struct ConsoleState {
    open_line_of: Option<DomId>,
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
    let done = print(&mut core.console, caller.dom, chunk) as u64;
    if done == count {
        Outcome::Done(0)
    } else {
        Outcome::Again([CONSOLEIO_WRITE, count - done, buffer.wrapping_add(done), 0, 0])
    }
}

/// Prints until [`CHUNK`] is full: the marks of many short lines count, too. Gives the bytes that
/// were taken, at least one if there is one.
fn print(state: &mut ConsoleState, dom: DomId, bytes: &[u8]) -> usize {
    let mut room = CHUNK;
    for (taken, &byte) in bytes.iter().enumerate() {
        if room == 0 {
            return taken;
        }
        room -= 1;
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
                room = room.saturating_sub("(d255) ".len());
            }
        }
        let shown = if byte >= b' ' || matches!(byte, b'\n' | b'\t') { byte } else { b'?' };
        arch::console_write(&[shown]);
        if byte == b'\n' {
            state.open_line_of = None;
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_long_write_stops_after_a_chunk_and_goes_on_where_it_was() {
        for text in [[b'x'; 300], [b'\n'; 300]] {
            let mut core = fixture::core();
            let caller = fixture::domain(&mut core, 7, 1);
            fixture::put(&core, caller, fixture::page(2), &text);
            let mut args = [CONSOLEIO_WRITE, 300, fixture::page(2), 0, 0, 0];
            let mut all = Vec::new();
            let done = loop {
                let outcome = console_io(&mut core, caller, args);
                let said = arch::fake::take_console();
                assert!(said.len() <= CHUNK + 8, "{} bytes in one stay", said.len());
                all.extend(said);
                let Outcome::Again(next) = outcome else { break outcome };
                args[..5].copy_from_slice(&next);
            };
            assert_eq!(done, Outcome::Done(0));
            assert!(all.starts_with(b"(d7) "));
            assert_eq!(all.iter().filter(|byte| **byte == text[0]).count(), 300);
        }
    }

    #[test]
    fn a_domain_can_not_end_its_line_in_anothers_name() {
        let mut state = ConsoleState::default();
        print(&mut state, DomId::new(3), b"one");
        print(&mut state, DomId::new(4), b"two\r\nthr\x1bee\n");
        print(&mut state, DomId::DOM0, b"zero\n");
        assert_eq!(arch::fake::take_console(), b"(d3) one\n(d4) two\n(d4) thr?ee\nzero\n");
    }
}
