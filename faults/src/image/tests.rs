use super::*;
use crate::testing::{BSS, TEXT, elf_of, elf_with};

#[test]
fn functions_are_found_with_their_code_and_their_owner() {
    let elf = elf_with(&[("blkback::a", &[0x90, 0xc3]), ("core::b", &[0xc3])]);
    let image = Image::parse(&elf).unwrap();
    let [a, b] = image.functions() else { panic!("{:?}", image.functions()) };
    assert_eq!((a.area, a.start.number(), a.size), (Area::BackEnd, TEXT, 2));
    assert_eq!((b.area, b.start.number()), (Area::Library, TEXT + 2));
    assert_eq!(image.bytes(TEXT, 3), Some(&[0x90, 0xc3, 0xc3][..]));
    assert_eq!(image.bytes(TEXT, 4), None);
}

#[test]
fn an_address_is_told_as_a_name_and_an_offset() {
    let image = Image::parse(&elf_of(&[0x90, 0xc3])).unwrap();
    assert_eq!(image.place(Va::new(TEXT + 1)), Some(("blkback::server::step", 1)));
    assert_eq!(image.place(Va::new(BSS + 0x17)), Some(("counter", 7)));
    assert_eq!(image.place(Va::new(BSS + 0x18)), None);
    assert_eq!(image.place(Va::new(TEXT - 1)), None);
}

#[test]
fn the_code_that_handles_breakpoints_is_left_out() {
    let elf = elf_with(&[("domain_rt::trap::dispatch", &[0xc3]), ("domain_rt::exec", &[0xc3])]);
    let names: Vec<_> = Image::parse(&elf).unwrap().functions().to_vec();
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].name, "domain_rt::exec");
}

#[test]
fn the_stack_is_no_static_data() {
    let image = Image::parse(&elf_of(&[0xc3])).unwrap();
    assert_eq!(image.statics(), [BSS..BSS + 0x1000, BSS + 0x3000..BSS + 0x4000]);
}

#[test]
fn what_is_no_image_is_refused_in_words() {
    let error = Image::parse(b"#!/bin/sh\n").unwrap_err();
    assert!(error.to_string().contains("no ELF file"), "{error}");
    let error = Image::parse(&elf_with(&[])).unwrap_err();
    assert!(error.to_string().contains("no functions"), "{error}");
}

#[test]
fn a_damaged_image_is_an_error_and_never_a_panic() {
    let whole = elf_of(&[0x90; 40]);
    for length in 0..whole.len() {
        drop(Image::parse(&whole[..length]));
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        if let Ok(image) = Image::parse(&damaged) {
            drop(Code::decode(&image));
        }
    }
}
