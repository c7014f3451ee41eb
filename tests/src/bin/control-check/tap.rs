//! Results as TAP.

use core::fmt::Debug;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use domain_rt::{abi::Errno, println};

static DONE: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Reports a case.
pub fn check(what: &str, ok: bool) {
    let n = DONE.fetch_add(1, Relaxed) + 1;
    if !ok {
        FAILED.fetch_add(1, Relaxed);
    }
    println!("{}ok {n} - {what}", if ok { "" } else { "not " });
}

/// Reports whether a case found what it should.
pub fn equal<T: PartialEq + Debug>(what: &str, found: T, expected: T) {
    let ok = found == expected;
    check(what, ok);
    if !ok {
        println!("# found {found:?}, expected {expected:?}");
    }
}

/// Reports whether something was refused, for the right reason.
pub fn refused<T: Debug, E: Into<Errno>>(what: &str, result: Result<T, E>, why: Errno) {
    equal(what, result.map(|_| ()).map_err(Into::into), Err(why));
}

/// Ends the report; whether all was well.
pub fn plan() -> bool {
    println!("1..{}", DONE.load(Relaxed));
    FAILED.load(Relaxed) == 0
}
