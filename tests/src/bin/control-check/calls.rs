//! The calls of Dom0 in the form in which the cases want them, and those that the runtime
//! does not offer because nobody in their right mind makes them. The only `unsafe` here.

use alloc::vec::Vec;
use domain_rt::abi::control::{
    CreateDomain, DomainInfo, MachineInfo, SET_VCPU_CONTEXT, SetMaxPages, SetVcpuContext,
};
use domain_rt::abi::event::{EVTCHNOP_STATUS, Status};
use domain_rt::abi::hypercall as nr;
use domain_rt::abi::mmu::{HOLE_START, MMUEXT_UNPIN_TABLE, MmuextOp};
use domain_rt::abi::{DomId, Mfn, Port};
use domain_rt::hypercall::{self, Result};
use domain_rt::{Shared, control};

/// Pages that a domain of these cases may own, unless said otherwise.
pub const PAGES: u64 = 4096;

/// Makes a domain; `domid` 0 for the lowest free.
pub fn create(domid: u16, max_vcpus: u32, flags: u32) -> Result<DomId> {
    let mut asked =
        CreateDomain { domid, max_vcpus, max_pages: PAGES, flags, ..Default::default() };
    control::create_domain(&mut asked)?;
    Ok(DomId::new(asked.domid))
}

pub fn destroy(domid: DomId) -> Result<()> {
    control::destroy_domain(domid)
}

/// The first domain from `domid` on.
pub fn next_info(domid: u16) -> Result<DomainInfo> {
    let mut info = DomainInfo { domid, ..Default::default() };
    control::domain_info(&mut info)?;
    Ok(info)
}

/// This domain and no other.
pub fn info(domid: DomId) -> Result<DomainInfo> {
    let found = next_info(domid.get())?;
    (found.domid == domid.get()).then_some(found).ok_or(domain_rt::abi::Errno::ESRCH)
}

pub fn machine() -> MachineInfo {
    let mut info = MachineInfo::default();
    control::machine_info(&mut info).expect("Dom0 may ask");
    info
}

pub fn free_frames() -> u64 {
    machine().free_frames
}

pub fn set_max_pages(domid: DomId, max_pages: u64) -> Result<()> {
    let mut arg = SetMaxPages { domid: domid.get(), max_pages, ..Default::default() };
    control::set_max_pages(&mut arg)
}

/// Gives a domain `count` pieces of `1 << order` frames from pfn `first` on; their first
/// frames.
pub fn populate(domid: DomId, order: u32, first: u64, count: u64) -> Vec<Mfn> {
    let mut frames: Vec<u64> = (0..count).map(|n| first + (n << order)).collect();
    let done = hypercall::populate_physmap(domid, order, &mut frames).unwrap_or(0);
    frames.truncate(done);
    frames.into_iter().map(Mfn::new).collect()
}

/// Takes the pin off a table of another domain.
pub fn unpin(domid: DomId, mfn: Mfn) -> Result<()> {
    assert!(domid != DomId::SELF && domid != DomId::DOM0, "tables of ours stay pinned");
    let op = MmuextOp { cmd: MMUEXT_UNPIN_TABLE, arg1: mfn.get(), ..Default::default() };
    // SAFETY: another domain's tables map nothing of ours.
    unsafe { hypercall::mmuext_op(&[op], domid) }
}

/// Command `cmd` of CONTROL with its structure in the core's hole.
pub fn control_in_the_hole(cmd: u64) -> Result {
    // SAFETY: no memory of ours is there, whatever the command does with the address.
    unsafe { hypercall::call(nr::CONTROL, [cmd, HOLE_START, 0, 0, 0]) }
}

/// Command `cmd` of CONTROL with its structure in memory that nobody has references to.
pub fn control_on(cmd: u64, structure: Shared<'_>) -> Result {
    assert!(structure.bytes() >= size_of::<DomainInfo>(), "the largest structure fits");
    // SAFETY: mapped for as long as the call takes, and no reference points there.
    unsafe { hypercall::call(nr::CONTROL, [cmd, structure.va() as u64, 0, 0, 0]) }
}

/// `SET_VCPU_CONTEXT` with a context anywhere.
pub fn set_context_at(domid: DomId, vcpu: u32, context: u64) -> Result {
    let arg = SetVcpuContext { domid: domid.get(), vcpu, context, ..Default::default() };
    // SAFETY: the core reads the structure and the context, and writes neither.
    unsafe { hypercall::call(nr::CONTROL, [SET_VCPU_CONTEXT, (&raw const arg) as u64, 0, 0, 0]) }
}

/// What one of Dom0's ports is bound to: `EVTCHNSTAT_*` and the domain at the other end.
pub fn port_status(port: Port) -> Result<(u32, DomId)> {
    let mut arg = Status { dom: DomId::SELF.get(), port: port.get(), ..Default::default() };
    let at = (&raw mut arg) as u64;
    // SAFETY: the structure that the command takes, ours for the call.
    unsafe { hypercall::call(nr::EVENT_CHANNEL_OP, [EVTCHNOP_STATUS, at, 0, 0, 0]) }?;
    Ok((arg.status, DomId::new(arg.arg0 as u16)))
}
