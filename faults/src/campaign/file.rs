//! The campaign file as it is written: keys, types and defaults.

use crate::units::{Us, written_time};
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeMap;
use std::fmt;
use toml::Spanned;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub setup: String,
    pub driver: String,
    pub front: Option<String>,
    pub seed: Spanned<i64>,
    pub faults: Option<Spanned<u64>>,
    pub activated: Option<Spanned<u64>>,
    #[serde(default)]
    pub load: Load,
    #[serde(default)]
    pub deadlines: Deadlines,
    #[serde(default)]
    pub limits: Limits,
    pub models: Option<Spanned<BTreeMap<Spanned<String>, Spanned<i64>>>>,
    #[serde(default)]
    pub places: Places,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Load {
    pub guests: Vec<String>,
    pub depth: Spanned<u32>,
    pub block: Spanned<String>,
    pub reads_percent: Spanned<u32>,
    pub integrity: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            guests: Vec::new(),
            depth: unplaced(16),
            block: unplaced("16K".into()),
            reads_percent: unplaced(50),
            integrity: false,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Deadlines {
    pub hang: Spanned<Time>,
    pub answer: Spanned<Time>,
    pub overdue: Option<Spanned<Time>>,
    pub spread: Spanned<Time>,
    pub activation: Spanned<Time>,
    pub window: Spanned<Time>,
    pub settle: Spanned<Time>,
}

impl Default for Deadlines {
    fn default() -> Self {
        let ms = |ms| unplaced(Time(Us::from_ms(ms)));
        Self {
            hang: ms(100),
            answer: ms(150),
            overdue: None,
            spread: ms(50),
            activation: ms(200),
            window: ms(500),
            settle: ms(100),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Limits {
    pub faults: Option<Spanned<u64>>,
    pub time: Option<Spanned<Time>>,
    pub escapes: Option<Spanned<u64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Places {
    pub driver: u32,
    pub back_end: u32,
    pub runtime: u32,
    pub library: u32,
    pub only: Vec<String>,
    pub except: Vec<String>,
    pub executed: Option<String>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            driver: 4,
            back_end: 4,
            runtime: 2,
            library: 1,
            only: Vec::new(),
            except: Vec::new(),
            executed: None,
        }
    }
}

/// A value that is not in the file.
fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

/// A length of time with its unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub Us);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = String;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time like \"100ms\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
                Ok(text.to_owned())
            }
            // A number is taken only to say that its unit is missing.
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<String, E> {
                Ok(number.to_string())
            }
        }
        let text = from.deserialize_any(Text)?;
        written_time(&text).map(Self).map_err(de::Error::custom)
    }
}
