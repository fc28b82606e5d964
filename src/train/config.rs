//! The settings of `[loss]`, `[optimizer]`, `[schedule]` and `[train]`.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::checkpoint::State;
use crate::error::usage;
use crate::model::decoder::Keep;
use crate::model::gradients::Trainable;
use crate::tokens::TargetKind;

/// `[loss]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// Forward KL to the teacher, or cross-entropy to what the assistant said.
    pub kind: LossKind,
    /// Over the whole vocabulary, or renormalised over the options.
    pub support: Support,
    /// Weight of ordinary cross-entropy on the other tokens of the assistant's messages.
    pub format_weight: f64,
    /// What the weights of predictions and recommendations are multiplied by.
    pub action_weight: f64,
    /// What the weights of reported beliefs are multiplied by.
    pub belief_weight: f64,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            kind: LossKind::Kl,
            support: Support::Vocabulary,
            format_weight: 0.0,
            action_weight: 1.0,
            belief_weight: 1.0,
        }
    }
}

/// What answers are trained towards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// The teacher's whole distribution.
    Kl,
    /// The answer that was said, for comparison: it makes the logits collapse.
    Ce,
}

/// What probabilities are normalised over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Support {
    /// All tokens: mass off the options costs.
    Vocabulary,
    /// The options only.
    Options,
}

/// `[optimizer]`: AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the first and second moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 leaves them.
    pub max_grad_norm: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { lr: 2e-4, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 }
    }
}

/// `[schedule]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// How the learning rate falls after the warm-up.
    pub kind: ScheduleKind,
    /// Steps of linear rise to the peak.
    pub warmup_steps: usize,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, warmup_steps: 0 }
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Along half a cosine to 0.
    Cosine,
    /// Along a line to 0.
    Linear,
    /// Not at all.
    Constant,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// The adapter, or all weights of a small model.
    pub weights: Trainable,
    /// Passes over the episodes; 1 if `max_steps` is not given either.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Optimizer steps, instead of `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<usize>,
    /// Episodes of one optimizer step.
    pub batch_size: usize,
    /// Tokens that go through the model at a time; whole episodes, at least one.
    pub micro_batch_tokens: usize,
    /// Whether blocks are computed again in the backward, which saves memory.
    pub checkpointing: Checkpointing,
    /// Steps between evaluations on the validation episodes; 0 for only the last step.
    pub eval_every: usize,
    /// Steps between checkpoints; 0 for only the last step.
    pub save_every: usize,
    /// How many checkpoints are kept, besides the best one; 0 keeps all.
    pub keep_last: usize,
    /// Evaluations without a better validation KL after which training stops; 0 never stops.
    pub early_stopping_patience: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            weights: Trainable::Lora,
            epochs: None,
            max_steps: None,
            batch_size: 16,
            micro_batch_tokens: 8192,
            checkpointing: Checkpointing::Auto,
            eval_every: 100,
            save_every: 100,
            keep_last: 3,
            early_stopping_patience: 0,
        }
    }
}

/// Whether blocks are computed again in the backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checkpointing {
    /// Settled at the first start: blocks where keeping everything does not fit into the memory that is there.
    Auto,
    /// Keep everything.
    None,
    /// Keep each block's input only.
    Block,
}

impl Checkpointing {
    /// What a forward keeps for its backward.
    pub fn keep(self) -> Keep {
        match self {
            Self::Block => Keep::BlockInputs,
            Self::None | Self::Auto => Keep::Everything,
        }
    }
}

/// The largest `batch_size`: a place in a batch has 24 bits in the keys of dropout.
const LARGEST_BATCH: usize = 1 << 24;

