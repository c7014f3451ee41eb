//! What fio left on a disk, read from the image on the host: each page says of itself
//! where it belongs and what is in it. Knows the header that fio 3 writes, and nothing of
//! how it got there.

use crc::{CRC_32_ISCSI, Crc, Table};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Bytes of a page that describes itself: fio's `verify_interval` here.
pub const PAGE: usize = 4096;

/// Header of fio's `verify.h`, all little-endian: u16 magic, u16 kind, u32 length, u64 seed,
/// u64 offset, u32 and u32 time, u16 thread, u16 number, u32 checksum of what is before it;
/// then, for this kind, u32 checksum of what follows.
const MAGIC: u16 = 0xacca;
const KIND_CRC32C: u16 = 5;
const OFFSET: usize = 16;
const HEADER_SUM: usize = 36;
const DATA_SUM: usize = 40;
const DATA: usize = 44;

/// fio leaves out the last complement of CRC-32C.
const CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

fn checksum(bytes: &[u8]) -> u32 {
    !CRC32C.checksum(bytes)
}

/// Most pages that are named.
const MOST_NAMED: usize = 10;

/// What is on an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Pages, all of which fio wrote.
    pub pages: u64,
    /// Those that are where and what they say.
    pub sound: u64,
    /// The first of the others, each with what is wrong.
    pub wrong: Vec<String>,
}

impl Image {
    pub const fn is_sound(&self) -> bool {
        self.pages > 0 && self.sound == self.pages
    }
}

/// Reads a whole image.
///
/// # Errors
/// If it cannot be read.
pub fn check(path: &Path) -> io::Result<Image> {
    let mut file = io::BufReader::with_capacity(1 << 20, File::open(path)?);
    let (mut found, mut page) = (Image::default(), [0; PAGE]);
    loop {
        match file.read_exact(&mut page) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(found),
            done => done?,
        }
        match judge(&page, found.pages * PAGE as u64) {
            Ok(()) => found.sound += 1,
            Err(why) if found.wrong.len() < MOST_NAMED => {
                found.wrong.push(format!("page {}: {why}", found.pages));
            }
            Err(_) => {}
        }
        found.pages += 1;
    }
}

/// Whether a page is what it says. Errors are for a person to read.
fn judge(page: &[u8; PAGE], offset: u64) -> Result<(), String> {
    if u16_at(page, 0) != MAGIC || u16_at(page, 2) != KIND_CRC32C {
        return Err("it is not one that fio wrote".into());
    }
    if u32_at(page, 4) as usize != PAGE {
        return Err(format!("it says that it has {} bytes", u32_at(page, 4)));
    }
    if u32_at(page, HEADER_SUM) != checksum(&page[..HEADER_SUM]) {
        return Err("its header is damaged".into());
    }
    let mut says = [0; 8];
    says.copy_from_slice(&page[OFFSET..OFFSET + 8]);
    let says = u64::from_le_bytes(says);
    if says != offset {
        return Err(format!("it belongs to page {}", says / PAGE as u64));
    }
    match u32_at(page, DATA_SUM) == checksum(&page[DATA..]) {
        true => Ok(()),
        false => Err("its contents are not those that were written together".into()),
    }
}

fn u16_at(page: &[u8; PAGE], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

fn u32_at(page: &[u8; PAGE], at: usize) -> u32 {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first bytes of a page that fio 3.33 wrote at offset 0x3e7000, and its two sums over
    /// zeroes in place of the rest.
    fn page() -> [u8; PAGE] {
        let mut page = [0; PAGE];
        page[..8].copy_from_slice(&[0xca, 0xac, 5, 0, 0, 0x10, 0, 0]);
        page[8..16].copy_from_slice(&0x2f10_551c_7add_c2fe_u64.to_le_bytes());
        page[16..24].copy_from_slice(&0x3e_7000_u64.to_le_bytes());
        sign(&mut page);
        page
    }

    fn sign(page: &mut [u8; PAGE]) {
        let data = checksum(&page[DATA..]);
        page[DATA_SUM..DATA].copy_from_slice(&data.to_le_bytes());
        let header = checksum(&page[..HEADER_SUM]);
        page[HEADER_SUM..DATA_SUM].copy_from_slice(&header.to_le_bytes());
    }

    #[test]
    fn the_checksum_is_fios() {
        // Header and sum of a page that fio 3.33 wrote.
        let header: [u8; 36] = [
            0xca, 0xac, 0x05, 0x00, 0x00, 0x10, 0x00, 0x00, 0xfe, 0xc2, 0xdd, 0x7a, 0x1c, 0x55,
            0x10, 0x2f, 0, 0, 0, 0, 0, 0, 0, 0, 0x64, 0, 0, 0, 0x2a, 0x5a, 0x90, 0x3a, 0x01, 0x00,
            0xe9, 0x09,
        ];
        assert_eq!(checksum(&header), 0x0a34_2fa8);
    }

    #[test]
    fn each_way_for_a_page_to_be_wrong_is_named() {
        assert_eq!(judge(&page(), 0x3e_7000), Ok(()));
        let why = |change: &dyn Fn(&mut [u8; PAGE]), offset| {
            let mut page = page();
            change(&mut page);
            judge(&page, offset).expect_err("wrong")
        };
        assert!(why(&|_| (), 0x1000).contains("belongs to page 999"));
        assert!(why(&|p| *p = [0; PAGE], 0).contains("not one that fio wrote"));
        assert!(why(&|p| p[9] ^= 1, 0x3e_7000).contains("header"));
        assert!(why(&|p| p[4095] ^= 0x80, 0x3e_7000).contains("contents"));
        assert!(why(&|p| p[5] = 8, 0x3e_7000).contains("2048 bytes"));
    }

    #[test]
    fn an_image_is_sound_only_if_every_page_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        let mut bytes = Vec::new();
        for n in 0..3u64 {
            let mut page = page();
            page[16..24].copy_from_slice(&(n * PAGE as u64).to_le_bytes());
            sign(&mut page);
            bytes.extend(page);
        }
        std::fs::write(&path, &bytes).expect("written");
        let found = check(&path).expect("read");
        assert!(found.is_sound() && found.pages == 3, "{found:?}");
        // A torn page: half of it is another's.
        bytes[4096 + 2048..8192].fill(7);
        std::fs::write(&path, &bytes).expect("written");
        let found = check(&path).expect("read");
        assert_eq!((found.sound, found.wrong.len(), found.is_sound()), (2, 1, false));
        assert!(found.wrong[0].starts_with("page 1:"), "{found:?}");
        assert!(!Image::default().is_sound(), "an empty one shows nothing");
    }
}
