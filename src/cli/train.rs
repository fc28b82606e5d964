//! `bayesteach train`, and the training stage of `run`: everything around the loop.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use super::eval::TestSet;
use super::model::{Source, adapter_folder, run_folder, run_of};
use super::output::{manner, size};
use super::plan::{self, Lengths, Setting};
use super::progress::Progress;
use super::{Context, Done, eval, note, print, print_json, program, teach};
use crate::config::{CONFIG_FILE, Init, RunConfig};
use crate::device;
use crate::error::usage;
use crate::files;
use crate::hub::Files;
use crate::metrics::EvalFile;
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Keep};
use crate::model::gguf::is_gguf;
use crate::model::gradients::Trainable;
use crate::model::peft;
use crate::ops;
use crate::ops::weight::Storage;
use crate::tokens::{Pipeline, Sequence, fingerprint, read_lines};
use crate::train::checkpoint::{self, Trained};
use crate::train::config::{Checkpointing, ScheduleKind};
use crate::train::trainer::{self, Data, Event, Outcome, Settings, Start};

/// How a training starts.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    /// From the last checkpoint, or from that step's.
    pub resume: Option<Option<usize>>,
    /// Another number of steps is fine although the schedule depends on it.
    pub extend: bool,
    /// An adapter to start from.
    pub init_adapter: Option<PathBuf>,
}

/// `run.json`
#[derive(Serialize, Deserialize)]
struct RunFile {
    format_version: u32,
    version: String,
    seed: u64,
    device: String,
    dtype: String,
    kernels: String,
    threads: usize,
    model: String,
    model_revision: Option<String>,
    /// Whether the model is a GGUF file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    gguf: bool,
    template: String,
    fingerprints: Fingerprints,
}

impl RunFile {
    /// That of the run in which an adapter lies.
    fn of(adapter: &Path) -> Result<Option<Self>> {
        let Some(dir) = run_folder(adapter)? else { return Ok(None) };
        let file = dir.join(RUN_FILE);
        if file.is_file() { files::read_json(&file).map(Some) } else { Ok(None) }
    }

    fn is_gguf(&self) -> bool {
        self.gguf || is_gguf(Path::new(&self.model))
    }
}

/// The base that a run was trained on.
pub(super) struct TrainedOn {
    /// Its hub id, or its place.
    pub name: String,
    /// The commit of a hub model.
    pub revision: Option<String>,
}

/// The base of the run in which an adapter lies, as it was when the run began.
pub(super) fn base_of_run(adapter: &Path) -> Result<Option<TrainedOn>> {
    let run = RunFile::of(adapter)?;
    Ok(run.map(|run| TrainedOn { name: run.model, revision: run.model_revision }))
}

/// What may not change between starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprints {
    /// Of the encoded episodes.
    data: String,
    /// Of the base model's config and weights.
    pub model: String,
    /// Of the resolved config.
    config: String,
    /// Of the adapter that `--init-adapter` named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    init_adapter: Option<String>,
}

const RUN_FILE: &str = "run.json";
const LOCK_FILE: &str = "lock";

pub(super) fn command(config: &Path, options: Options, set: &[String], context: &Context) -> Result<Done> {
    let config = RunConfig::load(config, set)?;
    let _lock = lock(&config.run_dir())?;
    let mut job = Job::prepare(config, &options, context)?;
    let outcome = job.train(context)?;
    let (run_dir, program) = (job.config.run_dir(), program());
    if manner().json {
        print_json(&job.said(outcome, None))?;
    }
    match outcome {
        Outcome::Interrupted => {
            print(&format!("interrupted; continue with --resume (run directory {})", run_dir.display()));
            return Ok(Done::Interrupted);
        }
        Outcome::StoppedEarly => print("stopped early: the validation KL no longer falls"),
        Outcome::Finished => {}
    }
    print(&format!("the {} is in {}", job.what(), job.result_dir().display()));
    if job.config.train.weights != Trainable::All {
        print(&format!(
            "measure it with: {} eval --model {} --adapter {} --episodes FILE",
            files::quoted(program),
            files::quoted(job.source.hint()),
            files::quoted(job.result_dir())
        ));
    }
    Ok(Done::Finished)
}

