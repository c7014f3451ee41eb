//! Why a domain can not be built, in words for the person who wrote the set-up.

use core::fmt;

/// What is wrong with a kernel image or with the memory meant for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BuildError {
    /// A Linux bzImage, which holds its kernel compressed.
    Compressed,
    /// Not an ELF file.
    NotElf,
    /// An ELF file, but not for x86-64.
    WrongMachine,
    /// Ends before what its headers announce.
    Truncated,
    /// No note of the owner "Xen".
    NoXenNotes,
    /// It has notes of the owner "Xen", but only for other ways to start than as a PV guest.
    NotPv,
    /// A Xen note asks for something that does not exist here.
    BadNote { note: &'static str, value: u64 },
    /// It is made for another interface, or another loader.
    Incompatible { note: &'static str },
    /// Nothing to load.
    NoSegments,
    /// A segment or the entry lies where the initial mapping can not be.
    BadAddress { what: &'static str, address: u64 },
    /// Kernel, ramdisk and tables need more than the domain has.
    TooLittleMemory { needed_kib: u64, given_kib: u64 },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compressed => f.write_str(
                "the kernel is a compressed image (bzImage); give the uncompressed vmlinux",
            ),
            Self::NotElf => f.write_str("the kernel is not an ELF file"),
            Self::WrongMachine => f.write_str("the kernel is not a 64-bit x86 ELF file"),
            Self::Truncated => f.write_str("the kernel's ELF file is truncated"),
            Self::NoXenNotes => {
                f.write_str("the kernel has no Xen notes: it was not built to run as a PV guest")
            }
            Self::NotPv => f.write_str(
                "the kernel's Xen notes are not those of a PV guest: it was built without CONFIG_XEN_PV",
            ),
            Self::BadNote { note, value } => {
                write!(f, "the kernel's Xen note {note} has the unusable value {value:#x}")
            }
            Self::Incompatible { note } => {
                write!(f, "the kernel's Xen note {note} names another interface")
            }
            Self::NoSegments => f.write_str("the kernel's ELF file has nothing to load"),
            Self::BadAddress { what, address } => {
                write!(f, "the kernel's {what} is at the unusable address {address:#x}")
            }
            Self::TooLittleMemory { needed_kib, given_kib } => write!(
                f,
                "the domain has {given_kib} KiB of memory, but starting it takes {needed_kib} KiB"
            ),
        }
    }
}

impl core::error::Error for BuildError {}
