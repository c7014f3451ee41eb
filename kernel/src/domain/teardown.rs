//! The checklist of what a domain gives back when it is destroyed or reset, in this
//! order, in bounded steps: its devices are stopped before anything they could write
//! is freed, and its vCPUs are off before anything they stand on goes.
#![deny(unsafe_code)]

use super::{
    Life, MAX_VCPUS, VcpuRef,
    lifecycle::{self, legacy_info},
    vcpu::Roots,
};
use crate::{
    Core, arch, event,
    memory::{
        frame::{FrameTable, table::Budget},
        grant,
        teardown::{Progress, keep_given, relinquish},
        update,
    },
    sched,
    trap::context::release_context,
};
use bulkhead_abi::{DomId, Errno, Ns, VcpuId};

/// Ports or grants handled in one stay in ring 0.
const BUDGET: u32 = 512;

/// What comes at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The domain is gone.
    Destroy,
    /// The domain is as new, under the same id, with its devices.
    Reset,
    /// So it is, and what memory Dom0 gave it is its own still.
    ResetKeeping,
}

/// Ends a domain, alive or not, and gives back all it holds. Call again until `Done`.
///
/// Errors: `ESRCH`, `EPERM` for Dom0.
pub fn destroy(core: &mut Core, dom: DomId) -> Result<Progress, Errno> {
    run(core, dom, Ending::Destroy)
}

/// In-place reset: same id, next incarnation, paused once, as after its creation; its
/// devices are stopped and stay its own. Call again until `Done`.
///
/// Errors: `ESRCH`, `EPERM` for Dom0, `EBUSY` while it is being destroyed, `ENOMEM` if
/// there is no frame for a new shared-info: it stays as it is then; destroy it, or try again.
pub fn reset(core: &mut Core, dom: DomId) -> Result<Progress, Errno> {
    run(core, dom, Ending::Reset)
}

/// [`reset`], but frames that Dom0 gave the domain and that nobody else refers to stay its own
/// with their contents. Whoever starts it again lays out what its first instructions rely on.
///
/// Errors: as for [`reset`].
pub fn reset_keeping(core: &mut Core, dom: DomId) -> Result<Progress, Errno> {
    run(core, dom, Ending::ResetKeeping)
}

fn run(core: &mut Core, dom: DomId, wanted: Ending) -> Result<Progress, Errno> {
    let domain = lifecycle::subject(core, dom)?;
    if domain.ending == Some(Ending::Destroy) && wanted != Ending::Destroy {
        return Err(Errno::EBUSY);
    }
    // A reset that turns out to be the end goes on from where it is.
    if domain.ending.replace(wanted).is_none() {
        domain.life = Life::Dying;
        sched::refresh(core, dom);
        core.devices.quiesce(dom);
        stop_vcpus(core, dom);
    }
    // Each gives back what is left; nothing is opened meanwhile, for the domain is dying.
    if event::close_all(core, dom, &mut { BUDGET }) == Progress::More
        || grant::release_maps(core, dom, &mut { BUDGET }) == Progress::More
        || give_back(&mut core.frames, dom, wanted) == Progress::More
    {
        return Ok(Progress::More);
    }
    match wanted {
        Ending::Destroy => bury(core, dom),
        Ending::Reset | Ending::ResetKeeping => renew(core, dom)?,
    }
    Ok(Progress::Done)
}

fn give_back(frames: &mut FrameTable, dom: DomId, wanted: Ending) -> Progress {
    let mut budget = Budget::default();
    match wanted {
        Ending::ResetKeeping => keep_given(frames, dom, &mut budget),
        Ending::Reset | Ending::Destroy => relinquish(frames, dom, &mut budget),
    }
}

/// Takes the vCPUs off their CPUs, with their timers, descriptor tables and roots.
fn stop_vcpus(core: &mut Core, dom: DomId) {
    for cpu in &mut core.cpus {
        if cpu.current.is_some_and(|current| current.dom == dom) {
            cpu.current = None;
            cpu.need_resched = true;
        }
    }
    for id in (0..MAX_VCPUS as u32).map(VcpuId::new) {
        stop_vcpu(core, dom, id);
    }
}

fn stop_vcpu(core: &mut Core, dom: DomId, id: VcpuId) {
    let Some(domain) = core.domains.get_mut(dom) else {
        return;
    };
    let (incarnation, info) = (domain.incarnation, legacy_info(domain, id));
    let Some(vcpu) = domain.vcpu_mut(id) else {
        return;
    };
    vcpu.online = false;
    let roots = core::mem::take(&mut vcpu.roots);
    let info = core::mem::replace(&mut vcpu.info, info);
    if core::mem::take(&mut vcpu.info_registered) {
        core.frames.put_writable(info.mfn());
    }
    sched::remove(core, VcpuRef { dom, vcpu: id, incarnation });
    release_context(core, dom, id);
    release_roots(core, dom, roots);
}

fn release_roots(core: &mut Core, dom: DomId, roots: Roots) {
    for root in [roots.kernel, roots.user].into_iter().flatten() {
        // The CPU may still stand on it while it idles.
        arch::leave_root(root);
        update::put_root(core, dom, root);
        // What else is pinned is found later, frame by frame.
        let _ = core.frames.unpin(root, dom);
    }
}

/// The last of a destroyed domain: its structures, its devices, its name.
fn bury(core: &mut Core, dom: DomId) {
    core.devices.disown(dom);
    grant::free_table(core, dom);
    discard(core, dom);
    lifecycle::tell_dom0(core);
}

/// Frees a domain that holds nothing but its structures.
pub(super) fn discard(core: &mut Core, dom: DomId) {
    let Some(incarnation) = core.domains.get(dom).map(|d| d.incarnation) else {
        return;
    };
    for vcpu in (0..MAX_VCPUS as u32).map(VcpuId::new) {
        sched::remove(core, VcpuRef { dom, vcpu, incarnation });
    }
    let Some(mut domain) = core.domains.remove(dom) else {
        return;
    };
    for vcpu in domain.vcpus.iter_mut().filter_map(Option::take) {
        vcpu.free(&mut core.frames);
    }
    core.frames.free_shared(domain.shared_info);
    domain.free(&mut core.frames);
}

/// The last of a reset: shared-info, vCPUs and tables as new, under the next incarnation.
fn renew(core: &mut Core, dom: DomId) -> Result<(), Errno> {
    let shared_info = core.frames.alloc_shared(dom).ok_or(Errno::ENOMEM)?;
    grant::free_table(core, dom);
    let incarnation = core.domains.next_incarnation(dom);
    let Some(domain) = core.domains.get_mut(dom) else {
        return Err(Errno::ESRCH);
    };
    let old = core::mem::replace(&mut domain.shared_info, shared_info);
    domain.incarnation = incarnation;
    domain.assists = 0;
    domain.reason.clear();
    domain.pauses = 1;
    domain.life = Life::Alive;
    domain.ended_at = Ns::default();
    domain.ending = None;
    core.frames.free_shared(old);
    lifecycle::begin_life(core, dom)
}
