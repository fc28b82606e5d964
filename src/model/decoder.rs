//! The decoder of every supported family, steered by its config: forward, and backward by hand.
//!
//! Tokens come as one flat run with sequence boundaries; there is no padding anywhere. Base weights are plain
//! frozen tensors, and an adapter sits inside its linear layer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Device, Tensor};

use super::adapter::Adapter;
use super::block::{At, Block, Linear, LoraWeights, Norm, Trace};
use super::config::ModelConfig;
use super::gradients::Gradients;
use super::loading::Weights;
use super::lora;
use super::prefix;
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
    /// A soft prompt (P, hidden), in the dtype of activations.
    prefix: Option<Tensor>,
    /// Of activations.
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

/// A run's tokens with what all blocks share. Where a soft prompt stands before each sequence, its P rows count among
/// the run's (N + S P); the rows that a caller asks for and gets are those of tokens.
pub struct Run<'a> {
    /// Token ids (N).
    input_ids: &'a [u32],
    /// First row of each sequence, and the number of rows (S + 1).
    pub(super) boundaries: Cow<'a, [u32]>,
    /// Rotation angles by rope index.
    pub(super) angles: Vec<Angles>,
    /// The adapter's dropout, while training.
    pub(super) dropout: Option<&'a Dropout>,
    /// The rows whose hidden states are wanted, ascending (M); all where none.
    rows: Option<Cow<'a, [u32]>>,
    /// Where a soft prompt stands before the sequences.
    prefixed: Option<Prefixed>,
    /// What every sequence of the run goes on from.
    past: Option<(&'a Past, Joined)>,
}

/// Which row is what, where a soft prompt (P, hidden) stands before each sequence.
struct Prefixed {
    /// The row of (soft prompt; tokens) that each of the run's rows is (N + S P).
    sources: Vec<u32>,
    /// The run's row of each token (N).
    tokens: Vec<u32>,
}

/// Keys and values of tokens that went through the model before, by layer: (P, kv_heads · D) each, rotated.
#[derive(Clone, Debug)]
pub struct Past {
    layers: Vec<(Tensor, Tensor)>,
    /// Rows of the layers.
    rows: usize,
    /// How many of the rows are a soft prompt's.
    prefix: usize,
}

