//! For domains whose code is to go wrong on purpose: changes to it that are armed from
//! outside and carried out when the place is reached, and the ways to die that safe code
//! does not have. Never in a domain that is to serve.
//!
//! Whoever arms a change writes a breakpoint over the first byte of an instruction and an
//! entry into the table (`bulkhead_abi::ledger::patch`). When the breakpoint is reached,
//! the handler writes the bytes that belong there, notes the time, and goes on at the same
//! address. The handler is reached in the middle of any code, so it takes no lock, calls
//! nothing that could hold a breakpoint itself, and lies between the symbols
//! `__trap_text_start` and `__trap_text_end`: there nothing may be armed.
//!
//! A stretch of code can also be walked instruction by instruction, and ended at one
//! (`walk`, `begin_walk`). Breakpoints and a walk do not go together.

mod patch;
pub mod walk;

#[cfg(feature = "faults")]
mod ways;
#[cfg(feature = "faults")]
pub use ways::{dereference_null, exhaust_heap, hang, overflow_stack};

#[cfg(all(feature = "faults", target_os = "none"))]
mod machine;
#[cfg(all(feature = "faults", target_os = "none"))]
pub use machine::{arm, heap, stack, write_text};

#[cfg(all(feature = "faults", target_os = "none"))]
mod stepper;
#[cfg(all(feature = "faults", target_os = "none"))]
pub(crate) use stepper::about_to_collect;
#[cfg(all(feature = "faults", target_os = "none"))]
pub use stepper::{before_collecting, begin_walk, end_walk};
