//! Pauses, shares and times, with a domain that yields for ever.

use crate::MAX_VCPUS;
use crate::calls::{create, destroy, info};
use crate::news::News;
use crate::program::Program;
use crate::small::{DATA, Small};
use crate::tap::{check, equal, refused};
use core::time::Duration;
use domain_rt::abi::control::{STATE_PAUSED, SchedParams, VcpuTimes};
use domain_rt::abi::sched::SCHEDOP_YIELD;
use domain_rt::abi::vcpu::RUNSTATE_OFFLINE;
use domain_rt::abi::{DomId, Errno, hypercall as nr};
use domain_rt::mem::Mapping;
use domain_rt::{control, time};

/// Longest span a parameter may have: an hour.
const LONGEST: u64 = 3_600_000_000_000;
/// Allowance that 0 stands for, and the least one, ns.
const ALLOWANCE: u64 = 2_000_000;
const LEAST_ALLOWANCE: u64 = 50_000;

/// Offset of the spinning domain's counter.
const COUNTER: usize = 8;

pub async fn run(news: &mut News) {
    parameters();
    bounds();
    pauses().await;
    news.forget().await;
}

/// Counts and yields, for ever.
pub fn spinner() -> Program {
    Program::default()
        .increment(DATA + COUNTER as u64)
        .hypercall(nr::SCHED_OP, [SCHEDOP_YIELD, 0, 0])
        .repeat()
}

/// Whether the spinning domain counts on.
pub async fn is_counting(data: &Mapping) -> bool {
    let before = data.shared().read_u64(COUNTER);
    // What still runs has its turn before this ends, however slow the host is.
    for _ in 0..200 {
        time::sleep(Duration::from_millis(1)).await;
        if data.shared().read_u64(COUNTER) != before {
            return true;
        }
    }
    false
}

fn get(domid: DomId, vcpu: u32) -> Result<SchedParams, Errno> {
    let mut params = SchedParams { domid: domid.get(), vcpu, ..Default::default() };
    control::get_sched(&mut params)?;
    Ok(params)
}

/// Weight, warp, limit, unwarp, allowance.
type Values = (u32, u64, u64, u64, u64);

pub fn values(domid: DomId, vcpu: u32) -> Result<Values, Errno> {
    let p = get(domid, vcpu)?;
    Ok((p.weight, p.warp_ns, p.warp_limit_ns, p.unwarp_ns, p.allowance_ns))
}

pub fn set(domid: DomId, vcpu: u32, values: Values) -> Result<(), Errno> {
    let (weight, warp_ns, warp_limit_ns, unwarp_ns, allowance_ns) = values;
    let (domid, rest) = (domid.get(), Default::default());
    let mut params = SchedParams {
        domid,
        vcpu,
        weight,
        warp_ns,
        warp_limit_ns,
        unwarp_ns,
        allowance_ns,
        ..rest
    };
    control::set_sched(&mut params)
}

/// What a vCPU starts with.
pub const DEFAULTS: Values = (256, 0, 0, 0, ALLOWANCE);

fn parameters() {
    let domid = create(0, MAX_VCPUS, 0).expect("a domain");
    let last = MAX_VCPUS - 1;
    equal("a vCPU starts with an equal share", values(domid, last), Ok(DEFAULTS));
    let odd = (777, 1, 2, 3, 60_000);
    set(domid, 3, odd).expect("values in range");
    equal("what is set is what is got", values(domid, 3), Ok(odd));
    equal("for that vCPU alone", values(domid, 4), Ok(DEFAULTS));
    let all = (65_535, LONGEST, LONGEST, LONGEST, LONGEST);
    set(domid, u32::MAX, all).expect("values in range");
    let each = (0..MAX_VCPUS).all(|vcpu| values(domid, vcpu) == Ok(all));
    check("all vCPUs are set at once, to the greatest values", each);
    set(domid, 0, (1, 0, 0, 0, 0)).expect("values in range");
    equal(
        "the least values, allowance 0 for the default",
        values(domid, 0),
        Ok((1, 0, 0, 0, ALLOWANCE)),
    );
    set(domid, 0, (1, 0, 0, 0, 1)).expect("values in range");
    equal("a tiny allowance is raised", values(domid, 0), Ok((1, 0, 0, 0, LEAST_ALLOWANCE)));
    destroy(domid).expect("there");
}

