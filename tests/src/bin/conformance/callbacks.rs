//! `callback_op`, `set_callbacks` and the delivery of event upcalls.

use crate::catch::{EVENTS, MASKED_INSIDE, event_frame};
use crate::events::{bind_ipi, close, send};
use crate::hv::{NON_CANONICAL, UNMAPPED, hv, op, rc, said, shared_info};
use crate::tap::check;
use alloc::string::String;
use core::sync::atomic::Ordering::Relaxed;
use domain_rt::abi::hypercall::{CALLBACK_OP, SET_CALLBACKS, XEN_VERSION};
use domain_rt::abi::trap::{
    CALLBACKOP_REGISTER, CALLBACKOP_UNREGISTER, CALLBACKTYPE_EVENT, CALLBACKTYPE_FAILSAFE,
    CALLBACKTYPE_NMI, CALLBACKTYPE_SYSCALL, CallbackRegister, CallbackUnregister,
};
use domain_rt::trap::{EVENT, FAILSAFE, SYSCALL, callback_address};

pub fn run() {
    register();
    legacy();
    upcalls();
}

fn put(kind: u16, address: u64) -> String {
    let mut arg = CallbackRegister { kind, flags: 1, address, ..Default::default() };
    rc(op(CALLBACK_OP, CALLBACKOP_REGISTER, &mut arg))
}

fn remove(kind: u16) -> String {
    let mut arg = CallbackUnregister { kind, ..Default::default() };
    rc(op(CALLBACK_OP, CALLBACKOP_UNREGISTER, &mut arg))
}

fn register() {
    check(
        "callback_op: registers the event callback",
        put(CALLBACKTYPE_EVENT, callback_address(EVENT)),
    );
    check(
        "callback_op: registers the failsafe callback",
        put(CALLBACKTYPE_FAILSAFE, callback_address(FAILSAFE)),
    );
    check(
        "callback_op: registers the syscall callback",
        put(CALLBACKTYPE_SYSCALL, callback_address(SYSCALL)),
    );
    check(
        "callback_op: registers the nmi callback",
        put(CALLBACKTYPE_NMI, callback_address(EVENT)),
    );
    check("callback_op: unregisters the nmi callback", remove(CALLBACKTYPE_NMI));
    check("callback_op: refuses to unregister the event callback", remove(CALLBACKTYPE_EVENT));
    check("callback_op: refuses to unregister the syscall callback", remove(CALLBACKTYPE_SYSCALL));
    check(
        "callback_op: refuses an address that is not canonical",
        put(CALLBACKTYPE_EVENT, NON_CANONICAL),
    );
    check("callback_op: refuses an unknown kind", put(77, callback_address(EVENT)));
    check("callback_op: refuses to unregister an unknown kind", remove(77));
    check("callback_op: refuses an unknown operation", said(CALLBACK_OP, &[9, 0]));
    check(
        "callback_op: refuses an unmapped structure",
        said(CALLBACK_OP, &[CALLBACKOP_REGISTER, UNMAPPED]),
    );
}

fn legacy() {
    let all = [EVENT, FAILSAFE, SYSCALL].map(callback_address);
    check("set_callbacks: registers all three", said(SET_CALLBACKS, &all));
}

fn upcalls() {
    let info = shared_info();
    let port = bind_ipi(0).expect("a free port");
    info.swap_u8(0, 0);
    info.atomic_u64(8).store(0, Relaxed);
    let (word, bit) = (port as usize / 64, 1u64 << (port % 64));
    info.atomic_u64(2560 + word * 8).fetch_or(bit, Relaxed);
    send(port);
    let bits = (info.read_u64(2048 + word * 8) & bit != 0, info.read_u64(8) != 0, info.read_u8(0));
    check("event: a masked port becomes pending and no more", alloc::format!("{bits:?}"));
    info.atomic_u64(2048 + word * 8).fetch_and(!bit, Relaxed);
    info.atomic_u64(2560 + word * 8).fetch_and(!bit, Relaxed);
    EVENTS.store(0, Relaxed);
    send(port);
    let bits =
        (info.read_u64(2048 + word * 8) & bit != 0, info.read_u64(8) == 1 << word, info.read_u8(0));
    check(
        "event: a port raises its word and the upcall",
        alloc::format!("{bits:?}, upcalls {}", EVENTS.load(Relaxed)),
    );
    send(port);
    check("event: a pending port is not raised again", alloc::format!("{}", info.read_u8(0)));
    info.write_u8(1, 0);
    hv(XEN_VERSION, &[0]);
    let masked = info.swap_u8(1, 1);
    let inside = MASKED_INSIDE.load(Relaxed);
    check(
        "event: any hypercall after unmasking delivers",
        alloc::format!("upcalls {}, masked inside {inside}, after {masked}", EVENTS.load(Relaxed)),
    );
    let frame =
        event_frame().map(|f| (f.is_user(), f.was_masked(), f.rflags >> 9 & 1, f.error_code));
    check("event: the frame of an upcall", alloc::format!("{frame:?}"));
    info.atomic_u64(2048 + word * 8).fetch_and(!bit, Relaxed);
    info.atomic_u64(8).store(0, Relaxed);
    EVENTS.store(0, Relaxed);
    info.write_u8(1, 0);
    send(port);
    let masked = info.swap_u8(1, 1);
    check(
        "event: a send to ourselves is delivered before it returns",
        alloc::format!("upcalls {}, after {masked}", EVENTS.load(Relaxed)),
    );
    close(port);
}
