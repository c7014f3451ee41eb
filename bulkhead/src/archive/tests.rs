use super::*;
use crate::kernel_image::tests::{elf, notes};
use bulkhead_link::{Image, Manifest};
use elf::abi::{PT_LOAD, PT_NOTE};
use proptest::prelude::*;
use zerocopy::FromBytes;

fn kernel() -> Vec<u8> {
    let notes = notes();
    elf(&[
        (PT_LOAD, 0x10_0000, b"text", 4),
        (PT_LOAD, 0x10_1000, b"data", 0x2000),
        (PT_NOTE, 0, &notes, notes.len() as u64),
    ])
}

fn dom0(elf: &[u8]) -> Dom0<'_> {
    Dom0 { elf, cmdline: "quiet", frames: 4096 }
}

fn header_of(archive: &[u8]) -> Header {
    Header::read_from_prefix(archive).expect("a header").0
}

#[test]
fn every_piece_is_where_the_header_says_and_starts_a_page() {
    let archive = pack(dom0(&kernel()), None, b"payload").expect("packs");
    let header = header_of(&archive);
    assert_eq!((header.magic, header.version, header.nr_segments), (MAGIC, VERSION, 2));
    assert_eq!(header.total_bytes, archive.len() as u64);
    assert!(header.dom0_cmdline.starts_with(b"quiet\0"));
    let at = |offset: u64, bytes: u64| {
        assert_eq!(offset % PAGE_SIZE as u64, 0);
        &archive[offset as usize..][..bytes as usize]
    };
    let [text, data, ..] = header.segments;
    assert_eq!(at(text.offset, text.file_bytes), b"text");
    assert_eq!(at(data.offset, data.file_bytes), b"data");
    assert_eq!((data.paddr, data.mem_bytes), (0x10_1000, 0x2000));
    assert_eq!(at(header.payload_offset, header.payload_bytes), b"payload");
}

#[test]
fn refuses_a_dom0_that_does_not_fit() {
    let kernel = kernel();
    let small = Dom0 { frames: 300, ..dom0(&kernel) };
    assert!(matches!(pack(small, None, &[]), Err(PackError::LittleMemory { given: 300, .. })));
    let line = "x".repeat(256);
    let long = Dom0 { cmdline: &line, ..dom0(&kernel) };
    assert_eq!(pack(long, None, &[]), Err(PackError::LongCommandLine(256)));
    let many = [(PT_LOAD, 0, &b"x"[..], 1); 9];
    let notes = notes();
    let many = [&many[..], &[(PT_NOTE, 0, &notes, 0)]].concat();
    assert_eq!(pack(dom0(&elf(&many)), None, &[]), Err(PackError::TooManySegments(9)));
}

#[test]
fn symbols_have_their_readable_names_and_only_from_the_base_on() {
    let me = std::fs::read(std::env::current_exe().expect("a path")).expect("a file");
    let found = symbols::functions(&me, 0).expect("an ELF");
    let name = "bulkhead::kernel_image::tests::note";
    assert!(found.values().any(|n| n == name), "{name} is a function of this program");
    // A host program lies below the core's base: nothing of it is in the core's table.
    assert_eq!(symbol_table(&me), Ok(vec![0; 8]));
    assert!(matches!(symbol_table(b"no elf"), Err(PackError::Core(_))));
}

fn manifest(names: usize) -> Manifest {
    let image = |i: usize| Image { name: format!("image-{i}"), offset: 0, bytes: 0 };
    Manifest {
        version: bulkhead_link::VERSION,
        images: (0..names).map(image).collect(),
        domains: Vec::new(),
        wallclock_ns: 0,
    }
}

proptest! {
    #[test]
    fn the_manifest_of_a_payload_finds_each_image(
        sizes in prop::collection::vec(0usize..9000, 0..400)
    ) {
        let images: Vec<_> = sizes.iter().map(|&n| vec![n as u8; n]).collect();
        let mut manifest = manifest(images.len());
        let contents: Vec<_> = images.iter().map(Vec::as_slice).collect();
        let payload = payload(&mut manifest, &contents).expect("packs");
        let bytes = u32::from_le_bytes(payload[..4].try_into().expect("four")) as usize;
        let read: Manifest = postcard::from_bytes(&payload[4..4 + bytes]).expect("a manifest");
        prop_assert_eq!(&read, &manifest);
        for (named, image) in read.images.iter().zip(&images) {
            prop_assert_eq!(named.offset % 4096, 0);
            prop_assert!(named.offset as usize >= 4 + bytes);
            prop_assert_eq!(&payload[named.offset as usize..][..image.len()], &image[..]);
        }
    }
}
