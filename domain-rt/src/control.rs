//! Dom0's requests to the core, one function per command of [`abi::control`].
//! Everybody else gets `EPERM`.
//!
//! [`abi::control`]: bulkhead_abi::control

use crate::hypercall::{Result, with_struct};
use bulkhead_abi::control::{
    self, CreateDomain, DeviceRef, DomainInfo, DomainOnly, MachineInfo, SchedParams, SetGrant,
    SetMaxPages, SetVcpuContext, Shutdown, VcpuTimes,
};
use bulkhead_abi::hypercall::{CONTROL, SCHED_OP};
use bulkhead_abi::sched::{RemoteShutdown, SCHEDOP_REMOTE_SHUTDOWN, SHUTDOWN_CRASH};
use bulkhead_abi::vcpu::VcpuGuestContext;
use bulkhead_abi::{DomId, VcpuId};

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($cmd:ident, $arg:ty);)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// What the core answers; see the command's documentation.
        pub fn $name(arg: &mut $arg) -> Result<()> {
            with_struct(CONTROL, control::$cmd, arg).map(drop)
        }
    )*};
}

macro_rules! domain_calls {
    ($($(#[$doc:meta])* $name:ident($cmd:ident);)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// `ESRCH` for a domain that is not there, and what the core answers.
        pub fn $name(domain: DomId) -> Result<()> {
            let mut arg = DomainOnly { domid: domain.get(), ..Default::default() };
            with_struct(CONTROL, control::$cmd, &mut arg).map(drop)
        }
    )*};
}

calls! {
    /// Creates a paused domain.
    create_domain(CREATE_DOMAIN, CreateDomain);
    /// Describes the first domain whose id is at least the one given.
    domain_info(DOMAIN_INFO, DomainInfo);
    /// Sets scheduling parameters.
    set_sched(SET_SCHED, SchedParams);
    /// Reads scheduling parameters.
    get_sched(GET_SCHED, SchedParams);
    /// Reads the times of one vCPU.
    vcpu_times(VCPU_TIMES, VcpuTimes);
    /// Writes an entry of a domain's grant table.
    set_grant(SET_GRANT, SetGrant);
    /// Gives a device to a domain.
    assign_device(ASSIGN_DEVICE, DeviceRef);
    /// Takes a device from its owner.
    deassign_device(DEASSIGN_DEVICE, DeviceRef);
    /// Describes the machine.
    machine_info(MACHINE_INFO, MachineInfo);
    /// Sets the most frames a domain may own.
    set_max_pages(SET_MAX_PAGES, SetMaxPages);
}

domain_calls! {
    /// Ends a domain and takes back all it holds.
    destroy_domain(DESTROY_DOMAIN);
    /// Stops a domain; pauses nest.
    pause_domain(PAUSE_DOMAIN);
    /// Undoes one pause.
    unpause_domain(UNPAUSE_DOMAIN);
    /// Resets a domain in place.
    reset_domain(RESET_DOMAIN);
    /// Resets a domain in place, which keeps the memory that it was given.
    reset_keeping(RESET_KEEPING);
}

/// Stops a domain at whatever instruction it is, as if it had crashed there.
///
/// # Errors
/// `ESRCH` for a domain that is not there.
pub fn crash_domain(domain: DomId) -> Result<()> {
    let mut arg =
        RemoteShutdown { domain_id: domain.get(), reason: SHUTDOWN_CRASH, ..Default::default() };
    with_struct(SCHED_OP, SCHEDOP_REMOTE_SHUTDOWN, &mut arg).map(drop)
}

/// Sets the registers of a vCPU that has not run yet.
///
/// # Errors
/// `EINVAL` for a context that does not validate, and what the core answers.
pub fn set_vcpu_context(domain: DomId, vcpu: VcpuId, context: &VcpuGuestContext) -> Result<()> {
    let mut arg = SetVcpuContext {
        domid: domain.get(),
        vcpu: vcpu.get(),
        context: (&raw const *context) as u64,
        ..Default::default()
    };
    with_struct(CONTROL, control::SET_VCPU_CONTEXT, &mut arg).map(drop)
}

/// Ends the machine with one of the `EXIT_*` codes of the archive.
///
/// # Errors
/// `EPERM` to everybody but Dom0; it does not return otherwise.
pub fn machine_shutdown(code: u32) -> Result<()> {
    let mut arg = Shutdown { code, ..Default::default() };
    with_struct(CONTROL, control::MACHINE_SHUTDOWN, &mut arg).map(drop)
}
