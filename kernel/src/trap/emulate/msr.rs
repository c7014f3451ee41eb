//! Model-specific registers as a guest sees them. Nothing is ever forwarded to the
//! hardware but segment bases and TSC_AUX. ABI notes 6.2.

use crate::{Core, arch, hypercall::page, state::Caller};
use bulkhead_abi::{GuestVa, Maddr};

const TSC: u32 = 0x10;
const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;
/// Named by CPUID leaf 0x40000002: writing a page's address fills it with hypercall stubs.
pub const HYPERCALL_PAGE: u32 = 0x4000_0000;

/// SCE, LME, LMA, NXE.
const EFER_VALUE: u64 = 0xd01;
/// PA0..7 = WB WT UC- UC WC WP UC UC: what guests are told and what the processor has.
pub const PAT_VALUE: u64 = 0x0000_0501_0007_0406;

/// The register does not exist for a guest, or does not take the value.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

/// RDMSR.
pub fn read(core: &Core, caller: Caller, number: u32) -> Result<u64, Refused> {
    Ok(match number {
        TSC => arch::tsc(),
        PAT => PAT_VALUE,
        EFER => EFER_VALUE,
        FS_BASE => arch::read_fs_base(),
        GS_BASE => arch::read_gs_base(),
        KERNEL_GS_BASE => arch::read_inactive_gs_base(),
        TSC_AUX if arch::features().rdtscp => {
            core.vcpu(caller).ok_or(Refused)?.guest.tsc_aux.into()
        }
        _ => return Err(Refused),
    })
}

/// WRMSR, from guest-kernel mode.
pub fn write(core: &mut Core, caller: Caller, number: u32, value: u64) -> Result<(), Refused> {
    let guest = &mut core.vcpu_mut(caller).ok_or(Refused)?.guest;
    let canonical = GuestVa::new(value).is_canonical().then_some(value).ok_or(Refused);
    match number {
        FS_BASE => {
            guest.fs_base = canonical?;
            arch::write_fs_base(value);
        }
        GS_BASE => {
            guest.gs_base_kernel = canonical?;
            arch::write_gs_base(value);
        }
        KERNEL_GS_BASE => {
            guest.gs_base_user = canonical?;
            arch::write_inactive_gs_base(value);
        }
        PAT if value == PAT_VALUE => {}
        EFER if value == EFER_VALUE => {}
        TSC_AUX if arch::features().rdtscp => {
            guest.tsc_aux = u32::try_from(value).map_err(|_| Refused)?;
            arch::write_tsc_aux(guest.tsc_aux);
        }
        HYPERCALL_PAGE => return fill_for_guest(core, caller, value),
        _ => return Err(Refused),
    }
    Ok(())
}

/// The address is a machine address, for a PV guest's frame numbers are machine's.
fn fill_for_guest(core: &mut Core, caller: Caller, value: u64) -> Result<(), Refused> {
    if value & 0xfff != 0 {
        return Err(Refused);
    }
    let mfn = Maddr::new(value).mfn();
    core.frames.get_writable(mfn, caller.dom).map_err(|_| Refused)?;
    page::fill(core.frames.mem(), mfn);
    core.frames.put_writable(mfn);
    Ok(())
}
