//! Causal attention within sequence boundaries, with grouped heads, sliding window and soft cap.
//!
//! Everything else works on a flat run of tokens; only attention knows where sequences begin. Scores are
//! computed for a tile of queries at a time, and the backward computes them again from the kept log-sum-exp,
//! so no score matrix is ever kept.

use std::ops::Range;

use anyhow::{Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::cpu::{self, Mat, Real, Shared};
#[cfg(feature = "cuda")]
use super::cuda;
use super::products::{PANEL, Packed, Product};
use super::{dispatch, on_cuda, vjp};

/// The shape and the rules of one attention layer.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of each head.
    pub head_dim: usize,
    /// Factor on q · k.
    pub scale: f64,
    /// scores become cap · tanh(scores / cap).
    pub softcap: Option<f64>,
    /// Each query sees this many keys, itself included.
    pub window: Option<usize>,
}

/// What the backward needs of the forward besides its input and output.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Log-sum-exp of every query's scores, (N, heads); only the fast form keeps it.
    log_sum_exp: Option<Tensor>,
}

/// The tokens of a flat run that attend to each other.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// First token of each sequence, and N (S + 1).
    pub boundaries: &'a [u32],
    /// The rows of the run that ask, ascending (M); all N where none.
    pub queries: Option<&'a [u32]>,
}

/// Attention of `q` (M, heads · D) over `k`, `v` (N, kv_heads · D) within sequences, as (M, heads · D).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, rows: Rows, spec: &Spec) -> Result<(Tensor, Saved)> {
    check(q, k, v, rows, spec)?;
    #[cfg(feature = "cuda")]
    if cuda::has_head(spec.head_dim, q.dtype()) {
        on_cuda!(q, {
            let (y, lse) = cuda::attention_forward(q, k, v, rows, spec)?;
            Ok((y, Saved { log_sum_exp: Some(lse) }))
        });
    }
    dispatch!(
        q,
        forward_cpu(q, k, v, rows, spec),
        Ok((forward_tensors(q, k, v, rows, spec)?, Saved { log_sum_exp: None }))
    )
}

/// Gradients for q, k and v, given the forward's `output` and `dy` (M, heads · D).
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn backward(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    output: &Tensor,
    saved: &Saved,
    dy: &Tensor,
    rows: Rows,
    spec: &Spec,
) -> Result<(Tensor, Tensor, Tensor)> {
    check(q, k, v, rows, spec)?;
    ensure!(
        output.shape() == q.shape() && dy.shape() == q.shape(),
        "attention's backward got output {:?} and gradient {:?} for q {:?}",
        output.shape(),
        dy.shape(),
        q.shape()
    );
    match &saved.log_sum_exp {
        Some(lse) => {
            ensure!(lse.dims() == [q.dim(0)?, spec.heads], "attention's backward got another run's state");
            on_cuda!(q, cuda::attention_backward((q, k, v), output, lse, dy, rows, spec));
            dispatch!(q, backward_cpu((q, k, v), output, lse, dy, rows, spec), unreachable_form())
        }
        None => backward_tensors((q, k, v), dy, rows, spec),
    }
}

/// Whether attention is composed of tensor operations here, which work with all scores of a sequence at once: where there is
/// neither a form for the CPU nor a kernel.
pub fn is_composed(head_dim: usize, dtype: DType, device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return !cuda::has_head(head_dim, dtype);
    }
    let _ = head_dim;
    !(device.is_cpu() && matches!(dtype, DType::F32 | DType::F64))
}

/// The composed form, one sequence after the other, so that scores of one exist at a time.
fn forward_tensors(q: &Tensor, k: &Tensor, v: &Tensor, rows: Rows, spec: &Spec) -> Result<Tensor> {
    let mut outputs = Vec::new();
    for part in Part::all(rows).filter(|part| !part.queries.is_empty()) {
        let [q, k, v] = part.of(q, k, v)?;
        outputs.push(composed(&q, &k, &v, part.rows(), spec)?);
    }
    if outputs.is_empty() { Ok(q.zeros_like()?) } else { Ok(Tensor::cat(&outputs, 0)?) }
}

