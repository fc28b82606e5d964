//! The decoder of every supported family, steered by its config: forward, and backward by hand.
//!
//! Tokens come as one flat run with sequence boundaries; there is no padding anywhere. Base weights are plain
//! frozen tensors, and an adapter sits inside its linear layer.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Device, Tensor};

use super::block::{At, Block, Linear, LoraWeights, Norm, Trace};
use super::config::ModelConfig;
use super::gradients::Gradients;
use super::loading::Weights;
use super::lora::{self, Adapter};
use crate::ops::dropout::Dropout;
use crate::ops::kl::{self, Targets};
use crate::ops::rope::Angles;
use crate::ops::{linear, rows};

/// A model's weights on a device.
pub struct Decoder {
    config: ModelConfig,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Norm,
    /// (vocabulary, hidden); none where the embedding is the head.
    head: Option<Tensor>,
    dtype: DType,
    device: Device,
}

/// One flat run of tokens through the decoder.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// (N)
    pub input_ids: &'a [u32],
    /// Position of each token within its sequence (N).
    pub positions: &'a [u32],
    /// First token of each sequence, and N (S + 1).
    pub boundaries: &'a [u32],
}

/// A run's tokens with what all blocks share.
pub struct Run<'a> {
    /// Token ids (N).
    pub input_ids: &'a [u32],
    /// First token of each sequence, and N (S + 1).
    pub boundaries: &'a [u32],
    /// Rotation angles by rope index.
    pub(super) angles: Vec<Angles>,
    /// The adapter's dropout, while training.
    pub dropout: Option<&'a Dropout>,
    /// The rows whose hidden states are wanted, ascending (M); all where none.
    rows: Option<&'a [u32]>,
    /// What every sequence of the run goes on from.
    past: Option<(&'a Past, Joined)>,
}

/// Keys and values of tokens that went through the model before, by layer: (P, kv_heads · D) each, rotated.
#[derive(Clone, Debug)]
pub struct Past {
    layers: Vec<(Tensor, Tensor)>,
    length: usize,
}

impl Past {
    /// Tokens before.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Forgets all but the first `length` tokens.
    ///
    /// # Errors
    /// If the device fails.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        if length < self.length {
            for (k, v) in &mut self.layers {
                *k = k.narrow(0, 0, length)?.force_contiguous()?;
                *v = v.narrow(0, 0, length)?.force_contiguous()?;
            }
            self.length = length;
        }
        Ok(())
    }
}

/// Where a run's tokens are once the past stands before each of its sequences.
pub(super) struct Joined {
    /// First token of each sequence with its past (S + 1).
    pub boundaries: Vec<u32>,
    /// The row of each of the run's tokens (N).
    pub rows: Vec<u32>,
}

impl Joined {
    fn new(boundaries: &[u32], past: usize) -> Self {
        let past = past as u32;
        let mut joined = Self { boundaries: vec![0], rows: Vec::new() };
        for (s, b) in boundaries.windows(2).enumerate() {
            let shift = (s as u32 + 1) * past;
            joined.rows.extend((b[0]..b[1]).map(|row| row + shift));
            joined.boundaries.push(b[1] + shift);
        }
        joined
    }
}

impl<'a> Run<'a> {
    /// Wants the hidden states at `rows` (M, ascending) only, which spares the last block the rest.
    pub fn only(self, rows: &'a [u32]) -> Self {
        Self { rows: Some(rows), ..self }
    }

    /// Every sequence goes on from `past`: positions count from its length. There is no backward through it.
    pub fn after(self, past: &'a Past) -> Self {
        let joined = Joined::new(self.boundaries, past.len());
        Self { past: (!past.is_empty()).then_some((past, joined)), ..self }
    }

    /// A layer's past keys and values, and where the run's tokens are behind them.
    pub(super) fn past(&self, layer: usize) -> Option<(&(Tensor, Tensor), &Joined)> {
        self.past.as_ref().map(|(past, joined)| (&past.layers[layer], joined))
    }
}

/// How much of a forward pass is kept for the backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there will be no backward.
    Nothing,
    /// The keys and values, of a run of one sequence: [`Tape::into_past`].
    KeysValues,
    /// Each block's input; the backward computes the block again.
    BlockInputs,
    /// All that the backward reads.
    Everything,
}

enum Kept {
    KeysValues(Tensor, Tensor),
    Input(Tensor),
    Trace(Box<Trace>),
}

/// What a forward pass kept, one entry a block.
pub struct Tape(Vec<Kept>);

