//! Dom0, the one domain that nobody else can build. The boot archive brings the memory it
//! starts with ([`bulkhead_abi::archive`]); here these pages become Dom0's where they are, what
//! depends on machine frames is filled in, and its root is pinned as any domain's is, which
//! validates the tables. What the header says is checked; what the pages hold is Dom0's affair.
#![deny(unsafe_code)]

use super::lifecycle;
use crate::{
    Core,
    device::irq::COM2,
    memory::{
        frame::{
            FrameTable,
            table::{Budget, Walk},
        },
        phys::PhysMem,
        validate::{Level, Pte},
    },
    trap::context::set_context,
};
use bulkhead_abi::{
    DomId, Errno, Maddr, Mfn, PAGE_SIZE, VcpuId,
    archive::{Header, MAGIC, Run, VERSION},
    control::CreateDomain,
    start_info::StartInfo,
    vcpu::{VGCF_IN_KERNEL, VcpuGuestContext},
};
use core::ops::Range;
use zerocopy::{FromZeros, IntoBytes};

const PAGE: u64 = PAGE_SIZE as u64;
/// 64-bit words of a page.
const WORDS: u64 = PAGE / 8;
const DOM0: DomId = DomId::DOM0;

/// Why there is no Dom0, and so nothing to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// The module does not start like an archive of this version.
    NotAnArchive,
    /// What the header says of this leaves its bounds or overlaps something else.
    BadHeader(&'static str),
    OutOfMemory,
    /// A room refused what the archive brought.
    Refused(&'static str, Errno),
}

/// An archive in memory whose header has been checked.
pub struct Archive {
    start: Maddr,
    header: Header,
}

/// The end of a run that lies in `bounds`.
fn end_in(run: Run, bounds: Range<u64>) -> Option<u64> {
    let end = run.first.checked_add(run.pages)?;
    (run.first >= bounds.start && end <= bounds.end).then_some(end)
}

impl Archive {
    /// Reads and checks the header of the `bytes` bytes at `start`.
    ///
    /// Errors: `NotAnArchive`, `BadHeader`.
    pub fn open(mem: PhysMem, start: Maddr, bytes: u64) -> Result<Self, BootError> {
        let end = start.get().checked_add(bytes).filter(|end| end.div_ceil(PAGE) <= mem.max_mfn());
        if end.is_none() || start.offset() != 0 || bytes < PAGE {
            return Err(BootError::NotAnArchive);
        }
        let mut header = Header::new_zeroed();
        mem.read_bytes(start, header.as_mut_bytes());
        if (header.magic, header.version) != (MAGIC, VERSION) || header.pages > bytes / PAGE {
            return Err(BootError::NotAnArchive);
        }
        let Header { symbols, image, payload, tables, p2m, .. } = header;
        let mut next = 1;
        for (name, run) in [("symbols", symbols), ("image", image), ("payload", payload)] {
            next = end_in(run, next..header.pages).ok_or(BootError::BadHeader(name))?;
        }
        let start_info = Run { first: header.start_info, pages: 1 };
        for (name, run) in [("tables", tables), ("p2m", p2m), ("start_info", start_info)] {
            end_in(run, 0..image.pages).ok_or(BootError::BadHeader(name))?;
        }
        // Both sums are of pages in memory, so they can not overflow.
        let frames = image.pages + payload.pages..=p2m.pages * WORDS;
        if !frames.contains(&header.dom0_frames) {
            return Err(BootError::BadHeader("dom0_frames"));
        }
        Ok(Self { start, header })
    }

    /// Where the symbols of the core are.
    pub fn symbols(&self) -> Range<Maddr> {
        let Run { first, pages } = self.header.symbols;
        self.page(first).maddr()..self.page(first + pages).maddr()
    }

    fn page(&self, n: u64) -> Mfn {
        Mfn::new(self.start.mfn().get() + n)
    }

    /// The page that becomes Dom0's frame `pfn`.
    fn frame(&self, pfn: u64) -> Option<Mfn> {
        let Header { image, payload, dom0_frames, .. } = self.header;
        let page = match pfn.checked_sub(dom0_frames - payload.pages) {
            Some(n) => payload.first + n,
            None => (pfn < image.pages).then_some(image.first + pfn)?,
        };
        Some(self.page(page))
    }

    /// The `n`th word of the image from page `pfn` on.
    fn word(&self, pfn: u64, n: u64) -> Maddr {
        let page = self.page(self.header.image.first + pfn + n / WORDS);
        Maddr::new(page.maddr().get() + n % WORDS * 8)
    }
}

/// Makes Dom0 from an archive whose frames the frame table counts as the core's, and lets it
/// run. Image and payload are Dom0's then; the symbols stay.
///
/// Errors: `BadHeader`, `OutOfMemory`, `Refused`; there is no way on from there.
pub fn build(core: &mut Core, archive: &Archive) -> Result<(), BootError> {
    let max_pages = archive.header.dom0_frames;
    let asked = CreateDomain { max_vcpus: 1, max_pages, ..Default::default() };
    lifecycle::new_domain(core, DOM0, &asked).map_err(|e| BootError::Refused("domain", e))?;
    populate(&mut core.frames, archive)?;
    relocate(core, archive);
    core.frames.free_core(archive.start.mfn(), 1);
    core.devices.assign_isa(DOM0, COM2);
    start(core, archive)
}

/// Gives Dom0 its frames and writes its list of them.
fn populate(frames: &mut FrameTable, archive: &Archive) -> Result<(), BootError> {
    for pfn in 0..archive.header.dom0_frames {
        let mfn = match archive.frame(pfn) {
            Some(mfn) => {
                frames.adopt(mfn, DOM0).map_err(|_| BootError::BadHeader("pages"))?;
                mfn
            }
            None => frames.alloc_domain(DOM0, 0).ok_or(BootError::OutOfMemory)?,
        };
        frames.set_m2p(mfn, pfn);
        frames.mem().write_u64(archive.word(archive.header.p2m.first, pfn), mfn.get());
    }
    Ok(())
}

/// Fills in what depends on where things are: page-table entries, and shared-info's address.
fn relocate(core: &Core, archive: &Archive) {
    const SHARED_INFO: u64 = core::mem::offset_of!(StartInfo, shared_info) as u64 / 8;
    let Header { tables, start_info, .. } = archive.header;
    let mem = core.frames.mem();
    let base = archive.word(0, 0).get();
    for at in (0..tables.pages * WORDS).map(|n| archive.word(tables.first, n)) {
        let entry = mem.read_u64(at);
        if entry & Pte::PRESENT != 0 {
            mem.write_u64(at, entry.wrapping_add(base));
        }
    }
    let shared_info = core.domains.get(DOM0).map_or(0, |d| d.shared_info.maddr().get());
    mem.write_u64(archive.word(start_info, SHARED_INFO), shared_info);
}

/// Pins the root (ABI notes 1.6), gives vCPU 0 its first registers and lets go.
fn start(core: &mut Core, archive: &Archive) -> Result<(), BootError> {
    let Header { tables, regs, .. } = archive.header;
    let root = archive.word(tables.first, 0);
    until_done("root", || {
        let mut walk = Walk { budget: &mut Budget::default(), io: &|_| false };
        core.frames.pin(root.mfn(), DOM0, Level::L4, &mut walk)
    })?;
    let mut context = VcpuGuestContext::new_zeroed();
    context.flags = VGCF_IN_KERNEL;
    context.user_regs = regs;
    context.kernel_ss = u64::from(regs.ss);
    context.kernel_sp = regs.rsp;
    context.ctrlreg[3] = root.get();
    let boot = VcpuId::new(0);
    until_done("context", || set_context(core, DOM0, boot, &context))?;
    if let Some(domain) = core.domains.get_mut(DOM0) {
        domain.pauses = 0;
    }
    lifecycle::bring_online(core, DOM0, boot);
    Ok(())
}

/// Long validations stop on the way; at boot there is nobody else to let run.
fn until_done<E: Into<Errno>>(
    what: &'static str,
    mut step: impl FnMut() -> Result<(), E>,
) -> Result<(), BootError> {
    loop {
        match step().map_err(Into::into) {
            Ok(()) => return Ok(()),
            Err(Errno::EAGAIN) => {}
            Err(refused) => return Err(BootError::Refused(what, refused)),
        }
    }
}
