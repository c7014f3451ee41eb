//! Entry and exit: exceptions and system calls bounced to the guest, privileged
//! instructions emulated, hypercalls decoded into a `Call`.

pub mod context;
