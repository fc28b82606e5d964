//! One decoder block, forward and backward.
//!
//! x ─ norm ─ q, k, v ─ (per-head norms) ─ rotate ─ attention ─ o ─ (norm) ─ + x = h
//! h ─ norm ─ gate, up ─ activation ─ down ─ (norm) ─ + h
//!
//! Or experts ([`super::experts`]) in place of gate, up and down.

use std::borrow::Cow;

use anyhow::Result;
use candle_core::Tensor;

use super::config::{LayerKind, ModelConfig};
use super::decoder::Run;
use super::experts::{Chosen, Experts};
use super::gradients::Gradients;
use super::loading::Weights;
use super::lora;
use crate::ops::rope::Angles;
use crate::ops::weight::Weight;
use crate::ops::{attention, glu, linear, rms_norm, rope, rows};

/// A linear layer with its adapter.
pub(super) struct Linear {
    /// Path as transformers names it in memory.
    pub path: String,
    pub weight: Weight,
    pub bias: Option<Tensor>,
    pub lora: Option<LoraWeights>,
}

type Ready<'a> = (Cow<'a, Tensor>, Option<Tensor>);

/// An adapter in the dtype of activations.
pub(super) struct LoraWeights {
    pub a: Tensor,
    pub b: Tensor,
    pub scale: f64,
}

/// An RMSNorm.
pub(super) struct Norm {
    pub path: String,
    pub weight: Tensor,
}

/// One block's weights.
pub(super) struct Block {
    input_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    qk_norms: Option<(Norm, Norm)>,
    attention_post_norm: Option<Norm>,
    mlp_norm: Norm,
    mlp: Mlp,
    mlp_post_norm: Option<Norm>,
    kind: LayerKind,
}

/// What follows attention.
enum Mlp {
    Dense(Box<Dense>),
    Experts(Experts),
}

struct Dense {
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// What the MLP's backward reads.
enum MlpTrace {
    Dense { gate: Tensor, up: Tensor },
    Experts(Chosen),
}

/// The rows of a run that a part of a block works on: some, or all where none.
///
/// The last block's outputs are read at the answers only, so only its keys and values are needed everywhere.
#[derive(Clone, Copy)]
pub(super) struct At<'a>(pub Option<&'a [u32]>);

impl At<'_> {
    const ALL: At<'static> = At(None);

    /// The rows of `x` (N, D) that these are, as (M, D).
    fn gather(self, x: &Tensor) -> Result<Tensor> {
        self.0.map_or_else(|| Ok(x.clone()), |at| rows::gather(x, at))
    }

    /// `dx` (N, D) with `dy` (M, D) added at these rows.
    fn add_to(self, dx: Tensor, dy: &Tensor) -> Result<Tensor> {
        match self.0 {
            Some(at) => rows::add(&dx, &rows::scatter_add(dy, at, dx.dim(0)?)?),
            None => rows::add(&dx, dy),
        }
    }
}

/// What the backward of a block reads.
///
/// Of the rows that the block's output has; `x`, `normed_x`, `k` and `v` have all rows of the run.
pub(super) struct Trace {
    x: Tensor,
    normed_x: Tensor,
    /// q and k before their norms, where they have norms.
    raw_qk: Option<(Tensor, Tensor)>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention: Tensor,
    saved: attention::Saved,
    /// The attention branch before its post-norm, where it has one.
    attention_branch: Option<Tensor>,
    h: Tensor,
    normed_h: Tensor,
    mlp: MlpTrace,
    /// The MLP branch before its post-norm, where it has one.
    mlp_branch: Option<Tensor>,
}

impl Trace {
    /// The keys and values, those of the past included.
    pub(super) fn into_keys_values(self) -> (Tensor, Tensor) {
        (self.k, self.v)
    }
}

impl Norm {
    pub(super) fn forward(&self, x: &Tensor, config: &ModelConfig) -> Result<Tensor> {
        rms_norm::forward(x, &self.weight, config.rms_norm_eps, config.gain)
    }

    pub(super) fn backward(
        &self,
        x: &Tensor,
        dy: &Tensor,
        config: &ModelConfig,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let base = grads.wants_base();
        let (dx, dw) = rms_norm::backward(x, &self.weight, dy, config.rms_norm_eps, config.gain, base)?;
        if let Some(dw) = dw {
            grads.add(format!("{}.weight", self.path), dw)?;
        }
        Ok(dx)
    }

