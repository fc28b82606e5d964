//! One optimizer step's loss and gradients: a sum and a weight over all micro-batches, divided once.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use candle_core::Tensor;

use super::config::{LossConfig, Support};
use crate::model::decoder::{Decoder, Keep, Tokens};
use crate::model::gradients::{Gradients, Trainable};
use crate::ops::dropout::Dropout;
use crate::ops::kl::{Rows, Targets};
use crate::tokens::{Batch, Sequence, TargetKind, micro_batches};

/// What stays the same from step to step.
#[derive(Clone, Copy, Debug)]
pub struct LossSettings<'a> {
    /// The loss.
    pub loss: &'a LossConfig,
    /// What gets gradients.
    pub trainable: Trainable,
    /// Tokens that go through the model at a time.
    pub micro_batch_tokens: usize,
    /// What is kept for the backward.
    pub keep: Keep,
    /// The adapter's dropout.
    pub dropout: f64,
    /// The run's seed, for dropout.
    pub seed: u64,
}

/// One optimizer step's sums.
#[derive(Debug)]
pub struct StepSums {
    /// Σ weight · loss over all targets.
    pub loss: f64,
    /// Σ weight over all targets.
    pub weight: f64,
    /// Σ KL(teacher ‖ model) over answers, over the whole vocabulary, unweighted.
    pub kl: f64,
    /// Number of answers.
    pub answers: usize,
    /// Sequences (indices into the data) whose loss is not finite.
    pub broken: Vec<usize>,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Gradients of Σ weight · loss.
    pub gradients: BTreeMap<String, Tensor>,
}

/// A part of a step's batch that goes through the model at a time.
pub struct MicroBatch<'a> {
    batch: Batch,
    whole_vocabulary: Vec<bool>,
    sequences: Vec<(usize, &'a Sequence)>,
    /// The place of its first sequence in the step's batch.
    place: usize,
}

/// `batch` (indices into `sequences`) in the parts that go through `decoder` at a time.
pub fn micro_batches_of<'a>(
    decoder: &Decoder,
    sequences: &'a [Sequence],
    batch: &[usize],
    settings: &LossSettings,
) -> Vec<MicroBatch<'a>> {
    let lengths: Vec<usize> =
        sequences.iter().map(|sequence| decoder.prefix_len() + sequence.len()).collect();
    let kind = settings.loss.target_kind();
    let mut place = 0;
    let micro = |indices: Vec<usize>| {
        let sequences: Vec<(usize, &Sequence)> = indices.iter().map(|&i| (i, &sequences[i])).collect();
        let batch = Batch::new(&sequences, kind);
        let whole_vocabulary = whole_vocabulary(&batch, settings.loss.support);
        place += sequences.len();
        MicroBatch { place: place - sequences.len(), batch, whole_vocabulary, sequences }
    };
    let parts = micro_batches(&lengths, batch, settings.micro_batch_tokens);
    parts.into_iter().map(micro).filter(|micro| micro.batch.targets() > 0).collect()
}

/// The sums over `batch` (indices into `sequences`), for step number `step`.
///
/// # Errors
/// If the batch has nothing to train on or the device fails.
pub fn step_sums(
    decoder: &Decoder,
    sequences: &[Sequence],
    batch: &[usize],
    settings: &LossSettings,
    step: usize,
) -> Result<StepSums> {
    let micro_batches = micro_batches_of(decoder, sequences, batch, settings);
    step_sums_of(decoder, &micro_batches, settings, step, || ())
}