/// What `--json` prints of a training, or of a whole run.
#[derive(Serialize)]
pub(super) struct Said<'a> {
    /// How the training ended: `finished`, `stopped_early` or `interrupted`.
    outcome: &'static str,
    run_dir: PathBuf,
    /// The folder of the adapter, or of the model where all weights were trained; none where it was interrupted.
    #[serde(skip_serializing_if = "Option::is_none")]
    result_dir: Option<PathBuf>,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_revision: Option<&'a str>,
    /// As in `eval.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    eval: Option<&'a EvalFile>,
}

/// Keeps a second writer out of a run; the lock goes with its owner.
pub(super) struct Lock {
    _file: File,
    run_dir: PathBuf,
}

impl Drop for Lock {
    /// What failed before it wrote anything leaves no run directory.
    fn drop(&mut self) {
        let is_lock =
            |entry: std::io::Result<std::fs::DirEntry>| entry.is_ok_and(|e| e.file_name() == LOCK_FILE);
        if std::fs::read_dir(&self.run_dir).is_ok_and(|mut entries| entries.all(is_lock)) {
            let _ = std::fs::remove_file(self.run_dir.join(LOCK_FILE));
            let _ = std::fs::remove_dir(&self.run_dir);
        }
    }
}

/// Takes the lock of a run.
pub(super) fn lock(run_dir: &Path) -> Result<Lock> {
    std::fs::create_dir_all(run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
    let path = run_dir.join(LOCK_FILE);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file, run_dir: run_dir.to_path_buf() }),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!(
                "another process is writing to {}: wait for it, or choose another run.name",
                run_dir.display()
            )
        }
        Err(std::fs::TryLockError::Error(e)) => {
            Err(anyhow!(e).context(format!("cannot lock {}", path.display())))
        }
    }
}

/// A training with everything at hand but the loop itself.
pub(super) struct Job {
    /// The config, every automatic choice settled.
    pub config: RunConfig,
    pub source: Source,
    pub pipeline: Pipeline,
    pub decoder: Decoder,
    pub fingerprints: Fingerprints,
    data: Data,
    start: Start,
}

impl Job {
    pub(super) fn prepare(config: RunConfig, options: &Options, context: &Context) -> Result<Self> {
        let run_dir = config.run_dir();
        let stored = match run_dir.join(CONFIG_FILE).is_file() {
            true => Some(RunConfig::stored(&run_dir).context("the run's stored config")?),
            false => None,
        };
        if stored.is_some() && options.resume.is_none() {
            return Err(usage(format!(
                "the run {} exists already: --resume continues it, another run.name begins a new one",
                run_dir.display()
            )));
        }
        if let Some(stored) = &stored {
            // Before anything is written: other episodes would take the place of this run's.
            refuse_changes(&config.differences(stored)?, &NOT_SETTLED)?;
        }
        checkpoint::remove_unfinished(&run_dir)?;
        let model = config.model()?;
        let files = if model.init == Init::Random { Files::Tokenizer } else { Files::All };
        let source = Source::find(&model.source, model.revision.as_deref(), files, context)?;
        if let (Trainable::All, Some(file)) = (config.train.weights, source.gguf()) {
            return Err(usage(format!(
                "train.weights = \"all\" needs the model's own folder: {} is a GGUF file, to which only adapters are added",
                file.display()
            )));
        }
        if config.train.weights == Trainable::All && source.config.multimodal {
            return Err(usage("train.weights = \"all\" does not go with a multimodal checkpoint"));
        }
        config.lora.check_against(&source.config)?;
        let format_trains = config.loss.format_weight > 0.0;
        let prefix = config.prefix_len();
        let pipeline = source.pipeline_behind(prefix, &config.tokens)?.with_format_training(format_trains);
        let data = load_data(&config, &pipeline)?;
        let (config, device, dtype) = settle(config, stored.as_ref(), &data, &source)?;
        let mut fingerprints = Fingerprints {
            data: fingerprint_of_data(&data),
            model: fingerprint_of_model(&source, &config)?,
            config: blake3::hash(config.to_toml()?.as_bytes()).to_hex().to_string(),
            init_adapter: None,
        };
        let then = match &stored {
            Some(stored) => {
                let kernels = ops::kernels(&device);
                Some(check_unchanged(&config, stored, &fingerprints, &kernels, options.extend)?)
            }
            None => None,
        };
        let start = starting_point(&run_dir, &source, options)?;
        fingerprints.init_adapter = init_adapter(&start, then.as_ref(), options)?;
        let decoder = match config.model()?.init {
            Init::Pretrained => source.load(dtype, config.model()?.storage()?, &device)?,
            Init::Random => Decoder::random(&source.config, config.run.seed, dtype, &device)?,
        };
        check_disk_space(&config, &source)?;
        Ok(Self { config, source, pipeline, decoder, fingerprints, data, start })
    }

