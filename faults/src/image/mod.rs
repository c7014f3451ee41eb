//! The driver domain's image as faults see it: its functions with the code in them, and
//! its writable memory. Reads an ELF file; changes nothing.

mod code;
mod names;

pub use code::{Code, Site};
pub use names::{Area, is_in};

use crate::error::CampaignError;
use crate::units::{Hash, Va};
use elf::abi::{SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHT_NOBITS, STT_FUNC, STT_OBJECT};
use elf::{ElfBytes, ParseError, endian::LittleEndian};
use std::collections::BTreeMap;
use std::ops::Range;

/// The runtime's own way in and out of a trap: a breakpoint there would be met by the
/// code that is to handle it.
const NEVER: &[&str] = &["domain_rt::trap", "domain_rt::fault"];

/// An ELF file of a driver domain.
#[derive(Clone, Debug)]
pub struct Image {
    hash: Hash,
    text: Vec<Section>,
    functions: Vec<Function>,
    objects: BTreeMap<u64, Object>,
    statics: Vec<Range<u64>>,
}

#[derive(Clone, Debug)]
struct Section {
    start: u64,
    bytes: Vec<u8>,
}

/// A function of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its first address.
    pub start: Va,
    /// Bytes.
    pub size: u64,
    /// Demangled, without its hash.
    pub name: String,
    /// Whose code it is.
    pub area: Area,
}

#[derive(Clone, Debug)]
struct Object {
    size: u64,
    name: String,
}

impl Image {
    /// Reads an ELF64 file with its symbols.
    ///
    /// Holds: functions are sorted, lie in the text and do not overlap; those in which no
    /// fault may be are left out.
    ///
    /// # Errors
    /// If it is no such file, or has no functions.
    pub fn parse(elf: &[u8]) -> Result<Self, CampaignError> {
        let damaged = |e: ParseError| {
            CampaignError::plain(format!("the driver domain's image is no ELF file: {e}"))
                .help("give the file that the set-up names as the driver's kernel")
        };
        let file = ElfBytes::<LittleEndian>::minimal_parse(elf).map_err(damaged)?;
        let mut image = Self {
            hash: Hash::of(elf),
            text: Vec::new(),
            functions: Vec::new(),
            objects: BTreeMap::new(),
            statics: Vec::new(),
        };
        image.read_sections(&file).map_err(damaged)?;
        let marks = image.read_symbols(&file).map_err(damaged)?;
        if image.functions.is_empty() {
            return Err(CampaignError::plain("the driver domain's image names no functions")
                .help("build it with its symbols: a stripped file has no places to choose from"));
        }
        image.cut_out(&marks);
        Ok(image)
    }

    fn read_sections(&mut self, file: &ElfBytes<LittleEndian>) -> Result<(), ParseError> {
        let has = |flags: u64, wanted: u32| flags & u64::from(wanted) != 0;
        for header in file.section_headers().into_iter().flatten() {
            if !has(header.sh_flags, SHF_ALLOC) || header.sh_size == 0 {
                continue;
            }
            if has(header.sh_flags, SHF_EXECINSTR) && header.sh_type != SHT_NOBITS {
                let (bytes, _) = file.section_data(&header)?;
                self.text.push(Section { start: header.sh_addr, bytes: bytes.to_vec() });
            } else if has(header.sh_flags, SHF_WRITE) {
                let end = header.sh_addr.saturating_add(header.sh_size);
                self.statics.push(header.sh_addr..end);
            }
        }
        Ok(())
    }

    /// Fills functions and objects; gives the marks that the linker script sets.
    fn read_symbols(
        &mut self,
        file: &ElfBytes<LittleEndian>,
    ) -> Result<BTreeMap<String, u64>, ParseError> {
        let mut marks = BTreeMap::new();
        let mut functions = BTreeMap::new();
        let Some((symbols, strings)) = file.symbol_table()? else {
            return Ok(marks);
        };
        for symbol in symbols.iter() {
            let Ok(name) = strings.get(symbol.st_name as usize) else { continue };
            match symbol.st_symtype() {
                STT_FUNC => {
                    functions.insert(symbol.st_value, (symbol.st_size, names::readable(name)));
                }
                STT_OBJECT => {
                    let object = Object { size: symbol.st_size, name: names::readable(name) };
                    self.objects.insert(symbol.st_value, object);
                }
                _ => drop(marks.insert(name.to_owned(), symbol.st_value)),
            }
        }
        self.keep_functions(functions);
        Ok(marks)
    }

    fn keep_functions(&mut self, found: BTreeMap<u64, (u64, String)>) {
        let mut end = 0;
        for (start, (size, name)) in found {
            let is_code = size > 0 && start >= end && self.bytes(start, size).is_some();
            if !is_code || NEVER.iter().any(|never| names::is_in(&name, never)) {
                continue;
            }
            end = start.saturating_add(size);
            let area = Area::of(&name);
            self.functions.push(Function { start: Va::new(start), size, name, area });
        }
    }

    /// Leaves the stack, its guard page and the shared pages out of static data: the
    /// linker script puts them there.
    fn cut_out(&mut self, marks: &BTreeMap<String, u64>) {
        let mark = |name: &str| marks.get(name).copied();
        let stack = mark("__stack_guard").zip(mark("__stack_top"));
        let shared = mark("__shared_info").map(|page| (page, page.saturating_add(4096)));
        let window = mark("__window").map(|page| (page, page.saturating_add(4096)));
        for (start, end) in [stack, shared, window].into_iter().flatten() {
            self.statics = self.statics.iter().flat_map(|r| without(r, &(start..end))).collect();
        }
        self.statics.retain(|range| !range.is_empty());
    }

    /// What tells this build from every other.
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// The functions, by address.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Writable static data: ranges of addresses.
    pub fn statics(&self) -> &[Range<u64>] {
        &self.statics
    }

    /// The code from an address on, if all of it is there.
    pub fn bytes(&self, start: u64, size: u64) -> Option<&[u8]> {
        self.text.iter().find_map(|section| {
            let from = usize::try_from(start.checked_sub(section.start)?).ok()?;
            let to = from.checked_add(usize::try_from(size).ok()?)?;
            section.bytes.get(from..to)
        })
    }

    /// The function or object that an address is in, and how far in.
    pub fn place(&self, va: Va) -> Option<(&str, u64)> {
        let at = self.functions.partition_point(|f| f.start <= va);
        if let Some(function) = at.checked_sub(1).map(|before| &self.functions[before])
            && va.number() - function.start.number() < function.size
        {
            return Some((&function.name, va.number() - function.start.number()));
        }
        let (start, object) = self.objects.range(..=va.number()).next_back()?;
        let offset = va.number() - start;
        (offset < object.size).then_some((&object.name, offset))
    }
}

/// What of a range is outside of another one.
fn without(range: &Range<u64>, hole: &Range<u64>) -> [Range<u64>; 2] {
    [
        range.start..range.end.min(hole.start).max(range.start),
        range.start.max(hole.end).min(range.end)..range.end,
    ]
}

#[cfg(test)]
mod tests;
