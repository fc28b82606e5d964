//! `bayesteach run`: all stages of a config. A stage whose output is there for the same inputs is skipped.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::depth::{Depth, Subject};
use super::eval::{TestSet, print_tables, write_predicted};
use super::output::manner;
use super::train::{self, Job, Options};
use super::{Context, Done, note, print, print_json, program, report, warn};
use crate::config::RunConfig;
use crate::error::usage;
use crate::files;
use crate::metrics::{EVAL_FILE, EvalFile, Measures, Model, PREDICTIONS_FILE, PredictedEpisode};
use crate::model::gradients::Trainable;
use crate::tokens::{Line, Sequence, fingerprint, read_lines};
use crate::train::checkpoint;
use crate::train::trainer::Outcome;

pub(super) fn run(
    config: &Path,
    resume: bool,
    extend: bool,
    set: &[String],
    context: &Context,
) -> Result<Done> {
    let asked = RunConfig::eval_keys(Some(config), set)?;
    let config = RunConfig::load(config, set)?;
    if config.train.weights == Trainable::All {
        return Err(usage("run is for adapters: for train.weights = \"all\" use train, then eval"));
    }
    let _lock = train::lock(&config.run_dir())?;
    // A finished run is not begun again: its stages are all there already.
    let finished = is_finished(&config)?;
    let options = Options { resume: (resume || finished).then_some(None), extend, ..Options::default() };
    let mut job = Job::prepare(config, &options, context)?;
    let test = test_set(&job, asked)?;

    let previous = Measured::read(&job.config.run_dir());
    let inputs = inputs(&job, &test);
    let base = match previous.as_ref().filter(|p| p.file.inputs.as_deref() == Some(&inputs)) {
        Some(Measured { file: EvalFile { baseline: Some(measures), .. }, examples }) => {
            note("baseline: already measured: kept");
            Base { measures: measures.clone(), examples: examples.clone() }
        }
        _ => measure_base(&mut job, &test, &inputs)?,
    };

    if finished {
        note("train: already done: kept");
    }
    let outcome = job.train(context)?;
    if outcome == Outcome::Interrupted {
        if manner().json {
            print_json(&job.said(outcome, None))?;
        }
        print("interrupted; continue with the same command and --resume");
        return Ok(Done::Interrupted);
    }

    let adapter = Some(train::fingerprint_of_adapter(&job.result_dir())?);
    let is_same = |p: &Measured| p.file.inputs.as_ref() == Some(&inputs) && p.file.adapter == adapter;
    let measured = match previous.filter(is_same) {
        Some(measured) => {
            note("measure: already measured: kept");
            measured
        }
        None => measure_adapter(&job, &test, &inputs, base, adapter)?,
    };
    match manner().json {
        true => print_json(&job.said(outcome, Some(&measured.file)))?,
        false => print_tables(&measured.file),
    }
    print("");
    report::write(&job.config.run_dir())?;
    tell_next(&job);
    Ok(Done::Finished)
}

fn is_finished(config: &RunConfig) -> Result<bool> {
    let run_dir = config.run_dir();
    let Ok(stored) = RunConfig::stored(&run_dir) else { return Ok(false) };
    let Some(last) = checkpoint::list(&run_dir)?.last().copied() else { return Ok(false) };
    if Some(last) == stored.train.max_steps {
        // Where more steps are wanted now, it is not.
        return Ok(config.train.max_steps.is_none_or(|steps| steps == last));
    }
    let state = checkpoint::read_state(&checkpoint::path(&run_dir, last));
    Ok(state.is_ok_and(|state| config.train.is_out_of_patience(&state)))
}

/// What was measured, as it stands in the run directory.
struct Measured {
    file: EvalFile,
    examples: Vec<PredictedEpisode>,
}

impl Measured {
    /// What an earlier start left, if it is whole.
    fn read(run_dir: &Path) -> Option<Self> {
        let file = EvalFile::read(&run_dir.join(EVAL_FILE)).ok()?;
        let text = std::fs::read_to_string(run_dir.join(PREDICTIONS_FILE)).ok()?;
        let examples = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().ok()?;
        Some(Self { file, examples })
    }

    /// `eval.json` comes last: where it stands, both are there.
    fn write(&self, run_dir: &Path) -> Result<()> {
        write_predicted(&run_dir.join(PREDICTIONS_FILE), &self.examples)?;
        files::write_json(&run_dir.join(EVAL_FILE), &self.file)
    }
}

