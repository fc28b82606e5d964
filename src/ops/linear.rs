//! Linear layer with a frozen weight and an optional LoRA adapter: y = x Wᵀ + b + s (x̂ Aᵀ) Bᵀ,
//! where x̂ is x, or x under the adapter's dropout.
//!
//! The backward computes dX, dA and dB; the weight's own gradient only when all weights are trained.
//! The rank-r products go through (N, r), never through (out, in), and x̂ Aᵀ is computed again instead
//! of being kept.

use anyhow::{Result, ensure};
use candle_core::Tensor;

use super::cpu::{self, Mat, Real, Threads};
use super::dispatch;

/// An adapter on a linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// A (r, in)
    pub a: &'a Tensor,
    /// B (out, r)
    pub b: &'a Tensor,
    /// s = alpha / r, or alpha / √r
    pub scale: f64,
    /// Dropout factors for x (N, in).
    pub mask: Option<&'a Tensor>,
}

/// Gradients of an adapter.
#[derive(Debug)]
pub struct LoraGrads {
    /// For A (r, in).
    pub a: Tensor,
    /// For B (out, r).
    pub b: Tensor,
}

/// y (N, out) for `x` (N, in), `weight` (out, in), `bias` (out).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, lora: Option<Lora>) -> Result<Tensor> {
    check(x, weight, bias, lora)?;
    let dropped = dropped_input(x, lora)?;
    dispatch!(x, forward_cpu(x, weight, bias, lora, &dropped), composed(x, weight, bias, lora))
}

fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, lora: Option<Lora>) -> Result<()> {
    let ((_, d_in), (d_out, columns)) = (x.dims2()?, weight.dims2()?);
    ensure!(columns == d_in, "a weight {:?} for an input {:?}", weight.shape(), x.shape());
    ensure!(bias.is_none_or(|b| b.dims() == [d_out]), "a bias that is not of {d_out} elements");
    if let Some(Lora { a, b, mask, .. }) = lora {
        let r = a.dim(0)?;
        ensure!(
            a.dims() == [r, d_in] && b.dims() == [d_out, r],
            "A {:?} and B {:?} for a weight {:?}",
            a.shape(),
            b.shape(),
            weight.shape()
        );
        ensure!(mask.is_none_or(|m| m.shape() == x.shape()), "a dropout mask of another shape");
    }
    Ok(())
}

/// The reference, made of differentiable candle operations.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, lora: Option<Lora>) -> Result<Tensor> {
    let mut y = x.matmul(&weight.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if let Some(lora) = lora {
        let low = dropped_input(x, Some(lora))?.matmul(&lora.a.t()?)?; // (N, r)
        y = (y + (low.matmul(&lora.b.t()?)? * lora.scale)?)?;
    }
    Ok(y)
}

fn dropped_input(x: &Tensor, lora: Option<Lora>) -> Result<Tensor> {
    match lora.and_then(|l| l.mask) {
        Some(mask) => Ok((x * mask)?),
        None => Ok(x.clone()),
    }
}

/// Gradients of the adapter, and with `dx` the input's gradient, which is added to what `dx` holds.
///
/// Adding lets layers that share an input share one gradient buffer.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn backward(
    x: &Tensor,
    weight: &Tensor,
    lora: Option<Lora>,
    dy: &Tensor,
    dx: Option<&mut Option<Tensor>>,
) -> Result<Option<LoraGrads>> {
    check(x, weight, None, lora)?;
    check_grad(x, weight.dim(0)?, dy)?;
    if let Some(Some(sum)) = &dx {
        ensure!(sum.shape() == x.shape(), "a sum {:?} for an input {:?}", sum.shape(), x.shape());
    }
    let dropped = dropped_input(x, lora)?;
    dispatch!(
        x,
        backward_cpu(weight, lora, dy, &dropped, dx),
        backward_tensors(weight, lora, dy, &dropped, dx)
    )
}

fn check_grad(x: &Tensor, d_out: usize, dy: &Tensor) -> Result<()> {
    let (n, _) = x.dims2()?;
    ensure!(dy.dims() == [n, d_out], "a gradient {:?} for {n} rows of {d_out}", dy.shape());
    Ok(())
}

/// dW = dyᵀ x (out, in).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn weight_grad(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    check_grad(x, dy.dim(1)?, dy)?;
    dispatch!(x, weight_grad_cpu(x, dy), Ok(dy.t()?.matmul(x)?))
}

/// db = sum of dy over rows (out).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn bias_grad(dy: &Tensor) -> Result<Tensor> {
    Ok(dy.sum(0)?)
}

fn forward_cpu<T: Real>(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    lora: Option<Lora>,
    dropped: &Tensor,
) -> Result<Tensor> {
    let ((n, d_in), (d_out, _)) = (x.dims2()?, weight.dims2()?);
    let mut y = match bias {
        Some(bias) => cpu::view::<T>(bias)?.repeat(n),
        None => vec![T::zero(); n * d_out],
    };
    let input = cpu::view::<T>(x)?;
    let w = cpu::view::<T>(weight)?;
    let (xs, ws) = (Mat::new(&input, n, d_in), Mat::new(&w, d_out, d_in));
    cpu::matmul(&mut y, d_out, xs, ws.t(), T::one(), bias.is_some(), Threads::All);
    if let Some(lora) = lora {
        let (r, _) = lora.a.dims2()?;
        let b = cpu::view::<T>(lora.b)?;
        let low = low_rank_input::<T>(lora, dropped)?;
        let (low, b) = (Mat::new(&low, n, r), Mat::new(&b, d_out, r));
        cpu::matmul(&mut y, d_out, low, b.t(), T::from_f64(lora.scale), true, Threads::All);
    }
    cpu::tensor(y, (n, d_out))
}

