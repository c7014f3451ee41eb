//! Hypercalls, one file per family: decode, check, commit. The only place where an
//! error becomes an errno.

use bulkhead_abi::Errno;

/// How a hypercall ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// RAX gets this.
    Done(i64),
    /// Not finished: the guest re-executes its SYSCALL with these arguments, after
    /// events and the scheduler had their turn.
    Again([u64; 5]),
    /// The registers were replaced (`iret`, or the domain died): leave RAX alone.
    Replaced,
}

impl From<Result<i64, Errno>> for Outcome {
    fn from(result: Result<i64, Errno>) -> Self {
        Self::Done(result.unwrap_or_else(Errno::to_rax))
    }
}