fn backward_tensors(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    dy: &Tensor,
    rows: Rows,
    spec: &Spec,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
    for part in Part::all(rows) {
        let [q, k, v] = part.of(q, k, v)?;
        if part.queries.is_empty() {
            dk.push(k.zeros_like()?);
            dv.push(v.zeros_like()?);
            continue;
        }
        let dy = dy.narrow(0, part.queries.start, part.queries.len())?;
        let grads = vjp(&[&q, &k, &v], &dy, |t| composed(&t[0], &t[1], &t[2], part.rows(), spec))?;
        for (all, grad) in [&mut dq, &mut dk, &mut dv].into_iter().zip(grads) {
            all.push(grad);
        }
    }
    let whole = |parts: &[Tensor], of: &Tensor| match parts {
        [] => of.zeros_like(),
        parts => Tensor::cat(parts, 0),
    };
    Ok((whole(&dq, q)?, whole(&dk, k)?, whole(&dv, v)?))
}

/// One sequence by itself.
struct Part {
    keys: Range<usize>,
    queries: Range<usize>,
    boundaries: [u32; 2],
    /// The rows that ask, counted from the sequence's first.
    asking: Option<Vec<u32>>,
}

impl Part {
    fn all(rows: Rows) -> impl Iterator<Item = Part> {
        let part = move |(keys, queries): (Range<usize>, Range<usize>)| {
            let counted = |row: &u32| row - keys.start as u32;
            let asking = rows.queries.map(|q| q[queries.clone()].iter().map(counted).collect());
            Part { boundaries: [0, keys.len() as u32], asking, keys, queries }
        };
        sequences(rows).map(part).filter(|part| !part.keys.is_empty())
    }

    fn rows(&self) -> Rows<'_> {
        Rows { boundaries: &self.boundaries, queries: self.asking.as_deref() }
    }

    /// This sequence's rows of q, k and v.
    fn of(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<[Tensor; 3]> {
        let rows = |x: &Tensor, range: &Range<usize>| x.narrow(0, range.start, range.len());
        Ok([rows(q, &self.queries)?, rows(k, &self.keys)?, rows(v, &self.keys)?])
    }
}

fn unreachable_form() -> Result<(Tensor, Tensor, Tensor)> {
    anyhow::bail!("attention kept the fast form's state for a tensor without a fast form")
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, rows: Rows, spec: &Spec) -> Result<()> {
    let Rows { boundaries, queries } = rows;
    let n = k.dim(0)?;
    let m = queries.map_or(n, <[u32]>::len);
    let kv = (n, spec.kv_heads * spec.head_dim);
    ensure!(
        q.dims2()? == (m, spec.heads * spec.head_dim) && k.dims2()? == kv && v.dims2()? == kv,
        "attention got q {:?}, k {:?}, v {:?} for {spec:?}",
        q.shape(),
        k.shape(),
        v.shape()
    );
    ensure!(
        boundaries.first() == Some(&0)
            && boundaries.last() == Some(&(n as u32))
            && boundaries.windows(2).all(|b| b[0] <= b[1]),
        "sequence boundaries {boundaries:?} do not cover {n} tokens in order"
    );
    ensure!(
        queries
            .is_none_or(|q| q.windows(2).all(|q| q[0] < q[1]) && q.last().is_none_or(|&q| (q as usize) < n)),
        "the rows that ask are not ascending rows of {n} tokens"
    );
    ensure!(spec.window != Some(0), "a window of 0 lets no query see any key");
    ensure!(spec.kv_heads > 0 && spec.heads.is_multiple_of(spec.kv_heads), "heads do not group: {spec:?}");
    Ok(())
}

