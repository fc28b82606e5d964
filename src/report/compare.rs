//! Runs side by side.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use super::chart::HALF_WIDTH;
use crate::error::usage;
use crate::metrics::{self, ClusteredMean, EvalFile, Measure, Measures, MeasuresAt, PAIRED};

/// Runs that were measured on the same episodes; or such runs of several seeds, pooled.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Always 1.
    pub format_version: u32,
    /// How many seeds are pooled; each has episodes of its own.
    pub seeds: usize,
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
    /// The run directory or result file, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Every measure with its interval.
    pub measures: Vec<Estimate>,
    /// Expected calibration error.
    pub ece: Option<f64>,
    /// The measures by number of observations.
    pub by_observations: Vec<ComparedAt>,
    /// How much this run differs from the first one on the same answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
    /// On option sets asked after each round without feedback, where all seeds were measured on them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<Box<Compared>>,
    /// With the model's own recommendations in the dialogue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interactive: Option<Box<Compared>>,
    /// Of the beliefs that the model states on copies of the dialogue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stated: Option<Box<Compared>>,
    /// What else was found out about the model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// A number that belongs to a model as a whole; the mean over seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What it is.
    pub title: &'static str,
    /// The number.
    pub value: f64,
    /// Its 95 % interval, of one seed and where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
}

/// A run's measure less the first run's, of the same answers of the same users, so that what is hard for both counts for
/// neither.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// The difference with its interval, over users.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Of each seed, where several are pooled: the interval knows of users, and not of what training another time does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_seed: Vec<f64>,
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
        let groups = paths.iter().zip(names(paths)).map(|(path, name)| (name, vec![path.clone()])).collect();
        Self::of_groups(groups)
    }

    /// As [`read`](Self::read), with runs pooled whose names differ only in a number at the end, such as `soft-0` and
    /// `soft-1`: their seed. The runs of one seed must have been measured on the same episodes.
    ///
    /// # Errors
    /// As [`read`](Self::read), if there are fewer than two names, or not all have the same seeds.
    pub fn pooled(paths: &[PathBuf]) -> Result<Self> {
        let mut groups: Vec<(String, Vec<(String, PathBuf)>)> = Vec::new();
        for (path, name) in paths.iter().zip(names(paths)) {
            let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
            let seed = name[stem.len()..].to_owned();
            let stem = stem.trim_end_matches(['-', '_', '.', ' ']).to_owned();
            if seed.is_empty() || stem.is_empty() {
                return Err(usage(format!(
                    "{name:?} does not end with a seed, as in soft-0: it cannot be pooled"
                )));
            }
            match groups.iter_mut().find(|(name, _)| *name == stem) {
                Some((_, runs)) => runs.push((seed, path.clone())),
                None => groups.push((stem, vec![(seed, path.clone())])),
            }
        }
        if groups.len() < 2 {
            return Err(usage("name runs of at least two names to compare"));
        }
        groups.iter_mut().for_each(|(_, runs)| runs.sort());
        let seeds =
            |runs: &[(String, PathBuf)]| runs.iter().map(|(seed, _)| seed.clone()).collect::<Vec<_>>();
        let first = seeds(&groups[0].1);
        if let Some((name, runs)) = groups.iter().find(|(_, runs)| seeds(runs) != first) {
            return Err(usage(format!(
                "{} has the seeds {} and {name} has {}: name runs of the same seeds",
                groups[0].0,
                first.join(", "),
                seeds(runs).join(", ")
            )));
        }
        let paths = |(name, runs): (String, Vec<(String, PathBuf)>)| {
            (name, runs.into_iter().map(|(_, path)| path).collect())
        };
        Self::of_groups(groups.into_iter().map(paths).collect())
    }

    /// Groups of as many runs, each of a seed.
    fn of_groups(groups: Vec<(String, Vec<PathBuf>)>) -> Result<Self> {
        let read = |path: &PathBuf| EvalFile::of_run(path);
        let files: Vec<Vec<EvalFile>> =
            groups.iter().map(|(_, paths)| paths.iter().map(read).collect()).collect::<Result<_>>()?;
        let seeds = groups[0].1.len();
        for seed in 0..seeds {
            let of_seed: Vec<(&Path, &EvalFile)> = groups
                .iter()
                .zip(&files)
                .map(|((_, paths), files)| (paths[seed].as_path(), &files[seed]))
                .collect();
            check_episodes(&of_seed)?;
        }
        let mut runs: Vec<Compared> = Vec::new();
        let mut first: Vec<&Measures> = Vec::new();
        for ((name, paths), files) in groups.iter().zip(&files) {
            let mut measures = Vec::new();
            for (path, file) in paths.iter().zip(files) {
                let Some((_, own)) = file.main() else {
                    return Err(usage(format!("{} holds no measured model", path.display())));
                };
                measures.push(own);
            }
            let path = (seeds == 1).then(|| paths[0].clone());
            let differences = if first.is_empty() { Vec::new() } else { differences(&measures, &first) };
            runs.push(Compared { path, differences, ..Compared::new(name.clone(), &measures) });
            if first.is_empty() {
                first = measures;
            }
        }
        let firsts = &files[0];
        let same_base = |(seed, first): (usize, &EvalFile)| {
            files.iter().all(|of| of[seed].fine_tuned.is_some() && of[seed].baseline == first.baseline)
        };
        let baselines: Option<Vec<&Measures>> = firsts.iter().map(|file| file.baseline.as_ref()).collect();
        let baselines = baselines.filter(|_| firsts.iter().enumerate().all(same_base));
        let teachers: Vec<&Measures> = firsts.iter().map(|file| &file.teacher).collect();
        Ok(Self {
            format_version: 1,
            seeds,
            episodes: firsts.iter().map(|file| file.episodes).sum(),
            answers: firsts.iter().map(|file| file.answers).sum(),
            users: firsts.iter().map(|file| file.teacher.users).sum(),
            runs,
            baseline: baselines.map(|measures| Compared::new("baseline".into(), &measures)),
            teacher: Compared::new("teacher".into(), &teachers),
        })
    }

    /// Everyone compared: the base, the runs, the teacher.
    pub fn columns(&self) -> Vec<&Compared> {
        self.baseline.iter().chain(&self.runs).chain([&self.teacher]).collect()
    }
}

