//! `metrics.jsonl`: one line a step and one an evaluation; and the same as TensorBoard's event file.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde_json::{Map, Value};

use super::tensorboard::EventFile;
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
    /// Mean entropy of the teacher's predictions of the same answers.
    pub validation_entropy_teacher: f64,
    /// How often the model's most probable option is the teacher's.
    pub validation_agreement: f64,
    /// How often it is the truth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_accuracy: Option<f64>,
}

/// The open log.
pub struct MetricsLog {
    lines: File,
    events: EventFile,
}

impl MetricsLog {
    /// Opens the log of a run, keeping the lines up to `step` steps.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn open(run_dir: &Path, step: usize) -> Result<Self> {
        let path = run_dir.join(FILE);
        let before = std::fs::read(&path).unwrap_or_default();
        let mut kept = Vec::new();
        let mut records = Vec::new();
        for line in before.split(|&b| b == b'\n') {
            // A killed process may have left half a line.
            let Ok(record) = serde_json::from_slice::<Map<String, Value>>(line) else { continue };
            if record.get("step").and_then(Value::as_u64).is_some_and(|s| s as usize <= step) {
                kept.extend_from_slice(line);
                kept.push(b'\n');
                records.push(record);
            }
        }
        files::write(&path, &kept)?;
        let lines = File::options().append(true).open(&path);
        let lines = lines.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { lines, events: EventFile::create(run_dir, &records)? })
    }

    /// Appends one line, with the time in seconds since 1970.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn append(&mut self, record: &impl Serialize) -> Result<()> {
        let Value::Object(mut record) = serde_json::to_value(record)? else { bail!("a record has names") };
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        record.insert("time".into(), (time.as_millis() as f64 / 1000.0).into());
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        self.lines.write_all(&line).context("cannot write metrics.jsonl")?;
        self.events.append(&record)
    }
}
