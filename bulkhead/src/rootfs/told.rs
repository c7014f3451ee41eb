//! Reads what mmdebstrap prints (`--verbose`: its own lines, apt's and dpkg's): how far it
//! has come, and why it failed.

/// Steps that each package takes: it is fetched, unpacked and set up.
pub(super) const STEPS: u64 = 3;

/// What one line means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Something else is being done now. Lists are fetched like packages, but are none.
    Phase { name: &'static str, fetching_lists: bool },
    /// One of the [`STEPS`] of a package is done.
    Step,
}

/// mmdebstrap's lines, as they begin, and what they mean for a person. In the first, lists
/// are fetched.
const PHASES: &[(&str, &str)] = &[
    ("I: running apt-get update", "reading the package lists"),
    ("I: downloading packages", "the base system: fetching"),
    ("I: extracting archives", "the base system: unpacking"),
    ("I: installing essential", "the base system: setting up"),
    ("I: installing remaining", "further packages"),
    ("I: running --customize-hook", "set-up for a guest"),
    ("I: running special hook", "set-up for a guest"),
    ("I: creating tarball", "laying out the image"),
];

/// What a line tells. `fetching_lists` while apt fetches lists rather than packages.
pub(super) fn read(line: &str, fetching_lists: bool) -> Option<Told> {
    if let Some(at) = PHASES.iter().position(|(begin, _)| line.starts_with(begin)) {
        return Some(Told::Phase { name: PHASES[at].1, fetching_lists: at == 0 });
    }
    let is_step = line.starts_with("Unpacking ")
        || line.starts_with("Setting up ")
        || (line.starts_with("Get:") && !fetching_lists);
    is_step.then_some(Told::Step)
}

/// Why a build failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    NoNetwork,
    NoSpace,
    NoKeys,
    /// An ordinary user, and the host does not let such a one do it.
    NotAllowed,
    Other,
}

/// What lines contain that betray a cause. The first that is found counts: a full disk
/// makes downloads fail too.
const SIGNS: &[(Cause, &[&str])] = &[
    (Cause::NoSpace, &["No space left on device", "Could not allocate block in ext2"]),
    (Cause::NoKeys, &["NO_PUBKEY", "is not signed"]),
    (
        Cause::NotAllowed,
        &["unable to pick chroot mode", "cannot use unshare", "newuidmap", "/etc/subuid"],
    ),
    (
        Cause::NoNetwork,
        &[
            "Temporary failure resolving",
            "Could not resolve",
            "Could not connect",
            "Unable to connect",
            "Cannot initiate the connection",
            "Connection failed",
            "Connection timed out",
            "Network is unreachable",
            "Failed to fetch",
            "The repository '",
        ],
    ),
];

/// The cause of a failure, from everything that was printed.
pub(super) fn cause(printed: &[String]) -> Cause {
    let has = |sign: &&str| printed.iter().any(|line| line.contains(sign));
    SIGNS.iter().find(|(_, signs)| signs.iter().any(has)).map_or(Cause::Other, |(cause, _)| *cause)
}

/// The lines that say what went wrong; without any, the last ones.
pub(super) fn gist(printed: &[String]) -> String {
    let is_error = |line: &&String| {
        ["E: ", "Err:", "mke2fs: ", "tar: ", "dpkg: error"].iter().any(|e| line.starts_with(e))
    };
    let errors: Vec<_> = printed.iter().filter(is_error).take(5).map(String::as_str).collect();
    match errors.is_empty() {
        false => errors.join("\n"),
        true => printed[printed.len().saturating_sub(5)..].join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn lists_are_not_packages_and_each_package_takes_three_steps() {
        let text = "Get:1 http://m bookworm InRelease [151 kB]";
        assert_eq!(read(text, true), None);
        assert_eq!(read(text, false), Some(Told::Step));
        assert_eq!(read("Unpacking libc6:amd64 (2.36-9) ...", false), Some(Told::Step));
        assert_eq!(read("Setting up libc6:amd64 (2.36-9) ...", false), Some(Told::Step));
        assert_eq!(read("Preparing to unpack .../libc6.deb ...", false), None);
        let phase = |name, fetching_lists| Some(Told::Phase { name, fetching_lists });
        let further = phase("further packages", false);
        assert_eq!(read("I: installing remaining packages inside the chroot...", false), further);
        let lists = phase("reading the package lists", true);
        assert_eq!(read("I: running apt-get update...", false), lists);
    }

    #[test]
    fn tells_a_full_disk_from_a_missing_network() {
        let offline =
            "Err:1 http://m bookworm InRelease\n  Temporary failure resolving 'm'\nE: apt failed";
        assert_eq!(cause(&lines(offline)), Cause::NoNetwork);
        let full =
            "E: Failed to fetch http://m/x.deb\nE: write error (28: No space left on device)\n";
        assert_eq!(cause(&lines(full)), Cause::NoSpace);
        assert_eq!(cause(&lines("E: unable to pick chroot mode automatically")), Cause::NotAllowed);
        assert_eq!(cause(&lines("E: no idea")), Cause::Other);
        assert_eq!(gist(&lines(offline)), "Err:1 http://m bookworm InRelease\nE: apt failed");
    }

    #[test]
    fn without_an_error_line_the_last_lines_have_to_do() {
        assert_eq!(gist(&lines("1\n2\n3\n4\n5\n6")), "2\n3\n4\n5\n6");
        assert_eq!(gist(&[]), "");
    }
}
