//! Forward KL from soft targets to the model's distribution, at the answer rows.
//!
//! Over the whole vocabulary, KL(t ‖ p) = Σ t log t − Σ t log p: mass off the options costs. Over the options
//! only, p is renormalised there. A one-hot target makes it the cross-entropy. Sums are in f64.

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::cpu::{self, Real};
#[cfg(feature = "cuda")]
use super::cuda;
use super::{dispatch, on_cuda, vjp};

/// Soft targets of M rows; options of row i stand at `option_boundaries[i]..option_boundaries[i + 1]`.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// (M + 1)
    pub option_boundaries: &'a [u32],
    /// Token ids of the options, flat.
    pub ids: &'a [u32],
    /// The teacher's probabilities, flat.
    pub probs: &'a [f32],
    /// Weight of each row (M).
    pub weights: &'a [f32],
    /// Whether each row's distribution is over the whole vocabulary (M), or over its options only.
    pub whole_vocabulary: &'a [bool],
}

/// What the rows gave.
#[derive(Clone, Debug)]
pub struct Rows {
    /// KL of each row, unweighted, in nats (M).
    pub kl: Vec<f64>,
    /// Log-probability of each option over the whole vocabulary, flat.
    pub option_log_probs: Vec<f64>,
}

/// What rows will give: a GPU may still be computing it.
#[derive(Debug)]
pub struct Pending(Vec<LogProbs>);

/// Log-probabilities of the options of some rows, flat, where they are computed.
#[derive(Debug)]
enum LogProbs {
    Host(Vec<f64>),
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only kernels of a GPU leave them there"))]
    Device(Tensor),
}

impl Pending {
    /// Nothing yet.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Adds the rows that come next.
    pub fn extend(&mut self, next: Pending) {
        self.0.extend(next.0);
    }

    /// The rows of all these `targets`, after waiting for the device.
    ///
    /// # Errors
    /// If the device fails, or the targets are not those of the rows.
    pub fn read(self, targets: &Targets) -> Result<Rows> {
        let mut flat = Vec::new();
        for log_probs in self.0 {
            match log_probs {
                LogProbs::Host(values) => flat.extend(values),
                LogProbs::Device(values) => {
                    let values: Vec<f32> = values.to_device(&Device::Cpu)?.to_vec1()?;
                    flat.extend(values.into_iter().map(f64::from));
                }
            }
        }
        let first = targets.option_boundaries[0] as usize;
        let count = targets.option_boundaries[targets.len()] as usize - first;
        ensure!(flat.len() == count, "{} log-probabilities for {count} options", flat.len());
        let mut rows = Rows { kl: Vec::with_capacity(targets.len()), option_log_probs: Vec::new() };
        for row in 0..targets.len() {
            let options = targets.options(row);
            rows.kl.push(kl_of_row(targets, row, &flat[options.start - first..options.end - first]));
        }
        rows.option_log_probs = flat;
        Ok(rows)
    }
}

impl<'a> Targets<'a> {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// The rows `range` alone; option boundaries stay offsets into the flat arrays.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Targets<'a> {
        Targets {
            option_boundaries: &self.option_boundaries[range.start..=range.end],
            weights: &self.weights[range.clone()],
            whole_vocabulary: &self.whole_vocabulary[range],
            ..*self
        }
    }

    fn options(&self, row: usize) -> std::ops::Range<usize> {
        self.option_boundaries[row] as usize..self.option_boundaries[row + 1] as usize
    }

    fn check(&self, logits: &Tensor) -> Result<()> {
        let (rows, vocabulary) = logits.dims2()?;
        ensure!(rows == self.len(), "{rows} rows of logits for {} targets", self.len());
        let boundaries = self.option_boundaries;
        ensure!(
            self.whole_vocabulary.len() == rows
                && boundaries.len() == rows + 1
                && boundaries.windows(2).all(|b| b[0] <= b[1])
                && boundaries[rows] as usize <= self.ids.len().min(self.probs.len()),
            "targets of {rows} rows do not fit together: {} supports, option boundaries {boundaries:?} over \
             {} ids and {} probabilities",
            self.whole_vocabulary.len(),
            self.ids.len(),
            self.probs.len()
        );
        let ids = &self.ids[boundaries[0] as usize..boundaries[rows] as usize];
        ensure!(
            ids.iter().all(|&id| (id as usize) < vocabulary),
            "an option's token id is beyond the vocabulary of {vocabulary}"
        );
        Ok(())
    }
}

