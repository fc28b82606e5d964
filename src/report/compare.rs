//! Runs side by side.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use super::chart::HALF_WIDTH;
use crate::error::usage;
use crate::metrics::{EvalFile, Measure, Measures};

/// Runs that were measured on the same episodes.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Always 1.
    pub format_version: u32,
    /// How many episodes all of them were measured on.
    pub episodes: usize,
    /// How many answers are in them.
    pub answers: usize,
    /// How many users gave them.
    pub users: usize,
    /// Each run's fine-tuned model, or its base where there is none.
    pub runs: Vec<Compared>,
    /// The base model, where all runs have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Compared>,
    /// The teacher of the episodes.
    pub teacher: Compared,
}

/// One side of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// What it is called here: the folder's name, or its path where two have the same.
    pub name: String,
    /// The run directory or result file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Every measure with its interval.
    pub measures: Vec<Estimate>,
    /// Expected calibration error.
    pub ece: Option<f64>,
    /// The measures by number of observations.
    pub by_observations: Vec<ComparedAt>,
}

/// The measures at one number of observations.
#[derive(Clone, Debug, Serialize)]
pub struct ComparedAt {
    /// Earlier answers that bear on these.
    pub observations: usize,
    /// How many answers.
    pub answers: usize,
    /// Every measure with its interval.
    pub measures: Vec<Estimate>,
}

/// A mean with its 95 % interval, over users.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Estimate {
    /// What was measured.
    pub measure: Measure,
    /// The mean.
    pub mean: f64,
    /// Its standard error; none for fewer than two users.
    pub standard_error: Option<f64>,
    /// Mean ± 1.96 standard errors.
    pub interval: Option<[f64; 2]>,
}

impl Comparison {
    /// Reads the results of runs, each a run directory or a file that `eval --out` wrote.
    ///
    /// # Errors
    /// If there are fewer than two, one cannot be read or has no result yet, or they were measured on different
    /// episodes.
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        if paths.len() < 2 {
            return Err(usage("name at least two runs to compare"));
        }
        let files: Vec<EvalFile> = paths.iter().map(|path| EvalFile::of_run(path)).collect::<Result<_>>()?;
        check_episodes(paths, &files)?;
        let mut runs = Vec::new();
        for ((path, name), file) in paths.iter().zip(names(paths)).zip(&files) {
            let Some((_, measures)) = file.main() else {
                return Err(usage(format!("{} holds no measured model", path.display())));
            };
            runs.push(Compared { path: Some(path.clone()), ..Compared::new(name, measures) });
        }
        let first = &files[0];
        let same_base = files.iter().all(|file| file.fine_tuned.is_some() && file.baseline == first.baseline);
        let baseline = first.baseline.as_ref().filter(|_| same_base);
        Ok(Self {
            format_version: 1,
            episodes: first.episodes,
            answers: first.answers,
            users: first.teacher.users,
            runs,
            baseline: baseline.map(|measures| Compared::new("baseline".into(), measures)),
            teacher: Compared::new("teacher".into(), &first.teacher),
        })
    }

    /// Everyone compared: the base, the runs, the teacher.
    pub fn columns(&self) -> Vec<&Compared> {
        self.baseline.iter().chain(&self.runs).chain([&self.teacher]).collect()
    }
}

impl Compared {
    fn new(name: String, measures: &Measures) -> Self {
        let estimates = |get: &dyn Fn(Measure) -> Option<f64>, error: &dyn Fn(Measure) -> Option<f64>| {
            let estimate = |measure: Measure| {
                let (mean, standard_error) = (get(measure)?, error(measure));
                let interval = standard_error.map(|e| [mean - HALF_WIDTH * e, mean + HALF_WIDTH * e]);
                Some(Estimate { measure, mean, standard_error, interval })
            };
            Measure::ALL.into_iter().filter_map(estimate).collect::<Vec<_>>()
        };
        let at = measures.by_observations.iter().map(|at| ComparedAt {
            observations: at.observations,
            answers: at.answers,
            measures: estimates(&|m| at.get(m), &|m| at.standard_error(m)),
        });
        Self {
            name,
            path: None,
            measures: estimates(&|m| measures.get(m), &|m| measures.standard_error(m)),
            ece: measures.ece,
            by_observations: at.collect(),
        }
    }

    /// One measure over all answers.
    pub fn get(&self, measure: Measure) -> Option<Estimate> {
        self.measures.iter().find(|estimate| estimate.measure == measure).copied()
    }
}

impl ComparedAt {
    /// One measure at this number of observations.
    pub fn get(&self, measure: Measure) -> Option<Estimate> {
        self.measures.iter().find(|estimate| estimate.measure == measure).copied()
    }
}

/// Numbers on different episodes say nothing about which run is better.
fn check_episodes(paths: &[PathBuf], files: &[EvalFile]) -> Result<()> {
    let first = files[0].episodes_fingerprint.as_deref();
    for (path, file) in paths.iter().zip(files) {
        match file.episodes_fingerprint.as_deref() {
            None => {
                return Err(usage(format!(
                    "{} does not say which episodes it was measured on: measure it again with this version",
                    path.display()
                )));
            }
            own if own != first => {
                return Err(usage(format!(
                    "{} and {} were measured on different episodes: measure both on the same file with `bayesteach eval \
                     --episodes FILE --out …` and compare what that writes",
                    paths[0].display(),
                    path.display()
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The last parts of the paths, or the whole paths where two parts are the same.
pub(super) fn names(paths: &[PathBuf]) -> Vec<String> {
    let full = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let last = |path: &PathBuf| {
        let full = full(path);
        let part = if path.is_dir() { full.file_name() } else { full.file_stem() };
        part.map(|name| name.to_string_lossy().into_owned())
    };
    let short: Vec<String> = paths.iter().map(|p| last(p).unwrap_or_default()).collect();
    let is_unique = |name: &String| short.iter().filter(|other| *other == name).count() == 1;
    let choose = |(name, path): (&String, &PathBuf)| {
        if is_unique(name) { name.clone() } else { path.display().to_string() }
    };
    short.iter().zip(paths).map(choose).collect()
}
