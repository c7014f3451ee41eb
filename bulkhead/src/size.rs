//! Counts the Rust lines of the ring-0 core: no tests, no comments, no blank lines.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Ring 0 stays below this many lines.
pub const LIMIT: usize = 10_000;

/// Lines of each file of a source tree, largest first. `tests.rs` and folders named
/// `tests` are left out.
///
/// # Errors
/// If the tree cannot be read.
pub fn count_tree(root: &Path) -> io::Result<Vec<(PathBuf, usize)>> {
    let (mut counts, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            match (path.is_dir(), name) {
                (_, "tests" | "tests.rs") => {}
                (true, _) => folders.push(path),
                (false, name) if name.ends_with(".rs") => {
                    let lines = count(&fs::read_to_string(&path)?);
                    counts.push((path, lines));
                }
                _ => {}
            }
        }
    }
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    Ok(counts)
}

/// Lines of Rust code in a file.
pub fn count(source: &str) -> usize {
    let code = without_tests(&without_comments(source));
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

/// Replaces comments by nothing, and what is in literals by `_`, so that no brace or
/// slash in them is taken for code. Lines stay lines.
fn without_comments(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let (taken, is_literal) = match first {
            '/' if rest.starts_with("//") => (rest.find('\n').unwrap_or(rest.len()), false),
            '/' if rest.starts_with("/*") => (block_comment(rest), false),
            '"' => (string(rest, 1), true),
            'r' | 'b' | 'c' if !in_word(&code) && prefixed(rest).is_some() => {
                (prefixed(rest).unwrap_or(1), true)
            }
            '\'' if char_literal(rest).is_some() => (char_literal(rest).unwrap_or(1), true),
            _ => {
                code.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
        };
        let (gone, after) = rest.split_at(taken);
        let fill = if is_literal { "_" } else { "" };
        let kept: Vec<_> =
            gone.split('\n').map(|line| if line.is_empty() { "" } else { fill }).collect();
        code.push_str(&kept.join("\n"));
        rest = after;
    }
    code
}

fn in_word(code: &str) -> bool {
    code.ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        let step = match rest {
            [b'/', b'*', ..] => {
                depth += 1;
                2
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Bytes of a string literal whose contents start at `from`.
fn string(text: &str, from: usize) -> usize {
    let bytes = text.as_bytes();
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// Bytes of a literal with a prefix: `b"`, `c"`, `r"`, `r#"`, `br#"`.
fn prefixed(text: &str) -> Option<usize> {
    let bare = text.trim_start_matches(['b', 'c']);
    let prefix = text.len() - bare.len();
    if prefix > 1 {
        return None;
    }
    if prefix == 1 && bare.starts_with('"') {
        return Some(string(text, 2));
    }
    let raw = bare.strip_prefix('r')?;
    let hashes = raw.len() - raw.trim_start_matches('#').len();
    let body = raw[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(prefix + 1 + hashes + 1 + length)
}

/// Bytes of a character literal; None for a lifetime.
fn char_literal(text: &str) -> Option<usize> {
    let body = &text[1..];
    if body.starts_with('\\') {
        let mut after = body.char_indices().skip(2);
        return after.find(|(_, c)| *c == '\'').map(|(at, _)| at + 2);
    }
    let first = body.chars().next()?;
    body[first.len_utf8()..].starts_with('\'').then(|| first.len_utf8() + 2)
}

/// Removes what is only there for tests: items behind `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    if code.contains("#![cfg(test)]") {
        return String::new();
    }
    let mut kept = String::new();
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        kept.push_str(&rest[..at]);
        rest = &rest[at + MARK.len()..];
        rest = &rest[item(rest)..];
    }
    kept + rest
}

/// Bytes of the item at the start of `code`: to its semicolon, or its closing brace.
fn item(code: &str) -> usize {
    let mut depth = 0usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 && c == '}' {
                    // `use a::{b};` and `= A { .. };` go on to their semicolon.
                    let after = code[at + 1..].trim_start();
                    return code.len() - after.strip_prefix(';').unwrap_or(&code[at + 1..]).len();
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_code_and_neither_comments_blanks_nor_tests() {
        let source = r##"//! Room.
/* a /* nested */ comment
   of two lines */ use x;

/// Doc.
#[derive(Debug)]
pub struct A<'a>(&'a str); // end
const S: &str = "// no comment { ";
const R: &[u8] = br#"two "lines"
/* in a string */"#;
const C: [char; 3] = ['{', '\'', '"'];
#[cfg(test)]
use y::{a, b};
#[cfg(test)]
#[allow(dead_code)]
fn only_for_tests(x: [u8; 2]) {
    { "}" }
}
fn last() {}
#[cfg(test)]
mod tests {
    fn t() {}
}
"##;
        // use, derive, struct, S, R (2), C, last
        assert_eq!(count(source), 8);
    }

    #[test]
    fn counts_its_own_file_below_what_it_has() {
        let text = include_str!("size.rs");
        assert!((50..text.lines().count()).contains(&count(text)));
    }

    #[test]
    fn leaves_test_files_out_of_a_tree() {
        let root = tempfile::tempdir().expect("a folder");
        for (name, text) in [
            ("a.rs", "fn a() {}\n"),
            ("m/tests.rs", "fn t() {}\n"),
            ("m/b.rs", "\nfn b() {\n}\n"),
            ("x.txt", "x\n"),
        ] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        }
        let counts: Vec<_> =
            count_tree(root.path()).expect("counts").into_iter().map(|c| c.1).collect();
        assert_eq!(counts, [2, 1]);
    }

    proptest! {
        #[test]
        fn never_panics_and_never_counts_more_than_there_is(source in "[a-c'\"/*\\\\{}r#\n\u{e9}]{0,40}") {
            prop_assert!(count(&source) <= source.lines().count());
        }
    }
}
