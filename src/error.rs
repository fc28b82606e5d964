//! The one distinction that callers need between errors: is the user's input wrong, or did the work fail?
//!
//! Everything travels as [`anyhow::Error`], with context that says where. A [`UsageError`] anywhere in its
//! chain makes the process exit with 2 (wrong usage or config) instead of 1 (failed).

/// Wrong usage or configuration: what is wrong, where, and what to do.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// A [`UsageError`] as an [`anyhow::Error`].
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(UsageError(message.into()))
}

/// All that is wrong with something, each problem in a few words.
#[derive(Debug, Default)]
pub(crate) struct Problems(Vec<String>);

impl Problems {
    /// Notes a problem unless `holds`.
    pub(crate) fn unless(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.0.push(problem());
        }
    }

    /// Adds the problems of a part, with the part's name before each.
    pub(crate) fn of(&mut self, part: &str, problems: Problems) {
        self.0.extend(problems.0.into_iter().map(|problem| format!("{part}: {problem}")));
    }

    /// The problems as one error, or none.
    pub(crate) fn into_result(self) -> anyhow::Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(self.0.join("; "))) }
    }

    /// One by one.
    pub(crate) fn into_vec(self) -> Vec<String> {
        self.0
    }
}

/// Adds "did you mean" to serde's message about an unknown field or variant.
pub(crate) fn with_nearest_key(message: &str) -> String {
    let message = message.trim_end();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.contains("unknown field") || message.contains("unknown variant");
    let (true, Some(given)) = (unknown, quoted.next()) else { return message.to_string() };
    let nearest = quoted.min_by_key(|known| strsim::damerau_levenshtein(given, known));
    match nearest {
        Some(known) => format!("{message}\ndid you mean `{known}`?"),
        None => message.to_string(),
    }
}
