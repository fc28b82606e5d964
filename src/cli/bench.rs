//! `bayesteach bench`: times training steps on random weights of a named shape.

use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::model::ComputeArgs;
use super::{Done, print};
use crate::config::storage;
use crate::device;
use crate::error::usage;
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Keep};
use crate::model::gradients::Trainable;
use crate::model::loading::Weights;
use crate::model::lora::{self, Lora, LoraConfig};
use crate::model::memory::{self, Work};
use crate::model::shapes;
use crate::ops::{self, attention, linear};
use crate::rng::{self, Stream};
use crate::tokens::{Sequence, SoftTarget};
use crate::train::config::{LossConfig, OptimizerConfig};
use crate::train::loss::{LossSettings, step_sums};
use crate::train::optimizer::{AdamW, global_norm};

#[derive(Args)]
pub(super) struct BenchArgs {
    /// The model's shape: small, qwen2.5-0.5b, llama-3.2-1b, … (an unknown name lists them)
    #[arg(long, default_value = "small")]
    shape: String,
    /// Tokens of a sequence
    #[arg(long, default_value_t = 512)]
    seq: usize,
    /// Sequences of a step
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Answers of a sequence, evenly spread, with 5 options each
    #[arg(long, default_value_t = 50)]
    answers: usize,
    /// Steps to time, after one to warm up
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Threads of the CPU; all if not given
    #[arg(long)]
    pub threads: Option<usize>,
    /// Whether blocks are computed again in the backward, which saves memory
    #[arg(long, value_enum, default_value_t = Recompute::None)]
    checkpointing: Recompute,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Recompute {
    None,
    Block,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    shape: String,
    device: String,
    dtype: &'static str,
    threads: usize,
    sequences: usize,
    tokens_per_sequence: usize,
    answers_per_sequence: usize,
    checkpointing: Recompute,
    /// Median over the timed steps.
    step_seconds: f64,
    tokens_per_second: f64,
    /// User and system time of all threads, median over the timed steps.
    cpu_seconds_per_step: Option<f64>,
    /// 4 FLOP per weight of a linear layer and token, 4 per weight of the output head and answer, and attention.
    flops_per_step: f64,
    flops_per_second: f64,
    /// What this device reaches in a plain matrix product of the model's MLP.
    matmul_flops_per_second: f64,
    parameters: usize,
    trained_parameters: usize,
    /// How the linears' weights are kept.
    quantization: String,
    weights_bytes: u64,
    /// What `plan` says of the weights, the adapter and the activations.
    planned_memory_bytes: u64,
    /// The most memory held, of the process on the CPU and of the device on CUDA.
    peak_memory_bytes: Option<u64>,
    /// The same before the first step, with the weights loaded.
    memory_before_bytes: Option<u64>,
}

const OPTIONS: usize = 5;

pub(super) fn command(args: &BenchArgs) -> Result<Done> {
    if args.seq < 2 || args.batch == 0 || args.steps == 0 || args.answers == 0 || args.answers >= args.seq {
        return Err(usage(format!(
            "nothing to time with --seq {} --batch {} --answers {} --steps {}: a sequence needs 2 tokens or more, \
             and fewer answers than tokens, but at least one",
            args.seq, args.batch, args.answers, args.steps
        )));
    }
    let config = shapes::config(&args.shape)?;
    let (device, dtype) = args.compute.open("auto", "auto")?;
    let report = measure(args, &config, dtype, &device)?;
    print(&if args.json { serde_json::to_string(&report)? } else { report.describe() });
    Ok(Done::Finished)
}

fn measure(args: &BenchArgs, config: &ModelConfig, dtype: DType, device: &Device) -> Result<Report> {
    let storage = storage(&args.compute.quantization)?;
    let matmul_flops_per_second = matmul_rate(args.seq * args.batch, config, dtype, device)?;
    let weights = Weights::random(0, config, dtype, device).stored_as(storage);
    let mut decoder = Decoder::new(&weights, config)?;
    let lora = LoraConfig { r: 8, alpha: 16.0, ..LoraConfig::default() };
    let mut adapter = Adapter::Lora(Lora::new(&lora, config, 0, device)?);
    let mut parameters = adapter.tensors();
    decoder.set_adapter(Some(&adapter))?;
    let mut optimizer = AdamW::new(&OptimizerConfig::default());
    let sequences = sequences(args, config.vocab_size);
    let batch: Vec<usize> = (0..sequences.len()).collect();
    let loss = LossConfig::default();
    let settings = LossSettings {
        loss: &loss,
        trainable: Trainable::Lora,
        micro_batch_tokens: args.seq * args.batch,
        keep: if args.checkpointing == Recompute::Block { Keep::BlockInputs } else { Keep::Everything },
        dropout: 0.0,
        seed: 0,
    };
    let memory_before_bytes = device::memory(device);
    let (mut seconds, mut cpu_seconds) = (Vec::new(), Vec::new());
    for step in 0..=args.steps {
        device.synchronize()?;
        let (started, cpu_started) = (Instant::now(), device::cpu_seconds());
        let sums = step_sums(&decoder, &sequences, &batch, &settings, step)?;
        let norm = global_norm(&sums.gradients)? / sums.weight;
        let factor = (1.0 / (norm + 1e-6)).min(1.0) / sums.weight;
        optimizer.update(&mut parameters, &sums.gradients, factor, 1e-4)?;
        adapter.set_tensors(&parameters)?;
        decoder.set_adapter(Some(&adapter))?;
        device.synchronize()?;
        if step > 0 {
            seconds.push(started.elapsed().as_secs_f64());
            cpu_seconds.extend(device::cpu_seconds().zip(cpu_started).map(|(now, then)| now - then));
        }
    }
    let step_seconds = median(&mut seconds).unwrap_or(f64::NAN);
    let flops_per_step = flops(args, config);
    let activations = ops::activations(dtype, device);
    let planned = memory::plan(&Work {
        model: config,
        dtype,
        activations,
        storage,
        weights: memory::weights(config, dtype, storage),
        adapter: Some(lora.parameter_count(config)),
        dropout: lora.dropout > 0.0,
        tokens: args.seq * args.batch,
        answers: args.answers * args.batch,
        longest: args.seq,
        whole_scores: attention::is_composed(config.head_dim, activations, device),
        keep: settings.keep,
    });
    Ok(Report {
        shape: args.shape.clone(),
        device: device::name(device),
        dtype: device::dtype_name(dtype),
        threads: rayon::current_num_threads(),
        sequences: args.batch,
        tokens_per_sequence: args.seq,
        answers_per_sequence: args.answers,
        checkpointing: args.checkpointing,
        step_seconds,
        tokens_per_second: (args.seq * args.batch) as f64 / step_seconds,
        cpu_seconds_per_step: median(&mut cpu_seconds),
        flops_per_step,
        flops_per_second: flops_per_step / step_seconds,
        matmul_flops_per_second,
        parameters: config.parameter_count(),
        trained_parameters: parameters.values().map(Tensor::elem_count).sum(),
        quantization: args.compute.quantization.clone(),
        weights_bytes: planned.weights as u64,
        planned_memory_bytes: planned.total() as u64,
        peak_memory_bytes: device::peak_memory_of(device),
        memory_before_bytes,
    })
}

/// Random tokens with evenly spread answers.
fn sequences(args: &BenchArgs, vocabulary: usize) -> Vec<Sequence> {
    let sequence = |index: usize| {
        let mut draws = rng::stream(0, "bench", index as u64);
        let target = |answer: usize| SoftTarget {
            position: ((answer + 1) * (args.seq - 1) / (args.answers + 1)) as u32,
            token_ids: (0..OPTIONS)
                .map(|option| (answer * OPTIONS + option) as u32 % vocabulary as u32)
                .collect(),
            probs: [0.1, 0.4, 0.2, 0.25, 0.05].to_vec(),
            predictive: None,
            weight: 1.0,
            answer: None,
            belief: None,
        };
        Sequence {
            id: index.to_string(),
            user: String::new(),
            input_ids: (0..args.seq).map(|_| draws.below(vocabulary) as u32).collect(),
            targets: (0..args.answers).map(target).collect(),
            format_positions: Vec::new(),
        }
    };
    (0..args.batch).map(sequence).collect()
}

/// 2 FLOP forward and 2 for the input's gradient per weight and row; attention's two products forward and four
/// backward over the keys that a query sees.
fn flops(args: &BenchArgs, config: &ModelConfig) -> f64 {
    let tokens = (args.seq * args.batch) as f64;
    let width = config.num_attention_heads * config.head_dim;
    let linears = lora::linear_weights(config) as f64;
    let head = (config.vocab_size * config.hidden_size) as f64;
    let pairs: usize = (config.layers.iter())
        .map(|layer| (1..=args.seq).map(|keys| keys.min(layer.window.unwrap_or(keys))).sum::<usize>())
        .sum();
    let attention = 6.0 * 2.0 * (pairs * width * args.batch) as f64;
    4.0 * linears * tokens + 4.0 * head * (args.answers * args.batch) as f64 + attention
}

/// FLOP per second of (tokens, hidden) times (hidden, intermediate), the best of some.
fn matmul_rate(tokens: usize, config: &ModelConfig, dtype: DType, device: &Device) -> Result<f64> {
    let (d, f) = (config.hidden_size, config.intermediate_size);
    // Random, as a GPU that multiplies ones draws less power and runs faster.
    let random = |shape, dtype, stream: &mut Stream| -> Result<Tensor> {
        let (rows, columns): (usize, usize) = shape;
        let values: Vec<f32> = (0..rows * columns).map(|_| stream.normal() as f32).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
    };
    let mut draws = rng::stream(0, "bench.product", 0);
    let x = random((tokens, d), ops::activations(dtype, device), &mut draws)?;
    let w = random((f, d), dtype, &mut draws)?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        device.synchronize()?;
        let started = Instant::now();
        linear::forward(&x, &w, None, None)?;
        device.synchronize()?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(2.0 * (tokens * d * f) as f64 / best)
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

impl Report {
    fn describe(&self) -> String {
        let gigabytes =
            |bytes: Option<u64>| bytes.map_or("unknown".into(), |b| format!("{:.2} GB", b as f64 / 1e9));
        [
            format!(
                "{} on {}, {}, {} threads: {} × {} tokens, {} answers each",
                self.shape,
                self.device,
                self.dtype,
                self.threads,
                self.sequences,
                self.tokens_per_sequence,
                self.answers_per_sequence
            ),
            format!("step            {:.3} s, {:.0} tokens/s", self.step_seconds, self.tokens_per_second),
            format!(
                "arithmetic      {:.1} GFLOP a step, {:.1} GFLOP/s: {:.0} % of the {:.1} GFLOP/s of a plain matrix product",
                self.flops_per_step / 1e9,
                self.flops_per_second / 1e9,
                100.0 * self.flops_per_second / self.matmul_flops_per_second,
                self.matmul_flops_per_second / 1e9
            ),
            format!(
                "CPU time        {} a step",
                self.cpu_seconds_per_step.map_or("unknown".into(), |s| format!("{s:.3} s"))
            ),
            format!(
                "memory          {} at the peak; {} with the weights loaded ({} of weights)",
                gigabytes(self.peak_memory_bytes),
                gigabytes(self.memory_before_bytes),
                gigabytes(Some(self.weights_bytes))
            ),
        ]
        .join("\n")
    }
}
