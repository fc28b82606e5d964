//! The training loop: from a start or a checkpoint to the last step.
//!
//! Every step is a function of (settings, data, parameters, optimizer state, step number) alone, so a run
//! that was stopped and resumed is the uninterrupted run, bit for bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Tensor};

use super::checkpoint::{self, Best, State, Trained};
use super::config::{LossConfig, OptimizerConfig, ScheduleConfig, TrainConfig};
use super::loss::{LossSettings, MicroBatch, micro_batches_of, step_sums, step_sums_of};
use super::metrics_log::{EvaluationRecord, MetricsLog, StepRecord};
use super::optimizer::{AdamW, global_norm, norm};
use crate::device;
use crate::eval;
use crate::metrics::{Measure, Measures, summarise};
use crate::model::adapter::Adapter;
use crate::model::decoder::Decoder;
use crate::model::gradients::Trainable;
use crate::model::lora::{Lora, LoraConfig};
use crate::model::peft::{self, PeftConfig, PeftLora, PeftPrompt};
use crate::model::prefix::{Prefix, PrefixConfig};
use crate::model::tensors;
use crate::tokens::{Sampler, Sequence};

/// Everything that a run is a function of, besides model and data.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The run's seed.
    pub seed: u64,
    /// The adapter.
    pub lora: LoraConfig,
    /// The soft prompt, where that is trained.
    pub prefix: Option<PrefixConfig>,
    /// The loss.
    pub loss: LossConfig,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The schedule.
    pub schedule: ScheduleConfig,
    /// The loop; `checkpointing` is settled.
    pub train: TrainConfig,
    /// What the base model is called.
    pub base: String,
    /// The base model's commit.
    pub revision: Option<String>,
}

/// The encoded episodes.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// To train on.
    pub train: Vec<Sequence>,
    /// To choose checkpoints by; may be empty.
    pub validation: Vec<Sequence>,
}

/// Where a run starts.
#[derive(Clone, Debug)]
pub enum Start {
    /// At step 0.
    Fresh,
    /// At step 0, from an adapter's values.
    From(Box<Adapter>),
    /// After the checkpoint in this folder.
    Checkpoint(PathBuf),
}

/// What a run tells while it works.
#[derive(Debug)]
pub enum Event<'a> {
    /// The checks before the first step passed.
    Ready {
        /// Trained parameters.
        parameters: usize,
        /// Steps done before.
        done: usize,
        /// Steps in all.
        steps: usize,
    },
    /// A step was done.
    Step(&'a StepRecord),
    /// The validation episodes were measured.
    Evaluation(&'a EvaluationRecord),
    /// A checkpoint was written after this many steps.
    Saved(usize),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The validation KL stopped falling.
    StoppedEarly,
    /// It was asked to stop; a checkpoint is written.
    Interrupted,
}

/// A run between two steps.
struct Session<'a> {
    decoder: &'a mut Decoder,
    data: &'a Data,
    settings: &'a Settings,
    run_dir: &'a Path,
    trained: Trained,
    parameters: BTreeMap<String, Tensor>,
    optimizer: AdamW,
    state: State,
    steps: usize,
    sampler: Sampler,
    /// Made while a GPU computed the step before.
    next: Option<Prepared<'a>>,
}

/// A step's batch, and the parts in which it goes through the model.
struct Prepared<'a> {
    step: usize,
    batch: Vec<usize>,
    micro_batches: Vec<MicroBatch<'a>>,
}

