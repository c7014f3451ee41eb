//! Who may touch which frame, and how. The frame table says who owns each machine
//! frame, as what, and how often it is referenced; nothing else changes a type or a
//! count. `validate` asks whether an entry may exist; `update` carries it out.
//!
//! Invariants (paper section 3.3.3; ABI notes 5):
//! 1. A frame has one type at a time while its type count is above zero: writable,
//!    L1..L4 or segment descriptors. Page tables and descriptor frames therefore have
//!    no writable mapping anywhere.
//! 2. Every present entry of a validated table holds one general reference on its
//!    target, and one type reference of the level below (or of `Writable` for an L1
//!    entry with RW). Entries that a grant map made are the only ones that may name
//!    another domain's frame (besides Dom0's foreign maps and device memory).
//! 3. A frame goes back to the free list when its last general reference goes, never
//!    before. Owning it counts as one (`ALLOCATED`).
//! 4. A table that is half validated or half taken apart holds one reference to itself,
//!    and its entries below a mark hold theirs; no live table refers to it.
//! 5. A frame that changes its type or its owner is flushed from the TLB before any
//!    guest runs again ([`frame::FrameTable::take_flush`]).
//!
//! The core never dereferences a guest's linear address: guest memory is reached by
//! walking its tables in software ([`guest`]) and through the map of physical memory.

pub mod flush;
pub mod frame;
pub mod frame_box;
pub mod grant;
pub mod guest;
pub mod phys;
pub mod reserve;
pub mod teardown;
pub mod update;
pub mod validate;
