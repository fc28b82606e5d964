//! Linear layer with a frozen weight and an optional LoRA adapter: y = x Wᵀ + b + s (x̂ Aᵀ) Bᵀ,
//! where x̂ is x, or x under the adapter's dropout.
//!
//! The backward computes dX, dA and dB; the weight's own gradient only when all weights are trained.
//! The rank-r products go through (N, r), never through (out, in), and x̂ Aᵀ is computed again instead
//! of being kept.

use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use half::bf16;

use super::cpu::{self, Mat, Real, Threads, View};
use super::dispatch;
use super::dots::{dots, dots_into};
use super::products::{self, Factor, Term};

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

/// One of the layers that share an input.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// W (out, in)
    pub weight: &'a Tensor,
    /// b (out)
    pub bias: Option<&'a Tensor>,
    /// The adapter.
    pub lora: Option<Lora<'a>>,
}

/// y (N, out) for `x` (N, in), `weight` (out, in), `bias` (out).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, lora: Option<Lora>) -> Result<Tensor> {
    Ok(forward_all(x, &[Layer { weight, bias, lora }])?.remove(0))
}

/// The outputs of layers that share the input `x` (N, in): their rank-r products with it are one.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn forward_all(x: &Tensor, layers: &[Layer]) -> Result<Vec<Tensor>> {
    layers.iter().try_for_each(|layer| check(x, layer.weight, layer.bias, layer.lora))?;
    dispatch!(
        x,
        forward_cpu(x, layers),
        layers.iter().map(|layer| composed(x, layer.weight, layer.bias, layer.lora)).collect()
    )
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
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn backward(
    x: &Tensor,
    weight: &Tensor,
    lora: Option<Lora>,
    dy: &Tensor,
    dx: Option<&mut Option<Tensor>>,
) -> Result<Option<LoraGrads>> {
    Ok(backward_all(x, &[(Layer { weight, bias: None, lora }, dy)], dx)?.remove(0))
}

/// [`backward`] of layers that share the input `x` (N, in), each with its output's gradient (N, out).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn backward_all(
    x: &Tensor,
    layers: &[(Layer, &Tensor)],
    dx: Option<&mut Option<Tensor>>,
) -> Result<Vec<Option<LoraGrads>>> {
    for (layer, dy) in layers {
        check(x, layer.weight, None, layer.lora)?;
        check_grad(x, layer.weight.dim(0)?, dy)?;
    }
    if let Some(Some(sum)) = &dx {
        ensure!(sum.shape() == x.shape(), "a sum {:?} for an input {:?}", sum.shape(), x.shape());
    }
    dispatch!(x, backward_cpu(x, layers, dx), backward_tensors(x, layers, dx))
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

/// The adapters of layers that share an input, with their low-rank rows side by side.
struct Stack<'a> {
    /// Each layer's adapter and the first of its columns of (N, R).
    adapters: Vec<Option<(Lora<'a>, usize)>>,
    /// R, the sum of the ranks.
    columns: usize,
    /// Without dropout all adapters see the same input.
    same_input: bool,
}

impl<'a> Stack<'a> {
    fn new(layers: impl Iterator<Item = Option<Lora<'a>>>) -> Result<Self> {
        let (mut adapters, mut columns, mut same_input) = (Vec::new(), 0, true);
        for lora in layers {
            adapters.push(lora.map(|lora| (lora, columns)));
            if let Some(lora) = lora {
                columns += lora.a.dim(0)?;
                same_input &= lora.mask.is_none();
            }
        }
        Ok(Self { adapters, columns, same_input })
    }

    fn iter(&self) -> impl Iterator<Item = &(Lora<'a>, usize)> {
        self.adapters.iter().flatten()
    }

    /// All A, one below the other (R, in).
    fn a<T: Real>(&self, d_in: usize) -> Result<Vec<T>> {
        let mut stacked = Vec::with_capacity(self.columns * d_in);
        for (lora, _) in self.iter() {
            stacked.extend_from_slice(&cpu::view::<T>(lora.a)?);
        }
        Ok(stacked)
    }

    /// x̂ Aᵀ of every adapter (N, R).
    fn low<T: Real>(&self, x: &Tensor) -> Result<Vec<T>> {
        let (n, d_in) = x.dims2()?;
        if self.same_input {
            let (input, a) = (cpu::view::<T>(x)?, self.a::<T>(d_in)?);
            let (xs, a) = (Mat::new(&input, n, d_in), Mat::new(&a, self.columns, d_in));
            return Ok(dots(xs, a, T::one()));
        }
        let mut low = vec![T::zero(); n * self.columns];
        for &(lora, first) in self.iter() {
            let dropped = dropped_input(x, Some(lora))?;
            let (input, a) = (cpu::view::<T>(&dropped)?, cpu::view::<T>(lora.a)?);
            let (xs, a) = (Mat::new(&input, n, d_in), Mat::new(&a, lora.a.dim(0)?, d_in));
            dots_into(columns(&mut low, first), self.columns, xs, a, T::one());
        }
        Ok(low)
    }
}

/// An array (N, R) from column `first` on; none where it has no rows.
fn columns<T>(array: &mut [T], first: usize) -> &mut [T] {
    let first = first.min(array.len());
    &mut array[first..]
}

/// `width` columns of an array (N, R) from column `first` on.
fn columns_of<T>(array: &[T], n: usize, width: usize, first: usize, stride: usize) -> Mat<'_, T> {
    Mat::strided(&array[first.min(array.len())..], n, width, stride)
}

