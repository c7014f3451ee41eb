//! Block devices: which there are, and which of them the command line's `root=` means.

use std::{fs, io, os::unix::fs::FileExt, path::Path};

/// A disk as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// By its name below `/dev`.
    Name(String),
    /// By the UUID of its ext2, ext3 or ext4 file system, in lower case.
    Uuid(String),
    /// By the label of such a file system.
    Label(String),
}

impl Wanted {
    /// Reads the value of `root=`.
    ///
    /// # Errors
    /// For a form that is not known here, what is.
    pub fn parse(root: &str) -> Result<Self, String> {
        if let Some(name) = root.strip_prefix("/dev/") {
            return Ok(Self::Name(name.into()));
        }
        match root.split_once('=') {
            Some(("UUID", uuid)) => Ok(Self::Uuid(uuid.to_ascii_lowercase())),
            Some(("LABEL", label)) => Ok(Self::Label(label.into())),
            _ => Err(format!(
                "root={root} is not understood; write root=/dev/xvda, root=UUID=... or root=LABEL=..."
            )),
        }
    }

    /// Finds it among the block devices of `/dev`: its path.
    pub fn find(&self, devices: &[Device]) -> Option<String> {
        let is_it = |device: &&Device| match self {
            Self::Name(name) => device.name == *name,
            Self::Uuid(uuid) => device.ext().is_some_and(|ext| ext.uuid == *uuid),
            Self::Label(label) => device.ext().is_some_and(|ext| ext.label == *label),
        };
        devices.iter().find(is_it).map(Device::path)
    }
}

/// A block device that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    /// Units of 512 bytes.
    pub sectors: u64,
}

impl Device {
    /// All disks and partitions, by name.
    pub fn all() -> Vec<Self> {
        Self::below(Path::new("/sys/class/block"))
    }

    fn below(folder: &Path) -> Vec<Self> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries
            .map(|entry| {
                let size = fs::read_to_string(entry.path().join("size")).unwrap_or_default();
                Self {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    sectors: size.trim().parse().unwrap_or(0),
                }
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Its node. The kernel writes `!` for a slash.
    pub fn path(&self) -> String {
        format!("/dev/{}", self.name.replace('!', "/"))
    }

    fn ext(&self) -> Option<Ext> {
        let mut block = [0; 1024];
        fs::File::open(self.path()).and_then(|f| f.read_exact_at(&mut block, 1024)).ok()?;
        Ext::parse(&block)
    }
}

/// What an ext2, ext3 or ext4 file system calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ext {
    uuid: String,
    label: String,
}

impl Ext {
    /// Reads the superblock. Source: the kernel's `Documentation/filesystems/ext4/super.rst`
    /// (`s_magic` at 0x38, `s_uuid` at 0x68, `s_volume_name` at 0x78).
    fn parse(block: &[u8; 1024]) -> Option<Self> {
        if block[0x38..0x3a] != [0x53, 0xef] {
            return None;
        }
        let hex = |range: std::ops::Range<usize>| {
            block[range].iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        let uuid =
            [hex(0x68..0x6c), hex(0x6c..0x6e), hex(0x6e..0x70), hex(0x70..0x72), hex(0x72..0x78)];
        let label = block[0x78..0x88].split(|&b| b == 0).next().unwrap_or_default();
        Some(Self { uuid: uuid.join("-"), label: String::from_utf8_lossy(label).into_owned() })
    }
}

/// The devices in a line, for a person.
pub fn describe(devices: &[Device]) -> String {
    if devices.is_empty() {
        return "none".into();
    }
    let one = |d: &Device| format!("{} ({} MiB)", d.name, d.sectors >> 11);
    devices.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// File systems of the kernel that live on a disk, from the text of `/proc/filesystems`.
pub fn disk_types(filesystems: &str) -> Vec<String> {
    let kept = filesystems.lines().filter(|l| !l.starts_with("nodev"));
    let mut types: Vec<_> = kept.map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect();
    // The likely one first: a failed attempt costs time, and leaves a line in the log.
    types.sort_by_key(|t| t != "ext4");
    types
}

/// The types that the running kernel has.
///
/// # Errors
/// If `/proc` is not there.
pub fn kernel_types() -> io::Result<Vec<String>> {
    Ok(disk_types(&fs::read_to_string("/proc/filesystems")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_names_uuids_and_labels_and_says_so_otherwise() {
        assert_eq!(Wanted::parse("/dev/xvda"), Ok(Wanted::Name("xvda".into())));
        assert_eq!(Wanted::parse("UUID=AB-cd"), Ok(Wanted::Uuid("ab-cd".into())));
        assert_eq!(Wanted::parse("LABEL=root"), Ok(Wanted::Label("root".into())));
        assert!(Wanted::parse("PARTUUID=1").expect_err("not known").contains("root=UUID="));
    }

    #[test]
    fn reads_uuid_and_label_of_an_ext4_superblock_and_of_nothing_else() {
        let mut block = [0; 1024];
        assert_eq!(Ext::parse(&block), None);
        block[0x38..0x3a].copy_from_slice(&0xef53u16.to_le_bytes());
        block[0x68..0x78].copy_from_slice(&std::array::from_fn::<u8, 16, _>(|i| i as u8 + 0xa0));
        block[0x78..0x7c].copy_from_slice(b"root");
        let ext = Ext::parse(&block).expect("ext4");
        assert_eq!(ext.uuid, "a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf");
        assert_eq!(ext.label, "root");
    }

    #[test]
    fn lists_devices_by_name_with_their_sizes() {
        let devices = vec![
            Device { name: "xvda".into(), sectors: 2048 },
            Device { name: "xvdb".into(), sectors: 1 << 21 },
        ];
        assert_eq!(describe(&devices), "xvda (1 MiB), xvdb (1024 MiB)");
        assert_eq!(describe(&[]), "none");
        assert_eq!(Wanted::Name("xvdb".into()).find(&devices).as_deref(), Some("/dev/xvdb"));
        assert_eq!(Wanted::Name("xvdc".into()).find(&devices), None);
    }

    #[test]
    fn tries_only_file_systems_that_live_on_disks() {
        assert_eq!(disk_types("nodev\tsysfs\nnodev\tproc\n\text3\n\text4\n"), ["ext4", "ext3"]);
    }
}
