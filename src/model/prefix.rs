//! Soft prompts: trained embeddings that stand before every sequence, as if they were tokens (prompt tuning; Lester et
//! al. 2021).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::config::ModelConfig;
use super::decoder::Decoder;
use crate::error::usage;
use crate::rng;

/// The name of the one tensor, as PEFT has it.
pub const NAME: &str = "prompt_embeddings";

/// `[prefix]`: a soft prompt to train in place of LoRA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixConfig {
    /// How many embeddings.
    pub length: usize,
}

impl PrefixConfig {
    /// Checks the range.
    ///
    /// # Errors
    /// Names the key and its range.
    pub fn validate(&self) -> Result<()> {
        if !(1..=4096).contains(&self.length) {
            return Err(usage(format!("prefix.length is {}, it must be between 1 and 4096", self.length)));
        }
        Ok(())
    }

    /// Parameters of the soft prompt on this model.
    pub fn parameter_count(&self, model: &ModelConfig) -> usize {
        self.length * model.hidden_size
    }
}

/// A soft prompt.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// What stands before the embedded tokens, in f32 (P, hidden). Where a family scales its embeddings, this is not
    /// scaled again.
    pub embeddings: Tensor,
}

impl Prefix {
    /// A fresh soft prompt: the embeddings of tokens drawn from the vocabulary, which is PEFT's `SAMPLE_VOCAB`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(config: &PrefixConfig, decoder: &Decoder, seed: u64) -> Result<Self> {
        let mut stream = rng::stream(seed, "prefix", 0);
        let vocabulary = decoder.config().vocab_size;
        let ids: Vec<u32> = (0..config.length).map(|_| stream.below(vocabulary) as u32).collect();
        Ok(Self { embeddings: decoder.embed(&ids)?.to_dtype(DType::F32)? })
    }

    /// The one tensor by its name.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        BTreeMap::from([(NAME.to_string(), self.embeddings.clone())])
    }

    /// Replaces the embeddings.
    ///
    /// # Errors
    /// If they are missing or have another shape.
    pub fn set_tensors(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let found = tensors.get(NAME).with_context(|| format!("{NAME} is missing"))?;
        let expected = self.embeddings.shape();
        ensure!(found.shape() == expected, "{NAME} has shape {:?}, expected {expected:?}", found.shape());
        self.embeddings = found.clone();
        Ok(())
    }
}