/// A frozen weight (out, in) on the CPU, in the dtype of its input or in bf16.
enum Seen<'a, T> {
    Plain(View<'a, T>),
    Bf16(View<'a, bf16>),
}

impl<'a, T: Real> Seen<'a, T> {
    fn new(weight: &'a Tensor) -> Result<Self> {
        Ok(match weight.dtype() {
            DType::BF16 => Self::Bf16(cpu::view(weight)?),
            _ => Self::Plain(cpu::view(weight)?),
        })
    }

    /// W (out, in)
    fn factor(&self, (d_out, d_in): (usize, usize)) -> Factor<'_, T> {
        match self {
            Self::Plain(w) => Factor::Plain(Mat::new(w, d_out, d_in)),
            Self::Bf16(w) => Factor::Bf16(Mat::new(w, d_out, d_in)),
        }
    }
}

fn forward_cpu<T: Real>(x: &Tensor, layers: &[Layer]) -> Result<Vec<Tensor>> {
    let (n, d_in) = x.dims2()?;
    let stack = Stack::new(layers.iter().map(|layer| layer.lora))?;
    let low = stack.low::<T>(x)?;
    let input = cpu::view::<T>(x)?;
    let mut outputs = Vec::with_capacity(layers.len());
    for (layer, adapter) in layers.iter().zip(&stack.adapters) {
        let d_out = layer.weight.dim(0)?;
        let w = Seen::<T>::new(layer.weight)?;
        let mut terms = vec![Term { x: Mat::new(&input, n, d_in), w: w.factor((d_out, d_in)).t() }];
        let (scaled, b);
        if let &Some((lora, first)) = adapter {
            let r = lora.a.dim(0)?;
            scaled = scaled_columns(&low, n, r, first, stack.columns, T::from_f64(lora.scale));
            b = cpu::view::<T>(lora.b)?;
            terms.push(Term { x: Mat::new(&scaled, n, r), w: Factor::Plain(Mat::new(&b, d_out, r)).t() });
        }
        let y = match layer.bias {
            Some(bias) => {
                let mut y = cpu::view::<T>(bias)?.repeat(n);
                products::add(&mut y, &terms);
                y
            }
            None => products::sum(&terms),
        };
        outputs.push(cpu::tensor(y, (n, d_out))?);
    }
    Ok(outputs)
}

