//! What a guest registered about its traps, and its segment and FPU state.

/// Room `trap`'s share of a vCPU.
#[derive(Default)]
pub struct GuestContext {}
