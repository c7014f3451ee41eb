//! Which input of the I/O APIC a device's pin is wired to. Firmware tells that in a
//! program (ACPI `_PRT`) that the core will not run, so it knows the chip sets it has
//! met; on others devices use MSI-X.

use super::machine::pci_read;
use super::pci::PciDevice;

/// Vendor and device of the host bridge of QEMU's `q35` (Intel 82G33 MCH).
const Q35: u32 = 0x29c0_8086;

/// The I/O APIC input of `device`'s pin, `None` where there is no pin or the rule is
/// not known.
///
/// On `q35` (ICH9): slots 0..=24 turn INTA..INTD into PIRQ E..H by slot number, slot 30
/// does so without turning, and the others use PIRQ A..D; PIRQ A is input 16.
pub fn gsi(device: &PciDevice) -> Option<u32> {
    let (slot, pin) = device.root_pin?;
    (pci_read(0, 0, 4) == Q35).then_some(())?;
    Some(match slot {
        0..=24 => 20 + (slot + pin) % 4,
        30 => 20 + pin,
        _ => 16 + pin,
    })
}
