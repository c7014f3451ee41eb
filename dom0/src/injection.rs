//! Faults for a driver domain of this workspace: where in its memory they go, and what the
//! table of armed changes gets (`bulkhead_abi::ledger::patch`). Requests come from the host
//! tool and are checked here; reaching the memory is the binary's.

use alloc::{format, string::String};
use bulkhead_abi::{PAGE_SIZE, Pfn, ledger::patch as at};
use bulkhead_link::injection::{Change, MOST_CODE, Patch};
use core::ops::Range;

/// Where the runtime of the domains has its image, and all its frames: linear address of
/// pfn 0 in each, as its linker script and its memory say.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;

/// The breakpoint that is written over the first byte of an instruction.
pub const BREAKPOINT: u8 = 0xcc;

/// A byte of a domain's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub pfn: Pfn,
    /// Within the frame.
    pub offset: usize,
}

impl Place {
    /// Where a linear address of a domain of `nr_pages` frames is.
    ///
    /// # Errors
    /// It is in neither mapping, or past the end; for a person to read.
    pub fn of(va: u64, nr_pages: u64) -> Result<Self, String> {
        let paddr = [IMAGE, DIRECT_MAP].into_iter().find_map(|base| {
            va.checked_sub(base).filter(|paddr| paddr / (PAGE_SIZE as u64) < nr_pages)
        });
        let paddr = paddr.ok_or_else(|| format!("{va:#x} is no address of its memory"))?;
        let page = PAGE_SIZE as u64;
        Ok(Self { pfn: Pfn::new(paddr / page), offset: (paddr % page) as usize })
    }
}

/// The address at a share of 2^32 from the start of a range to its end.
///
/// # Errors
/// The range is empty: the domain has not said where it is.
pub fn at_share(range: Range<u64>, share: u32) -> Result<u64, String> {
    let bytes = range.end.saturating_sub(range.start);
    if bytes == 0 {
        return Err("it has not said where its heap and its stack are".into());
    }
    Ok(range.start + ((u128::from(bytes) * u128::from(share)) >> 32) as u64)
}

/// The words of a table entry, as they are written, 8 bytes each.
///
/// # Errors
/// A change that makes no sense.
pub fn entry(patch: &Patch) -> Result<[u64; at::BYTES / 8], String> {
    let length = patch.old.len();
    if length == 0 || length > MOST_CODE {
        return Err(format!("an instruction has no {length} bytes"));
    }
    let mut words = [0; at::BYTES / 8];
    words[at::VA / 8] = patch.va;
    put(&mut words, at::OLD / 8, &patch.old);
    let kind = match &patch.change {
        Change::Code(new) if new.len() == length => {
            put(&mut words, at::NEW / 8, new);
            at::KIND_CODE
        }
        Change::Code(new) => return Err(format!("{} bytes for {length}", new.len())),
        Change::Register { register, bit } if *register <= 17 && *bit < 64 => {
            words[at::REGISTER / 8] = u64::from(*register) | u64::from(*bit) << 32;
            at::KIND_REGISTER
        }
        Change::Register { register, bit } => {
            return Err(format!("there is no bit {bit} of register {register}"));
        }
    };
    words[at::KIND / 8] = u64::from(kind) | (length as u64) << 32;
    Ok(words)
}

fn put(words: &mut [u64], first: usize, bytes: &[u8]) {
    for (word, chunk) in words.iter_mut().skip(first).zip(bytes.chunks(8)) {
        let mut padded = [0; 8];
        padded[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(padded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn an_address_is_found_in_the_image_and_in_the_direct_map_and_nowhere_else() {
        let place = |va| Place::of(va, 16);
        let (pfn, offset) = (Pfn::new(3), 5);
        assert_eq!(place(IMAGE + 0x3005), Ok(Place { pfn, offset }));
        assert_eq!(place(DIRECT_MAP + 0x3005), Ok(Place { pfn, offset }));
        for va in [0, IMAGE + 0x10000, DIRECT_MAP + 0x10000, DIRECT_MAP - 1, u64::MAX] {
            assert!(place(va).is_err(), "{va:#x}");
        }
    }

    #[test]
    fn a_share_is_within_its_range() {
        assert_eq!(at_share(100..200, 0), Ok(100));
        assert_eq!(at_share(100..200, 1 << 31), Ok(150));
        assert_eq!(at_share(100..200, u32::MAX), Ok(199));
        let backwards = Range { start: 7, end: 0 };
        assert!(at_share(7..7, 0).is_err() && at_share(backwards, 9).is_err());
    }

    #[test]
    fn an_entry_has_its_words_where_the_runtime_looks_for_them() {
        let (va, old) = (0xffff_ffff_8010_0000, vec![1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let change = Change::Code(vec![0x90; 9]);
        let words = entry(&Patch { va, old: old.clone(), change }).unwrap();
        assert_eq!(words[..4], [va, 9 << 32 | 1, 0x0807_0605_0403_0201, 9]);
        assert_eq!(words[4..], [0x9090_9090_9090_9090, 0x90, 0, 0]);
        let change = Change::Register { register: 17, bit: 63 };
        let words = entry(&Patch { va, old, change }).unwrap();
        assert_eq!((words[1], words[7]), (9 << 32 | 2, 63 << 32 | 17));
    }

    #[test]
    fn a_change_that_makes_no_sense_is_refused() {
        let refused = |old: usize, change| {
            assert!(entry(&Patch { va: 0, old: vec![0; old], change }).is_err());
        };
        refused(0, Change::Code(vec![]));
        refused(17, Change::Code(vec![0; 17]));
        refused(3, Change::Code(vec![0; 2]));
        refused(3, Change::Register { register: 18, bit: 0 });
        refused(3, Change::Register { register: 0, bit: 64 });
    }
}
