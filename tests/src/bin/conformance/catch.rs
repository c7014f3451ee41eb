//! Runs instructions that may trap, and tells what trap they took.

use crate::hv::shared_info;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use domain_rt::trap::{self, EVENT, Frame, SYSCALL};
use spin::Mutex;

/// Where the instruction under test starts, and where to go on after a trap; 0 while
/// no trap is expected. Written by [`attempt`].
pub static START: AtomicU64 = AtomicU64::new(0);
pub static RESUME: AtomicU64 = AtomicU64::new(0);
/// Event callbacks taken.
pub static EVENTS: AtomicU32 = AtomicU32::new(0);
/// Whether the last entry found events masked once inside.
pub static MASKED_INSIDE: AtomicBool = AtomicBool::new(false);

static SEEN: Mutex<Option<Trap>> = Mutex::new(None);
static EVENT_FRAME: Mutex<Option<Frame>> = Mutex::new(None);

const RFLAGS_TF: u64 = 1 << 8;

/// A trap that was taken.
#[derive(Clone, Copy)]
pub struct Trap {
    pub frame: Frame,
    /// Linear address of the frame itself.
    pub frame_va: u64,
    pub cr2: u64,
    /// Distance of the reported RIP from the instruction under test.
    pub offset: i64,
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frame { vector, error_code, .. } = self.frame;
        write!(f, "trap {vector} error {error_code:#x}")?;
        match self.offset {
            near @ -16..=64 => write!(f, " at +{near}"),
            _ => write!(f, " elsewhere"),
        }
    }
}

/// What happened, in words.
pub struct Outcome(pub Option<Trap>);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(trap) => trap.fmt(f),
            None => f.write_str("no trap"),
        }
    }
}

/// Runs one instruction (or several: offsets count from the first) and gives an
/// [`Outcome`]. Operands as for `asm!`.
macro_rules! attempt {
    ($insn:expr $(, $($operand:tt)*)?) => {{
        // SAFETY: a trap resumes behind the instructions under test with the registers
        // of that moment; what they may change is declared by the case.
        unsafe {
            core::arch::asm!(
                "lea {scratch}, [rip + 2f]",
                "mov [rip + {start}], {scratch}",
                "lea {scratch}, [rip + 3f]",
                "mov [rip + {resume}], {scratch}",
                "2:",
                $insn,
                "3:",
                scratch = out(reg) _,
                start = sym $crate::catch::START,
                resume = sym $crate::catch::RESUME,
                $($($operand)*)?
            );
        }
        $crate::catch::outcome()
    }};
}
pub(crate) use attempt;

/// Ends an attempt.
pub fn outcome() -> Outcome {
    RESUME.store(0, Relaxed);
    Outcome(SEEN.lock().take())
}

/// The frame of the last event callback.
pub fn event_frame() -> Option<Frame> {
    EVENT_FRAME.lock().take()
}

/// Takes over traps from the runtime.
pub fn install() {
    // SAFETY: the hook's locks are held only for moments in which nothing traps, and
    // it resumes only at addresses that an attempt or the user-mode stub set up.
    unsafe { trap::set_hook(Some(hook)) };
}

fn hook(frame: &mut Frame) -> bool {
    MASKED_INSIDE.store(shared_info().read_u8(1) != 0, Relaxed);
    if frame.vector == EVENT {
        EVENTS.fetch_add(1, Relaxed);
        shared_info().swap_u8(0, 0);
        *EVENT_FRAME.lock() = Some(*frame);
        if !frame.is_user() {
            return true;
        }
    }
    if frame.is_user() || frame.vector == SYSCALL {
        return crate::user::left(frame);
    }
    let resume = RESUME.swap(0, Relaxed);
    if resume == 0 {
        return false;
    }
    *SEEN.lock() = Some(Trap {
        frame: *frame,
        frame_va: (&raw const *frame) as u64,
        cr2: shared_info().read_u64(16),
        offset: frame.rip.wrapping_sub(START.load(Relaxed)) as i64,
    });
    frame.rip = resume;
    frame.rflags &= !RFLAGS_TF;
    true
}
