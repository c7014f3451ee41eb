//! A PV kernel: what of an ELF file matters for starting it as a domain
//! (abi-notes 1.1). Nothing is trusted; no address is used before [`super::layout`]
//! has found a place for it.

use super::error::BuildError;
use alloc::vec::Vec;
use bulkhead_abi::elfnote;
use elf::{
    ElfBytes,
    abi::{EM_X86_64, PT_LOAD, PT_NOTE, SHT_NOTE},
    endian::LittleEndian,
    file::Class,
    note::Note,
};

/// Segment flag of Bulkhead's own domains (an OS-specific one, as ELF calls them): nobody
/// minds what is in the part of it that the file does not have. `domain.ld` agrees.
const PF_SCRATCH: u32 = 1 << 20;

/// A range to be loaded.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Guest-physical address of its first byte.
    pub paddr: u64,
    pub bytes: &'a [u8],
    /// Bytes in memory; what `bytes` does not cover is zero.
    pub mem_bytes: u64,
    /// What `bytes` does not cover may as well be anything: a stack.
    pub is_scratch: bool,
}

/// A kernel image, taken apart.
#[derive(Clone, Debug)]
pub struct Kernel<'a> {
    pub segments: Vec<Segment<'a>>,
    /// Linear address of the first instruction.
    pub entry: u64,
    /// Linear address of pfn 0 in the initial mapping.
    pub virt_base: u64,
    /// Linear address of the page to fill with hypercall stubs.
    pub hypercall_page: Option<u64>,
    /// Linear address for the pfn-to-mfn list, away from the kernel.
    pub init_p2m: Option<u64>,
    /// The ramdisk may stay unmapped.
    pub takes_unmapped_ramdisk: bool,
    /// It says that it is Linux.
    pub is_linux: bool,
}

#[derive(Default)]
struct Notes {
    is_any: bool,
    is_linux: bool,
    entry: Option<u64>,
    virt_base: Option<u64>,
    paddr_offset: Option<u64>,
    hypercall_page: Option<u64>,
    init_p2m: Option<u64>,
    mod_start_pfn: bool,
}

impl<'a> Kernel<'a> {
    /// Takes an image apart.
    pub fn parse(image: &'a [u8]) -> Result<Self, BuildError> {
        if image.get(0x202..0x206) == Some(b"HdrS") {
            return Err(BuildError::Compressed);
        }
        if image.get(..4) != Some(b"\x7fELF") {
            return Err(BuildError::NotElf);
        }
        if image.get(4) != Some(&2) || image.get(5) != Some(&1) {
            return Err(BuildError::WrongMachine);
        }
        let file =
            ElfBytes::<LittleEndian>::minimal_parse(image).map_err(|_| BuildError::Truncated)?;
        if file.ehdr.class != Class::ELF64 || file.ehdr.e_machine != EM_X86_64 {
            return Err(BuildError::WrongMachine);
        }
        let notes = Notes::of(&file)?;
        if !notes.is_any {
            return Err(BuildError::NoXenNotes);
        }
        if !notes.is_pv() {
            return Err(BuildError::NotPv);
        }
        let segments = segments(&file, notes.paddr_offset.unwrap_or(0))?;
        Ok(Self {
            segments,
            entry: notes.entry.unwrap_or(file.ehdr.e_entry),
            virt_base: notes.virt_base.unwrap_or(0),
            hypercall_page: notes.hypercall_page,
            init_p2m: notes.init_p2m,
            takes_unmapped_ramdisk: notes.mod_start_pfn,
            is_linux: notes.is_linux,
        })
    }

    /// First guest-physical address past all segments.
    pub fn end(&self) -> u64 {
        let ends = self.segments.iter().map(|s| s.paddr.saturating_add(s.mem_bytes));
        ends.max().unwrap_or(0)
    }
}

type File<'a> = ElfBytes<'a, LittleEndian>;

