//! What the host tool and Dom0 say to each other: the boot [`Manifest`] that comes
//! with the boot archive, and the messages on the second UART or, where there is one, on
//! the fast [`lane`] beside it. Knows nothing of how
//! either side carries it out.
//!
//! Wire: each message is `postcard`, framed by COBS with a zero byte at the end. The
//! tool sends [`ToDom0`], Dom0 sends [`FromDom0`]; a [`Reply`] repeats the request's
//! number. Both ends drop a frame that does not decode and go on at the next zero.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod agent;
pub mod injection;
pub mod lane;

use alloc::{string::String, vec::Vec};
use serde::{Deserialize, Serialize};

/// Version of everything in this crate; both sides must have the same.
pub const VERSION: u32 = 3;

/// How often Dom0 is told the time before it builds guests: any one message may be late.
pub const CLOCK_TELLS: usize = 6;

/// The payload of the boot archive starts with a u32 length and a manifest of that
/// many bytes; images follow at the offsets it gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    /// Files, at byte offsets from the start of the payload, page-aligned.
    pub images: Vec<Image>,
    /// In order of start: driver domains come before their guests.
    pub domains: Vec<DomainSpec>,
    /// The PCI device whose memory is the fast lane of the link ([`lane`]).
    pub lane: Option<u32>,
    /// Wall clock when the manifest was made, ns since 1970, as the host knows it.
    pub wallclock_ns: u64,
    /// The tool tells the wall clock over the link ([`Request::SetWallClock`]) as soon as Dom0
    /// serves requests. If not, `wallclock_ns` is taken for the time of boot, which is behind by
    /// what starting the machine took, and the same in each run.
    pub clock_by_link: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub name: String,
    pub offset: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Dom0,
    Driver,
    Guest,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainSpec {
    pub name: String,
    /// Names the domain for its own kernel, in the order in which it is written.
    pub uuid: [u8; 16],
    pub kind: Kind,
    /// Index into `Manifest::images`: an ELF with Xen notes.
    pub kernel: u32,
    pub ramdisk: Option<u32>,
    pub cmdline: String,
    pub memory_kib: u64,
    pub vcpus: u32,
    pub sched: Sched,
    /// PCI devices it owns (drivers): bus << 8 | device << 3 | function.
    pub devices: Vec<Device>,
    /// Virtual disks it uses (guests).
    pub disks: Vec<Disk>,
    pub on_reboot: OnReboot,
    /// How it is looked after (drivers).
    pub care: Care,
    /// It has a second console for an [`agent`].
    pub agent: bool,
}

/// What becomes of a guest that asks to be rebooted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnReboot {
    /// It is built again from its files, under the same name and with the same disks.
    #[default]
    Restart,
    /// It has ended.
    Destroy,
}

/// How a driver domain is looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Care {
    pub on_failure: OnFailure,
    /// A heart that has not beaten for this long has stopped.
    pub hang_deadline_ns: u64,
    /// One that has taken requests of a guest and answers none for this long has stopped, too.
    pub answer_deadline_ns: u64,
    /// So many lives may end by themselves within `restart_window_ns`; one more, and the domain
    /// is quarantined.
    pub restart_limit: u32,
    pub restart_window_ns: u64,
    /// What answers with errors while the domain is in quarantine, by its index into
    /// `Manifest::images`; with [`OnFailure::Fail`].
    pub refuser: Option<u32>,
}

impl Default for Care {
    fn default() -> Self {
        Self {
            on_failure: OnFailure::default(),
            hang_deadline_ns: 100_000_000,
            answer_deadline_ns: 10_000_000_000,
            restart_limit: 10,
            restart_window_ns: 10_000_000_000,
            refuser: None,
        }
    }
}

/// What becomes of guests' requests when their driver domain dies, in the words of Linux' ublk.
/// Requests that it had taken are outstanding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnFailure {
    /// Outstanding requests are run again by the next life; others wait for it.
    #[default]
    Reissue,
    /// Outstanding requests get an error; others wait.
    Queue,
    /// Outstanding requests, and all that come before there is a next life, get an error.
    Fail,
}

/// BVT parameters; see `bulkhead_abi::control::SchedParams`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sched {
    pub weight: u32,
    pub warp_ns: u64,
    pub warp_limit_ns: u64,
    pub unwarp_ns: u64,
    pub allowance_ns: u64,
}

