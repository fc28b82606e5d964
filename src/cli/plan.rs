//! `bayesteach plan`: what a config's training takes, without loading weights.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device};

use super::model::Source;
use super::output::size;
use super::train::{encode_file, episode_files};
use super::{Context, Done, print, program};
use crate::config::RunConfig;
use crate::device;
use crate::hub::Files;
use crate::model::decoder::Keep;
use crate::model::gradients::Trainable;
use crate::model::memory::{self, Memory, Work};
use crate::ops::weight::Storage;
use crate::ops::{self, attention};
use crate::teacher;
use crate::tokens::{Pipeline, Sampler, Sequence, micro_batches};
use crate::train::config::{Checkpointing, LossConfig};

/// Steps whose micro-batches are looked at.
const STEPS: usize = 50;

/// The training episodes as tokens.
pub(super) struct Lengths {
    /// Tokens of each.
    pub tokens: Vec<usize>,
    /// Targets of each: answers, and other tokens of the assistant's where they are trained.
    pub answers: Vec<usize>,
    /// Bytes of all episodes in memory.
    pub bytes: usize,
}

impl Lengths {
    pub(super) fn of(sequences: &[Sequence], loss: &LossConfig) -> Self {
        let format = |s: &Sequence| if loss.format_weight > 0.0 { s.format_positions.len() } else { 0 };
        Self {
            tokens: sequences.iter().map(Sequence::len).collect(),
            answers: sequences.iter().map(|s| s.targets.len() + format(s)).collect(),
            bytes: sequences.iter().map(Sequence::bytes).sum(),
        }
    }

    /// Tokens and targets of the largest micro-batch.
    fn largest(&self, config: &RunConfig) -> (usize, usize) {
        let sampler = Sampler {
            seed: config.run.seed,
            examples: self.tokens.len(),
            batch_size: config.train.batch_size,
        };
        let lengths: Vec<usize> = self.tokens.iter().map(|tokens| config.prefix_len() + tokens).collect();
        let sums = (0..STEPS.min(sampler.steps_per_epoch())).flat_map(|step| {
            let batch = sampler.batch(step);
            let micro = micro_batches(&lengths, &batch, config.train.micro_batch_tokens);
            let sum = |of: &[usize], indices: &[usize]| indices.iter().map(|&i| of[i]).sum::<usize>();
            micro.into_iter().map(|m| (sum(&lengths, &m), sum(&self.answers, &m))).collect::<Vec<_>>()
        });
        sums.max().unwrap_or((0, 0))
    }
}

/// What a config's training takes with these choices.
pub(super) struct Setting<'a> {
    pub config: &'a RunConfig,
    pub source: &'a Source,
    pub lengths: &'a Lengths,
    pub dtype: DType,
    /// As the config asks, see [`Source::storage`].
    pub storage: Storage,
    pub keep: Keep,
    pub device: &'a Device,
}

impl Setting<'_> {
    pub(super) fn memory(&self) -> Memory {
        let (tokens, answers) = self.lengths.largest(self.config);
        let activations = ops::activations(self.dtype, self.device);
        let model = &self.source.config;
        memory::plan(&Work {
            model,
            dtype: self.dtype,
            activations,
            storage: self.source.storage(self.storage),
            weights: self.source.weight_bytes(self.dtype, self.storage),
            adapter: self.config.adapter_parameters(model),
            dropout: self.config.lora.dropout > 0.0,
            tokens,
            answers,
            longest: self.config.prefix_len() + self.lengths.tokens.iter().max().copied().unwrap_or(0),
            whole_scores: attention::is_composed(model.head_dim, activations, self.device),
            keep: self.keep,
        })
    }

    /// The same with the program itself and the encoded episodes.
    pub(super) fn total(&self) -> usize {
        self.memory().total() + PROGRAM + self.lengths.bytes
    }
}

/// The program, its tokenizer, its libraries, and what remains of reading the episodes: 40 to 60 MB with the configs of this
/// project.
const PROGRAM: usize = 48_000_000;

pub(super) fn command(config: &Path, set: &[String], context: &Context) -> Result<Done> {
    let config = RunConfig::load(config, set)?;
    let table = config.model()?;
    let device = device::open(&config.run.device)?;
    let dtype = device::dtype(&table.dtype, &device)?;
    let source = Source::find(&table.source, table.revision.as_deref(), Files::Tokenizer, context)?;
    let format_trains = config.loss.format_weight > 0.0;
    let pipeline =
        source.pipeline_behind(config.prefix_len(), &config.tokens)?.with_format_training(format_trains);
    let lengths = lengths(&config, &pipeline)?;
    let setting = Setting {
        config: &config,
        source: &source,
        lengths: &lengths,
        dtype,
        storage: table.storage()?,
        keep: config.train.checkpointing.keep(),
        device: &device,
    };
    let available = device::available_memory(&device);
    let setting = match config.train.checkpointing {
        Checkpointing::Auto if !fits(&setting, available) => Setting { keep: Keep::BlockInputs, ..setting },
        _ => setting,
    };
    print(&describe(&setting, &device::name(&device), available));
    Ok(Done::Finished)
}

