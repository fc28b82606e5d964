//! Episodes become batches of tokens.
//!
//! [`Pipeline`] renders a dialogue by the model's chat template once, encodes the text once, and finds the token
//! that each answer is about: a [`Sequence`] with soft targets. [`Sampler`] says which sequences make an optimizer
//! step, and [`Batch`] lays them out as one flat run. [`inspect`] shows it all.
//!
//! This module knows neither devices nor tensors.

mod batch;
mod config;
mod fingerprint;
pub mod gguf;
mod inspect;
mod jinja;
mod label;
mod line;
mod per_turn;
mod pieces;
mod pipeline;
mod render;
mod sampler;
mod sequence;
mod skeleton;
mod template;
mod tokenizer;

pub use batch::{Batch, TargetKind};
pub use config::{Policy, TemplateChoice, TokensConfig};
pub use fingerprint::fingerprint;
pub use inspect::inspect;
pub use line::{CheckedFile, Line, check_lines, read_lines};
pub use pipeline::{Dropped, EncodedEpisode, EncodedSet, ModelLimits, Pipeline};
pub use render::{Rendered, Renderer, Turn, Variant};
pub use sampler::{Sampler, micro_batches};
pub use sequence::{AnswerInfo, Sequence, SoftTarget};
pub use template::{ChatTemplate, SpecialTokens};
pub use tokenizer::{Bos, Encoded, Tokenizer};
