//! What is wrong in a file, and where.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;

use crate::error::with_nearest_key;

/// A mistake in a declared world.
#[derive(Debug)]
pub(super) struct Mistake {
    /// The bytes that are wrong, where they can be told.
    pub(super) span: Option<Range<usize>>,
    /// What is wrong with them.
    pub(super) message: String,
}

/// A mistake at a value.
pub(super) fn mistake<T, R>(at: &Spanned<T>, message: impl Into<String>) -> Result<R, Mistake> {
    Err(Mistake { span: Some(at.span()), message: message.into() })
}

impl Mistake {
    /// Of a file that is no TOML, or has unknown or missing keys, or values of the wrong type.
    pub(super) fn of_toml(error: &toml::de::Error) -> Mistake {
        Mistake { span: error.span(), message: with_nearest_key(error.message()) }
    }

    /// `file:line:column: what is wrong`, and the line itself.
    pub(super) fn in_file(&self, path: &Path, text: &str) -> String {
        let (path, message) = (path.display(), &self.message);
        let Some(before) = self.span.as_ref().and_then(|span| text.get(..span.start)) else {
            return format!("{path}: {message}");
        };
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let shown = text.lines().nth(line - 1).unwrap_or_default();
        format!("{path}:{line}:{column}: {message}\n  | {shown}")
    }
}