fn backward_cpu<T: Real>(
    x: &Tensor,
    layers: &[(Layer, &Tensor)],
    dx: Option<&mut Option<Tensor>>,
) -> Result<Vec<Option<LoraGrads>>> {
    let (n, d_in) = x.dims2()?;
    let stack = Stack::new(layers.iter().map(|(layer, _)| layer.lora))?;

    // s dy B (N, R), which dA and dX both need, and dB
    let low = stack.low::<T>(x)?;
    let mut low_grad = vec![T::zero(); n * stack.columns];
    let mut b_grads = Vec::with_capacity(layers.len());
    for ((_, dy), adapter) in layers.iter().zip(&stack.adapters) {
        let &Some((lora, first)) = adapter else {
            b_grads.push(None);
            continue;
        };
        let (d_out, r) = lora.b.dims2()?;
        let (output_grad, b) = (cpu::view::<T>(dy)?, cpu::view::<T>(lora.b)?);
        let (dys, scale) = (Mat::new(&output_grad, n, d_out), T::from_f64(lora.scale));
        let turned = Mat::new(&b, d_out, r).turned(); // (r, out)
        let to = columns(&mut low_grad, first);
        dots_into(to, stack.columns, dys, Mat::new(&turned, r, d_out), scale);
        let low = columns_of(&low, n, r, first, stack.columns);
        let db = cpu::product(dys.t(), low, scale, Threads::All);
        b_grads.push(Some(cpu::tensor(db, (d_out, r))?));
    }
    drop(low);

    let a_grads = a_grads_cpu::<T>(x, &stack, &low_grad)?;
    if let Some(dx) = dx {
        match dx {
            Some(sum) => cpu::update::<T>(sum, |sum| {
                input_grad_cpu(Some(sum), x, layers, &stack, &low_grad).map(drop)
            })?,
            None => {
                let sum = input_grad_cpu(None, x, layers, &stack, &low_grad)?;
                *dx = Some(cpu::tensor(sum, (n, d_in))?);
            }
        }
    }
    let pairs = a_grads.into_iter().zip(b_grads);
    Ok(pairs.map(|(a, b)| a.zip(b).map(|(a, b)| LoraGrads { a, b })).collect())
}

/// s times `width` columns of an array (N, R) from column `first` on, as (N, width).
fn scaled_columns<T: Real>(
    array: &[T],
    n: usize,
    width: usize,
    first: usize,
    stride: usize,
    scale: T,
) -> Vec<T> {
    let row = |i: usize| array[i * stride + first..][..width].iter().map(|&x| scale * x);
    (0..n).flat_map(row).collect()
}

/// dA = low_gradᵀ x̂ (r, in) of every adapter.
fn a_grads_cpu<T: Real>(x: &Tensor, stack: &Stack, low_grad: &[T]) -> Result<Vec<Option<Tensor>>> {
    let (n, d_in) = x.dims2()?;
    let product = |input: &Tensor, r: usize, first: usize| -> Result<Vec<T>> {
        let input = cpu::view::<T>(input)?;
        let low_grad = columns_of(low_grad, n, r, first, stack.columns);
        Ok(cpu::product(low_grad.t(), Mat::new(&input, n, d_in), T::one(), Threads::All))
    };
    let together = if stack.same_input { product(x, stack.columns, 0)? } else { Vec::new() };
    let one = |adapter: &Option<(Lora, usize)>| -> Result<Option<Tensor>> {
        let &Some((lora, first)) = adapter else { return Ok(None) };
        let r = lora.a.dim(0)?;
        let da = match stack.same_input {
            true => together[first * d_in..(first + r) * d_in].to_vec(),
            false => product(&dropped_input(x, Some(lora))?, r, first)?,
        };
        Ok(Some(cpu::tensor(da, (r, d_in))?))
    };
    stack.adapters.iter().map(one).collect()
}

