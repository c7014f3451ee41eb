//! Error numbers that hypercalls return negated in RAX (xen/errno.h; the values
//! are those of Linux on x86).

use core::fmt;

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $n:literal),* $(,)?) => {
        /// Why a hypercall was refused.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(i32)]
        pub enum Errno { $($(#[$doc])* $name = $n),* }

        impl Errno {
            /// Finds the error that RAX carries, `None` where it is none known.
            pub const fn from_rax(rax: i64) -> Option<Self> {
                match -rax { $($n => Some(Self::$name),)* _ => None }
            }

            /// The symbolic name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

errnos! {
    /// Not permitted to this caller.
    EPERM = 1,
    /// No such object.
    ENOENT = 2,
    /// No such domain.
    ESRCH = 3,
    /// Input or output failed.
    EIO = 5,
    /// No such device.
    ENXIO = 6,
    /// Argument list too long.
    E2BIG = 7,
    /// Try again.
    EAGAIN = 11,
    /// Out of memory.
    ENOMEM = 12,
    /// Access denied.
    EACCES = 13,
    /// Bad guest address.
    EFAULT = 14,
    /// In use.
    EBUSY = 16,
    /// Exists already.
    EEXIST = 17,
    /// No such device.
    ENODEV = 19,
    /// Invalid argument.
    EINVAL = 22,
    /// No room.
    ENOSPC = 28,
    /// Out of range.
    ERANGE = 34,
    /// No such call.
    ENOSYS = 38,
    /// Interrupted; the call is to be issued again.
    ERESTART = 85,
    /// No buffer space.
    ENOBUFS = 105,
    /// Known, not offered.
    EOPNOTSUPP = 95,
    /// Timer deadline has passed.
    ETIME = 62,
}

impl Errno {
    /// What goes into RAX.
    pub const fn to_rax(self) -> i64 {
        -(self as i32 as i64)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
