//! Event channels: ports and their bindings, pending and mask bits, upcalls. One bit
//! moves, someone may wake.

/// A domain's ports.
pub struct EventTable {}