/// The reference, made of differentiable candle operations: pads to the longest sequence and masks.
///
/// # Errors
/// On shapes or dtypes that do not fit.
pub fn composed(q: &Tensor, k: &Tensor, v: &Tensor, rows: Rows, spec: &Spec) -> Result<Tensor> {
    let Rows { boundaries, queries } = rows;
    let (device, dtype) = (q.device(), q.dtype());
    let (n, sequences) = (k.dim(0)?, boundaries.len() - 1);
    if let Some(queries) = queries {
        // The other rows ask too, with zeros, and nobody reads their answers.
        let at = Tensor::from_slice(queries, queries.len(), device)?;
        let q = Tensor::zeros((n, q.dim(1)?), dtype, device)?.index_add(&at, q, 0)?;
        let all = composed(&q, k, v, Rows { boundaries, queries: None }, spec)?;
        return Ok(all.index_select(&at, 0)?);
    }
    let longest = boundaries.windows(2).map(|b| b[1] - b[0]).max().unwrap_or(0);
    let t = longest as usize;
    // Row of the flat run for each padded place; padding repeats row 0, which no real query sees.
    let mut padded = vec![0u32; sequences * t];
    let mut flat = vec![0u32; n];
    for (s, b) in boundaries.windows(2).enumerate() {
        for (i, row) in (b[0]..b[1]).enumerate() {
            padded[s * t + i] = row;
            flat[row as usize] = (s * t + i) as u32;
        }
    }
    let padded = Tensor::from_vec(padded, sequences * t, device)?;
    let flat = Tensor::from_vec(flat, n, device)?;
    let split = |x: &Tensor, heads: usize| -> Result<Tensor> {
        let x = x.index_select(&padded, 0)?; // (S T, heads D)
        let x = x.reshape((sequences, t, heads, spec.head_dim))?;
        Ok(x.transpose(1, 2)?.contiguous()?) // (S, heads, T, D)
    };
    let group = spec.heads / spec.kv_heads;
    let repeat = |x: Tensor| -> Result<Tensor> {
        if group == 1 {
            return Ok(x);
        }
        // Not by expand, whose backward is unsafe on Metal.
        let x = x.unsqueeze(2)?; // (S, kv_heads, 1, T, D)
        let x = Tensor::cat(&vec![x; group], 2)?;
        Ok(x.reshape((sequences, spec.heads, t, spec.head_dim))?)
    };
    let (q, k, v) =
        (split(q, spec.heads)?, repeat(split(k, spec.kv_heads)?)?, repeat(split(v, spec.kv_heads)?)?);
    let mut scores = (q.matmul(&k.t()?)? * spec.scale)?; // (S, heads, T, T)
    if let Some(cap) = spec.softcap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let window = spec.window.unwrap_or(usize::MAX);
    let blocked = |i: usize, j: usize| j > i || i - j >= window;
    let mask = (0..t * t).map(|ij| if blocked(ij / t, ij % t) { f32::NEG_INFINITY } else { 0.0 });
    let mask = Tensor::from_vec(mask.collect::<Vec<f32>>(), (t, t), device)?;
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let scores = scores.to_dtype(wide)?.broadcast_add(&mask.to_dtype(wide)?)?;
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let probs = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?.to_dtype(dtype)?;
    let out = probs.matmul(&v)?.transpose(1, 2)?.contiguous()?; // (S, T, heads, D)
    let out = out.reshape((sequences * t, spec.heads * spec.head_dim))?;
    Ok(out.index_select(&flat, 0)?)
}

/// Queries in one tile.
const TILE: usize = 64;

/// One tile of queries, as rows of q, and the keys that any of them sees, as rows of k; the first of these is a multiple of
/// [`PANEL`] from the sequence's first.
struct Tile {
    queries: Range<usize>,
    keys: Range<usize>,
}

/// One sequence and one key-value head: what a parallel task works on.
struct Task<'a> {
    keys: Range<usize>,
    queries: Range<usize>,
    rows: Rows<'a>,
    kv_head: usize,
}

/// Each sequence's rows of k and v, and of q.
fn sequences(rows: Rows<'_>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let first_query = move |row: u32| match rows.queries {
        Some(queries) => queries.partition_point(|&q| q < row),
        None => row as usize,
    };
    let sequence = move |b: &[u32]| (b[0] as usize..b[1] as usize, first_query(b[0])..first_query(b[1]));
    rows.boundaries.windows(2).map(sequence)
}

