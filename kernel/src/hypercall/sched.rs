//! `sched_op` and `set_timer_op`.

use super::{Outcome, carry_out};
use crate::{
    Core, arch,
    domain::lifecycle,
    event,
    sched::{self, Polling},
    state::Caller,
};
use bulkhead_abi::{
    DomId, Errno, GuestVa, Ns, Port, event::VIRQ_TIMER, sched as nr, shared_info::EVTCHN_2L_PORTS,
};

/// A one-shot timer further ahead than this, some 13 days, is a guest whose clock arithmetic
/// wrapped: it has work to do now.
const FARTHEST: u64 = 1 << 50;
/// When such a timer fires instead, from now: as Xen does.
const INSTEAD: Ns = Ns::new(100_000_000);

/// `sched_op`: RDI = operation, RSI = its structure.
///
/// Errors: `ENOSYS` for operations that are not offered, `EFAULT`, `EINVAL`.
pub fn sched_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [op, at, ..] = args;
    let at = GuestVa::new(at);
    // An int: the upper half of the register says nothing.
    match op & 0xffff_ffff {
        nr::SCHEDOP_YIELD => sched::yield_(core, caller),
        nr::SCHEDOP_BLOCK => block(core, caller),
        nr::SCHEDOP_SHUTDOWN => match core.guest(caller).read(at) {
            Ok(reason) => lifecycle::shutdown(core, caller.dom, reason),
            Err(fault) => return Errno::from(fault).into(),
        },
        nr::SCHEDOP_REMOTE_SHUTDOWN => {
            return remote_shutdown(core, caller, at).into();
        }
        nr::SCHEDOP_POLL => {
            return carry_out(core, caller, at, |core, asked| poll(core, caller, &asked)).into();
        }
        _ => return Errno::ENOSYS.into(),
    }
    Outcome::Done(0)
}

/// Takes events again and waits for one, unless one is due at once.
fn block(core: &mut Core, caller: Caller) {
    let Some(vcpu) = core.vcpu(caller) else {
        return;
    };
    event::set_upcall_mask(core, vcpu, false);
    if !event::upcall_due(core, vcpu) {
        sched::block(core, caller);
    }
}

/// Dom0 stops a domain wherever it is, as if it had stopped itself for that reason.
///
/// Errors: `EPERM` for any other caller than Dom0, and for Dom0 as the one to stop; `ESRCH`,
/// `EFAULT`.
fn remote_shutdown(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    if caller.dom != DomId::DOM0 {
        return Err(Errno::EPERM);
    }
    carry_out(core, caller, at, |core, asked: nr::RemoteShutdown| {
        lifecycle::stop(core, DomId::new(asked.domain_id), asked.reason)
    })
}

/// Waits for a port, whether or not events are taken, until a time; not at all if one is pending.
fn poll(core: &mut Core, caller: Caller, asked: &nr::Poll) -> Result<(), Errno> {
    if asked.nr_ports > nr::POLL_MAX_PORTS {
        return Err(Errno::EINVAL);
    }
    let mut is_due = core.vcpu(caller).is_some_and(|vcpu| event::upcall_due(core, vcpu));
    let mut what = Polling::Any;
    for n in 0..asked.nr_ports {
        let offset = u64::from(n) * size_of::<u32>() as u64;
        let at = asked.ports.checked_add(offset).ok_or(Errno::EFAULT)?;
        let port = Port::new(core.guest(caller).read(GuestVa::new(at))?);
        if port.get() >= EVTCHN_2L_PORTS {
            return Err(Errno::EINVAL);
        }
        is_due |= event::is_pending(core, caller.dom, port);
        if asked.nr_ports == 1 {
            what = Polling::Port(port);
        }
    }
    let until = (asked.timeout != 0).then(|| Ns::new(asked.timeout));
    if !is_due && until.is_none_or(|until| until > arch::now()) {
        sched::poll(core, caller, what, until);
    }
    Ok(())
}

/// `set_timer_op`: RDI = absolute system time of the caller's one-shot timer, 0 to stop it.
pub fn set_timer_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [asked, ..] = args;
    let now = arch::now();
    let deadline = match asked {
        0 => None,
        // Negative as Xen's signed time, or very far: see `FARTHEST`.
        far if (far as i64) < 0 || far.saturating_sub(now.get()) > FARTHEST => {
            Some(now.plus(INSTEAD))
        }
        near => Some(Ns::new(near)),
    };
    arm(core, caller, deadline, now).into()
}

/// Sets the caller's one-shot timer; one in the past fires at once.
pub(super) fn arm(
    core: &mut Core,
    caller: Caller,
    deadline: Option<Ns>,
    now: Ns,
) -> Result<(), Errno> {
    let later = deadline.filter(|&deadline| deadline > now);
    if deadline != later {
        let wake = event::raise_virq(core, caller.dom, Some(caller.vcpu), VIRQ_TIMER);
        core.wake(wake);
    }
    sched::set_singleshot(core, caller, later)
}
