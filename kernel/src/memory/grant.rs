//! Grant tables, version 1: setup, map, unmap, copy, query.

/// A domain's table and what it has mapped of others.
pub struct GrantTable {}
