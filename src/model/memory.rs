//! How much memory training takes, by part, from the shapes alone.
//!
//! The counts follow the block and the [`super::decoder`]: what a block's forward keeps for its backward, what
//! exists besides while one block is being worked on, and the answers' way through the output head.

use candle_core::DType;

use super::config::ModelConfig;
use super::decoder::{Keep, LOGITS_AT_ONCE};
use super::lora;
use crate::ops::weight::Storage;

/// What is trained on what.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// The model.
    pub model: &'a ModelConfig,
    /// The dtype of weights.
    pub dtype: DType,
    /// The dtype of activations, see [`activations`](crate::ops::activations).
    pub activations: DType,
    /// How the linears' weights are kept.
    pub storage: Storage,
    /// Bytes of the base's weights, see [`weights`].
    pub weights: usize,
    /// Parameters of the adapter; all weights are trained where there is none.
    pub adapter: Option<usize>,
    /// Whether the adapter has dropout.
    pub dropout: bool,
    /// Tokens of the largest micro-batch.
    pub tokens: usize,
    /// Answers among them.
    pub answers: usize,
    /// Tokens of the longest sequence.
    pub longest: usize,
    /// Whether attention works with all scores of a sequence at once, see [`is_composed`](crate::ops::attention::is_composed).
    pub whole_scores: bool,
    /// What is kept for the backward.
    pub keep: Keep,
}

/// Bytes by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The base's weights.
    pub weights: usize,
    /// Trained parameters in f32 and in the dtype of activations where they are not the base's, their gradients and AdamW's two
    /// moments.
    pub trained: usize,
    /// What the forward keeps of all blocks for the backward, but for the one that is being worked on.
    pub kept: usize,
    /// That block, and what exists besides while it, or the head, is being worked on.
    pub working: usize,
}

impl Memory {
    /// The sum of all parts.
    pub fn total(&self) -> usize {
        self.weights + self.trained + self.kept + self.working
    }
}

/// Bytes of a model's weights: linears as `storage` has them, all else as if in `dtype`.
pub fn weights(model: &ModelConfig, dtype: DType, storage: Storage) -> usize {
    let of_linear =
        |name: &&str| lora::copies(model, name) * storage.bytes(lora::linear_shape(model, name), dtype);
    let in_linears = lora::LINEARS.iter().map(of_linear).sum::<usize>() * model.num_layers();
    in_linears + (model.parameter_count() - lora::linear_weights(model)) * dtype.size_in_bytes()
}

/// What the backward of composed attention holds of every score: the steps of the softmax and their gradients. As measured on
/// the CPU in bf16, with `small` and sequences of 384 and 768 tokens.
const SCORE_BYTES: usize = 76;

