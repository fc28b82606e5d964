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