/// Whether a setting's memory is there, with a tenth to spare. Where nobody knows, it is.
pub(super) fn fits(setting: &Setting, available: Option<u64>) -> bool {
    available.is_none_or(|available| setting.total() as f64 <= 0.9 * available as f64)
}

/// What training takes against what is there, and the settings with which it takes less.
pub(super) fn advice(setting: &Setting, available: Option<u64>) -> String {
    let there = available.map_or(String::new(), |bytes| format!(", and {} are there", size(bytes)));
    let less = alternatives(setting).into_iter().filter(|(_, other)| other.total() < setting.total());
    let mut ways: Vec<String> =
        less.map(|(what, other)| format!("{what} takes {}", size(other.total() as u64))).collect();
    ways.push(format!("train.micro_batch_tokens below {}", setting.lengths.largest(setting.config).0));
    format!(
        "training takes about {}{there}; less with: {}; `{} plan` tells what takes how much",
        size(setting.total() as u64),
        ways.join(", "),
        program()
    )
}

/// The training episodes as tokens.
fn lengths(config: &RunConfig, pipeline: &Pipeline) -> Result<Lengths> {
    let drawn;
    let file = match &config.data {
        Some(_) => episode_files(config).0,
        None => {
            drawn = tempfile::tempdir()?;
            teacher::teach(config.teacher()?, &config.split, config.run.seed, drawn.path(), &|_, _| ())?;
            drawn.path().join(teacher::Part::Train.file_name())
        }
    };
    Ok(Lengths::of(&encode_file(pipeline, &file)?, &config.loss))
}

fn describe(setting: &Setting, device: &str, available: Option<u64>) -> String {
    let Setting { config, source, lengths, .. } = setting;
    let model = &source.config;
    let memory = setting.memory();
    let episodes = lengths.tokens.len();
    let mean = lengths.tokens.iter().sum::<usize>() as f64 / episodes as f64;
    let answers = lengths.answers.iter().sum::<usize>() as f64 / episodes as f64;
    let steps = config.train.total_steps(episodes.div_ceil(config.train.batch_size));
    let trained = config.adapter_parameters(model).unwrap_or_else(|| model.parameter_count());
    let (micro, _) = setting.lengths.largest(config);
    let keep = |keep: Keep| if keep == Keep::BlockInputs { "block" } else { "none" };
    let mut lines = vec![
        format!(
            "parameters   {:.1} M, of which {:.3} M are trained",
            millions(model.parameter_count()),
            millions(trained)
        ),
        format!("episodes     {episodes} to train on, {mean:.0} tokens and {answers:.0} targets each"),
        format!(
            "steps        {steps} of {} episodes: about {:.0} tokens a step, at most {micro} at a time",
            config.train.batch_size,
            mean * config.train.batch_size as f64
        ),
        format!(
            "memory       {} at the peak on {device}, with train.checkpointing = {:?}:",
            size(setting.total() as u64),
            keep(setting.keep)
        ),
        format!("               {} of weights", size(memory.weights as u64)),
        format!(
            "               {} for what is trained, its gradients and the optimizer",
            size(memory.trained as u64)
        ),
        format!("               {} of activations that wait for the backward", size(memory.kept as u64)),
        format!("               {} of working space", size(memory.working as u64)),
        format!(
            "               {} for the program and its episodes",
            size((setting.total() - memory.total()) as u64)
        ),
    ];
    if let Some(available) = available {
        let verdict = if fits(setting, Some(available)) { "it fits" } else { "it does not fit" };
        lines.push(format!("available    {}: {verdict}", size(available)));
    }
    lines.push("with other settings".into());
    for (what, other) in alternatives(setting) {
        let note = if fits(&other, available) { "" } else { "  (does not fit)" };
        lines.push(format!("  {what:34} {}{note}", size(other.total() as u64)));
    }
    lines.join("\n")
}

/// The settings that change the memory, one at a time and then together.
fn alternatives<'a>(setting: &'a Setting) -> Vec<(String, Setting<'a>)> {
    let with = |keep: Keep, storage: Storage| Setting { keep, storage, ..*setting };
    let mut all = Vec::new();
    for (name, keep) in [("none", Keep::Everything), ("block", Keep::BlockInputs)] {
        if keep != setting.keep {
            all.push((format!("train.checkpointing = {name:?}"), with(keep, setting.storage)));
        }
    }
    if setting.config.train.weights != Trainable::All {
        // Weights in bf16 are kept as bf16 without being asked.
        let changes =
            |storage| storage != setting.storage && (storage, setting.dtype) != (Storage::Bf16, DType::BF16);
        for (name, storage) in Storage::NAMES.into_iter().filter(|(_, storage)| changes(*storage)) {
            all.push((format!("model.quantization = {name:?}"), with(setting.keep, storage)));
        }
        if setting.keep != Keep::BlockInputs && setting.source.storage(setting.storage) != Storage::Q4K {
            all.push(("both \"block\" and \"q4_k\"".into(), with(Keep::BlockInputs, Storage::Q4K)));
        }
    }
    all
}

fn millions(count: usize) -> f64 {
    count as f64 / 1e6
}
