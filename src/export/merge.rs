//! The base's weights with the adapter added to them, one tensor at a time.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Tensor};

use super::Subject;
use crate::model::loading::WeightFiles;
use crate::model::lora::{self, LoraModule};

/// A base and what is added to it.
pub(super) struct Merge<'a> {
    pub(super) weights: WeightFiles,
    /// By the weight's name on disk.
    adapted: BTreeMap<String, &'a LoraModule>,
}

impl<'a> Merge<'a> {
    pub(super) fn open(subject: &Subject<'a>) -> Result<Self> {
        let weights = WeightFiles::open(subject.base, subject.model)?;
        let root = format!("{}.", lora::root(subject.model));
        let mut adapted = BTreeMap::new();
        let lora = subject.adapter.map(|_| subject.lora()).transpose()?;
        for (path, module) in lora.iter().flat_map(|lora| &lora.modules) {
            let below = path.strip_prefix(&root);
            let below = below.with_context(|| format!("{path} is not below {root} in this model"))?;
            adapted.insert(weights.on_disk(&format!("{below}.weight")), module);
        }
        Ok(Self { weights, adapted })
    }

    /// The adapted weights by their names on disk.
    pub(super) fn adapted(&self) -> &BTreeMap<String, &'a LoraModule> {
        &self.adapted
    }

    /// A tensor by its name on disk, in f32, the adapter's part added in f32.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let weight = self.weights.get(name, shape)?.to_dtype(DType::F32)?;
        match self.adapted.get(name) {
            Some(module) => {
                let delta = module.delta(DType::F32)?;
                ensure!(
                    delta.dims() == shape,
                    "the adapter of {name} has shape {:?}, the weight {shape:?}",
                    delta.dims()
                );
                Ok((weight + delta)?)
            }
            None => Ok(weight),
        }
    }

    /// The output head's name on disk, where it is not the embedding.
    pub(super) fn head_name(&self) -> &'static str {
        let plain = "lm_head.weight";
        match self.weights.tensors().any(|(name, ..)| name == plain) {
            true => plain,
            false => "language_model.lm_head.weight",
        }
    }
}