/// KL at rows of `logits` (M, V), before the final soft cap `cap`; with `grad` also the gradient of
/// Σ weight · KL with respect to `logits`.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn kl(logits: &Tensor, cap: Option<f64>, targets: Targets, grad: bool) -> Result<(Rows, Option<Tensor>)> {
    let (pending, grad) = start(logits, cap, targets, grad)?;
    Ok((pending.read(&targets)?, grad))
}

/// [`kl`] without waiting for a GPU: the rows can be read when there is nothing else to do.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn start(
    logits: &Tensor,
    cap: Option<f64>,
    targets: Targets,
    grad: bool,
) -> Result<(Pending, Option<Tensor>)> {
    targets.check(logits)?;
    on_cuda!(logits, {
        let (log_probs, grad) = cuda::kl(logits, cap, targets, grad)?;
        Ok((Pending(vec![LogProbs::Device(log_probs)]), grad))
    });
    let (log_probs, grad) =
        dispatch!(logits, kl_cpu(logits, cap, targets, grad), kl_tensors(logits, cap, targets, grad))?;
    Ok((Pending(vec![LogProbs::Host(log_probs)]), grad))
}

/// Σ weight · KL as a scalar in f32 (f64 for f64 input), made of differentiable candle operations.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn composed(logits: &Tensor, cap: Option<f64>, targets: Targets) -> Result<Tensor> {
    let capped = softcapped(logits, cap)?;
    let log_probs = log_softmax(&capped)?;
    let device = logits.device();
    let mut total = Tensor::zeros((), capped.dtype(), device)?;
    for row in 0..targets.len() {
        let options = targets.options(row);
        let ids = Tensor::from_slice(&targets.ids[options.clone()], options.len(), device)?;
        let probs = &targets.probs[options.clone()];
        let mut chosen = log_probs.get(row)?.index_select(&ids, 0)?;
        if !targets.whole_vocabulary[row] {
            chosen = log_softmax(&chosen.unsqueeze(0)?)?.squeeze(0)?;
        }
        let t = Tensor::from_slice(probs, probs.len(), device)?.to_dtype(chosen.dtype())?;
        let cross_entropy = (chosen * t)?.sum_all()?.neg()?;
        let weight = f64::from(targets.weights[row]);
        total = (total + ((cross_entropy - entropy(probs))? * weight)?)?;
    }
    Ok(total)
}

fn softcapped(logits: &Tensor, cap: Option<f64>) -> Result<Tensor> {
    let wide = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let logits = logits.to_dtype(wide)?;
    match cap {
        Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
        None => Ok(logits),
    }
}

fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

/// −Σ t log t, with 0 log 0 = 0.
fn entropy(probs: &[f32]) -> f64 {
    let term = |&p: &f32| if p > 0.0 { f64::from(p) * f64::from(p).ln() } else { 0.0 };
    -probs.iter().map(term).sum::<f64>()
}

fn kl_tensors(
    logits: &Tensor,
    cap: Option<f64>,
    targets: Targets,
    grad: bool,
) -> Result<(Vec<f64>, Option<Tensor>)> {
    let log_probs = log_softmax(&softcapped(logits, cap)?)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let mut flat = Vec::new();
    for row in 0..targets.len() {
        let options = targets.options(row);
        let ids = Tensor::from_slice(&targets.ids[options.clone()], options.len(), &Device::Cpu)?;
        let chosen: Vec<f32> = log_probs.get(row)?.index_select(&ids, 0)?.to_vec1()?;
        flat.extend(chosen.into_iter().map(f64::from));
    }
    let grad = match grad {
        true => {
            let one = Tensor::ones((), DType::F32, logits.device())?;
            Some(vjp(&[logits], &one, |v| composed(&v[0], cap, targets))?.remove(0))
        }
        false => None,
    };
    Ok((flat, grad))
}

