//! `bayesteach run`: all stages of a config. A stage whose output is there for the same inputs is skipped.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::eval::{EvalFile, measure};
use super::train::{self, Job, Options};
use super::{Context, Done, note, print, program};
use crate::config::RunConfig;
use crate::error::usage;
use crate::files;
use crate::metrics::{Measures, summarise, summarise_teacher};
use crate::model::gradients::Trainable;
use crate::tokens::{Line, Sequence, read_lines};
use crate::train::checkpoint;
use crate::train::trainer::Outcome;

pub(super) const EVAL_FILE: &str = "eval.json";

pub(super) fn run(
    config: &Path,
    resume: bool,
    extend: bool,
    set: &[String],
    context: &Context,
) -> Result<Done> {
    let config = RunConfig::load(config, set)?;
    if config.train.weights == Trainable::All {
        return Err(usage("run is for adapters: for train.weights = \"all\" use train, then eval"));
    }
    let _lock = train::lock(&config.run_dir())?;
    // A finished run is not begun again: its stages are all there already.
    let finished = is_finished(&config)?;
    let options = Options { resume: (resume || finished).then_some(None), extend, ..Options::default() };
    let mut job = Job::prepare(config, &options, context)?;
    let test = test_sequences(&job)?;

    let previous: Option<EvalFile> = files::read_json(&job.config.run_dir().join(EVAL_FILE)).ok();
    let inputs = inputs(&job, &test);
    let baseline = match previous.as_ref().filter(|p| p.inputs.as_deref() == Some(&inputs)) {
        Some(EvalFile { baseline: Some(measures), .. }) => {
            note("baseline: already measured: kept");
            measures.clone()
        }
        _ => measure_base(&mut job, &test)?,
    };

    if finished {
        note("train: already done: kept");
    }
    if job.train(context)? == Outcome::Interrupted {
        print("interrupted; continue with the same command and --resume");
        return Ok(Done::Interrupted);
    }

    let adapter = Some(train::fingerprint_of_adapter(&job.result_dir())?);
    let is_same = |p: &EvalFile| p.inputs.as_ref() == Some(&inputs) && p.adapter == adapter;
    let file = match previous.filter(is_same) {
        Some(file) => {
            note("measure: already measured: kept");
            file
        }
        None => {
            let predictions = measure("measure", &job.decoder, &test)?;
            EvalFile {
                format_version: 1,
                episodes: test.len(),
                answers: predictions.len(),
                baseline: Some(baseline),
                fine_tuned: Some(summarise(&predictions)?),
                teacher: summarise_teacher(&predictions)?,
                inputs: Some(inputs),
                adapter,
            }
        }
    };
    files::write_json(&job.config.run_dir().join(EVAL_FILE), &file)?;
    file.print();
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

/// The episodes that training never sees: the test file's, or the validation file's where there are none.
fn test_sequences(job: &Job) -> Result<Vec<Sequence>> {
    let (train, validation, test) = train::episode_files(&job.config);
    let has_lines = |file: &PathBuf| train::file_has_lines(file).unwrap_or(true);
    let Some(file) = test.filter(has_lines).or(validation).filter(has_lines) else {
        return Err(usage(
            "there are neither test nor validation episodes to measure on (data.test, split.test)",
        ));
    };
    let lines = job.config.eval.choose(read_lines(&file)?);
    if job.config.data.is_some() {
        tell_overlap(&read_lines(&train)?, &lines);
    }
    train::encode(&job.pipeline, &lines, &file)
}

/// Says how many episodes to measure on are of users that were trained on. A teacher's own split is checked anyway.
fn tell_overlap(train: &[Line], test: &[Line]) {
    let who = |line: &Line| match line {
        Line::Episode(episode) if !episode.user.is_empty() => episode.user.clone(),
        _ => line.id().to_string(),
    };
    let trained: HashSet<String> = train.iter().map(who).collect();
    let shared = test.iter().filter(|line| trained.contains(&who(line))).count();
    if shared > 0 {
        note(&format!(
            "warning: {shared} of {} episodes to measure on are of users that are trained on",
            test.len()
        ));
    }
}

/// What the baseline's measures are a function of.
fn inputs(job: &Job, test: &[Sequence]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(job.fingerprints.model.as_bytes());
    hasher.update(format!("{test:?}").as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// Measures the base without an adapter, and keeps the result at once.
fn measure_base(job: &mut Job, test: &[Sequence]) -> Result<Measures> {
    job.decoder.set_adapter(None)?;
    let predictions = measure("baseline", &job.decoder, test)?;
    let baseline = summarise(&predictions)?;
    let file = EvalFile {
        format_version: 1,
        episodes: test.len(),
        answers: predictions.len(),
        baseline: Some(baseline.clone()),
        fine_tuned: None,
        teacher: summarise_teacher(&predictions)?,
        inputs: Some(inputs(job, test)),
        adapter: None,
    };
    files::write_json(&job.config.run_dir().join(EVAL_FILE), &file)?;
    Ok(baseline)
}

fn tell_next(job: &Job) {
    let (adapter, program) = (job.result_dir(), program());
    let (adapter, base) = (adapter.display(), &job.source.snapshot.name);
    let (_, _, test) = train::episode_files(&job.config);
    print(&format!("\nthe adapter is in {adapter} (PEFT format, with tokenizer and chat template)"));
    if let Some(test) = test {
        let test = test.display();
        print("next:");
        print(&format!("  {program} eval --model {base} --adapter {adapter} --episodes {test}"));
        print(&format!("  {program} inspect {test} --model {base}"));
    }
    print(&format!("  {program} export {adapter} --format peft --out FOLDER"));
}
