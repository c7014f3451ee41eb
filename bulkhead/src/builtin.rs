//! The programs of this workspace that run on the machine, by the names that set-up
//! files and the build use for them.

/// One program: which package builds it, and what it is for.
#[derive(Debug, PartialEq, Eq)]
pub struct Builtin {
    /// Its name in a set-up file.
    pub name: &'static str,
    pub package: &'static str,
    pub binary: &'static str,
    pub purpose: &'static str,
}

/// The ring-0 core.
pub const CORE: Builtin = Builtin {
    name: "core",
    package: "bulkhead-kernel",
    binary: "bulkhead-core",
    purpose: "the ring-0 core",
};
/// The control domain.
pub const DOM0: Builtin =
    Builtin { name: "dom0", package: "dom0", binary: "dom0", purpose: "the control domain" };

/// What a driver domain or a guest may have as its kernel.
pub const DOMAINS: &[Builtin] = &[
    Builtin {
        name: "disk",
        package: "drivers-domain",
        binary: "disk",
        purpose: "driver domain for virtio disks",
    },
    Builtin {
        name: "disk-check",
        package: "guest-frontends",
        binary: "disk-check",
        purpose: "lists an ext4 disk, writes and checks a pattern on another",
    },
    Builtin {
        name: "disk-verify",
        package: "guest-frontends",
        binary: "disk-verify",
        purpose: "puts its disks under a load that verifies itself",
    },
    Builtin {
        name: "echo",
        package: "bulkhead-tests",
        binary: "echo",
        purpose: "says back what is typed on its console",
    },
    Builtin { name: "spin", package: "bulkhead-tests", binary: "spin", purpose: "burns CPU time" },
    Builtin {
        name: "nap",
        package: "bulkhead-tests",
        binary: "nap",
        purpose: "measures how late it wakes",
    },
    Builtin {
        name: "hostile",
        package: "bulkhead-tests",
        binary: "hostile",
        purpose: "tries to get at what is not its own, and prints TAP",
    },
    Builtin {
        name: "hostile-front",
        package: "bulkhead-tests",
        binary: "hostile-front",
        purpose: "a disk front end that breaks the rules of the ring",
    },
    Builtin {
        name: "rt-check",
        package: "bulkhead-tests",
        binary: "rt-check",
        purpose: "checks the runtime of the domains",
    },
    Builtin {
        name: "conformance",
        package: "bulkhead-tests",
        binary: "conformance",
        purpose: "exercises the guest interface and prints TAP",
    },
    Builtin {
        name: "control-check",
        package: "bulkhead-tests",
        binary: "control-check",
        purpose: "a control domain that checks the control interface and prints TAP",
    },
];

/// The program a set-up file means by a name.
pub fn find(name: &str) -> Option<&'static Builtin> {
    DOMAINS.iter().find(|b| b.name == name)
}
