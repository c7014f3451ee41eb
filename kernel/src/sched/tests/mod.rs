//! The scheduler against simulated time: vCPUs that compute, sleep and warp. [`guests`] has it
//! under domains.

mod guests;

use super::{
    bvt::{Account, Params, VirtTime, Weight},
    line::Line,
    slot::{Slot, SlotId, Slots},
    *,
};
use crate::memory::frame::{FrameTable, fake as frames};
use bulkhead_abi::vcpu::*;
use proptest::prelude::*;

const CPU: CpuId = CpuId(0);
const MS: u64 = 1_000_000;

fn who(n: u16) -> VcpuRef {
    VcpuRef { dom: DomId::new(n + 1), vcpu: VcpuId::new(0), incarnation: Incarnation(1) }
}

/// A scheduler alone, its clock, and its vCPUs in the order they came.
struct Sim {
    sched: Scheduler,
    frames: FrameTable,
    now: Ns,
    ids: Vec<SlotId>,
}

impl Sim {
    fn new(params: &[Params]) -> Self {
        let mut sim = Self {
            sched: Scheduler::default(),
            frames: frames::table(128),
            now: Ns::new(0),
            ids: Vec::new(),
        };
        for (n, params) in params.iter().enumerate() {
            let id = sim.sched.add(&mut sim.frames, who(n as u16), sim.now).unwrap();
            sim.sched.set_params(id, *params, sim.now);
            sim.sched.set_eligible(id, true, sim.now);
            sim.ids.push(id);
        }
        sim
    }

    /// Runs until `end`, choosing anew whenever the scheduler asked to.
    fn run_until(&mut self, end: u64) {
        while self.now.get() < end {
            let decision = self.sched.pick(CPU, self.now);
            let next = decision.until.map_or(end, Ns::get).min(end);
            assert!(next > self.now.get(), "a slice has a length");
            self.now = Ns::new(next);
        }
    }

    fn pick(&mut self) -> Option<usize> {
        let next = self.sched.pick(CPU, self.now).next?;
        Some(usize::from(next.dom.get()) - 1)
    }

    fn ran(&mut self, n: usize) -> u64 {
        self.sched.times(self.ids[n], self.now).unwrap().time[0]
    }

    fn block(&mut self, n: usize) {
        self.sched.block(self.ids[n], None, self.now);
    }

    fn wake(&mut self, n: usize) {
        self.sched.unblock(self.ids[n], self.now);
    }

    fn pass(&mut self, ns: u64) {
        self.now = Ns::new(self.now.get() + ns);
    }
}

fn weight(raw: u16) -> Params {
    Params { weight: Weight::new(raw).unwrap(), ..Params::DEFAULT }
}

fn warping(warp: u64, limit: u64, unwarp: u64) -> Params {
    Params {
        warp: Ns::new(warp),
        warp_limit: Ns::new(limit),
        unwarp: Ns::new(unwarp),
        ..Params::DEFAULT
    }
}

#[test]
fn weights_1_2_4_share_ten_seconds_within_two_per_cent() {
    let mut sim = Sim::new(&[weight(128), weight(256), weight(512)]);
    sim.run_until(10_000 * MS);
    for (n, parts) in [(0, 1), (1, 2), (2, 4)] {
        let ideal = 10_000 * MS * parts / 7;
        let ran = sim.ran(n);
        assert!(ran.abs_diff(ideal) * 50 < ideal, "vCPU {n} ran {ran} of {ideal}");
    }
}

#[test]
fn a_vcpu_alone_runs_without_being_asked_again() {
    let mut sim = Sim::new(&[Params::DEFAULT]);
    let decision = sim.sched.pick(CPU, sim.now);
    assert_eq!(decision, Decision { next: Some(who(0)), until: None });
}

#[test]
fn a_cpu_without_anyone_to_run_idles() {
    let mut sim = Sim::new(&[Params::DEFAULT]);
    sim.block(0);
    assert_eq!(sim.sched.pick(CPU, sim.now), Decision { next: None, until: None });
    sim.pass(MS);
    sim.wake(0);
    assert_eq!(sim.pick(), Some(0));
}

