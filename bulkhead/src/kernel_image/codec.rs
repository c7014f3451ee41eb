//! The compressions that kernels, modules and ramdisks come in: told apart by their
//! first bytes, and undone.

use ruzstd::decoding::StreamingDecoder;
use std::{
    fmt,
    io::{self, Read},
};

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    /// In frames, or in the older form that Linux uses.
    Lz4,
    Zstd,
}

/// First bytes, as Linux knows them (`lib/decompress.c`).
const MAGICS: [(&[u8], Codec); 8] = [
    (&[0x1f, 0x8b], Codec::Gzip),
    (&[0x1f, 0x9e], Codec::Gzip),
    (b"BZh", Codec::Bzip2),
    (&[0x5d, 0, 0], Codec::Lzma),
    (b"\xfd7zXZ\0", Codec::Xz),
    (&[0x02, 0x21, 0x4c, 0x18], Codec::Lz4),
    (&[0x04, 0x22, 0x4d, 0x18], Codec::Lz4),
    (&[0x28, 0xb5, 0x2f, 0xfd], Codec::Zstd),
];

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

impl Codec {
    /// Tells by the first bytes; None for what is in none of these forms.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, codec)| *codec)
    }

    /// Undoes it. What follows the compressed bytes is ignored.
    ///
    /// # Errors
    /// If the bytes are damaged or end too early, or become more than `most_bytes`.
    pub fn decompress(self, bytes: &[u8], most_bytes: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let limit = most_bytes.saturating_add(1);
        self.reader(bytes)?.take(limit).read_to_end(&mut out)?;
        match out.len() as u64 > most_bytes {
            true => Err(io::Error::other(format!("it becomes more than {most_bytes} bytes"))),
            false => Ok(out),
        }
    }

    /// Bytes that come out, without keeping them.
    ///
    /// # Errors
    /// As [`Codec::decompress`].
    pub fn measure(self, bytes: &[u8]) -> io::Result<u64> {
        io::copy(&mut self.reader(bytes)?, &mut io::sink())
    }

    fn reader(self, bytes: &[u8]) -> io::Result<Box<dyn Read + '_>> {
        let invalid = |e: &dyn fmt::Display| io::Error::other(e.to_string());
        Ok(match self {
            Self::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
            Self::Bzip2 => Box::new(bzip2::read::BzDecoder::new(bytes)),
            Self::Lzma => Box::new(
                lzma_rust2::LzmaReader::new_mem_limit(bytes, u32::MAX, None)
                    .map_err(|e| invalid(&e))?,
            ),
            Self::Xz => Box::new(lzma_rust2::XzReader::new(bytes, false)),
            Self::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(bytes)),
            Self::Zstd => Box::new(StreamingDecoder::new(bytes).map_err(|e| invalid(&e))?),
        })
    }
}

/// Undoes whatever compression there is; bytes in no known form are taken as they are.
///
/// # Errors
/// As [`Codec::decompress`], with the compression's name.
pub fn plain(bytes: Vec<u8>, most_bytes: u64) -> io::Result<Vec<u8>> {
    match Codec::of(&bytes) {
        None => Ok(bytes),
        Some(codec) => codec
            .decompress(&bytes, most_bytes)
            .map_err(|e| io::Error::new(e.kind(), format!("its {codec} data is damaged: {e}"))),
    }
}