    /// Runs the loop and writes the result.
    pub(super) fn train(&mut self, context: &Context) -> Result<Outcome> {
        let run_dir = self.config.run_dir();
        let settings = self.settings()?;
        let (run_file, config_text) = (self.run_file()?, self.config.to_toml()?);
        let mut progress: Option<Progress> = None;
        let mut observe = |event: Event| {
            match event {
                Event::Ready { parameters, done, steps } => {
                    let left = steps.saturating_sub(done);
                    note(&format!("train: {parameters} parameters, {left} of {steps} steps to do"));
                    // The config comes last: where it stands, there is a run.
                    files::write_json(&run_dir.join(RUN_FILE), &run_file)?;
                    files::write(&run_dir.join(CONFIG_FILE), config_text.as_bytes())?;
                    progress = Some(Progress::new("train", done as u64, steps as u64));
                }
                Event::Step(record) => {
                    if let Some(progress) = &progress {
                        progress.at(record.step as u64, &describe(record));
                    }
                }
                Event::Evaluation(record) => {
                    if let Some(progress) = &progress {
                        progress.line(&format!(
                            "step {}: validation KL {:.5}, entropy {:.3}, agreement {:.3}",
                            record.step,
                            record.validation_kl,
                            record.validation_entropy,
                            record.validation_agreement
                        ));
                    }
                }
                Event::Saved(_) => {}
            }
            Ok(())
        };
        let start = std::mem::replace(&mut self.start, Start::Fresh);
        let trained = context.interrupt.gracefully(|stop| {
            trainer::train(&mut self.decoder, &self.data, &settings, &run_dir, start, stop, &mut observe)
        });
        let (trained, outcome) = trained.map_err(|error| self.with_advice(error))?;
        if let Some(progress) = &progress {
            progress.finish();
        }
        self.write_result(&trained)?;
        Ok(outcome)
    }

    /// An error for want of memory says what would take less.
    fn with_advice(&self, error: anyhow::Error) -> anyhow::Error {
        let said = format!("{error:#}").to_lowercase();
        if !said.contains("out of memory") && !said.contains("out_of_memory") {
            return error;
        }
        let lengths = Lengths::of(&self.data.train, &self.config.loss);
        let device = self.decoder.device();
        let dtype = self.config.model().and_then(|model| device::dtype(&model.dtype, device));
        match dtype.and_then(|dtype| setting(&self.config, &self.source, &lengths, (device, dtype))) {
            Ok(setting) => error.context(plan::advice(&setting, None)),
            Err(_) => error,
        }
    }

    /// What there is to say to a program.
    pub(super) fn said<'a>(&'a self, outcome: Outcome, eval: Option<&'a EvalFile>) -> Said<'a> {
        let interrupted = outcome == Outcome::Interrupted;
        Said {
            outcome: match outcome {
                Outcome::Finished => "finished",
                Outcome::StoppedEarly => "stopped_early",
                Outcome::Interrupted => "interrupted",
            },
            run_dir: self.config.run_dir(),
            result_dir: (!interrupted).then(|| self.result_dir()),
            model: &self.source.snapshot.name,
            model_revision: self.source.snapshot.revision.as_deref(),
            eval,
        }
    }

    /// The folder of what was trained.
    pub(super) fn result_dir(&self) -> PathBuf {
        self.config.run_dir().join(self.what())
    }

    /// The training episodes.
    pub(super) fn trained_on(&self) -> &[Sequence] {
        &self.data.train
    }

