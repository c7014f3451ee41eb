use super::{bzimage::BzImage, codec::Codec, *};
use bulkhead_abi::elfnote;
use elf::abi::{EM_X86_64, PT_LOAD, PT_NOTE};
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

/// The notes of Linux.
fn linux_notes() -> Vec<u8> {
    let mut all = notes();
    all.extend(note(elfnote::GUEST_OS, b"linux\0"));
    all
}

fn linux() -> Vec<u8> {
    let notes = linux_notes();
    elf(&[
        (PT_LOAD, 0x10_0000, b"text", 0x1000),
        (PT_LOAD, 0x20_0000, b"data", 0x3000),
        (PT_NOTE, 0, &notes, notes.len() as u64),
    ])
}

/// A bzImage as the boot protocol has it: two sectors of set-up, then code, then the
/// payload at an offset in it.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 3 * 512 + 0x2cc];
    file[0x1f1] = 2;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    file[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    file[0x236] = 1;
    file[0x248..0x24c].copy_from_slice(&0x2ccu32.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file[0x300..0x317].copy_from_slice(b"6.1.0-9-amd64 (debian) ");
    file.extend(payload);
    file.extend(b"what a signature might add");
    file
}

/// What the golden files were made from: calls to one place from many, which the x86
/// filter of xz changes, and a text.
fn golden_text() -> Vec<u8> {
    let mut text = Vec::new();
    for i in 0..100u32 {
        text.push(0xe8);
        text.extend((0x10_0000 - i * 6).to_le_bytes());
        text.push(0x90);
    }
    text.extend(b"and the same again; ".repeat(20));
    text
}

/// Made by the tools of those names, as the kernel's build calls them.
const GOLDEN: [(Codec, &[u8]); 7] = [
    (Codec::Gzip, include_bytes!("golden/gzip")),
    (Codec::Bzip2, include_bytes!("golden/bzip2")),
    (Codec::Lzma, include_bytes!("golden/lzma")),
    (Codec::Xz, include_bytes!("golden/xz")),
    (Codec::Lz4, include_bytes!("golden/lz4")),
    (Codec::Lz4, include_bytes!("golden/lz4-frames")),
    (Codec::Zstd, include_bytes!("golden/zstd")),
];

/// With the size of what it holds at the end, as the kernel's build appends it.
fn with_size(codec: Codec, packed: &[u8], size: usize) -> Vec<u8> {
    let mut payload = packed.to_vec();
    if codec != Codec::Gzip {
        payload.extend((size as u32).to_le_bytes());
    }
    payload
}

#[test]
fn every_compression_that_linux_uses_is_undone() {
    for (codec, packed) in GOLDEN {
        assert_eq!(Codec::of(packed), Some(codec));
        let image = bzimage(&with_size(codec, packed, golden_text().len()));
        let image = BzImage::parse(&image).expect("a sound header");
        assert_eq!(image.version.as_deref(), Some("6.1.0-9-amd64"));
        assert!(image.decompress().expect("sound data") == golden_text(), "{codec}");
        assert_eq!(codec.measure(packed).expect("sound data"), golden_text().len() as u64);
    }
}

#[test]
fn a_payload_that_was_cut_or_changed_is_refused() {
    for (codec, packed) in GOLDEN {
        let mut cut = with_size(codec, packed, golden_text().len());
        cut.drain(packed.len() / 2..packed.len() / 2 + 20);
        let mut lies = with_size(codec, packed, golden_text().len());
        *lies.last_mut().expect("a size") ^= 1;
        for bad in [cut, lies] {
            let file = bzimage(&bad);
            let told = BzImage::parse(&file).expect("a sound header").decompress();
            assert!(
                matches!(told, Err(ImageError::DamagedPayload { codec: c, .. }) if c == codec),
                "{codec}: {told:?}"
            );
        }
    }
}

#[test]
fn decompression_ends_at_its_limit() {
    for (codec, packed) in GOLDEN {
        let told = codec.decompress(packed, 900).expect_err("too large").to_string();
        assert!(told.contains("more than 900 bytes"), "{codec}: {told}");
    }
}

#[test]
fn a_kernel_is_the_same_from_an_elf_a_bzimage_and_a_compressed_file() {
    let elf = linux();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &elf).expect("packs");
    let gzip = gzip.finish().expect("packs");
    let plain = KernelImage::open(elf.clone()).expect("a kernel");
    assert!(plain.is_linux && plain.version.is_none());
    assert_eq!((plain.end_paddr, &*plain.elf), (0x20_3000, &elf));
    assert_eq!(KernelImage::open(gzip.clone()).expect("a kernel"), plain);
    for payload in [gzip, with_size(Codec::Xz, &elf, elf.len())] {
        // The second one is not compressed at all.
        let image = KernelImage::open(bzimage(&payload)).expect("a kernel");
        assert_eq!(image.version.as_deref(), Some("6.1.0-9-amd64"));
        assert!(image.elf.starts_with(&elf) && image.is_linux);
    }
}

