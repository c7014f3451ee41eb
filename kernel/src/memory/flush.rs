//! What the TLB must forget: a value that mapping changes give back and that must not
//! be dropped.

use bulkhead_abi::GuestVa;

/// Translations to drop before a guest runs again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "stale translations let a guest reach a frame it has lost"]
pub enum Flush {
    #[default]
    None,
    /// One page.
    Page(GuestVa),
    /// Everything that is not global (the core maps nothing global for guests).
    All,
}

impl Flush {
    /// What satisfies both.
    pub fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, x) | (x, Self::None) => x,
            (Self::Page(a), Self::Page(b)) if a == b => self,
            _ => Self::All,
        }
    }
}