impl Past {
    /// Tokens before.
    pub fn len(&self) -> usize {
        self.rows - self.prefix
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all but the first `length` tokens.
    ///
    /// # Errors
    /// If the device fails.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        if length < self.len() {
            self.rows = self.prefix + length;
            for (k, v) in &mut self.layers {
                *k = k.narrow(0, 0, self.rows)?.force_contiguous()?;
                *v = v.narrow(0, 0, self.rows)?.force_contiguous()?;
            }
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
    /// Wants the hidden states at the tokens `rows` (M, ascending) only, which spares the last block the rest.
    pub fn only(self, rows: &'a [u32]) -> Self {
        let rows = match &self.prefixed {
            Some(prefixed) => rows.iter().map(|&row| prefixed.tokens[row as usize]).collect(),
            None => Cow::Borrowed(rows),
        };
        Self { rows: Some(rows), ..self }
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
pub struct Tape {
    blocks: Vec<Kept>,
    /// How many of the rows of keys and values are a soft prompt's.
    prefix: usize,
}

impl Tape {
    /// What a pass with [`Keep::KeysValues`] leaves to go on from, its own past included.
    ///
    /// # Errors
    /// If something else was kept.
    pub fn into_past(self) -> Result<Past> {
        let layers = self.blocks.into_iter().map(|kept| match kept {
            Kept::KeysValues(k, v) => Ok((k, v)),
            Kept::Input(_) | Kept::Trace(_) => anyhow::bail!("a pass that did not keep keys and values"),
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let rows = layers.first().map_or(Ok(0), |(k, _)| k.dim(0))?;
        Ok(Past { layers, rows, prefix: self.prefix })
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
        let (dtype, device) = (weights.activations(), weights.device());
        let (v, d) = (config.vocab_size, config.hidden_size);
        let blocks = (0..config.num_layers()).map(|i| Block::load(weights, config, i));
        Ok(Self {
            embedding: weights.embedding(&[v, d])?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: Norm {
                path: format!("{}.norm", lora::root(config)),
                weight: weights.get("norm.weight", &[d])?,
            },
            head: if config.tie_word_embeddings { None } else { Some(weights.head(&[v, d])?) },
            prefix: None,
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

    /// The dtype of activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How many embeddings of a soft prompt stand before each sequence.
    pub fn prefix_len(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.dims()[0])
    }

    /// The most tokens of a sequence.
    pub fn max_tokens(&self) -> usize {
        self.config.max_position_embeddings.saturating_sub(self.prefix_len())
    }

    /// Puts an adapter's tensors in place, in the dtype of activations; `None` takes the one before off.
    ///
    /// # Errors
    /// If the adapter names a linear that is not there, or does not fit the model's shape.
    pub fn set_adapter(&mut self, adapter: Option<&Adapter>) -> Result<()> {
        let dtype = self.dtype;
        let device = self.device.clone();
        let place = |t: &Tensor| -> Result<Tensor> { Ok(t.to_device(&device)?.to_dtype(dtype)?) };
        let (lora, prefix) = match adapter {
            Some(Adapter::Lora(lora)) => (Some(lora), None),
            Some(Adapter::Prefix(prefix)) => (None, Some(&prefix.embeddings)),
            None => (None, None),
        };
        if let Some(prefix) = prefix {
            let hidden = self.config.hidden_size;
            ensure!(
                matches!(prefix.dims(), [length, width] if *length > 0 && *width == hidden),
                "the soft prompt has shape {:?}, but the model's embeddings are {hidden} wide",
                prefix.dims()
            );
        }
        self.prefix = prefix.map(place).transpose()?;
        let mut left: BTreeMap<&str, _> =
            lora.iter().flat_map(|l| &l.modules).map(|(path, module)| (path.as_str(), module)).collect();
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

    /// Replaces weights by those of the same names in `parameters`, in the dtype of what they replace.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn set_parameters(&mut self, parameters: &BTreeMap<String, Tensor>) -> Result<()> {
        let device = self.device.clone();
        let set = |name: &str, slot: &mut Tensor| -> Result<()> {
            let tensor = parameters.get(name).with_context(|| format!("{name} is missing"))?;
            ensure!(
                tensor.shape() == slot.shape(),
                "{name} has shape {:?}, expected {:?}",
                tensor.dims(),
                slot.dims()
            );
            *slot = tensor.to_device(&device)?.to_dtype(slot.dtype())?;
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

    /// Prepares a run of whole sequences: puts the soft prompt before them if there is one, and computes the rotation
    /// angles.
    ///
    /// # Errors
    /// If a token is beyond the vocabulary, lengths do not agree, or there is no room for the soft prompt.
    pub fn run<'a>(&self, tokens: Tokens<'a>, dropout: Option<&'a Dropout>) -> Result<Run<'a>> {
        self.check(tokens)?;
        let Tokens { input_ids, positions, boundaries } = tokens;
        let whole = |boundaries, positions: &[u32]| -> Result<Run<'a>> {
            let angles = self.angles(positions)?;
            Ok(Run { input_ids, boundaries, angles, dropout, rows: None, prefixed: None, past: None })
        };
        let prefix = self.prefix_len() as u32;
        if prefix == 0 {
            return whole(Cow::Borrowed(boundaries), positions);
        }
        let mut shifted = (vec![0], Vec::new());
        let mut prefixed = Prefixed { sources: Vec::new(), tokens: Vec::new() };
        for b in boundaries.windows(2) {
            prefixed.sources.extend(0..prefix);
            shifted.1.extend(0..prefix);
            for row in b[0]..b[1] {
                prefixed.tokens.push(prefixed.sources.len() as u32);
                prefixed.sources.push(prefix + row);
                shifted.1.push(prefix + positions[row as usize]);
            }
            shifted.0.push(prefixed.sources.len() as u32);
        }
        let rows = Some(Cow::Owned(prefixed.tokens.clone()));
        Ok(Run { rows, prefixed: Some(prefixed), ..whole(Cow::Owned(shifted.0), &shifted.1)? })
    }

    /// Prepares a run whose every sequence goes on from `past`, if there is one: positions count from its length. There
    /// is no backward through it.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_after<'a>(&self, tokens: Tokens<'a>, past: Option<&'a Past>) -> Result<Run<'a>> {
        let Some(past) = past.filter(|past| !past.is_empty()) else { return self.run(tokens, None) };
        self.check(tokens)?;
        let Tokens { input_ids, positions, boundaries } = tokens;
        let prefix = self.prefix_len();
        ensure!(past.prefix == prefix, "a past behind a soft prompt of {}, not of {prefix}", past.prefix);
        let positions: Vec<u32> = positions.iter().map(|position| position + prefix as u32).collect();
        let joined = Joined::new(boundaries, past.rows);
        Ok(Run {
            input_ids,
            boundaries: Cow::Borrowed(boundaries),
            angles: self.angles(&positions)?,
            dropout: None,
            rows: None,
            prefixed: None,
            past: Some((past, joined)),
        })
    }

    fn check(&self, tokens: Tokens) -> Result<()> {
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
        let longest = positions.iter().max().map_or(0, |&position| position as usize + 1);
        ensure!(
            self.prefix.is_none() || longest <= self.max_tokens(),
            "{longest} tokens after a soft prompt of {} are more than the model's max_position_embeddings ({})",
            self.prefix_len(),
            self.config.max_position_embeddings
        );
        Ok(())
    }

    fn angles(&self, positions: &[u32]) -> Result<Vec<Angles>> {
        let angles = |f: &Vec<f32>| Angles::new(positions, f, self.dtype, &self.device);
        self.config.inv_freq.iter().map(angles).collect()
    }

    /// The embeddings of tokens (N, hidden), as the first block reads them.
    ///
    /// # Errors
    /// If a token is beyond the vocabulary, or the device fails.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let x = rows::gather(&self.embedding, ids)?.to_dtype(self.dtype)?;
        if self.config.scale_embedding { Ok((x * self.embedding_scale()?)?) } else { Ok(x) }
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
        let mut x = self.embed(run.input_ids)?;
        if let (Some(prefix), Some(prefixed)) = (&self.prefix, &run.prefixed) {
            x = rows::gather(&Tensor::cat(&[prefix, &x], 0)?, &prefixed.sources)?; // (N + S P, hidden)
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
        Ok((x, Tape { blocks: tape, prefix: self.prefix_len() }))
    }

    /// The rows that the output of block `i` needs.
    fn rows<'a>(&self, run: &'a Run, i: usize) -> At<'a> {
        At(run.rows.as_deref().filter(|_| i + 1 == self.blocks.len()))
    }

    /// Adds all gradients to `grads`, given the gradient of the hidden states (M, hidden).
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward(&self, tape: Tape, dhidden: Tensor, run: &Run, grads: &mut Gradients) -> Result<()> {
        ensure!(tape.blocks.len() == self.blocks.len(), "a backward without a forward that kept its inputs");
        let mut dy = dhidden;
        for (i, (block, kept)) in self.blocks.iter().zip(tape.blocks).enumerate().rev() {
            let trace = match kept {
                Kept::Trace(trace) => trace,
                Kept::KeysValues(..) => anyhow::bail!("a backward without a forward that kept its inputs"),
                Kept::Input(x) => {
                    Box::new(block.trace(i, &x, self.rows(run, i), run, &self.config, false)?.1)
                }
            };
            // Below the first block are only embeddings, which LoRA does not train.
            let want_dx = i > 0 || grads.wants_base() || grads.wants_prefix();
            match block.backward(&trace, &dy, want_dx, (run, self.rows(run, i)), &self.config, grads)? {
                Some(dx) => dy = dx,
                None => return Ok(()),
            }
        }
        if grads.wants_prefix() {
            let length = self.prefix_len() as u32;
            ensure!(length > 0 && run.prefixed.is_some(), "a soft prompt's gradient without a soft prompt");
            let starts = &run.boundaries[..run.boundaries.len() - 1];
            let at: Vec<u32> = starts.iter().flat_map(|&first| first..first + length).collect();
            let embeddings: Vec<u32> = starts.iter().flat_map(|_| 0..length).collect();
            let grad = rows::scatter_add(&rows::gather(&dy, &at)?, &embeddings, length as usize)?;
            grads.add(prefix::NAME.to_string(), grad)?;
        }
        if grads.wants_base() {
            if let Some(prefixed) = &run.prefixed {
                dy = rows::gather(&dy, &prefixed.tokens)?; // (N, hidden)
            }
            if self.config.scale_embedding {
                dy = (dy * self.embedding_scale()?)?;
            }
            let grad = rows::scatter_add(&dy, run.input_ids, self.config.vocab_size)?;
            grads.add(format!("{}.embed_tokens.weight", lora::root(&self.config)), grad)?;
        }
        Ok(())
    }

    /// √hidden, rounded to the dtype of the embedding as transformers does.
    fn embedding_scale(&self) -> Result<f64> {
        let scale = Tensor::new((self.config.hidden_size as f64).sqrt(), &Device::Cpu)?;
        Ok(scale.to_dtype(self.embedding.dtype())?.to_dtype(DType::F64)?.to_scalar()?)
    }

    fn head_weight(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// KL at the answers' hidden states (M, hidden). With `grads`, adds the head's and the final norm's gradients
    /// there and returns the hidden states' gradient of Σ weight · KL.
    ///
    /// The rows go through the output head some at a time, so that (M, vocabulary) need not exist. Nothing waits for a GPU
    /// before [`kl::Pending::read`].
    ///
    /// # Errors
    /// On targets that do not fit.
    pub fn answer_kl(
        &self,
        hidden: &Tensor,
        targets: Targets,
        mut grads: Option<&mut Gradients>,
    ) -> Result<(kl::Pending, Option<Tensor>)> {
        let normed = self.norm.forward(hidden, &self.config)?; // (M, hidden)
        let head = self.head_weight();
        let m = targets.len();
        ensure!(hidden.dim(0)? == m, "{:?} hidden states for {m} targets", hidden.shape());
        let chunk = (LOGITS_AT_ONCE / self.config.vocab_size).max(1);
        let mut all = kl::Pending::none();
        let mut normed_grads = Vec::new();
        for first in (0..m).step_by(chunk) {
            let range = first..(first + chunk).min(m);
            let x = normed.narrow(0, range.start, range.len())?;
            let logits = linear::forward(&x, head, None, None)?; // (chunk, vocabulary)
            let want = grads.is_some();
            let (pending, dlogits) =
                kl::start(&logits, self.config.final_softcap, targets.slice(range), want)?;
            all.extend(pending);
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
