//! Fast forms on CUDA, for f32 and bf16: own kernels for what is bound by memory and for attention, cuBLAS (through
//! candle) for matrix products.
//!
//! No kernel adds atomically and nothing waits for the host, so that results repeat bit for bit. The kernels are
//! checked without a GPU by `scripts/check-kernels.sh`.

mod attention;
mod launch;

pub(super) use attention::{backward as attention_backward, forward as attention_forward, has_head};

use anyhow::Result;
use candle_core::{DType, Tensor};

use super::adamw::{Moments, Step};
use super::glu::Activation;
use super::kl::Targets;
use super::rms_norm::Gain;
use launch::{Arg, Grid, Module, empty, launch};

/// Whether there are kernels for this tensor.
pub(super) fn has_kernels(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::BF16)
}

/// What kernels of the dtype are called.
fn suffix(x: &Tensor) -> &'static str {
    if x.dtype() == DType::BF16 { "bf16" } else { "f32" }
}

pub(super) fn rms_norm_forward(x: &Tensor, w: &Tensor, eps: f64, gain: Gain) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (x, w, y) = (x.contiguous()?, w.contiguous()?, empty(x.shape(), x.dtype(), x.device())?);
    let one_plus = Arg::Int(i32::from(gain == Gain::OnePlusWeight));
    launch(
        Module::RmsNorm,
        &format!("rms_norm_forward_{}", suffix(&x)),
        Grid::rows(rows),
        &[
            Arg::Tensor(&x),
            Arg::Tensor(&w),
            Arg::Tensor(&y),
            Arg::int(width)?,
            Arg::Float(eps as f32),
            one_plus,
        ],
    )?;
    Ok(y)
}

pub(super) fn rms_norm_backward(x: &Tensor, w: &Tensor, dy: &Tensor, eps: f64, gain: Gain) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (x, w, dy) = (x.contiguous()?, w.contiguous()?, dy.contiguous()?);
    let dx = empty(x.shape(), x.dtype(), x.device())?;
    launch(
        Module::RmsNorm,
        &format!("rms_norm_backward_{}", suffix(&x)),
        Grid::rows(rows),
        &[
            Arg::Tensor(&x),
            Arg::Tensor(&w),
            Arg::Tensor(&dy),
            Arg::Tensor(&dx),
            Arg::int(width)?,
            Arg::Float(eps as f32),
            Arg::Int(i32::from(gain == Gain::OnePlusWeight)),
        ],
    )?;
    Ok(dx)
}

/// `sign` 1 turns forth, -1 back.
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, sign: f32) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let half = cos.dim(1)?;
    let (x, cos, sin) = (x.contiguous()?, cos.contiguous()?, sin.contiguous()?);
    let y = empty(x.shape(), x.dtype(), x.device())?;
    launch(
        Module::Rope,
        &format!("rope_{}", suffix(&x)),
        Grid::rows(rows),
        &[
            Arg::Tensor(&x),
            Arg::Tensor(&cos),
            Arg::Tensor(&sin),
            Arg::Tensor(&y),
            Arg::int(width)?,
            Arg::int(half)?,
            Arg::Float(sign),
        ],
    )?;
    Ok(y)
}

fn is_gelu(activation: Activation) -> Arg<'static> {
    Arg::Int(i32::from(activation == Activation::GeluTanh))
}

pub(super) fn glu_forward(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let y = empty(gate.shape(), gate.dtype(), gate.device())?;
    let n = gate.elem_count();
    launch(
        Module::Glu,
        &format!("glu_forward_{}", suffix(&gate)),
        Grid::elements(n)?,
        &[Arg::Tensor(&gate), Arg::Tensor(&up), Arg::Tensor(&y), Arg::Count(n), is_gelu(activation)],
    )?;
    Ok(y)
}

pub(super) fn glu_backward(
    gate: &Tensor,
    up: &Tensor,
    dy: &Tensor,
    activation: Activation,
) -> Result<(Tensor, Tensor)> {
    let (gate, up, dy) = (gate.contiguous()?, up.contiguous()?, dy.contiguous()?);
    let gate_grad = empty(gate.shape(), gate.dtype(), gate.device())?;
    let up_grad = empty(gate.shape(), gate.dtype(), gate.device())?;
    let n = gate.elem_count();
    launch(
        Module::Glu,
        &format!("glu_backward_{}", suffix(&gate)),
        Grid::elements(n)?,
        &[
            Arg::Tensor(&gate),
            Arg::Tensor(&up),
            Arg::Tensor(&dy),
            Arg::Tensor(&gate_grad),
            Arg::Tensor(&up_grad),
            Arg::Count(n),
            is_gelu(activation),
        ],
    )?;
    Ok((gate_grad, up_grad))
}

