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

/// The pages of a run, the archive's or the image's.
fn pages(bytes: &[u8], run: Run) -> &[u8] {
    &bytes[run.first as usize * PAGE_SIZE..][..run.pages as usize * PAGE_SIZE]
}

#[test]
fn every_piece_is_where_the_header_says_in_order_without_overlap() {
    let archive = pack(dom0(&kernel()), None, b"payload").expect("packs");
    let header = header_of(&archive);
    assert_eq!((header.magic, header.version), (MAGIC, VERSION));
    assert_eq!(header.pages as usize * PAGE_SIZE, archive.len());
    let mut next = 1;
    for run in [header.symbols, header.image, header.payload] {
        assert_eq!(run.first, next);
        next += run.pages;
    }
    assert_eq!(next, header.pages);
    assert!(pages(&archive, header.symbols).iter().skip(8).all(|&byte| byte == 0));
    assert!(pages(&archive, header.payload).starts_with(b"payload\0"));
    assert_eq!(header.payload.pages, 1);
}

#[test]
fn the_image_is_dom0s_memory_as_if_it_were_the_machines_first() {
    let archive = pack(dom0(&kernel()), None, b"payload").expect("packs");
    let header = header_of(&archive);
    let image = pages(&archive, header.image);
    assert!(image[0x10_0000..].starts_with(b"text\0"));
    assert!(image[0x10_1000..].starts_with(b"data\0"));
    let at = header.start_info as usize * PAGE_SIZE;
    let info = StartInfo::read_from_prefix(&image[at..]).expect("a page").0;
    const BASE: u64 = 0xffff_ffff_8000_0000;
    assert_eq!((header.regs.rip, header.regs.rsi), (BASE + 0x10_0000, BASE + at as u64));
    assert_eq!((info.nr_pages, header.dom0_frames), (4097, 4097));
    assert_eq!((info.flags, info.mod_start, info.mod_len), (1 | 2 | 8, 4096, 7));
    assert_eq!((info.store_mfn, info.console_mfn, info.shared_info), (0, 0, 0));
    assert!(info.cmd_line.starts_with(b"quiet\0"));
    assert_eq!(
        (info.pt_base, info.nr_pt_frames),
        (BASE + header.tables.first * 4096, header.tables.pages)
    );
    assert_eq!(info.mfn_list, BASE + header.p2m.first * 4096);
    assert_eq!(header.p2m.pages, (4097u64 * 8).div_ceil(4096));
    // Entries name frames of the image, all of them.
    let entry = |table: u64, index: u64| {
        let at = (table * 4096 + index * 8) as usize;
        u64::from_le_bytes(image[at..at + 8].try_into().expect("eight"))
    };
    for pfn in 0..header.image.pages {
        let va = BASE + pfn * 4096;
        let mut table = header.tables.first;
        for shift in [39, 30, 21] {
            let next = entry(table, va >> shift & 511);
            assert_eq!(next & 0xfff, 0x67);
            table = next >> 12;
            assert!(
                (header.tables.first..header.tables.first + header.tables.pages).contains(&table)
            );
        }
        assert_eq!(entry(table, va >> 12 & 511) >> 12, pfn);
    }
    assert!(header.regs.rsp <= BASE + header.image.pages * 4096);
}

#[test]
fn a_dom0_without_payload_has_no_ramdisk() {
    let header = header_of(&pack(dom0(&kernel()), None, &[]).expect("packs"));
    assert_eq!((header.payload.pages, header.dom0_frames), (0, 4096));
}

#[test]
fn refuses_a_dom0_that_does_not_fit() {
    let kernel = kernel();
    let small = Dom0 { frames: 300, ..dom0(&kernel) };
    assert!(matches!(pack(small, None, &[]), Err(PackError::LittleMemory { given: 300, .. })));
    // The mapping ends at a multiple of 4 MiB; the payload does not make up for what is missing.
    let notes = notes();
    let odd = elf(&[(PT_LOAD, 0x10_0000, b"x", 0x2f_0000), (PT_NOTE, 0, &notes, 0)]);
    let odd = Dom0 { frames: 0x3f0 + 1024, ..dom0(&odd) };
    let payload = [0; 0x10_0000];
    let refused = PackError::LittleMemory { given: 0x7f0, needed: 0x800 };
    assert_eq!(pack(odd, None, &payload), Err(refused));
    assert!(pack(Dom0 { frames: 0x800, ..odd }, None, &payload).is_ok());
    let line = "x".repeat(1024);
    let long = Dom0 { cmdline: &line, ..dom0(&kernel) };
    assert_eq!(pack(long, None, &[]), Err(PackError::LongCommandLine(1024)));
    assert_eq!(pack(dom0(b"no elf"), None, &[]), Err(PackError::Dom0(BuildError::NotElf)));
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
        lane: None,
        wallclock_ns: 0,
        clock_by_link: false,
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
