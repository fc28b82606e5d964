//! One AdamW update of one parameter: decoupled decay, then the step, as torch has it.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::cpu::{self, Real};
#[cfg(feature = "cuda")]
use super::cuda;
use super::{dispatch, on_cuda};

/// What is the same for all parameters of an update.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this update, from 1: for the bias corrections 1 - βⁿ.
    pub number: usize,
    /// The gradient is multiplied by this first.
    pub factor: f64,
}

/// A parameter with its first and second moment, all of the same shape.
#[derive(Clone, Debug)]
pub struct Moments {
    /// The parameter.
    pub parameter: Tensor,
    /// Running mean of the gradient.
    pub first: Tensor,
    /// Running mean of the squared gradient.
    pub second: Tensor,
}

/// The update: m = β₁ m + (1-β₁) g, v = β₂ v + (1-β₂) g², p = (1 - lr λ) p - lr m̂ / (√v̂ + ε).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn update(old: &Moments, gradient: &Tensor, step: &Step) -> Result<Moments> {
    let shape = old.parameter.shape();
    ensure!(
        shape == gradient.shape() && shape == old.first.shape() && shape == old.second.shape(),
        "a parameter {shape:?} with a gradient {:?} and moments {:?} and {:?}",
        gradient.shape(),
        old.first.shape(),
        old.second.shape()
    );
    if gradient.dtype() == DType::F32 {
        on_cuda!(gradient, cuda::adamw_update(old, gradient, step));
    }
    dispatch!(gradient, update_cpu(old, gradient, step), composed(old, gradient, step))
}

impl Step {
    pub(super) fn corrections(&self) -> [f64; 2] {
        self.betas.map(|beta| 1.0 - beta.powf(self.number as f64))
    }
}

/// The reference, made of candle operations.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn composed(old: &Moments, gradient: &Tensor, step: &Step) -> Result<Moments> {
    let ([beta1, beta2], [correction1, correction2]) = (step.betas, step.corrections());
    let gradient = (gradient * step.factor)?;
    let first = ((&old.first * beta1)? + (&gradient * (1.0 - beta1))?)?;
    let second = ((&old.second * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
    let denominator = ((second.sqrt()? / correction2.sqrt())? + step.eps)?;
    let change = ((&first / denominator)? * (step.lr / correction1))?;
    let parameter = ((&old.parameter * (1.0 - step.lr * step.weight_decay))? - change)?;
    Ok(Moments { parameter, first, second })
}

/// Elements of a parallel task.
const CHUNK: usize = 1 << 15;

fn update_cpu<T: Real>(old: &Moments, gradient: &Tensor, step: &Step) -> Result<Moments> {
    let mut parameter = cpu::view::<T>(&old.parameter)?.to_vec();
    let mut first = cpu::view::<T>(&old.first)?.to_vec();
    let mut second = cpu::view::<T>(&old.second)?.to_vec();
    let gradient_view = cpu::view::<T>(gradient)?;
    let number = |x: f64| T::from_f64(x);
    let ([beta1, beta2], [correction1, correction2]) = (step.betas, step.corrections());
    let (keep1, take1) = (number(beta1), number(1.0 - beta1));
    let (keep2, take2) = (number(beta2), number(1.0 - beta2));
    let (root, eps) = (number(1.0 / correction2.sqrt()), number(step.eps));
    let (rate, decay) = (number(step.lr / correction1), number(1.0 - step.lr * step.weight_decay));
    let factor = number(step.factor);
    let chunks = (parameter.par_chunks_mut(CHUNK))
        .zip(first.par_chunks_mut(CHUNK))
        .zip(second.par_chunks_mut(CHUNK))
        .zip(gradient_view.par_chunks(CHUNK));
    chunks.for_each(|(((parameter, first), second), gradient)| {
        cpu::vectorised(
            #[inline(always)]
            || {
                for (((p, m), v), &g) in parameter.iter_mut().zip(first).zip(second).zip(gradient) {
                    let g = g * factor;
                    *m = *m * keep1 + g * take1;
                    *v = *v * keep2 + g * g * take2;
                    *p = *p * decay - rate * *m / (v.sqrt() * root + eps);
                }
            },
        );
    });
    let shape = gradient.shape();
    Ok(Moments {
        parameter: cpu::tensor(parameter, shape)?,
        first: cpu::tensor(first, shape)?,
        second: cpu::tensor(second, shape)?,
    })
}