#[test]
fn a_woken_vcpu_with_warp_preempts_at_once() {
    let mut sim = Sim::new(&[Params::DEFAULT, warping(20 * MS, 0, 0)]);
    sim.block(1);
    sim.run_until(MS);
    assert_eq!(sim.pick(), Some(0));
    sim.wake(1);
    assert_eq!(sim.pick(), Some(1));
}

#[test]
fn a_woken_vcpu_without_warp_waits_no_longer_than_the_allowance() {
    let mut sim = Sim::new(&[Params::DEFAULT, Params::DEFAULT]);
    sim.block(1);
    sim.run_until(50 * MS);
    sim.wake(1);
    assert_eq!(sim.pick(), Some(0));
    let until = sim.sched.pick(CPU, sim.now).until.unwrap();
    assert_eq!(until.get() - sim.now.get(), Params::DEFAULT.allowance.get());
    sim.now = until;
    assert_eq!(sim.pick(), Some(1));
}

#[test]
fn sleeping_earns_no_credit() {
    let mut sim = Sim::new(&[Params::DEFAULT, Params::DEFAULT]);
    sim.block(1);
    sim.run_until(1000 * MS);
    sim.wake(1);
    let before = sim.ran(1);
    sim.run_until(1100 * MS);
    let ran = sim.ran(1) - before;
    assert!(ran.abs_diff(50 * MS) <= 2 * Params::DEFAULT.allowance.get(), "ran {ran} of 100 ms");
}

#[test]
fn warping_does_not_buy_more_than_the_share() {
    let mut sim = Sim::new(&[Params::DEFAULT, warping(20 * MS, 0, 0)]);
    // It sleeps a blink every millisecond of its own, and warps each time it wakes.
    while sim.now.get() < 2000 * MS {
        if sim.pick() == Some(1) {
            sim.pass(MS);
            sim.block(1);
            let _ = sim.sched.pick(CPU, sim.now);
            sim.pass(1);
            sim.wake(1);
        } else {
            sim.pass(MS);
        }
    }
    let ran = sim.ran(1);
    assert!(ran.abs_diff(1000 * MS) < 50 * MS, "ran {ran} of 2 s");
}

#[test]
fn a_warp_ends_at_its_limit_and_comes_back_after_the_unwarp_time() {
    let params = warping(1000 * MS, 3 * MS, 40 * MS);
    let mut sim = Sim::new(&[Params::DEFAULT, params]);
    // Its first warp, as it came in, is over at once.
    sim.block(1);
    sim.run_until(50 * MS);
    sim.wake(1);
    let decision = sim.sched.pick(CPU, sim.now);
    assert_eq!(decision, Decision { next: Some(who(1)), until: Some(Ns::new(53 * MS)) });
    sim.run_until(55 * MS);
    assert_eq!(sim.pick(), Some(0));
    // Blocked and woken too soon: no warp, so it waits its turn.
    sim.block(1);
    sim.wake(1);
    assert_eq!(sim.pick(), Some(0));
    sim.block(1);
    sim.run_until(100 * MS);
    sim.wake(1);
    assert_eq!(sim.pick(), Some(1));
}

#[test]
fn yielding_lets_another_go_first_once() {
    let mut sim = Sim::new(&[Params::DEFAULT, Params::DEFAULT]);
    let first = sim.pick().unwrap();
    sim.pass(1000);
    sim.sched.yield_now(sim.ids[first]);
    assert_eq!(sim.pick(), Some(1 - first));
    assert_eq!(sim.pick(), Some(1 - first));
}

#[test]
fn yielding_alone_changes_nothing() {
    let mut sim = Sim::new(&[Params::DEFAULT]);
    assert_eq!(sim.pick(), Some(0));
    sim.sched.yield_now(sim.ids[0]);
    assert_eq!(sim.pick(), Some(0));
}

