//! Archives as the Linux kernel unpacks them at its start ("newc").
//! Source: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.

use crate::kernel_image::codec::Codec;

const MAGIC: &[u8] = b"070701";
/// The same with checksums, which the kernel takes as well.
const MAGIC_WITH_SUMS: &[u8] = b"070702";
const HEADER_BYTES: usize = 110;
const LAST: &str = "TRAILER!!!";

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const NODE: u32 = 0o020_600;

/// Numbers of a device node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

/// An archive that is being written. All in it belongs to root and has no time, so that
/// the same contents give the same bytes.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    pub fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER, Device::default(), &[]);
    }

    pub fn file(&mut self, name: &str, contents: &[u8]) {
        self.entry(name, FILE, Device::default(), contents);
    }

    pub fn program(&mut self, name: &str, contents: &[u8]) {
        self.entry(name, PROGRAM, Device::default(), contents);
    }

    /// A character device.
    pub fn node(&mut self, name: &str, device: Device) {
        self.entry(name, NODE, device, &[]);
    }

    /// The archive, with its end.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(LAST, 0, Device::default(), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: Device, contents: &[u8]) {
        self.entries += 1;
        self.bytes.extend_from_slice(MAGIC);
        let links = if mode == FOLDER { 2 } else { 1 };
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            contents.len() as u32,
            0,
            0,
            device.major,
            device.minor,
            name.len() as u32 + 1,
            0,
        ];
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(contents);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Bytes of all archives in a ramdisk when unpacked: several may follow each other, each
/// compressed or not, with zeros between.
pub fn unpacked_bytes(ramdisk: &[u8]) -> u64 {
    let mut rest = ramdisk;
    let mut total = 0;
    loop {
        let zeros = rest.iter().take_while(|&&b| b == 0).count();
        rest = &rest[zeros..];
        if rest.is_empty() {
            return total;
        }
        if let Some(codec) = Codec::of(rest) {
            // What follows a compressed archive is rare, and not looked for.
            return total + codec.measure(rest).unwrap_or(rest.len() as u64);
        }
        match archive_bytes(rest) {
            Some(bytes) => {
                total += bytes as u64;
                rest = &rest[bytes..];
            }
            None => return total + rest.len() as u64,
        }
    }
}

/// Bytes of an uncompressed archive, up to and with its last entry.
fn archive_bytes(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let header = bytes.get(at..at + HEADER_BYTES)?;
        if !header.starts_with(MAGIC) && !header.starts_with(MAGIC_WITH_SUMS) {
            return None;
        }
        let field = |index: usize| {
            let digits = std::str::from_utf8(&header[6 + 8 * index..][..8]).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        let (contents, name) = (field(6)?, field(11)?);
        let name_end = at + HEADER_BYTES + name;
        let is_last = bytes.get(at + HEADER_BYTES..name_end)?.starts_with(LAST.as_bytes());
        at = (name_end.next_multiple_of(4) + contents).next_multiple_of(4);
        if is_last {
            return Some(at.min(bytes.len()));
        }
    }
}