    /// What is trained, in a word.
    pub(super) fn what(&self) -> &'static str {
        match self.config.train.weights {
            Trainable::Lora | Trainable::Prefix => "adapter",
            Trainable::All => "model",
        }
    }

    fn write_result(&self, trained: &Trained) -> Result<()> {
        files::write_folder(&self.result_dir(), |dir| {
            trained.write(dir)?;
            if self.config.train.weights == Trainable::All {
                for name in ["config.json", "generation_config.json"] {
                    let from = self.source.dir().join(name);
                    if from.is_file() {
                        std::fs::copy(&from, dir.join(name))
                            .with_context(|| format!("cannot copy {}", from.display()))?;
                    }
                }
            }
            self.pipeline.save_beside(self.source.dir(), dir)
        })
    }

    fn settings(&self) -> Result<Settings> {
        let config = self.config.clone();
        Ok(Settings {
            seed: config.run.seed,
            lora: config.lora,
            prefix: config.prefix,
            loss: config.loss,
            optimizer: config.optimizer,
            schedule: config.schedule,
            train: config.train,
            base: self.source.snapshot.name.clone(),
            revision: self.source.snapshot.revision.clone(),
        })
    }

    fn run_file(&self) -> Result<RunFile> {
        Ok(RunFile {
            format_version: 1,
            version: env!("CARGO_PKG_VERSION").into(),
            seed: self.config.run.seed,
            device: self.config.run.device.clone(),
            dtype: self.config.model()?.dtype.clone(),
            kernels: ops::kernels(self.decoder.device()),
            threads: rayon::current_num_threads(),
            model: self.source.snapshot.name.clone(),
            model_revision: self.source.snapshot.revision.clone(),
            gguf: self.source.gguf().is_some(),
            template: self.pipeline.variant().as_str().into(),
            fingerprints: self.fingerprints.clone(),
        })
    }
}

fn describe(record: &crate::train::metrics_log::StepRecord) -> String {
    let kl = record.kl.map(|kl| format!("  KL {kl:.5}")).unwrap_or_default();
    let memory = record.peak_memory_bytes.map(|b| format!("  peak {}", size(b))).unwrap_or_default();
    format!("loss {:.5}{kl}  {:.0} tokens/s{memory}", record.loss, record.tokens_per_second)
}

/// Where a run's episodes are: (train, validation, test).
pub(super) fn episode_files(config: &RunConfig) -> (PathBuf, Option<PathBuf>, Option<PathBuf>) {
    match &config.data {
        Some(data) => (data.train.clone(), data.validation.clone(), data.test.clone()),
        None => {
            let dir = config.run_dir().join(teach::FOLDER);
            let file = |name: &str| dir.join(name);
            (file("train.jsonl"), Some(file("validation.jsonl")), Some(file("test.jsonl")))
        }
    }
}

/// The episodes that an adapter's run was trained on, where they still are. A run may have been moved, and its episodes with
/// it or not.
pub(super) fn train_file_of(adapter: &Path) -> Result<Option<PathBuf>> {
    let Some(run) = run_of(adapter)? else { return Ok(None) };
    let beside = adapter.join("..").join(teach::FOLDER).join("train.jsonl");
    Ok([episode_files(&run).0, beside].into_iter().find(|file| file.is_file()))
}

/// Encodes the episodes of a file, and says how many were dropped.
pub(super) fn encode_file(pipeline: &Pipeline, file: &Path) -> Result<Vec<Sequence>> {
    let encoded = pipeline.encode_file(file)?;
    eval::tell_dropped(&encoded);
    Ok(encoded.sequences)
}

fn load_data(config: &RunConfig, pipeline: &Pipeline) -> Result<Data> {
    if config.data.is_none() {
        teach::ensure(config)?;
    }
    let (train, validation, _) = episode_files(config);
    let validation = match validation {
        Some(file) if file_has_lines(&file)? => {
            let lines = config.eval.choose(read_lines(&file)?);
            TestSet::encode(pipeline, lines, &file)?.sequences
        }
        _ => Vec::new(),
    };
    Ok(Data { train: encode_file(pipeline, &train)?, validation })
}

