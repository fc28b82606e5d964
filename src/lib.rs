//! bayesteach teaches open-weight language models to update their beliefs.
//!
//! # One episode, end to end
//!
//! ```text
//! World ─► Teacher ─► Episode ─► Sequence ─► Batch ─► Decoder ─► KL ─► backward ─► AdamW ─► Checkpoint
//!                                                                                     └► Evaluate ─► Export
//! ```
//!
//! 1. A [`world`] says who the users are, what they are asked, how likely each answer is under each hypothesis, and
//!    how a turn reads as text.
//! 2. The [`teacher`] does exact inference in log space and writes down, at every answer, its whole predictive
//!    distribution.
//! 3. The dialogue with these distributions is an [`episode`], a line of JSON.
//! 4. [`tokens`] renders it once with the model's chat template, encodes it once, and finds the token of every
//!    answer: a sequence with soft targets. Sequences become batches, flat runs of tokens with boundaries and
//!    without padding.
//! 5. The decoder of [`model`] computes hidden states of the run; only the answers' rows go through the output head.
//! 6. [`ops`] has each operation with its analytic backward. [`train`] sums loss and gradients over a step's
//!    micro-batches, divides once, and lets AdamW move the adapter.
//! 7. [`eval`] measures the model's predictions against truth and teacher with [`metrics`]; [`report`] makes a page of
//!    it, and [`export`] writes what other programs load.
//!
//! # Invariants
//!
//! - There is no autograd graph while training. Backward functions are called by hand, in reverse; frozen weights
//!   never get a gradient. This is not candle's way: its fused operations cut the gradient without an error, and its
//!   matmul computes the frozen weight's gradient too.
//! - Randomness is a function of (seed, purpose, index), see [`rng`]. There is no global random state.
//! - Sums over floats have a fixed order: the number of threads changes no bit of a result.
//! - A loss is a sum and a weight, divided once over the whole optimizer step.
//! - Files appear whole or not at all, see [`files`].
//! - Names of weights are the hub's, end to end; export only adds a prefix.
//! - `world`, `teacher`, `episode`, `metrics` and `tokens` know nothing of candle; `device` and `ops` alone know
//!   CUDA or Metal; only `cli` reads the environment. `tests/tidy.rs` holds who may use whom.
//!
//! # Where things are
//!
//! | part | what it holds |
//! |---|---|
//! | [`world`] | flights, hotels, personality, shop; worlds declared in a file; coins, Markov chains, HMMs, regression |
//! | [`teacher`] | posteriors (grids, counts, forward algorithm, Gaussian), rival teachers, choice of evidence, decisions |
//! | [`episode`] | the episode format |
//! | [`tokens`] | chat templates, tokenizer, sequences, batches, sampler, inspection |
//! | [`ops`] | linear with LoRA, RMSNorm, rotation, attention, gated activation, KL, dropout |
//! | [`model`] | configs, weights (safetensors, GGUF), decoder, LoRA, PEFT's adapter format |
//! | [`train`] | loss, AdamW, the loop, checkpoints, the metrics log |
//! | [`metrics`], [`eval`] | measures, and a model's predictions to be measured |
//! | [`export`] | adapters and merged models for other programs: PEFT, safetensors, GGUF, MLX; model cards |
//! | [`report`] | a page and plots of a run, and the pages that follow runs |
//! | [`import`] | other people's data as episodes: published files, questionnaires, chat messages |
//! | [`session`] | a person in a live dialogue with teacher and model |
//! | [`config`], [`cli`] | the config file, the commands |
//! | [`device`], [`hub`], [`files`], [`rng`], [`error`] | what all of them stand on |

pub mod cli;
pub mod config;
pub mod device;
pub mod episode;
pub mod error;
pub mod eval;
pub mod export;
pub mod files;
pub mod hub;
pub mod import;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod report;
pub mod rng;
pub mod session;
pub mod teacher;
pub mod tokens;
pub mod train;
pub mod world;
