//! Dom0, made by the core itself from the boot archive: the one domain nobody else can
//! build. No image is parsed: the archive's header names ranges to copy and where to
//! start. Its address space is what ABI notes 1.3 to 1.6 describe, with the
//! pfn-to-mfn list inside the kernel's mapping; the payload becomes its ramdisk.
#![deny(unsafe_code)]

pub mod archive;
pub mod layout;
pub mod tables;

use crate::{
    Core,
    device::irq::COM2,
    domain::lifecycle::{self, Plan},
    hypercall::page,
    memory::{
        frame::{
            self, FrameTable,
            table::{Budget, Walk},
        },
        validate::Level,
    },
    trap::context::set_context,
};
use archive::Archive;
use bulkhead_abi::{
    DomId, Errno, Maddr, Mfn, PAGE_SIZE, Pfn, VcpuId,
    memory::MAX_ORDER,
    start_info::{MAGIC, SIF_INITDOMAIN, SIF_MOD_START_PFN, SIF_PRIVILEGED, StartInfo},
    trap::{FLAT_RING3_CS64, FLAT_RING3_SS64},
    vcpu::{UserRegs, VGCF_IN_KERNEL, VGCF_ONLINE, VcpuGuestContext},
};
use layout::Layout;
use zerocopy::{FromZeros, IntoBytes};

const PAGE: u64 = PAGE_SIZE as u64;
const DOM0: DomId = DomId::DOM0;

