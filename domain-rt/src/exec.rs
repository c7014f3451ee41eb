//! The executor: tasks of `async-task` in one queue, events and timers collected
//! between them, the vCPU blocked when nothing can run.
//!
//! One vCPU and no interrupt context: futures need not be `Send`.

use crate::{event, hypercall, time};
use alloc::collections::VecDeque;
use async_task::Runnable;
pub use async_task::Task;
use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
pub use futures_lite::future::{or, yield_now, zip};
use spin::Mutex;

/// Tasks run before events and timers are looked at again.
const BATCH: usize = 64;

static QUEUE: Mutex<VecDeque<Runnable>> = Mutex::new(VecDeque::new());

/// Starts a task. Dropping the handle cancels it; `detach` lets it go.
pub fn spawn<F>(future: F) -> Task<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    // SAFETY: 1. the future is 'static; 2. it may be !Send because there is one vCPU
    // and `Runnable`s are run, dropped and woken only there; 3. the schedule function
    // is Send, Sync and 'static.
    let (runnable, task) =
        unsafe { async_task::spawn_unchecked(future, |r| QUEUE.lock().push_back(r)) };
    runnable.schedule();
    task
}

/// Runs tasks until `future` is done. Tasks that are left stay where they are.
pub fn block_on<F>(future: F) -> F::Output
where
    F: Future + 'static,
    F::Output: 'static,
{
    let mut main = pin!(spawn(future));
    loop {
        run_some();
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(value) = main.as_mut().poll(&mut context) {
            return value;
        }
        idle();
    }
}

/// Waits for both; an alias in the words of the field.
pub async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    zip(a, b).await
}

/// Waits for the first of two; the other is dropped. The first is preferred.
pub async fn select<T, A: Future<Output = T>, B: Future<Output = T>>(a: A, b: B) -> T {
    or(a, b).await
}

fn run_some() {
    for _ in 0..BATCH {
        let Some(runnable) = QUEUE.lock().pop_front() else {
            break;
        };
        runnable.run();
    }
}

fn has_work() -> bool {
    !QUEUE.lock().is_empty()
}

/// Collects what happened; sleeps if that makes nothing runnable.
fn idle() {
    #[cfg(all(feature = "faults", target_os = "none"))]
    crate::faults::about_to_collect();
    event::collect();
    time::wake_expired();
    if has_work() || !time::arm() {
        return;
    }
    // An event that arrives from here on is seen by the core, which then does not
    // sleep: it checks pending bits after it has unmasked.
    hypercall::block();
    event::mask_upcalls();
}
