//! Reads the ELF file of a PV kernel: what it wants loaded where, and the Xen notes
//! that say how it starts. Knows nothing of archives or of memory sizes.

use bulkhead_abi::elfnote;
use elf::{
    ElfBytes,
    abi::{EM_X86_64, PT_LOAD, PT_NOTE, SHT_NOTE},
    endian::LittleEndian,
    file::Class,
    note::{Note, NoteIterator},
};

/// Why a file is no kernel that can be started as a domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("it is not an ELF file ({0})")]
    NotElf(String),
    #[error("it is a {0} ELF; a domain's kernel is a 64-bit x86 one")]
    WrongMachine(&'static str),
    #[error("its program headers are damaged ({0})")]
    Damaged(String),
    #[error("it has nothing to load")]
    Empty,
    #[error("it carries no Xen ELF note {0}, so it is not a paravirtual kernel")]
    MissingNote(&'static str),
}

/// One range to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load<'a> {
    /// Pseudo-physical address of its first byte, with `PADDR_OFFSET` taken off.
    pub paddr: u64,
    /// The bytes from the file.
    pub bytes: &'a [u8],
    /// Bytes in memory; those past `bytes` are zero.
    pub mem_bytes: u64,
}

/// What a PV kernel asks of whoever starts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelImage<'a> {
    pub loads: Vec<Load<'a>>,
    /// Linear address of pfn 0.
    pub virt_base: u64,
    /// Linear address of the first instruction.
    pub entry: u64,
    /// Linear address of the page to fill with hypercall stubs, if it wants one.
    pub hypercall_page: Option<u64>,
    /// First byte after everything it loads, as a pseudo-physical address.
    pub end_paddr: u64,
}

type File<'a> = ElfBytes<'a, LittleEndian>;

impl<'a> KernelImage<'a> {
    /// Reads an ELF64 kernel with Xen notes.
    ///
    /// Ranges are taken by `p_paddr`: a kernel may have a segment whose `p_vaddr` is 0.
    /// Source: ABI notes 0.2 and 1.1.
    ///
    /// # Errors
    /// See [`ImageError`]; the file is refused as a whole.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let file = open(bytes)?;
        let notes = Notes::read(&file)?;
        let loads = loads(&file, notes.paddr_offset)?;
        let end_paddr = loads.iter().map(|l| l.paddr + l.mem_bytes).max().unwrap_or(0);
        Ok(Self {
            loads,
            virt_base: notes.virt_base.ok_or(ImageError::MissingNote("VIRT_BASE"))?,
            entry: notes.entry.ok_or(ImageError::MissingNote("ENTRY"))?,
            hypercall_page: notes.hypercall_page,
            end_paddr,
        })
    }
}

fn open(bytes: &[u8]) -> Result<File<'_>, ImageError> {
    if !bytes.starts_with(b"\x7fELF") {
        return Err(ImageError::NotElf("its first bytes are not 7f 45 4c 46".into()));
    }
    if bytes.get(4) == Some(&1) {
        return Err(ImageError::WrongMachine("32-bit"));
    }
    let file = File::minimal_parse(bytes).map_err(|e| ImageError::NotElf(e.to_string()))?;
    if file.ehdr.e_machine != EM_X86_64 {
        return Err(ImageError::WrongMachine("foreign-machine"));
    }
    Ok(file)
}

fn loads<'a>(file: &File<'a>, paddr_offset: u64) -> Result<Vec<Load<'a>>, ImageError> {
    let mut loads = Vec::new();
    let segments = file.segments().ok_or(ImageError::Empty)?;
    for header in segments.iter().filter(|h| h.p_type == PT_LOAD && h.p_memsz > 0) {
        let bytes = file.segment_data(&header).map_err(|e| ImageError::Damaged(e.to_string()))?;
        let paddr = header.p_paddr.checked_sub(paddr_offset);
        let end = paddr.and_then(|p| p.checked_add(header.p_memsz));
        let (Some(paddr), Some(_)) = (paddr, end) else {
            return Err(ImageError::Damaged("a segment's address wraps".into()));
        };
        if header.p_memsz < header.p_filesz {
            return Err(ImageError::Damaged(
                "a segment is larger in the file than in memory".into(),
            ));
        }
        loads.push(Load { paddr, bytes, mem_bytes: header.p_memsz });
    }
    if loads.is_empty() {
        return Err(ImageError::Empty);
    }
    loads.sort_by_key(|l| l.paddr);
    Ok(loads)
}

#[derive(Default)]
struct Notes {
    virt_base: Option<u64>,
    entry: Option<u64>,
    hypercall_page: Option<u64>,
    paddr_offset: u64,
}

impl Notes {
    /// Notes come in a `PT_NOTE` segment, or in sections only when the linker made none.
    fn read(file: &File<'_>) -> Result<Self, ImageError> {
        let mut notes = Self::default();
        for header in file.segments().into_iter().flatten() {
            if header.p_type == PT_NOTE {
                let data = file.segment_data(&header);
                notes.take(data.map_err(|e| ImageError::Damaged(e.to_string()))?);
            }
        }
        for header in file.section_headers().into_iter().flatten() {
            if header.sh_type == SHT_NOTE
                && let Ok((data, _)) = file.section_data(&header)
            {
                notes.take(data);
            }
        }
        Ok(notes)
    }

    fn take(&mut self, data: &[u8]) {
        // Xen notes are aligned to 4 whatever the header says.
        for note in NoteIterator::new(LittleEndian, Class::ELF64, 4, data) {
            let Note::Unknown(note) = note else { continue };
            if !note.name_str().is_ok_and(|name| name == elfnote::NAME) {
                continue;
            }
            // A `VIRT_BASE` may be given in 4 bytes or in 8.
            let value = match *note.desc {
                [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
                [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                _ => continue,
            };
            match u32::try_from(note.n_type) {
                Ok(elfnote::ENTRY) => self.entry = Some(value),
                Ok(elfnote::VIRT_BASE) => self.virt_base = Some(value),
                Ok(elfnote::HYPERCALL_PAGE) => self.hypercall_page = Some(value),
                Ok(elfnote::PADDR_OFFSET) => self.paddr_offset = value,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