fn tasks(rows: Rows<'_>, kv_heads: usize) -> Vec<Task<'_>> {
    let task = move |(keys, queries): (Range<usize>, Range<usize>)| {
        (0..kv_heads).map(move |kv_head| Task { keys: keys.clone(), queries: queries.clone(), rows, kv_head })
    };
    sequences(rows).flat_map(task).collect()
}

impl Task<'_> {
    /// The row of the run that a row of q is.
    fn row(&self, query: usize) -> usize {
        self.rows.queries.map_or(query, |queries| queries[query] as usize)
    }

    fn tiles(&self, window: Option<usize>) -> impl Iterator<Item = Tile> {
        self.queries.clone().step_by(TILE).map(move |first| {
            let last = (first + TILE).min(self.queries.end);
            let from = self.visible(first, window).start;
            let from = from - (from - self.keys.start) % PANEL;
            Tile { queries: first..last, keys: from..self.row(last - 1) + 1 }
        })
    }

    /// The keys that a row of q sees.
    fn visible(&self, query: usize, window: Option<usize>) -> Range<usize> {
        let row = self.row(query);
        let from = window.map_or(0, |w| (row + 1).saturating_sub(w)).max(self.keys.start);
        from..row + 1
    }

    /// Keys counted from the sequence's first.
    fn within(&self, keys: &Range<usize>) -> Range<usize> {
        keys.start - self.keys.start..keys.end - self.keys.start
    }

    /// The same as columns of a tile.
    fn columns(&self, tile: &Tile, row: usize, window: Option<usize>) -> Range<usize> {
        let visible = self.visible(tile.queries.start + row, window);
        visible.start - tile.keys.start..visible.end - tile.keys.start
    }
}

/// A head's columns of the given rows of a (N, heads · D) array.
fn head<T>(data: &[T], rows: Range<usize>, head: usize, head_dim: usize, width: usize) -> Mat<'_, T> {
    if rows.is_empty() {
        return Mat::strided(data, 0, head_dim, width);
    }
    Mat::strided(&data[rows.start * width + head * head_dim..], rows.len(), head_dim, width)
}

/// scale · q kᵀ with soft cap, for a range of keys.
fn capped_scores<T: Real>(scores: &mut [T], q: Mat<T>, keys: &Packed<T>, range: Range<usize>, spec: &Spec) {
    let (stride, scale) = (range.len(), T::from_f64(spec.scale));
    let columns = range;
    keys.multiply(Product { out: scores, stride, x: q, depth: 0, columns, scale, accumulate: false });
    if let Some(cap) = spec.softcap {
        let (cap, inverse) = (T::from_f64(cap), T::from_f64(1.0 / cap));
        cpu::vectorised(
            #[inline(always)]
            || {
                for s in scores.iter_mut() {
                    *s = cap * (*s * inverse).tanh();
                }
            },
        );
    }
}

