//! How a run went: counted, and said in one line that programs can read.

use super::gaps::Gaps;
use super::table::Kind;
use alloc::string::String;
use core::fmt;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was counted on one disk.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl fmt::Display for Counts {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let all = [$((stringify!($name), self.$name)),*];
                write_all(f, &all)
            }
        }

        impl Counts {
            /// Reads the words `name=number` of a line; others are passed over.
            pub fn parse(line: &str) -> Self {
                let mut counts = Self::default();
                for (name, value) in fields(line) {
                    let Ok(value) = value.parse() else { continue };
                    match name {
                        $(stringify!($name) => counts.$name = value,)*
                        _ => {}
                    }
                }
                counts
            }
        }
    };
}

counters! {
    /// Requests answered.
    ops,
    /// Writes among them.
    writes,
    /// Reads among them.
    reads,
    /// Flushes among them.
    flushes,
    /// Bytes written and read by those that went well.
    bytes,
    /// Requests answered with an error.
    errors,
    /// Blocks found lost, see [`Kind::Lost`]; the next ones likewise.
    lost,
    /// Stale.
    stale,
    /// Torn.
    torn,
    /// Misdirected.
    misdirected,
    /// Unexpected.
    unexpected,
    /// Damaged.
    damaged,
    /// Reads that the front end refused by its own checksums.
    corrupt,
    /// Blocks in them that held what they must not; they do not count above.
    caught,
    /// Times the back end broke the protocol.
    violations,
    /// New connections after that; without one the run has ended.
    reconnects,
    /// Requests that were not answered when patience was at its end.
    stalled,
}

fn write_all(f: &mut fmt::Formatter<'_>, all: &[(&str, u64)]) -> fmt::Result {
    for (i, (name, value)) in all.iter().enumerate() {
        let blank = if i == 0 { "" } else { " " };
        write!(f, "{blank}{name}={value}")?;
    }
    Ok(())
}

/// The words `name=value` of a line.
pub fn fields(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split_whitespace().filter_map(|word| word.split_once('='))
}

impl Counts {
    /// Counts something wrong.
    pub fn count(&mut self, kind: &Kind) {
        let counter = match kind {
            Kind::Lost(_) => &mut self.lost,
            Kind::Stale(_) => &mut self.stale,
            Kind::Torn(..) => &mut self.torn,
            Kind::Misdirected(_) => &mut self.misdirected,
            Kind::Unexpected(_) => &mut self.unexpected,
            Kind::Damaged => &mut self.damaged,
        };
        *counter += 1;
    }

    /// What a user may complain about, as words of a line: what did not happen is left out.
    pub fn troubles(&self) -> impl fmt::Display {
        struct Troubles(Counts);
        impl fmt::Display for Troubles {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let counts = &self.0;
                let all = [
                    ("errors", counts.errors),
                    ("lost", counts.lost),
                    ("stale", counts.stale),
                    ("torn", counts.torn),
                    ("misdirected", counts.misdirected),
                    ("unexpected", counts.unexpected),
                    ("damaged", counts.damaged),
                    ("corrupt", counts.corrupt),
                    ("caught", counts.caught),
                    ("violations", counts.violations),
                    ("reconnects", counts.reconnects),
                    ("stalled", counts.stalled),
                ];
                let happened = all.into_iter().filter(|(_, count)| *count > 0);
                happened.into_iter().try_for_each(|(name, count)| write!(f, " {name}={count}"))
            }
        }
        Troubles(*self)
    }

    /// Blocks that held what they must not, and were given to whoever read them.
    pub fn wrong(&self) -> u64 {
        self.lost + self.stale + self.torn + self.misdirected + self.unexpected + self.damaged
    }

    /// Whether a user has anything to complain about.
    pub fn is_all_well(&self) -> bool {
        let lost = self.violations.saturating_sub(self.reconnects);
        let failures = self.errors + self.corrupt + lost + self.stalled;
        self.wrong() + failures == 0
    }
}

/// The end of a run on one disk.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Its name.
    pub disk: String,
    /// Blocks that were used.
    pub blocks: u64,
    /// What was counted.
    pub counts: Counts,
    /// How long the disk was silent.
    pub gaps: Gaps,
    /// How long it took, ns.
    pub elapsed_ns: u64,
    /// Of the table at the end of the disk, once that is written.
    pub digest: Option<u64>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk={} blocks={} {} ", self.disk, self.blocks, self.counts)?;
        write_gaps(f, &self.gaps)?;
        write!(f, " elapsed_ms={}", self.elapsed_ns / 1_000_000)?;
        match self.digest {
            Some(digest) => write!(f, " digest={digest:016x}"),
            None => f.write_str(" digest=none"),
        }
    }
}

fn write_gaps(f: &mut fmt::Formatter<'_>, gaps: &Gaps) -> fmt::Result {
    write_all(
        f,
        &[
            ("longest_gap_us", gaps.longest_us(0)),
            ("long_gaps", gaps.long_ones()),
            ("gap_p50_us", gaps.quantile_us(50)),
            ("gap_p90_us", gaps.quantile_us(90)),
            ("gap_p99_us", gaps.quantile_us(99)),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn the_line_says_every_counter_and_is_read_back() {
        let counts = Counts { ops: 7, lost: 1, stalled: 3, bytes: 1 << 40, ..Counts::default() };
        let summary = Summary {
            disk: "xvdb".into(),
            blocks: 9,
            counts,
            gaps: Gaps::default(),
            elapsed_ns: 5_000_000,
            digest: Some(0xab),
        };
        let line = summary.to_string();
        assert!(line.starts_with("disk=xvdb blocks=9 ops=7 writes=0 "), "{line}");
        assert!(line.ends_with("elapsed_ms=5 digest=00000000000000ab"), "{line}");
        assert_eq!(Counts::parse(&line), counts);
        assert_eq!(counts.troubles().to_string(), " lost=1 stalled=3");
        assert_eq!(counts.wrong(), 1);
        assert!(!counts.is_all_well());
    }
}
