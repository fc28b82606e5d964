//! `eval.json`: baseline, fine-tuned and teacher side by side.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::measures::{Measures, summarise, summarise_teacher, sums_by_user};
use super::prediction::Prediction;
use crate::files;

/// The file's name within a run.
pub const EVAL_FILE: &str = "eval.json";

/// Which of the two models was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// The base without an adapter.
    Baseline,
    /// The base with an adapter.
    FineTuned,
}

/// What `eval.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalFile {
    /// Always 1.
    pub format_version: u32,
    /// How many episodes were measured.
    pub episodes: usize,
    /// How many answers are in them.
    pub answers: usize,
    /// The base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Measures>,
    /// The base model with the adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuned: Option<Measures>,
    /// The teacher.
    pub teacher: Measures,
    /// The option labels, where all answers have the same ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<String>>,
    /// A fingerprint of the episodes that were measured, whatever the model: only runs that share it can be compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub episodes_fingerprint: Option<String>,
    /// What was measured on, so that a stage whose output is there can be skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<String>,
    /// Which adapter was measured, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

impl EvalFile {
    /// Measures one model's predictions of the answers of `episodes` episodes, and the teacher's beside them.
    ///
    /// # Errors
    /// If there are no predictions.
    pub fn new(model: Model, episodes: usize, predictions: &[Prediction]) -> Result<Self> {
        let measures = Some(Measures { by_user: sums_by_user(predictions), ..summarise(predictions)? });
        let (baseline, fine_tuned) = match model {
            Model::Baseline => (measures, None),
            Model::FineTuned => (None, measures),
        };
        Ok(Self {
            format_version: 1,
            episodes,
            answers: predictions.len(),
            baseline,
            fine_tuned,
            teacher: summarise_teacher(predictions)?,
            options: None,
            episodes_fingerprint: None,
            inputs: None,
            adapter: None,
        })
    }

    /// The measures of a model, where it was measured.
    pub fn measures_mut(&mut self, model: Model) -> Option<&mut Measures> {
        match model {
            Model::Baseline => self.baseline.as_mut(),
            Model::FineTuned => self.fine_tuned.as_mut(),
        }
    }

    /// What is left where no teacher exists: what stands in for its distributions is no yardstick.
    #[must_use]
    pub fn without_teacher(self) -> Self {
        Self {
            baseline: self.baseline.map(Measures::without_teacher),
            fine_tuned: self.fine_tuned.map(Measures::without_teacher),
            teacher: self.teacher.of_no_teacher(),
            ..self
        }
    }

    /// Whether a teacher was measured beside the models.
    pub fn has_teacher(&self) -> bool {
        !self.teacher.means.is_empty()
    }

    /// Reads `eval.json`.
    ///
    /// # Errors
    /// If it cannot be read, or is of another version.
    pub fn read(path: &Path) -> Result<Self> {
        let file: Self = files::read_json(path)?;
        ensure!(
            file.format_version == 1,
            "{}: format_version is {}, this program reads 1",
            path.display(),
            file.format_version
        );
        Ok(file)
    }

    /// Reads `eval.json` of a run directory, or a file of the same form.
    ///
    /// # Errors
    /// As [`EvalFile::read`].
    pub fn of_run(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::read(path);
        }
        Self::read(&path.join(EVAL_FILE))
            .with_context(|| format!("{} has no measured result: `bayesteach run` makes one", path.display()))
    }

    /// The fine-tuned model's measures, or else the baseline's, with what they are called.
    pub fn main(&self) -> Option<(&'static str, &Measures)> {
        let fine_tuned = self.fine_tuned.as_ref().map(|m| ("fine-tuned", m));
        fine_tuned.or(self.baseline.as_ref().map(|m| ("baseline", m)))
    }
}
