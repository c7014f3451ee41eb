//! Every regular file of an ext4 file system, with its size and SHA-256. Knows files
//! and not disks: the bytes come through [`BlockSource`].

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::error::Error;
use ext4_view::{Ext4, Ext4Error, Ext4Read, PathBuf};
use sha2::{Digest, Sha256};

/// Something that is read a chunk at a time.
pub trait BlockSource {
    /// Its length, bytes.
    fn bytes(&self) -> u64;
    /// Fills `into` from `offset`, a multiple of [`CHUNK`]; it lies inside.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// Bytes read at a time.
pub const CHUNK: usize = 128 * 1024;
/// Chunks that are kept.
const KEPT: usize = 16;

/// A file of the listing.
pub struct Entry {
    /// Absolute, as it is to be shown.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Of the contents.
    pub sha256: [u8; 32],
}

impl Entry {
    /// The line of the listing, without its end.
    pub fn line(&self) -> String {
        let mut hex = String::new();
        for byte in self.sha256 {
            hex.push_str(&format!("{byte:02x}"));
        }
        format!("{hex}  {}  {}", self.size, self.path)
    }
}

/// Calls `found` for every regular file, in the order of their paths, folder by folder.
/// Gives the number of files and bytes.
pub fn list(
    source: impl BlockSource + 'static,
    mut found: impl FnMut(Entry),
) -> Result<(u64, u64), Ext4Error> {
    let fs = Ext4::load(Box::new(Cached::new(source)))?;
    let mut folders = vec![PathBuf::new("/")];
    let (mut files, mut bytes) = (0, 0);
    let mut buffer = vec![0; CHUNK];
    while let Some(folder) = folders.pop() {
        let mut paths = Vec::new();
        for entry in fs.read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != "." && name != ".." {
                paths.push((entry.path(), entry.file_type()?));
            }
        }
        paths.sort_by(|a, b| a.0.cmp(&b.0));
        for (path, kind) in &paths {
            if kind.is_regular_file() {
                let entry = hash(&fs, path, &mut buffer)?;
                files += 1;
                bytes += entry.size;
                found(entry);
            }
        }
        let below = paths.into_iter().rev().filter(|(_, kind)| kind.is_dir());
        folders.extend(below.map(|(path, _)| path));
    }
    Ok((files, bytes))
}

fn hash(fs: &Ext4, path: &PathBuf, buffer: &mut [u8]) -> Result<Entry, Ext4Error> {
    let mut file = fs.open(path)?;
    let mut hash = Sha256::new();
    let mut size = 0;
    loop {
        let read = file.read_bytes(buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        hash.update(bytes);
        size += read as u64;
    }
    Ok(Entry { path: format!("{}", path.display()), size, sha256: hash.finalize().into() })
}

/// Reads whole chunks and keeps the last few.
struct Cached<S> {
    source: S,
    /// Most recently used last.
    chunks: Vec<(u64, Box<[u8]>)>,
}

impl<S: BlockSource> Cached<S> {
    fn new(source: S) -> Self {
        Self { source, chunks: Vec::new() }
    }

    fn chunk(&mut self, number: u64) -> Result<&[u8], Box<dyn Error + Send + Sync>> {
        if let Some(at) = self.chunks.iter().position(|(n, _)| *n == number) {
            let chunk = self.chunks.remove(at);
            self.chunks.push(chunk);
        } else {
            let offset = number * CHUNK as u64;
            let left = self.source.bytes().saturating_sub(offset);
            let mut bytes = vec![0; left.min(CHUNK as u64) as usize].into_boxed_slice();
            self.source.read(offset, &mut bytes)?;
            if self.chunks.len() == KEPT {
                self.chunks.remove(0);
            }
            self.chunks.push((number, bytes));
        }
        Ok(self.chunks.last().map_or(&[], |(_, bytes)| bytes))
    }
}

impl<S: BlockSource> Ext4Read for Cached<S> {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        let mut at = start_byte;
        let mut dst = dst;
        while !dst.is_empty() {
            let chunk = self.chunk(at / CHUNK as u64)?;
            let part = chunk.get((at % CHUNK as u64) as usize..).unwrap_or_default();
            let bytes = part.len().min(dst.len());
            if bytes == 0 {
                return Err("read past the end of the disk".into());
            }
            let (now, later) = dst.split_at_mut(bytes);
            now.copy_from_slice(part.get(..bytes).unwrap_or_default());
            at += bytes as u64;
            dst = later;
        }
        Ok(())
    }
}
