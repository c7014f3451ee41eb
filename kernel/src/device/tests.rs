use super::{
    DeviceError, Devices, DomainDevices, IoRange, config,
    irq::{COM2, FIRST_VECTOR},
    machine::fake::{self, Function, Line},
    pci::{CMD_MASTER, CMD_MEMORY, CMD_NO_INTX, COMMAND, Sbdf},
};
use crate::arch::DeviceWindow;
use bulkhead_abi::{
    DomId, Maddr, Mfn,
    device::{BAR_PREFETCHABLE, INTX},
};

const DRIVER: DomId = DomId::new(1);
const OTHER: DomId = DomId::new(2);
/// Where the first disk is.
pub const DISK: u32 = 3 << 3;
const MSIX_BAR: u64 = 0xfe00_0000;
pub const MAIN_BAR: u64 = 0x8_0000_0000;

fn sbdf(raw: u32) -> Sbdf {
    Sbdf::new(raw).unwrap()
}

/// A virtio disk as QEMU shows it on the root bus: MSI-X in BAR 1, registers in BAR 4,
/// no function-level reset.
fn virtio_disk() -> Function {
    let mut f = Function::default();
    f.set(0x00, &[0xf4, 0x1a, 0x42, 0x10]).set(0x08, &[1, 0, 0, 1]).set(0x06, &[0x10, 0]);
    f.allow(0x04, &[0xff, 0x07]).set(0x04, &[7, 0]);
    f.set(0x14, &(MSIX_BAR as u32).to_le_bytes()).allow(0x14, &0xffff_f000u32.to_le_bytes());
    f.set(0x20, &(MAIN_BAR as u32 | 12).to_le_bytes()).allow(0x20, &0xffff_c000u32.to_le_bytes());
    f.set(0x24, &((MAIN_BAR >> 32) as u32).to_le_bytes()).allow(0x24, &[0xff; 4]);
    f.set(0x34, &[0x40]).set(0x3d, &[1]);
    // MSI-X: two entries in BAR 1 at 0.
    f.set(0x40, &[0x11, 0x50, 1, 0, 1, 0, 0, 0, 1, 8, 0, 0]).allow(0x42, &[0, 0xc0]);
    // Common configuration: BAR 4 from 0x1000.
    f.set(0x50, &[9, 0x64, 16, 1, 4, 0, 0, 0, 0, 0x10, 0, 0]).allow(0x50, &[0xff; 16]);
    // The window to BARs.
    f.set(0x64, &[9, 0x78, 20, 5]).allow(0x64, &[0xff; 20]);
    f.set(0x78, &[1, 0, 3, 0]).allow(0x78, &[0xff; 8]);
    f
}

/// A q35 with a disk at [`DISK`] and another behind a root port.
pub fn machine() -> Devices {
    fake::with(|bus| {
        *bus = Default::default();
        let mut host = Function::default();
        host.set(0, &[0x86, 0x80, 0xc0, 0x29]).set(0x08, &[0, 0, 0, 6]);
        bus.functions.insert(0, host);
        bus.functions.insert(DISK, virtio_disk());
        // A root port with a second disk behind it.
        let mut port = Function::default();
        port.set(0, &[0x36, 0x1b, 0x0c, 0])
            .set(0x08, &[0, 0, 4, 6])
            .set(0x0e, &[1])
            .set(0x19, &[1]);
        bus.functions.insert(4 << 3, port);
        bus.functions.insert(1 << 8, virtio_disk());
    });
    let mut devices = Devices::default();
    assert_eq!(devices.scan(), 4);
    devices
}

/// The same machine, with a disk that says it is of another class.
pub fn machine_with_class(class: u32) -> Devices {
    let mut devices = machine();
    let disk = devices.list.iter_mut().find(|d| d.sbdf.get() == DISK);
    disk.expect("the disk").class = class;
    devices
}

/// The MSI-X table, as the device sees it.
fn table() -> DeviceWindow {
    DeviceWindow::map(Maddr::new(MSIX_BAR), 32).unwrap()
}

/// Virtio's common configuration.
fn common() -> DeviceWindow {
    DeviceWindow::map(Maddr::new(MAIN_BAR + 0x1000), 4096).unwrap()
}

fn command(raw: u32) -> u32 {
    sbdf(raw).read(COMMAND, 2)
}

