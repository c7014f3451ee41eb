//! `sched_op` and `set_timer_op`.

use super::Outcome;
use crate::{
    Core, arch,
    domain::lifecycle,
    event,
    sched::{self, Wake, slot::Polling},
    state::Caller,
};
use bulkhead_abi::{
    Errno, GuestVa, Ns, Port,
    event::VIRQ_TIMER,
    sched::{POLL_MAX_PORTS, Poll, SCHEDOP_BLOCK, SCHEDOP_POLL, SCHEDOP_SHUTDOWN, SCHEDOP_YIELD},
    shared_info::EVTCHN_2L_PORTS,
};

/// A one-shot timer further ahead than this, some 13 days, is a guest whose clock arithmetic
/// wrapped: it has work to do now.
const FARTHEST: u64 = 1 << 50;
/// When such a timer fires instead, from now: as Xen does.
const INSTEAD_NS: u64 = 100_000_000;

/// `sched_op`: RDI = operation, RSI = its structure.
///
/// Errors: `ENOSYS` for operations that are not offered, `EFAULT`, `EINVAL`.
pub fn sched_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [op, at, ..] = args;
    let at = GuestVa::new(at);
    // An int: the upper half of the register says nothing.
    let done = match op & 0xffff_ffff {
        SCHEDOP_YIELD => {
            sched::yield_(core, caller);
            Ok(())
        }
        SCHEDOP_BLOCK => {
            block(core, caller);
            Ok(())
        }
        SCHEDOP_SHUTDOWN => shutdown(core, caller, at),
        SCHEDOP_POLL => poll(core, caller, at),
        _ => Err(Errno::ENOSYS),
    };
    done.into()
}

/// Takes events again and waits for one, unless one is due at once.
fn block(core: &mut Core, caller: Caller) {
    let Some(vcpu) = core.domains.get(caller.dom).and_then(|domain| domain.vcpu(caller.vcpu))
    else {
        return;
    };
    event::set_upcall_mask(core, vcpu, false);
    if !event::upcall_due(core, vcpu) {
        sched::block(core, caller);
    }
}

fn shutdown(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let reason: u32 = core.guest(caller).read(at)?;
    lifecycle::shutdown(core, caller.dom, reason);
    Ok(())
}

/// Waits for a port, whether or not events are taken, until a time; not at all if one is pending.
fn poll(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: Poll = core.guest(caller).read(at)?;
    if asked.nr_ports > POLL_MAX_PORTS {
        return Err(Errno::EINVAL);
    }
    let mut is_due = false;
    let mut first = None;
    for n in 0..asked.nr_ports {
        let port = nth_port(core, caller, &asked, n)?;
        first = first.or(Some(port));
        is_due |= event::is_pending(core, caller.dom, port);
    }
    let vcpu = core.domains.get(caller.dom).and_then(|domain| domain.vcpu(caller.vcpu));
    is_due |= vcpu.is_some_and(|vcpu| event::upcall_due(core, vcpu));
    let until = (asked.timeout != 0).then(|| Ns::new(asked.timeout));
    let has_passed = until.is_some_and(|until| until <= arch::now());
    if is_due || has_passed {
        return Ok(());
    }
    let what = match (asked.nr_ports, first) {
        (1, Some(port)) => Polling::Port(port),
        _ => Polling::Any,
    };
    sched::poll(core, caller, what, until);
    Ok(())
}

fn nth_port(core: &Core, caller: Caller, asked: &Poll, n: u32) -> Result<Port, Errno> {
    let offset = u64::from(n) * size_of::<u32>() as u64;
    let at = asked.ports.checked_add(offset).ok_or(Errno::EFAULT)?;
    let port: u32 = core.guest(caller).read(GuestVa::new(at))?;
    if port < EVTCHN_2L_PORTS { Ok(Port::new(port)) } else { Err(Errno::EINVAL) }
}

/// `set_timer_op`: RDI = absolute system time of the caller's one-shot timer, 0 to stop it.
pub fn set_timer_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [asked, ..] = args;
    let now = arch::now();
    let deadline = match asked {
        0 => None,
        // Negative as Xen's signed time, or very far: see `FARTHEST`.
        far if (far as i64) < 0 || far.saturating_sub(now.get()) > FARTHEST => {
            Some(Ns::new(now.get().saturating_add(INSTEAD_NS)))
        }
        near => Some(Ns::new(near)),
    };
    arm(core, caller, deadline, now);
    Outcome::Done(0)
}

/// Sets the caller's one-shot timer; one in the past fires at once.
pub(super) fn arm(core: &mut Core, caller: Caller, deadline: Option<Ns>, now: Ns) {
    let is_past = deadline.is_some_and(|deadline| deadline <= now);
    let later = deadline.filter(|_| !is_past);
    sched::set_singleshot(core, caller.dom, caller.vcpu, later);
    if is_past {
        let wake: Wake = event::raise_virq(core, caller.dom, Some(caller.vcpu), VIRQ_TIMER);
        core.wake(wake);
    }
}
