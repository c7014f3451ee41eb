//! The parts of a service as they are. With the feature `faults` other ones of the same
//! names take their place, which do wrong on order.

use crate::drive::Drive;
use crate::ledger::LedgerPages;
use crate::platform::{Bell, MappedRing};
use alloc::borrow::Cow;
use async_channel::{Receiver, RecvError};
use bulkhead_abi::Maddr;
use domain_rt::Boot;

pub type Ring = MappedRing;
pub type Notifier = Bell;
pub type Device = Drive;

pub(crate) fn ring(ring: MappedRing) -> Ring {
    ring
}

pub(crate) fn notifier(bell: Bell) -> Notifier {
    bell
}

pub(crate) fn device(device: Drive) -> Device {
    device
}

pub(crate) fn listen(_: &LedgerPages, _: &Boot) {}

pub(crate) fn misses_interrupt() -> bool {
    false
}

pub(crate) fn aim(parts: &[(Maddr, usize)]) -> Cow<'_, [(Maddr, usize)]> {
    Cow::Borrowed(parts)
}

pub(crate) async fn at_work() -> bool {
    false
}

pub(crate) fn next_due(_: &Device) -> Option<u64> {
    None
}

pub(crate) async fn sleep(woken: &Receiver<()>, _: Option<u64>) -> Result<(), RecvError> {
    woken.recv().await
}