fn segments<'a>(file: &File<'a>, paddr_offset: u64) -> Result<Vec<Segment<'a>>, BuildError> {
    let headers = file.segments().ok_or(BuildError::NoSegments)?;
    let mut segments = Vec::new();
    for header in headers.iter().filter(|h| h.p_type == PT_LOAD) {
        let bytes = file.segment_data(&header).map_err(|_| BuildError::Truncated)?;
        let bad = BuildError::BadAddress { what: "segment", address: header.p_paddr };
        if header.p_memsz < header.p_filesz {
            return Err(bad);
        }
        let paddr = header.p_paddr.checked_sub(paddr_offset).ok_or(bad.clone())?;
        paddr.checked_add(header.p_memsz).ok_or(bad)?;
        if header.p_memsz > 0 {
            let is_scratch = header.p_flags & PF_SCRATCH != 0;
            segments.push(Segment { paddr, bytes, mem_bytes: header.p_memsz, is_scratch });
        }
    }
    if segments.is_empty() {
        return Err(BuildError::NoSegments);
    }
    Ok(segments)
}

impl Notes {
    /// Reads the notes of the program headers or, where those have none, of the
    /// section headers.
    fn of(file: &File<'_>) -> Result<Self, BuildError> {
        let mut notes = Self::default();
        for header in file.segments().iter().flat_map(|table| table.iter()) {
            if header.p_type != PT_NOTE {
                continue;
            }
            // Notes past the end are not the same as none.
            file.segment_data(&header).map_err(|_| BuildError::Truncated)?;
            if let Ok(found) = file.segment_data_as_notes(&header) {
                notes.read(found)?;
            }
        }
        if notes.is_any {
            return Ok(notes);
        }
        for header in file.section_headers().iter().flat_map(|table| table.iter()) {
            if header.sh_type == SHT_NOTE
                && let Ok(found) = file.section_data_as_notes(&header)
            {
                notes.read(found)?;
            }
        }
        Ok(notes)
    }

    /// Kernels that start in other ways have Xen notes too, but none of these.
    fn is_pv(&self) -> bool {
        [self.entry, self.virt_base, self.hypercall_page].iter().any(Option::is_some)
    }

    fn read<'n>(&mut self, found: impl Iterator<Item = Note<'n>>) -> Result<(), BuildError> {
        for note in found {
            let Note::Unknown(note) = note else { continue };
            let name = note.name.strip_suffix(b"\0").unwrap_or(note.name);
            if name == elfnote::NAME.as_bytes() {
                self.is_any = true;
                self.one(note.n_type as u32, note.desc)?;
            }
        }
        Ok(())
    }

    fn one(&mut self, kind: u32, desc: &[u8]) -> Result<(), BuildError> {
        match kind {
            elfnote::ENTRY => self.entry = Some(number("ENTRY", desc)?),
            elfnote::VIRT_BASE => self.virt_base = Some(number("VIRT_BASE", desc)?),
            elfnote::PADDR_OFFSET => self.paddr_offset = Some(number("PADDR_OFFSET", desc)?),
            elfnote::HYPERCALL_PAGE => {
                self.hypercall_page = Some(number("HYPERCALL_PAGE", desc)?);
            }
            elfnote::INIT_P2M => self.init_p2m = Some(number("INIT_P2M", desc)?),
            elfnote::MOD_START_PFN => self.mod_start_pfn = number("MOD_START_PFN", desc)? != 0,
            elfnote::GUEST_OS => self.is_linux = is_text(desc, b"linux"),
            elfnote::XEN_VERSION if !is_text(desc, b"xen-3.0") => {
                return Err(BuildError::Incompatible { note: "XEN_VERSION" });
            }
            elfnote::LOADER if !is_text(desc, b"generic") => {
                return Err(BuildError::Incompatible { note: "LOADER" });
            }
            _ => {}
        }
        Ok(())
    }
}

fn is_text(desc: &[u8], wanted: &[u8]) -> bool {
    desc.strip_suffix(b"\0").unwrap_or(desc) == wanted
}

/// A descriptor of 4 or 8 bytes.
fn number(note: &'static str, desc: &[u8]) -> Result<u64, BuildError> {
    if let Ok(bytes) = desc.try_into() {
        return Ok(u64::from_le_bytes(bytes));
    }
    match desc.try_into() {
        Ok(bytes) => Ok(u32::from_le_bytes(bytes).into()),
        Err(_) => Err(BuildError::BadNote { note, value: desc.len() as u64 }),
    }
}
