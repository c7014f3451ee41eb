//! Dom0's memory as it starts, laid out by Dom0's own domain builder as if its frames were
//! the machine's first; the core fills in where they are.

use super::{Dom0, PackError};
use bulkhead_abi::{
    Mfn, PAGE_SIZE, Port,
    archive::{Header, Run},
    start_info::{SIF_INITDOMAIN, SIF_MOD_START_PFN, SIF_PRIVILEGED, StartInfo},
};
use dom0::builder::{GuestMemory, Kernel, Plan, StartFacts};
use std::{convert::Infallible, ops::Range};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: u64 = PAGE_SIZE as u64;
/// Frames that Dom0 needs past its program to boot at all.
const LEAST_SPARE_FRAMES: u64 = 1024;

/// All that is mapped of Dom0, by pseudo-physical address.
struct Image(Vec<u8>);

impl GuestMemory for Image {
    type Error = Infallible;

    fn write(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), Infallible> {
        // The plan's kernel mapping covers all that it writes.
        self.0[paddr as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn clear(&mut self, _: u64, _: u64) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Makes the image and notes in `header` what the core must know of it. The ramdisk, of
/// `payload_bytes`, is the last of Dom0's memory and not mapped.
///
/// # Errors
/// If Dom0's kernel cannot be used, or has not the memory it needs.
pub fn image(
    dom0: Dom0<'_>,
    payload_bytes: u64,
    header: &mut Header,
) -> Result<Vec<u8>, PackError> {
    let mut kernel = Kernel::parse(dom0.elf)?;
    // The list stays in the kernel's mapping, even if it could be apart.
    kernel.init_p2m = None;
    let enough = |needed| match dom0.frames < needed {
        true => Err(PackError::LittleMemory { given: dom0.frames, needed }),
        false => Ok(()),
    };
    enough(kernel.end().div_ceil(PAGE).saturating_add(LEAST_SPARE_FRAMES))?;
    let total = dom0.frames + payload_bytes.div_ceil(PAGE);
    let plan = Plan::of(kernel, &[], total)?;
    let layout = &plan.layout;
    enough(layout.kernel.pfns.end)?;

    let mut image = Image(vec![0; (layout.kernel.pfns.end * PAGE) as usize]);
    let mfns: Vec<_> = (0..total).collect();
    let facts = StartFacts {
        shared_info: Mfn::new(0),
        store_port: Port::new(0),
        console_port: Port::new(0),
        cmdline: dom0.cmdline,
    };
    let Ok(()) = plan.write(&mut image, &mfns, &facts);
    let at = (layout.start_info.get() * PAGE) as usize;
    let page = &mut image.0[at..at + size_of::<StartInfo>()];
    let mut info = StartInfo::read_from_bytes(page).expect("as long as one");
    first_domain(&mut info, dom0.frames, payload_bytes);
    page.copy_from_slice(info.as_bytes());

    let run = |frames: Range<u64>| Run { first: frames.start, pages: frames.end - frames.start };
    header.dom0_frames = total;
    header.tables = run(layout.tables());
    header.p2m = run(layout.p2m.clone());
    header.start_info = layout.start_info.get();
    header.regs = plan.context(&mfns).user_regs;
    Ok(image.0)
}

/// What the first domain is told beside what any domain is: it has neither store nor
/// console but its own.
fn first_domain(info: &mut StartInfo, ramdisk_pfn: u64, ramdisk_bytes: u64) {
    info.flags |= SIF_PRIVILEGED | SIF_INITDOMAIN;
    info.store_mfn = 0;
    info.console_mfn = 0;
    if ramdisk_bytes > 0 {
        info.flags |= SIF_MOD_START_PFN;
        info.mod_start = ramdisk_pfn;
        info.mod_len = ramdisk_bytes;
    }
}
