//! The set-up file as it is written: keys, types and defaults. What its names refer to
//! is not looked at here.

use super::units::{Size, Span};
use serde::Deserialize;
use std::collections::BTreeMap;
use toml::Spanned;

/// A table by names. The order of the file is that of the names' spans.
pub(super) type Named<T> = BTreeMap<Spanned<String>, T>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub machine: Machine,
    #[serde(default)]
    pub driver: Named<Driver>,
    #[serde(default)]
    pub disk: Named<Disk>,
    #[serde(default)]
    pub guest: Named<Guest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Machine {
    pub memory: Option<Spanned<Size>>,
    pub cpus: Spanned<u32>,
    pub accel: Accel,
    pub dom0_memory: Size,
    pub dom0_cmdline: String,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            memory: None,
            cpus: Spanned::new(0..0, 1),
            accel: Accel::Auto,
            dom0_memory: Size::from_mib(64),
            dom0_cmdline: String::new(),
        }
    }
}

/// What executes the machine's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// KVM if a probe has shown that it works here, else TCG.
    #[default]
    Auto,
    /// QEMU's own translation: works everywhere.
    Tcg,
    /// The processor's virtualization.
    Kvm,
}

/// What driver domains and guests have in common. (`flatten` would lose unknown keys and spans.)
#[derive(Debug)]
pub(super) struct Domain {
    pub kernel: Spanned<String>,
    pub ramdisk: Option<Spanned<String>>,
    pub modules: Option<Spanned<String>>,
    pub memory: Option<Spanned<Size>>,
    pub cmdline: Spanned<String>,
    pub weight: Option<Spanned<u32>>,
    pub warp: Option<Span>,
    pub warp_limit: Option<Span>,
    pub unwarp: Option<Span>,
    pub allowance: Option<Span>,
}

/// As [`Domain`], and how it is looked after.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Driver {
    pub kernel: Spanned<String>,
    pub ramdisk: Option<Spanned<String>>,
    pub modules: Option<Spanned<String>>,
    pub memory: Option<Spanned<Size>>,
    #[serde(default = "no_words")]
    pub cmdline: Spanned<String>,
    pub weight: Option<Spanned<u32>>,
    pub warp: Option<Span>,
    pub warp_limit: Option<Span>,
    pub unwarp: Option<Span>,
    pub allowance: Option<Span>,
    pub on_failure: Option<OnFailure>,
    pub hang_deadline: Option<Spanned<Span>>,
    pub answer_deadline: Option<Spanned<Span>>,
    pub restart_limit: Option<Spanned<u32>>,
    pub restart_window: Option<Spanned<Span>>,
}

impl Driver {
    /// Its part as a domain, and the rest.
    pub fn split(self) -> (Domain, Care) {
        let domain = Domain {
            kernel: self.kernel,
            ramdisk: self.ramdisk,
            modules: self.modules,
            memory: self.memory,
            cmdline: self.cmdline,
            weight: self.weight,
            warp: self.warp,
            warp_limit: self.warp_limit,
            unwarp: self.unwarp,
            allowance: self.allowance,
        };
        let care = Care {
            on_failure: self.on_failure,
            hang_deadline: self.hang_deadline,
            answer_deadline: self.answer_deadline,
            restart_limit: self.restart_limit,
            restart_window: self.restart_window,
        };
        (domain, care)
    }
}

/// How a driver domain is looked after.
#[derive(Debug)]
pub(super) struct Care {
    pub on_failure: Option<OnFailure>,
    pub hang_deadline: Option<Spanned<Span>>,
    pub answer_deadline: Option<Spanned<Span>>,
    pub restart_limit: Option<Spanned<u32>>,
    pub restart_window: Option<Spanned<Span>>,
}

/// What becomes of guests' requests when their driver domain dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum OnFailure {
    Reissue,
    Queue,
    Fail,
}

fn no_words() -> Spanned<String> {
    Spanned::new(0..0, String::new())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Disk {
    pub image: Spanned<String>,
    pub driver: Option<Spanned<String>>,
    #[serde(default)]
    pub read_only: bool,
    pub size: Option<Spanned<Size>>,
    pub make: Option<Make>,
    #[serde(default)]
    pub interrupt: Interrupt,
}

/// How a device calls its driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interrupt {
    /// By messages (MSI-X).
    #[default]
    Message,
    /// By its pin (INTx): on a line that no other device may share.
    Pin,
}

/// How an image that is not there is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Make {
    /// A small ext4 file system with files of many sizes.
    Ext4Sample,
    /// Zeroes, `size` of them.
    Empty,
    /// A Debian root file system that boots to a login on the console.
    Debian,
}

/// As [`Domain`], with disks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Guest {
    pub kernel: Spanned<String>,
    pub ramdisk: Option<Spanned<String>>,
    pub modules: Option<Spanned<String>>,
    pub memory: Option<Spanned<Size>>,
    #[serde(default = "no_words")]
    pub cmdline: Spanned<String>,
    pub weight: Option<Spanned<u32>>,
    pub warp: Option<Span>,
    pub warp_limit: Option<Span>,
    pub unwarp: Option<Span>,
    pub allowance: Option<Span>,
    pub on_reboot: Option<OnReboot>,
    pub disk: Option<Spanned<String>>,
    #[serde(default)]
    pub disks: Vec<Spanned<GuestDisk>>,
    pub agent: Option<bool>,
    pub console: Option<Spanned<bool>>,
}

impl Guest {
    /// Its part as a domain, and its disks.
    pub fn split(self) -> (Domain, Option<Spanned<String>>, Vec<Spanned<GuestDisk>>) {
        let domain = Domain {
            kernel: self.kernel,
            ramdisk: self.ramdisk,
            modules: self.modules,
            memory: self.memory,
            cmdline: self.cmdline,
            weight: self.weight,
            warp: self.warp,
            warp_limit: self.warp_limit,
            unwarp: self.unwarp,
            allowance: self.allowance,
        };
        (domain, self.disk, self.disks)
    }
}

/// What becomes of a guest that reboots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum OnReboot {
    Restart,
    Destroy,
}

/// A disk of a guest: a device's name, or a range of it.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a disk's name, or { disk = NAME, offset = SIZE, size = SIZE, read-only = BOOL }"
)]
pub(super) enum GuestDisk {
    Whole(String),
    Range(Range),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Range {
    pub disk: String,
    pub offset: Option<Size>,
    pub size: Option<Size>,
    #[serde(default)]
    pub read_only: bool,
}