/// Why there is no Dom0, and so nothing to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// The module does not start like an archive of this version.
    NotAnArchive,
    /// A range of the header leaves the archive, is misaligned or overlaps another.
    BadRange(&'static str),
    /// Dom0's program does not fit its memory.
    TooSmall {
        frames: u64,
        needed: u64,
    },
    /// An address that a guest can not have.
    BadAddress(u64),
    OutOfMemory,
    /// A room refused what was built for it: its rules and the layout here disagree.
    Refused(&'static str, Errno),
}

/// The pfn-to-mfn list while Dom0 is built, in frames of the core.
struct Frames {
    list: Mfn,
    list_frames: usize,
    len: u64,
}

impl Frames {
    fn new(frames: &mut FrameTable, len: u64) -> Option<Self> {
        let list_frames = (len * 8).div_ceil(PAGE) as usize;
        Some(Self { list: frames.alloc_core(list_frames)?, list_frames, len })
    }

    fn entry(&self, pfn: Pfn) -> Maddr {
        assert!(pfn.get() < self.len, "the layout gives pfns of Dom0");
        Maddr::new(self.list.maddr().get() + pfn.get() * 8)
    }

    fn set(&self, table: &mut FrameTable, pfn: Pfn, mfn: Mfn) {
        table.mem().write_u64(self.entry(pfn), mfn.get());
        table.set_m2p(mfn, pfn.get());
    }

    fn get(&self, table: &FrameTable, pfn: Pfn) -> Mfn {
        Mfn::new(table.mem().read_u64(self.entry(pfn)))
    }

    /// Where a pseudo-physical address is.
    fn maddr(&self, table: &FrameTable, paddr: u64) -> Maddr {
        let mfn = self.get(table, Pfn::new(paddr / PAGE));
        Maddr::new(mfn.maddr().get() + paddr % PAGE)
    }

    fn free(self, table: &mut FrameTable) {
        table.free_core(self.list, self.list_frames);
    }
}

/// Builds Dom0 from the archive at `at`, which the frame table counts as the core's, and
/// lets it run. The archive's frames become Dom0's (payload) or free; the symbol table stays.
///
/// Errors: any of [`BootError`]; there is no way on from there.
pub fn build(core: &mut Core, at: Maddr, bytes: u64) -> Result<(), BootError> {
    let archive = Archive::open(core.frames.mem(), at, bytes)?;
    let layout = Layout::plan(&archive)?;
    let plan = Plan { id: DOM0, max_vcpus: 1, max_pages: layout.total(), is_driver: false };
    lifecycle::new_domain(core, plan).map_err(|e| BootError::Refused("domain", e))?;
    let p2m = Frames::new(&mut core.frames, layout.total()).ok_or(BootError::OutOfMemory)?;
    populate(&mut core.frames, &p2m, layout.frames)?;
    adopt_payload(&mut core.frames, &p2m, &archive, &layout)?;
    copy_segments(&core.frames, &p2m, &archive);
    tables::fill(&core.frames, &layout, |pfn| p2m.get(&core.frames, pfn));
    write_list(&core.frames, &p2m, &layout);
    write_start_info(core, &p2m, &archive, &layout);
    write_hypercall_page(&core.frames, &p2m, &archive, &layout)?;
    let root = p2m.get(&core.frames, layout.tables);
    p2m.free(&mut core.frames);
    archive.free(&mut core.frames);
    core.devices.irqs().assign_isa(DOM0, COM2);
    start(core, &archive, &layout, root)
}

/// Takes Dom0's memory in the largest pieces there are.
fn populate(frames: &mut FrameTable, p2m: &Frames, count: u64) -> Result<(), BootError> {
    let mut order = MAX_ORDER;
    let mut next = 0;
    while next < count {
        if 1 << order > count - next {
            order -= 1;
            continue;
        }
        match frames.alloc_domain(DOM0, order) {
            Some(first) => {
                for n in 0..1 << order {
                    p2m.set(frames, Pfn::new(next + n), Mfn::new(first.get() + n));
                }
                next += 1 << order;
            }
            None if order > 0 => order -= 1,
            None => return Err(BootError::OutOfMemory),
        }
    }
    Ok(())
}

/// The payload's frames become Dom0's last, as they are.
fn adopt_payload(
    frames: &mut FrameTable,
    p2m: &Frames,
    archive: &Archive,
    layout: &Layout,
) -> Result<(), BootError> {
    for n in 0..layout.payload_frames {
        let mfn = Mfn::new(archive.payload().mfn().get() + n);
        frames.adopt(mfn, DOM0).map_err(|_| BootError::BadRange("payload"))?;
        p2m.set(frames, Pfn::new(layout.frames + n), mfn);
    }
    Ok(())
}

fn copy_segments(frames: &FrameTable, p2m: &Frames, archive: &Archive) {
    for segment in archive.segments() {
        let mut done = 0;
        while done < segment.file_bytes {
            let from = archive.at(segment.offset + done);
            let to = p2m.maddr(frames, segment.paddr + done);
            let room = PAGE_SIZE - from.offset().max(to.offset());
            let bytes = (segment.file_bytes - done).min(room as u64);
            frames.mem().copy(from, to, bytes as usize);
            done += bytes;
        }
    }
}

fn write_list(frames: &FrameTable, p2m: &Frames, layout: &Layout) {
    for n in 0..layout.p2m_frames {
        let from = Maddr::new(p2m.list.maddr().get() + n * PAGE);
        frames.mem().copy(from, p2m.maddr(frames, (layout.p2m.get() + n) * PAGE), PAGE_SIZE);
    }
}

fn write_start_info(core: &Core, p2m: &Frames, archive: &Archive, layout: &Layout) {
    let mut info = StartInfo::new_zeroed();
    info.magic[..MAGIC.len()].copy_from_slice(MAGIC);
    info.nr_pages = layout.total();
    info.shared_info = core.domains.get(DOM0).map_or(0, |d| d.shared_info.maddr().get());
    info.flags = SIF_PRIVILEGED | SIF_INITDOMAIN;
    info.pt_base = layout.va(layout.tables);
    info.nr_pt_frames = layout.table_frames;
    info.mfn_list = layout.va(layout.p2m);
    if layout.payload_frames > 0 {
        info.flags |= SIF_MOD_START_PFN;
        info.mod_start = layout.frames;
        info.mod_len = archive.header().payload_bytes;
    }
    // The last byte of the longer field stays zero.
    let text = &archive.header().dom0_cmdline;
    info.cmd_line[..text.len()].copy_from_slice(text);
    let at = p2m.maddr(&core.frames, layout.start_info.get() * PAGE);
    core.frames.mem().write_bytes(at, info.as_bytes());
}

fn write_hypercall_page(
    frames: &FrameTable,
    p2m: &Frames,
    archive: &Archive,
    layout: &Layout,
) -> Result<(), BootError> {
    let va = archive.header().dom0_hypercall_page;
    if va == 0 {
        return Ok(());
    }
    let pfn = layout.pfn_of(va).ok_or(BootError::BadAddress(va))?;
    page::fill(frames.mem(), p2m.get(frames, pfn));
    Ok(())
}

/// Pins the root, gives vCPU 0 its first registers (ABI notes 1.5) and lets go.
fn start(core: &mut Core, archive: &Archive, layout: &Layout, root: Mfn) -> Result<(), BootError> {
    until_done("root", || pin(&mut core.frames, root))?;
    let stack_top = layout.va(layout.stack) + PAGE;
    let mut context = VcpuGuestContext::new_zeroed();
    context.flags = VGCF_IN_KERNEL | VGCF_ONLINE;
    context.user_regs = UserRegs {
        rip: archive.header().dom0_entry,
        rsi: layout.va(layout.start_info),
        rsp: stack_top,
        rflags: 0x202,
        cs: FLAT_RING3_CS64,
        ss: FLAT_RING3_SS64,
        ..UserRegs::default()
    };
    context.kernel_ss = u64::from(FLAT_RING3_SS64);
    context.kernel_sp = stack_top;
    context.ctrlreg[3] = root.maddr().get();
    let boot = VcpuId::new(0);
    until_done("context", || set_context(core, DOM0, boot, &context))?;
    lifecycle::bring_online(core, DOM0, boot);
    if let Some(domain) = core.domains.get_mut(DOM0) {
        domain.pauses = 0;
    }
    crate::sched::refresh(core, DOM0);
    Ok(())
}

/// Dom0 starts with a pinned root, as any domain does (ABI notes 1.6).
fn pin(frames: &mut FrameTable, root: Mfn) -> frame::Result {
    let mut walk = Walk { budget: &mut Budget::default(), io: &|_| false };
    frames.pin(root, DOM0, Level::L4, &mut walk)
}

/// Long validations stop on the way; at boot there is nobody else to let run.
fn until_done<E: Into<Errno>>(
    what: &'static str,
    mut step: impl FnMut() -> Result<(), E>,
) -> Result<(), BootError> {
    loop {
        match step().map_err(Into::into) {
            Ok(()) => return Ok(()),
            Err(Errno::ERESTART | Errno::EAGAIN) => {}
            Err(refused) => return Err(BootError::Refused(what, refused)),
        }
    }
}