impl Default for Sched {
    fn default() -> Self {
        Self { weight: 256, warp_ns: 0, warp_limit_ns: 0, unwarp_ns: 0, allowance_ns: 1_000_000 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Name in the set-up file.
    pub name: String,
    pub sbdf: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Device name in the guest, `xvda` ..
    pub vdev: String,
    /// Name of the driver domain.
    pub driver: String,
    /// Name of its device.
    pub device: String,
    pub first_sector: u64,
    /// 512-byte sectors; 0 for all that follow.
    pub sectors: u64,
    pub writable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToDom0 {
    pub number: u32,
    pub request: Request,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Hello {
        version: u32,
    },
    List,
    /// Destroys a domain at once.
    Kill {
        domain: String,
    },
    /// Asks a domain's kernel to power off, by `control/shutdown`. `Done` says that it was
    /// asked; that it obeys shows as [`Event::Progress`], then as [`Event::Ended`].
    PowerOff {
        domain: String,
    },
    /// The same to reboot.
    Reboot {
        domain: String,
    },
    /// Presses a key of Linux' magic SysRq in a domain, by `control/sysrq`.
    Sysrq {
        domain: String,
        key: u8,
    },
    /// Sets how much memory a guest is to have, by `memory/target`; its balloon driver gives
    /// back or takes the difference.
    SetMemory {
        domain: String,
        memory_kib: u64,
    },
    /// The host's wall clock as this was sent, ns since 1970; for guests built from now on.
    /// Sent [`CLOCK_TELLS`] times in a row when Dom0 is ready, and now and then afterwards.
    SetWallClock {
        unix_ns: u64,
    },
    /// Resets a driver domain in place and starts it again; its guests go on.
    Restart {
        domain: String,
    },
    /// Has a driver domain with fault hooks go wrong.
    Inject {
        domain: String,
        injection: injection::Injection,
    },
    /// How a driver domain is, and what came of an injection; the reply is [`Reply::Signs`].
    Signs {
        domain: String,
    },
    /// Takes an injection back as far as it has had no effect yet.
    Disarm {
        domain: String,
    },
    /// A part of an image, for [`Request::Update`]; parts come in order. `upload` is a number of
    /// the sender's own. One image is kept at a time: another one that begins takes its place.
    ImagePart {
        upload: u64,
        /// Bytes of the whole image, at most [`MOST_IMAGE_BYTES`].
        total: u64,
        offset: u64,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Restarts a driver domain with another image, which is its own from then on. An image
    /// that does not load is refused, and nothing happens.
    Update {
        domain: String,
        to: NewImage,
    },
    Pause {
        domain: String,
    },
    Unpause {
        domain: String,
    },
    SetSched {
        domain: String,
        sched: Sched,
    },
    /// Bytes for a domain's console; the reply is [`Reply::Taken`].
    ConsoleInput {
        domain: String,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Bytes for the [`agent`] of a domain. The sender keeps to the agent's windows, so that
    /// there is room for them.
    AgentInput {
        domain: String,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Ends the machine once all domains are destroyed.
    Shutdown,
    /// Stops a domain at whatever instruction it is, as if it had crashed there; what follows is
    /// what follows a crash. The death of a driver domain that was asked for does not count
    /// towards its quarantine.
    Crash {
        domain: String,
    },
}

/// Largest image that can be sent, bytes.
pub const MOST_IMAGE_BYTES: u64 = 16 << 20;
/// Bytes of an image that are sent in one [`Request::ImagePart`].
pub const IMAGE_PART_BYTES: usize = 128 << 10;

/// What a driver domain is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewImage {
    /// What was sent; the name is for people.
    Sent { upload: u64, name: String },
    /// That of the set-up.
    Original,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromDom0 {
    Reply { number: u32, reply: Reply },
    Event(Event),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Hello {
        version: u32,
    },
    List(Listing),
    Signs(injection::Signs),
    /// What went wrong, for a person to read.
    Error(String),
    /// So many bytes of console input were taken. If that is not all, [`Event::ConsoleRoom`]
    /// tells when the rest may come.
    Taken {
        bytes: u32,
    },
}

/// Why a driver domain was restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// It ended by itself.
    Crash,
    /// Its heart did not beat.
    Hang,
    /// It broke a protocol, said the other side.
    Violation,
    /// Somebody asked for it.
    Request,
}

/// One restart of a driver domain, with the ns that each phase took, one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    pub driver: String,
    pub cause: Cause,
    pub reason: String,
    /// When it ended, by system time, ns.
    pub ended_ns: u64,
    /// From its end until Dom0 acted.
    pub detect_ns: u64,
    /// Until nothing of the old life was left.
    pub teardown_ns: u64,
    /// Until the new life ran.
    pub rebuild_ns: u64,
    /// Until its devices were up; all from here on by its own word. `None`: it has not said.
    pub device_ns: Option<u64>,
    /// Until it answered a guest; `None` if no guest asked.
    pub first_response_ns: Option<u64>,
    /// From its end until it answered a guest.
    pub blackout_ns: Option<u64>,
}

/// The step in which a guest's old life is over and it is about to be built again. Who talks to
/// it has lost it then, as with [`Event::Ended`].
pub const REBOOTING: &str = "rebooting";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Dom0 serves requests.
    Ready { version: u32 },
    /// A step in a domain's life: "building", "running", "xvda connected", [`REBOOTING`].
    Progress { domain: String, step: String },
    /// Bytes a domain wrote on its console.
    Console {
        domain: String,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// A domain has read console input that it left no room for before.
    ConsoleRoom { domain: String },
    /// Bytes that a domain's [`agent`] wrote.
    Agent {
        domain: String,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// A driver domain is not restarted any more. With `refuses` its guests' requests are
    /// answered with errors until it is, otherwise they wait.
    Quarantined { domain: String, reason: String, refuses: bool },
    /// A domain stopped.
    Ended { domain: String, exit: Exit, reason: String },
    /// A line of Dom0's own.
    Log { line: String },
    /// A driver domain was restarted, and has answered a guest or has had time to.
    Restarted(Restart),
    /// A domain could not be built; it is not there.
    BuildFailed { domain: String, reason: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    PowerOff,
    Reboot,
    Crash,
    Killed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Running,
    Paused,
    Stopped,
    Crashed,
    Quarantined,
    /// It asked for a reboot, and is about to be built again.
    Rebooting,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    pub domains: Vec<DomainReport>,
    pub disks: Vec<DiskReport>,
    pub machine: MachineReport,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineReport {
    pub total_frames: u64,
    pub free_frames: u64,
    pub core_frames: u64,
    pub cpus: u32,
    pub system_time_ns: u64,
    pub longest_stay_ns: u64,
    pub switches: u64,
    /// Mappings of granted frames, of all domains.
    pub grants: u64,
    /// Event channels in use, of all domains.
    pub ports: u64,
    /// Bytes of its heap that Dom0 uses.
    pub dom0_heap_bytes: u64,
}

/// A stopped domain stays listed, with what it used when it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainReport {
    pub name: String,
    pub domid: u16,
    pub kind: Kind,
    pub state: State,
    pub exit: Option<Exit>,
    pub reason: String,
    pub memory_kib: u64,
    pub cpu_ns: u64,
    /// Actual virtual time of vCPU 0, ns.
    pub virtual_ns: u64,
    pub weight: u32,
    /// Times it was built again.
    pub restarts: u32,
    /// The name of its image, if that is not the one it was started with.
    pub updated: Option<String>,
    /// In quarantine: its guests' requests are answered with errors.
    pub refuses: bool,
    /// The last lines on its console, if it ended other than by powering off.
    pub last_lines: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    pub guest: String,
    pub vdev: String,
    pub device: String,
    pub driver: String,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub requests: u64,
    pub errors: u64,
}

/// Encodes one message with its framing.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Only running out of memory can fail here, and that panics in `alloc` itself.
    postcard::to_allocvec_cobs(message).unwrap_or_default()
}

/// Cuts a byte stream into messages.
#[derive(Default)]
pub struct Decoder {
    frame: Vec<u8>,
}

/// Longest frame a [`Decoder`] keeps; what is longer is dropped.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

impl Decoder {
    /// Takes one byte; gives a message when it completes one. `Err` holds the
    /// length of a frame that made no sense.
    pub fn push<T: for<'a> Deserialize<'a>>(&mut self, byte: u8) -> Option<Result<T, usize>> {
        if byte != 0 {
            if self.frame.len() < MAX_FRAME_BYTES {
                self.frame.push(byte);
            }
            return None;
        }
        let mut frame = core::mem::take(&mut self.frame);
        if frame.is_empty() {
            return None;
        }
        let bytes = frame.len();
        Some(postcard::from_bytes_cobs(&mut frame).map_err(|_| bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire_and_noise_between_them() {
        let sent = ToDom0 { number: 7, request: Request::Kill { domain: "disk".into() } };
        let mut bytes = alloc::vec![1, 2, 3, 0];
        bytes.extend(encode(&sent));
        let mut decoder = Decoder::default();
        let got: Vec<_> = bytes.into_iter().filter_map(|b| decoder.push::<ToDom0>(b)).collect();
        assert_eq!(got, [Err(3), Ok(sent)]);
    }
}
