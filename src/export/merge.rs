//! The base's weights with the adapter added to them, one tensor at a time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Tensor};
use safetensors::Dtype;

use super::{Subject, float_bytes};
use crate::model::config::ModelConfig;
use crate::model::gguf::{GgufFile, GgufWeights};
use crate::model::loading::WeightFiles;
use crate::model::lora::{self, LoraModule};

/// A base and what is added to it.
pub(super) struct Merge<'a> {
    pub(super) base: Base,
    /// By the weight's name on disk.
    adapted: BTreeMap<String, &'a LoraModule>,
}

pub(super) enum Base {
    Files(WeightFiles),
    /// A GGUF file, as the snapshot that it was made of: by the hub's names, and dequantised.
    Gguf {
        weights: GgufWeights,
        dtype: Dtype,
    },
}

/// A tensor of a snapshot's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) dtype: Dtype,
}

impl Stored {
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

impl<'a> Merge<'a> {
    pub(super) fn open(subject: &Subject<'a>) -> Result<Self> {
        let base = Base::open(subject.base, subject.gguf, subject.model)?;
        let root = format!("{}.", lora::root(subject.model));
        let mut adapted = BTreeMap::new();
        let lora = subject.adapter.map(|_| subject.lora()).transpose()?;
        for (path, module) in lora.iter().flat_map(|lora| &lora.modules) {
            let below = path.strip_prefix(&root);
            let below = below.with_context(|| format!("{path} is not below {root} in this model"))?;
            adapted.insert(base.on_disk(&format!("{below}.weight")), module);
        }
        Ok(Self { base, adapted })
    }

    /// The adapted weights by their names on disk.
    pub(super) fn adapted(&self) -> &BTreeMap<String, &'a LoraModule> {
        &self.adapted
    }

    /// A tensor by its name on disk, in f32, the adapter's part added in f32.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let weight = self.base.get(name, shape)?.to_dtype(DType::F32)?;
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

    /// A tensor as it is to lie on disk: what nothing is added to is not touched.
    pub(super) fn stored(&self, tensor: &Stored) -> Result<Cow<'_, [u8]>> {
        match (&self.base, self.adapted.contains_key(&tensor.name)) {
            (Base::Files(files), false) => Ok(Cow::Borrowed(files.view(&tensor.name)?.data())),
            _ => Ok(Cow::Owned(encode(&self.tensor(&tensor.name, &tensor.shape)?, tensor)?)),
        }
    }

    /// The output head's name on disk, where it is not the embedding.
    pub(super) fn head_name(&self) -> &'static str {
        match &self.base {
            Base::Files(files) if !files.tensors().any(|(name, ..)| name == HEAD) => {
                "language_model.lm_head.weight"
            }
            _ => HEAD,
        }
    }
}

impl Base {
    fn open(dir: &Path, gguf: Option<&Path>, model: &ModelConfig) -> Result<Self> {
        let Some(file) = gguf else { return Ok(Self::Files(WeightFiles::open(dir, model)?)) };
        let file = GgufFile::open(file)?;
        let dtype = file.float_dtype();
        Ok(Self::Gguf { weights: GgufWeights::new(file, model)?, dtype })
    }

    /// What a tensor below the model's root is called on disk.
    pub(super) fn on_disk(&self, below: &str) -> String {
        match self {
            Self::Files(files) => files.on_disk(below),
            Self::Gguf { .. } => format!("{GGUF_ROOT}{below}"),
        }
    }

    /// All tensors as the merged snapshot has them, by name.
    pub(super) fn tensors(&self) -> Vec<Stored> {
        match self {
            Self::Files(files) => {
                let stored = |(name, shape, dtype): (&str, &[usize], Dtype)| Stored {
                    name: name.to_string(),
                    shape: shape.to_vec(),
                    dtype,
                };
                files.tensors().map(stored).collect()
            }
            Self::Gguf { weights, dtype } => {
                let stored = |(below, shape): (&str, &[usize])| {
                    let name = if below == HEAD { below.to_string() } else { self.on_disk(below) };
                    Stored { name, shape: shape.to_vec(), dtype: *dtype }
                };
                let mut tensors: Vec<Stored> = weights.tensors().map(stored).collect();
                tensors.sort_by(|a, b| a.name.cmp(&b.name));
                tensors
            }
        }
    }

    /// A tensor by its name on disk.
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match self {
            Self::Files(files) => files.get(name, shape),
            Self::Gguf { weights, .. } => weights.get(name.strip_prefix(GGUF_ROOT).unwrap_or(name), shape),
        }
    }
}

/// What stands before `layers.0…` on disk where the base is a GGUF file, which holds a text model.
const GGUF_ROOT: &str = "model.";
const HEAD: &str = "lm_head.weight";

fn encode(merged: &Tensor, Stored { name, dtype, .. }: &Stored) -> Result<Vec<u8>> {
    let dtype = match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        other => bail!("{name} is stored as {other:?}, which an adapter cannot be added to"),
    };
    float_bytes(merged, dtype)?.with_context(|| {
        format!("{name} is stored as f16, and what the adapter adds takes it out of the range of f16")
    })
}