fn kl_of_row(targets: &Targets, row: usize, option_log_probs: &[f64]) -> f64 {
    let probs = &targets.probs[targets.options(row)];
    let mass = if targets.whole_vocabulary[row] { 0.0 } else { log_sum_exp(option_log_probs) };
    let cross = |(&t, &l): (&f32, &f64)| if t > 0.0 { f64::from(t) * (l - mass) } else { 0.0 };
    let cross_entropy = -probs.iter().zip(option_log_probs).map(cross).sum::<f64>();
    cross_entropy - entropy(probs)
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

// d KL / d logit = (mass of t) p − t over the support; times 1 − (logit / cap)² through the soft cap.
fn kl_cpu<T: Real>(
    logits: &Tensor,
    cap: Option<f64>,
    targets: Targets,
    grad: bool,
) -> Result<(Vec<f64>, Option<Tensor>)> {
    let (m, vocabulary) = logits.dims2()?;
    let input = cpu::view::<T>(logits)?;
    let input = &*input;
    let mut grads = vec![T::zero(); if grad { m * vocabulary } else { 0 }];
    let row_result = |row: usize, grad: Option<&mut [T]>| -> Vec<f64> {
        let mut row_logits = input[row * vocabulary..][..vocabulary].to_vec();
        let log_z = cap_and_normalise(&mut row_logits, cap);
        let options = targets.options(row);
        let ids = &targets.ids[options.clone()];
        let chosen: Vec<f64> = ids.iter().map(|&id| row_logits[id as usize].to_f64() - log_z).collect();
        if let Some(grad) = grad {
            fill_grad(grad, &row_logits, log_z, cap, &targets, row, &chosen);
        }
        chosen
    };
    let chosen: Vec<Vec<f64>> = if grad {
        let rows = grads.par_chunks_mut(vocabulary).enumerate();
        rows.map(|(row, grad)| row_result(row, Some(grad))).collect()
    } else {
        (0..m).into_par_iter().map(|row| row_result(row, None)).collect()
    };
    let grads = if grad { Some(cpu::tensor(grads, (m, vocabulary))?) } else { None };
    Ok((chosen.concat(), grads))
}

/// Applies the soft cap in place and returns the log-sum-exp.
fn cap_and_normalise<T: Real>(logits: &mut [T], cap: Option<f64>) -> f64 {
    let (max, sum) = cpu::vectorised(
        #[inline(always)]
        || {
            if let Some(cap) = cap {
                let (cap, inverse) = (T::from_f64(cap), T::from_f64(1.0 / cap));
                for l in logits.iter_mut() {
                    *l = cap * (*l * inverse).tanh();
                }
            }
            let max = cpu::maximum(logits);
            (max, cpu::sum_of_exp(logits, max))
        },
    );
    max.to_f64() + sum.to_f64().ln()
}

fn fill_grad<T: Real>(
    grad: &mut [T],
    logits: &[T],
    log_z: f64,
    cap: Option<f64>,
    targets: &Targets,
    row: usize,
    option_log_probs: &[f64],
) {
    let options = targets.options(row);
    let (ids, probs) = (&targets.ids[options.clone()], &targets.probs[options]);
    let weight = f64::from(targets.weights[row]);
    let mass: f64 = probs.iter().map(|&p| f64::from(p)).sum();
    if targets.whole_vocabulary[row] {
        let (log_z, factor) = (T::from_f64(log_z), T::from_f64(weight * mass));
        cpu::vectorised(
            #[inline(always)]
            || {
                for (g, &l) in grad.iter_mut().zip(logits) {
                    *g = factor * (l - log_z).exp();
                }
            },
        );
    } else {
        let log_mass = log_sum_exp(option_log_probs);
        for (&id, &l) in ids.iter().zip(option_log_probs) {
            grad[id as usize] += T::from_f64(weight * mass * (l - log_mass).exp());
        }
    }
    for (&id, &p) in ids.iter().zip(probs) {
        grad[id as usize] -= T::from_f64(weight * f64::from(p));
    }
    if let Some(cap) = cap {
        let inverse = T::from_f64(1.0 / cap);
        for (g, &l) in grad.iter_mut().zip(logits) {
            let ratio = l * inverse;
            *g *= T::one() - ratio * ratio;
        }
    }
}