/// The same of micro-batches that were prepared before. `meanwhile` is done when everything is on its way and nothing has been
/// waited for: a GPU computes while it runs.
///
/// # Errors
/// As [`step_sums`].
pub fn step_sums_of(
    decoder: &Decoder,
    micro_batches: &[MicroBatch],
    settings: &LossSettings,
    step: usize,
    meanwhile: impl FnOnce(),
) -> Result<StepSums> {
    let mut gradients = Gradients::new(settings.trainable);
    let mut sums = StepSums {
        loss: 0.0,
        weight: 0.0,
        kl: 0.0,
        answers: 0,
        broken: Vec::new(),
        tokens: 0,
        gradients: BTreeMap::new(),
    };
    let kind = settings.loss.target_kind();
    // Read when everything is on its way, so that a GPU never waits for the host.
    let mut pending = Vec::new();
    for micro in micro_batches {
        let places = micro.place..micro.place + micro.sequences.len();
        let keys = places.map(|place| Dropout::key(step as u64, place)).collect();
        let dropout = Dropout { p: settings.dropout, seed: settings.seed, keys };
        let dropout = (settings.dropout > 0.0).then_some(&dropout);
        let batch = &micro.batch;
        let (rows, dhidden, tape, run) = {
            let run = decoder.run(tokens(batch), dropout)?.only(&batch.target_rows);
            let (hidden, tape) = decoder.forward(&run, settings.keep)?;
            let targets = targets(batch, &micro.whole_vocabulary);
            let (rows, dhidden) = decoder.answer_kl(&hidden, targets, Some(&mut gradients))?;
            (rows, dhidden, tape, run)
        };
        if let Some(dhidden) = dhidden {
            decoder.backward(tape, dhidden, &run, &mut gradients)?;
        }
        pending.push((micro, rows));
    }
    meanwhile();
    for (micro, rows) in pending {
        let rows = rows.read(&targets(&micro.batch, &micro.whole_vocabulary))?;
        sums.add(&micro.batch, &rows, &micro.sequences, &kind);
    }
    ensure!(
        sums.weight > 0.0,
        "a batch has nothing to train on: all its answers have weight 0 (their own, loss.action_weight or, for reported \
         beliefs, loss.belief_weight)"
    );
    sums.gradients = gradients.into_sums();
    Ok(sums)
}

fn tokens(batch: &Batch) -> Tokens<'_> {
    Tokens { input_ids: &batch.input_ids, positions: &batch.positions, boundaries: &batch.boundaries }
}

/// Format tokens always compete with the whole vocabulary: they have but one option.
fn whole_vocabulary(batch: &Batch, support: Support) -> Vec<bool> {
    batch.is_answer.iter().map(|&answer| support == Support::Vocabulary || !answer).collect()
}

fn targets<'a>(batch: &'a Batch, whole_vocabulary: &'a [bool]) -> Targets<'a> {
    Targets {
        option_boundaries: &batch.option_boundaries,
        ids: &batch.target_ids,
        probs: &batch.target_probs,
        weights: &batch.weights,
        whole_vocabulary,
    }
}

impl StepSums {
    fn add(&mut self, batch: &Batch, rows: &Rows, sequences: &[(usize, &Sequence)], kind: &TargetKind) {
        self.tokens += batch.tokens();
        for ((kl, &weight), &row) in rows.kl.iter().zip(&batch.weights).zip(&batch.target_rows) {
            self.loss += kl * f64::from(weight);
            self.weight += f64::from(weight);
            if !kl.is_finite() {
                let sequence = batch.boundaries.partition_point(|&first| first <= row) - 1;
                self.broken.push(batch.sequences[sequence]);
            }
        }
        self.broken.dedup();
        // Against the teacher's distribution, also where the loss goes by the said answer only.
        let answers =
            sequences.iter().flat_map(|(_, s)| s.targets.iter().filter(|t| kind.weight_of(t) > 0.0));
        let rows_of_answers = (0..batch.targets()).filter(|&row| batch.is_answer[row]);
        for (target, row) in answers.zip(rows_of_answers) {
            let options = batch.option_boundaries[row] as usize..batch.option_boundaries[row + 1] as usize;
            self.kl += kl(target.predictive(), &rows.option_log_probs[options]);
            self.answers += 1;
        }
    }

    /// Mean KL over answers, if there are any.
    pub fn mean_kl(&self) -> Option<f64> {
        (self.answers > 0).then(|| self.kl / self.answers as f64)
    }
}

fn kl(teacher: &[f64], log_probs: &[f64]) -> f64 {
    let terms = teacher.iter().zip(log_probs).filter(|(t, _)| **t > 0.0);
    terms.map(|(t, l)| t * (t.ln() - l)).sum()
}
