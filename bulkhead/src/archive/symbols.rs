//! The symbol table of the core, for the backtrace in its last words.

use super::PackError;
use bulkhead_abi::archive::{CORE_BASE, SymbolEntry};
use elf::{ElfBytes, abi::STT_FUNC, endian::LittleEndian};
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

/// Longest name kept; generic ones may be longer than a screen.
const NAME_BYTES: usize = 120;

/// Makes the table of [`SymbolEntry`] from an ELF file's functions.
///
/// Holds: sorted by offset, one name per address, names demangled and without their hash.
/// Functions outside the first 4 GiB from [`CORE_BASE`] (the 32-bit entry) are left out.
///
/// # Errors
/// [`PackError::Core`] if the file is no ELF64 file. One without symbols gives an empty table.
pub fn symbol_table(core_elf: &[u8]) -> Result<Vec<u8>, PackError> {
    Ok(encode(&functions(core_elf, CORE_BASE)?))
}

/// The functions of an ELF file that lie from `base` on, by their offset from it.
pub(super) fn functions(core_elf: &[u8], base: u64) -> Result<BTreeMap<u32, String>, PackError> {
    let damaged = |e: elf::ParseError| PackError::Core(e.to_string());
    let file = ElfBytes::<LittleEndian>::minimal_parse(core_elf).map_err(damaged)?;
    let mut names = BTreeMap::new();
    if let Some((symbols, strings)) = file.symbol_table().map_err(damaged)? {
        for symbol in symbols.iter().filter(|s| s.st_symtype() == STT_FUNC) {
            let offset = symbol.st_value.checked_sub(base);
            let Some(Ok(offset)) = offset.map(u32::try_from) else {
                continue;
            };
            if let Ok(name) = strings.get(symbol.st_name as usize)
                && !name.is_empty()
            {
                names.entry(offset).or_insert_with(|| readable(name));
            }
        }
    }
    Ok(names)
}

fn readable(name: &str) -> String {
    let mut name = format!("{:#}", rustc_demangle::demangle(name));
    let mut end = name.len().min(NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}

fn encode(symbols: &BTreeMap<u32, String>) -> Vec<u8> {
    let mut table = Vec::new();
    table.extend_from_slice(&(symbols.len() as u32).to_le_bytes());
    table.extend_from_slice(&0u32.to_le_bytes());
    let mut names = Vec::new();
    for (&offset, name) in symbols {
        let entry =
            SymbolEntry { offset, name_offset: names.len() as u32, name_bytes: name.len() as u32 };
        table.extend_from_slice(entry.as_bytes());
        names.extend_from_slice(name.as_bytes());
    }
    table.extend(names);
    table
}