#[test]
fn a_removed_vcpu_leaves_neither_queue_nor_timer() {
    let mut sim = Sim::new(&[Params::DEFAULT, Params::DEFAULT]);
    sim.sched.set_singleshot(sim.ids[0], Some(Ns::new(5)));
    assert_eq!(sim.sched.next_deadline(CPU), Some(Ns::new(5)));
    sim.sched.remove(sim.ids[0], sim.now);
    assert_eq!(sim.pick(), Some(1));
    assert_eq!(sim.sched.next_deadline(CPU), None);
    let again = sim.sched.add(&mut sim.frames, who(7), sim.now).unwrap();
    assert_eq!(again, sim.ids[0], "the slot is free again");
}

#[test]
fn as_many_vcpus_as_there_are_slots_and_no_more() {
    let mut sim = Sim::new(&[]);
    for n in 0..slot::MAX_SLOTS as u16 {
        let id = sim.sched.add(&mut sim.frames, who(n), sim.now).unwrap();
        sim.sched.set_eligible(id, true, sim.now);
    }
    let refused = sim.sched.add(&mut sim.frames, who(9999), sim.now);
    assert_eq!(refused, Err(Errno::ENOSPC));
    assert!(sim.pick().is_some());
}

#[test]
fn virtual_time_goes_round_without_anyone_noticing() {
    let near_end = VirtTime::new(u64::MAX - 1000);
    let mut a = Account::new(near_end);
    let params = Params::DEFAULT;
    let b = Account::new(near_end);
    a.ran(&params, Ns::new(5 * MS), Ns::new(0));
    assert!(b.effective_vt(&params).before(a.effective_vt(&params)));
    assert!(a.yields_to(&params, b.effective_vt(&params)));
    assert!(!b.yields_to(&params, a.effective_vt(&params)));
    let mut sleeper = Account::new(VirtTime::new(near_end.get().wrapping_sub(1 << 60)));
    sleeper.woke(&params, a.actual_vt(), Ns::new(0));
    assert_eq!(sleeper.actual_vt(), a.actual_vt());
}

#[test]
fn parameters_from_outside_are_checked() {
    let asked = |weight, warp_ns, allowance_ns| {
        let asked = SchedParams { weight, warp_ns, allowance_ns, ..Default::default() };
        Params::checked(&asked)
    };
    assert_eq!(asked(1, 0, 0).unwrap().allowance, Params::DEFAULT.allowance);
    assert_eq!(asked(0, 0, 0), Err(Errno::EINVAL));
    assert_eq!(asked(65_536, 0, 0), Err(Errno::EINVAL));
    assert_eq!(asked(1, bvt::MAX_SPAN.get() + 1, 0), Err(Errno::EINVAL));
    assert_eq!(asked(1, 0, 1).unwrap().allowance, bvt::MIN_ALLOWANCE);
}

