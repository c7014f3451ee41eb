//! Kernels as files: what a distribution ships becomes the ELF file that Dom0 builds a
//! domain from. Whether that file can be started, and in how much memory, is asked of
//! Dom0's own builder, so that what fails on the machine fails here first.

mod bzimage;
pub mod codec;

pub use bzimage::is_bzimage;

use bulkhead_abi::PAGE_SIZE;
use bzimage::BzImage;
use codec::Codec;
use dom0::builder::{BuildError, Kernel, Layout};
use std::rc::Rc;

/// Why a file is no kernel that can be started as a domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("it is neither a bzImage nor an ELF file")]
    NotAKernel,
    #[error("it is {0} data, but neither a bzImage nor an ELF file inside")]
    Compressed(Codec),
    #[error("it is a 32-bit kernel")]
    Narrow,
    #[error("its boot protocol {}.{:02} is too old", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    #[error("it is truncated: its header speaks of {needs} bytes, and the file has {has}")]
    Truncated { needs: u64, has: u64 },
    #[error("its compression is not known (first bytes {0})")]
    UnknownPayload(String),
    #[error("its {codec} data is damaged or truncated: {why}")]
    DamagedPayload { codec: Codec, why: String },
    #[error("{0}")]
    Build(BuildError),
}

impl ImageError {
    /// What the user can do about it.
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Narrow | Self::Build(BuildError::WrongMachine) => {
                "give a 64-bit x86 kernel; Debian's packages for it end in -amd64"
            }
            Self::Truncated { .. }
            | Self::DamagedPayload { .. }
            | Self::Build(BuildError::Truncated) => "fetch or copy the file again",
            Self::UnknownPayload(_) => {
                "known are gzip, bzip2, lzma, xz, lz4 and zstd; for any other give the ELF file, vmlinux"
            }
            Self::OldProtocol(_) => "give a kernel from Linux 2.6.26 on",
            Self::Build(BuildError::NoXenNotes | BuildError::NotPv) => {
                "a guest's kernel is built with CONFIG_XEN_PV=y, as Debian's are; `readelf -n vmlinux` shows its notes"
            }
            Self::NotAKernel | Self::Compressed(_) | Self::Build(_) => {
                "a kernel is a bzImage (vmlinuz), a 64-bit ELF file with Xen notes (vmlinux), or a Debian package of one (.deb)"
            }
        }
    }
}

/// A kernel, ready for the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelImage {
    /// Its ELF file.
    pub elf: Rc<Vec<u8>>,
    /// As `uname -r` says, where the file told.
    pub version: Option<String>,
    /// It is Linux, by its notes: it takes Linux's command line and ramdisks.
    pub is_linux: bool,
    /// First byte after all that it loads, in the domain's memory.
    pub end_paddr: u64,
}

impl KernelImage {
    /// Takes a file as it is: ELF, bzImage, or either compressed.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn open(file: Vec<u8>) -> Result<Self, ImageError> {
        let (elf, version) = if is_bzimage(&file) {
            let image = BzImage::parse(&file)?;
            (image.decompress()?, image.version)
        } else if file.starts_with(b"\x7fELF") {
            (file, None)
        } else {
            let Some(codec) = Codec::of(&file) else {
                return Err(ImageError::NotAKernel);
            };
            return Self::inside(codec, &file);
        };
        let kernel = Kernel::parse(&elf).map_err(ImageError::Build)?;
        let (is_linux, end_paddr) = (kernel.is_linux, kernel.end());
        Ok(Self { elf: Rc::new(elf), version, is_linux, end_paddr })
    }

    /// `vmlinux.gz` and the like.
    fn inside(codec: Codec, file: &[u8]) -> Result<Self, ImageError> {
        let damaged = |e: std::io::Error| ImageError::DamagedPayload { codec, why: e.to_string() };
        let inner = codec.decompress(file, bzimage::MOST_BYTES).map_err(damaged)?;
        match is_bzimage(&inner) || inner.starts_with(b"\x7fELF") {
            true => Self::open(inner),
            false => Err(ImageError::Compressed(codec)),
        }
    }

    /// Whether Dom0 can build a domain of `memory_bytes` from it, with a ramdisk of
    /// `ramdisk_bytes` (0 for none).
    ///
    /// # Errors
    /// Exactly what Dom0 would say.
    pub fn plan(&self, ramdisk_bytes: u64, memory_bytes: u64) -> Result<(), BuildError> {
        let kernel = Kernel::parse(&self.elf)?;
        Layout::plan(&kernel, ramdisk_bytes, memory_bytes / PAGE_SIZE as u64).map(drop)
    }
}

#[cfg(test)]
pub(crate) mod tests;