#[test]
fn scanning_finds_bars_and_leaves_them_as_they_were() {
    let devices = machine();
    let disk = devices.find(sbdf(DISK)).unwrap();
    assert_eq!((disk.vendor, disk.device, disk.class), (0x1af4, 0x1042, 0x01_00_00));
    assert_eq!((disk.bars[1].maddr, disk.bars[1].bytes), (MSIX_BAR, 0x1000));
    assert_eq!((disk.bars[4].maddr, disk.bars[4].bytes), (MAIN_BAR, 0x4000));
    assert_eq!((disk.bars[4].flags, disk.bars[1].flags), (BAR_PREFETCHABLE, 0));
    assert_eq!([0, 2, 3, 5].map(|n: usize| disk.bars[n].bytes), [0; 4]);
    assert_eq!(sbdf(DISK).read(0x20, 4), MAIN_BAR as u32 | 12);
    assert_eq!(disk.msix.unwrap().entries(), 2);
}

#[test]
fn scanning_switches_bus_mastering_and_pins_off() {
    machine();
    assert_eq!(command(DISK) & (CMD_MASTER | CMD_NO_INTX), CMD_NO_INTX);
}

#[test]
fn an_owner_may_map_its_bars_but_not_the_interrupt_table() {
    let mut devices = machine();
    let mut mine = DomainDevices::default();
    let main = Mfn::new(MAIN_BAR >> 12);
    assert!(!mine.allows_io(main));
    devices.assign(sbdf(DISK), DRIVER, &mut mine).unwrap();
    assert_eq!(mine.ranges.as_slice(), [IoRange { first: main, frames: 4, sbdf: sbdf(DISK) }]);
    assert!(mine.allows_io(main) && mine.allows_io(main.checked_add(3).unwrap()));
    assert!(!mine.allows_io(main.checked_add(4).unwrap()));
    assert!(!mine.allows_io(Mfn::new(MSIX_BAR >> 12)));
    devices.deassign(sbdf(DISK), DRIVER, &mut mine).unwrap();
    assert!(!mine.allows_io(main));
}

#[test]
fn a_table_inside_a_bar_leaves_the_pages_around_it() {
    machine();
    fake::with(|bus| {
        let f = bus.functions.get_mut(&DISK).unwrap();
        f.set(0x44, &(0x1000u32 | 4).to_le_bytes());
    });
    let mut devices = Devices::default();
    devices.scan();
    let ranges: Vec<_> =
        devices.find(sbdf(DISK)).unwrap().mappable().map(|r| (r.first.get(), r.frames)).collect();
    let main = MAIN_BAR >> 12;
    assert_eq!(ranges, [(MSIX_BAR >> 12, 1), (main, 1), (main + 2, 2)]);
}

#[test]
fn a_device_has_one_owner() {
    let mut devices = machine();
    let (mut a, mut b) = (DomainDevices::default(), DomainDevices::default());
    devices.assign(sbdf(DISK), DRIVER, &mut a).unwrap();
    let taken = DeviceError::Taken { sbdf: sbdf(DISK), owner: DRIVER };
    assert_eq!(devices.assign(sbdf(DISK), OTHER, &mut b), Err(taken));
    assert_eq!(b.ranges.len(), 0);
    let not_owned = DeviceError::NotOwned { sbdf: sbdf(DISK) };
    assert_eq!(devices.deassign(sbdf(DISK), OTHER, &mut b), Err(not_owned));
    assert_eq!(devices.irq(OTHER, sbdf(DISK), 0), Err(not_owned));
}

#[test]
fn bridges_and_absent_devices_are_not_assigned() {
    let mut devices = machine();
    let mut mine = DomainDevices::default();
    assert_eq!(
        devices.assign(sbdf(0), DRIVER, &mut mine),
        Err(DeviceError::Bridge { sbdf: sbdf(0) })
    );
    let port = sbdf(4 << 3);
    assert_eq!(devices.assign(port, DRIVER, &mut mine), Err(DeviceError::Bridge { sbdf: port }));
    let absent = sbdf(9 << 3);
    assert_eq!(
        devices.assign(absent, DRIVER, &mut mine),
        Err(DeviceError::NotOwned { sbdf: absent })
    );
}

