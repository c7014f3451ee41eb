//! Reservations: populate, decrease, exchange, limits.

/// How much memory a domain has and may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    /// Frames it owns (`ALLOCATED`).
    pub tot_pages: u64,
    /// Most it may own.
    pub max_pages: u64,
    /// Frames of the core that hold its structures.
    pub overhead_pages: u64,
}