    /// Over each head of `x` (N, heads · D).
    fn per_head(&self, x: &Tensor, config: &ModelConfig) -> Result<Tensor> {
        let (n, width) = x.dims2()?;
        let heads = x.reshape((n * width / config.head_dim, config.head_dim))?; // (N heads, D)
        Ok(self.forward(&heads, config)?.reshape((n, width))?)
    }

    fn per_head_backward(
        &self,
        x: &Tensor,
        dy: &Tensor,
        config: &ModelConfig,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let (n, width) = x.dims2()?;
        let shape = (n * width / config.head_dim, config.head_dim); // (N heads, D)
        let dx = self.backward(&x.reshape(shape)?, &dy.reshape(shape)?, config, grads)?;
        Ok(dx.reshape((n, width))?)
    }
}

impl Linear {
    fn mask(&self, x: &Tensor, run: &Run, at: At) -> Result<Option<Tensor>> {
        let Some(dropout) = run.dropout.filter(|_| self.lora.is_some()) else { return Ok(None) };
        let mask = dropout.mask(&self.path, &run.boundaries, x)?;
        Ok(Some(at.gather(&mask)?))
    }

    fn adapter<'a>(&'a self, mask: Option<&'a Tensor>) -> Option<linear::Lora<'a>> {
        self.lora.as_ref().map(|l| linear::Lora { a: &l.a, b: &l.b, scale: l.scale, mask })
    }

    fn layer<'a>(&'a self, (weight, mask): &'a Ready) -> linear::Layer<'a> {
        linear::Layer { weight, bias: self.bias.as_ref(), lora: self.adapter(mask.as_ref()) }
    }

    /// What the operations on `x` need besides: the dense weight and the dropout mask.
    fn ready(&self, x: &Tensor, run: &Run, at: At) -> Result<Ready<'_>> {
        Ok((self.weight.dense()?, self.mask(x, run, at)?))
    }
}

/// The outputs of linears that share the input `x`.
pub(super) fn forward<const K: usize>(
    linears: [&Linear; K],
    x: &Tensor,
    run: &Run,
    at: At,
) -> Result<[Tensor; K]> {
    let ready = linears.iter().map(|l| l.ready(x, run, at)).collect::<Result<Vec<_>>>()?;
    let layers: Vec<_> = linears.iter().zip(&ready).map(|(l, ready)| l.layer(ready)).collect();
    let outputs = linear::forward_all(x, &layers)?;
    outputs.try_into().map_err(|_| anyhow::anyhow!("a linear without an output"))
}

/// Adds the gradients of linears that share the input `x` to `grads`, and their input's gradient to `dx`.
pub(super) fn backward<const K: usize>(
    linears: [(&Linear, &Tensor); K],
    x: &Tensor,
    dx: Option<&mut Option<Tensor>>,
    (run, at): (&Run, At),
    grads: &mut Gradients,
) -> Result<()> {
    let ready = linears.iter().map(|(l, _)| l.ready(x, run, at)).collect::<Result<Vec<_>>>()?;
    let layers: Vec<_> = linears.iter().zip(&ready).map(|((l, dy), ready)| (l.layer(ready), *dy)).collect();
    for ((linear, dy), adapter) in linears.iter().zip(linear::backward_all(x, &layers, dx)?) {
        if let Some(g) = adapter {
            grads.add(lora::a_name(&linear.path), g.a)?;
            grads.add(lora::b_name(&linear.path), g.b)?;
        }
        if grads.wants_base() {
            grads.add(format!("{}.weight", linear.path), linear::weight_grad(x, dy)?)?;
            if linear.bias.is_some() {
                grads.add(format!("{}.bias", linear.path), linear::bias_grad(dy)?)?;
            }
        }
    }
    Ok(())
}

fn some(gradient: Option<Tensor>) -> Result<Tensor> {
    gradient.ok_or_else(|| anyhow::anyhow!("a linear gave no input gradient"))
}

