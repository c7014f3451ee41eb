//! `vcpu_op`. The registration of a new vCPU-info page comes last of all, for the
//! runtime does not know of it.

use crate::events::{clear, set_mask, timer_port};
use crate::hv::{HOLE, UNMAPPED, hv, rc, said, shared_info};
use crate::sched::{fires, fires_until};
use crate::tables::{Scratch, frame_of_the_core};
use crate::tap::check;
use alloc::format;
use alloc::string::String;
use domain_rt::abi::hypercall::VCPU_OP;
use domain_rt::abi::vcpu::{
    self, RUNSTATE_RUNNING, RegisterVcpuInfo, RunstateInfo, SetSingleshotTimer,
    VCPU_SSHOTTMR_FUTURE,
};
use domain_rt::time;

const MS: u64 = 1_000_000;

pub fn run() {
    presence();
    runstate();
    timers();
    check("vcpu_op: refuses an unknown operation", said(VCPU_OP, &[99, 0, 0]));
}

fn on_vcpu0<T>(cmd: u64, arg: &mut T) -> String {
    said(VCPU_OP, &[cmd, 0, (&raw mut *arg) as u64])
}

fn presence() {
    for (name, cmd, id) in [
        ("is_up: vcpu 0", vcpu::VCPUOP_IS_UP, 0),
        ("is_up: a vcpu that is not there", vcpu::VCPUOP_IS_UP, 7),
        ("is_up: the highest id that a guest asks for", vcpu::VCPUOP_IS_UP, 8191),
        ("is_up: the highest number", vcpu::VCPUOP_IS_UP, u32::MAX.into()),
        ("up: vcpu 0 runs already", vcpu::VCPUOP_UP, 0),
        ("up: a vcpu that is not there", vcpu::VCPUOP_UP, 7),
        ("down: a vcpu that is not there", vcpu::VCPUOP_DOWN, 7),
    ] {
        check(name, said(VCPU_OP, &[cmd, id, 0]));
    }
    check(
        "initialise: a vcpu that is not there",
        said(VCPU_OP, &[vcpu::VCPUOP_INITIALISE, 7, UNMAPPED]),
    );
}

fn runstate() {
    let mut info = RunstateInfo::default();
    let result = on_vcpu0(vcpu::VCPUOP_GET_RUNSTATE_INFO, &mut info);
    let total: u64 = info.time.iter().sum();
    let found = (info.state == RUNSTATE_RUNNING, total > 0, info.state_entry_time > 0);
    check("get_runstate_info: running, with times", format!("{result} {found:?}"));
    check(
        "get_runstate_info: refuses an unmapped structure",
        said(VCPU_OP, &[vcpu::VCPUOP_GET_RUNSTATE_INFO, 0, UNMAPPED]),
    );
    let page = Scratch::new();
    let mut va = page.va();
    let result = on_vcpu0(vcpu::VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, &mut va);
    let found = (page.read(0) as u32 == RUNSTATE_RUNNING, page.read(2) > 0);
    check("register_runstate_memory_area: filled in at once", format!("{result} {found:?}"));
    let mut none = 0u64;
    check(
        "register_runstate_memory_area: a null address ends it",
        on_vcpu0(vcpu::VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, &mut none),
    );
    let mut hole = HOLE;
    check(
        "register_runstate_memory_area: refuses the hole",
        on_vcpu0(vcpu::VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, &mut hole),
    );
}

fn single(at: u64, flags: u32) -> String {
    let mut arg = SetSingleshotTimer { timeout_abs_ns: at, flags, ..Default::default() };
    on_vcpu0(vcpu::VCPUOP_SET_SINGLESHOT_TIMER, &mut arg)
}

fn timers() {
    let timer = timer_port().expect("the runtime bound it");
    set_mask(timer, true);
    clear(timer);
    let now = || time::now().get();
    check("set_singleshot_timer: in the future", single(now() + 2 * MS, 0));
    check("set_singleshot_timer: fires", fires(timer));
    clear(timer);
    let result = single(1, VCPU_SSHOTTMR_FUTURE);
    check("set_singleshot_timer: takes the past, whatever its flag says", result);
    let _ = fires(timer);
    clear(timer);
    check("set_singleshot_timer: takes the past", single(1, 0));
    check("set_singleshot_timer: fires for it", fires(timer));
    clear(timer);
    let soon = now() + 200 * MS;
    single(soon, 0);
    let result = said(VCPU_OP, &[vcpu::VCPUOP_STOP_SINGLESHOT_TIMER, 0, 0]);
    let fired = fires_until(timer, soon + 50 * MS);
    check("stop_singleshot_timer: stops it", format!("{result} {fired}"));
    for (name, id) in [("another vcpu", 7), ("an unmapped structure", 0)] {
        let result = said(VCPU_OP, &[vcpu::VCPUOP_SET_SINGLESHOT_TIMER, id, UNMAPPED]);
        check(&format!("set_singleshot_timer: refuses {name}"), result);
    }
    let result = on_vcpu0(vcpu::VCPUOP_SET_PERIODIC_TIMER, &mut 10u64);
    check("set_periodic_timer: refuses a period below 1 ms", result);
    let result = on_vcpu0(vcpu::VCPUOP_SET_PERIODIC_TIMER, &mut (2 * MS));
    check("set_periodic_timer: takes one of 2 ms", result);
    clear(timer);
    let first = fires(timer);
    clear(timer);
    let found = format!("{first} {}", fires(timer));
    check("set_periodic_timer: fires again and again", found);
    let result = said(VCPU_OP, &[vcpu::VCPUOP_STOP_PERIODIC_TIMER, 0, 0]);
    clear(timer);
    let fired = fires_until(timer, now() + 50 * MS);
    check("stop_periodic_timer: stops it", format!("{result} {fired}"));
}

fn register(mfn: u64, offset: u32) -> i64 {
    let mut arg = RegisterVcpuInfo { mfn, offset, ..Default::default() };
    hv(VCPU_OP, &[vcpu::VCPUOP_REGISTER_VCPU_INFO, 0, (&raw mut arg) as u64])
}

/// After this the runtime looks at the wrong page: nothing may wait or sleep.
pub fn run_last() {
    let page = Scratch::new();
    check(
        "register_vcpu_info: refuses an offset that crosses the page",
        rc(register(page.mfn().get(), 4090)),
    );
    check(
        "register_vcpu_info: refuses a frame of the core",
        rc(register(frame_of_the_core().get(), 0)),
    );
    check("register_vcpu_info: refuses a frame past the end", rc(register(1 << 45, 0)));
    let old = shared_info();
    old.write_u8(1, 1);
    let result = rc(register(page.mfn().get(), 128));
    let at = page.shared().slice(128, 64);
    let found = (at.read_u8(0), at.read_u8(1), at.read_u64(8) == u64::MAX, at.read_u64(48) > 0);
    check("register_vcpu_info: moves it, with everything pending", format!("{result} {found:?}"));
    check("register_vcpu_info: refuses a second time", rc(register(page.mfn().get(), 0)));
    core::mem::forget(page);
}
