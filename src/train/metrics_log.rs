//! `metrics.jsonl`: one line a step and one an evaluation.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use crate::files;

/// The file's name within a run.
pub const FILE: &str = "metrics.jsonl";

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// Steps done, this one included.
    pub step: usize,
    /// Weighted mean over all targets of the batch, before the update.
    pub loss: f64,
    /// Mean KL(teacher ‖ model) over the vocabulary, if the batch has answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Learning rate of the update.
    pub lr: f64,
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// Tokens of the step over its time.
    pub tokens_per_second: f64,
    /// The most memory that the process has held so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

/// One evaluation on the validation episodes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluationRecord {
    /// Steps done.
    pub step: usize,
    /// Mean KL(teacher ‖ model) over the options, of what is trained: predictions, reported beliefs, or both.
    pub validation_kl: f64,
    /// The same of the reported beliefs alone, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_belief_kl: Option<f64>,
    /// The same over the vocabulary.
    pub validation_kl_vocabulary: f64,
    /// Mean entropy of the model's predictions.
    pub validation_entropy: f64,
    /// How often the model's most probable option is the teacher's.
    pub validation_agreement: f64,
    /// How often it is the truth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
}

/// The open log.
pub struct MetricsLog(File);

impl MetricsLog {
    /// Opens the log of a run, keeping the lines up to `step` steps.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn open(run_dir: &Path, step: usize) -> Result<Self> {
        let path = run_dir.join(FILE);
        let before = std::fs::read(&path).unwrap_or_default();
        let mut kept = Vec::new();
        for line in before.split(|&b| b == b'\n') {
            // A killed process may have left half a line.
            let parsed = serde_json::from_slice::<Value>(line).ok();
            let line_step = parsed.and_then(|v| v.get("step").and_then(Value::as_u64));
            if line_step.is_some_and(|s| s as usize <= step) {
                kept.extend_from_slice(line);
                kept.push(b'\n');
            }
        }
        files::write(&path, &kept)?;
        let file = File::options().append(true).open(&path);
        Ok(Self(file.with_context(|| format!("cannot open {}", path.display()))?))
    }

    /// Appends one line.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn append(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.0.write_all(&line).context("cannot write metrics.jsonl")
    }
}
