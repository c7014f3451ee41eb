//! What a guest's kernel said about its disks. Pure text.

use serde::Serialize;

/// What Linux says when a request has failed or has not come back, in lower case: block layer,
/// file system, watchdogs, and what xen-blkfront says when it gives a disk up.
const BAD: &[&str] = &[
    "i/o error",
    "critical medium error",
    "critical target error",
    "blk_update_request",
    "ext4-fs error",
    "ext4-fs warning",
    "jbd2: error",
    "aborting journal",
    "remounting filesystem read-only",
    "blocked for more than",
    "soft lockup",
    "hung task",
    "disabled for further use",
    "references no pending request",
    "has not unmapped grant",
    "bug:",
    "oops",
    "call trace",
    "kernel panic",
];

/// The lines that came while the load ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dmesg {
    /// Those that tell of a request that failed or hung.
    pub errors: Vec<String>,
    /// Other warnings and errors: they may have nothing to do with disks.
    pub others: Vec<String>,
}

/// Sorts what the kernel said, all of it and its warnings alone, the latter before and after.
pub fn sort(all: &str, warnings_before: &str, warnings_after: &str) -> Dmesg {
    let is_bad = |line: &&str| {
        let line = line.to_lowercase();
        BAD.iter().any(|bad| line.contains(bad))
    };
    let errors: Vec<String> = all.lines().filter(is_bad).map(String::from).collect();
    let old: Vec<&str> = warnings_before.lines().collect();
    let is_other = |line: &&str| !old.contains(line) && !is_bad(line);
    let others = warnings_after.lines().filter(is_other).map(String::from).collect();
    Dmesg { errors, others }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_request_is_an_error_and_a_new_warning_is_only_told() {
        let before = "[    1.6] PMU not available";
        let after = "[    1.6] PMU not available\n[   70.0] perf: interrupt took too long\n\
                     [   71.0] I/O error, dev xvdb, sector 8 op 0x1:(WRITE)";
        let all = format!("{after}\n[ 12.0] EXT4-fs error (device xvda): ext4_lookup\n[ 2.0] fine");
        let found = sort(&all, before, after);
        assert_eq!(found.errors.len(), 2, "{found:?}");
        assert_eq!(found.others, ["[   70.0] perf: interrupt took too long"]);
        assert_eq!(sort(before, before, before), Dmesg::default());
    }
}