fn forward_cpu<T: Real>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rows: Rows,
    spec: &Spec,
) -> Result<(Tensor, Saved)> {
    let m = q.dim(0)?;
    let (width, kv_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let (qs, ks, vs) = (cpu::view::<T>(q)?, cpu::view::<T>(k)?, cpu::view::<T>(v)?);
    let (qs, ks, vs) = (&*qs, &*ks, &*vs);
    let mut out = vec![T::zero(); m * width];
    let mut lse = vec![T::zero(); m * spec.heads];
    let (out_shared, lse_shared) = (Shared::new(&mut out), Shared::new(&mut lse));
    let (d, group) = (spec.head_dim, spec.heads / spec.kv_heads);
    tasks(rows, spec.kv_heads).into_par_iter().for_each(|task| {
        let kv_head = task.kv_head;
        let mut scores = vec![T::zero(); TILE * task.keys.len()];
        let mut tile_out = vec![T::zero(); TILE * d];
        let of_heads = group * task.queries.len();
        let key = Packed::new(head(ks, task.keys.clone(), kv_head, d, kv_width).t(), of_heads); // (D, keys)
        let value = Packed::new(head(vs, task.keys.clone(), kv_head, d, kv_width), of_heads); // (keys, D)
        for tile in task.tiles(spec.window) {
            let (queries, keys) = (tile.queries.clone(), task.within(&tile.keys));
            let scores = &mut scores[..queries.len() * keys.len()];
            for query_head in kv_head * group..(kv_head + 1) * group {
                let query = head(qs, queries.clone(), query_head, d, width);
                capped_scores(scores, query, &key, keys.clone(), spec);
                let mut sums = [(T::zero(), T::zero()); TILE];
                for (row, scores) in scores.chunks_exact_mut(keys.len()).enumerate() {
                    sums[row] = exponentiate(scores, task.columns(&tile, row, spec.window));
                }
                value.multiply(Product {
                    out: &mut tile_out,
                    stride: d,
                    x: Mat::new(scores, queries.len(), keys.len()),
                    depth: keys.start,
                    columns: 0..d,
                    scale: T::one(),
                    accumulate: false,
                });
                for (row, query) in queries.clone().enumerate() {
                    let (max, sum) = sums[row];
                    let inverse = T::one() / sum;
                    let values = &mut tile_out[row * d..(row + 1) * d];
                    values.iter_mut().for_each(|x| *x *= inverse);
                    #[expect(unsafe_code, reason = "this task alone has this row of this head")]
                    unsafe {
                        out_shared.write(query * width + query_head * d, values);
                        lse_shared.write(query * spec.heads + query_head, &[max + sum.ln()]);
                    }
                }
            }
        }
    });
    let lse = cpu::tensor(lse, (m, spec.heads))?;
    Ok((cpu::tensor(out, (m, width))?, Saved { log_sum_exp: Some(lse) }))
}

/// Replaces a row of scores by exp(score - max) where visible and 0 elsewhere; returns (max, sum).
fn exponentiate<T: Real>(scores: &mut [T], visible: Range<usize>) -> (T, T) {
    cpu::vectorised(
        #[inline(always)]
        || {
            scores[..visible.start].fill(T::zero());
            scores[visible.end..].fill(T::zero());
            let scores = &mut scores[visible];
            let max = cpu::maximum(scores);
            (max, cpu::exp_and_sum(scores, max))
        },
    )
}

// With P = softmax(S):  dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P (dP - rowsum(dO · O)),  dQ = scale dS K,
// dK = scale dSᵀ Q; through the soft cap S = c tanh(z / c): dz = dS (1 - (S / c)²).
fn backward_cpu<T: Real>(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    output: &Tensor,
    lse: &Tensor,
    dy: &Tensor,
    rows: Rows,
    spec: &Spec,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (m, n) = (q.dim(0)?, k.dim(0)?);
    let (width, kv_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let (qs, ks, vs) = (cpu::view::<T>(q)?, cpu::view::<T>(k)?, cpu::view::<T>(v)?);
    let (qs, ks, vs) = (&*qs, &*ks, &*vs);
    let (outs, lses, dys) = (cpu::view::<T>(output)?, cpu::view::<T>(lse)?, cpu::view::<T>(dy)?);
    let (outs, lses, dys) = (&*outs, &*lses, &*dys);
    let (mut dq, mut dk, mut dv) =
        (vec![T::zero(); m * width], vec![T::zero(); n * kv_width], vec![T::zero(); n * kv_width]);
    let (dq_shared, dk_shared, dv_shared) =
        (Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut dv));
    let (d, group) = (spec.head_dim, spec.heads / spec.kv_heads);
    let scale = T::from_f64(spec.scale);
    tasks(rows, spec.kv_heads).into_par_iter().for_each(|task| {
        let (kv_head, rows) = (task.kv_head, task.keys.clone());
        let mut probs_buffer = vec![T::zero(); TILE * rows.len()];
        let mut grads_buffer = vec![T::zero(); TILE * rows.len()];
        let mut tile_dq = vec![T::zero(); TILE * d];
        // (D, keys), so that products go through all keys of a row
        let (mut head_dk, mut head_dv) = (vec![T::zero(); rows.len() * d], vec![T::zero(); rows.len() * d]);
        let of_heads = group * task.queries.len();
        let key = head(ks, rows.clone(), kv_head, d, kv_width); // (keys, D)
        let (key, key_turned) = (Packed::new(key, of_heads), Packed::new(key.t(), of_heads));
        let value_turned = Packed::new(head(vs, rows.clone(), kv_head, d, kv_width).t(), of_heads);
        for tile in task.tiles(spec.window) {
            let (queries, keys) = (tile.queries.clone(), task.within(&tile.keys));
            let (m, count) = (queries.len(), keys.len());
            let probs = &mut probs_buffer[..m * count];
            let grads = &mut grads_buffer[..m * count];
            for query_head in kv_head * group..(kv_head + 1) * group {
                let query = head(qs, queries.clone(), query_head, d, width);
                let dout = head(dys, queries.clone(), query_head, d, width);
                capped_scores(probs, query, &key_turned, keys.clone(), spec);
                value_turned.multiply(Product {
                    out: grads,
                    stride: count,
                    x: dout,
                    depth: 0,
                    columns: keys.clone(),
                    scale: T::one(),
                    accumulate: false,
                });
                for row in 0..m {
                    let at = (queries.start + row) * width + query_head * d;
                    let (o, g) = (&outs[at..at + d], &dys[at..at + d]);
                    score_grads(
                        &mut probs[row * count..(row + 1) * count],
                        &mut grads[row * count..(row + 1) * count],
                        task.columns(&tile, row, spec.window),
                        lses[(queries.start + row) * spec.heads + query_head],
                        (o, g),
                        spec.softcap,
                    );
                }
                let (p, g) = (Mat::new(probs, m, count), Mat::new(grads, m, count));
                key.multiply(Product {
                    out: &mut tile_dq,
                    stride: d,
                    x: g,
                    depth: keys.start,
                    columns: 0..d,
                    scale,
                    accumulate: false,
                });
                for (sum, x, w, scale) in [(&mut head_dk, query, g, scale), (&mut head_dv, dout, p, T::one())]
                {
                    let x = x.turned(); // (D, queries)
                    Packed::new(w, d).multiply(Product {
                        out: &mut sum[keys.start..],
                        stride: rows.len(),
                        x: Mat::new(&x, d, m),
                        depth: 0,
                        columns: 0..count,
                        scale,
                        accumulate: true,
                    });
                }
                for (row, query) in queries.clone().enumerate() {
                    #[expect(unsafe_code, reason = "this task alone has this row of this head")]
                    unsafe {
                        dq_shared.write(query * width + query_head * d, &tile_dq[row * d..(row + 1) * d]);
                    }
                }
            }
        }
        for (shared, sum) in [(&dk_shared, &head_dk), (&dv_shared, &head_dv)] {
            let sum = Mat::new(sum, d, rows.len()).turned(); // (keys, D)
            for (at, row) in rows.clone().zip(sum.chunks_exact(d)) {
                #[expect(unsafe_code, reason = "this task alone has this row of this key-value head")]
                unsafe {
                    shared.write(at * kv_width + kv_head * d, row);
                }
            }
        }
    });
    Ok((cpu::tensor(dq, (m, width))?, cpu::tensor(dk, (n, kv_width))?, cpu::tensor(dv, (n, kv_width))?))
}

/// Turns a row of scores into probabilities, and the row of dP into dS (before the soft cap).
fn score_grads<T: Real>(
    scores: &mut [T],
    grads: &mut [T],
    visible: Range<usize>,
    lse: T,
    (output, output_grad): (&[T], &[T]),
    softcap: Option<f64>,
) {
    cpu::vectorised(
        #[inline(always)]
        || {
            let delta = cpu::dot(output, output_grad);
            for hidden in [0..visible.start, visible.end..scores.len()] {
                scores[hidden.clone()].fill(T::zero());
                grads[hidden].fill(T::zero());
            }
            let (scores, grads) = (&mut scores[visible.clone()], &mut grads[visible]);
            let inverse_cap = softcap.map_or(T::zero(), |cap| T::from_f64(1.0 / cap));
            for (s, g) in scores.iter_mut().zip(grads.iter_mut()) {
                let p = (*s - lse).exp();
                let ratio = *s * inverse_cap;
                *g = p * (*g - delta) * (T::one() - ratio * ratio);
                *s = p;
            }
        },
    );
}