/// What may happen to a vCPU.
#[derive(Clone, Debug)]
enum Step {
    Block(usize),
    Wake(usize),
    Pause(usize, bool),
    Yield(usize),
    Weigh(usize, u16, u64),
    Pick,
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = 0..5usize;
    let step = prop_oneof![
        n.clone().prop_map(Step::Block),
        n.clone().prop_map(Step::Wake),
        (n.clone(), any::<bool>()).prop_map(|(n, paused)| Step::Pause(n, paused)),
        n.clone().prop_map(Step::Yield),
        (n, 1..2000u16, 0..30 * MS).prop_map(|(n, weight, warp)| Step::Weigh(n, weight, warp)),
        Just(Step::Pick),
        Just(Step::Pick),
        (1..20 * MS).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The oracle keeps only who is blocked or paused, and counts time by itself.
    #[test]
    fn whoever_runs_may_run_and_the_cpu_never_idles_in_vain(steps in steps()) {
        let mut sim = Sim::new(&[Params::DEFAULT; 5]);
        let (mut blocked, mut paused, mut ran) = ([false; 5], [false; 5], [0u64; 5]);
        let mut running: Option<usize> = None;
        for step in steps {
            match step {
                Step::Block(n) => { blocked[n] = true; sim.block(n) }
                Step::Wake(n) => { blocked[n] = false; sim.wake(n) }
                Step::Pause(n, stop) => {
                    paused[n] = stop;
                    sim.sched.set_eligible(sim.ids[n], !stop, sim.now);
                }
                Step::Yield(n) => { sim.sched.yield_now(sim.ids[n]); }
                Step::Weigh(n, raw, warp) => {
                    let params = Params { warp: Ns::new(warp), ..weight(raw) };
                    sim.sched.set_params(sim.ids[n], params, sim.now);
                }
                Step::Pick => {
                    running = sim.pick();
                    let may_run = |n: usize| !blocked[n] && !paused[n];
                    match running {
                        Some(n) => prop_assert!(may_run(n), "vCPU {n} can not run"),
                        None => prop_assert!(!(0..5).any(may_run), "someone could run"),
                    }
                }
                Step::Pass(ns) => {
                    if let Some(n) = running { ran[n] += ns; }
                    sim.pass(ns);
                }
            }
            // A vCPU that stopped does not run on until the next choice.
            running = running.filter(|&n| !blocked[n] && !paused[n]);
        }
        for (n, expected) in ran.into_iter().enumerate() {
            let times = sim.sched.times(sim.ids[n], sim.now).unwrap();
            prop_assert_eq!(times.time[0], expected, "time of vCPU {}", n);
            prop_assert_eq!(times.time.iter().sum::<u64>(), sim.now.get());
            let state = if blocked[n] { RUNSTATE_BLOCKED } else if paused[n] { RUNSTATE_OFFLINE }
                else if running == Some(n) { RUNSTATE_RUNNING } else { RUNSTATE_RUNNABLE };
            prop_assert_eq!(times.state, state);
        }
    }

    /// Independent of BVT's own reckoning: exact shares, in integers.
    #[test]
    fn busy_vcpus_get_their_share_to_within_a_few_allowances(
        weights in proptest::collection::vec(16u16..2048, 2..6),
    ) {
        let params: Vec<Params> = weights.iter().map(|&raw| weight(raw)).collect();
        let mut sim = Sim::new(&params);
        let span = 20_000 * MS;
        sim.run_until(span);
        let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
        for (n, &w) in weights.iter().enumerate() {
            let ideal = span * u64::from(w) / total;
            // One switch of each of the others, each as long as its virtual allowance lets it.
            let slack: u64 = weights.iter()
                .map(|&other| 2 * Params::DEFAULT.allowance.get() * u64::from(w.max(other)) / u64::from(w.min(other)))
                .sum();
            prop_assert!(sim.ran(n).abs_diff(ideal) <= slack, "{n}: {} of {ideal}, slack {slack}", sim.ran(n));
        }
    }

    /// Oracle: a list, searched.
    #[test]
    fn a_line_gives_what_a_search_of_a_list_gives(
        ops in proptest::collection::vec((0..40usize, proptest::option::of(0..1000u64)), 1..300),
    ) {
        let mut table = frames::table(64);
        let mut slots = Slots::default();
        let slot = |n| Slot::new(who(n), CPU, VirtTime::new(0), Ns::new(0));
        let ids: Vec<SlotId> =
            (0..40).map(|n| slots.take(&mut table, slot(n)).unwrap()).collect();
        let mut line = Line::new(Slot::due_before);
        let mut list = [None; 40];
        for (n, key) in ops {
            list[n] = key;
            slots.get_mut(ids[n]).unwrap().singleshot = key.map(Ns::new);
            match key {
                Some(_) => line.put(&slots, ids[n]),
                None => line.remove(ids[n]),
            }
            let mut keys: Vec<u64> = list.iter().flatten().copied().collect();
            keys.sort_unstable();
            let key_of = |id: SlotId| slots.get(id).unwrap().deadline().unwrap().get();
            let told: Vec<u64> = line.members().iter().map(|&id| key_of(id)).collect();
            prop_assert_eq!(told, keys);
        }
    }
}