fn bounds() {
    let domid = create(0, 1, 0).expect("a domain");
    let refuse = |what, values| refused(what, set(domid, 0, values), Errno::EINVAL);
    refuse("weight 0 is no share", (0, 0, 0, 0, 0));
    refuse("weight 65536 is too much", (65_536, 0, 0, 0, 0));
    refuse("a warp above an hour is too long", (1, LONGEST + 1, 0, 0, 0));
    refuse("a warp limit above an hour is too long", (1, 0, LONGEST + 1, 0, 0));
    refuse("an unwarp time above an hour is too long", (1, 0, 0, u64::MAX, 0));
    refuse("an allowance above an hour is too long", (1, 0, 0, 0, LONGEST + 1));
    equal("what was refused changed nothing", values(domid, 0), Ok(DEFAULTS));
    refused("a vCPU that is not there has no share to set", set(domid, 1, DEFAULTS), Errno::ENOENT);
    refused("a vCPU that is not there has no share to tell", values(domid, 1), Errno::ENOENT);
    refused("all vCPUs have no one share", values(domid, u32::MAX), Errno::ENOENT);
    equal(
        "a vCPU without context is offline",
        times(domid, 0).map(|t| (t.state, t.time[0], t.dispatches)),
        Ok((RUNSTATE_OFFLINE, 0, 0)),
    );
    refused("a vCPU that is not there has no times", times(domid, 1), Errno::ENOENT);
    destroy(domid).expect("there");
    refused(
        "a domain that is not there has no share to set",
        set(domid, 0, DEFAULTS),
        Errno::ESRCH,
    );
    refused("a domain that is not there has no share to tell", values(domid, 0), Errno::ENOENT);
    refused("a domain that is not there has no times", times(domid, 0), Errno::ENOENT);
}

fn times(domid: DomId, vcpu: u32) -> Result<VcpuTimes, Errno> {
    let mut times = VcpuTimes { domid: domid.get(), vcpu, ..Default::default() };
    control::vcpu_times(&mut times)?;
    Ok(times)
}

async fn pauses() {
    let small = Small::create(&spinner()).expect("a small domain");
    let (domid, data) = (small.domid, small.data());
    small.prepare().expect("a sound domain");
    check("a domain with a context is still paused", !is_counting(&data).await);
    equal("its vCPU is online", info(domid).map(|i| i.online_vcpus), Ok(1));
    equal("it is let go", control::unpause_domain(domid), Ok(()));
    check("it runs", is_counting(&data).await);
    let state = info(domid).map_or(STATE_PAUSED, |i| i.state);
    equal("a domain that runs is not paused", state & STATE_PAUSED, 0);
    refused("what is not paused is not unpaused", control::unpause_domain(domid), Errno::EINVAL);
    let before = times(domid, 0).expect("there");
    check("it runs on", is_counting(&data).await);
    let after = times(domid, 0).expect("there");
    check("its times say so", after.time[0] > before.time[0]);
    check("its dispatches too", after.dispatches > before.dispatches);
    check("its virtual time too", after.actual_vt > before.actual_vt);
    let sum = info(domid).map_or(0, |i| i.cpu_time_ns);
    check("the domain's time is that of its vCPU", sum >= after.time[0]);

    equal("it is paused", control::pause_domain(domid), Ok(()));
    equal("and once more", control::pause_domain(domid), Ok(()));
    check("it stands", !is_counting(&data).await);
    equal("it shows as paused", info(domid).map(|i| i.state), Ok(STATE_PAUSED));
    let stood = times(domid, 0).map(|t| t.time[0]);
    equal("one pause is taken back", control::unpause_domain(domid), Ok(()));
    check("it stands still", !is_counting(&data).await);
    equal("what stands uses no time", times(domid, 0).map(|t| t.time[0]), stood);
    equal("the other pause is taken back", control::unpause_domain(domid), Ok(()));
    check("it runs again", is_counting(&data).await);
    drop(data);
    small.destroy();
}
