//! Event rings, counters, and the last words after a fault of the core.

/// Counters and the last events.
#[derive(Default)]
pub struct Trace {}
