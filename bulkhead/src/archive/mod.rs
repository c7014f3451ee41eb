//! Packs the boot archive that the core is started with: Dom0's program as plain
//! ranges, the payload (manifest and images) that becomes Dom0's ramdisk, and the
//! symbols of the core. The layout is [`bulkhead_abi::archive`]'s; this module only
//! fills it, for any PV kernel as Dom0.

mod payload;
mod symbols;

pub use payload::payload;
pub use symbols::symbol_table;

use crate::kernel_image::{ImageError, KernelImage};
use bulkhead_abi::{
    PAGE_SIZE,
    archive::{Header, MAGIC, MAX_SEGMENTS, Segment, VERSION},
};
use zerocopy::IntoBytes;

/// Frames that Dom0 needs past its program and its initial page tables to boot at all.
const LEAST_SPARE_FRAMES: u64 = 1024;
/// Bytes of the command line in the header, with the NUL at its end.
const CMDLINE_BYTES: usize = 256;

/// Why an archive could not be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    #[error("Dom0's kernel cannot be used: {0}")]
    Dom0(#[from] ImageError),
    #[error("the core's file cannot be used: {0}")]
    Core(String),
    #[error("Dom0's kernel has {0} ranges to load; the archive holds {MAX_SEGMENTS}")]
    TooManySegments(usize),
    #[error("Dom0's command line has {0} bytes; the archive holds {most}", most = CMDLINE_BYTES - 1)]
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
/// Nothing is packed if Dom0's kernel does not fit the header or its memory.
pub fn pack(dom0: Dom0<'_>, core_elf: Option<&[u8]>, payload: &[u8]) -> Result<Vec<u8>, PackError> {
    let kernel = KernelImage::parse(dom0.elf)?;
    let symbols = core_elf.map(symbol_table).transpose()?.unwrap_or_default();
    let mut header = header(dom0, &kernel)?;
    let mut body = Body::default();
    for (slot, load) in header.segments.iter_mut().zip(&kernel.loads) {
        *slot = Segment {
            offset: body.append(load.bytes),
            file_bytes: load.bytes.len() as u64,
            mem_bytes: load.mem_bytes,
            paddr: load.paddr,
        };
    }
    header.payload_offset = body.append(payload);
    header.payload_bytes = payload.len() as u64;
    header.symbols_offset = body.append(&symbols);
    header.symbols_bytes = symbols.len() as u64;
    Ok(body.finish(header))
}

fn header(dom0: Dom0<'_>, kernel: &KernelImage<'_>) -> Result<Header, PackError> {
    if kernel.loads.len() > MAX_SEGMENTS {
        return Err(PackError::TooManySegments(kernel.loads.len()));
    }
    if dom0.cmdline.len() >= CMDLINE_BYTES {
        return Err(PackError::LongCommandLine(dom0.cmdline.len()));
    }
    let needed = kernel.end_paddr.div_ceil(PAGE_SIZE as u64) + LEAST_SPARE_FRAMES;
    if dom0.frames < needed {
        return Err(PackError::LittleMemory { given: dom0.frames, needed });
    }
    let mut cmdline = [0; CMDLINE_BYTES];
    cmdline[..dom0.cmdline.len()].copy_from_slice(dom0.cmdline.as_bytes());
    Ok(Header {
        magic: MAGIC,
        version: VERSION,
        nr_segments: kernel.loads.len() as u32,
        total_bytes: 0,
        dom0_frames: dom0.frames,
        dom0_virt_base: kernel.virt_base,
        dom0_entry: kernel.entry,
        dom0_hypercall_page: kernel.hypercall_page.unwrap_or(0),
        payload_offset: 0,
        payload_bytes: 0,
        symbols_offset: 0,
        symbols_bytes: 0,
        dom0_cmdline: cmdline,
        segments: [Segment::default(); MAX_SEGMENTS],
    })
}

/// What follows the header page: pieces, each at the start of a page.
#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
}

impl Body {
    /// Appends a piece and gives its offset in the archive.
    fn append(&mut self, piece: &[u8]) -> u64 {
        let at = PAGE_SIZE + self.bytes.len();
        self.bytes.extend_from_slice(piece);
        self.bytes.resize(self.bytes.len().next_multiple_of(PAGE_SIZE), 0);
        at as u64
    }

    fn finish(self, mut header: Header) -> Vec<u8> {
        header.total_bytes = (PAGE_SIZE + self.bytes.len()) as u64;
        let mut archive = Vec::with_capacity(PAGE_SIZE + self.bytes.len());
        archive.extend_from_slice(header.as_bytes());
        archive.resize(PAGE_SIZE, 0);
        archive.extend_from_slice(&self.bytes);
        archive
    }
}

#[cfg(test)]
mod tests;
