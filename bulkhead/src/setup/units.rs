//! Sizes and times as a set-up file writes them: `"64M"`, `"5ms"`.

use serde::{Deserialize, Deserializer, de};
use std::{fmt, str::FromStr, time::Duration};

/// A number of bytes. Written with K, M, G or T (powers of 1024); a bare number could
/// mean bytes or MiB, so it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }
    pub const fn bytes(self) -> u64 {
        self.0
    }
    pub const fn kib(self) -> u64 {
        self.0 >> 10
    }
    /// Rounded up.
    pub const fn mib(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
    /// Sectors of 512 bytes, rounded down.
    pub const fn sectors(self) -> u64 {
        self.0 / 512
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

/// A length of time in ns. Written with ns, us, ms or s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(u64);

impl Span {
    pub const fn ns(self) -> u64 {
        self.0
    }
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_')?;
    let number: u64 = text[..digits].replace('_', "").parse().ok()?;
    let unit = text[digits..].trim();
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*scale)
}

const SIZES: &[(&str, u64)] = &[
    ("K", 1 << 10),
    ("KiB", 1 << 10),
    ("M", 1 << 20),
    ("MiB", 1 << 20),
    ("G", 1 << 30),
    ("GiB", 1 << 30),
    ("T", 1 << 40),
    ("TiB", 1 << 40),
];
const TIMES: &[(&str, u64)] = &[("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let told = || format!("`{text}` is no size; write it like \"64M\", \"512K\" or \"2G\"");
        scaled(text, SIZES).map(Self).ok_or_else(told)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = unit_text(from, "a size like \"64M\"")?;
        text.parse().map_err(de::Error::custom)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let told = || format!("`{text}` is no time; write it like \"500us\", \"5ms\" or \"1s\"");
        scaled(text, TIMES).map(Self).ok_or_else(told)
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Self::from_nanos(span.0)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = unit_text(from, "a time like \"5ms\"")?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Takes a string, and a number only to say that its unit is missing.
fn unit_text<'de, D: Deserializer<'de>>(
    from: D,
    expected: &'static str,
) -> Result<String, D::Error> {
    struct Text(&'static str);
    impl de::Visitor<'_> for Text {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }
    from.deserialize_any(Text(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_need_their_unit_and_do_not_overflow() {
        assert_eq!(scaled("64M", SIZES), Some(64 << 20));
        assert_eq!(scaled(" 1_024 KiB ", SIZES), Some(1 << 20));
        for wrong in ["64", "", "M", "-1M", "64m", "1.5G", "99999999999T"] {
            assert_eq!(scaled(wrong, SIZES), None, "{wrong}");
        }
        assert_eq!(scaled("5ms", TIMES), Some(5_000_000));
    }

    #[test]
    fn sizes_are_shown_in_their_largest_whole_unit() {
        assert_eq!(Size(64 << 20).to_string(), "64 MiB");
        assert_eq!(Size(1536 << 20).to_string(), "1536 MiB");
        assert_eq!(Size(513).to_string(), "513 bytes");
    }
}
