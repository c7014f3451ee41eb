//! Stopping a device: whatever it was told to do, after this it touches no memory and
//! raises no interrupt until an owner starts it anew.

use super::{
    config,
    pci::{
        BARS, CAP_AF, CAP_EXPRESS, CAP_PM, CMD_MASTER, CMD_MEMORY, COMMAND, PciDevice, Sbdf,
        capability,
    },
};
use crate::arch::DeviceWindow;

/// Most reads while waiting for a device. A read of configuration space takes about a
/// microsecond on real machines, so this is a tenth of a second, which is what PCI
/// Express allows a function-level reset (6.6.2).
const PATIENCE: u32 = 100_000;

/// Waits until `done`, or gives up: a device that does not answer is switched off from
/// the bus all the same.
fn wait(mut done: impl FnMut() -> bool) {
    for _ in 0..PATIENCE {
        if done() {
            return;
        }
    }
}

/// Stops a device: no bus mastering, no interrupts, its state forgotten as far as
/// it has a reset. Base addresses stay.
pub fn stop(device: &PciDevice) {
    let sbdf = device.sbdf;
    let find = |id, last, offered: fn(Sbdf, u16) -> bool| {
        capability(sbdf, id).filter(|&at| at <= last && offered(sbdf, at))
    };
    if let Some(at) = find(CAP_EXPRESS, 0xf0, |sbdf, at| sbdf.read(at + 4, 4) & 1 << 28 != 0) {
        keeping_bars(sbdf, || {
            // Transactions pending; then "initiate function-level reset".
            wait(|| sbdf.read(at + 0xa, 2) & 1 << 5 == 0);
            sbdf.write(at + 8, 2, sbdf.read(at + 8, 2) | 1 << 15);
        });
    } else if let Some(at) = find(CAP_AF, 0xf8, |sbdf, at| sbdf.read(at + 3, 1) & 2 != 0) {
        keeping_bars(sbdf, || {
            wait(|| sbdf.read(at + 5, 1) & 1 == 0);
            sbdf.write(at + 4, 1, 1);
        });
    } else if let Some((window, at)) = device.virtio_status {
        // Finishes what is under way, for which it needs the bus.
        virtio(sbdf, window, at);
    } else if let Some(at) = find(CAP_PM, 0xf8, |sbdf, at| sbdf.read(at + 4, 2) & 1 << 3 == 0) {
        // Through D3hot. With bit 3 of its control register it keeps its state, so is no reset.
        keeping_bars(sbdf, || {
            let control = sbdf.read(at + 4, 2) & !3;
            sbdf.write(at + 4, 2, control | 3);
            sbdf.write(at + 4, 2, control);
        });
    }
    config::disable(device);
}

fn virtio(sbdf: Sbdf, window: DeviceWindow, at: usize) {
    let command = sbdf.read(COMMAND, 2);
    sbdf.write(COMMAND, 2, command | CMD_MEMORY);
    window.write_u8(at, 0);
    wait(|| window.read_u8(at) == 0);
    sbdf.write(COMMAND, 2, command);
}

/// Switches bus mastering off, resets, waits for the function to be back, and restores
/// its base addresses, which a reset clears.
fn keeping_bars(sbdf: Sbdf, reset: impl FnOnce()) {
    let command = sbdf.read(COMMAND, 2) & !CMD_MASTER;
    sbdf.write(COMMAND, 2, command);
    let bars: [u32; 6] = core::array::from_fn(|n| sbdf.read(BARS + 4 * n as u16, 4));
    reset();
    wait(|| sbdf.read(0, 2) != 0xffff);
    for (at, bar) in (BARS..).step_by(4).zip(bars) {
        sbdf.write(at, 4, bar);
    }
    sbdf.write(COMMAND, 2, command);
}
