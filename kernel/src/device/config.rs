//! What owners may do to configuration space: read all of it, and write the few
//! registers that concern nobody but the device. See invariant 2 of the room.

use super::{
    DeviceError,
    pci::{
        CAP_MSI, CAP_VENDOR, CMD_IO, CMD_MASTER, CMD_MEMORY, CMD_NO_INTX, COMMAND, PciDevice, Sbdf,
        capabilities, capability,
    },
};

/// Bits of the command register that an owner decides.
const OWNERS_BITS: u32 = CMD_IO | CMD_MEMORY | CMD_MASTER;
/// Bytes of configuration space that mechanism 1 reaches.
const BYTES: u16 = 256;

fn check_register(offset: u16, width: u8) -> Result<(), DeviceError> {
    let fits =
        matches!(width, 1 | 2 | 4) && offset.is_multiple_of(u16::from(width)) && offset < BYTES;
    fits.then_some(()).ok_or(DeviceError::BadRegister { offset, width })
}

/// Reads `width` bytes at `offset`.
///
/// Errors: `BadRegister` for a width other than 1, 2, 4, a misaligned offset or one past
/// byte 255.
pub fn read(device: &PciDevice, offset: u16, width: u8) -> Result<u32, DeviceError> {
    check_register(offset, width)?;
    Ok(device.sbdf.read(offset, width))
}

/// Writes `width` bytes at `offset` for the owner of `device`. Of the command register
/// only decoding and bus mastering change; the status half of a four-byte write is
/// left alone.
///
/// Errors: `BadRegister` as in [`read`]; `Protected` for anything but the command register
/// and the bodies of vendor capabilities.
pub fn write(device: &PciDevice, offset: u16, width: u8, value: u32) -> Result<(), DeviceError> {
    check_register(offset, width)?;
    let sbdf = device.sbdf;
    if offset == COMMAND && width >= 2 {
        let kept = sbdf.read(COMMAND, 2) & !OWNERS_BITS;
        sbdf.write(COMMAND, 2, kept | value & OWNERS_BITS);
        return Ok(());
    }
    if !in_vendor_body(sbdf, offset, width) {
        return Err(DeviceError::Protected { sbdf, offset });
    }
    sbdf.write(offset, width, value);
    Ok(())
}

/// Whether the register lies in the body of a vendor capability that is no window to
/// the BARs (virtio's is: type 5, virtio 1.2, 4.1.4.9).
fn in_vendor_body(sbdf: Sbdf, offset: u16, width: u8) -> bool {
    const HEADER_BYTES: u16 = 3;
    const VIRTIO_WINDOW: u32 = 5;
    let Some((id, at)) = capabilities(sbdf).filter(|cap| cap.1 <= offset).max_by_key(|cap| cap.1)
    else {
        return false;
    };
    if id != CAP_VENDOR {
        return false;
    }
    let end = at.saturating_add(sbdf.read(at + 2, 1) as u16);
    let is_window = sbdf.read(at + 3, 1) == VIRTIO_WINDOW;
    !is_window && offset >= at + HEADER_BYTES && offset + u16::from(width) <= end
}

/// Switches off what a function does on its own: bus mastering, pin interrupt, MSI, MSI-X.
pub fn disable(device: &PciDevice) {
    let sbdf = device.sbdf;
    let command = sbdf.read(COMMAND, 2);
    sbdf.write(COMMAND, 2, command & !CMD_MASTER | CMD_NO_INTX);
    if let Some(at) = capability(sbdf, CAP_MSI) {
        let control = sbdf.read(at + 2, 2);
        sbdf.write(at + 2, 2, control & !1);
    }
    if let Some(msix) = &device.msix {
        msix.disable(sbdf);
    }
}

/// Lets the pin interrupt of a function through, or not.
pub fn set_pin_enabled(sbdf: Sbdf, enabled: bool) {
    let command = sbdf.read(COMMAND, 2) & !CMD_NO_INTX;
    sbdf.write(COMMAND, 2, command | if enabled { 0 } else { CMD_NO_INTX });
}
