//! What is wrong with a set-up, told so that it can be put right: what, where, and
//! what to do about it.

use miette::{Diagnostic, NamedSource, SourceSpan};
use std::ops::Range;

/// A set-up that cannot be run. Every one leads to exit code 2.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error(transparent)]
#[diagnostic(transparent)]
pub struct SetupError(Box<Told>);

/// What is told; boxed, since it is large and every step may fail with it.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
struct Told {
    message: String,
    #[help]
    help: Option<String>,
    #[source_code]
    source_code: Option<NamedSource<String>>,
    #[label("here")]
    span: Option<SourceSpan>,
}

impl SetupError {
    /// An error that is not at any place in the file.
    pub fn plain(message: impl Into<String>) -> Self {
        Self(Box::new(Told { message: message.into(), help: None, source_code: None, span: None }))
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// The remedy, if one is known.
    pub fn remedy(&self) -> Option<&str> {
        self.0.help.as_deref()
    }
}

/// The text that spans point into: the file, then one line for each `--set`.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    pub text: String,
}

impl Source {
    /// An error at a place in this text.
    pub fn error(&self, span: Range<usize>, message: impl Into<String>) -> SetupError {
        let mut error = SetupError::plain(message);
        let text = NamedSource::new(&self.name, self.text.clone());
        error.0.source_code = Some(text.with_language("TOML"));
        error.0.span = Some(span.into());
        error
    }
}

/// `did you mean` for a name that is not among `known`, or else all that are.
pub fn suggest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<_> = known.collect();
    let near = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3);
    match near {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None if known.is_empty() => "there is none yet".into(),
        None => format!("there are: {}", known.join(", ")),
    }
}
