//! The file that Linux distributions ship, a bzImage: a boot sector's worth of header,
//! and somewhere behind it the compressed ELF file that matters here.
//! Source: the kernel's `Documentation/arch/x86/boot.rst`; ABI notes 1.2.

use super::{ImageError, codec::Codec};
use std::ops::Range;

/// Most bytes of an uncompressed kernel; Debian's have 60 MiB.
pub(super) const MOST_BYTES: u64 = 512 << 20;
/// First version of the header with `xloadflags`.
const WITH_LOAD_FLAGS: u16 = 0x020c;
/// First version of the header with `payload_offset` and `payload_length`.
const WITH_PAYLOAD: u16 = 0x0208;
/// `xloadflags`: there is a 64-bit entry, so the kernel is a 64-bit one.
const XLF_KERNEL_64: u16 = 1;
/// Longest text of a version.
const VERSION_BYTES: usize = 128;

/// A bzImage with a sound header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BzImage<'a> {
    /// The compressed kernel.
    payload: &'a [u8],
    /// As `uname -r` will say, if the header tells.
    pub version: Option<String>,
}

/// Whether the file is a bzImage at all.
pub fn is_bzimage(file: &[u8]) -> bool {
    file.get(0x202..0x206) == Some(b"HdrS")
}

impl<'a> BzImage<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// If it is too old, for 32 bits, or names bytes that are not there.
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        let header = Header(file);
        let protocol = header.half(0x206)?;
        if protocol < WITH_PAYLOAD {
            return Err(ImageError::OldProtocol(protocol));
        }
        if protocol >= WITH_LOAD_FLAGS && header.half(0x236)? & XLF_KERNEL_64 == 0 {
            return Err(ImageError::Narrow);
        }
        // A count of 0 means 4, for historical reasons.
        let setup_sectors = match header.byte(0x1f1)? {
            0 => 4,
            n => u64::from(n),
        };
        let code = (setup_sectors + 1) * 512;
        let start = code + u64::from(header.word(0x248)?);
        let payload = header.range(start..start + u64::from(header.word(0x24c)?))?;
        Ok(Self { payload, version: version(&header) })
    }

    /// The kernel's ELF file.
    ///
    /// # Errors
    /// If the payload's form is not known, or the payload is damaged.
    pub fn decompress(&self) -> Result<Vec<u8>, ImageError> {
        let Some(codec) = Codec::of(self.payload) else {
            // A kernel may be built without compression.
            return match self.payload.starts_with(b"\x7fELF") {
                true => Ok(self.payload.to_vec()),
                false => Err(ImageError::UnknownPayload(first_bytes(self.payload))),
            };
        };
        let damaged = |why: String| ImageError::DamagedPayload { codec, why };
        let Some((packed, size)) = self.payload.split_last_chunk() else {
            return Err(damaged("it has no size at its end".into()));
        };
        // The build appends the size, but for gzip, whose last four bytes are just that.
        let packed = if codec == Codec::Gzip { self.payload } else { packed };
        let elf = codec.decompress(packed, MOST_BYTES).map_err(|e| damaged(e.to_string()))?;
        let announced = u32::from_le_bytes(*size);
        match u64::from(announced) == elf.len() as u64 {
            true => Ok(elf),
            false => Err(damaged(format!(
                "it became {} bytes where {announced} are announced",
                elf.len()
            ))),
        }
    }
}

fn first_bytes(payload: &[u8]) -> String {
    let shown: Vec<_> = payload.iter().take(6).map(|b| format!("{b:02x}")).collect();
    shown.join(" ")
}

/// `kernel_version` points at text like `6.1.0-9-amd64 (debian-kernel@...) #1 SMP ...`.
fn version(header: &Header<'_>) -> Option<String> {
    let at = u64::from(header.half(0x20e).ok()?);
    if at == 0 {
        return None;
    }
    let start = usize::try_from(at + 0x200).ok()?;
    let text = header.0.get(start..)?;
    let text = &text[..text.len().min(VERSION_BYTES)];
    let word = text.split(|&b| b == b' ' || b == 0).next()?;
    let word = std::str::from_utf8(word).ok()?;
    let is_version = |c: char| c.is_ascii_alphanumeric() || "._+~-".contains(c);
    (!word.is_empty() && word.chars().all(is_version)).then(|| word.to_owned())
}

struct Header<'a>(&'a [u8]);

impl<'a> Header<'a> {
    fn range(&self, range: Range<u64>) -> Result<&'a [u8], ImageError> {
        let within = |at| usize::try_from(at).ok();
        let found = within(range.start).zip(within(range.end)).map(|(s, e)| s..e);
        found
            .and_then(|range| self.0.get(range))
            .ok_or(ImageError::Truncated { needs: range.end, has: self.0.len() as u64 })
    }

    fn byte(&self, at: u64) -> Result<u8, ImageError> {
        Ok(self.range(at..at + 1)?[0])
    }

    fn half(&self, at: u64) -> Result<u16, ImageError> {
        let bytes = self.range(at..at + 2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn word(&self, at: u64) -> Result<u32, ImageError> {
        let bytes = self.range(at..at + 4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}
