//! Packs the boot archive that the core is started with: Dom0's memory as it starts, the
//! payload (manifest and images) that becomes Dom0's ramdisk, and the
//! symbols of the core. The layout is [`bulkhead_abi::archive`]'s; this module only
//! fills it, for any PV kernel as Dom0.

mod image;
mod payload;
mod symbols;

pub use payload::payload;
pub use symbols::symbol_table;

use bulkhead_abi::{
    PAGE_SIZE,
    archive::{Header, MAGIC, Run, VERSION},
    start_info::StartInfo,
};
use dom0::builder::BuildError;
use std::mem::offset_of;
use zerocopy::{FromZeros, IntoBytes};

/// Bytes of the command line in the start-of-day page, with the NUL at its end.
const CMDLINE_BYTES: usize = offset_of!(StartInfo, first_p2m_pfn) - offset_of!(StartInfo, cmd_line);

/// Why an archive could not be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    #[error("Dom0 cannot be built: {0}")]
    Dom0(#[from] BuildError),
    #[error("the core's file cannot be used: {0}")]
    Core(String),
    #[error("Dom0's command line has {0} bytes; it can be given {most}", most = CMDLINE_BYTES - 1)]
    LongCommandLine(usize),
    #[error("Dom0 gets {given} frames of memory and needs {needed}")]
    LittleMemory { given: u64, needed: u64 },
    #[error("the manifest cannot be encoded: {0}")]
    Manifest(String),
}

/// Dom0 and what it is started with.
#[derive(Clone, Copy, Debug)]
pub struct Dom0<'a> {
    /// Its ELF file.
    pub elf: &'a [u8],
    pub cmdline: &'a str,
    /// Frames of 4 KiB that it gets besides its ramdisk.
    pub frames: u64,
}

/// Packs one archive.
///
/// `core_elf` is the file of the core, for the symbols of its last words; without it
/// a backtrace has bare addresses. `payload` becomes Dom0's ramdisk as it is.
///
/// # Errors
/// Nothing is packed if Dom0's kernel can not be started, or not in its memory.
pub fn pack(dom0: Dom0<'_>, core_elf: Option<&[u8]>, payload: &[u8]) -> Result<Vec<u8>, PackError> {
    if dom0.cmdline.len() >= CMDLINE_BYTES {
        return Err(PackError::LongCommandLine(dom0.cmdline.len()));
    }
    let symbols = core_elf.map(symbol_table).transpose()?.unwrap_or_default();
    let mut header = Header::new_zeroed();
    header.magic = MAGIC;
    header.version = VERSION;
    let image = image::image(dom0, payload.len() as u64, &mut header)?;
    let mut archive = vec![0; PAGE_SIZE];
    header.symbols = append(&mut archive, &symbols);
    header.image = append(&mut archive, &image);
    header.payload = append(&mut archive, payload);
    header.pages = (archive.len() / PAGE_SIZE) as u64;
    archive[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    Ok(archive)
}

/// Appends a piece, as whole pages.
fn append(archive: &mut Vec<u8>, piece: &[u8]) -> Run {
    let first = archive.len() / PAGE_SIZE;
    archive.extend_from_slice(piece);
    archive.resize(archive.len().next_multiple_of(PAGE_SIZE), 0);
    Run { first: first as u64, pages: (archive.len() / PAGE_SIZE - first) as u64 }
}

#[cfg(test)]
mod tests;