impl Block {
    pub(super) fn load(weights: &Weights, config: &ModelConfig, layer: usize) -> Result<Self> {
        let root = lora::root(config);
        let tensor = |name: &str, shape: &[usize]| weights.get(&format!("layers.{layer}.{name}"), shape);
        let linear = |name: &str, bias: bool| -> Result<Linear> {
            let (d_out, d_in) = lora::linear_shape(config, name);
            let within = lora::within_block(name);
            let bias = match bias {
                true => Some(tensor(&format!("{within}.bias"), &[d_out])?),
                false => None,
            };
            let weight = weights.linear(&format!("layers.{layer}.{within}.weight"), &[d_out, d_in])?;
            Ok(Linear { path: lora::module_path(config, layer, name), weight, bias, lora: None })
        };
        let norm = |name: &str, size: usize| -> Result<Norm> {
            let weight = tensor(&format!("{name}.weight"), &[size])?;
            Ok(Norm { path: format!("{root}.layers.{layer}.{name}"), weight })
        };
        let (d, head_dim) = (config.hidden_size, config.head_dim);
        let qk_norms = match config.qk_norm {
            true => Some((norm("self_attn.q_norm", head_dim)?, norm("self_attn.k_norm", head_dim)?)),
            false => None,
        };
        let (attention_post_norm, mlp_norm, mlp_post_norm) = match config.post_norms {
            true => (
                Some(norm("post_attention_layernorm", d)?),
                norm("pre_feedforward_layernorm", d)?,
                Some(norm("post_feedforward_layernorm", d)?),
            ),
            false => (None, norm("post_attention_layernorm", d)?, None),
        };
        Ok(Self {
            input_norm: norm("input_layernorm", d)?,
            q: linear("q_proj", config.qkv_bias)?,
            k: linear("k_proj", config.qkv_bias)?,
            v: linear("v_proj", config.qkv_bias)?,
            o: linear("o_proj", config.o_bias)?,
            qk_norms,
            attention_post_norm,
            mlp_norm,
            mlp: match config.routing {
                Some(rule) => Mlp::Experts(Experts::load(weights, config, layer, rule)?),
                None => Mlp::Dense(Box::new(Dense {
                    gate: linear("gate_proj", config.mlp_bias)?,
                    up: linear("up_proj", config.mlp_bias)?,
                    down: linear("down_proj", config.mlp_bias)?,
                })),
            },
            mlp_post_norm,
            kind: config.layers[layer],
        })
    }

    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut linears = vec![&mut self.q, &mut self.k, &mut self.v, &mut self.o];
        match &mut self.mlp {
            Mlp::Dense(mlp) => linears.extend([&mut mlp.gate, &mut mlp.up, &mut mlp.down]),
            Mlp::Experts(experts) => linears.extend(experts.linears_mut()),
        }
        linears
    }

    pub(super) fn linears(&self) -> Vec<&Linear> {
        let mut linears = vec![&self.q, &self.k, &self.v, &self.o];
        match &self.mlp {
            Mlp::Dense(mlp) => linears.extend([&mlp.gate, &mlp.up, &mlp.down]),
            Mlp::Experts(experts) => linears.extend(experts.linears()),
        }
        linears
    }

    pub(super) fn norms(&self) -> impl Iterator<Item = &Norm> {
        let qk = self.qk_norms.iter().flat_map(|(q, k)| [q, k]);
        let post = self.attention_post_norm.iter().chain(&self.mlp_post_norm);
        [&self.input_norm, &self.mlp_norm].into_iter().chain(qk).chain(post)
    }

    pub(super) fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        let qk = self.qk_norms.iter_mut().flat_map(|(q, k)| [q, k]);
        let post = self.attention_post_norm.iter_mut().chain(&mut self.mlp_post_norm);
        [&mut self.input_norm, &mut self.mlp_norm].into_iter().chain(qk).chain(post)
    }

    fn attention_spec(&self, config: &ModelConfig) -> attention::Spec {
        attention::Spec {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            softcap: config.attention_softcap,
            window: self.kind.window,
        }
    }

    /// The block's output (M, hidden) at the rows `at` of its input (N, hidden), and what its backward reads.
    pub(super) fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        at: At,
        run: &Run,
        config: &ModelConfig,
    ) -> Result<(Tensor, Trace)> {
        let (branch, trace) = self.trace(layer, x, at, run, config, true)?;
        Ok((rows::add(&trace.h, &some(branch)?)?, trace))
    }

    /// What the MLP adds to the block's output, if that is wanted, and what the backward reads. Where it is not, as when a
    /// block is computed again, its last product is spared too, unless the backward reads that.
    pub(super) fn trace(
        &self,
        layer: usize,
        x: &Tensor,
        at: At,
        run: &Run,
        config: &ModelConfig,
        wanted: bool,
    ) -> Result<(Option<Tensor>, Trace)> {
        let angles = &run.angles[self.kind.rope];
        let normed_x = self.input_norm.forward(x, config)?;
        let (mut q, mut k, mut v);
        if at.0.is_some() {
            [q] = forward([&self.q], &at.gather(&normed_x)?, run, at)?;
            [k, v] = forward([&self.k, &self.v], &normed_x, run, At::ALL)?;
        } else {
            [q, k, v] = forward([&self.q, &self.k, &self.v], &normed_x, run, At::ALL)?;
        }
        let mut raw_qk = None;
        if let Some((q_norm, k_norm)) = &self.qk_norms {
            let normed = (q_norm.per_head(&q, config)?, k_norm.per_head(&k, config)?);
            raw_qk = Some((q, k));
            (q, k) = normed;
        }
        let q_angles = angles_at(angles, at)?;
        q = rope::forward(&q, &q_angles)?;
        k = rope::forward(&k, angles)?;
        let spec = self.attention_spec(config);
        let (attention, saved) = match run.past(layer) {
            Some((past, joined)) => {
                k = behind(&past.0, &k, &run.boundaries)?;
                v = behind(&past.1, &v, &run.boundaries)?;
                let queries = match at.0 {
                    Some(at) => at.iter().map(|&row| joined.rows[row as usize]).collect(),
                    None => joined.rows.clone(),
                };
                let attending = attention::Rows { boundaries: &joined.boundaries, queries: Some(&queries) };
                attention::forward(&q, &k, &v, attending, &spec)?
            }
            None => {
                let attending = attention::Rows { boundaries: &run.boundaries, queries: at.0 };
                attention::forward(&q, &k, &v, attending, &spec)?
            }
        };
        let [branch] = forward([&self.o], &attention, run, at)?;
        let (branch, attention_branch) = match &self.attention_post_norm {
            Some(norm) => (norm.forward(&branch, config)?, Some(branch)),
            None => (branch, None),
        };
        let h = rows::add(&at.gather(x)?, &branch)?;

        let normed_h = self.mlp_norm.forward(&h, config)?;
        let computed = wanted || self.mlp_post_norm.is_some();
        let (branch, mlp) = match &self.mlp {
            Mlp::Dense(mlp) => {
                let [gate, up] = forward([&mlp.gate, &mlp.up], &normed_h, run, at)?;
                let mut branch = None;
                if computed {
                    let activated = glu::forward(&gate, &up, config.activation)?;
                    let [down] = forward([&mlp.down], &activated, run, at)?;
                    branch = Some(down);
                }
                (branch, MlpTrace::Dense { gate, up })
            }
            Mlp::Experts(experts) if computed => {
                let (branch, chosen) = experts.forward(&normed_h, run, at)?;
                (Some(branch), MlpTrace::Experts(chosen))
            }
            Mlp::Experts(experts) => (None, MlpTrace::Experts(experts.choose(&normed_h, run, at)?)),
        };
        let (branch, mlp_branch) = match &self.mlp_post_norm {
            Some(norm) if wanted => (Some(norm.forward(&some(branch.clone())?, config)?), branch),
            Some(_) => (None, branch),
            None => (branch, None),
        };
        let x = x.clone();
        let trace = Trace {
            x,
            normed_x,
            raw_qk,
            q,
            k,
            v,
            attention,
            saved,
            attention_branch,
            h,
            normed_h,
            mlp,
            mlp_branch,
        };
        Ok((branch, trace))
    }

    /// Adds the block's gradients to `grads`, given the output's (M, hidden) at the rows `at`; returns the
    /// input's gradient (N, hidden) if `want_dx`.
    pub(super) fn backward(
        &self,
        trace: &Trace,
        dy: &Tensor,
        want_dx: bool,
        (run, at): (&Run, At),
        config: &ModelConfig,
        grads: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let dh = self.mlp_backward(trace, dy, (run, at), config, grads)?;
        self.attention_backward(trace, &dh, want_dx, (run, at), config, grads)
    }

    fn mlp_backward(
        &self,
        trace: &Trace,
        dy: &Tensor,
        place: (&Run, At),
        config: &ModelConfig,
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let branch_grad = match (&self.mlp_post_norm, &trace.mlp_branch) {
            (Some(norm), Some(branch)) => norm.backward(branch, dy, config, grads)?,
            _ => dy.clone(),
        };
        let normed_grad = match (&self.mlp, &trace.mlp) {
            (Mlp::Dense(mlp), MlpTrace::Dense { gate, up }) => {
                let activated = glu::forward(gate, up, config.activation)?;
                let mut activated_grad = None;
                backward([(&mlp.down, &branch_grad)], &activated, Some(&mut activated_grad), place, grads)?;
                drop(activated);
                let (gate_grad, up_grad) =
                    glu::backward(gate, up, &some(activated_grad)?, config.activation)?;
                let mut normed_grad = None;
                let pair = [(&mlp.gate, &gate_grad), (&mlp.up, &up_grad)];
                backward(pair, &trace.normed_h, Some(&mut normed_grad), place, grads)?;
                some(normed_grad)?
            }
            (Mlp::Experts(experts), MlpTrace::Experts(chosen)) => {
                experts.backward(&trace.normed_h, chosen, &branch_grad, place, grads)?
            }
            _ => anyhow::bail!("a trace of another kind of block"),
        };
        rows::add(dy, &self.mlp_norm.backward(&trace.h, &normed_grad, config, grads)?)
    }

    fn attention_backward(
        &self,
        trace: &Trace,
        dh: &Tensor,
        want_dx: bool,
        (run, at): (&Run, At),
        config: &ModelConfig,
        grads: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let branch_grad = match (&self.attention_post_norm, &trace.attention_branch) {
            (Some(norm), Some(branch)) => norm.backward(branch, dh, config, grads)?,
            _ => dh.clone(),
        };
        let mut attention_grad = None;
        backward([(&self.o, &branch_grad)], &trace.attention, Some(&mut attention_grad), (run, at), grads)?;
        let (mut dq, mut dk, dv) = attention::backward(
            (&trace.q, &trace.k, &trace.v),
            &trace.attention,
            &trace.saved,
            &some(attention_grad)?,
            attention::Rows { boundaries: &run.boundaries, queries: at.0 },
            &self.attention_spec(config),
        )?;
        let angles = &run.angles[self.kind.rope];
        let q_angles = angles_at(angles, at)?;
        dq = rope::backward(&dq, &q_angles)?;
        dk = rope::backward(&dk, angles)?;
        if let (Some((q_norm, k_norm)), Some((q, k))) = (&self.qk_norms, &trace.raw_qk) {
            dq = q_norm.per_head_backward(q, &dq, config, grads)?;
            dk = k_norm.per_head_backward(k, &dk, config, grads)?;
        }
        let mut normed_grad = None;
        let (q, k, v) = ((&self.q, &dq), (&self.k, &dk), (&self.v, &dv));
        let dx = want_dx.then_some(&mut normed_grad);
        if at.0.is_some() {
            backward([k, v], &trace.normed_x, dx, (run, At::ALL), grads)?;
            let mut q_grad = None;
            let dx = want_dx.then_some(&mut q_grad);
            backward([q], &at.gather(&trace.normed_x)?, dx, (run, at), grads)?;
            if want_dx {
                normed_grad = Some(at.add_to(some(normed_grad)?, &some(q_grad)?)?);
            }
        } else {
            backward([q, k, v], &trace.normed_x, dx, (run, At::ALL), grads)?;
        }
        if !want_dx {
            return Ok(None);
        }
        let dx = self.input_norm.backward(&trace.x, &some(normed_grad)?, config, grads)?;
        Ok(Some(at.add_to(dx, dh)?))
    }
}

/// `past` (P, width) before every sequence's rows of `x` (N, width), as (N + S P, width).
fn behind(past: &Tensor, x: &Tensor, boundaries: &[u32]) -> Result<Tensor> {
    let mut pieces = Vec::with_capacity(2 * boundaries.len());
    for b in boundaries.windows(2) {
        pieces.extend([past.clone(), x.narrow(0, b[0] as usize, (b[1] - b[0]) as usize)?]);
    }
    Ok(Tensor::cat(&pieces, 0)?)
}

fn angles_at<'a>(angles: &'a Angles, at: At) -> Result<Cow<'a, Angles>> {
    Ok(match at.0 {
        Some(at) => Cow::Owned(angles.at(at)?),
        None => Cow::Borrowed(angles),
    })
}
