//! Attention's kernels: which rows a block owns, and what it needs.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

use super::super::attention::{Rows, Spec};
use super::launch::{Arg, AttentionSpec, Grid, Module, empty, launch};
use super::suffix;

/// Head sizes that attention.cu has kernels for.
const HEAD_SIZES: [usize; 6] = [16, 32, 64, 96, 128, 256];
// As in attention.cu.
const THREADS: usize = 128;
const WARPS: usize = THREADS / 32;
const INNER: usize = 32;
const PAD: usize = 8;

/// Whether there is a kernel for this size of head: in f32, wide heads take more shared memory than most GPUs have.
pub(in super::super) fn has_head(head_dim: usize, dtype: DType) -> bool {
    HEAD_SIZES.contains(&head_dim) && (dtype == DType::BF16 || head_dim <= 64)
}

/// Rows that a block owns.
fn own_rows(head_dim: usize) -> usize {
    if head_dim > 128 { 32 } else { 64 }
}

/// Bytes of shared memory of a block; `Shared` of attention.cu hands them out.
fn shared_bytes(head_dim: usize, dtype: DType, backward: bool) -> usize {
    let (own, stride, score_stride) = (own_rows(head_dim), head_dim + PAD, INNER + PAD);
    let sides = if backward { 2 } else { 1 };
    let elements = sides * own * stride + 2 * INNER * stride + sides * own * score_stride;
    elements * dtype.size_in_bytes() + 4 * (sides * own * score_stride + WARPS * 256 + 3 * 64)
}

/// The blocks' rows on the device: (tiles, 6) numbers, as `Tile` of attention.cu.
struct Tiles {
    of_queries: Tensor,
    of_keys: Tensor,
    queries: Option<Tensor>,
}

impl Tiles {
    fn new(rows: Rows, own: usize, device: &Device) -> Result<Self> {
        let first_query = |row: u32| match rows.queries {
            Some(queries) => queries.partition_point(|&q| q < row) as u32,
            None => row,
        };
        let (mut of_queries, mut of_keys) = (Vec::new(), Vec::new());
        for b in rows.boundaries.windows(2) {
            let (first, end) = (first_query(b[0]), first_query(b[1]));
            let tiles = |from: u32, to: u32| {
                (from..to).step_by(own).map(move |at| [at, (at + own as u32).min(to), b[0], b[1], first, end])
            };
            of_queries.extend(tiles(first, end).flatten());
            of_keys.extend(tiles(b[0], b[1]).flatten());
        }
        let tensor = |numbers: Vec<u32>| {
            let tiles = numbers.len() / 6;
            Tensor::from_vec(numbers, (tiles, 6), device)
        };
        let queries = rows.queries.map(|q| Tensor::from_slice(q, q.len(), device)).transpose()?;
        Ok(Self { of_queries: tensor(of_queries)?, of_keys: tensor(of_keys)?, queries })
    }

    fn query_rows(&self) -> Arg<'_> {
        self.queries.as_ref().map_or(Arg::Null, Arg::Tensor)
    }
}

fn numbers(spec: &Spec) -> Result<Arg<'static>> {
    ensure!(spec.heads <= 65_535, "{} heads are too many for one kernel", spec.heads);
    Ok(Arg::Attention(AttentionSpec {
        heads: spec.heads as i32,
        kv_heads: spec.kv_heads as i32,
        scale: spec.scale as f32,
        softcap: spec.softcap.unwrap_or(0.0) as f32,
        // A window beyond any sequence is none.
        window: spec.window.and_then(|w| i32::try_from(w).ok()).unwrap_or(0),
    }))
}

fn grid(tiles: &Tensor, heads: usize, shared: usize) -> Result<Grid> {
    Ok(Grid { blocks: (tiles.dim(0)?, heads), threads: THREADS as u32, shared })
}

/// The output (M, heads · D), and the log-sum-exp of every query's scores (M, heads) in f32.
pub(in super::super) fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rows: Rows,
    spec: &Spec,
) -> Result<(Tensor, Tensor)> {
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (m, device) = (q.dim(0)?, q.device());
    let tiles = Tiles::new(rows, own_rows(spec.head_dim), device)?;
    let y = empty(q.shape(), q.dtype(), device)?;
    let log_sum_exp = empty((m, spec.heads), DType::F32, device)?;
    launch(
        Module::Attention,
        &format!("attention_forward_{}_{}", suffix(&q), spec.head_dim),
        grid(&tiles.of_queries, spec.heads, shared_bytes(spec.head_dim, q.dtype(), false))?,
        &[
            Arg::Tensor(&q),
            Arg::Tensor(&k),
            Arg::Tensor(&v),
            Arg::Tensor(&tiles.of_queries),
            tiles.query_rows(),
            Arg::Tensor(&y),
            Arg::Tensor(&log_sum_exp),
            numbers(spec)?,
        ],
    )?;
    Ok((y, log_sum_exp))
}

/// Gradients for q, k and v.
pub(in super::super) fn backward(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    output: &Tensor,
    log_sum_exp: &Tensor,
    dy: &Tensor,
    rows: Rows,
    spec: &Spec,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (output, dy) = (output.contiguous()?, dy.contiguous()?);
    let (m, device) = (q.dim(0)?, q.device());
    let tiles = Tiles::new(rows, own_rows(spec.head_dim), device)?;
    let delta = empty((m, spec.heads), DType::F32, device)?;
    let dots = m * spec.heads;
    launch(
        Module::Attention,
        &format!("attention_output_dot_{}", suffix(&q)),
        Grid { blocks: (dots.div_ceil(WARPS), 1), threads: THREADS as u32, shared: 0 },
        &[
            Arg::Tensor(&output),
            Arg::Tensor(&dy),
            Arg::Tensor(&delta),
            Arg::int(dots)?,
            Arg::int(spec.head_dim)?,
        ],
    )?;
    let [dq, dk, dv] = [&q, &k, &v].map(|x| empty(x.shape(), x.dtype(), device));
    let (dq, dk, dv) = (dq?, dk?, dv?);
    let shared = shared_bytes(spec.head_dim, q.dtype(), true);
    let given = [&q, &k, &v, &dy, log_sum_exp, &delta].map(Arg::Tensor);
    let of_queries = [Arg::Tensor(&tiles.of_queries), tiles.query_rows(), Arg::Tensor(&dq), numbers(spec)?];
    launch(
        Module::Attention,
        &format!("attention_query_grads_{}_{}", suffix(&q), spec.head_dim),
        grid(&tiles.of_queries, spec.heads, shared)?,
        &[&given[..], &of_queries].concat(),
    )?;
    let of_keys =
        [Arg::Tensor(&tiles.of_keys), tiles.query_rows(), Arg::Tensor(&dk), Arg::Tensor(&dv), numbers(spec)?];
    launch(
        Module::Attention,
        &format!("attention_key_grads_{}_{}", suffix(&q), spec.head_dim),
        grid(&tiles.of_keys, spec.kv_heads, shared)?,
        &[&given[..], &of_keys].concat(),
    )?;
    Ok((dq, dk, dv))
}
