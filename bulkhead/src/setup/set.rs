//! `--set KEY=VALUE`: a line added to the set-up file from the command line.
//!
//! Each one becomes a line at the end of the text, so that errors can point at it as
//! they point at the file.

use super::error::{SetupError, Source};
use std::{ops::Range, path::Path};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Keys whose values are files; a relative one from the command line is meant from the
/// current directory, not from the set-up file's.
const FILES: &[&str] = &["image", "disk", "kernel", "modules", "ramdisk"];

/// Appends a line for each `KEY=VALUE`; gives the lines' ranges in the text.
pub(super) fn append(
    source: &mut Source,
    sets: &[String],
) -> Result<Vec<Range<usize>>, SetupError> {
    let mut lines = Vec::new();
    for set in sets {
        let line = line(set)?;
        if !source.text.ends_with('\n') {
            source.text.push('\n');
        }
        let start = source.text.len();
        source.text.push_str(&line);
        lines.push(start..source.text.len());
        source.text.push_str(" # from --set\n");
    }
    Ok(lines)
}

fn line(set: &str) -> Result<String, SetupError> {
    let Some((key, value)) = set.split_once('=') else {
        return Err(SetupError::plain(format!("`--set {set}` has no value"))
            .help("write it as KEY=VALUE, like --set guest.reader.memory=64M"));
    };
    let value = match DeValue::parse(value) {
        Ok(_) => value.to_owned(),
        Err(_) => toml::Value::String(absolute(key, value)).to_string(),
    };
    Ok(format!("{} = {value}", key.trim()))
}

fn absolute(key: &str, value: &str) -> String {
    let last = key.rsplit('.').next().unwrap_or(key).trim();
    let path = Path::new(value);
    let is_file = FILES.contains(&last) && (value.contains('/') || path.exists());
    match std::env::current_dir() {
        Ok(here) if is_file => here.join(path).to_string_lossy().into_owned(),
        _ => value.to_owned(),
    }
}

/// Merges a parsed line into the file's table: tables are joined, other values replaced.
pub(super) fn merge<'a>(into: &mut DeTable<'a>, from: DeTable<'a>) {
    for (key, value) in from {
        let both_tables = match into.get_mut(&key) {
            Some(old) => old.get_ref().is_table() && value.get_ref().is_table(),
            None => false,
        };
        if !both_tables {
            into.insert(key, value);
            continue;
        }
        let old = into.get_mut(&key).map(Spanned::get_mut);
        if let (Some(DeValue::Table(old)), DeValue::Table(new)) = (old, value.into_inner()) {
            merge(old, new);
        }
    }
}
