//! What is done at a breakpoint: decisions only, on a machine that a test can fake.
//! Inlined into the handler altogether, so that no call leads out of it.
#![cfg_attr(not(all(feature = "faults", target_os = "none")), allow(dead_code))] // Tests only.

use crate::trap::Frame;
use bulkhead_abi::ledger::patch as at;

/// Vector of breakpoints.
const BREAKPOINT: u64 = 3;
/// Most bytes of a change.
pub const MOST: usize = 16;
/// Words of an entry.
pub const WORDS: usize = at::BYTES / 8;

/// What the handler needs of the machine.
pub trait Machine {
    /// Entries of the table.
    fn count(&self) -> usize;
    /// A word of an entry of the table, 8 bytes each.
    fn word(&self, entry: usize, word: usize) -> u64;
    /// Notes in an entry that it was reached, now.
    fn note(&self, entry: usize);
    /// Writes one byte of the text of this domain; false if it is not there.
    fn write(&self, va: u64, byte: u8) -> bool;
}

/// A change that is armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    kind: u32,
    length: usize,
    register: u32,
    bit: u32,
}

/// Deals with a trap, if it is a breakpoint of the table that has not been reached yet.
#[inline(always)]
pub fn on_trap(frame: &mut Frame, machine: &impl Machine) -> bool {
    let va = frame.rip.wrapping_sub(1);
    if frame.vector != BREAKPOINT {
        return false;
    }
    let mut entry = 0;
    while entry < machine.count() {
        if let Some(change) = armed(machine, entry, va) {
            return carry_out(frame, machine, entry, change, va);
        }
        entry += 1;
    }
    false
}

/// The change of an entry, if it is for this address, makes sense and was not reached yet.
#[inline(always)]
fn armed(machine: &impl Machine, entry: usize, va: u64) -> Option<Change> {
    let is_here = machine.word(entry, at::VA / 8) == va;
    if !is_here || machine.word(entry, at::ACTIVATED_NS / 8) != 0 {
        return None;
    }
    let (what, where_) = (machine.word(entry, at::KIND / 8), machine.word(entry, at::REGISTER / 8));
    let change = Change {
        kind: what as u32,
        length: (what >> 32) as usize,
        register: where_ as u32,
        bit: (where_ >> 32) as u32,
    };
    let makes_sense = match change.kind {
        at::KIND_CODE => true,
        at::KIND_REGISTER => change.register <= 17 && change.bit < 64,
        _ => false,
    };
    (makes_sense && change.length >= 1 && change.length <= MOST).then_some(change)
}

#[inline(always)]
fn carry_out(
    frame: &mut Frame,
    machine: &impl Machine,
    entry: usize,
    change: Change,
    va: u64,
) -> bool {
    let bytes = if change.kind == at::KIND_CODE { at::NEW / 8 } else { at::OLD / 8 };
    let mut i = 0;
    while i < change.length {
        let word = machine.word(entry, bytes + i / 8);
        if !machine.write(va.wrapping_add(i as u64), (word >> (8 * (i % 8))) as u8) {
            return false;
        }
        i += 1;
    }
    frame.rip = va;
    if change.kind == at::KIND_REGISTER {
        *register(frame, change.register) ^= 1 << change.bit;
    }
    machine.note(entry);
    true
}

/// A register by its number in instructions; 16 and up, rflags and rip.
#[inline(always)]
fn register(frame: &mut Frame, number: u32) -> &mut u64 {
    match number {
        0 => &mut frame.rax,
        1 => &mut frame.rcx,
        2 => &mut frame.rdx,
        3 => &mut frame.rbx,
        4 => &mut frame.rsp,
        5 => &mut frame.rbp,
        6 => &mut frame.rsi,
        7 => &mut frame.rdi,
        8 => &mut frame.r8,
        9 => &mut frame.r9,
        10 => &mut frame.r10,
        11 => &mut frame.r11,
        12 => &mut frame.r12,
        13 => &mut frame.r13,
        14 => &mut frame.r14,
        15 => &mut frame.r15,
        16 => &mut frame.rflags,
        _ => &mut frame.rip,
    }
}

#[cfg(test)]
mod tests;