/// A split of fraction 0 leaves an empty file.
pub(super) fn file_has_lines(path: &Path) -> Result<bool> {
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(metadata.len() > 0)
}

/// Settles every automatic choice: as the run's first start did, or now.
fn settle(
    mut config: RunConfig,
    stored: Option<&RunConfig>,
    data: &Data,
    source: &Source,
) -> Result<(RunConfig, Device, DType)> {
    let stored_model = stored.and_then(|s| s.model.as_ref());
    let device = match (config.run.device.as_str(), stored) {
        ("auto", Some(stored)) => device::open(&stored.run.device).or_else(|_| device::open("auto"))?,
        (name, _) => device::open(name)?,
    };
    config.run.device = device::name(&device);
    if let Some(stored) = stored.filter(|s| s.run.device != config.run.device) {
        note(&format!(
            "the run began on {} and goes on on {}: what follows equals the uninterrupted run up to rounding only",
            stored.run.device, config.run.device
        ));
    }
    let Some(model) = config.model.as_mut() else { return Err(usage("[model] is missing")) };
    if let (true, Some(stored)) = (model.dtype == "auto", stored_model) {
        model.dtype.clone_from(&stored.dtype);
    }
    let dtype = device::dtype(&model.dtype, &device)?;
    model.dtype = device::dtype_name(dtype).into();
    if config.train.weights == Trainable::All && dtype != DType::F32 {
        return Err(usage("train.weights = \"all\" computes in f32: set model.dtype = \"f32\""));
    }
    let storage = config.model()?.storage()?;
    if storage != Storage::Dense
        && (config.train.weights == Trainable::All || config.model()?.init == Init::Random)
    {
        return Err(usage(
            "model.quantization is for a pretrained base that stays frozen under an adapter: set it to \"none\"",
        ));
    }
    let lengths = Lengths::of(&data.train, &config.loss);
    let setting = setting(&config, source, &lengths, (&device, dtype))?;
    let available = device::available_memory(&device);
    let checkpointing = match (config.train.checkpointing, stored) {
        (Checkpointing::Auto, Some(stored)) => stored.train.checkpointing,
        (Checkpointing::Auto, None) => checkpointing(&setting, available),
        (given, _) => given,
    };
    let setting = Setting { keep: checkpointing.keep(), ..setting };
    if !plan::fits(&setting, available) {
        note(&format!("warning: {}", plan::advice(&setting, available)));
    }
    config.train.checkpointing = checkpointing;
    let steps_per_epoch = data.train.len().div_ceil(config.train.batch_size);
    let steps = config.train.total_steps(steps_per_epoch);
    if config.schedule.warmup_steps >= steps {
        note(&format!(
            "warning: all {steps} steps are warm-up (schedule.warmup_steps = {}): the learning rate never reaches {}",
            config.schedule.warmup_steps, config.optimizer.lr
        ));
    }
    config.train.max_steps = Some(steps);
    config.train.epochs = None;
    Ok((config, device, dtype))
}

/// What the config's training takes, as it computes.
fn setting<'a>(
    config: &'a RunConfig,
    source: &'a Source,
    lengths: &'a Lengths,
    (device, dtype): (&'a Device, DType),
) -> Result<Setting<'a>> {
    Ok(Setting {
        config,
        source,
        lengths,
        dtype,
        storage: config.model()?.storage()?,
        keep: config.train.checkpointing.keep(),
        device,
    })
}

/// Computes blocks again where keeping everything does not fit into the memory that is there.
fn checkpointing(setting: &Setting, available: Option<u64>) -> Checkpointing {
    let everything = Setting { keep: Keep::Everything, ..*setting };
    if plan::fits(&everything, available) { Checkpointing::None } else { Checkpointing::Block }
}

/// What a resumed run may change, besides the device.
const MAY_CHANGE: [&str; 15] = [
    "train.max_steps",
    "train.save_every",
    "train.eval_every",
    "train.keep_last",
    "train.early_stopping_patience",
    "eval.examples",
    "eval.in_depth",
    "eval.held_out_sets",
    "eval.probes",
    "eval.interactive",
    "eval.sensitivity",
    "eval.generate",
    "eval.reasoner",
    "run.dir",
    "run.device",
];