impl Compared {
    /// Of one seed, or several.
    fn new(name: String, seeds: &[&Measures]) -> Self {
        let of = |measure: Measure| {
            let each = seeds
                .iter()
                .map(|m| m.get(measure).map(|mean| Estimate::new(measure, mean, m.standard_error(measure))));
            Estimate::pooled(each.collect::<Option<Vec<_>>>()?)
        };
        let numbers = seeds[0].by_observations.iter().map(|at| at.observations);
        let at = numbers.map(|observations| {
            let of_seed: Vec<&MeasuresAt> = (seeds.iter())
                .filter_map(|m| m.by_observations.iter().find(|at| at.observations == observations))
                .collect();
            let of = |measure: Measure| {
                let each = of_seed.iter().map(|at| {
                    at.get(measure).map(|mean| Estimate::new(measure, mean, at.standard_error(measure)))
                });
                Estimate::pooled(each.collect::<Option<Vec<_>>>()?)
            };
            ComparedAt {
                observations,
                answers: of_seed.iter().map(|at| at.answers).sum(),
                measures: Measure::ALL.into_iter().filter_map(of).collect(),
            }
        });
        let eces: Option<Vec<f64>> = seeds.iter().map(|m| m.ece).collect();
        Self {
            path: None,
            measures: Measure::ALL.into_iter().filter_map(of).collect(),
            ece: eces.map(|eces| eces.iter().sum::<f64>() / eces.len() as f64),
            by_observations: at.collect(),
            differences: Vec::new(),
            held_out: Self::aside(&name, seeds, |m| m.held_out.as_deref()),
            interactive: Self::aside(&name, seeds, |m| m.interactive.as_ref().map(|found| &*found.own)),
            stated: Self::aside(&name, seeds, |m| m.probe.as_ref().map(|found| &*found.reports)),
            findings: findings(seeds),
            name,
        }
    }

    /// Measures of something besides the dialogues' answers, where every seed has them.
    fn aside(
        name: &str,
        seeds: &[&Measures],
        of: impl Fn(&Measures) -> Option<&Measures>,
    ) -> Option<Box<Compared>> {
        let found: Option<Vec<&Measures>> = seeds.iter().map(|m| of(m)).collect();
        Some(Box::new(Self::new(name.to_owned(), &found?)))
    }

    /// One measure over all answers.
    pub fn get(&self, measure: Measure) -> Option<Estimate> {
        self.measures.iter().find(|estimate| estimate.measure == measure).copied()
    }
}

impl Estimate {
    fn new(measure: Measure, mean: f64, standard_error: Option<f64>) -> Self {
        Self { measure, mean, standard_error, interval: interval(mean, standard_error) }
    }

    /// The mean over seeds, whose users have nothing to do with one another; none of none.
    fn pooled(seeds: Vec<Estimate>) -> Option<Self> {
        let (first, n) = (*seeds.first()?, seeds.len() as f64);
        if seeds.len() == 1 {
            return Some(first);
        }
        let errors: Option<Vec<f64>> = seeds.iter().map(|e| e.standard_error).collect();
        let error = errors.map(|errors| errors.iter().map(|e| e * e).sum::<f64>().sqrt() / n);
        Some(Self::new(first.measure, seeds.iter().map(|e| e.mean).sum::<f64>() / n, error))
    }
}

