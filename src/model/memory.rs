//! How much memory training takes, by part, from the shapes alone.
//!
//! The counts follow [`super::block`] and [`super::decoder`]: what a block's forward keeps for its backward, what
//! exists besides while one block is being worked on, and the answers' way through the output head.

use candle_core::DType;

use super::config::ModelConfig;
use super::decoder::{Keep, LOGITS_AT_ONCE};
use super::lora::{self, LoraConfig};
use crate::ops::weight::Storage;

/// What is trained on what.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// The model.
    pub model: &'a ModelConfig,
    /// The dtype of computation.
    pub dtype: DType,
    /// How the linears' weights are kept.
    pub storage: Storage,
    /// The adapter; all weights are trained where there is none.
    pub lora: Option<&'a LoraConfig>,
    /// Tokens of the largest micro-batch.
    pub tokens: usize,
    /// Answers among them.
    pub answers: usize,
    /// What is kept for the backward.
    pub keep: Keep,
}

/// Bytes by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The base's weights.
    pub weights: usize,
    /// Trained parameters in f32 and in the dtype of computation, their gradients and AdamW's two moments.
    pub trained: usize,
    /// What the forward keeps for the backward.
    pub kept: usize,
    /// What exists besides while one block, or the head, is being worked on.
    pub working: usize,
}

impl Memory {
    /// The sum of all parts.
    pub fn total(&self) -> usize {
        self.weights + self.trained + self.kept + self.working
    }
}

/// The memory that training takes at its peak.
pub fn plan(work: &Work) -> Memory {
    let Work { model, dtype, storage, tokens, answers, .. } = *work;
    let size = dtype.size_in_bytes();
    let linears: Vec<(usize, usize)> =
        lora::LINEARS.iter().map(|name| lora::linear_shape(model, name)).collect();
    let in_linears: usize =
        linears.iter().map(|(d_out, d_in)| d_out * d_in).sum::<usize>() * model.num_layers();
    let stored: usize =
        linears.iter().map(|&shape| storage.bytes(shape, dtype)).sum::<usize>() * model.num_layers();
    let weights = stored + (model.parameter_count() - in_linears) * size;

    let trained = match work.lora {
        Some(lora) => lora.parameter_count(model) * (4 * 4 + size),
        None => model.parameter_count() * (4 * 4),
    };

    let (d, f) = (model.hidden_size, model.intermediate_size);
    let (q, kv) = (model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim);
    let flag = |on: bool, width: usize| if on { width } else { 0 };
    // Only keys and values need every row of the last block.
    let every_row = 2 * d + 2 * kv + flag(model.qk_norm, kv);
    let asked_rows = d + 2 * q + flag(model.qk_norm, q) + 2 * d + 2 * f + flag(model.post_norms, 2 * d);
    let log_sum_exp = 4 * model.num_attention_heads;
    let trace = tokens * ((every_row + asked_rows) * size + log_sum_exp);
    let last_trace = tokens * every_row * size + answers * (asked_rows * size + log_sum_exp);
    let layers = model.num_layers();
    let kept = match work.keep {
        Keep::Everything => (layers - 1) * trace + last_trace,
        Keep::BlockInputs => layers * tokens * d * size,
        Keep::Nothing | Keep::KeysValues => tokens * d * size,
    };

    // The MLP's backward: the activation and its gradient, those of gate and up, and the running gradients.
    let backward = tokens * (4 * f + 4 * d) * size;
    let again = if work.keep == Keep::BlockInputs { trace } else { 0 };
    let dense = match storage {
        Storage::Dense => 0,
        _ => 2 * d * f * size,
    };
    let rows = answers.min((LOGITS_AT_ONCE / model.vocab_size).max(1));
    let wide = if dtype == DType::F64 { 8 } else { 4 };
    let head = rows * model.vocab_size * (size + 2 * wide);
    Memory { weights, trained, kept, working: head.max(backward + again + dense) }
}
