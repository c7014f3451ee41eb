//! Why the store refuses: the names that go over the wire (xs_wire.h).

use core::fmt;

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A refusal, spelled as the client reads it.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum StoreError { $($(#[$doc])* $name),* }

        impl StoreError {
            /// The text that goes into an `XS_ERROR` reply.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

errors! {
    /// Malformed request.
    EINVAL,
    /// The client's permissions do not cover it.
    EACCES,
    /// Exists already.
    EEXIST,
    /// No such node, watch or transaction.
    ENOENT,
    /// A quota of the client is used up.
    ENOSPC,
    /// Unknown request.
    ENOSYS,
    /// In the middle of something else.
    EBUSY,
    /// A transaction met a conflict and is to be tried again.
    EAGAIN,
    /// Too long, or too many.
    E2BIG,
    /// Only for the owner.
    EPERM,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