/// The memory that training takes at its peak.
pub fn plan(work: &Work) -> Memory {
    let Work { model, dtype, activations, storage, weights, tokens, answers, .. } = *work;
    let size = activations.size_in_bytes();
    let trained = match work.adapter {
        Some(parameters) => parameters * (4 * 4 + size),
        // What is trained are the base's weights themselves.
        None => model.parameter_count() * (3 * 4),
    };

    let (d, f) = (model.hidden_size, model.intermediate_size);
    let (q, kv) = (model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim);
    let flag = |on: bool, width: usize| if on { width } else { 0 };
    // Only keys and values need every row of the last block.
    let every_row = 2 * d + 2 * kv + flag(model.qk_norm, kv);
    // What experts compute is computed again by the backward.
    let gate_up = flag(model.routing.is_none(), 2 * f);
    let asked_rows = 2 * d + 2 * q + flag(model.qk_norm, q) + gate_up + flag(model.post_norms, 2 * d);
    let log_sum_exp = 4 * model.num_attention_heads;
    let trace = tokens * ((every_row + asked_rows) * size + log_sum_exp);
    let last_trace = tokens * every_row * size + answers * (asked_rows * size + log_sum_exp);
    let others = model.num_layers() - 1;
    // Of the block that is being worked on, all is working space.
    let kept = match work.keep {
        Keep::Everything => others.saturating_sub(1) * trace,
        Keep::BlockInputs => others * tokens * d * size,
        Keep::Nothing | Keep::KeysValues => tokens * d * size,
    };
    // While the last block is being worked on, the one before it is kept whole.
    let before_last = if work.keep == Keep::Everything && others > 0 { trace } else { 0 };

    // The backward of gate, up and down: the output's gradient, and the activation's with those that it becomes; then those of
    // gate and up with the dense weights, and what is multiplied in another dtype than it is kept.
    let dense = match storage {
        Storage::Dense => 0,
        Storage::Bf16 if dtype == DType::BF16 => 0,
        // Gate and up at once; on a GPU, where activations are in the same dtype, blocks become f32 first.
        _ => {
            2 * d * f * dtype.size_in_bytes()
                + if dtype == DType::BF16 && activations == dtype { d * f * 4 } else { 0 }
        }
    };
    let rounded =
        |rows: usize, width: usize| flag(dtype != activations, rows * width * dtype.size_in_bytes());
    // Composed of tensor operations, as on GPUs, the adapter's part is added to the base's; and a mask is multiplied first.
    let on_gpu = activations == DType::BF16;
    let at_down = d + (3 + usize::from(on_gpu || work.dropout) + 2 * usize::from(on_gpu && work.dropout)) * f;
    let mlp = |rows: usize| match model.routing {
        // The inputs, outputs and gradients of each choice.
        Some(routing) => {
            rows * (4 * f + (4 + 2 * routing.per_token) * d) * size + dense + rounded(rows, 2 * f)
        }
        None => (rows * at_down * size).max(rows * (2 * d + 2 * f) * size + dense + rounded(rows, 2 * f)),
    };
    // That of attention: the block's gradient and the MLP's, those of q, k and v, and what comes before and after them.
    let scores = match work.whole_scores {
        true => work.longest * work.longest * model.num_attention_heads * SCORE_BYTES,
        false => 0,
    };
    let before = tokens * (2 * d + 2 * q + 2 * kv) * size;
    let after = tokens * (4 * d + q + 2 * kv) * size + rounded(tokens, q + 2 * kv);
    let backward = mlp(tokens).max(before + scores).max(after);
    // That of the last block, of whose rows few may be asked for, and the head.
    let before = (answers * (2 * d + 2 * q) + tokens * 2 * kv) * size;
    let after = (answers * (d + q) + tokens * (3 * d + 2 * kv)) * size + rounded(tokens, 2 * kv);
    let rows = answers.min((LOGITS_AT_ONCE / model.vocab_size).max(1));
    let wide = if activations == DType::F64 { 8 } else { 4 };
    let head = rows * model.vocab_size * (size + 2 * wide);
    let at_last = before_last + last_trace + mlp(answers).max(before + scores).max(after).max(head);
    let at_others = if others > 0 { trace + backward } else { 0 };
    Memory { weights, trained, kept, working: at_last.max(at_others) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::model::lora::LoraConfig;
    use crate::model::shapes;

    /// An 8B model trains on a card of 12 GB and a 14B model on one of 24 GB: 4 bits, recomputation, r 16, 2,048 tokens.
    #[test]
    fn four_bit_models_fit_common_cards() {
        let lora = LoraConfig { r: 16, ..LoraConfig::default() };
        for (name, gigabytes) in [("llama-3.1-8b", 11.0), ("qwen3-8b", 11.0), ("qwen2.5-14b", 22.0)] {
            let model = shapes::config(name).unwrap();
            let plan = plan(&Work {
                model: &model,
                dtype: DType::BF16,
                activations: DType::BF16,
                storage: Storage::Q4K,
                weights: weights(&model, DType::BF16, Storage::Q4K),
                adapter: Some(lora.parameter_count(&model)),
                dropout: false,
                tokens: 2048,
                answers: 60,
                longest: 2048,
                whole_scores: false,
                keep: Keep::BlockInputs,
            });
            assert!(plan.total() as f64 <= gigabytes * 1e9, "{name}: {plan:?}");
        }
    }

    /// The weights of a model are its parameters times their size, and 4.5 bits of every weight in a linear with Q4_K.
    #[test]
    fn weights_are_counted_by_hand() {
        let model = shapes::config("small").unwrap();
        let with = |storage| {
            plan(&Work {
                model: &model,
                dtype: DType::F32,
                activations: DType::F32,
                storage,
                weights: weights(&model, DType::F32, storage),
                adapter: None,
                dropout: false,
                tokens: 1,
                answers: 1,
                longest: 1,
                whole_scores: false,
                keep: Keep::Nothing,
            })
        };
        let linears = 8 * (512 * 512 * 2 + 2 * 512 * 256 + 3 * 512 * 1536);
        let rest = 32_000 * 512 + 8 * 2 * 512 + 512;
        assert_eq!(with(Storage::Dense).weights, 4 * (linears + rest));
        assert_eq!(with(Storage::Q4K).weights, linears / 16 * 9 + 4 * rest);
        assert_eq!(with(Storage::Dense).trained, 12 * (linears + rest));
    }
}
