//! The settings of `[tokens]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[tokens]`: how episodes become tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokensConfig {
    /// The longest sequence in tokens; the model's `max_position_embeddings` where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<usize>,
    /// What to do with an episode that is longer.
    pub on_too_long: Policy,
    /// What to do with an episode that has nothing to train on, or options that cannot be told apart.
    pub on_untrainable: Policy,
    /// `auto`, `strict` (only if the model's own template keeps earlier turns as they were), or the path of a
    /// Jinja file to use instead of the model's own.
    pub template: TemplateChoice,
    /// The day that a template prints, if it prints one.
    pub date: String,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self {
            max_length: None,
            on_too_long: Policy::Error,
            on_untrainable: Policy::Error,
            template: TemplateChoice::Auto,
            date: "26 Jul 2024".to_owned(),
        }
    }
}

/// What to do with an episode that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Stop with an error that names it.
    Error,
    /// Leave it out and count it.
    Drop,
}

/// Which chat template to use, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TemplateChoice {
    /// The model's own, per turn where it changes earlier turns.
    Auto,
    /// The model's own, or an error where it changes earlier turns.
    Strict,
    /// A plain one of this program's own, for models that come without.
    Plain,
    /// A file.
    Path(PathBuf),
}

impl From<String> for TemplateChoice {
    fn from(text: String) -> Self {
        match text.as_str() {
            "auto" => Self::Auto,
            "strict" => Self::Strict,
            "plain" => Self::Plain,
            _ => Self::Path(text.into()),
        }
    }
}

impl From<TemplateChoice> for String {
    fn from(choice: TemplateChoice) -> Self {
        match choice {
            TemplateChoice::Auto => "auto".to_owned(),
            TemplateChoice::Strict => "strict".to_owned(),
            TemplateChoice::Plain => "plain".to_owned(),
            TemplateChoice::Path(path) => path.to_string_lossy().into_owned(),
        }
    }
}
