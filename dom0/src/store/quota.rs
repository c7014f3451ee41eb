//! How much of the store one unprivileged domain may use up.

/// Limits of one domain. The figures are xenstored's defaults unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// Nodes it owns.
    pub nodes: usize,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Entries of a permission list, with the owner's.
    pub perms: usize,
    /// Components of a path it creates: ours, so that one request walks a bounded way.
    pub depth: usize,
    /// Watches it holds.
    pub watches: usize,
    /// Bytes of a watch token: ours, so that path and token fit an event.
    pub token_bytes: usize,
    /// Open transactions.
    pub transactions: usize,
    /// Nodes all its transactions together may touch: ours (xenstored: 1024 each).
    pub touched: usize,
    /// Replies it has not taken yet, after which no more requests are read.
    pub outstanding: usize,
    /// Watch events it has not taken yet, after which they are merged: ours.
    pub events: usize,
}

impl Quota {
    /// What every guest and driver domain gets.
    pub const GUEST: Self = Self {
        nodes: 1000,
        value_bytes: 2048,
        perms: 5,
        depth: 64,
        watches: 128,
        token_bytes: 1000,
        transactions: 10,
        touched: 1024,
        outstanding: 20,
        events: 256,
    };
}