/// Trains; leaves the trained weights in `decoder`, and checkpoints and metrics in `run_dir`.
///
/// # Errors
/// If the set-up cannot work, the loss or a gradient is not finite, or the disk or the device fails.
pub fn train(
    decoder: &mut Decoder,
    data: &Data,
    settings: &Settings,
    run_dir: &Path,
    start: Start,
    stop: &AtomicBool,
    observe: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<(Trained, Outcome)> {
    let mut session = Session::start(decoder, data, settings, run_dir, start)?;
    session.audit()?;
    let parameters = session.parameters.values().map(Tensor::elem_count).sum();
    observe(Event::Ready { parameters, done: session.state.step, steps: session.steps })?;
    let mut log = MetricsLog::open(run_dir, session.state.step)?;
    checkpoint::remove_after(run_dir, &session.state)?;
    let mut outcome = Outcome::Finished;
    while session.state.step < session.steps {
        if session.is_out_of_patience() {
            outcome = Outcome::StoppedEarly;
            break;
        }
        let record = session.step()?;
        log.append(&record)?;
        observe(Event::Step(&record))?;
        let stopped = stop.load(Ordering::SeqCst);
        let mut save = stopped || session.is_due(settings.train.save_every);
        if session.is_due(settings.train.eval_every) && !data.validation.is_empty() {
            let record = session.evaluate()?;
            log.append(&record)?;
            observe(Event::Evaluation(&record))?;
            save |= session.state.best.as_ref().is_some_and(|b| b.step == session.state.step);
        }
        let early = session.is_out_of_patience();
        if save || early {
            session.save()?;
            observe(Event::Saved(session.state.step))?;
        }
        if session.state.step < session.steps && stopped && !early {
            outcome = Outcome::Interrupted;
            break;
        }
    }
    Ok((session.trained, outcome))
}

impl<'a> Session<'a> {
    fn start(
        decoder: &'a mut Decoder,
        data: &'a Data,
        settings: &'a Settings,
        run_dir: &'a Path,
        start: Start,
    ) -> Result<Self> {
        ensure!(!data.train.is_empty(), "there are no episodes to train on");
        let sampler = Sampler {
            seed: settings.seed,
            examples: data.train.len(),
            batch_size: settings.train.batch_size,
        };
        let (trained, state, resume) = starting_point(decoder, settings, start)?;
        let device = decoder.device().clone();
        let place = |(name, t): (String, Tensor)| Ok((name, t.to_device(&device)?.to_dtype(DType::F32)?));
        let parameters = trained.tensors().into_iter().map(place).collect::<Result<BTreeMap<_, _>>>()?;
        let optimizer = match resume {
            Some(dir) => {
                let moments = checkpoint::read_optimizer(&dir)?;
                AdamW::restore(&settings.optimizer, state.step, &moments, &parameters)
                    .with_context(|| format!("optimizer state in {}", dir.display()))?
            }
            None => AdamW::new(&settings.optimizer),
        };
        let steps = settings.train.total_steps(sampler.steps_per_epoch());
        let mut session = Self {
            decoder,
            data,
            settings,
            run_dir,
            trained,
            parameters,
            optimizer,
            state,
            steps,
            sampler,
            next: None,
        };
        session.put_parameters()?;
        Ok(session)
    }

    fn loss_settings(&self) -> LossSettings<'a> {
        LossSettings {
            loss: &self.settings.loss,
            trainable: self.settings.train.weights,
            micro_batch_tokens: self.settings.train.micro_batch_tokens,
            keep: self.settings.train.checkpointing.keep(),
            dropout: self.settings.lora.dropout,
            seed: self.settings.seed,
        }
    }

    /// One evaluation batch and one gradient, so that a wrong set-up fails in seconds.
    fn audit(&self) -> Result<()> {
        if let Some(first) = self.data.validation.first() {
            let predictions =
                eval::predictions(self.decoder, std::slice::from_ref(first), usize::MAX, &|_| ())?;
            summarise(&predictions).context("the first validation episode")?;
        }
        let batch = self.sampler.batch(self.state.step);
        let one = &batch[..1];
        let sums = step_sums(self.decoder, &self.data.train, one, &self.loss_settings(), self.state.step)?;
        for name in self.parameters.keys() {
            let gradient = sums.gradients.get(name).with_context(|| format!("{name} gets no gradient"))?;
            let norm = norm(gradient)?;
            if !norm.is_finite() {
                bail!("{name} gets a gradient that is not finite{}", self.culprits(one));
            }
            // A stands still as long as B is 0, as it is at the start; everything else must move.
            ensure!(
                norm > 0.0 || name.ends_with(".lora_A.weight"),
                "{name} gets a gradient of zero: training would not move it"
            );
        }
        Ok(())
    }

    fn culprits(&self, batch: &[usize]) -> String {
        let ids: Vec<&str> = batch.iter().map(|&i| self.data.train[i].id.as_str()).collect();
        format!(" (episodes: {})", ids.join(", "))
    }

    fn step(&mut self) -> Result<StepRecord> {
        let started = Instant::now();
        let step = self.state.step;
        let settings = self.loss_settings();
        let (data, sampler) = (self.data, &self.sampler);
        let decoder = &*self.decoder;
        let prepare = |step: usize| {
            let batch = sampler.batch(step);
            let micro_batches = micro_batches_of(decoder, &data.train, &batch, &settings);
            Prepared { step, batch, micro_batches }
        };
        let prepared = self.next.take().filter(|prepared| prepared.step == step);
        let Prepared { batch, micro_batches, .. } = prepared.unwrap_or_else(|| prepare(step));
        let mut next = None;
        let meanwhile = || next = Some(prepare(step + 1));
        let sums = step_sums_of(decoder, &micro_batches, &settings, step, meanwhile)
            .with_context(|| format!("step {}{}", step + 1, self.culprits(&batch)))?;
        self.next = next;
        let loss = sums.loss / sums.weight;
        let norm = global_norm(&sums.gradients)? / sums.weight;
        if !loss.is_finite() || !norm.is_finite() {
            let culprits = if sums.broken.is_empty() { &batch } else { &sums.broken };
            bail!(
                "step {}: the loss ({loss}) or the gradient's norm ({norm}) is not finite{}; the last checkpoint is \
                 kept, a lower optimizer.lr or a look at these episodes may help",
                step + 1,
                self.culprits(culprits)
            );
        }
        let max = self.settings.optimizer.max_grad_norm;
        // As torch's clip_grad_norm_ has it.
        let clip = if max > 0.0 { (max / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let lr = self.settings.optimizer.lr * self.settings.schedule.factor(step, self.steps);
        self.optimizer.update(&mut self.parameters, &sums.gradients, clip / sums.weight, lr)?;
        if !global_norm(&self.parameters)?.is_finite() {
            bail!(
                "step {}: the update made weights that are not finite{}; the last checkpoint is kept, a lower \
                 optimizer.lr may help",
                step + 1,
                self.culprits(&batch)
            );
        }
        self.put_parameters()?;
        self.state.step += 1;
        Ok(StepRecord {
            step: self.state.step,
            loss,
            kl: sums.mean_kl(),
            lr,
            grad_norm: norm,
            tokens_per_second: sums.tokens as f64 / started.elapsed().as_secs_f64(),
            peak_memory_bytes: device::peak_memory_of(self.decoder.device()),
        })
    }

    fn put_parameters(&mut self) -> Result<()> {
        match &mut self.trained {
            Trained::Adapter(adapter, _) => {
                adapter.set_tensors(&self.parameters)?;
                self.decoder.set_adapter(Some(adapter))
            }
            Trained::All(weights) => {
                weights.clone_from(&self.parameters);
                self.decoder.set_parameters(weights)
            }
        }
    }

    fn is_out_of_patience(&self) -> bool {
        self.settings.train.is_out_of_patience(&self.state)
    }

    fn is_due(&self, every: usize) -> bool {
        self.state.step == self.steps || (every > 0 && self.state.step.is_multiple_of(every))
    }

    fn evaluate(&mut self) -> Result<EvaluationRecord> {
        let measures = self.measure()?;
        let mean = |measure| measures.get(measure).context("the validation episodes have no answers");
        let kl = validation_kl(&measures, &self.settings.loss)?;
        let step = self.state.step;
        if self.state.best.as_ref().is_none_or(|b| kl < b.kl) {
            let checkpoint = format!("{}/{}", checkpoint::FOLDER, checkpoint::name(step));
            self.state.best = Some(Best { step, kl, checkpoint });
            self.state.evaluations_without_improvement = 0;
        } else {
            self.state.evaluations_without_improvement += 1;
        }
        Ok(EvaluationRecord {
            step,
            validation_kl: kl,
            validation_belief_kl: measures.beliefs.as_ref().and_then(|beliefs| beliefs.get(Measure::Kl)),
            validation_kl_vocabulary: mean(Measure::KlVocabulary)?,
            validation_entropy: mean(Measure::Entropy)?,
            validation_entropy_teacher: mean(Measure::Entropy)? - mean(Measure::EntropyBias)?,
            validation_agreement: mean(Measure::Agreement)?,
            validation_accuracy: measures.get(Measure::Accuracy),
        })
    }

    fn measure(&self) -> Result<Measures> {
        let budget = self.settings.train.micro_batch_tokens;
        summarise(&eval::predictions(self.decoder, &self.data.validation, budget, &|_| ())?)
    }

    fn save(&self) -> Result<()> {
        checkpoint::write(self.run_dir, &self.trained, &self.optimizer, &self.state)?;
        checkpoint::prune(self.run_dir, self.settings.train.keep_last, self.state.best.as_ref())
    }
}

/// The mean KL over what is trained: predictions and recommendations, reported beliefs, or both by their weights.
///
/// # Errors
/// If there are no answers.
fn validation_kl(measures: &Measures, loss: &LossConfig) -> Result<f64> {
    let mean = |of: &Measures| of.get(Measure::Kl).context("the validation episodes have no answers");
    let kl = mean(measures)?;
    let Some(beliefs) = &measures.beliefs else { return Ok(kl) };
    let (action, belief) =
        (loss.action_weight * measures.answers as f64, loss.belief_weight * beliefs.answers as f64);
    if action + belief > 0.0 {
        Ok((action * kl + belief * mean(beliefs)?) / (action + belief))
    } else {
        Ok(kl)
    }
}

fn starting_point(
    decoder: &Decoder,
    settings: &Settings,
    start: Start,
) -> Result<(Trained, State, Option<PathBuf>)> {
    let fresh = State { format_version: 1, step: 0, best: None, evaluations_without_improvement: 0 };
    let model = decoder.config();
    match (settings.train.weights, start) {
        (Trainable::Lora | Trainable::Prefix, start) => {
            let (adapter, config) = fresh_adapter(decoder, settings)?;
            match start {
                Start::Fresh => Ok((Trained::Adapter(adapter, config), fresh, None)),
                Start::From(given) => {
                    same_shape(&adapter, &given)?;
                    Ok((Trained::Adapter(with_dropout_of(&adapter, *given), config), fresh, None))
                }
                Start::Checkpoint(dir) => {
                    let (_, stored) = peft::read(&dir, model)?;
                    same_shape(&adapter, &stored)?;
                    let state = checkpoint::read_state(&dir)?;
                    Ok((Trained::Adapter(stored, config), state, Some(dir)))
                }
            }
        }
        (Trainable::All, Start::From(_)) => {
            bail!("train.weights = \"all\" trains no adapter that --init-adapter could start from")
        }
        (Trainable::All, Start::Fresh) => Ok((Trained::All(decoder.parameters()), fresh, None)),
        (Trainable::All, Start::Checkpoint(dir)) => {
            let stored = tensors::read(&dir.join(checkpoint::MODEL_FILE))?;
            let expected = decoder.parameters();
            ensure!(stored.keys().eq(expected.keys()), "{}: the weights are another model's", dir.display());
            let state = checkpoint::read_state(&dir)?;
            Ok((Trained::All(stored), state, Some(dir)))
        }
    }
}

/// The adapter that the settings describe, and what its `adapter_config.json` will say.
fn fresh_adapter(decoder: &Decoder, settings: &Settings) -> Result<(Adapter, Box<PeftConfig>)> {
    let model = decoder.config();
    let (base, revision) = (settings.base.as_str(), settings.revision.as_deref());
    if settings.train.weights == Trainable::Prefix {
        let prefix =
            settings.prefix.as_ref().context("a soft prompt is to be trained, but [prefix] is missing")?;
        let config = PeftConfig::PromptTuning(PeftPrompt::new(prefix.length, model, base, revision));
        return Ok((Adapter::Prefix(Prefix::new(prefix, decoder, settings.seed)?), Box::new(config)));
    }
    let config = PeftConfig::Lora(PeftLora::new(&settings.lora, model, base, revision));
    let lora = Lora::new(&settings.lora, model, settings.seed, decoder.device())?;
    Ok((Adapter::Lora(lora), Box::new(config)))
}

/// A file of an adapter need not say the dropout that it goes on with.
fn with_dropout_of(settings: &Adapter, given: Adapter) -> Adapter {
    match (settings, given) {
        (Adapter::Lora(lora), Adapter::Lora(given)) => Adapter::Lora(Lora { dropout: lora.dropout, ..given }),
        (_, given) => given,
    }
}

/// An adapter to start from must be what `[lora]` or `[prefix]` describes.
fn same_shape(expected: &Adapter, given: &Adapter) -> Result<()> {
    match (expected, given) {
        (Adapter::Lora(expected), Adapter::Lora(given)) => same_lora(expected, given),
        (Adapter::Prefix(expected), Adapter::Prefix(given)) => {
            let (length, wanted) = (given.embeddings.dim(0)?, expected.embeddings.dim(0)?);
            ensure!(
                length == wanted,
                "the soft prompt to start from is {length} long, prefix.length is {wanted}"
            );
            Ok(())
        }
        (Adapter::Lora(_), Adapter::Prefix(_)) => {
            bail!("what to start from is a soft prompt: [prefix] goes on with it")
        }
        (Adapter::Prefix(_), Adapter::Lora(_)) => {
            bail!("what to start from is a LoRA adapter: [lora] goes on with it")
        }
    }
}

fn same_lora(expected: &Lora, given: &Lora) -> Result<()> {
    let missing = expected.modules.keys().find(|path| !given.modules.contains_key(*path));
    let extra = given.modules.keys().find(|path| !expected.modules.contains_key(*path));
    if let Some(path) = missing {
        bail!("the adapter to start from lacks {path}, which lora.target_modules asks for");
    }
    if let Some(path) = extra {
        bail!("the adapter to start from has {path}, which lora.target_modules does not ask for");
    }
    for (path, module) in &expected.modules {
        let start = &given.modules[path];
        let (r, wanted) = (start.a.dim(0)?, module.a.dim(0)?);
        ensure!(r == wanted, "the adapter to start from has r = {r} at {path}, lora.r is {wanted}");
        ensure!(
            (start.scale - module.scale).abs() <= 1e-9 * module.scale,
            "the adapter to start from scales {path} by {}, [lora] by {}: set lora.alpha or lora.use_rslora to match",
            start.scale,
            module.scale
        );
    }
    Ok(())
}