/// The base model's part of it.
struct Base {
    measures: Measures,
    examples: Vec<PredictedEpisode>,
}

/// The episodes that training never sees: the test file's, or the validation file's where there are none.
fn test_set(job: &Job, asked: BTreeSet<String>) -> Result<(TestSet, Depth)> {
    let (_, validation, test) = train::episode_files(&job.config);
    let has_lines = |file: &PathBuf| train::file_has_lines(file).unwrap_or(true);
    let Some(file) = test.filter(has_lines).or(validation).filter(has_lines) else {
        return Err(usage(
            "there are neither test nor validation episodes to measure on (data.test, split.test)",
        ));
    };
    let lines = job.config.eval.choose(read_lines(&file)?);
    if job.config.data.is_some() {
        tell_overlap(job.trained_on(), &lines);
    }
    let mut depth = Depth::of_run(&job.config, &file, asked)?;
    depth.prepare(&lines)?;
    Ok((TestSet::encode(&job.pipeline, lines, &file)?, depth))
}

/// Says how many episodes to measure on are of users that were trained on. A teacher's own split is checked anyway.
fn tell_overlap(train: &[Sequence], test: &[Line]) {
    let who = |user: &str, id: &str| if user.is_empty() { id.to_owned() } else { user.to_owned() };
    let trained: HashSet<String> = train.iter().map(|s| who(&s.user, &s.id)).collect();
    let shared = test.iter().filter(|line| trained.contains(&who(line.user(), line.id()))).count();
    if shared > 0 {
        warn(&format!(
            "warning: {shared} of {} episodes to measure on are of users that are trained on",
            test.len()
        ));
    }
}

/// What the baseline's measures are a function of.
fn inputs(job: &Job, (test, depth): &(TestSet, Depth)) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(job.fingerprints.model.as_bytes());
    hasher.update(fingerprint(&test.sequences).as_bytes());
    hasher.update(&job.config.eval.examples.to_le_bytes());
    hasher.update(depth.fingerprint().as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// Measures the base without an adapter, and keeps the result at once.
fn measure_base(job: &mut Job, test: &(TestSet, Depth), inputs: &str) -> Result<Base> {
    job.decoder.set_adapter(None)?;
    let measured = measure_model(job, test, inputs, Model::Baseline)?;
    measured.write(&job.config.run_dir())?;
    let measures = measured.file.baseline.context("the baseline was measured")?;
    Ok(Base { measures, examples: measured.examples })
}

/// Measures the trained adapter, and puts the base's result beside it.
fn measure_adapter(
    job: &Job,
    test: &(TestSet, Depth),
    inputs: &str,
    base: Base,
    adapter: Option<String>,
) -> Result<Measured> {
    let mut measured = measure_model(job, test, inputs, Model::FineTuned)?;
    measured.file.baseline = Some(base.measures);
    measured.file.adapter = adapter;
    for (episode, before) in measured.examples.iter_mut().zip(&base.examples) {
        episode.take_baseline(before);
    }
    measured.write(&job.config.run_dir())?;
    Ok(measured)
}

fn measure_model(
    job: &Job,
    (test, depth): &(TestSet, Depth),
    inputs: &str,
    model: Model,
) -> Result<Measured> {
    let title = match model {
        Model::Baseline => "baseline",
        Model::FineTuned => "measure",
    };
    let chosen = job.config.eval.choose_examples(test.sequences.len());
    let subject = Subject { decoder: &job.decoder, pipeline: &job.pipeline, test };
    let (file, predictions) = depth.measure(title, model, &subject)?;
    let file = EvalFile { inputs: Some(inputs.into()), ..file };
    Ok(Measured { file, examples: test.predicted(&chosen, model, &predictions) })
}

fn tell_next(job: &Job) {
    let (adapter, program) = (files::quoted(job.result_dir()), files::quoted(program()));
    let base = files::quoted(job.source.hint());
    let (_, _, test) = train::episode_files(&job.config);
    print(&format!(
        "\nthe adapter is in {} (PEFT format, with tokenizer and chat template)",
        job.result_dir().display()
    ));
    if let Some(test) = test {
        let test = files::quoted(test);
        print("next:");
        print(&format!("  {program} eval --model {base} --adapter {adapter} --episodes {test}"));
        print(&format!("  {program} inspect {test} --model {base}"));
    }
    print(&format!("  {program} export {adapter} --format peft --out FOLDER"));
}
