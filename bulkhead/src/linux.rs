//! What Linux guests are told on their command lines unless the set-up says otherwise.

/// Most bytes of a command line: the start-of-day page has room for these and a NUL.
pub const MOST_CMDLINE: usize = 1023;

/// For every Linux guest: its console is the one it has, and instructions are not
/// rewritten for one CPU, which costs thousands of hypercalls at the start (ABI notes 0.8).
/// A panic ends the guest at once; nobody could look at it.
const ALWAYS: &str = "console=hvc0 noreplace-smp panic=-1 quiet";
/// For guests with disks.
const WITH_DISK: &str = "root=/dev/xvda rw";

/// The whole command line. The user's words come last: of two words with one meaning
/// Linux takes the later one.
pub fn cmdline(has_disks: bool, users: &str) -> String {
    let disk = if has_disks { WITH_DISK } else { "" };
    let parts = [ALWAYS, disk, users.trim()];
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Types of the root file system that a command line names.
pub fn root_types(cmdline: &str) -> Vec<String> {
    let last = cmdline.split_whitespace().filter_map(|w| w.strip_prefix("rootfstype=")).next_back();
    let types = last.into_iter().flat_map(|types| types.split(','));
    types.filter(|t| !t.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_words_come_after_the_defaults() {
        let line = cmdline(true, " root=/dev/xvdb loglevel=7 ");
        assert!(line.starts_with("console=hvc0 "));
        let roots: Vec<_> = line.split(' ').filter(|w| w.starts_with("root=")).collect();
        assert_eq!(roots, ["root=/dev/xvda", "root=/dev/xvdb"]);
        assert!(line.ends_with("loglevel=7") && !line.contains("  "));
        assert!(!cmdline(false, "").contains("root="));
    }

    #[test]
    fn the_last_list_of_types_counts() {
        assert_eq!(root_types("rootfstype=xfs rw rootfstype=btrfs,,ext4"), ["btrfs", "ext4"]);
        assert!(root_types("rw").is_empty());
    }
}
