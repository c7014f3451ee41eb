//! Quantities as a campaign file and a log write them: times with their unit, addresses
//! and bytes in hexadecimal, seeds, hashes.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use std::fmt;
use std::time::Duration;

/// A length of time in microseconds. In a file: `"500us"`, `"100ms"`, `"2s"`, `"90min"`,
/// `"8h"`; in a log: a plain number in a field that ends in `_us`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Us(u64);

impl Us {
    /// That many microseconds.
    pub const fn new(us: u64) -> Self {
        Self(us)
    }
    /// That many milliseconds.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms * 1000)
    }
    /// As a number.
    pub const fn number(self) -> u64 {
        self.0
    }
    /// As a number of milliseconds with a fraction.
    pub fn ms(self) -> f64 {
        self.0 as f64 / 1000.0
    }
    /// The sum, or the longest time there is.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
    /// From `earlier` to this, or nothing if that is not earlier.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }
}

impl From<Us> for Duration {
    fn from(us: Us) -> Self {
        Self::from_micros(us.0)
    }
}

impl fmt::Display for Us {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            us @ 0..1_000 => write!(f, "{us} us"),
            us @ 1_000..10_000 => write!(f, "{:.2} ms", us as f64 / 1e3),
            us @ 10_000..100_000 => write!(f, "{:.1} ms", us as f64 / 1e3),
            us @ 100_000..1_000_000 => write!(f, "{:.0} ms", us as f64 / 1e3),
            us @ 1_000_000..10_000_000 => write!(f, "{:.2} s", us as f64 / 1e6),
            us => write!(f, "{:.0} s", us as f64 / 1e6),
        }
    }
}

const TIMES: &[(&str, u64)] =
    &[("us", 1), ("ms", 1_000), ("s", 1_000_000), ("min", 60_000_000), ("h", 3_600_000_000)];

/// Reads a time with its unit.
pub(crate) fn written_time(text: &str) -> Result<Us, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = TIMES.iter().find(|(name, _)| *name == unit.trim());
    let number = number.replace('_', "").parse::<u64>().ok();
    number
        .zip(scale)
        .and_then(|(number, (_, scale))| number.checked_mul(*scale))
        .map(Us)
        .ok_or_else(|| format!("`{text}` is no time; write it like \"500us\", \"100ms\" or \"2h\""))
}

/// What a campaign's numbers are drawn from: 0 to 2^63 - 1, which is what TOML can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Seed(u64);

impl Seed {
    /// The greatest one.
    pub const MAX: u64 = i64::MAX as u64;

    /// `None` if it is greater than [`Seed::MAX`].
    pub const fn new(number: u64) -> Option<Self> {
        if number <= Self::MAX { Some(Self(number)) } else { None }
    }
    /// As a number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(from)?;
        Self::new(number).ok_or_else(|| {
            de::Error::custom(format!("seed {number} is out of range (0 to 2^63 - 1)"))
        })
    }
}

/// A linear address in the driver domain. Written `0xffffffff80100000`: JSON's numbers
/// lose bits in most readers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Va(u64);

impl Va {
    /// That address.
    pub const fn new(va: u64) -> Self {
        Self(va)
    }
    /// As a number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Va {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Va {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Va {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Va {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| {
                de::Error::custom(format!("`{text}` is no address like 0xffffffff80100000"))
            })
    }
}

/// Machine code. Written in hexadecimal.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(#[serde(with = "hex::serde")] pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

/// A SHA-256. Written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hash(#[serde(with = "hex::serde")] [u8; 32]);

impl Hash {
    /// That of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
    /// Its first digits: enough for a person to tell two apart.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_need_their_unit_and_do_not_overflow() {
        assert_eq!(written_time("100ms"), Ok(Us(100_000)));
        assert_eq!(written_time(" 1_500 us"), Ok(Us(1_500)));
        assert_eq!(written_time("2h"), Ok(Us(7_200_000_000)));
        for wrong in ["100", "", "ms", "-1ms", "1.5s", "99999999999999h"] {
            assert!(written_time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_keeps_all_its_bits_in_json() {
        let va = Va::new(0xffff_ffff_8010_0001);
        let text = serde_json::to_string(&va).unwrap();
        assert_eq!(text, "\"0xffffffff80100001\"");
        assert_eq!(serde_json::from_str::<Va>(&text).unwrap(), va);
        assert!(serde_json::from_str::<Va>("\"12\"").is_err());
    }

    #[test]
    fn a_seed_that_toml_cannot_write_is_refused() {
        assert!(Seed::new(Seed::MAX).is_some());
        assert!(Seed::new(Seed::MAX + 1).is_none());
        assert!(serde_json::from_str::<Seed>("9223372036854775808").is_err());
    }
}
