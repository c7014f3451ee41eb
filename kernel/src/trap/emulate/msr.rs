//! Model-specific registers as a guest sees them. Nothing is ever forwarded to the
//! hardware but segment bases and TSC_AUX. ABI notes 6.2.

use crate::{
    Core,
    arch::{self, Base},
    hypercall::page,
    state::Caller,
    trap::context::set_base,
};
use bulkhead_abi::Maddr;

const TSC: u32 = 0x10;
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = Base::Fs as u32;
const GS_BASE: u32 = Base::Gs as u32;
const KERNEL_GS_BASE: u32 = Base::InactiveGs as u32;
const TSC_AUX: u32 = 0xc000_0103;
/// Named by CPUID leaf 0x40000002: writing a page's address fills it with hypercall stubs.
pub const HYPERCALL_PAGE: u32 = 0x4000_0000;

/// SCE, LME, LMA, NXE.
const EFER_VALUE: u64 = 0xd01;
/// PA0..7 = WB WT UC- UC WC WP UC UC: what guests are told and what the processor has.
pub const PAT_VALUE: u64 = 0x0000_0501_0007_0406;

/// RDMSR; `None` if the register does not exist for a guest.
pub fn read(core: &Core, caller: Caller, number: u32) -> Option<u64> {
    Some(match number {
        TSC => arch::tsc(),
        PAT => PAT_VALUE,
        EFER => EFER_VALUE,
        FS_BASE => arch::read_base(Base::Fs),
        GS_BASE => arch::read_base(Base::Gs),
        KERNEL_GS_BASE => arch::read_base(Base::InactiveGs),
        TSC_AUX if arch::features().rdtscp => core.vcpu(caller)?.guest.tsc_aux.into(),
        _ => return None,
    })
}

/// WRMSR, from guest-kernel mode; `None` if the register does not take the value.
pub fn write(core: &mut Core, caller: Caller, number: u32, value: u64) -> Option<()> {
    match number {
        FS_BASE => set_base(Base::Fs, value).ok()?,
        GS_BASE => set_base(Base::Gs, value).ok()?,
        KERNEL_GS_BASE => set_base(Base::InactiveGs, value).ok()?,
        PAT if value == PAT_VALUE => {}
        EFER if value == EFER_VALUE => {}
        TSC_AUX if arch::features().rdtscp => {
            let value = u32::try_from(value).ok()?;
            core.vcpu_mut(caller)?.guest.tsc_aux = value;
            arch::write_tsc_aux(value);
        }
        HYPERCALL_PAGE if value & 0xfff == 0 => {
            // A machine address, for a PV guest's frame numbers are machine's.
            let mfn = Maddr::new(value).mfn();
            core.frames.get_writable(mfn, caller.dom).ok()?;
            page::fill(core.frames.mem(), mfn);
            core.frames.put_writable(mfn);
        }
        _ => return None,
    }
    Some(())
}
