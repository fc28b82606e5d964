//! RMSNorm: y = x / sqrt(mean(x²) + eps) · w, or · (1 + w) for Gemma.
//!
//! Statistics are taken in f32 (f64 for f64 input). Llama and Qwen cast the normalised value to the input's
//! dtype before multiplying by the weight, Gemma multiplies by 1 + w in f32 and then casts.

use anyhow::{Result, ensure};
use candle_core::{D, DType, Tensor};

use super::cpu::{self, Real};
#[cfg(feature = "cuda")]
use super::cuda;
use super::{dispatch, on_cuda, vjp};

/// Which value stands for "no change" in the stored weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gain {
    /// Multiply by `w` (Llama, Qwen).
    Weight,
    /// Multiply by `1 + w` in f32 (Gemma).
    OnePlusWeight,
}

/// Normalises the rows of `x` (rows, D) with weight `w` (D).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn forward(x: &Tensor, w: &Tensor, eps: f64, gain: Gain) -> Result<Tensor> {
    check(x, w)?;
    on_cuda!(x, cuda::rms_norm_forward(x, w, eps, gain));
    dispatch!(x, forward_cpu(x, w, eps, gain), composed(x, w, eps, gain))
}

/// Gradients for `x` and, with `weight_grad`, for `w` (f32 or the input's dtype), given `dy` (rows, D).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn backward(
    x: &Tensor,
    w: &Tensor,
    dy: &Tensor,
    eps: f64,
    gain: Gain,
    weight_grad: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    check(x, w)?;
    ensure!(dy.shape() == x.shape(), "a gradient {:?} for a norm of {:?}", dy.shape(), x.shape());
    if !weight_grad {
        on_cuda!(x, Ok((cuda::rms_norm_backward(x, w, dy, eps, gain)?, None)));
    }
    dispatch!(x, backward_cpu(x, w, dy, eps, gain, weight_grad), {
        let mut grads = vjp(&[x, w], dy, |v| composed(&v[0], &v[1], eps, gain))?;
        let dw = grads.pop().filter(|_| weight_grad);
        Ok((grads.remove(0), dw))
    })
}

fn check(x: &Tensor, w: &Tensor) -> Result<()> {
    let (_, width) = x.dims2()?;
    ensure!(w.dims() == [width], "a norm's weight {:?} for rows of {width}", w.shape());
    Ok(())
}

/// The reference, made of differentiable candle operations.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn composed(x: &Tensor, w: &Tensor, eps: f64, gain: Gain) -> Result<Tensor> {
    let dtype = x.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let x = x.to_dtype(wide)?;
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?; // (rows, 1)
    let y = x.broadcast_div(&(mean + eps)?.sqrt()?)?;
    match gain {
        Gain::Weight => Ok(y.to_dtype(dtype)?.broadcast_mul(w)?),
        Gain::OnePlusWeight => Ok(y.broadcast_mul(&(w.to_dtype(wide)? + 1.0)?)?.to_dtype(dtype)?),
    }
}

fn factors<T: Real>(w: &Tensor, gain: Gain) -> Result<Vec<T>> {
    let offset = if gain == Gain::OnePlusWeight { T::one() } else { T::zero() };
    Ok(cpu::view::<T>(w)?.iter().map(|&v| v + offset).collect())
}

#[inline(always)]
fn inverse_rms<T: Real>(row: &[T], eps: T) -> T {
    let width = T::from_f64(row.len() as f64);
    T::one() / (cpu::dot(row, row) / width + eps).sqrt()
}

fn forward_cpu<T: Real>(x: &Tensor, w: &Tensor, eps: f64, gain: Gain) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    let (input, factors, eps) = (cpu::view::<T>(x)?, factors::<T>(w, gain)?, T::from_f64(eps));
    let (input, factors) = (&*input, &factors[..width]);
    let mut out = vec![T::zero(); input.len()];
    cpu::for_rows(
        &mut out,
        width,
        #[inline(always)]
        |first, rows| {
            for (r, y) in rows.chunks_exact_mut(width).enumerate() {
                let x = &input[(first + r) * width..][..width];
                let scale = inverse_rms(x, eps);
                for i in 0..width {
                    y[i] = x[i] * scale * factors[i];
                }
            }
        },
    );
    cpu::tensor(out, x.shape())
}

// With s = 1 / rms and g = dy · f:  dx = s g - x s³ sum(g x) / D,  df = sum over rows of dy x s.
fn backward_cpu<T: Real>(
    x: &Tensor,
    w: &Tensor,
    dy: &Tensor,
    eps: f64,
    gain: Gain,
    weight_grad: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (_, width) = x.dims2()?;
    let (input, output_grad) = (cpu::view::<T>(x)?, cpu::view::<T>(dy)?);
    let (input, output_grad) = (&*input, &*output_grad);
    let factors = factors::<T>(w, gain)?;
    let (factors, eps) = (&factors[..width], T::from_f64(eps));
    let mut dx = vec![T::zero(); input.len()];
    cpu::for_rows(
        &mut dx,
        width,
        #[inline(always)]
        |first, rows| {
            for (r, dx) in rows.chunks_exact_mut(width).enumerate() {
                let x = &input[(first + r) * width..][..width];
                let dy = &output_grad[(first + r) * width..][..width];
                let scale = inverse_rms(x, eps);
                let dot = cpu::dot3(dy, factors, x);
                let pull = scale * scale * scale * dot / T::from_f64(width as f64);
                for i in 0..width {
                    dx[i] = dy[i] * factors[i] * scale - x[i] * pull;
                }
            }
        },
    );
    let dw = if weight_grad {
        let mut dw = vec![T::zero(); width];
        for (x, dy) in input.chunks_exact(width).zip(output_grad.chunks_exact(width)) {
            let scale = inverse_rms(x, eps);
            for i in 0..width {
                dw[i] += dy[i] * x[i] * scale;
            }
        }
        Some(cpu::tensor(dw, width)?)
    } else {
        None
    };
    Ok((cpu::tensor(dx, x.shape())?, dw))
}
