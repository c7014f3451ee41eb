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
    /// Built with the feature `faults` of its package: it does wrong on order.
    pub has_faults: bool,
}

impl Builtin {
    /// A program that does as it should.
    const fn new(
        name: &'static str,
        package: &'static str,
        binary: &'static str,
        purpose: &'static str,
    ) -> Self {
        Self { name, package, binary, purpose, has_faults: false }
    }

    const fn with_faults(self) -> Self {
        Self { has_faults: true, ..self }
    }
}

/// The ring-0 core.
pub const CORE: Builtin =
    Builtin::new("core", "bulkhead-kernel", "bulkhead-core", "the ring-0 core");
/// The control domain.
pub const DOM0: Builtin = Builtin::new("dom0", "dom0", "dom0", "the control domain");

/// What answers with errors in place of a driver domain that is in quarantine: the driver
/// domain of disks, which Dom0 tells to leave its devices alone.
pub const REFUSER: Builtin = DISK;

const DISK: Builtin =
    Builtin::new("disk", "drivers-domain", "disk", "driver domain for virtio disks");

/// What a driver domain or a guest may have as its kernel.
pub const DOMAINS: &[Builtin] = &[
    DISK,
    Builtin::new(
        "disk-faults",
        "drivers-domain",
        "disk-faults",
        "driver domain for virtio disks that does wrong on order",
    )
    .with_faults(),
    Builtin::new(
        "disk-check",
        "guest-frontends",
        "disk-check",
        "lists an ext4 disk, writes and checks a pattern on another",
    ),
    Builtin::new(
        "disk-verify",
        "guest-frontends",
        "disk-verify",
        "puts its disks under a load that verifies itself",
    ),
    Builtin::new(
        "front-faults",
        "guest-frontends",
        "front-faults",
        "a disk front end that does wrong on order",
    ),
    Builtin::new(
        "bystander",
        "bulkhead-tests",
        "bystander",
        "keeps a pattern in its memory and finds out whether anybody touches it",
    ),
    Builtin::new("echo", "bulkhead-tests", "echo", "says back what is typed on its console"),
    Builtin::new("spin", "bulkhead-tests", "spin", "burns CPU time"),
    Builtin::new("nap", "bulkhead-tests", "nap", "measures how late it wakes"),
    Builtin::new(
        "hostile",
        "bulkhead-tests",
        "hostile",
        "tries to get at what is not its own, and prints TAP",
    ),
    Builtin::new(
        "hostile-front",
        "bulkhead-tests",
        "hostile-front",
        "a disk front end that breaks the rules of the ring",
    ),
    Builtin::new("rt-check", "bulkhead-tests", "rt-check", "checks the runtime of the domains"),
    Builtin::new(
        "patch-check",
        "bulkhead-tests",
        "patch-check",
        "changes its own code at breakpoints, as fault injection does",
    )
    .with_faults(),
    Builtin::new(
        "conformance",
        "bulkhead-tests",
        "conformance",
        "exercises the guest interface and prints TAP",
    ),
    Builtin::new(
        "control-check",
        "bulkhead-tests",
        "control-check",
        "a control domain that checks the control interface and prints TAP",
    ),
];

/// The program a set-up file means by a name.
pub fn find(name: &str) -> Option<&'static Builtin> {
    DOMAINS.iter().find(|b| b.name == name)
}
