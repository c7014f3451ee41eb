//! PCI device assignment: who owns which device, its BARs, its interrupts. No device
//! is driven here; configuration space is mediated and the rest is the owner's.

/// All devices of the machine.
#[derive(Default)]
pub struct Devices {}

/// What a domain may reach of devices: I/O memory ranges and pirqs.
#[derive(Default)]
pub struct DomainDevices {}
