//! A small ELF file made from machine code, for tests.

use elf::abi::{
    EM_X86_64, ET_EXEC, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS, SHT_PROGBITS, SHT_STRTAB,
    SHT_SYMTAB, STT_FUNC, STT_NOTYPE, STT_OBJECT,
};

/// Where the text of the file is.
pub const TEXT: u64 = 0xffff_ffff_8010_0000;
/// Where its static data is: 16 KiB without contents.
pub const BSS: u64 = 0xffff_ffff_8014_0000;

/// Functions by name, one after the other from [`TEXT`] on.
pub fn elf_with(functions: &[(&str, &[u8])]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut symbols = vec![
        ("counter", BSS + 0x10, 8, STT_OBJECT),
        ("__stack_guard", BSS + 0x1000, 0, STT_NOTYPE),
        ("__stack_top", BSS + 0x3000, 0, STT_NOTYPE),
    ];
    for (name, code) in functions {
        symbols.push((name, TEXT + text.len() as u64, code.len() as u64, STT_FUNC));
        text.extend_from_slice(code);
    }
    assemble(&text, &symbols)
}

/// As [`elf_with`], with one function of the back end.
pub fn elf_of(code: &[u8]) -> Vec<u8> {
    elf_with(&[("blkback::server::step", code)])
}

fn assemble(text: &[u8], symbols: &[(&str, u64, u64, u8)]) -> Vec<u8> {
    let (mut names, mut table) = (vec![0u8], vec![0u8; 24]);
    for (name, value, size, kind) in symbols {
        table.extend((names.len() as u32).to_le_bytes());
        table.extend([*kind, 0, 1, 0]);
        table.extend(value.to_le_bytes());
        table.extend(size.to_le_bytes());
        names.extend(name.bytes().chain([0]));
    }
    let at_text = 64;
    let at_table = at_text + text.len();
    let at_names = at_table + table.len();
    let at_headers = at_names + names.len();
    let code_flags = SHF_ALLOC | SHF_EXECINSTR;
    let headers = [
        [0; 8],
        [SHT_PROGBITS.into(), code_flags.into(), TEXT, at_text as u64, text.len() as u64, 0, 0, 1],
        [SHT_NOBITS.into(), (SHF_ALLOC | SHF_WRITE).into(), BSS, at_text as u64, 0x4000, 0, 0, 1],
        [SHT_SYMTAB.into(), 0, 0, at_table as u64, table.len() as u64, 4, 1, 24],
        [SHT_STRTAB.into(), 0, 0, at_names as u64, names.len() as u64, 0, 0, 1],
    ];
    let mut file = elf_header(at_headers as u64, headers.len() as u16);
    file.extend_from_slice(text);
    file.extend(table.iter().chain(&names));
    headers.iter().for_each(|header| section_header(&mut file, header));
    file
}

fn elf_header(sections: u64, count: u16) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    header.extend(ET_EXEC.to_le_bytes());
    header.extend(EM_X86_64.to_le_bytes());
    header.extend(1u32.to_le_bytes());
    [TEXT, 0, sections].iter().for_each(|word| header.extend(word.to_le_bytes()));
    header.extend(0u32.to_le_bytes());
    [64u16, 56, 0, 64, count, 4].iter().for_each(|word| header.extend(word.to_le_bytes()));
    header
}

/// Kind, flags, address, offset, size, link, info, entry size.
fn section_header(file: &mut Vec<u8>, h: &[u64; 8]) {
    file.extend(0u32.to_le_bytes());
    file.extend((h[0] as u32).to_le_bytes());
    [h[1], h[2], h[3], h[4]].iter().for_each(|word| file.extend(word.to_le_bytes()));
    file.extend((h[5] as u32).to_le_bytes());
    file.extend((h[6] as u32).to_le_bytes());
    file.extend(1u64.to_le_bytes());
    file.extend(h[7].to_le_bytes());
}
