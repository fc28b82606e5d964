//! Differentiable operations with analytic backward, one a file.
//!
//! Tensors are arrays here, nothing more: there is no autograd graph while training. Each operation is a
//! `forward` and a `backward` function, and the decoder calls the backward functions in reverse order by
//! hand. So nothing is kept that the backward does not read, frozen weights never get a gradient, and none
//! of candle's fused operations can cut a gradient without an error (which they do under autograd).
//!
//! Each operation has one *composed* reference made of candle's differentiable operations. It runs wherever
//! there is no faster form (Metal), with candle's autograd giving its backward ([`vjp`]), and the
//! fast forms are checked against it and against finite differences.
//!
//! Fast forms on the CPU work on f32 and f64, in parallel over fixed chunks: every sum has an order that
//! does not depend on the number of threads. Products with weights in bf16 have activations in f32, see [`activations`].
//! Fast forms on CUDA work on f32 and bf16 (`cuda/`, with the `cuda` feature).

pub mod adamw;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod dots;
pub mod dropout;
pub mod glu;
pub mod kl;
pub mod linear;
mod products;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod weight;

use anyhow::{Context as _, Result};
use candle_core::{DType, Device, Tensor, Var};

/// The dtype of activations where weights are in `weights`. A GPU does everything in bf16; a CPU multiplies in bf16, if it
/// can, and does all else in f32.
pub fn activations(weights: DType, device: &Device) -> DType {
    match (weights, device) {
        (DType::BF16, Device::Cpu) => DType::F32,
        _ => weights,
    }
}

/// What computes on this device, in words: of two machines that compute with different kernels, results differ by rounding.
pub fn kernels(device: &Device) -> String {
    match device {
        Device::Cpu => cpu_kernels(),
        Device::Cuda(_) => "cuda".into(),
        Device::Metal(_) => "composed".into(),
    }
}

fn cpu_kernels() -> String {
    #[cfg(target_arch = "x86_64")]
    match avx512::Kernels::detected() {
        Some(kernels) => kernels.describe().into(),
        None if is_x86_feature_detected!("avx2") => "AVX2".into(),
        None => "neither AVX2 nor AVX-512".into(),
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.into()
}

/// The dtype for which the CPU has a fast form of every operation, if this tensor has it.
fn fast_dtype(x: &Tensor) -> Option<DType> {
    let fast = matches!(x.device(), Device::Cpu) && matches!(x.dtype(), DType::F32 | DType::F64);
    fast.then(|| x.dtype())
}

/// Calls `$f::<f32>($args)` or `$f::<f64>($args)` where `$x` has a fast form, else `$slow`.
macro_rules! dispatch {
    ($x:expr, $f:ident($($arg:expr),* $(,)?), $slow:expr) => {
        match $crate::ops::fast_dtype($x) {
            Some(candle_core::DType::F64) => $f::<f64>($($arg),*),
            Some(_) => $f::<f32>($($arg),*),
            None => $slow,
        }
    };
}
use dispatch;

/// Returns `$form` where this binary has CUDA kernels for `$x`.
macro_rules! on_cuda {
    ($x:expr, $form:expr) => {
        #[cfg(feature = "cuda")]
        if $crate::ops::cuda::has_kernels($x) {
            return $form;
        }
    };
}
use on_cuda;

/// Gradients of `sum(f(inputs) * output_grad)` with respect to `inputs`, by candle's autograd.
///
/// `f` must be composed of differentiable candle operations only.
///
/// # Errors
/// If `f` fails or an input gets no gradient.
pub fn vjp(
    inputs: &[&Tensor],
    output_grad: &Tensor,
    f: impl FnOnce(&[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let vars = inputs.iter().map(|t| Ok(Var::from_tensor(t)?)).collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let output = f(&tensors)?;
    let grads = (output * output_grad)?.sum_all()?.backward()?;
    let grad = |v: &Var| Ok(grads.get(v).context("an input of the operation got no gradient")?.detach());
    vars.iter().map(grad).collect()
}
