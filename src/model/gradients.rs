//! Gradients by parameter name, summed over a step's micro-batches.

use std::collections::BTreeMap;

use anyhow::Result;
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trainable {
    /// The LoRA adapter; the base is frozen.
    Lora,
    /// A soft prompt; the base is frozen.
    Prefix,
    /// Every weight.
    All,
}

/// Sums of gradients, in f32 (f64 where the model computes in f64).
#[derive(Debug)]
pub struct Gradients {
    trainable: Trainable,
    sums: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// No gradients yet.
    pub fn new(trainable: Trainable) -> Self {
        Self { trainable, sums: BTreeMap::new() }
    }

    /// Whether the base's weights get gradients.
    pub fn wants_base(&self) -> bool {
        self.trainable == Trainable::All
    }

    /// Whether a soft prompt gets a gradient.
    pub fn wants_prefix(&self) -> bool {
        self.trainable == Trainable::Prefix
    }

    /// Adds a gradient to the sum under `name`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn add(&mut self, name: String, gradient: Tensor) -> Result<()> {
        let wide = if gradient.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let gradient = gradient.to_dtype(wide)?;
        let sum = match self.sums.remove(&name) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.sums.insert(name, sum);
        Ok(())
    }

    /// The sums by parameter name.
    pub fn into_sums(self) -> BTreeMap<String, Tensor> {
        self.sums
    }
}
