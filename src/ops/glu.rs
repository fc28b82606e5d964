//! Gated MLP activation: act(gate) · up, with SiLU (Llama, Qwen) or the tanh form of GELU (Gemma).

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

use super::cpu::{self, Real};
#[cfg(feature = "cuda")]
use super::cuda;
use super::{dispatch, on_cuda, vjp};

/// The activation on the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x)
    Silu,
    /// x · (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2
    GeluTanh,
}

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

/// `act(gate) * up`, elementwise; all of shape (N, F).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn forward(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    check(gate, up)?;
    on_cuda!(gate, cuda::glu_forward(gate, up, activation));
    dispatch!(gate, forward_cpu(gate, up, activation), composed(gate, up, activation))
}

/// Gradients for `gate` and `up`, given `dy` (N, F).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn backward(gate: &Tensor, up: &Tensor, dy: &Tensor, activation: Activation) -> Result<(Tensor, Tensor)> {
    check(gate, up)?;
    check(gate, dy)?;
    on_cuda!(gate, cuda::glu_backward(gate, up, dy, activation));
    dispatch!(gate, backward_cpu(gate, up, dy, activation), {
        let mut grads = vjp(&[gate, up], dy, |v| composed(&v[0], &v[1], activation))?;
        let up_grad = grads.remove(1);
        Ok((grads.remove(0), up_grad))
    })
}

fn check(a: &Tensor, b: &Tensor) -> Result<()> {
    ensure!(a.rank() == 2 && a.shape() == b.shape(), "{:?} and {:?} do not gate", a.shape(), b.shape());
    Ok(())
}

/// The reference, made of differentiable candle operations.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn composed(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let dtype = gate.dtype();
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let x = gate.to_dtype(wide)?;
    let activated = match activation {
        // Not x / (1 + exp(-x)), whose gradient is NaN where exp(-x) is infinite.
        Activation::Silu => x.silu()?,
        Activation::GeluTanh => {
            let inner = ((&x + (&x * x.sqr()?)? * CUBIC)? * SQRT_2_OVER_PI)?;
            ((&x * (inner.tanh()? + 1.0)?)? * 0.5)?
        }
    };
    Ok((activated.to_dtype(dtype)? * up)?)
}

/// (act(x), act'(x))
#[inline(always)]
fn value_and_slope<T: Real>(x: T, activation: Activation) -> (T, T) {
    let (one, half) = (T::one(), T::from_f64(0.5));
    match activation {
        Activation::Silu => {
            let sigmoid = one / (one + (T::zero() - x).exp());
            (x * sigmoid, sigmoid * (one + x * (one - sigmoid)))
        }
        Activation::GeluTanh => {
            let (a, c) = (T::from_f64(SQRT_2_OVER_PI), T::from_f64(CUBIC));
            let t = (a * (x + c * x * x * x)).tanh();
            let slope = a * (one + T::from_f64(3.0) * c * x * x);
            (half * x * (one + t), half * (one + t) + half * x * (one - t * t) * slope)
        }
    }
}

fn forward_cpu<T: Real>(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let (_, width) = gate.dims2()?;
    let (g, u) = (cpu::view::<T>(gate)?, cpu::view::<T>(up)?);
    let (g, u) = (&*g, &*u);
    let mut out = vec![T::zero(); g.len()];
    cpu::for_rows(
        &mut out,
        width,
        #[inline(always)]
        |first, rows| {
            let (g, u) = (&g[first * width..][..rows.len()], &u[first * width..][..rows.len()]);
            for i in 0..rows.len() {
                rows[i] = value_and_slope(g[i], activation).0 * u[i];
            }
        },
    );
    cpu::tensor(out, gate.shape())
}

fn backward_cpu<T: Real>(
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    activation: Activation,
) -> Result<(Tensor, Tensor)> {
    let (_, width) = gate.dims2()?;
    let (g, u, d) = (cpu::view::<T>(gate)?, cpu::view::<T>(up)?, cpu::view::<T>(dy)?);
    let (g, u, d) = (&*g, &*u, &*d);
    let mut gate_grad = vec![T::zero(); g.len()];
    let mut up_grad = vec![T::zero(); g.len()];
    cpu::for_rows_of_two(
        &mut gate_grad,
        &mut up_grad,
        width,
        #[inline(always)]
        |first, gate_rows, up_rows| {
            let n = gate_rows.len();
            let (g, u, d) = (&g[first * width..][..n], &u[first * width..][..n], &d[first * width..][..n]);
            let up_rows = &mut up_rows[..n];
            for i in 0..n {
                let (value, slope) = value_and_slope(g[i], activation);
                gate_rows[i] = d[i] * u[i] * slope;
                up_rows[i] = d[i] * value;
            }
        },
    );
    Ok((cpu::tensor(gate_grad, gate.shape())?, cpu::tensor(up_grad, gate.shape())?))
}
