//! A mixture of experts in place of a block's MLP (Qwen 3 MoE): a router chooses some of many gated MLPs for each token.
//!
//! With p = softmax(x Wᵣᵀ) over all experts, a token's weights are the k largest p, divided by their sum where the config
//! says so, and y = Σ wₑ expertₑ(x) over the chosen. The choice itself has no gradient; the weights have.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

use super::block::{At, Linear, backward, forward};
use super::config::{Activation, ModelConfig, Routing as Rule};
use super::decoder::Run;
use super::gradients::Gradients;
use super::loading::Weights;
use super::lora;
use crate::ops::weight::{Storage, Weight};
use crate::ops::{glu, rows};

/// The router and the experts of a block.
pub(super) struct Experts {
    router: Linear,
    experts: Vec<Expert>,
    rule: Rule,
    activation: Activation,
}

struct Expert {
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Who was chosen for each token.
pub(super) struct Chosen {
    /// p (M, experts), one token after the other.
    probs: Vec<f64>,
    /// For each expert its tokens, in ascending order, with their weights.
    tokens: Vec<(Vec<u32>, Vec<f64>)>,
}

impl Experts {
    pub(super) fn load(weights: &Weights, config: &ModelConfig, layer: usize, rule: Rule) -> Result<Self> {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let path = |name: &str| format!("{}.layers.{layer}.mlp.{name}", lora::root(config));
        let linear = |name: String, shape: [usize; 2]| -> Result<Linear> {
            let weight = weights.linear(&format!("layers.{layer}.mlp.{name}.weight"), &shape)?;
            Ok(Linear { path: path(&name), weight, bias: None, lora: None })
        };
        let expert = |e: usize| -> Result<Expert> {
            Ok(Expert {
                gate: linear(format!("experts.{e}.gate_proj"), [f, d])?,
                up: linear(format!("experts.{e}.up_proj"), [f, d])?,
                down: linear(format!("experts.{e}.down_proj"), [d, f])?,
            })
        };
        // Small, and what it decides is not to be rounded.
        let router = weights.get(&format!("layers.{layer}.mlp.gate.weight"), &[rule.experts, d])?;
        let router = Weight::new(&router, Storage::Dense, weights.activations(), weights.device())?;
        Ok(Self {
            router: Linear { path: path("gate"), weight: router, bias: None, lora: None },
            experts: (0..rule.experts).map(expert).collect::<Result<_>>()?,
            rule,
            activation: config.activation,
        })
    }

    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        std::iter::once(&self.router).chain(self.experts.iter().flat_map(|e| [&e.gate, &e.up, &e.down]))
    }

    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let experts = self.experts.iter_mut().flat_map(|e| [&mut e.gate, &mut e.up, &mut e.down]);
        std::iter::once(&mut self.router).chain(experts)
    }

    /// The output (M, hidden) for `x` (M, hidden), and the choice that the backward goes by.
    pub(super) fn forward(&self, x: &Tensor, run: &Run, at: At) -> Result<(Tensor, Chosen)> {
        let chosen = self.choose(x, run, at)?;
        let mut outputs = Vec::new();
        let mut places: Vec<u32> = Vec::new();
        for (expert, (tokens, weights)) in self.experts.iter().zip(&chosen.tokens) {
            if tokens.is_empty() {
                continue;
            }
            let x = rows::gather(x, tokens)?;
            let [gate, up] = forward([&expert.gate, &expert.up], &x, run, at)?;
            let [y] = forward([&expert.down], &glu::forward(&gate, &up, self.activation)?, run, at)?;
            outputs.push(y.broadcast_mul(&column(weights, &y)?)?);
            places.extend(tokens);
        }
        if outputs.is_empty() {
            return Ok((x.zeros_like()?, chosen));
        }
        // Summed in the order of the experts.
        let y = rows::scatter_add(&Tensor::cat(&outputs, 0)?.contiguous()?, &places, x.dim(0)?)?;
        Ok((y, chosen))
    }

    /// The gradient of `x` (M, hidden), given the output's; those of weights that are trained go into `grads`.
    pub(super) fn backward(
        &self,
        x: &Tensor,
        chosen: &Chosen,
        dy: &Tensor,
        (run, at): (&Run, At),
        grads: &mut Gradients,
    ) -> Result<Tensor> {
        let m = x.dim(0)?;
        let mut input_grads = Vec::new();
        let mut places: Vec<u32> = Vec::new();
        let mut products = Vec::new();
        for (expert, (tokens, weights)) in self.experts.iter().zip(&chosen.tokens) {
            if tokens.is_empty() {
                expert.add_no_gradient(dy, grads)?;
                continue;
            }
            let x = rows::gather(x, tokens)?;
            let dy = rows::gather(dy, tokens)?;
            let [gate, up] = forward([&expert.gate, &expert.up], &x, run, at)?;
            let activated = glu::forward(&gate, &up, self.activation)?;
            let [y] = forward([&expert.down], &activated, run, at)?;
            products.push(row_products(&dy, &y)?);
            let dy = dy.broadcast_mul(&column(weights, &dy)?)?;
            let mut activated_grad = None;
            backward([(&expert.down, &dy)], &activated, Some(&mut activated_grad), (run, at), grads)?;
            let activated_grad = given(activated_grad)?;
            let (dgate, dup) = glu::backward(&gate, &up, &activated_grad, self.activation)?;
            let mut dx = None;
            let pair = [(&expert.gate, &dgate), (&expert.up, &dup)];
            backward(pair, &x, Some(&mut dx), (run, at), grads)?;
            input_grads.push(given(dx)?);
            places.extend(tokens);
        }
        if input_grads.is_empty() {
            return Ok(x.zeros_like()?);
        }
        let dx = rows::scatter_add(&Tensor::cat(&input_grads, 0)?.contiguous()?, &places, m)?;
        // Read once every expert's work is on its way, so that a GPU is waited for once.
        let dlogits = self.router_grad(chosen, &numbers(&Tensor::cat(&products, 0)?)?);
        let dlogits = Tensor::from_vec(dlogits, (m, self.rule.experts), &candle_core::Device::Cpu)?;
        let dlogits = dlogits.to_dtype(x.dtype())?.to_device(x.device())?;
        let mut dx = Some(dx);
        backward([(&self.router, &dlogits)], x, Some(&mut dx), (run, at), grads)?;
        given(dx)
    }

    /// Each token's experts: those of the largest probabilities, the first of equals.
    pub(super) fn choose(&self, x: &Tensor, run: &Run, at: At) -> Result<Chosen> {
        let Rule { experts, per_token, normalise } = self.rule;
        let [logits] = forward([&self.router], x, run, at)?; // (M, experts)
        let logits: Vec<f64> = numbers(&logits.flatten_all()?)?;
        ensure!(logits.iter().all(|l| l.is_finite()), "a router's logits are not finite");
        let mut probs = Vec::with_capacity(logits.len());
        let mut tokens = vec![(Vec::new(), Vec::new()); experts];
        for (token, logits) in logits.chunks_exact(experts).enumerate() {
            let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = logits.iter().map(|l| (l - highest).exp()).sum();
            let p: Vec<f64> = logits.iter().map(|l| (l - highest).exp() / sum).collect();
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            order.truncate(per_token);
            let total = if normalise { order.iter().map(|&e| p[e]).sum() } else { 1.0 };
            for e in order {
                tokens[e].0.push(token as u32);
                tokens[e].1.push(p[e] / total);
            }
            probs.extend(p);
        }
        Ok(Chosen { probs, tokens })
    }

    /// The router's gradient (M, experts), given those of the chosen experts' weights, one expert's tokens after the other's.
    ///
    /// With w = p / S over the chosen, dp = (dw − Σ w dw) / S; and through the softmax, dl = p (dp − Σ p dp).
    fn router_grad(&self, chosen: &Chosen, of_chosen: &[f64]) -> Vec<f64> {
        let experts = self.rule.experts;
        let mut weights = vec![None; chosen.probs.len()];
        let mut weight_grads = vec![0.0; chosen.probs.len()];
        let mut of_chosen = of_chosen.iter();
        for (e, (tokens, of)) in chosen.tokens.iter().enumerate() {
            for ((&token, &w), &grad) in tokens.iter().zip(of).zip(&mut of_chosen) {
                let at = token as usize * experts + e;
                (weights[at], weight_grads[at]) = (Some(w), grad);
            }
        }
        let mut grad = vec![0.0; chosen.probs.len()];
        let tokens = grad.chunks_exact_mut(experts).zip(chosen.probs.chunks_exact(experts));
        for ((grad, p), (dw, w)) in
            tokens.zip(weight_grads.chunks_exact(experts).zip(weights.chunks_exact(experts)))
        {
            let (mean, sum) = match self.rule.normalise {
                true => (
                    dw.iter().zip(w).map(|(dw, w)| dw * w.unwrap_or(0.0)).sum::<f64>(),
                    p.iter().zip(w).filter(|(_, w)| w.is_some()).map(|(p, _)| p).sum::<f64>(),
                ),
                false => (0.0, 1.0),
            };
            let dp: Vec<f64> = dw.iter().zip(w).map(|(dw, w)| w.map_or(0.0, |_| (dw - mean) / sum)).collect();
            let along: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for ((grad, p), dp) in grad.iter_mut().zip(p).zip(&dp) {
                *grad = p * (dp - along);
            }
        }
        grad
    }
}