impl OptimizerConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the key and its range.
    pub fn validate(&self) -> Result<()> {
        let positive = |name: &str, v: f64| {
            if v.is_finite() && v > 0.0 {
                return Ok(());
            }
            Err(usage(format!("optimizer.{name} is {v}, it must be positive")))
        };
        let not_negative = |name: &str, v: f64| {
            if v.is_finite() && v >= 0.0 {
                return Ok(());
            }
            Err(usage(format!("optimizer.{name} is {v}, it must not be negative")))
        };
        positive("lr", self.lr)?;
        positive("eps", self.eps)?;
        not_negative("weight_decay", self.weight_decay)?;
        not_negative("max_grad_norm", self.max_grad_norm)?;
        if self.betas.iter().any(|b| !(0.0..1.0).contains(b)) {
            return Err(usage(format!("optimizer.betas are {:?}, they must be in [0, 1)", self.betas)));
        }
        Ok(())
    }
}

impl LossConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the key and its range.
    pub fn validate(&self) -> Result<()> {
        let weights = [
            ("format_weight", self.format_weight),
            ("action_weight", self.action_weight),
            ("belief_weight", self.belief_weight),
        ];
        for (key, value) in weights {
            if !(value.is_finite() && value >= 0.0) {
                return Err(usage(format!("loss.{key} is {value}, it must not be negative")));
            }
        }
        if weights.iter().all(|(_, value)| *value == 0.0) {
            return Err(usage(
                "loss.action_weight, belief_weight and format_weight are all 0: nothing is trained",
            ));
        }
        Ok(())
    }

    /// What batches are made of to train by this loss.
    pub fn target_kind(&self) -> TargetKind {
        TargetKind {
            ce: self.kind == LossKind::Ce,
            format_weight: self.format_weight as f32,
            action_weight: self.action_weight as f32,
            belief_weight: self.belief_weight as f32,
        }
    }
}

impl TrainConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the key and its range.
    pub fn validate(&self) -> Result<()> {
        if self.epochs.is_some() && self.max_steps.is_some() {
            return Err(usage("train.epochs and train.max_steps are both given: keep one"));
        }
        if self.epochs == Some(0) || self.max_steps == Some(0) {
            return Err(usage("train.epochs or train.max_steps is 0: there is nothing to do"));
        }
        if !(1..LARGEST_BATCH).contains(&self.batch_size) {
            let value = self.batch_size;
            return Err(usage(format!("train.batch_size is {value}, it must be 1 to {}", LARGEST_BATCH - 1)));
        }
        if self.micro_batch_tokens == 0 {
            return Err(usage("train.micro_batch_tokens is 0, it must be at least 1"));
        }
        Ok(())
    }

    /// Whether so many evaluations brought nothing better that a run ends.
    pub fn is_out_of_patience(&self, state: &State) -> bool {
        let patience = self.early_stopping_patience;
        patience > 0 && state.evaluations_without_improvement >= patience
    }

    /// Optimizer steps in all, given the steps of an epoch.
    pub fn total_steps(&self, steps_per_epoch: usize) -> usize {
        self.max_steps.unwrap_or(self.epochs.unwrap_or(1) * steps_per_epoch)
    }
}

impl ScheduleConfig {
    /// The learning rate of `step` (from 0) of `total`, as a factor on the peak.
    ///
    /// As in transformers: a linear rise from 0 over the warm-up, so that step `w` of `warmup_steps` has w / warmup.
    pub fn factor(&self, step: usize, total: usize) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let progress =
            (step - self.warmup_steps) as f64 / (total.saturating_sub(self.warmup_steps)).max(1) as f64;
        let progress = progress.min(1.0);
        match self.kind {
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_rise_and_fall() {
        let factor = |kind, step| ScheduleConfig { kind, warmup_steps: 10 }.factor(step, 110);
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant] {
            assert_eq!(factor(kind, 0), 0.0);
            assert_eq!(factor(kind, 5), 0.5);
            assert_eq!(factor(kind, 10), 1.0);
        }
        assert_eq!(factor(ScheduleKind::Linear, 60), 0.5);
        assert!((factor(ScheduleKind::Cosine, 60) - 0.5).abs() < 1e-15);
        // cos(π / 4): a quarter of the way down
        assert!((factor(ScheduleKind::Cosine, 35) - 0.853_553_390_593).abs() < 1e-12);
        assert_eq!(factor(ScheduleKind::Constant, 109), 1.0);
        assert_eq!(factor(ScheduleKind::Linear, 110), 0.0);
    }
}
