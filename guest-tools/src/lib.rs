//! What runs inside a Linux guest before and beside its own programs. It is built as
//! static programs for the guest's kernel, and the host tool packs them into the
//! initramfs that it makes; `/init` there finds the root disk and gives way to the
//! guest's own first process, and the agent runs commands that come over the second
//! console. It knows nothing of Bulkhead's core or of Dom0: it sees
//! Linux, and would do the same on any other machine.
#![forbid(unsafe_code)]

pub mod agent;
pub mod boot;
pub mod cmdline;
pub mod device;
pub mod modules;
pub mod root;
