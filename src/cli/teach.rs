//! `bayesteach teach`, and the teaching stage of other commands.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::output::manner;
use super::progress::Progress;
use super::{Done, note, print, print_json, train};
use crate::config::{CONFIG_FILE, RunConfig};
use crate::error::usage;
use crate::files;
use crate::teacher::{
    self, Domain, Kind, SplitConfig, TEACHER_FILE, TeacherConfig, TeacherSummary, WorldName,
};

/// The folder of a teacher's episodes within a run.
pub(super) const FOLDER: &str = "episodes";
/// What the episodes were drawn from, beside them.
const INPUTS_FILE: &str = "inputs.json";

/// All that a teacher's episodes are a function of.
#[derive(PartialEq, Serialize, Deserialize)]
struct Inputs {
    version: String,
    seed: u64,
    teacher: TeacherConfig,
    split: SplitConfig,
    /// What the file of a declared world says, as its hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    world_file: Option<String>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Said<'a> {
    /// The folder of the episode files.
    episodes_dir: &'a Path,
    /// As in `teacher.json`.
    teacher: &'a TeacherSummary,
}

pub(super) fn command(config: &Path, out: Option<PathBuf>, set: &[String]) -> Result<Done> {
    let config = RunConfig::load(config, set)?;
    config.teacher()?;
    let _lock = if out.is_none() { Some(train::lock(&config.run_dir())?) } else { None };
    let own = out.is_none();
    let dir = out.unwrap_or_else(|| config.run_dir().join(FOLDER));
    if own && config.run_dir().join(CONFIG_FILE).is_file() && !is_there(&inputs(&config)?, &dir) {
        return Err(usage(format!(
            "the run {} was trained on other episodes: name another run.name, or a folder with --out",
            config.run_dir().display()
        )));
    }
    let summary = teach(&config, &dir)?;
    if manner().json {
        print_json(&Said { episodes_dir: &dir, teacher: &summary })?;
    }
    print(&describe(&summary));
    print(&format!("episodes are in {}", dir.display()));
    Ok(Done::Finished)
}

/// The run's episodes: those that are there, if they are of the same inputs, else newly drawn ones.
pub(super) fn ensure(config: &RunConfig) -> Result<TeacherSummary> {
    let teacher = config.teacher()?;
    let domain = teacher.build()?;
    if let Domain::Grid(world) = &domain
        && teacher.kind == Kind::Bayes
        && !world.has_exact_teacher()
    {
        return Err(usage(format!(
            "there is nothing to train on: no exact teacher exists for the {} world, whose episodes are for measuring a \
             model that was trained on another world (`bayesteach teach`, then `eval`)",
            world.name()
        )));
    }
    let dir = config.run_dir().join(FOLDER);
    let inputs = inputs(config)?;
    if is_there(&inputs, &dir)
        && let Ok(summary) = files::read_json(&dir.join(TEACHER_FILE))
    {
        note(&format!("teach: the episodes in {} are of the same settings: kept", dir.display()));
        return Ok(summary);
    }
    teach(config, &dir)
}

/// What the episodes of a file were drawn from: the teacher and the seed, as they stand beside them; none where nothing
/// does.
pub(super) fn origin(episodes: &Path) -> Result<Option<Origin>> {
    let path = files::folder(episodes).join(INPUTS_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let inputs: Inputs = files::read_json(&path)?;
    Ok(Some(Origin { teacher: inputs.teacher, seed: inputs.seed }))
}

/// Who taught episodes.
#[derive(Clone)]
pub(super) struct Origin {
    pub teacher: TeacherConfig,
    pub seed: u64,
}

/// Whether the episodes in `dir` were drawn from these inputs.
fn is_there(inputs: &Inputs, dir: &Path) -> bool {
    files::read_json::<Inputs>(&dir.join(INPUTS_FILE)).is_ok_and(|old| old == *inputs)
}

fn inputs(config: &RunConfig) -> Result<Inputs> {
    let version = env!("CARGO_PKG_VERSION").to_string();
    let teacher = config.teacher()?.clone();
    let world_file = match &teacher.world {
        WorldName::Declared(path) => {
            let bytes = std::fs::read(path)
                .map_err(|e| usage(format!("cannot read the world {}: {e}", path.display())))?;
            Some(blake3::hash(&bytes).to_hex().to_string())
        }
        _ => None,
    };
    Ok(Inputs { version, seed: config.run.seed, teacher, split: config.split.clone(), world_file })
}

fn teach(config: &RunConfig, dir: &Path) -> Result<TeacherSummary> {
    let inputs = inputs(config)?;
    std::fs::create_dir_all(dir)
        .map_err(|e| anyhow::anyhow!("cannot make the folder {}: {e}", dir.display()))?;
    let progress: Mutex<Cell<Option<Progress>>> = Mutex::new(Cell::new(None));
    let report = |done: u64, total: u64| {
        let Ok(mut slot) = progress.lock() else { return };
        let bar = slot.get_mut().get_or_insert_with(|| Progress::new("teach", 0, total));
        bar.at(done, "episodes");
    };
    // First of all, so that old inputs never stand beside new episodes.
    let stale = dir.join(INPUTS_FILE);
    if stale.exists() {
        std::fs::remove_file(&stale)
            .map_err(|e| anyhow::anyhow!("cannot remove {}: {e}", stale.display()))?;
    }
    let summary = teacher::teach(&inputs.teacher, &inputs.split, inputs.seed, dir, &report)?;
    files::write_json(&dir.join(INPUTS_FILE), &inputs)?;
    if let Ok(mut slot) = progress.lock()
        && let Some(bar) = slot.get_mut()
    {
        bar.finish();
    }
    Ok(summary)
}

/// A few words on what was drawn.
pub(super) fn describe(summary: &TeacherSummary) -> String {
    let split = &summary.split;
    let regret = summary.regret.map_or(String::new(), |r| format!("; its regret {r:.3} nats an episode"));
    let beliefs = summary.beliefs.as_ref().map(|beliefs| {
        format!(
            "; {} reported beliefs of accuracy {:.3}, entropy {:.3} nats and calibration error {:.4} (perfect \
             calibration: {:.4})",
            beliefs.answers, beliefs.accuracy, beliefs.entropy, beliefs.ece, beliefs.ece_expected
        )
    });
    let ignored = (summary.ignored_answers > 0)
        .then(|| format!("; {} answers were impossible to the teacher and ignored", summary.ignored_answers));
    let described = format!(
        "{}: {} episodes ({} train, {} validation, {} test; {} users shared), {} answers; the teacher's accuracy is \
         {:.3}, its entropy {:.3} nats, its calibration error {:.4} (perfect calibration: {:.4}){regret}",
        summary.world,
        summary.episodes,
        split.train,
        split.validation,
        split.test,
        split.shared_users,
        summary.answers,
        summary.accuracy,
        summary.entropy,
        summary.ece,
        summary.ece_expected
    );
    [described, beliefs.unwrap_or_default(), ignored.unwrap_or_default()].concat()
}
