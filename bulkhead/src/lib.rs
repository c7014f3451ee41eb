//! The host tool as a library: everything that `bulkhead` does on the host, so that
//! tests can do the same. It reads set-up files, builds and packs what boots, starts
//! and watches the machine, and judges how a run ended. It knows nothing of how the
//! core or a domain works inside: it meets them through the boot archive
//! ([`bulkhead_abi::archive`]) and the control link ([`bulkhead_link`]) alone.
#![forbid(unsafe_code)]

pub mod accel;
pub mod agents;
pub mod archive;
pub mod artifacts;
pub mod attach;
pub mod builtin;
pub mod cache;
pub mod check;
pub mod console;
pub mod demo;
pub mod distro;
pub mod exec;
pub mod images;
pub mod initramfs;
pub mod inject;
pub mod kernel_image;
pub mod kernels;
pub mod lifecycle;
pub mod link;
pub mod linux;
pub mod machine;
pub mod needs;
pub mod plan;
pub mod progress;
pub mod qemu;
pub mod raw;
pub mod relay;
pub mod remote;
pub mod report;
pub mod restarts;
pub mod rootfs;
pub mod run;
pub mod session;
pub mod setup;
pub mod size;
pub mod solo;
pub mod sparse;
pub mod terminal;
pub mod update;
pub mod watch;
pub mod wire;