#[test]
fn refuses_what_is_no_paravirtual_kernel_and_says_why() {
    let load = (PT_LOAD, 0x10_0000, &b"text"[..], 4);
    let pvh = note(elfnote::PHYS32_ENTRY, &0x100_0000u32.to_le_bytes());
    let mut narrow = elf(&[load]);
    narrow[4] = 1;
    let mut narrow_bz = bzimage(b"");
    narrow_bz[0x236] = 0;
    let mut old = bzimage(b"");
    old[0x206] = 7;
    let mut header_only = bzimage(b"payload");
    header_only.truncate(0x210);
    let mut short = bzimage(&[0; 4096]);
    short.truncate(4096);
    let cases = [
        (b"#!/bin/sh".to_vec(), "neither a bzImage nor an ELF", "bzImage"),
        (Vec::new(), "neither a bzImage nor an ELF", "bzImage"),
        (GOLDEN[0].1.to_vec(), "gzip data", "bzImage"),
        (narrow, "64-bit", "64-bit"),
        (narrow_bz, "32-bit", "-amd64"),
        (old, "boot protocol 2.07", "2.6.26"),
        (header_only, "truncated", "again"),
        (short, "truncated: its header speaks of", "again"),
        (bzimage(b"\x89LZO payload"), "first bytes 89 4c 5a 4f", "vmlinux"),
        (elf(&[load]), "no Xen notes", "CONFIG_XEN_PV"),
        (elf(&[load, (PT_NOTE, 0, &pvh, 0)]), "CONFIG_XEN_PV", "CONFIG_XEN_PV"),
        (elf(&[load])[..100].to_vec(), "truncated", "again"),
    ];
    for (file, why, remedy) in cases {
        let error = KernelImage::open(file).expect_err(why);
        assert!(error.to_string().contains(why), "{error} should say {why:?}");
        assert!(error.remedy().contains(remedy), "{error}: {}", error.remedy());
    }
}

#[test]
fn says_how_much_memory_dom0_will_want_as_dom0_says_it() {
    let image = KernelImage::open(linux()).expect("a kernel");
    assert_eq!(image.plan(0, 16 << 20), Ok(()));
    for (ramdisk, memory) in [(0, 1 << 20), (15 << 20, 16 << 20)] {
        let Err(BuildError::TooLittleMemory { needed_kib, given_kib }) =
            image.plan(ramdisk, memory)
        else {
            panic!("should be too little")
        };
        assert_eq!(given_kib, memory >> 10);
        assert!(needed_kib << 10 >= ramdisk + image.end_paddr);
    }
}

proptest! {
    #[test]
    fn never_panics_on_a_damaged_file(
        at in 0usize..0x400, bytes in prop::collection::vec(any::<u8>(), 1..8), cut in 0usize..8192,
        which in 0..GOLDEN.len(),
    ) {
        let (codec, packed) = GOLDEN[which];
        let mut file = bzimage(&with_size(codec, packed, golden_text().len()));
        for (i, byte) in bytes.iter().enumerate() {
            let len = file.len();
            file[(at + i) % len] = *byte;
        }
        file.truncate(cut);
        let _ = KernelImage::open(file);
    }

    #[test]
    fn never_panics_on_damaged_data(
        which in 0..GOLDEN.len(), pokes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..5),
    ) {
        let (codec, packed) = GOLDEN[which];
        let mut packed = packed.to_vec();
        for (at, byte) in pokes {
            let len = packed.len();
            packed[at % len] = byte;
        }
        let _ = codec.decompress(&packed, 1 << 20);
    }
}