/// 95 % around a mean.
fn interval(mean: f64, standard_error: Option<f64>) -> Option<[f64; 2]> {
    standard_error.map(|e| [mean - HALF_WIDTH * e, mean + HALF_WIDTH * e])
}

/// What was found out about all seeds alike.
fn findings(seeds: &[&Measures]) -> Vec<Finding> {
    let each: Vec<Vec<Finding>> = seeds.iter().map(|m| findings_of(m)).collect();
    let [first, others @ ..] = &each[..] else { return Vec::new() };
    let pooled = |finding: &Finding| {
        let same = |of: &Vec<Finding>| of.iter().find(|f| f.title == finding.title).map(|f| f.value);
        let values: Vec<f64> = others.iter().map(same).collect::<Option<_>>()?;
        let value = (finding.value + values.iter().sum::<f64>()) / each.len() as f64;
        Some(Finding { value, interval: finding.interval.filter(|_| others.is_empty()), ..*finding })
    };
    first.iter().filter_map(pooled).collect()
}

fn findings_of(measures: &Measures) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut estimate = |title, estimate: Option<metrics::Estimate>| {
        if let Some(metrics::Estimate { value, standard_error }) = estimate {
            found.push(Finding { title, value, interval: interval(value, standard_error) });
        }
    };
    if let Some(probe) = &measures.probe {
        estimate("stated levels' correlation with the teacher's", probe.all.with_teacher);
        estimate("stated levels' correlation with the user's", probe.all.with_truth);
    }
    if let Some(interactive) = &measures.interactive {
        estimate("accuracy gained by its own recommendations", interactive.accuracy_gap);
        estimate("KL added by its own recommendations", interactive.kl_gap);
    }
    if let Some(last) = measures.sensitivity.as_ref().and_then(|found| found.by_rounds.last()) {
        estimate("slope of what is learnt on what a set tells", last.slope);
        estimate("the teacher's slope", last.teacher_slope);
    }
    if let Some(reasoner) = &measures.reasoner {
        let mut fitted = |title, fitted: &metrics::Fitted| {
            let interval = fitted.low.zip(fitted.high).map(|(low, high)| [low, high]);
            found.push(Finding { title, value: fitted.value, interval });
        };
        fitted("discount of past answers", &reasoner.discount);
        if let Some(weight) = &reasoner.evidence_weight {
            fitted("weight of an answer", weight);
        }
        if let Some(lapse) = &reasoner.lapse {
            fitted("lapses supposed of users", lapse);
        }
        fitted("temperature", &reasoner.temperature);
    }
    found
}

/// How much runs differ from the first ones, seed by seed on the same answers; nothing where a result is of a version that
/// did not keep its users apart.
fn differences(own: &[&Measures], first: &[&Measures]) -> Vec<Difference> {
    let of = |measure: Measure| {
        let of_seed = |(own, first): (&&Measures, &&Measures)| {
            let (own, first) = (own.by_user.get(&measure)?, first.by_user.get(&measure)?);
            let counts = |sums: &[(f64, usize)]| sums.iter().map(|(_, n)| *n).collect::<Vec<usize>>();
            if counts(own) != counts(first) {
                return None;
            }
            let sums = own.iter().zip(first).map(|((a, n), (b, _))| (a - b, *n));
            let mean = ClusteredMean::of_sums(sums);
            Some(Estimate::new(measure, mean.mean()?, mean.standard_error()))
        };
        let seeds: Vec<Estimate> = own.iter().zip(first).map(of_seed).collect::<Option<_>>()?;
        let by_seed = if seeds.len() > 1 { seeds.iter().map(|e| e.mean).collect() } else { Vec::new() };
        Some(Difference { estimate: Estimate::pooled(seeds)?, by_seed })
    };
    PAIRED.into_iter().filter_map(of).collect()
}

impl ComparedAt {
    /// One measure at this number of observations.
    pub fn get(&self, measure: Measure) -> Option<Estimate> {
        self.measures.iter().find(|estimate| estimate.measure == measure).copied()
    }
}

/// Numbers on different episodes say nothing about which run is better.
fn check_episodes(files: &[(&Path, &EvalFile)]) -> Result<()> {
    let (first_path, first) = (files[0].0, files[0].1.episodes_fingerprint.as_deref());
    for (path, file) in files {
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
                     --episodes FILE --out …` and compare what that writes (runs of several seeds are pooled with --pool)",
                    first_path.display(),
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
