//! Whose code a function is, by its name.

use serde::{Deserialize, Serialize};

/// Longest name kept; generic ones may be longer than a screen.
const NAME_BYTES: usize = 120;

/// Whose code it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// The device's driver.
    Driver,
    /// The back end and the rings.
    BackEnd,
    /// The domain's runtime, with its heap.
    Runtime,
    /// Everything that these use.
    Library,
}

impl Area {
    /// All, in the order of their names above.
    pub const ALL: [Self; 4] = [Self::Driver, Self::BackEnd, Self::Runtime, Self::Library];

    /// By the first of our crates that a demangled name mentions: `<a::B as c::D>::e` is
    /// `a`'s code.
    pub(super) fn of(name: &str) -> Self {
        let first = name.trim_start_matches(['<', '&', '(']);
        let krate = first.split("::").next().unwrap_or(first);
        match krate {
            "drivers_domain" | "virtio_drivers" | "disk" | "net" | "__domain_main" => Self::Driver,
            "blkback" | "netback" | "ring_proto" => Self::BackEnd,
            "domain_rt" | "talc" | "_start" => Self::Runtime,
            _ => Self::Library,
        }
    }
}

/// Whether a function's path starts with `prefix`, as a whole word: `a::b` is in `a`,
/// `ab::c` is not.
pub fn is_in(name: &str, prefix: &str) -> bool {
    let name = name.trim_start_matches(['<', '&', '(']);
    name.strip_prefix(prefix)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Demangled, without hash, cut to a length that a line can hold.
pub(super) fn readable(name: &str) -> String {
    let mut name = format!("{:#}", rustc_demangle::demangle(name));
    let end = (0..=NAME_BYTES.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    name.truncate(end.unwrap_or(0));
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_belongs_to_the_crate_that_it_is_written_in() {
        for (name, area) in [
            (
                "<drivers_domain::virtio::blk::VirtioBlk as blkback::device::BlockDevice>::submit",
                Area::Driver,
            ),
            ("blkback::server::Server<P>::step", Area::BackEnd),
            ("domain_rt::exec::idle", Area::Runtime),
            ("core::str::count::do_count_chars", Area::Library),
            ("disk_usage::main", Area::Library),
        ] {
            assert_eq!(Area::of(name), area, "{name}");
        }
    }

    #[test]
    fn a_prefix_ends_at_a_word() {
        assert!(is_in("<domain_rt::trap::Frame as core::fmt::Display>::fmt", "domain_rt::trap"));
        assert!(is_in("blkback::vbd::Vbd<P>::resume", "blkback::vbd::Vbd"));
        assert!(!is_in("domain_rt::trapdoor", "domain_rt::trap"));
    }
}
