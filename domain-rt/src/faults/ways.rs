//! Ways to die.

use alloc::vec::Vec;
use core::hint::black_box;

/// Loops for ever; nothing else of this domain runs.
pub fn hang() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Takes all memory that there is, down to small pieces, and keeps it.
pub fn exhaust_heap() {
    let mut bytes = 1 << 30;
    while bytes >= 16 {
        let mut piece = Vec::<u8>::new();
        match piece.try_reserve_exact(bytes) {
            Ok(()) => core::mem::forget(black_box(piece)),
            Err(_) => bytes /= 2,
        }
    }
}

/// Calls itself until the stack is at its end.
#[allow(unconditional_recursion, reason = "it is meant to end in the guard page")]
pub fn overflow_stack(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    overflow_stack(black_box(depth + 1)) + frame[depth as usize % 64]
}

/// Reads at address 0.
pub fn dereference_null() -> u64 {
    let null = black_box(core::ptr::null::<u64>());
    // SAFETY: none: it faults, because nothing is ever mapped there, and this is its purpose.
    unsafe { null.read_volatile() }
}
