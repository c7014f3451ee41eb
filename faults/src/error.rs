//! What is wrong with a campaign, an image or a log, told so that it can be put right:
//! what, where, and what to do about it.

use miette::{Diagnostic, NamedSource, SourceSpan};
use std::ops::Range;

/// A request that cannot be carried out. Every one leads to exit code 2.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error(transparent)]
#[diagnostic(transparent)]
pub struct CampaignError(Box<Told>);

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

impl CampaignError {
    /// An error that is not at any place in a file.
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

    /// Where in the text it is, in bytes from its start.
    pub fn place(&self) -> Option<Range<usize>> {
        self.0.span.map(|span| span.offset()..span.offset() + span.len())
    }
}

/// The text that spans point into.
#[derive(Clone, Debug)]
pub struct Source {
    /// What the user calls it: a path.
    pub name: String,
    /// All of it.
    pub text: String,
}

impl Source {
    /// An error at a place in this text.
    pub fn error(&self, span: Range<usize>, message: impl Into<String>) -> CampaignError {
        let mut error = CampaignError::plain(message);
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
        None => format!("there are: {}", known.join(", ")),
    }
}
