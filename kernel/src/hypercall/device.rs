//! `DEVICE`: what owners of PCI devices ask; and `PHYSDEVOP_eoi`. See [`bulkhead_abi::device`].

use super::{Outcome, answer, carry_out};
use crate::{
    Core,
    device::{DeviceError, config, pci::Sbdf},
    state::Caller,
};
use bulkhead_abi::{DomId, Errno, GuestVa, device as op, physdev::Eoi};

/// `Describe::owner` of a device that nobody owns.
const NOBODY: DomId = DomId::INVALID;

/// `device(cmd, arg)`.
///
/// Errors: `ENODEV` for a device that is not the caller's, `EFAULT` for a bad address,
/// `ENOSYS` for an unknown command, and what each command says.
pub fn device(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let at = GuestVa::new(args[1]);
    let dom = caller.dom;
    match args[0] {
        op::DESCRIBE => answer(core, caller, at, |core, asked| describe(core, dom, asked)),
        op::CONFIG_READ => answer(core, caller, at, |core, asked| config_read(core, dom, asked)),
        op::CONFIG_WRITE => carry_out(core, caller, at, |core, asked: op::Config| {
            let device = core.devices.owned(dom, sbdf(asked.sbdf)?)?;
            Ok(config::write(device, asked.offset, width(asked.width), asked.value)?)
        }),
        op::BAR => answer(core, caller, at, |core, bar: &mut op::Bar| {
            let device = core.devices.owned(dom, sbdf(bar.sbdf)?)?;
            *bar = *device.bars.get(bar.index as usize).ok_or(Errno::EINVAL)?;
            Ok(())
        }),
        op::IRQ => answer(core, caller, at, |core, irq: &mut op::Irq| {
            irq.pirq = core.devices.irq(dom, sbdf(irq.sbdf)?, irq.entry)?;
            Ok(())
        }),
        op::RESET => carry_out(core, caller, at, |core, asked: op::Describe| {
            Ok(core.devices.stop(dom, sbdf(asked.sbdf)?)?)
        }),
        _ => Err(Errno::ENOSYS),
    }
    .into()
}

fn sbdf(raw: u32) -> Result<Sbdf, Errno> {
    Sbdf::new(raw).ok_or(Errno::ENODEV)
}

/// Widths that do not fit a byte are none that exist.
fn width(asked: u16) -> u8 {
    u8::try_from(asked).unwrap_or(0)
}

/// The caller's `index`th device; `ENOENT` past the last.
fn describe(core: &Core, dom: DomId, asked: &mut op::Describe) -> Result<(), Errno> {
    let found = core.devices.nth(dom, asked.index as usize).ok_or(Errno::ENOENT)?;
    *asked = op::Describe {
        index: asked.index,
        sbdf: found.sbdf.get(),
        vendor: found.vendor,
        device: found.device,
        class: found.class,
        owner: found.owner.unwrap_or(NOBODY).get(),
        msix_vectors: found.msix.map_or(0, |msix| msix.entries()),
        ..op::Describe::default()
    };
    Ok(())
}

/// Reads a register of configuration space; `EINVAL` for one that is none. Dom0 may read
/// those of all devices.
fn config_read(core: &Core, dom: DomId, asked: &mut op::Config) -> Result<(), Errno> {
    let sbdf = sbdf(asked.sbdf)?;
    let device = match dom {
        DomId::DOM0 => core.devices.find(sbdf).ok_or(DeviceError::NotOwned { sbdf })?,
        _ => core.devices.owned(dom, sbdf)?,
    };
    asked.value = config::read(device, asked.offset, width(asked.width))?;
    Ok(())
}

/// `PHYSDEVOP_eoi`: a level-triggered interrupt is dealt with.
///
/// Errors: `EFAULT`; `EINVAL` for a pirq that is not the caller's.
pub fn physdev_eoi(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    carry_out(core, caller, GuestVa::new(args[1]), |core, asked: Eoi| {
        Ok(core.devices.eoi(caller.dom, asked.irq)?)
    })
    .into()
}
