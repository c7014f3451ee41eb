//! System time, and waiting for it.

use crate::hypercall;
use alloc::collections::BTreeMap;
use bulkhead_abi::Ns;
use core::future::Future;
use core::pin::Pin;
#[cfg(feature = "faults")]
use core::sync::atomic::AtomicBool;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use spin::Mutex;

/// Offset of the time information of vCPU 0 in the shared page, and of the wall clock.
const TIME: usize = 32;
const WALL_CLOCK: usize = 3072;
/// No deadline is set.
const UNARMED: u64 = u64::MAX;

static SLEEPERS: Mutex<BTreeMap<(u64, u64), Waker>> = Mutex::new(BTreeMap::new());
static NEXT_ID: AtomicU64 = AtomicU64::new(0);
static ARMED: AtomicU64 = AtomicU64::new(UNARMED);
static LATEST: AtomicU64 = AtomicU64::new(0);
static STARTED: AtomicU64 = AtomicU64::new(0);
/// Nobody's time comes.
#[cfg(feature = "faults")]
static STANDS_STILL: AtomicBool = AtomicBool::new(false);

/// Stops the periodic timer and listens to the one-shot timer.
#[cfg(target_os = "none")]
pub(crate) fn init(first_tick: u64) {
    STARTED.store(at_tick(first_tick).get(), Relaxed);
    use bulkhead_abi::{VcpuId, event, vcpu};
    // A core without the periodic timer refuses: nothing to stop.
    let _ = hypercall::vcpu_op(vcpu::VCPUOP_STOP_PERIODIC_TIMER, VcpuId::new(0), 0);
    let timer = crate::event::bind_virq(event::VIRQ_TIMER)
        .expect("the timer is unbound at the start of a domain");
    crate::exec::spawn(async move {
        loop {
            // Waiting unmasks the port; the executor itself looks at the sleepers.
            timer.wait().await;
        }
    })
    .detach();
}

/// System time: since the core booted, never going back.
pub fn now() -> Ns {
    let time = sample().0;
    Ns::new(LATEST.fetch_max(time, Relaxed).max(time))
}

/// System time as of now, without looking whether it goes back, and calling nothing: for a
/// handler that may be in the middle of anything. 0 if it is just being changed.
#[cfg(all(feature = "faults", target_os = "none"))]
#[inline(always)]
pub(crate) fn raw_now() -> u64 {
    unsafe extern "C" {
        static __shared_info: u8;
    }
    let page = (&raw const __shared_info) as u64 + TIME as u64;
    // SAFETY: the core's page is mapped there before traps can be armed, and only read.
    let (version, tsc_timestamp, system_time, mul_shift) = unsafe {
        (
            (page as *const u32).read_volatile(),
            ((page + 8) as *const u64).read_volatile(),
            ((page + 16) as *const u64).read_volatile(),
            ((page + 24) as *const u64).read_volatile(),
        )
    };
    // SAFETY: reading the time stamp counter has no effect on memory.
    let tsc = unsafe { core::arch::x86_64::_rdtsc() };
    let rate = Rate { mul: mul_shift as u32, shift: (mul_shift >> 32) as i8 };
    match version & 1 {
        0 => system_time.wrapping_add(rate.scale(tsc.saturating_sub(tsc_timestamp))),
        _ => 0,
    }
}

/// System time of the first instruction of this domain.
pub fn started() -> Ns {
    Ns::new(STARTED.load(Relaxed))
}

/// System time of a tick of the past.
#[cfg(target_os = "none")]
fn at_tick(tick: u64) -> Ns {
    let (time, tsc, rate) = sample();
    Ns::new(time.saturating_sub(rate.scale(tsc.saturating_sub(tick))))
}

/// How ticks become time.
#[derive(Clone, Copy)]
struct Rate {
    mul: u32,
    shift: i8,
}

/// System time, the tick that it was read at, and the rate. All zero before there is a
/// page to read it from.
fn sample() -> (u64, u64, Rate) {
    let Some(page) = crate::event::shared_info() else {
        return (0, 0, Rate { mul: 0, shift: 0 });
    };
    loop {
        let version = page.load_u32(TIME);
        let tsc_timestamp = page.load_u64(TIME + 8);
        let system_time = page.load_u64(TIME + 16);
        let mul = page.load_u32(TIME + 24);
        let rate = Rate { mul, shift: page.load_u8(TIME + 28) as i8 };
        // SAFETY: reading the time stamp counter has no effect on memory.
        let tsc = unsafe { core::arch::x86_64::_rdtsc() };
        if version & 1 == 0 && page.load_u32(TIME) == version {
            let delta = tsc.saturating_sub(tsc_timestamp);
            return (system_time.wrapping_add(rate.scale(delta)), tsc, rate);
        }
        core::hint::spin_loop();
    }
}

