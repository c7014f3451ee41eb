//! The field's nouns as types, so that a frame number can not be passed for an
//! address nor a port for a grant reference.

use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($raw:ty), $fmt:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $name($raw);

        impl $name {
            /// Takes a raw number at the border of the wire.
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// The raw number, for the wire or for indexing.
            pub const fn get(self) -> $raw {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $fmt, self.0)
            }
        }
    };
}

number!(
    /// Machine frame number: a 4 KiB frame of real memory.
    Mfn(u64), "mfn {:#x}"
);
number!(
    /// Pseudo-physical frame number: a guest's own count of its frames.
    Pfn(u64), "pfn {:#x}"
);
number!(
    /// Machine address in bytes.
    Maddr(u64), "maddr {:#x}"
);
number!(
    /// An address in a guest's linear address space: a claim until checked.
    GuestVa(u64), "va {:#x}"
);
number!(
    /// Grant reference: an index into the granting domain's table.
    Gref(u32), "gref {}"
);
number!(
    /// Event channel port, local to one domain. Port 0 is never valid.
    Port(u32), "port {}"
);
number!(
    /// Domain id.
    DomId(u16), "d{}"
);
number!(
    /// Virtual CPU number within one domain.
    VcpuId(u32), "v{}"
);
number!(
    /// Nanoseconds, either a span or since the core booted.
    Ns(u64), "{} ns"
);

impl Mfn {
    /// The address of the first byte of this frame.
    pub const fn maddr(self) -> Maddr {
        Maddr(self.0 << crate::PAGE_SHIFT)
    }

    /// The frame `count` frames further, `None` past the end of the number range.
    pub const fn checked_add(self, count: u64) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }
}

impl Maddr {
    /// The frame that holds this byte.
    pub const fn mfn(self) -> Mfn {
        Mfn(self.0 >> crate::PAGE_SHIFT)
    }

    /// Offset of this byte in its frame.
    pub const fn offset(self) -> usize {
        (self.0 & (crate::PAGE_SIZE as u64 - 1)) as usize
    }

    /// The address so many bytes further, as in a structure that starts here.
    pub const fn plus(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes as u64))
    }
}

impl Ns {
    /// So much later, or longer; never past the end of the number range.
    pub const fn plus(self, span: Self) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// The span since `earlier`, or what is left of a span; never below 0.
    pub const fn minus(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl GuestVa {
    /// Whether bits 63..47 are all equal.
    pub const fn is_canonical(self) -> bool {
        ((self.0 as i64) << 16 >> 16) as u64 == self.0
    }

    /// Offset in its page.
    pub const fn offset(self) -> usize {
        (self.0 & (crate::PAGE_SIZE as u64 - 1)) as usize
    }
}

impl DomId {
    /// "The caller itself" (xen.h).
    pub const SELF: Self = Self(0x7ff0);
    /// Memory-mapped I/O, as a foreign domain of `mmu_update` (xen.h).
    pub const IO: Self = Self(0x7ff1);
    /// Frames owned by the core (xen.h).
    pub const XEN: Self = Self(0x7ff2);
    /// No valid domain (xen.h).
    pub const INVALID: Self = Self(0x7ff4);
    /// The control domain.
    pub const DOM0: Self = Self(0);
    /// Ids from here on are reserved (xen.h, DOMID_FIRST_RESERVED).
    pub const FIRST_RESERVED: u16 = 0x7ff0;
}