#[test]
fn configuration_writes_reach_decoding_and_bus_mastering_only() {
    let devices = machine();
    let disk = devices.find(sbdf(DISK)).unwrap();
    config::write(disk, COMMAND, 4, 0xffff_ffff).unwrap();
    assert_eq!(command(DISK), CMD_NO_INTX | 7);
    config::write(disk, COMMAND, 2, 0).unwrap();
    assert_eq!(command(DISK), CMD_NO_INTX);
    fake::with(|bus| bus.writes.clear());
    // Identity, status, each BAR, expansion ROM, MSI-X, virtio's window, power management,
    // the header of a vendor capability and what follows it.
    let at = [
        0, 6, 0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x3c, 0x42, 0x44, 0x50, 0x64, 0x68,
        0x74, 0x7c,
    ];
    for offset in at {
        let refused = DeviceError::Protected { sbdf: sbdf(DISK), offset };
        assert_eq!(config::write(disk, offset, 2, u32::MAX), Err(refused));
    }
    assert_eq!(fake::with(|bus| bus.writes.len()), 0);
    config::write(disk, 0x54, 4, 0x1234).unwrap();
    assert_eq!(sbdf(DISK).read(0x54, 4), 0x1234);
}

#[test]
fn configuration_access_is_aligned_and_within_256_bytes() {
    let devices = machine();
    let disk = devices.find(sbdf(DISK)).unwrap();
    for (offset, width) in
        [(1, 2), (2, 4), (0, 3), (0, 0), (0, 8), (256, 1), (0xffff, 1), (0xfffc, 4)]
    {
        let refused = Err(DeviceError::BadRegister { offset, width });
        assert_eq!(config::read(disk, offset, width), refused);
        assert_eq!(config::write(disk, offset, width, 0), refused.map(|_| ()));
    }
    assert_eq!(config::read(disk, 0, 4), Ok(0x1042_1af4));
}

#[test]
fn a_capability_list_that_loops_ends() {
    machine();
    fake::with(|bus| {
        bus.functions.get_mut(&DISK).unwrap().set(0x79, &[0x40]).set(0x41, &[0x78]);
    });
    let mut devices = Devices::default();
    assert_eq!(devices.scan(), 4);
}

#[test]
fn messages_are_masked_until_the_pirq_is_bound() {
    let mut devices = machine();
    let mut mine = DomainDevices::default();
    devices.assign(sbdf(DISK), DRIVER, &mut mine).unwrap();
    let pirq = devices.irq(DRIVER, sbdf(DISK), 1).unwrap();
    assert_eq!(devices.irq(DRIVER, sbdf(DISK), 1).unwrap(), pirq);
    let entry = || [0, 4, 8, 12].map(|at| table().read(16 + at));
    let vector = u32::from(FIRST_VECTOR) + pirq;
    assert_eq!(entry(), [0xfee0_0000, 0, vector, 1]);
    assert_eq!(sbdf(DISK).read(0x42, 2) & 0xc000, 0x8000);
    devices.bind_pirq(DRIVER, pirq).unwrap();
    assert_eq!(entry(), [0xfee0_0000, 0, vector, 0]);
    devices.unbind_pirq(DRIVER, pirq);
    assert_eq!(entry()[3], 1);
    let no = DeviceError::NoInterrupt { sbdf: sbdf(DISK) };
    assert_eq!(devices.irq(DRIVER, sbdf(DISK), 2), Err(no));
}

#[test]
fn a_pirq_answers_to_its_owner_only() {
    let mut devices = machine();
    let mut mine = DomainDevices::default();
    devices.assign(sbdf(DISK), DRIVER, &mut mine).unwrap();
    let pirq = devices.irq(DRIVER, sbdf(DISK), 0).unwrap();
    let refused = Err(DeviceError::NotYourPirq { pirq });
    assert_eq!(devices.bind_pirq(OTHER, pirq), refused);
    assert_eq!(devices.eoi(OTHER, pirq), refused);
    for pirq in [0, 15, 175, 176, u32::MAX] {
        assert_eq!(devices.bind_pirq(DRIVER, pirq), Err(DeviceError::NotYourPirq { pirq }));
    }
}

#[test]
fn a_line_that_is_never_acknowledged_stays_masked() {
    let mut devices = machine();
    let mut mine = DomainDevices::default();
    devices.assign(sbdf(DISK), DRIVER, &mut mine).unwrap();
    let pirq = devices.irq(DRIVER, sbdf(DISK), INTX).unwrap();
    let vector = FIRST_VECTOR + pirq as u8;
    // q35: slot 3, INTA.
    let line = || fake::with(|bus| bus.lines[&23]);
    assert_eq!(line(), Line { vector, level: true, masked: true });
    devices.bind_pirq(DRIVER, pirq).unwrap();
    assert!(!line().masked);
    assert_eq!(command(DISK) & CMD_NO_INTX, 0);
    assert!(devices.fired(vector).is_some());
    assert!(line().masked);
    devices.eoi(DRIVER, pirq).unwrap();
    assert!(!line().masked);
    devices.unbind_pirq(DRIVER, pirq);
    assert!(line().masked);
    devices.eoi(DRIVER, pirq).unwrap();
    assert!(line().masked, "an acknowledgement does not unmask what nobody listens to");
}

