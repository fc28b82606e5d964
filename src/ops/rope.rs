//! Rotary position embedding, half-split form: the pair (`x[i]`, `x[i + D/2]`) of every head turns by
//! `position · inv_freq[i]`.
//!
//! Angles are computed in f32 whatever the model's dtype, and only cos and sin are cast to it.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::cpu::{self, Real};
#[cfg(feature = "cuda")]
use super::cuda;
use super::{dispatch, on_cuda, vjp};

/// cos and sin of every token's angles, each (N, head size / 2).
#[derive(Clone, Debug)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// The angles of tokens at `positions` for the frequencies `inv_freq` (head size / 2).
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(positions: &[u32], inv_freq: &[f32], dtype: DType, device: &Device) -> Result<Self> {
        let of_position =
            |&position: &u32| inv_freq.iter().map(move |f| f64::from(position as f32 * f).sin_cos());
        let (sin, cos): (Vec<f64>, Vec<f64>) = positions.par_iter().flat_map_iter(of_position).unzip();
        let shape = (positions.len(), inv_freq.len());
        let tensor =
            |v: Vec<f64>| Tensor::from_vec(v, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device);
        Ok(Self { cos: tensor(cos)?, sin: tensor(sin)? })
    }

    /// The angles of the tokens at `rows` only.
    ///
    /// # Errors
    /// If a row does not exist.
    pub fn at(&self, rows: &[u32]) -> Result<Self> {
        Ok(Self { cos: super::rows::gather(&self.cos, rows)?, sin: super::rows::gather(&self.sin, rows)? })
    }
}

/// Rotates every head of `x` (N, heads · head size).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn forward(x: &Tensor, angles: &Angles) -> Result<Tensor> {
    check(x, angles)?;
    on_cuda!(x, cuda::rotate(x, &angles.cos, &angles.sin, 1.0));
    dispatch!(x, rotate_cpu(x, angles, false), composed(x, angles))
}

/// Gradient for `x`: the rotation back.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn backward(dy: &Tensor, angles: &Angles) -> Result<Tensor> {
    check(dy, angles)?;
    on_cuda!(dy, cuda::rotate(dy, &angles.cos, &angles.sin, -1.0));
    dispatch!(dy, rotate_cpu(dy, angles, true), Ok(vjp(&[dy], dy, |v| composed(&v[0], angles))?.remove(0)))
}

fn check(x: &Tensor, angles: &Angles) -> Result<()> {
    let ((n, width), (positions, half)) = (x.dims2()?, angles.cos.dims2()?);
    ensure!(
        n == positions && half > 0 && width.is_multiple_of(2 * half),
        "{n} rows of {width} cannot be rotated by {positions} angles of heads of {}",
        2 * half
    );
    Ok(())
}

/// The reference, made of differentiable candle operations.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn composed(x: &Tensor, angles: &Angles) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let half = angles.cos.dim(1)?;
    let heads = x.reshape((n, width / (2 * half), 2 * half))?; // (N, heads, head size)
    let (first, second) = (heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?);
    let (cos, sin) = (angles.cos.unsqueeze(1)?, angles.sin.unsqueeze(1)?); // (N, 1, head size / 2)
    let a = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let b = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
    Ok(Tensor::cat(&[a, b], 2)?.reshape((n, width))?)
}

fn rotate_cpu<T: Real>(x: &Tensor, angles: &Angles, back: bool) -> Result<Tensor> {
    let (_, width) = x.dims2()?;
    let half = angles.cos.dim(1)?;
    let (input, cos, sin) = (cpu::view::<T>(x)?, cpu::view::<T>(&angles.cos)?, cpu::view::<T>(&angles.sin)?);
    let (input, cos, sin) = (&*input, &*cos, &*sin);
    let sign = if back { T::zero() - T::one() } else { T::one() };
    let mut out = vec![T::zero(); input.len()];
    cpu::for_rows(
        &mut out,
        width,
        #[inline(always)]
        |first, rows| {
            for (r, y) in rows.chunks_exact_mut(width).enumerate() {
                let row = first + r;
                let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
                let x = &input[row * width..][..width];
                for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                    let (y1, y2) = y.split_at_mut(half);
                    let (x1, x2) = x.split_at(half);
                    for i in 0..half {
                        let s = sin[i] * sign;
                        y1[i] = x1[i] * cos[i] - x2[i] * s;
                        y2[i] = x2[i] * cos[i] + x1[i] * s;
                    }
                }
            }
        },
    );
    cpu::tensor(out, x.shape())
}
