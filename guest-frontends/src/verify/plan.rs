//! What a run is asked to do, from the words of a command line.

use super::load::Mix;
use alloc::format;
use alloc::string::String;
use core::str::FromStr;

/// What to do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Makes the load; also marks the blocks as this run's.
    pub seed: u64,
    /// Most requests in flight.
    pub depth: usize,
    /// Most blocks of a request.
    pub size: u64,
    /// Fewest blocks of a request of the mixed load.
    pub least: u64,
    /// How the requests are divided.
    pub mix: Mix,
    /// Only so many blocks of the disk; all that are not for the table if there are fewer.
    pub blocks: u64,
    /// Write every block once before anything else.
    pub fill: bool,
    /// Rounds of load: as many requests as there are blocks, then all is read back.
    pub rounds: u64,
    /// No new load after so many ns.
    pub time_ns: u64,
    /// Between lines of status, ns.
    pub status_ns: u64,
    /// Rest before each round, ns.
    pub pace_ns: u64,
    /// At the end, how long to wait for a disk that does not answer, ns.
    pub patience_ns: u64,
    /// The front end keeps a checksum of every block.
    pub integrity: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            seed: 1,
            depth: 16,
            size: 8,
            least: 1,
            mix: Mix::default(),
            blocks: u64::MAX,
            fill: true,
            rounds: u64::MAX,
            time_ns: u64::MAX,
            status_ns: 1_000_000_000,
            pace_ns: 0,
            patience_ns: 30_000_000_000,
            integrity: false,
        }
    }
}

impl Plan {
    /// Reads a plan; `option` gives the value of a word `name=value`. What is not there is
    /// as in the default.
    ///
    /// # Errors
    /// The word that makes no sense, and what is meant.
    pub fn parse<'a>(option: impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        let default = Self::default();
        let number = |name, least, most, otherwise| match option(name) {
            Some(value) => within(name, value, least, most),
            None => Ok(otherwise),
        };
        let ns = |name, unit: u64, least, otherwise| match option(name) {
            Some(value) => Ok(within(name, value, least, u64::MAX / unit)? * unit),
            None => Ok::<_, String>(otherwise),
        };
        let switch = |name, otherwise| match option(name) {
            None => Ok(otherwise),
            Some("1" | "on") => Ok(true),
            Some("0" | "off") => Ok(false),
            Some(other) => Err(format!("{name}={other}: 1 or 0 is meant")),
        };
        let size = number("size", 1, 32, default.size)?;
        Ok(Self {
            seed: number("seed", 0, u64::MAX, default.seed)?,
            depth: number("depth", 1, 128, default.depth as u64)? as usize,
            size,
            least: number("least", 1, size, default.least)?,
            mix: option("mix").map_or(Ok(default.mix), mix)?,
            blocks: number("blocks", 1, u64::MAX, default.blocks)?,
            fill: switch("fill", default.fill)?,
            rounds: number("rounds", 0, u64::MAX, default.rounds)?,
            time_ns: ns("seconds", 1_000_000_000, 0, default.time_ns)?,
            status_ns: ns("status", 1_000_000, 1, default.status_ns)?,
            pace_ns: ns("pace", 1_000_000, 0, default.pace_ns)?,
            patience_ns: ns("patience", 1_000_000_000, 1, default.patience_ns)?,
            integrity: switch("integrity", default.integrity)?,
        })
    }
}

fn within(name: &str, value: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = value.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{name}={value}: a number from {least} to {most} is meant"))
}

fn mix(value: &str) -> Result<Mix, String> {
    let part = |part: Option<&str>| part.and_then(|part| u8::from_str(part).ok());
    let mut parts = value.split(':');
    let (writes, reads) = (part(parts.next()), part(parts.next()));
    let flushes = part(parts.next());
    match (writes, reads, flushes, parts.next()) {
        (Some(writes), Some(reads), Some(flushes), None)
            if u32::from(writes) + u32::from(reads) + u32::from(flushes) == 100 =>
        {
            Ok(Mix { writes, reads })
        }
        _ => Err(format!("mix={value}: WRITES:READS:FLUSHES is meant, which make 100")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &'static str) -> Result<Plan, String> {
        let find = |name: &str| {
            let mut words = line.split_whitespace().filter_map(|word| word.split_once('='));
            words.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        Plan::parse(find)
    }

    #[test]
    fn every_word_means_what_it_says() {
        assert_eq!(parse(""), Ok(Plan::default()));
        let line = "seed=9 depth=4 size=2 least=2 mix=70:29:1 blocks=64 fill=off rounds=3 seconds=5 \
                    status=100 pace=7 patience=2 integrity=1";
        let expected = Plan {
            seed: 9,
            depth: 4,
            size: 2,
            least: 2,
            mix: Mix { writes: 70, reads: 29 },
            blocks: 64,
            fill: false,
            rounds: 3,
            time_ns: 5_000_000_000,
            status_ns: 100_000_000,
            pace_ns: 7_000_000,
            patience_ns: 2_000_000_000,
            integrity: true,
        };
        assert_eq!(parse(line), Ok(expected));
    }

    #[test]
    fn a_word_that_makes_no_sense_is_named_with_what_is_meant() {
        for (word, meant) in [
            ("seed=x", "a number"),
            ("depth=0", "from 1 to 128"),
            ("size=33", "from 1 to 32"),
            ("least=9", "from 1 to 8"),
            ("mix=50:50", "make 100"),
            ("mix=50:50:1", "make 100"),
            ("mix=50:50:0:0", "make 100"),
            ("seconds=99999999999999999999", "a number"),
            ("status=0", "from 1"),
            ("fill=yes", "1 or 0"),
        ] {
            let error = parse(word).unwrap_err();
            assert!(error.starts_with(word) && error.contains(meant), "{error}");
        }
    }
}