/// x̂ Aᵀ (N, r)
fn low_rank_input<T: Real>(lora: Lora, dropped: &Tensor) -> Result<Vec<T>> {
    let ((n, d_in), (r, _)) = (dropped.dims2()?, lora.a.dims2()?);
    let (input, a) = (cpu::view::<T>(dropped)?, cpu::view::<T>(lora.a)?);
    let mut low = vec![T::zero(); n * r];
    let (xs, a) = (Mat::new(&input, n, d_in), Mat::new(&a, r, d_in));
    cpu::matmul(&mut low, r, xs, a.t(), T::one(), false, Threads::All);
    Ok(low)
}

fn backward_cpu<T: Real>(
    weight: &Tensor,
    lora: Option<Lora>,
    dy: &Tensor,
    dropped: &Tensor,
    dx: Option<&mut Option<Tensor>>,
) -> Result<Option<LoraGrads>> {
    let ((n, d_out), (_, d_in)) = (dy.dims2()?, weight.dims2()?);
    let (w, output_grad) = (cpu::view::<T>(weight)?, cpu::view::<T>(dy)?);
    let (ws, dys) = (Mat::new(&w, d_out, d_in), Mat::new(&output_grad, n, d_out));

    // s dy B (N, r), which dA and dX both need
    let mut low_grad = Vec::new();
    let mut grads = None;
    if let Some(lora) = lora {
        let (r, _) = lora.a.dims2()?;
        let (a_shape, b_shape) = (lora.a.shape(), lora.b.shape());
        let (b, input) = (cpu::view::<T>(lora.b)?, cpu::view::<T>(dropped)?);
        let scale = T::from_f64(lora.scale);
        low_grad = vec![T::zero(); n * r];
        cpu::matmul(&mut low_grad, r, dys, Mat::new(&b, d_out, r), scale, false, Threads::All);
        let low = low_rank_input::<T>(lora, dropped)?;
        let mut da = vec![T::zero(); r * d_in];
        let mut db = vec![T::zero(); d_out * r];
        let (low, low_grad) = (Mat::new(&low, n, r), Mat::new(&low_grad, n, r));
        cpu::matmul(&mut da, d_in, low_grad.t(), Mat::new(&input, n, d_in), T::one(), false, Threads::All);
        cpu::matmul(&mut db, r, dys.t(), low, scale, false, Threads::All);
        grads = Some(LoraGrads { a: cpu::tensor(da, a_shape)?, b: cpu::tensor(db, b_shape)? });
    }

    if let Some(dx) = dx {
        let add = |out: &mut [T], accumulate: bool| -> Result<()> {
            cpu::matmul(out, d_in, dys, ws, T::one(), accumulate, Threads::All);
            let Some(lora) = lora else { return Ok(()) };
            let (r, _) = lora.a.dims2()?;
            let a = cpu::view::<T>(lora.a)?;
            let (low_grad, a) = (Mat::new(&low_grad, n, r), Mat::new(&a, r, d_in));
            let Some(mask) = lora.mask else {
                cpu::matmul(out, d_in, low_grad, a, T::one(), true, Threads::All);
                return Ok(());
            };
            let mut through = vec![T::zero(); n * d_in];
            cpu::matmul(&mut through, d_in, low_grad, a, T::one(), false, Threads::All);
            let mask = cpu::view::<T>(mask)?;
            for ((o, &t), &m) in out.iter_mut().zip(&through).zip(mask.iter()) {
                *o += t * m;
            }
            Ok(())
        };
        match dx {
            Some(sum) => cpu::update::<T>(sum, |out| add(out, true))?,
            None => {
                let mut out = vec![T::zero(); n * d_in];
                add(&mut out, false)?;
                *dx = Some(cpu::tensor(out, (n, d_in))?);
            }
        }
    }
    Ok(grads)
}

fn backward_tensors(
    weight: &Tensor,
    lora: Option<Lora>,
    dy: &Tensor,
    dropped: &Tensor,
    dx: Option<&mut Option<Tensor>>,
) -> Result<Option<LoraGrads>> {
    let low_grad = lora.map(|l| -> Result<_> { Ok((dy.matmul(l.b)? * l.scale)?) }).transpose()?; // (N, r)
    if let Some(dx) = dx {
        let mut grad = dy.matmul(weight)?;
        if let (Some(lora), Some(low_grad)) = (lora, &low_grad) {
            let through = low_grad.matmul(lora.a)?;
            grad = match lora.mask {
                Some(mask) => (grad + (through * mask)?)?,
                None => (grad + through)?,
            };
        }
        *dx = Some(match dx.take() {
            Some(sum) => (sum + grad)?,
            None => grad,
        });
    }
    let (Some(lora), Some(low_grad)) = (lora, low_grad) else { return Ok(None) };
    let low = dropped.matmul(&lora.a.t()?)?; // (N, r)
    let b = (dy.t()?.matmul(&low)? * lora.scale)?;
    Ok(Some(LoraGrads { a: low_grad.t()?.matmul(dropped)?, b }))
}

fn weight_grad_cpu<T: Real>(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let ((n, d_in), (_, d_out)) = (x.dims2()?, dy.dims2()?);
    let (input, output_grad) = (cpu::view::<T>(x)?, cpu::view::<T>(dy)?);
    let mut dw = vec![T::zero(); d_out * d_in];
    let (xs, dys) = (Mat::new(&input, n, d_in), Mat::new(&output_grad, n, d_out));
    cpu::matmul(&mut dw, d_in, dys.t(), xs, T::one(), false, Threads::All);
    cpu::tensor(dw, (d_out, d_in))
}