/// Wall clock at system time 0, as seconds and nanoseconds since 1970.
pub fn boot_time() -> (u64, u32) {
    let Some(page) = crate::event::shared_info() else {
        return (0, 0);
    };
    loop {
        let version = page.load_u32(WALL_CLOCK);
        let low = page.load_u32(WALL_CLOCK + 4);
        let ns = page.load_u32(WALL_CLOCK + 8);
        let high = page.load_u32(WALL_CLOCK + 12);
        if version & 1 == 0 && page.load_u32(WALL_CLOCK) == version {
            return (u64::from(high) << 32 | u64::from(low), ns);
        }
        core::hint::spin_loop();
    }
}

impl Rate {
    /// TSC ticks to nanoseconds, as `vcpu_time_info` defines it (xen.h).
    #[inline(always)] // As for `raw_now`.
    fn scale(self, delta: u64) -> u64 {
        let shift = self.shift.clamp(-63, 63);
        let delta = if shift < 0 { delta >> -shift } else { delta << shift };
        ((u128::from(delta) * u128::from(self.mul)) >> 32) as u64
    }
}

/// `at` plus a span.
pub fn after(at: Ns, span: Duration) -> Ns {
    Ns::new(at.get().saturating_add(span.as_nanos() as u64))
}

/// Waits until system time `deadline`.
pub fn sleep_until(deadline: Ns) -> Sleep {
    let id = NEXT_ID.fetch_add(1, Relaxed);
    Sleep { key: (deadline.get(), id) }
}

/// Waits for `span`.
pub fn sleep(span: Duration) -> Sleep {
    sleep_until(after(now(), span))
}

/// The future of [`sleep`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    key: (u64, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if now().get() >= self.key.0 {
            return Poll::Ready(());
        }
        SLEEPERS.lock().insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        SLEEPERS.lock().remove(&self.key);
    }
}

/// Keeps all who wait for a time waiting, until told otherwise.
#[cfg(feature = "faults")]
pub(crate) fn stand_still(does: bool) {
    STANDS_STILL.store(does, Relaxed);
    if does {
        use bulkhead_abi::{VcpuId, vcpu};
        // One that fires all the same wakes nobody.
        let _ = hypercall::vcpu_op(vcpu::VCPUOP_STOP_SINGLESHOT_TIMER, VcpuId::new(0), 0);
        ARMED.store(UNARMED, Relaxed);
    }
}

/// Whether [`stand_still`] was asked for.
fn stands_still() -> bool {
    #[cfg(feature = "faults")]
    return STANDS_STILL.load(Relaxed);
    #[cfg(not(feature = "faults"))]
    false
}

/// Wakes everybody whose time has come.
pub(crate) fn wake_expired() {
    if stands_still() {
        return;
    }
    let now = now().get();
    loop {
        let mut sleepers = SLEEPERS.lock();
        let Some(first) = sleepers.first_entry().filter(|e| e.key().0 <= now) else {
            return;
        };
        let waker = first.remove();
        drop(sleepers);
        waker.wake();
    }
}

/// Sets the timer for the first sleeper; `false` when its time has come already.
pub(crate) fn arm() -> bool {
    if stands_still() {
        return true;
    }
    let first = SLEEPERS.lock().first_key_value().map(|(key, _)| key.0);
    let Some(first) = first else { return true };
    let now = now().get();
    if first <= now {
        return false;
    }
    let armed = ARMED.load(Relaxed);
    // A deadline that has passed has fired; one that is still ahead stands.
    if armed != first || armed <= now {
        ARMED.store(first, Relaxed);
        return hypercall::set_timer(Ns::new(first)).is_ok();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::Rate;
    use proptest::prelude::*;

    #[test]
    fn one_tick_of_a_gigahertz_clock_is_a_nanosecond() {
        assert_eq!(Rate { mul: 1 << 31, shift: 1 }.scale(1000), 1000);
        assert_eq!(Rate { mul: u32::MAX, shift: 0 }.scale(1000), 999);
    }

    proptest! {
        #[test]
        fn scaling_is_monotone(a in 0u64..1 << 50, b in 0u64..1 << 50, mul: u32, shift in -10i8..10) {
            let (low, high) = (a.min(b), a.max(b));
            let rate = Rate { mul, shift };
            prop_assert!(rate.scale(low) <= rate.scale(high));
        }
    }
}
