//! What is trained beside a frozen base: LoRA in its linears, or a soft prompt before its tokens.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::Tensor;

use super::lora::Lora;
use super::prefix::Prefix;
use crate::error::usage;

/// An adapter's tensors.
#[derive(Clone, Debug)]
pub enum Adapter {
    /// Low-rank additions to linears.
    Lora(Lora),
    /// Embeddings that stand before every sequence.
    Prefix(Prefix),
}

impl Adapter {
    /// The additions to linears, for what has a place for nothing else.
    ///
    /// # Errors
    /// A usage error for a soft prompt.
    pub fn lora(&self) -> Result<&Lora> {
        match self {
            Self::Lora(lora) => Ok(lora),
            Self::Prefix(_) => Err(usage(
                "a soft prompt can only be exported as peft: no other format has a place for embeddings before the tokens",
            )),
        }
    }

    /// The tensors by name.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        match self {
            Self::Lora(lora) => lora.tensors(),
            Self::Prefix(prefix) => prefix.tensors(),
        }
    }

    /// Replaces the tensors by those of the same names.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn set_tensors(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        match self {
            Self::Lora(lora) => lora.set_tensors(tensors),
            Self::Prefix(prefix) => prefix.set_tensors(tensors),
        }
    }
}
