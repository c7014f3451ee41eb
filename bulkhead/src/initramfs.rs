//! The initramfs that the tool makes for a Linux guest: a first process that finds the
//! root disk, and the modules of that kernel which it takes to reach it. Knows nothing of
//! set-ups; what the programs in it do is `guest-tools`'s.

mod cpio;
mod modules;

pub use modules::{ModulesError, Tree};

use cpio::{Cpio, Device};

/// Modules for every guest, in the order in which they are loaded; each after those that it
/// needs. What the kernel has built in is left out.
const MODULES: [Module; 5] = [
    // ext4 asks for it by the name of the algorithm, which takes a modprobe to resolve.
    Module { name: "crc32c_generic", is_required: false },
    Module { name: "crc32c_intel", is_required: false },
    Module { name: "ext4", is_required: false },
    Module { name: "xen_blkfront", is_required: true },
    Module { name: "xen_netfront", is_required: false },
];

struct Module {
    name: &'static str,
    /// Without it no root disk can appear.
    is_required: bool,
}

/// The programs that it carries.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `/init`.
    pub init: Vec<u8>,
    /// `/agent`, which goes on in the guest after the start.
    pub agent: Option<Vec<u8>>,
}

/// Makes one, as an uncompressed cpio archive: the guest would take longer to undo a
/// compression than it takes to load the few MiB.
///
/// `tree` has the kernel's modules, None if they are not known; then the kernel must have
/// the front ends built in. `types` are file systems of the root disk, where the command
/// line names some.
///
/// # Errors
/// A module that is needed and not there, or damaged.
pub fn build(
    programs: &Programs,
    tree: Option<&Tree>,
    types: &[String],
) -> Result<Vec<u8>, ModulesError> {
    let mut archive = Cpio::default();
    for folder in ["dev", "modules", "proc", "root", "sys"] {
        archive.folder(folder);
    }
    // The kernel opens it for /init before anything can be mounted.
    archive.node("dev/console", Device { major: 5, minor: 1 });
    archive.program("init", &programs.init);
    if let Some(agent) = &programs.agent {
        archive.program("agent", agent);
    }
    if let Some(tree) = tree {
        for (at, (name, bytes)) in in_order(tree, types)?.into_iter().enumerate() {
            archive.file(&format!("modules/{at:02}-{name}.ko"), &bytes);
        }
    }
    Ok(archive.finish())
}

fn in_order(tree: &Tree, types: &[String]) -> Result<Vec<(String, Vec<u8>)>, ModulesError> {
    let mut order = modules::Order::new(tree);
    for module in &MODULES {
        order.add(module.name, module.is_required)?;
    }
    for kind in types {
        order.add(kind, false)?;
    }
    Ok(order.finish())
}

/// Bytes that a ramdisk becomes in the guest's memory, beside itself. One that cannot be
/// read counts as itself: it may be something that the guest knows and we do not.
pub fn unpacked_bytes(ramdisk: &[u8]) -> u64 {
    cpio::unpacked_bytes(ramdisk)
}

#[cfg(test)]
mod tests;
