//! `sched_op` and `set_timer_op`.

use crate::catch::EVENTS;
use crate::events::{bind_ipi, clear, close, is_pending, send, set_mask, timer_port};
use crate::hv::{UNMAPPED, hv, op, rc, said, shared_info};
use crate::tap::check;
use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering::Relaxed;
use domain_rt::abi::hypercall::{SCHED_OP, SCHED_OP_COMPAT, SET_TIMER_OP};
use domain_rt::abi::sched::{self, Poll};
use domain_rt::time;

const MS: u64 = 1_000_000;

pub fn run() {
    check("sched_op: yield", said(SCHED_OP, &[sched::SCHEDOP_YIELD]));
    check("sched_op: refuses an unknown operation", said(SCHED_OP, &[99, 0]));
    check(
        "sched_op: shutdown refuses an unmapped structure",
        said(SCHED_OP, &[sched::SCHEDOP_SHUTDOWN, UNMAPPED]),
    );
    check("sched_op_compat: yield", said(SCHED_OP_COMPAT, &[0, 0]));
    check("sched_op_compat: refuses an unknown operation", said(SCHED_OP_COMPAT, &[99, 0]));
    let timer = timer_port().expect("the runtime bound it");
    block(timer);
    timers(timer);
    polls(timer);
}

fn now() -> u64 {
    time::now().get()
}

fn set_timer(at: u64) -> String {
    said(SET_TIMER_OP, &[at])
}

fn block(timer: u32) {
    clear(timer);
    set_mask(timer, false);
    EVENTS.store(0, Relaxed);
    let start = now();
    let armed = set_timer(start + 5 * MS);
    let result = said(SCHED_OP, &[sched::SCHEDOP_BLOCK]);
    let masked = shared_info().swap_u8(1, 1);
    let late = now() >= start + 5 * MS;
    let found = format!(
        "{armed} {result}, in time {late}, upcalls {}, pending {}, masked {masked}",
        EVENTS.load(Relaxed),
        is_pending(timer)
    );
    check("block: unmasks and sleeps until the timer", found);
    clear(timer);
    let port = bind_ipi(0).expect("a free port");
    clear(port);
    set_mask(port, false);
    send(port);
    EVENTS.store(0, Relaxed);
    let result = said(SCHED_OP, &[sched::SCHEDOP_BLOCK]);
    let masked = shared_info().swap_u8(1, 1);
    check(
        "block: returns at once when an event waits",
        format!("{result}, upcalls {}, masked {masked}", EVENTS.load(Relaxed)),
    );
    clear(port);
    close(port);
}

/// Whether the timer fires within a second.
pub fn fires(timer: u32) -> bool {
    let end = now() + 1000 * MS;
    while !is_pending(timer) && now() < end {
        hv(SCHED_OP, &[sched::SCHEDOP_YIELD]);
    }
    is_pending(timer)
}

/// Whether the timer fires until `end`, a while after its deadline.
pub fn fires_until(timer: u32, end: u64) -> bool {
    while now() < end {
        hv(SCHED_OP, &[sched::SCHEDOP_YIELD]);
    }
    is_pending(timer)
}

fn timers(timer: u32) {
    clear(timer);
    set_mask(timer, true);
    check("set_timer_op: a deadline that has passed", set_timer(1));
    check("set_timer_op: fires for it", fires(timer));
    clear(timer);
    let soon = now() + 200 * MS;
    set_timer(soon);
    let result = set_timer(0);
    let fired = fires_until(timer, soon + 50 * MS);
    check("set_timer_op: 0 cancels", format!("{result} {fired}"));
    set_timer(now() + 3_600_000 * MS);
    set_timer(now() + MS);
    check("set_timer_op: a new deadline replaces the old", fires(timer));
    clear(timer);
}

fn poll(ports: &[u32], timeout: u64) -> i64 {
    let mut arg = Poll {
        ports: ports.as_ptr() as u64,
        nr_ports: ports.len() as u32,
        timeout,
        ..Default::default()
    };
    op(SCHED_OP, sched::SCHEDOP_POLL, &mut arg)
}

fn polls(timer: u32) {
    let port = bind_ipi(0).expect("a free port");
    clear(port);
    set_mask(port, true);
    let start = now();
    let result = rc(poll(&[port], start + 5 * MS));
    check("poll: returns at its timeout", format!("{result}, in time {}", now() >= start + 5 * MS));
    send(port);
    let result = rc(poll(&[port], 0));
    check(
        "poll: returns at once for a pending port, masked or not",
        format!("{result} {}", is_pending(port)),
    );
    clear(port);
    clear(timer);
    set_mask(timer, true);
    set_timer(now() + 2 * MS);
    let result = rc(poll(&[port, timer], now() + 3_600_000 * MS));
    check(
        "poll: wakes when a listed port becomes pending",
        format!("{result} {}", is_pending(timer)),
    );
    clear(timer);
    check("poll: refuses a port past the last", rc(poll(&[port, 70_000], 0)));
    check("poll: refuses more than 128 ports", rc(poll(&[port; 129], 0)));
    let mut arg = Poll { ports: UNMAPPED, nr_ports: 1, ..Default::default() };
    check("poll: refuses an unmapped list", rc(op(SCHED_OP, sched::SCHEDOP_POLL, &mut arg)));
    close(port);
}
