//! What guests are told of time: `vcpu_time_info`, the wall clock and the run-state area.
//! Written by the core only; what a guest writes there is never read back.

use crate::{Core, arch, domain::VcpuRef, memory::guest::GuestSpace};
use bulkhead_abi::{
    DomId, GuestVa, VcpuId,
    shared_info::{SharedInfo, VcpuInfo, VcpuTimeInfo},
    trap::VMASST_RUNSTATE_UPDATE_FLAG,
    vcpu::{RUNSTATE_UPDATE, RunstateInfo},
};
use core::mem::offset_of;
use zerocopy::IntoBytes;

const NS_PER_SECOND: u64 = 1_000_000_000;

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
    let at = vcpu.info.plus(offset_of!(VcpuInfo, time));
    mem.write_u32(at, info.version);
    for (n, word) in info.as_bytes().chunks_exact(8).enumerate().skip(1) {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        mem.write_u64(at.plus(8 * n), word);
    }
    mem.write_u32(at, vcpu.sched.time_version);
}

/// Tells a domain what the wall clock showed when system time was 0. Once is enough.
pub fn publish_wallclock(core: &Core, dom: DomId) {
    let Some(domain) = core.domains.get(dom) else {
        return;
    };
    let write = |offset, value| {
        core.frames.mem().write_u32(domain.shared_info.maddr().plus(offset), value);
    };
    let boot = arch::wallclock_ns_at_boot();
    let seconds = boot / NS_PER_SECOND;
    write(offset_of!(SharedInfo, wc_version), 1);
    write(offset_of!(SharedInfo, wc_sec), seconds as u32);
    write(offset_of!(SharedInfo, wc_sec_hi), (seconds >> 32) as u32);
    write(offset_of!(SharedInfo, wc_nsec), (boot % NS_PER_SECOND) as u32);
    write(offset_of!(SharedInfo, wc_version), 2);
}

/// Shows a vCPU its run state where it asked for it, marked while it is written if the guest asked
/// for that too. A bad address is the guest's own loss.
pub fn publish_runstate(core: &Core, who: VcpuRef) -> Option<()> {
    const ENTRY_TIME: u64 = offset_of!(RunstateInfo, state_entry_time) as u64;
    let domain = core.domains.get(who.dom)?;
    let vcpu = domain.vcpu(who.vcpu)?;
    let info = core.sched.slots.get(vcpu.sched.slot?)?.times.info();
    let space = GuestSpace::new(&core.frames, vcpu.roots.kernel?);
    let va = vcpu.sched.runstate_area?;
    if domain.assists & 1 << VMASST_RUNSTATE_UPDATE_FLAG == 0 {
        return space.write(va, &info).ok();
    }
    let entry_time = GuestVa::new(va.get().wrapping_add(ENTRY_TIME));
    let marked = info.state_entry_time | RUNSTATE_UPDATE;
    space.write(entry_time, &marked).ok()?;
    space.write(va, &RunstateInfo { state_entry_time: marked, ..info }).ok()?;
    space.write(entry_time, &info.state_entry_time).ok()
}