/// The log-probabilities of all options, flat, at rows of `logits` (M, V), and the gradient of Σ weight · KL.
pub(super) fn kl(
    logits: &Tensor,
    cap: Option<f64>,
    targets: Targets,
    grad: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (m, vocabulary) = logits.dims2()?;
    let device = logits.device();
    let logits = logits.contiguous()?;
    let first = targets.option_boundaries[0];
    let options = first as usize..targets.option_boundaries[m] as usize;
    let boundaries: Vec<u32> = targets.option_boundaries.iter().map(|b| b - first).collect();
    let boundaries = Tensor::from_vec(boundaries, m + 1, device)?;
    let ids = Tensor::from_slice(&targets.ids[options.clone()], options.len(), device)?;
    let log_z = empty(m, DType::F32, device)?;
    let option_log_probs = empty(options.len(), DType::F32, device)?;
    let cap = Arg::Float(cap.unwrap_or(0.0) as f32);
    launch(
        Module::Kl,
        &format!("kl_forward_{}", suffix(&logits)),
        Grid::rows(m),
        &[
            Arg::Tensor(&logits),
            cap,
            Arg::Tensor(&boundaries),
            Arg::Tensor(&ids),
            Arg::Tensor(&log_z),
            Arg::Tensor(&option_log_probs),
            Arg::int(vocabulary)?,
        ],
    )?;
    let dlogits = match grad {
        true => {
            let whole: Vec<u32> = targets.whole_vocabulary.iter().map(|&w| u32::from(w)).collect();
            let whole = Tensor::from_vec(whole, m, device)?;
            let probs = Tensor::from_slice(&targets.probs[options.clone()], options.len(), device)?;
            let weights = Tensor::from_slice(targets.weights, m, device)?;
            let dlogits = empty((m, vocabulary), logits.dtype(), device)?;
            launch(
                Module::Kl,
                &format!("kl_backward_{}", suffix(&logits)),
                Grid::rows(m),
                &[
                    Arg::Tensor(&logits),
                    cap,
                    Arg::Tensor(&boundaries),
                    Arg::Tensor(&ids),
                    Arg::Tensor(&probs),
                    Arg::Tensor(&weights),
                    Arg::Tensor(&whole),
                    Arg::Tensor(&log_z),
                    Arg::Tensor(&option_log_probs),
                    Arg::Tensor(&dlogits),
                    Arg::int(vocabulary)?,
                ],
            )?;
            Some(dlogits)
        }
        false => None,
    };
    Ok((option_log_probs, dlogits))
}

/// `BLOCK_WORDS` of dropout.cu.
const BLOCK_WORDS: usize = 16;

/// Factors of dropout (N, width) as `like` (_, width) is, by the words of ChaCha8 with a key for each sequence.
pub(super) fn dropout(
    keys: &[[u8; 32]],
    boundaries: &[u32],
    like: &Tensor,
    threshold: u64,
    keep: f32,
) -> Result<Tensor> {
    let (_, width) = like.dims2()?;
    let device = like.device();
    let rows = boundaries.last().map_or(0, |&end| end as usize);
    let longest = boundaries.windows(2).map(|b| (b[1] - b[0]) as usize).max().unwrap_or(0);
    let words = keys.as_flattened().as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word));
    let words = Tensor::from_vec(words.collect::<Vec<u32>>(), (keys.len(), 8), device)?;
    let boundaries = Tensor::from_slice(boundaries, boundaries.len(), device)?;
    let mask = empty((rows, width), like.dtype(), device)?;
    launch(
        Module::Dropout,
        &format!("dropout_{}", suffix(like)),
        Grid::sequences(keys.len(), longest * width, BLOCK_WORDS),
        &[
            Arg::Tensor(&words),
            Arg::Tensor(&boundaries),
            Arg::Tensor(&mask),
            Arg::int(width)?,
            Arg::Count(usize::try_from(threshold)?),
            Arg::Float(keep),
        ],
    )?;
    Ok(mask)
}

/// One update of a parameter in f32.
pub(super) fn adamw_update(old: &Moments, gradient: &Tensor, step: &Step) -> Result<Moments> {
    let like = |x: &Tensor| empty(x.shape(), DType::F32, x.device());
    let new = Moments {
        parameter: like(&old.parameter)?,
        first: like(&old.parameter)?,
        second: like(&old.parameter)?,
    };
    let [gradient, parameter, first, second] =
        [gradient, &old.parameter, &old.first, &old.second].map(Tensor::contiguous);
    let (gradient, parameter, first, second) = (gradient?, parameter?, first?, second?);
    let n = gradient.elem_count();
    launch(
        Module::AdamW,
        "adamw_f32",
        Grid::elements(n)?,
        &[
            Arg::Tensor(&gradient),
            Arg::Tensor(&parameter),
            Arg::Tensor(&first),
            Arg::Tensor(&second),
            Arg::Tensor(&new.parameter),
            Arg::Tensor(&new.first),
            Arg::Tensor(&new.second),
            Arg::Count(n),
            Arg::AdamW(step.into()),
        ],
    )?;
    Ok(new)
}