/// Σ dy W of `layers` and low_grad A (under the adapter's dropout) of all in the stack (N, in): added to `sum`, or new.
fn input_grad_cpu<T: Real>(
    sum: Option<&mut [T]>,
    x: &Tensor,
    layers: &[(Layer, &Tensor)],
    stack: &Stack,
    low_grad: &[T],
) -> Result<Vec<T>> {
    let (n, d_in) = x.dims2()?;
    let weights = layers.iter().map(|(layer, _)| Seen::<T>::new(layer.weight)).collect::<Result<Vec<_>>>()?;
    let output_grads = layers.iter().map(|(_, dy)| cpu::view::<T>(dy)).collect::<Result<Vec<_>>>()?;
    let mut terms = Vec::with_capacity(layers.len() + 1);
    for ((w, dy), (layer, _)) in weights.iter().zip(&output_grads).zip(layers) {
        let d_out = layer.weight.dim(0)?;
        terms.push(Term { x: Mat::new(dy, n, d_out), w: w.factor((d_out, d_in)) });
    }
    let a;
    if stack.same_input {
        a = stack.a::<T>(d_in)?;
        let w = Factor::Plain(Mat::new(&a, stack.columns, d_in));
        terms.push(Term { x: Mat::new(low_grad, n, stack.columns), w });
    }
    let mut new = Vec::new();
    let dx = match sum {
        Some(sum) => {
            products::add(sum, &terms);
            sum
        }
        None => {
            new = products::sum(&terms);
            &mut new[..]
        }
    };
    if stack.same_input {
        return Ok(new);
    }
    for &(lora, first) in stack.iter() {
        let r = lora.a.dim(0)?;
        let a = cpu::view::<T>(lora.a)?;
        let low_grad = columns_of(low_grad, n, r, first, stack.columns);
        let Some(mask) = lora.mask else {
            cpu::matmul(dx, d_in, low_grad, Mat::new(&a, r, d_in), T::one(), true, Threads::All);
            continue;
        };
        let through = cpu::product(low_grad, Mat::new(&a, r, d_in), T::one(), Threads::All);
        let mask = cpu::view::<T>(mask)?;
        let (mask, through) = (&*mask, &through[..]);
        cpu::for_rows(
            dx,
            d_in,
            #[inline(always)]
            |first, rows| {
                let at = first * d_in;
                for (i, x) in rows.iter_mut().enumerate() {
                    *x += through[at + i] * mask[at + i];
                }
            },
        );
    }
    Ok(new)
}

fn backward_tensors(
    x: &Tensor,
    layers: &[(Layer, &Tensor)],
    mut dx: Option<&mut Option<Tensor>>,
) -> Result<Vec<Option<LoraGrads>>> {
    let one = |(layer, dy): &(Layer, &Tensor)| -> Result<Option<LoraGrads>> {
        let lora = layer.lora;
        let low_grad = lora.map(|l| -> Result<_> { Ok((dy.matmul(l.b)? * l.scale)?) }).transpose()?; // (N, r)
        if let Some(dx) = dx.as_deref_mut() {
            let mut grad = dy.matmul(layer.weight)?;
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
        let dropped = dropped_input(x, Some(lora))?;
        let low = dropped.matmul(&lora.a.t()?)?; // (N, r)
        let b = (dy.t()?.matmul(&low)? * lora.scale)?;
        Ok(Some(LoraGrads { a: low_grad.t()?.matmul(&dropped)?, b }))
    };
    layers.iter().map(one).collect()
}

fn weight_grad_cpu<T: Real>(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let ((n, d_in), (_, d_out)) = (x.dims2()?, dy.dims2()?);
    let (input, output_grad) = (cpu::view::<T>(x)?, cpu::view::<T>(dy)?);
    let (xs, dys) = (Mat::new(&input, n, d_in), Mat::new(&output_grad, n, d_out));
    cpu::tensor(cpu::product(dys.t(), xs, T::one(), Threads::All), (d_out, d_in))
}
