use super::*;
use proptest::prelude::*;

/// A segment of a made-up kernel: type, paddr, contents, bytes in memory.
pub(crate) type Piece<'a> = (u32, u64, &'a [u8], u64);

/// Builds an ELF64 file from segments by hand, byte for byte as the format says.
pub(crate) fn elf(pieces: &[Piece<'_>]) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend(2u16.to_le_bytes());
    file.extend(EM_X86_64.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [0u64, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, pieces.len() as u16, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut offset = 64 + 56 * pieces.len() as u64;
    for (kind, paddr, bytes, mem) in pieces {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for word in [offset, 0, *paddr, bytes.len() as u64, *mem, 4] {
            file.extend(word.to_le_bytes());
        }
        offset += bytes.len() as u64;
    }
    pieces.iter().for_each(|piece| file.extend(piece.2));
    file
}

/// One Xen note.
pub(crate) fn note(kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4, desc.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(desc);
    note.resize(note.len().next_multiple_of(4), 0);
    note
}

/// The notes of a kernel that can be started.
pub(crate) fn notes() -> Vec<u8> {
    let mut notes = note(elfnote::LOADER, b"generic\0");
    notes.extend(note(elfnote::VIRT_BASE, &0xffff_ffff_8000_0000u64.to_le_bytes()));
    notes.extend(note(elfnote::ENTRY, &0xffff_ffff_8010_0000u64.to_le_bytes()));
    notes
}

#[test]
fn reads_ranges_by_physical_address_in_order() {
    let notes = notes();
    let file = elf(&[
        (PT_LOAD, 0x20_0000, b"data", 0x3000),
        (PT_LOAD, 0x10_0000, b"text", 4),
        (PT_NOTE, 0, &notes, notes.len() as u64),
    ]);
    let kernel = KernelImage::parse(&file).expect("a kernel");
    let loads: Vec<_> = kernel.loads.iter().map(|l| (l.paddr, l.bytes, l.mem_bytes)).collect();
    assert_eq!(loads, [(0x10_0000, &b"text"[..], 4), (0x20_0000, &b"data"[..], 0x3000)]);
    assert_eq!(kernel.end_paddr, 0x20_3000);
    assert_eq!(kernel.entry, 0xffff_ffff_8010_0000);
    assert_eq!(kernel.hypercall_page, None);
}

#[test]
fn takes_the_paddr_offset_off_and_reads_notes_of_four_bytes() {
    let mut notes = notes();
    notes.extend(note(elfnote::PADDR_OFFSET, &0x10_0000u32.to_le_bytes()));
    let file = elf(&[(PT_LOAD, 0x10_1000, b"x", 1), (PT_NOTE, 0, &notes, 0)]);
    assert_eq!(KernelImage::parse(&file).expect("a kernel").loads[0].paddr, 0x1000);
}

#[test]
fn refuses_what_is_no_paravirtual_kernel_and_says_why() {
    let load = (PT_LOAD, 0x10_0000, &b"text"[..], 4);
    let no_entry = note(elfnote::VIRT_BASE, &[0; 8]);
    let mut narrow = elf(&[load]);
    narrow[4] = 1;
    let mut arm = elf(&[load]);
    arm[18] = 183;
    let cases = [
        (b"#!/bin/sh".to_vec(), "not an ELF"),
        (narrow, "32-bit"),
        (arm, "foreign-machine"),
        (elf(&[]), "nothing to load"),
        (elf(&[load]), "no Xen ELF note"),
        (elf(&[load, (PT_NOTE, 0, &no_entry, 0)]), "no Xen ELF note ENTRY"),
        (elf(&[(PT_LOAD, u64::MAX, b"x", 2)]), "wraps"),
        (elf(&[(PT_LOAD, 0, b"long", 2)]), "larger in the file"),
        (elf(&[load])[..100].to_vec(), "not an ELF"),
    ];
    for (file, why) in cases {
        let error = KernelImage::parse(&file).expect_err(why).to_string();
        assert!(error.contains(why), "{error:?} should say {why:?}");
    }
}

proptest! {
    #[test]
    fn never_panics_on_a_damaged_file(at in 0usize..400, byte: u8, cut in 0usize..400) {
        let notes = notes();
        let mut file = elf(&[(PT_LOAD, 0x10_0000, b"text", 4), (PT_NOTE, 0, &notes, 0)]);
        let len = file.len();
        file[at % len] = byte;
        file.truncate(len - cut % 64);
        let _ = KernelImage::parse(&file);
    }
}
