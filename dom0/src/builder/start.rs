//! What a domain finds when it starts: the start-of-day page, the registers, the
//! hypercall page (abi-notes 1.4, 1.5, 3.2).

use super::{MfnList, StartFacts, layout::Layout};
use bulkhead_abi::{
    PAGE_SIZE,
    hypercall::IRET,
    start_info::{MAGIC, SIF_MOD_START_PFN, StartInfo},
    vcpu::{VGCF_IN_KERNEL, VGCF_ONLINE, VcpuGuestContext},
};
use zerocopy::FromZeros;

const KERNEL_CS: u16 = 0xe033;
const KERNEL_SS: u16 = 0xe02b;
/// Interrupts on (as the hardware sees it), and the bit that is always set.
const RFLAGS: u64 = 0x202;

/// Fills the start-of-day page.
pub fn start_info(layout: &Layout, mfns: MfnList<'_>, facts: &StartFacts<'_>) -> StartInfo {
    let mut info = StartInfo::new_zeroed();
    info.magic[..MAGIC.len()].copy_from_slice(MAGIC);
    info.nr_pages = layout.nr_pages;
    info.shared_info = facts.shared_info.maddr().get();
    info.store_mfn = mfns.of(layout.store).get();
    info.store_evtchn = facts.store_port.get();
    info.console_mfn = mfns.of(layout.console).get();
    info.console_evtchn = facts.console_port.get();
    info.pt_base = layout.va(layout.l4).get();
    let tables = layout.tables();
    info.nr_pt_frames = tables.end - tables.start;
    info.mfn_list = layout.p2m_va.get();
    if let Some(ramdisk) = &layout.ramdisk {
        let first = bulkhead_abi::Pfn::new(ramdisk.frames.start);
        info.mod_start = match ramdisk.is_unmapped {
            true => first.get(),
            false => layout.va(first).get(),
        };
        info.mod_len = ramdisk.bytes;
        if ramdisk.is_unmapped {
            info.flags |= SIF_MOD_START_PFN;
        }
    }
    if let Some(p2m) = &layout.p2m_mapping {
        info.first_p2m_pfn = layout.p2m.start;
        info.nr_p2m_frames = p2m.l1.end - layout.p2m.start;
    }
    let text = facts.cmdline.as_bytes();
    let room = info.cmd_line.len() - 1;
    let length = text.len().min(room);
    info.cmd_line[..length].copy_from_slice(&text[..length]);
    info
}

/// The registers of the first vCPU.
pub fn context(layout: &Layout, mfns: MfnList<'_>, entry: u64) -> VcpuGuestContext {
    let mut context = VcpuGuestContext::new_zeroed();
    context.flags = VGCF_IN_KERNEL | VGCF_ONLINE;
    let stack_top = layout.va(layout.stack).get() + PAGE_SIZE as u64;
    let regs = &mut context.user_regs;
    regs.rip = entry;
    regs.rsi = layout.va(layout.start_info).get();
    regs.rsp = stack_top;
    regs.rflags = RFLAGS;
    regs.cs = KERNEL_CS;
    regs.ss = KERNEL_SS;
    context.kernel_ss = KERNEL_SS.into();
    context.kernel_sp = stack_top;
    context.ctrlreg[3] = mfns.of(layout.l4).maddr().get();
    context
}

/// A page of 128 stubs of 32 bytes, one for each hypercall number.
pub fn hypercall_page() -> [u8; PAGE_SIZE] {
    let mut page = [0xcc; PAGE_SIZE];
    for (number, stub) in page.chunks_exact_mut(32).enumerate() {
        let [n0, n1, ..] = (number as u32).to_le_bytes();
        if number as u64 == IRET {
            // push rcx; push r11; push rax; mov eax, number; syscall: never returns.
            let code = [0x51, 0x41, 0x53, 0x50, 0xb8, n0, n1, 0, 0, 0x0f, 0x05];
            stub[..code.len()].copy_from_slice(&code);
        } else {
            // push rcx; push r11; mov eax, number; syscall; pop r11; pop rcx; ret
            let code = [0x51, 0x41, 0x53, 0xb8, n0, n1, 0, 0, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3];
            stub[..code.len()].copy_from_slice(&code);
        }
    }
    page
}