#[test]
fn a_pin_behind_a_bridge_is_turned() {
    let mut devices = machine();
    let (mut a, mut b) = (DomainDevices::default(), DomainDevices::default());
    devices.assign(sbdf(1 << 8), DRIVER, &mut a).unwrap();
    // Device 0 INTA behind slot 4: INTA of slot 4.
    devices.irq(DRIVER, sbdf(1 << 8), INTX).unwrap();
    assert!(fake::with(|bus| bus.lines.contains_key(&20)));
    devices.assign(sbdf(DISK), OTHER, &mut b).unwrap();
    devices.irq(OTHER, sbdf(DISK), INTX).unwrap();
}

#[test]
fn quiescing_stops_the_device_and_frees_its_interrupts() {
    let mut devices = machine();
    let mut mine = DomainDevices::default();
    devices.assign(sbdf(DISK), DRIVER, &mut mine).unwrap();
    let pirq = devices.irq(DRIVER, sbdf(DISK), 0).unwrap();
    devices.bind_pirq(DRIVER, pirq).unwrap();
    config::write(devices.find(sbdf(DISK)).unwrap(), COMMAND, 2, 7).unwrap();
    // The driver had brought it up: status 0x0f in the common configuration.
    common().write_u8(0x14, 0x0f);
    devices.quiesce(DRIVER);
    assert_eq!(common().read_u8(0x14), 0);
    assert_eq!(command(DISK) & (CMD_MASTER | CMD_NO_INTX), CMD_NO_INTX);
    assert_eq!(table().read(12), 1);
    assert!(devices.fired(FIRST_VECTOR + pirq as u8).is_none());
    assert_eq!(devices.bind_pirq(DRIVER, pirq), Err(DeviceError::NotYourPirq { pirq }));
    assert!(devices.owned(DRIVER, sbdf(DISK)).is_ok(), "stays assigned");
    devices.disown(DRIVER);
    assert!(devices.owned(DRIVER, sbdf(DISK)).is_err());
}

#[test]
fn a_function_level_reset_keeps_the_base_addresses() {
    machine();
    fake::with(|bus| {
        let f = bus.functions.get_mut(&DISK).unwrap();
        // PCI Express capability with the reset, in front of the others.
        f.set(0x34, &[0x80])
            .set(0x80, &[0x10, 0x40, 2, 0, 0, 0, 0, 0x10])
            .allow(0x88, &[0xff, 0xff]);
    });
    let mut devices = Devices::default();
    devices.scan();
    let mut mine = DomainDevices::default();
    devices.assign(sbdf(DISK), DRIVER, &mut mine).unwrap();
    let writes: Vec<_> = fake::with(|bus| bus.writes.iter().map(|w| (w.1, w.3)).collect());
    let reset = writes.iter().position(|&w| w == (0x88, 0x8000)).unwrap();
    assert!(writes[..reset].iter().any(|&(at, v)| at == COMMAND && v & CMD_MASTER == 0));
    assert!(writes[reset..].contains(&(0x20, MAIN_BAR as u32 | 12)));
    assert!(writes[reset..].contains(&(0x24, (MAIN_BAR >> 32) as u32)));
    assert_eq!(command(DISK) & CMD_MEMORY, CMD_MEMORY);
}

#[test]
fn an_isa_line_is_edge_triggered_and_keeps_its_number() {
    let mut devices = machine();
    devices.assign_isa(DomId::DOM0, COM2);
    let vector = FIRST_VECTOR + 3;
    let line = |masked| Line { vector, level: false, masked };
    assert_eq!(fake::with(|bus| bus.lines[&3]), line(true));
    devices.bind_pirq(DomId::DOM0, 3).unwrap();
    assert_eq!(devices.fired(vector).map(|f| f.0), Some(DomId::DOM0));
    assert_eq!(fake::with(|bus| bus.lines[&3]), line(false));
}

#[test]
fn stray_vectors_are_nobodys() {
    let mut devices = machine();
    for vector in 0..=255 {
        assert!(devices.fired(vector).is_none());
    }
}
