//! What guests are told of time: `vcpu_time_info`, the wall clock and the run-state area.
//! Written by the core only; what a guest writes there is never read back.

use crate::{Core, arch, domain::VcpuRef, memory::guest::GuestSpace};
use bulkhead_abi::{
    DomId, GuestVa, Maddr, VcpuId,
    shared_info::{SharedInfo, VcpuInfo, VcpuTimeInfo},
    vcpu::{RUNSTATE_UPDATE, RunstateInfo},
};
use core::mem::offset_of;
use zerocopy::IntoBytes;

/// `vm_assist` type 5: flag the run-state area while it is written.
const ASSIST_RUNSTATE_UPDATE: u64 = 1 << 5;
const NS_PER_SECOND: u64 = 1_000_000_000;

fn field(base: Maddr, offset: usize) -> Maddr {
    Maddr::new(base.get() + offset as u64)
}

/// Tells a vCPU the time, as a pair of cycle counter and ns, under the version protocol: odd
/// while it is written. To be called before its first instruction, whenever it is given the CPU, and when
/// its `vcpu_info` moves.
pub fn publish(core: &mut Core, dom: DomId, vcpu: VcpuId) {
    let mem = core.frames.mem();
    let Some(vcpu) = core.domains.get_mut(dom).and_then(|domain| domain.vcpu_mut(vcpu)) else {
        return;
    };
    let version = vcpu.sched.time_version;
    vcpu.sched.time_version = version.wrapping_add(2);
    let tsc = arch::tsc();
    let (mul, shift) = arch::time_scale();
    let info = VcpuTimeInfo {
        version: version | 1,
        tsc_timestamp: tsc,
        system_time: arch::ns_at(tsc).get(),
        tsc_to_system_mul: mul,
        tsc_shift: shift,
        ..VcpuTimeInfo::default()
    };
    let at = field(vcpu.info, offset_of!(VcpuInfo, time));
    mem.write_u32(at, info.version);
    for (n, word) in info.as_bytes().chunks_exact(8).enumerate().skip(1) {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        mem.write_u64(field(at, 8 * n), word);
    }
    mem.write_u32(at, vcpu.sched.time_version);
}

/// Tells a domain what the wall clock showed when system time was 0. Once is enough.
pub fn publish_wallclock(core: &Core, dom: DomId) {
    let Some(domain) = core.domains.get(dom) else {
        return;
    };
    let mem = core.frames.mem();
    let base = domain.shared_info.maddr();
    let boot = arch::wallclock_ns_at_boot();
    let seconds = boot / NS_PER_SECOND;
    mem.write_u32(field(base, offset_of!(SharedInfo, wc_version)), 1);
    mem.write_u32(field(base, offset_of!(SharedInfo, wc_sec)), seconds as u32);
    mem.write_u32(field(base, offset_of!(SharedInfo, wc_sec_hi)), (seconds >> 32) as u32);
    mem.write_u32(field(base, offset_of!(SharedInfo, wc_nsec)), (boot % NS_PER_SECOND) as u32);
    mem.write_u32(field(base, offset_of!(SharedInfo, wc_version)), 2);
}

/// Shows a vCPU its run state where it asked for it. A bad address is the guest's own loss.
pub fn publish_runstate(core: &Core, who: VcpuRef) {
    let Some(domain) = core.domains.get(who.dom) else {
        return;
    };
    let Some(vcpu) = domain.vcpu(who.vcpu) else {
        return;
    };
    let Some(slot) = vcpu.sched.slot.and_then(|id| core.sched.slot(id)) else {
        return;
    };
    let (Some(va), Some(root)) = (vcpu.sched.runstate_area, vcpu.roots.kernel) else {
        return;
    };
    let space = GuestSpace::new(&core.frames, root);
    let flagged = domain.assists & ASSIST_RUNSTATE_UPDATE != 0;
    // All three or none: the guest has unmapped it if the first fails.
    let _ = write_runstate(&space, va, slot.times.info(), flagged);
}

fn write_runstate(
    space: &GuestSpace<'_>,
    va: GuestVa,
    info: RunstateInfo,
    flagged: bool,
) -> Result<(), crate::memory::guest::Fault> {
    if !flagged {
        return space.write(va, &info);
    }
    let entry_time =
        GuestVa::new(va.get().wrapping_add(offset_of!(RunstateInfo, state_entry_time) as u64));
    let marked = info.state_entry_time | RUNSTATE_UPDATE;
    space.write(entry_time, &marked)?;
    space.write(va, &RunstateInfo { state_entry_time: marked, ..info })?;
    space.write(entry_time, &info.state_entry_time)
}
