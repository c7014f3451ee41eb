//! A walk on the machine: the trap flag, and a trap behind every instruction. What runs in
//! between is not the domain's as usual: no timer fires, and the heart beats from here,
//! since a walk takes a thousand times as long as the code does by itself.

use super::machine::beat;
use super::walk::{Errand, Then, Way};
use crate::trap::Frame;
use crate::{hypercall, time};
use bulkhead_abi::sched::SHUTDOWN_CRASH;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use spin::Once;

/// Vector of single steps.
const DEBUG: u64 = 1;
/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;
/// Steps between two beats of the heart.
const STEPS_PER_BEAT: u64 = 256;

/// A walk under way.
#[derive(Clone, Copy)]
struct Walk {
    errand: Errand,
    way: Way,
    is_astray: bool,
    last_words: fn(Way),
}

struct Current(Cell<Option<Walk>>);

// SAFETY: there is one vCPU; the handler, which alone can come in between, looks at it only
// while the trap flag is set, and that is set after the last and cleared before the first
// access by anybody else.
unsafe impl Sync for Current {}

static CURRENT: Current = Current(Cell::new(None));
/// A walk has begun and is not ended.
static IS_ON: AtomicBool = AtomicBool::new(false);
static LOOK: Once<fn()> = Once::new();

/// Has `look` called each time before the executor collects events.
pub fn before_collecting(look: fn()) {
    LOOK.call_once(|| look);
}

pub(crate) fn about_to_collect() {
    if let Some(look) = LOOK.get() {
        look();
    }
}

/// Walks from here on. If the walk comes to its last step, `last_words` are said and this
/// domain stops there for good: nothing else is done by it.
pub fn begin_walk(errand: Errand, last_words: fn(Way)) {
    time::stand_still(true);
    CURRENT.0.set(Some(Walk { errand, way: Way::default(), is_astray: false, last_words }));
    IS_ON.store(true, Relaxed);
    // SAFETY: the flag makes this vCPU trap behind each instruction, where `on_step` returns
    // to it; memory and registers stay as they are.
    unsafe { core::arch::asm!("pushfq", "or dword ptr [rsp], 0x100", "popfq") };
}

/// Ends a walk that did not come to its last step: its way, and whether it is astray. `None`
/// if there is none.
pub fn end_walk() -> Option<(Way, bool)> {
    if !IS_ON.load(Relaxed) {
        return None;
    }
    // SAFETY: as for setting it.
    unsafe { core::arch::asm!("pushfq", "and dword ptr [rsp], 0xfffffeff", "popfq") };
    IS_ON.store(false, Relaxed);
    time::stand_still(false);
    CURRENT.0.take().map(|walk| (walk.way, walk.is_astray))
}

/// Deals with a trap, if it is a step.
pub(super) fn on_step(frame: &mut Frame) -> bool {
    if frame.vector != DEBUG {
        return false;
    }
    let Some(mut walk) = CURRENT.0.get() else {
        return false;
    };
    if frame.rflags & TRAP_FLAG == 0 {
        // Behind the instruction that took the flag away.
        return true;
    }
    walk.way = walk.way.to(frame.rip);
    if walk.way.steps.is_multiple_of(STEPS_PER_BEAT) {
        beat();
    }
    match walk.errand.after(walk.way) {
        Then::Onward => {}
        Then::End => {
            (walk.last_words)(walk.way);
            hypercall::shutdown(SHUTDOWN_CRASH)
        }
        Then::Astray => {
            walk.is_astray = true;
            frame.rflags &= !TRAP_FLAG;
        }
    }
    CURRENT.0.set(Some(walk));
    true
}
