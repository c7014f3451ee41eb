//! What came with the boot archive: the manifest and the images it names. The host
//! tool wrote it, but an archive may be damaged: nothing is taken on trust.

use alloc::{format, string::String};
use bulkhead_link::{DomainSpec, Kind, Manifest, VERSION};

/// The payload, with its manifest read.
#[derive(Debug)]
pub struct Payload<'a> {
    bytes: &'a [u8],
    pub manifest: Manifest,
}

impl<'a> Payload<'a> {
    /// Reads the manifest. Errors are for a person to read.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let (length, rest) =
            bytes.split_first_chunk::<4>().ok_or("the boot archive has no manifest")?;
        let length = u32::from_le_bytes(*length) as usize;
        let text = rest.get(..length).ok_or("the manifest is truncated")?;
        // The version is the first field; with another one the rest may not decode.
        let version = postcard::take_from_bytes::<u32>(text).map(|(version, _)| version);
        match version {
            Ok(VERSION) => {}
            Ok(other) => return Err(format!("the manifest is version {other}, not {VERSION}")),
            Err(_) => return Err("the manifest is empty".into()),
        }
        let manifest = postcard::from_bytes(text).map_err(|_| "the manifest does not decode")?;
        Ok(Self { bytes, manifest })
    }

    /// The bytes of an image, by its index.
    pub fn image(&self, index: u32) -> Result<&'a [u8], String> {
        let image = self.manifest.images.get(index as usize);
        let image = image.ok_or_else(|| format!("the manifest has no image {index}"))?;
        let range = usize::try_from(image.offset).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(image.bytes).ok()?)?;
            self.bytes.get(start..end)
        });
        range.ok_or_else(|| format!("image {:?} is not within the boot archive", image.name))
    }

    /// Disks that guests have on driver domain `driver`.
    pub fn disks_of(&self, driver: &str) -> usize {
        let disks = self.manifest.domains.iter().flat_map(|d| &d.disks);
        disks.filter(|disk| disk.driver == driver).count()
    }

    /// The PCI device that a driver domain has under a name.
    pub fn device_of(&self, driver: &str, device: &str) -> Option<u32> {
        let mut drivers = self.drivers();
        let driver = drivers.find(|d| d.name == driver)?;
        let found = driver.devices.iter().find(|d| d.name == device)?;
        Some(found.sbdf)
    }

    fn drivers(&self) -> impl Iterator<Item = &DomainSpec> {
        let domains = self.manifest.domains.iter();
        domains.filter(|d| d.kind == Kind::Driver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_link::{Device, Disk, Image, Sched};
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    fn manifest() -> Manifest {
        let spec = |name: &str, kind| DomainSpec {
            name: name.into(),
            uuid: [0; 16],
            kind,
            kernel: 0,
            ramdisk: None,
            cmdline: String::new(),
            memory_kib: 1,
            vcpus: 1,
            sched: Sched::default(),
            devices: Vec::new(),
            disks: Vec::new(),
            on_reboot: Default::default(),
            care: Default::default(),
            agent: false,
        };
        let mut driver = spec("disk", Kind::Driver);
        driver.devices = vec![Device { name: "vda".into(), sbdf: 32 }];
        let mut guest = spec("reader", Kind::Guest);
        guest.disks = vec![Disk {
            vdev: "xvda".into(),
            driver: "disk".into(),
            device: "vda".into(),
            first_sector: 0,
            sectors: 0,
            writable: false,
        }];
        Manifest {
            version: VERSION,
            images: vec![
                Image { name: "good".into(), offset: 4096, bytes: 3 },
                Image { name: "long".into(), offset: 4096, bytes: u64::MAX },
            ],
            domains: vec![driver, guest],
            lane: None,
            wallclock_ns: 5,
            clock_by_link: false,
        }
    }

    fn pack(manifest: &Manifest) -> Vec<u8> {
        let text = postcard::to_allocvec(manifest).unwrap();
        let mut bytes = (text.len() as u32).to_le_bytes().to_vec();
        bytes.extend(text);
        bytes.resize(4096, 0);
        bytes.extend(b"ELF");
        bytes
    }

    #[test]
    fn images_and_devices_are_found_and_lies_are_not_followed() {
        let bytes = pack(&manifest());
        let payload = Payload::parse(&bytes).unwrap();
        assert_eq!(payload.image(0).unwrap(), b"ELF");
        assert!(payload.image(1).unwrap_err().contains("long"));
        assert!(payload.image(2).is_err());
        assert_eq!(payload.disks_of("disk"), 1);
        assert_eq!(payload.device_of("disk", "vda"), Some(32));
        assert_eq!(payload.device_of("reader", "vda"), None);
        assert_eq!(payload.device_of("disk", "vdb"), None);
    }

    #[test]
    fn another_version_says_so() {
        let mut other = manifest();
        other.version = 9;
        assert!(Payload::parse(&pack(&other)).unwrap_err().contains("version 9"));
    }

    proptest! {
        #[test]
        fn damaged_archives_never_panic(cut in 0usize..4200, pokes in prop::collection::vec((0usize..200, any::<u8>()), 0..8)) {
            let mut bytes = pack(&manifest());
            for (at, byte) in pokes {
                bytes[at] = byte;
            }
            bytes.truncate(cut);
            if let Ok(payload) = Payload::parse(&bytes) {
                for index in 0..4 {
                    let _ = payload.image(index);
                }
            }
        }
    }
}
