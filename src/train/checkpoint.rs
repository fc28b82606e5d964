//! Checkpoints: all that the next step depends on, written whole or not at all.
//!
//! A checkpoint is a folder `checkpoints/step-00000100` with the trained weights (a PEFT adapter, or
//! `model.safetensors`), `optimizer.safetensors` and `state.json`. It becomes visible by one rename.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::optimizer::AdamW;
use crate::files;
use crate::model::adapter::Adapter;
use crate::model::peft::{self, PeftConfig};
use crate::model::tensors;

/// The folder of checkpoints within a run.
pub const FOLDER: &str = "checkpoints";
/// Names the best checkpoint, within a run.
pub const BEST_FILE: &str = "best.json";
const STATE_FILE: &str = "state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
/// The weights of a run that trains all of them.
pub const MODEL_FILE: &str = "model.safetensors";

/// What a run remembers besides tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Always 1.
    pub format_version: u32,
    /// Steps done.
    pub step: usize,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Evaluations since the best one.
    pub evaluations_without_improvement: usize,
}

/// The best evaluation on the validation episodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done then.
    pub step: usize,
    /// Its KL over the options, in nats.
    pub kl: f64,
    /// The checkpoint, relative to the run directory.
    pub checkpoint: String,
}

/// What is trained, with its tensors.
#[derive(Clone, Debug)]
pub enum Trained {
    /// An adapter, and what its `adapter_config.json` says.
    Adapter(Adapter, Box<PeftConfig>),
    /// All weights, by name.
    All(BTreeMap<String, Tensor>),
}

impl Trained {
    /// The trained tensors by name.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        match self {
            Self::Adapter(adapter, _) => adapter.tensors(),
            Self::All(weights) => weights.clone(),
        }
    }

    /// Writes the weights into `dir`, as a PEFT adapter or as `model.safetensors`.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn write(&self, dir: &Path) -> Result<()> {
        match self {
            Self::Adapter(adapter, config) => peft::write(dir, config, adapter),
            Self::All(weights) => tensors::write(&dir.join(MODEL_FILE), weights),
        }
    }
}

/// `step-00000100`
pub fn name(step: usize) -> String {
    format!("step-{step:08}")
}

/// Writes a checkpoint of the run in `run_dir`.
///
/// # Errors
/// If the disk fails; then no checkpoint of that step is there.
pub fn write(run_dir: &Path, trained: &Trained, optimizer: &AdamW, state: &State) -> Result<()> {
    files::write_folder(&run_dir.join(FOLDER).join(name(state.step)), |dir| {
        trained.write(dir)?;
        tensors::write(&dir.join(OPTIMIZER_FILE), &optimizer.tensors())?;
        files::write_json(&dir.join(STATE_FILE), state)
    })?;
    write_best(run_dir, state)
}

/// Makes `best.json` say what `state` does.
fn write_best(run_dir: &Path, state: &State) -> Result<()> {
    let path = run_dir.join(BEST_FILE);
    match &state.best {
        Some(best) => files::write_json(&path, best),
        None if path.exists() => {
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
        }
        None => Ok(()),
    }
}

/// The state of the checkpoint in `dir`.
///
/// # Errors
/// If it is missing, damaged or of another version.
pub fn read_state(dir: &Path) -> Result<State> {
    let state: State = files::read_json(&dir.join(STATE_FILE))?;
    ensure!(state.format_version == 1, "{}: format_version {} is not 1", dir.display(), state.format_version);
    Ok(state)
}

/// The optimizer's tensors of the checkpoint in `dir`.
///
/// # Errors
/// If they are missing or damaged.
pub fn read_optimizer(dir: &Path) -> Result<BTreeMap<String, Tensor>> {
    tensors::read(&dir.join(OPTIMIZER_FILE))
}

/// The steps of the checkpoints of a run, ascending.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(run_dir: &Path) -> Result<Vec<usize>> {
    let folder = run_dir.join(FOLDER);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut steps = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let file_name = entry?.file_name();
        steps.extend(
            file_name.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse::<usize>().ok()),
        );
    }
    steps.sort_unstable();
    Ok(steps)
}

/// The folder of the checkpoint after `step` steps.
pub fn path(run_dir: &Path, step: usize) -> PathBuf {
    run_dir.join(FOLDER).join(name(step))
}

/// Removes all but the last `keep_last` checkpoints and the best ones; 0 keeps all.
///
/// The best ones are `best`, and what was the best at a checkpoint that is kept: a run resumed there names it.
///
/// # Errors
/// If the disk fails.
pub fn prune(run_dir: &Path, keep_last: usize, best: Option<&Best>) -> Result<()> {
    let steps = list(run_dir)?;
    if keep_last == 0 || steps.len() <= keep_last {
        return Ok(());
    }
    let (old, kept) = steps.split_at(steps.len() - keep_last);
    let best_then = |&step: &usize| Some(read_state(&path(run_dir, step)).ok()?.best?.step);
    let bests: Vec<usize> = kept.iter().filter_map(best_then).chain(best.map(|b| b.step)).collect();
    for &step in old {
        if !bests.contains(&step) {
            remove(run_dir, step)?;
        }
    }
    Ok(())
}

/// Removes the checkpoints after that of `state`, which a run resumed from there will write again; `best.json` says
/// again what it said then.
///
/// # Errors
/// If the disk fails.
pub fn remove_after(run_dir: &Path, state: &State) -> Result<()> {
    write_best(run_dir, state)?;
    for later in list(run_dir)?.into_iter().filter(|&s| s > state.step) {
        remove(run_dir, later)?;
    }
    Ok(())
}

/// By a rename first, so that no half-removed checkpoint is ever seen.
fn remove(run_dir: &Path, step: usize) -> Result<()> {
    let from = path(run_dir, step);
    let at = || format!("cannot remove {}", from.display());
    let aside = tempfile::Builder::new().prefix(".tmp-").tempdir_in(run_dir.join(FOLDER)).with_context(at)?;
    std::fs::rename(&from, aside.path().join("old")).with_context(at)?;
    aside.close().with_context(at)
}

/// Removes what a killed process left unfinished in a run.
///
/// # Errors
/// If the disk fails.
pub fn remove_unfinished(run_dir: &Path) -> Result<()> {
    for folder in [run_dir.to_path_buf(), run_dir.join(FOLDER), run_dir.join("episodes")] {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            let unfinished = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".tmp-"));
            if unfinished {
                let removed =
                    if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                removed.with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
    }
    Ok(())
}
