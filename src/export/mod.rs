//! What other programs load: PEFT adapters, merged snapshots, GGUF files of adapters and of whole models, MLX adapters.
//!
//! Every export is a folder that appears whole or not at all. It is read back and compared with what was meant before
//! it appears, and a model card lies in it. What a format cannot say is an error, or one of [`Exported::notes`].

pub mod card;
pub mod gguf;
mod merge;
pub mod merged;
pub mod mlx;
pub mod peft;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Tensor};
use half::{bf16, f16};

use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::lora::Lora;
use crate::model::peft::PeftConfig;
use crate::tokens::Pipeline;
use card::Card;

/// The chat template that the adapter was trained with.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";

/// What is exported.
pub struct Subject<'a> {
    /// The base's folder.
    pub base: &'a Path,
    /// What the base is called: a hub id, or a folder.
    pub base_name: &'a str,
    /// The GGUF file that the base is, if it is one.
    pub gguf: Option<&'a Path>,
    /// The base's shape.
    pub model: &'a ModelConfig,
    /// The adapter; without one the base goes out as it is.
    pub adapter: Option<&'a Adapted>,
    /// Tokenizer and chat template; without them the export has none.
    pub pipeline: Option<&'a Pipeline>,
    /// What the model card says.
    pub card: &'a Card,
}

/// An adapter as it was read.
#[derive(Clone, Debug)]
pub struct Adapted {
    /// Its settings.
    pub config: PeftConfig,
    /// Its tensors, in f32.
    pub adapter: Adapter,
}

/// What an export has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// The command or the code that loads it elsewhere.
    pub load: String,
    /// What the user should know: where the format says less than the model does, or rounds.
    pub notes: Vec<String>,
}

impl<'a> Subject<'a> {
    /// The adapter, for a format that is nothing without one.
    fn adapted(&self) -> Result<&'a Adapted> {
        self.adapter.context("there is no adapter to export: this is a whole model (--format gguf takes one)")
    }

    /// The adapter as additions to linears, for a format that has place for nothing else.
    fn lora(&self) -> Result<&'a Lora> {
        self.adapted()?.adapter.lora()
    }

    /// Puts the chat template beside an adapter of a format that has no place for it.
    fn write_template(&self, dir: &Path) -> Result<()> {
        let Some(pipeline) = self.pipeline else { return Ok(()) };
        let path = dir.join(TEMPLATE_FILE);
        std::fs::write(&path, pipeline.renderer().portable_template())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A string in Python.
fn python(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The values of a tensor, in order, in f32.
fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// A tensor's numbers in a dtype of floats, as bytes; none where one of them is beyond the range of f16.
fn float_bytes(tensor: &Tensor, dtype: DType) -> Result<Option<Vec<u8>>> {
    let numbers = tensor.to_dtype(dtype)?.flatten_all()?;
    Ok(match dtype {
        DType::F64 => Some(numbers.to_vec1::<f64>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
        DType::BF16 => Some(numbers.to_vec1::<bf16>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
        DType::F16 => {
            let halves = numbers.to_vec1::<f16>()?;
            let is_within = halves.iter().all(|v| v.is_finite());
            is_within.then(|| halves.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        _ => Some(values(&numbers)?.iter().flat_map(|v| v.to_le_bytes()).collect()),
    })
}

/// Refuses what was not written as it was meant; NaN equals itself here.
fn ensure_same(name: &str, meant: &Tensor, written: &Tensor) -> Result<()> {
    let bits = |t: &Tensor| -> Result<Vec<u32>> { Ok(values(t)?.into_iter().map(f32::to_bits).collect()) };
    ensure!(
        meant.dims() == written.dims() && bits(meant)? == bits(written)?,
        "{name} was not written as it was meant: is the disk failing?"
    );
    Ok(())
}