impl Expert {
    /// Where all weights are trained, those that nothing went through have a gradient too.
    fn add_no_gradient(&self, like: &Tensor, grads: &mut Gradients) -> Result<()> {
        let linears = if grads.wants_base() { vec![&self.gate, &self.up, &self.down] } else { Vec::new() };
        for linear in linears {
            let zeros = Tensor::zeros(linear.weight.shape(), like.dtype(), like.device())?;
            grads.add(format!("{}.weight", linear.path), zeros)?;
        }
        Ok(())
    }
}

/// Weights (M) as a column beside `y` (M, hidden).
fn column(weights: &[f64], y: &Tensor) -> Result<Tensor> {
    let column = Tensor::from_slice(weights, (weights.len(), 1), &candle_core::Device::Cpu)?;
    Ok(column.to_dtype(y.dtype())?.to_device(y.device())?)
}

/// The inner product of each row of `a` with that of `b`.
fn row_products(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let wide = if a.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    Ok((a.to_dtype(wide)? * b.to_dtype(wide)?)?.sum(1)?)
}

/// The numbers of a vector on the host. Cast there: Metal has no f64.
fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.to_device(&candle_core::Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()?)
}

fn given(gradient: Option<Tensor>) -> Result<Tensor> {
    gradient.ok_or_else(|| anyhow::anyhow!("a linear gave no input gradient"))
}