impl Tape {
    /// What a pass with [`Keep::KeysValues`] leaves to go on from, its own past included.
    ///
    /// # Errors
    /// If something else was kept.
    pub fn into_past(self) -> Result<Past> {
        let layers = self.0.into_iter().map(|kept| match kept {
            Kept::KeysValues(k, v) => Ok((k, v)),
            Kept::Input(_) | Kept::Trace(_) => anyhow::bail!("a pass that did not keep keys and values"),
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let length = layers.first().map_or(Ok(0), |(k, _)| k.dim(0))?;
        Ok(Past { layers, length })
    }
}

impl Decoder {
    /// Loads the model of the snapshot in `dir`.
    ///
    /// # Errors
    /// If files are missing, damaged or do not fit `config`.
    pub fn load(dir: &Path, config: &ModelConfig, dtype: DType, device: &Device) -> Result<Self> {
        Self::new(&Weights::open(dir, config, dtype, device)?, config)
    }

    /// A model of this shape with weights drawn from `seed`, to train it from the start.
    ///
    /// # Errors
    /// If the device fails.
    pub fn random(config: &ModelConfig, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        Self::new(&Weights::random(seed, config, dtype, device), config)
    }

    /// The model of these weights.
    ///
    /// # Errors
    /// If weights are missing, damaged or do not fit `config`.
    pub fn new(weights: &Weights, config: &ModelConfig) -> Result<Self> {
        let (dtype, device) = (weights.dtype(), weights.device());
        let (v, d) = (config.vocab_size, config.hidden_size);
        let blocks = (0..config.num_layers()).map(|i| Block::load(weights, config, i));
        Ok(Self {
            embedding: weights.get("embed_tokens.weight", &[v, d])?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: Norm {
                path: format!("{}.norm", lora::root(config)),
                weight: weights.get("norm.weight", &[d])?,
            },
            head: if config.tie_word_embeddings { None } else { Some(weights.head(&[v, d])?) },
            config: config.clone(),
            dtype,
            device: device.clone(),
        })
    }

    /// The model's shape and rules.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Puts an adapter's tensors into its linears, in the dtype of computation; `None` takes it off.
    ///
    /// # Errors
    /// If the adapter names a linear that is not there, or does not fit its shape.
    pub fn set_adapter(&mut self, adapter: Option<&Adapter>) -> Result<()> {
        let dtype = self.dtype;
        let device = self.device.clone();
        let mut left: BTreeMap<&str, _> =
            adapter.iter().flat_map(|a| &a.modules).map(|(path, module)| (path.as_str(), module)).collect();
        for linear in self.blocks.iter_mut().flat_map(Block::linears_mut) {
            linear.lora = match left.remove(linear.path.as_str()) {
                Some(module) => {
                    let (d_out, d_in) = linear.weight.shape();
                    let r = module.a.dim(0)?;
                    ensure!(
                        module.a.dims2()? == (r, d_in) && module.b.dims2()? == (d_out, r),
                        "the adapter of {} has A {:?} and B {:?}, but the linear maps {d_in} to {d_out}",
                        linear.path,
                        module.a.dims(),
                        module.b.dims()
                    );
                    let place = |t: &Tensor| -> Result<Tensor> { Ok(t.to_device(&device)?.to_dtype(dtype)?) };
                    Some(LoraWeights { a: place(&module.a)?, b: place(&module.b)?, scale: module.scale })
                }
                None => None,
            };
        }
        ensure!(
            left.is_empty(),
            "the adapter is for linears that this model does not have: {}",
            left.keys().copied().collect::<Vec<_>>().join(", ")
        );
        Ok(())
    }

    /// Every weight that is kept dense, by its name in transformers' memory.
    pub fn parameters(&self) -> BTreeMap<String, Tensor> {
        let root = lora::root(&self.config);
        let mut named = BTreeMap::new();
        named.insert(format!("{root}.embed_tokens.weight"), self.embedding.clone());
        if let Some(head) = &self.head {
            named.insert("lm_head.weight".to_string(), head.clone());
        }
        for norm in self.blocks.iter().flat_map(Block::norms).chain([&self.norm]) {
            named.insert(format!("{}.weight", norm.path), norm.weight.clone());
        }
        for linear in self.blocks.iter().flat_map(Block::linears) {
            if let Some(weight) = linear.weight.as_dense() {
                named.insert(format!("{}.weight", linear.path), weight.clone());
            }
            if let Some(bias) = &linear.bias {
                named.insert(format!("{}.bias", linear.path), bias.clone());
            }
        }
        named
    }

    /// Replaces weights by those of the same names in `parameters`, in the dtype of computation.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn set_parameters(&mut self, parameters: &BTreeMap<String, Tensor>) -> Result<()> {
        let (dtype, device) = (self.dtype, self.device.clone());
        let set = |name: &str, slot: &mut Tensor| -> Result<()> {
            let tensor = parameters.get(name).with_context(|| format!("{name} is missing"))?;
            ensure!(
                tensor.shape() == slot.shape(),
                "{name} has shape {:?}, expected {:?}",
                tensor.dims(),
                slot.dims()
            );
            *slot = tensor.to_device(&device)?.to_dtype(dtype)?;
            Ok(())
        };
        set(&format!("{}.embed_tokens.weight", lora::root(&self.config)), &mut self.embedding)?;
        if let Some(head) = &mut self.head {
            set("lm_head.weight", head)?;
        }
        set(&format!("{}.weight", self.norm.path), &mut self.norm.weight)?;
        for block in &mut self.blocks {
            for norm in block.norms_mut() {
                set(&format!("{}.weight", norm.path), &mut norm.weight)?;
            }
            for Linear { path, weight, bias, .. } in block.linears_mut() {
                if let Some(weight) = weight.as_dense_mut() {
                    set(&format!("{path}.weight"), weight)?;
                }
                if let Some(bias) = bias {
                    set(&format!("{path}.bias"), bias)?;
                }
            }
        }
        Ok(())
    }

    /// Prepares a run: checks the tokens and computes the rotation angles.
    ///
    /// # Errors
    /// If a token is beyond the vocabulary, or lengths do not agree.
    pub fn run<'a>(&self, tokens: Tokens<'a>, dropout: Option<&'a Dropout>) -> Result<Run<'a>> {
        let vocabulary = self.config.vocab_size;
        let Tokens { input_ids, positions, boundaries } = tokens;
        if let Some(id) = input_ids.iter().find(|&&id| id as usize >= vocabulary) {
            anyhow::bail!("token id {id} is beyond the model's vocabulary of {vocabulary}");
        }
        ensure!(
            positions.len() == input_ids.len() && boundaries.last() == Some(&(input_ids.len() as u32)),
            "{} tokens, {} positions, boundaries {boundaries:?}",
            input_ids.len(),
            positions.len()
        );
        let angles = |f: &Vec<f32>| Angles::new(positions, f, self.dtype, &self.device);
        let angles = self.config.inv_freq.iter().map(angles).collect::<Result<_>>()?;
        Ok(Run { input_ids, boundaries, angles, dropout, rows: None, past: None })
    }

    /// The hidden states (M, hidden) that the run wants, after the last block and before the final norm.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self, run: &Run, keep: Keep) -> Result<(Tensor, Tape)> {
        ensure!(
            run.past.is_none() || matches!(keep, Keep::Nothing | Keep::KeysValues),
            "there is no backward through a past"
        );
        ensure!(
            keep != Keep::KeysValues || run.boundaries.len() == 2,
            "only a run of one sequence leaves keys and values to go on from"
        );
        let mut x = rows::gather(&self.embedding, run.input_ids)?;
        if self.config.scale_embedding {
            x = (x * self.embedding_scale()?)?;
        }
        let mut tape = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            let (y, trace) = block.forward(i, &x, self.rows(run, i), run, &self.config)?;
            match keep {
                Keep::Nothing => {}
                Keep::KeysValues => {
                    let (k, v) = trace.into_keys_values();
                    tape.push(Kept::KeysValues(k, v));
                }
                Keep::BlockInputs => tape.push(Kept::Input(x)),
                Keep::Everything => tape.push(Kept::Trace(Box::new(trace))),
            }
            x = y;
        }
        Ok((x, Tape(tape)))
    }

    /// The rows that the output of block `i` needs.
    fn rows<'a>(&self, run: &Run<'a>, i: usize) -> At<'a> {
        At(run.rows.filter(|_| i + 1 == self.blocks.len()))
    }

    /// Adds all gradients to `grads`, given the gradient of the hidden states (M, hidden).
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward(&self, tape: Tape, dhidden: Tensor, run: &Run, grads: &mut Gradients) -> Result<()> {
        ensure!(tape.0.len() == self.blocks.len(), "a backward without a forward that kept its inputs");
        let mut dy = dhidden;
        for (i, (block, kept)) in self.blocks.iter().zip(tape.0).enumerate().rev() {
            let trace = match kept {
                Kept::Trace(trace) => trace,
                Kept::KeysValues(..) => anyhow::bail!("a backward without a forward that kept its inputs"),
                Kept::Input(x) => Box::new(block.forward(i, &x, self.rows(run, i), run, &self.config)?.1),
            };
            // Below the first block only the embedding is left, which LoRA does not train.
            let want_dx = i > 0 || grads.wants_base();
            match block.backward(&trace, &dy, want_dx, (run, self.rows(run, i)), &self.config, grads)? {
                Some(dx) => dy = dx,
                None => return Ok(()),
            }
        }
        if grads.wants_base() {
            if self.config.scale_embedding {
                dy = (dy * self.embedding_scale()?)?;
            }
            let grad = rows::scatter_add(&dy, run.input_ids, self.config.vocab_size)?;
            grads.add(format!("{}.embed_tokens.weight", lora::root(&self.config)), grad)?;
        }
        Ok(())
    }

    /// √hidden, rounded to the dtype of computation as transformers does.
    fn embedding_scale(&self) -> Result<f64> {
        let scale = Tensor::new((self.config.hidden_size as f64).sqrt(), &Device::Cpu)?;
        Ok(scale.to_dtype(self.dtype)?.to_dtype(DType::F64)?.to_scalar()?)
    }

    fn head_weight(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// KL at the answers' hidden states (M, hidden). With `grads`, adds the head's and the final norm's gradients
    /// there and returns the hidden states' gradient of Σ weight · KL.
    ///
    /// The rows go through the output head some at a time, so that (M, vocabulary) need not exist.
    ///
    /// # Errors
    /// On targets that do not fit.
    pub fn answer_kl(
        &self,
        hidden: &Tensor,
        targets: Targets,
        mut grads: Option<&mut Gradients>,
    ) -> Result<(kl::Rows, Option<Tensor>)> {
        let normed = self.norm.forward(hidden, &self.config)?; // (M, hidden)
        let head = self.head_weight();
        let m = targets.len();
        ensure!(hidden.dim(0)? == m, "{:?} hidden states for {m} targets", hidden.shape());
        let chunk = (LOGITS_AT_ONCE / self.config.vocab_size).max(1);
        let mut all = kl::Rows { kl: Vec::with_capacity(m), option_log_probs: Vec::new() };
        let mut normed_grads = Vec::new();
        for first in (0..m).step_by(chunk) {
            let range = first..(first + chunk).min(m);
            let x = normed.narrow(0, range.start, range.len())?;
            let logits = linear::forward(&x, head, None, None)?; // (chunk, vocabulary)
            let want = grads.is_some();
            let (result, dlogits) = kl::kl(&logits, self.config.final_softcap, targets.slice(range), want)?;
            all.kl.extend(result.kl);
            all.option_log_probs.extend(result.option_log_probs);
            if let (Some(grads), Some(dlogits)) = (grads.as_deref_mut(), dlogits) {
                let mut dx = None;
                linear::backward(&x, head, None, &dlogits, Some(&mut dx))?;
                normed_grads.extend(dx);
                if grads.wants_base() {
                    let name = match self.head {
                        Some(_) => "lm_head.weight".to_string(),
                        None => format!("{}.embed_tokens.weight", lora::root(&self.config)),
                    };
                    grads.add(name, linear::weight_grad(&x, &dlogits)?)?;
                }
            }
        }
        let Some(grads) = grads else { return Ok((all, None)) };
        if normed_grads.is_empty() {
            return Ok((all, Some(hidden.zeros_like()?)));
        }
        let normed_grad = Tensor::cat(&normed_grads, 0)?;
        Ok((all, Some(self.norm.backward(hidden, &normed_grad, &self.config, grads)?)))
    }

    /// Logits (N, vocabulary) of all rows of the hidden states, in f32 (f64 for an f64 model).
    ///
    /// # Errors
    /// If the device fails.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let normed = self.norm.forward(hidden, &self.config)?;
        let logits = linear::forward(&normed, self.head_weight(), None, None)?;
        let wide = if self.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let logits = logits.to_dtype(wide)?;
        match self.config.final_softcap {
            Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
            None => Ok(logits),
        }
    }
}

/// Elements of logits that exist at a time (64 MiB in f32).
pub(super) const LOGITS_AT_ONCE: usize = 1 << 24;
