//! What a run directory holds, as far as a report shows it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::error::usage;
use crate::files;
use crate::metrics::{EVAL_FILE, EvalFile, PREDICTIONS_FILE, PredictedEpisode};

/// A run, read from its files. Only the config must be there: a report shows what there is.
pub(super) struct Run {
    /// The folder's name.
    pub name: String,
    /// `config.toml`
    pub config: String,
    /// `run.json`
    pub about: Value,
    /// `eval.json`, once the run was measured.
    pub eval: Option<EvalFile>,
    /// `predictions.jsonl`
    pub examples: Vec<PredictedEpisode>,
    /// `episodes/teacher.json`, where the run's own teacher drew the episodes.
    pub teacher: Option<Value>,
    /// `best.json`
    pub best: Option<Value>,
    /// `metrics.jsonl`: every number by name, as (step, value).
    metrics: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Run {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let config = dir.join("config.toml");
        if !config.is_file() {
            return Err(usage(format!(
                "{} is no run directory: it has no config.toml (`bayesteach run` or `train` makes one)",
                dir.display()
            )));
        }
        let full = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        let name = full.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(Self {
            name,
            config: read_text(&config)?,
            about: optional(dir.join("run.json"))?.unwrap_or(Value::Null),
            eval: optional_with(dir.join(EVAL_FILE), EvalFile::read)?,
            examples: optional_with(dir.join(PREDICTIONS_FILE), read_examples)?.unwrap_or_default(),
            teacher: optional(dir.join("episodes/teacher.json"))?,
            best: optional(dir.join("best.json"))?,
            metrics: optional_with(dir.join("metrics.jsonl"), read_metrics)?.unwrap_or_default(),
        })
    }

    /// How many steps the run has in all, once that is settled.
    pub(super) fn max_steps(&self) -> Option<i64> {
        let config: toml::Table = self.config.parse().ok()?;
        config.get("train")?.get("max_steps")?.as_integer()
    }

    /// Whether what it trained has been measured.
    pub(super) fn is_measured(&self) -> bool {
        self.eval.as_ref().is_some_and(|eval| eval.fine_tuned.is_some())
    }

    /// Whether its episodes are a teacher's, so that there is a world to talk about.
    pub(super) fn has_teacher(&self) -> bool {
        self.config.parse::<toml::Table>().is_ok_and(|config| config.contains_key("teacher"))
    }

    /// The course of one number over the steps; empty where it was not logged.
    pub(super) fn course(&self, name: &str) -> &[(f64, f64)] {
        self.metrics.get(name).map_or(&[], Vec::as_slice)
    }
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn optional(path: PathBuf) -> Result<Option<Value>> {
    optional_with(path, files::read_json)
}

/// What `read` makes of a file, if there is one.
fn optional_with<T>(path: PathBuf, read: impl FnOnce(&Path) -> Result<T>) -> Result<Option<T>> {
    if path.is_file() { read(&path).map(Some) } else { Ok(None) }
}

fn read_examples(path: &Path) -> Result<Vec<PredictedEpisode>> {
    let text = read_text(path)?;
    let mut episodes = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let at = || format!("{}, line {}", path.display(), i + 1);
        let episode: PredictedEpisode = serde_json::from_str(line).with_context(at)?;
        for answer in episode.answers() {
            let n = answer.options.len();
            let distributions = [Some(&answer.teacher), answer.baseline.as_ref(), answer.fine_tuned.as_ref()];
            let fits = |probs: &&Vec<f64>| {
                probs.len() == n && probs.iter().all(|p| (-1e-9..=1.0 + 1e-9).contains(p))
            };
            ensure!(
                distributions.iter().flatten().all(fits) && answer.truth.is_none_or(|truth| truth < n),
                "{}: an answer has {n} options and predictions that do not fit them",
                at()
            );
        }
        episodes.push(episode);
    }
    Ok(episodes)
}

fn read_metrics(path: &Path) -> Result<BTreeMap<String, Vec<(f64, f64)>>> {
    let mut courses: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for line in read_text(path)?.lines() {
        // A killed process may have left half a line.
        let Ok(Value::Object(record)) = serde_json::from_str(line) else { continue };
        let Some(step) = record.get("step").and_then(Value::as_f64) else { continue };
        for (name, value) in record.iter().filter(|(name, _)| *name != "step") {
            if let Some(value) = value.as_f64() {
                courses.entry(name.clone()).or_default().push((step, value));
            }
        }
    }
    Ok(courses)
}
