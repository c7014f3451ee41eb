//! Takes the memory of a dead or reset domain back, in bounded steps. Its vCPUs' roots, grant maps and
//! other references of the core are dropped before, by whoever took them.
#![deny(unsafe_code)]

use super::frame::{FrameTable, table::Budget};
use bulkhead_abi::DomId;

/// How far long work came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "work that is not done must be continued"]
pub enum Progress {
    Done,
    /// The budget ended: call again.
    More,
}

/// Unpins and drops every frame of the domain, and takes its page tables apart.
///
/// Frames that others still refer to (grants mapped elsewhere, Dom0's mappings) stop
/// being the domain's: they are free when the last of these references goes, and
/// nobody can take a new one. Afterwards the domain owns nothing.
pub fn relinquish(frames: &mut FrameTable, dom: DomId, budget: &mut Budget) -> Progress {
    loop {
        if !frames.drain(dom, budget) || !budget.step() {
            return Progress::More;
        }
        if !frames.let_go_next(dom) && !frames.orphan_next(dom) {
            return Progress::Done;
        }
    }
}

/// Takes the page tables of a domain apart whose vCPUs are off and whose root is unpinned, and
/// drops every frame but those that Dom0 gave it and that nobody refers to any more: they stay
/// its own, with what is in them.
pub fn keep_given(frames: &mut FrameTable, dom: DomId, budget: &mut Budget) -> Progress {
    loop {
        if !frames.drain(dom, budget) || !budget.step() {
            return Progress::More;
        }
        if !frames.keep_next(dom) {
            return Progress::Done;
        }
    }
}
