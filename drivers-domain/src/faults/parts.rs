//! The parts of a service that does wrong on order. [`crate::honest`] has the same names.

pub(crate) use super::{aim, at_work, listen, misses_interrupt};

use super::Ledger;
use super::step::{self, AwaitedDevice, Rest, WatchedRing};
use crate::drive::Drive;
use crate::platform::{Bell, MappedRing};
use async_channel::{Receiver, RecvError};
use blkback::faults::{FaultyDevice, FaultyNotifier, FaultyRing};
use bulkhead_abi::Ns;
use domain_rt::{exec, time};

pub type Ring = FaultyRing<WatchedRing, Ledger>;
pub type Notifier = FaultyNotifier<Bell, Ledger>;
pub type Device = FaultyDevice<AwaitedDevice<Drive>, Ledger>;

pub(crate) fn ring(ring: MappedRing) -> Ring {
    FaultyRing::new(WatchedRing::new(ring), Ledger)
}

pub(crate) fn notifier(bell: Bell) -> Notifier {
    step::watch_port(bell.0.port());
    FaultyNotifier::new(bell, Ledger)
}

pub(crate) fn device(device: Drive) -> Device {
    FaultyDevice::new(AwaitedDevice(device), Ledger)
}

/// When to look at the device even if nobody calls.
pub(crate) fn next_due(device: &Device) -> Option<u64> {
    device.next_due()
}

/// Waits until somebody wakes the service, or it is time to look by itself.
pub(crate) async fn sleep(woken: &Receiver<()>, due: Option<u64>) -> Result<(), RecvError> {
    let _rest = Rest::begin();
    let called = async { woken.recv().await };
    let in_time = async {
        match due {
            Some(due) => time::sleep_until(Ns::new(due)).await,
            None => core::future::pending().await,
        }
        Ok(())
    };
    exec::select(called, in_time).await
}