/// What [`settle`] has yet to fill in as it was.
const NOT_SETTLED: [&str; 3] = ["model.dtype", "train.checkpointing", "train.epochs"];

/// Refuses changes of keys that may not change, but for those in `except`.
fn refuse_changes(changed: &[(String, String, String)], except: &[&str]) -> Result<()> {
    let refused: Vec<String> = changed
        .iter()
        .filter(|(key, ..)| !MAY_CHANGE.contains(&key.as_str()) && !except.contains(&key.as_str()))
        .map(|(key, now, then)| format!("{key} is {now} and was {then}"))
        .collect();
    if !refused.is_empty() {
        return Err(usage(format!(
            "a resumed run may not change this: {}; set it back, or begin a new run under another run.name",
            refused.join("; ")
        )));
    }
    Ok(())
}

/// Refuses what may not change between starts; returns the fingerprints of the earlier ones.
fn check_unchanged(
    config: &RunConfig,
    stored: &RunConfig,
    now: &Fingerprints,
    kernels: &str,
    extend: bool,
) -> Result<Fingerprints> {
    let changed = config.differences(stored)?;
    refuse_changes(&changed, &[])?;
    let steps = changed.iter().find(|(key, ..)| key == "train.max_steps");
    if let Some((_, now, then)) = steps
        && config.schedule.kind != ScheduleKind::Constant
        && !extend
    {
        return Err(usage(format!(
            "train.max_steps is {now} and was {then}, and the schedule depends on it: the learning rate would not go \
             on as it was; --extend accepts that, schedule.kind = \"constant\" from the start avoids it"
        )));
    }
    let run: RunFile = files::read_json(&config.run_dir().join(RUN_FILE))?;
    let then = &run.fingerprints;
    for (what, now, then) in [("model", &now.model, &then.model), ("data", &now.data, &then.data)] {
        if now != then {
            return Err(usage(format!(
                "the {what} is not what this run began with (fingerprint {now:.12}, was {then:.12}): bring it back, or \
                 begin a new run under another run.name"
            )));
        }
    }
    // Another device has been told already.
    if run.device == config.run.device && run.kernels != kernels {
        note(&format!(
            "the run was computing with {} and goes on with {kernels}: what follows equals the uninterrupted run up to \
             rounding only",
            run.kernels
        ));
    }
    Ok(run.fingerprints)
}

/// The fingerprint of the adapter that the run began from; a run that begins again must name the same one.
fn init_adapter(start: &Start, then: Option<&Fingerprints>, options: &Options) -> Result<Option<String>> {
    let before = then.and_then(|t| t.init_adapter.clone());
    let now = match (start, &options.init_adapter) {
        (Start::From(_), Some(dir)) => Some(fingerprint_of_adapter(&adapter_folder(dir))?),
        (Start::Checkpoint(_), _) => return Ok(before),
        _ => None,
    };
    if then.is_some() && now != before {
        return Err(usage(
            "this run has no checkpoint yet and began from another adapter, or from none: give the same --init-adapter \
             as then, or begin a new run under another run.name",
        ));
    }
    Ok(now)
}

fn starting_point(run_dir: &Path, source: &Source, options: &Options) -> Result<Start> {
    let steps = if options.resume.is_some() { checkpoint::list(run_dir)? } else { Vec::new() };
    let wanted = match options.resume.flatten() {
        Some(step) if !steps.contains(&step) => {
            return Err(usage(format!(
                "--resume {step}: {} has no such checkpoint, only those after steps {steps:?}",
                run_dir.display()
            )));
        }
        Some(step) => Some(step),
        None => steps.last().copied(),
    };
    match (wanted, &options.init_adapter) {
        (Some(_), Some(_)) => Err(usage("--init-adapter is for a new run, but --resume found a checkpoint")),
        (Some(step), None) => Ok(Start::Checkpoint(checkpoint::path(run_dir, step))),
        (None, Some(dir)) => {
            let adapter: Adapter = source.adapter(dir)?;
            Ok(Start::From(Box::new(adapter)))
        }
        (None, None) => Ok(Start::Fresh),
    }
}

