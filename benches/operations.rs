//! Each operation beside its composed reference, at the widths of `bench --shape small`: `cargo bench`.
//!
//! Of the composed forms, the forward alone is timed: their backward is candle's.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark may panic")]

use bayesteach::ops::adamw::{self, Moments, Step};
use bayesteach::ops::attention::{self, Rows, Spec};
use bayesteach::ops::glu::{self, Activation};
use bayesteach::ops::kl::{self, Targets};
use bayesteach::ops::linear::{self, Lora};
use bayesteach::ops::rms_norm::{self, Gain};
use bayesteach::ops::rope::{self, Angles};
use bayesteach::rng;
use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, criterion_group, criterion_main};

const TOKENS: usize = 1024;
const HIDDEN: usize = 512;
const INTERMEDIATE: usize = 1536;

fn random(rows: usize, width: usize) -> Tensor {
    let s = &mut rng::stream(0, "bench/operations", (rows * width) as u64);
    let values: Vec<f32> = (0..rows * width).map(|_| s.normal() as f32).collect();
    Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
}

fn of_linear(c: &mut Criterion) {
    let (x, w, dy) = (random(TOKENS, HIDDEN), random(INTERMEDIATE, HIDDEN), random(TOKENS, INTERMEDIATE));
    let (a, b) = (random(8, HIDDEN), random(INTERMEDIATE, 8));
    let lora = Some(Lora { a: &a, b: &b, scale: 2.0, mask: None });
    let mut group = c.benchmark_group("linear with LoRA");
    group.bench_function("forward", |t| t.iter(|| linear::forward(&x, &w, None, lora).unwrap()));
    group.bench_function("forward, composed", |t| t.iter(|| linear::composed(&x, &w, None, lora).unwrap()));
    group.bench_function("backward", |t| {
        t.iter(|| linear::backward(&x, &w, lora, &dy, Some(&mut None)).unwrap());
    });
    let w = w.to_dtype(DType::BF16).unwrap();
    group.bench_function("forward, weight in bf16", |t| {
        t.iter(|| linear::forward(&x, &w, None, lora).unwrap());
    });
    group.bench_function("backward, weight in bf16", |t| {
        t.iter(|| linear::backward(&x, &w, lora, &dy, Some(&mut None)).unwrap());
    });
}

fn of_attention(c: &mut Criterion) {
    let spec = Spec { heads: 8, kv_heads: 4, head_dim: 64, scale: 0.125, softcap: None, window: None };
    let (q, k, v, dy) = (random(TOKENS, 512), random(TOKENS, 256), random(TOKENS, 256), random(TOKENS, 512));
    let rows = Rows { boundaries: &[0, 512, 1024], queries: None };
    let mut group = c.benchmark_group("attention");
    group.bench_function("forward", |t| t.iter(|| attention::forward(&q, &k, &v, rows, &spec).unwrap()));
    group.bench_function("forward, composed", |t| {
        t.iter(|| attention::composed(&q, &k, &v, rows, &spec).unwrap());
    });
    let (y, saved) = attention::forward(&q, &k, &v, rows, &spec).unwrap();
    group.bench_function("backward", |t| {
        t.iter(|| attention::backward((&q, &k, &v), &y, &saved, &dy, rows, &spec).unwrap());
    });
}

fn of_rows(c: &mut Criterion) {
    let (x, dy) = (random(TOKENS, HIDDEN), random(TOKENS, HIDDEN));
    let w = random(1, HIDDEN).squeeze(0).unwrap();
    let mut group = c.benchmark_group("RMSNorm");
    group.bench_function("forward", |t| {
        t.iter(|| rms_norm::forward(&x, &w, 1e-6, Gain::Weight).unwrap());
    });
    group.bench_function("forward, composed", |t| {
        t.iter(|| rms_norm::composed(&x, &w, 1e-6, Gain::Weight).unwrap());
    });
    group.bench_function("backward", |t| {
        t.iter(|| rms_norm::backward(&x, &w, &dy, 1e-6, Gain::Weight, false).unwrap());
    });
    group.finish();

    let positions: Vec<u32> = (0..TOKENS as u32).collect();
    let frequencies: Vec<f32> = (0..32).map(|i| 10_000f32.powf(-(i as f32) / 32.0)).collect();
    let angles = Angles::new(&positions, &frequencies, DType::F32, &Device::Cpu).unwrap();
    let mut group = c.benchmark_group("rotation");
    group.bench_function("forward", |t| t.iter(|| rope::forward(&x, &angles).unwrap()));
    group.bench_function("forward, composed", |t| t.iter(|| rope::composed(&x, &angles).unwrap()));
    group.finish();

    let (gate, up, dy) =
        (random(TOKENS, INTERMEDIATE), random(TOKENS, INTERMEDIATE), random(TOKENS, INTERMEDIATE));
    let mut group = c.benchmark_group("gated SiLU");
    group.bench_function("forward", |t| {
        t.iter(|| glu::forward(&gate, &up, Activation::Silu).unwrap());
    });
    group.bench_function("forward, composed", |t| {
        t.iter(|| glu::composed(&gate, &up, Activation::Silu).unwrap());
    });
    group.bench_function("backward", |t| {
        t.iter(|| glu::backward(&gate, &up, &dy, Activation::Silu).unwrap());
    });
}

fn of_the_end(c: &mut Criterion) {
    let logits = random(50, 32_000);
    let boundaries: Vec<u32> = (0..=50).map(|i| 5 * i).collect();
    let ids: Vec<u32> = (0..250).collect();
    let (probs, weights, whole) = (vec![0.2; 250], vec![1.0; 50], vec![true; 50]);
    let targets = Targets {
        option_boundaries: &boundaries,
        ids: &ids,
        probs: &probs,
        weights: &weights,
        whole_vocabulary: &whole,
    };
    let mut group = c.benchmark_group("KL of 50 answers, vocabulary 32,000");
    group.bench_function("forward and gradient", |t| {
        t.iter(|| kl::kl(&logits, None, targets, true).unwrap());
    });
    group.bench_function("forward, composed", |t| t.iter(|| kl::composed(&logits, None, targets).unwrap()));
    group.finish();

    let old = Moments {
        parameter: random(HIDDEN, INTERMEDIATE),
        first: random(HIDDEN, INTERMEDIATE),
        second: random(HIDDEN, INTERMEDIATE).sqr().unwrap(),
    };
    let gradient = random(HIDDEN, INTERMEDIATE);
    let step = Step { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0, number: 5, factor: 1.0 };
    let mut group = c.benchmark_group("AdamW");
    group.bench_function("update", |t| t.iter(|| adamw::update(&old, &gradient, &step).unwrap()));
    group.bench_function("update, composed", |t| {
        t.iter(|| adamw::composed(&old, &gradient, &step).unwrap());
    });
}

criterion_group!(operations, of_linear, of_attention, of_rows, of_the_end);
criterion_main!(operations);
