//! Moving rows: gathering some, scattering gradients back, and adding.

use anyhow::{Result, ensure};
use candle_core::{Tensor, WithDType};

use super::cpu::{self, Real};
use super::dispatch;

/// The rows of `x` (N, D) named by `rows` (M), as (M, D).
///
/// # Errors
/// If a row does not exist.
pub fn gather(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let n = x.dim(0)?;
    ensure!(rows.iter().all(|&r| (r as usize) < n), "a row beyond the {n} rows of a tensor is asked for");
    let index = Tensor::from_slice(rows, rows.len(), x.device())?;
    Ok(x.index_select(&index, 0)?)
}

/// Adds the rows of `dy` (M, D) to zeros (n, D) at `rows`, in the order of `rows`; the backward of [`gather`].
///
/// # Errors
/// If a row does not exist.
pub fn scatter_add(dy: &Tensor, rows: &[u32], n: usize) -> Result<Tensor> {
    ensure!(dy.dims2()?.0 == rows.len(), "{:?} gradients for {} rows", dy.shape(), rows.len());
    ensure!(rows.iter().all(|&r| (r as usize) < n), "a gradient for a row beyond the {n} rows of a tensor");
    dispatch!(dy, scatter_add_cpu(dy, rows, n), {
        let index = Tensor::from_slice(rows, rows.len(), dy.device())?;
        let zeros = Tensor::zeros((n, dy.dim(1)?), dy.dtype(), dy.device())?;
        Ok(zeros.index_add(&index, dy, 0)?)
    })
}

fn scatter_add_cpu<T: Real>(dy: &Tensor, rows: &[u32], n: usize) -> Result<Tensor> {
    let (_, width) = dy.dims2()?;
    let grad = cpu::view::<T>(dy)?;
    let mut out = vec![T::zero(); n * width];
    for (row, grad) in rows.iter().zip(grad.chunks_exact(width)) {
        for (o, &g) in out[*row as usize * width..][..width].iter_mut().zip(grad) {
            *o += g;
        }
    }
    cpu::tensor(out, (n, width))
}

/// `a + b`, of the same shape.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    dispatch!(a, add_cpu(a, b), Ok((a + b)?))
}

fn add_cpu<T: Real + WithDType>(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    ensure!(a.shape() == b.shape(), "{:?} and {:?} cannot be added", a.shape(), b.shape());
    let (x, y) = (cpu::view::<T>(a)?, cpu::view::<T>(b)?);
    let (x, y) = (&*x, &*y);
    let mut out = vec![T::zero(); x.len()];
    cpu::for_rows(
        &mut out,
        1,
        #[inline(always)]
        |first, out| {
            let (x, y) = (&x[first..][..out.len()], &y[first..][..out.len()]);
            for i in 0..out.len() {
                out[i] = x[i] + y[i];
            }
        },
    );
    cpu::tensor(out, a.shape())
}