fn fingerprint_of_data(data: &Data) -> String {
    let parts = [&data.train, &data.validation].map(|part| fingerprint(part));
    blake3::hash(parts.map(|part| *part.as_bytes()).as_flattened()).to_hex().to_string()
}

/// Reads a part at a time: all of a large file's pages at once would be this run's peak of memory.
fn hash(hasher: &mut blake3::Hasher, path: &Path) -> std::io::Result<()> {
    const PART: u64 = 32 << 20;
    let mut file = File::open(path)?;
    let mut part = Vec::new();
    loop {
        part.clear();
        if file.by_ref().take(PART).read_to_end(&mut part)? == 0 {
            return Ok(());
        }
        hasher.update_rayon(&part);
    }
}

fn fingerprint_of_model(source: &Source, config: &RunConfig) -> Result<String> {
    let mut paths = vec![source.dir().join("config.json")];
    if config.model()?.init == Init::Pretrained {
        paths.extend(source.weight_files()?);
    }
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        hash(&mut hasher, &path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Refuses a base that is not the one that the run in which `adapter` lies was trained on. For a GGUF file, the model that
/// it was made of may stand, of which only the shape can be compared.
pub(super) fn check_base(adapter: &Path, run: &RunConfig, base: &Source, context: &Context) -> Result<()> {
    if run.model()?.init == Init::Random {
        return Err(usage(
            "the run's base was drawn at random (model.init = \"random\"), so there is no file of it: only the adapter \
             itself can be exported",
        ));
    }
    let Some(then) = RunFile::of(adapter)? else { return Ok(()) };
    if then.is_gguf() && base.gguf().is_none() {
        return check_original(&then.model, base, context);
    }
    let (now, then) = (fingerprint_of_model(base, run)?, then.fingerprints.model);
    if now != then {
        return Err(usage(format!(
            "{} is not the model that this adapter was trained on (fingerprint {now:.12}, was {then:.12}): name that one \
             with --model",
            base.snapshot.name
        )));
    }
    Ok(())
}

/// Refuses a base of another shape than the GGUF file that an adapter was trained on, where that is still there.
fn check_original(file: &str, base: &Source, context: &Context) -> Result<()> {
    let name = &base.snapshot.name;
    if Path::new(file).is_file() {
        let trained = Source::find(file, None, Files::Config, context)?;
        let shape = |c: &ModelConfig| {
            let attention = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
            (c.family, c.num_layers(), c.hidden_size, c.intermediate_size, attention)
        };
        if shape(&trained.config) != shape(&base.config) {
            return Err(usage(format!(
                "{name} is of another shape than {file}, on which the adapter was trained: name the model that this file was \
                 made of with --model"
            )));
        }
    }
    note(&format!(
        "note: the adapter was trained on the GGUF file {file}; it is merged into {name}, which must be the model that the \
         file was made of, and computes slightly differently where the file is rounded"
    ));
    Ok(())
}

/// Of an adapter's tensors.
pub(super) fn fingerprint_of_adapter(dir: &Path) -> Result<String> {
    let path = dir.join(peft::TENSORS_FILE);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

fn check_disk_space(config: &RunConfig, source: &Source) -> Result<()> {
    let parameters =
        config.adapter_parameters(&source.config).unwrap_or_else(|| source.config.parameter_count());
    // Weights and two moments in f32; the kept ones, the best one, one being written, and the result.
    let steps = config.train.max_steps.unwrap_or(1);
    let saves = if config.train.save_every == 0 { 1 } else { steps.div_ceil(config.train.save_every) };
    let kept = if config.train.keep_last == 0 { saves } else { saves.min(config.train.keep_last) };
    let needed = (parameters * 12 * (kept + 3)) as u64;
    let run_dir = config.run_dir();
    let free = fs4::available_space(&run_dir)
        .with_context(|| format!("cannot tell the free space at {}", run_dir.display()))?;
    if free < needed {
        bail!(
            "{}: the checkpoints need {}, but only {} are free; lower train.keep_last ({}) or choose another run.dir",
            run_dir.display(),
            size(needed),
            size(free),
            config.train.keep_last
        );
    }
    Ok(())
}
