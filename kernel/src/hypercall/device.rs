//! `DEVICE`: what owners of PCI devices ask; and `PHYSDEVOP_eoi`. See [`abi::device`].

use super::Outcome;
use crate::{
    Core,
    device::{DeviceError, config, pci::Sbdf},
    state::Caller,
};
use bulkhead_abi::{
    self as abi, DomId, Errno, GuestVa,
    device::{Bar, Config, Describe, Irq},
    physdev::Eoi,
};

/// `Describe::owner` of a device that nobody owns.
const NOBODY: DomId = DomId::INVALID;

/// `device(cmd, arg)`.
///
/// Errors: `ENODEV` for a device that is not the caller's, `EFAULT` for a bad address,
/// `ENOSYS` for an unknown command, and what each command says.
pub fn device(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let at = GuestVa::new(args[1]);
    let done = match args[0] {
        abi::device::DESCRIBE => describe(core, caller, at),
        abi::device::CONFIG_READ => config_read(core, caller, at),
        abi::device::CONFIG_WRITE => config_write(core, caller, at),
        abi::device::BAR => bar(core, caller, at),
        abi::device::IRQ => irq(core, caller, at),
        abi::device::RESET => reset(core, caller, at),
        _ => Err(Errno::ENOSYS),
    };
    done.map(|()| 0).into()
}

fn sbdf(raw: u32) -> Result<Sbdf, Errno> {
    Sbdf::new(raw).ok_or(Errno::ENODEV)
}

/// The caller's `index`th device; `ENOENT` past the last.
fn describe(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: Describe = core.guest(caller).read(at)?;
    let found = core.devices.nth(caller.dom, asked.index as usize).ok_or(Errno::ENOENT)?;
    let answer = Describe {
        index: asked.index,
        sbdf: found.sbdf.get(),
        vendor: found.vendor,
        device: found.device,
        class: found.class,
        owner: found.owner.unwrap_or(NOBODY).get(),
        msix_vectors: found.msix.as_ref().map_or(0, |msix| msix.entries()),
        ..Describe::default()
    };
    Ok(core.guest(caller).write(at, &answer)?)
}

/// Reads a register of configuration space; `EINVAL` for one that is none. Dom0 may read
/// those of all devices.
fn config_read(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: Config = core.guest(caller).read(at)?;
    let sbdf = sbdf(asked.sbdf)?;
    let device = if caller.dom == DomId::DOM0 {
        core.devices.find(sbdf).ok_or(DeviceError::NotOwned { sbdf })?
    } else {
        core.devices.owned(caller.dom, sbdf)?
    };
    let value = config::read(device, asked.offset, width(asked.width))?;
    Ok(core.guest(caller).write(at, &Config { value, ..asked })?)
}

/// Widths that do not fit a byte are none that exist.
fn width(asked: u16) -> u8 {
    u8::try_from(asked).unwrap_or(0)
}

/// Writes a register; `EPERM` for those that are the core's.
fn config_write(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: Config = core.guest(caller).read(at)?;
    let device = core.devices.owned(caller.dom, sbdf(asked.sbdf)?)?;
    Ok(config::write(device, asked.offset, width(asked.width), asked.value)?)
}

/// Address and size of a BAR; `EINVAL` for an index above 5.
fn bar(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: Bar = core.guest(caller).read(at)?;
    let device = core.devices.owned(caller.dom, sbdf(asked.sbdf)?)?;
    let bar = device.bars.get(asked.index as usize).ok_or(Errno::EINVAL)?;
    let flags = u32::from(bar.is_io) | u32::from(bar.is_prefetchable) << 1;
    let answer = Bar { maddr: bar.maddr, bytes: bar.bytes, flags, ..asked };
    Ok(core.guest(caller).write(at, &answer)?)
}

/// Programs an interrupt; `EINVAL` for one the device does not have, `EBUSY` for a line
/// in use, `ENOSPC` when there is no vector left.
fn irq(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: Irq = core.guest(caller).read(at)?;
    let pirq = core.devices.irq(caller.dom, sbdf(asked.sbdf)?, asked.entry)?;
    Ok(core.guest(caller).write(at, &Irq { pirq: pirq.get(), ..asked })?)
}

/// Stops a device and takes its interrupts back; ports bound to them stay, silent.
fn reset(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: Describe = core.guest(caller).read(at)?;
    let sbdf = sbdf(asked.sbdf)?;
    core.devices.owned(caller.dom, sbdf)?;
    core.devices.stop(sbdf);
    Ok(())
}

/// `PHYSDEVOP_eoi`: a level-triggered interrupt is dealt with.
///
/// Errors: `EFAULT`; `EINVAL` for a pirq that is not the caller's.
pub fn physdev_eoi(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let eoi = |core: &mut Core| -> Result<(), Errno> {
        let asked: Eoi = core.guest(caller).read(GuestVa::new(args[1]))?;
        Ok(core.devices.irqs().eoi(caller.dom, asked.irq)?)
    };
    eoi(core).map(|()| 0).into()
}
