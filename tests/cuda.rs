//! Every operation and whole models on CUDA against the CPU in f32. Needs a GPU: `scripts/bench-gpu.sh` runs it.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it measured")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bayesteach::device;
use bayesteach::model::adapter::Adapter;
use bayesteach::model::config::ModelConfig;
use bayesteach::model::decoder::{Decoder, Keep, Tokens};
use bayesteach::model::gradients::{Gradients, Trainable};
use bayesteach::model::loading::Weights;
use bayesteach::model::lora::{Lora, LoraConfig};
use bayesteach::model::peft;
use bayesteach::ops::adamw::{self, Moments, Step};
use bayesteach::ops::attention::{self, Rows, Spec};
use bayesteach::ops::dropout::Dropout;
use bayesteach::ops::glu::{self, Activation};
use bayesteach::ops::kl::{self, Targets};
use bayesteach::ops::linear;
use bayesteach::ops::rms_norm::{self, Gain};
use bayesteach::ops::rope::{self, Angles};
use bayesteach::rng::{self, Stream};
use candle_core::{DType, Device, Tensor};

const FAMILIES: [&str; 9] =
    ["llama", "llama3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3", "qwen3_moe"];

/// One for all tests: two devices have two streams, which do not wait for each other.
fn gpu() -> Device {
    static GPU: LazyLock<Device> =
        LazyLock::new(|| device::open("cuda:0").expect("these tests need a CUDA device"));
    GPU.clone()
}

fn random(s: &mut Stream, shape: impl Into<candle_core::Shape>) -> Tensor {
    let shape = shape.into();
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| s.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    let x = x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖computed − expected‖ / ‖expected‖.
fn relative_difference(computed: &Tensor, expected: &Tensor) -> f64 {
    let (a, b) = (values(computed), values(expected));
    let difference: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f64 = b.iter().map(|b| b * b).sum();
    (difference / size.max(1e-12)).sqrt()
}

fn assert_close(what: &str, computed: &Tensor, expected: &Tensor, tolerance: f64) {
    let relative = relative_difference(computed, expected);
    println!("{what}: {relative:.1e}");
    assert!(relative <= tolerance, "{what}: {relative:.2e}, at most {tolerance:.0e}");
}

/// Runs `f` on the CPU in f32, and on the GPU in f32 and in bf16 on the same inputs as bf16 rounds them.
fn compare(what: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Vec<Tensor>) {
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
        let rounded: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
        let expected: Vec<Tensor> = rounded.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
        let there: Vec<Tensor> = rounded.iter().map(|x| x.to_device(&gpu()).unwrap()).collect();
        let (first, again) = (f(&there), f(&there));
        for (i, (computed, expected)) in first.iter().zip(f(&expected)).enumerate() {
            assert_close(&format!("{what}, {dtype:?}, result {i}"), computed, &expected, tolerance);
            assert_eq!(values(computed), values(&again[i]), "{what}, {dtype:?}, result {i} twice");
        }
    }
}

#[test]
fn operations_agree_with_the_cpu() {
    let s = &mut rng::stream(0, "test/cuda", 0);
    for (rows, width) in [(7, 64), (33, 1000)] {
        for gain in [Gain::Weight, Gain::OnePlusWeight] {
            let inputs = [random(s, (rows, width)), random(s, width), random(s, (rows, width))];
            compare(&format!("norm {width} {gain:?}"), &inputs, |x| {
                let y = rms_norm::forward(&x[0], &x[1], 1e-6, gain).unwrap();
                let (dx, _) = rms_norm::backward(&x[0], &x[1], &x[2], 1e-6, gain, false).unwrap();
                vec![y, dx]
            });
        }
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let inputs = [random(s, (rows, width)), random(s, (rows, width)), random(s, (rows, width))];
            compare(&format!("gated {activation:?}"), &inputs, |x| {
                let y = glu::forward(&x[0], &x[1], activation).unwrap();
                let (gate, up) = glu::backward(&x[0], &x[1], &x[2], activation).unwrap();
                vec![y, gate, up]
            });
        }
    }
    let positions: Vec<u32> = (0..50).collect();
    let frequencies: Vec<f32> = (0..16).map(|i| 10_000f32.powf(-(i as f32) / 16.0)).collect();
    compare("rotation", &[random(s, (50, 4 * 32))], |x| {
        let angles = Angles::new(&positions, &frequencies, x[0].dtype(), x[0].device()).unwrap();
        vec![rope::forward(&x[0], &angles).unwrap(), rope::backward(&x[0], &angles).unwrap()]
    });
    let inputs = [
        random(s, (40, 96)),
        random(s, (72, 96)),
        random(s, (8, 96)),
        random(s, (72, 8)),
        random(s, (40, 72)),
    ];
    compare("linear", &inputs, |x| {
        let lora = Some(linear::Lora { a: &x[2], b: &x[3], scale: 2.0, mask: None });
        let y = linear::forward(&x[0], &x[1], None, lora).unwrap();
        let mut dx = None;
        let grads = linear::backward(&x[0], &x[1], lora, &x[4], Some(&mut dx)).unwrap().unwrap();
        vec![y, grads.a, grads.b, dx.unwrap()]
    });
}

#[test]
fn attention_agrees_with_the_cpu() {
    let s = &mut rng::stream(0, "test/cuda-attention", 0);
    let boundaries = [0u32, 1, 70, 70, 200];
    let some: Vec<u32> = (0..200).filter(|i| i % 7 == 3 || *i == 199).collect();
    for head_dim in [16, 32, 64, 96, 128, 256] {
        for (window, softcap, queries) in
            [(None, None, None), (Some(40), Some(5.0), None), (None, None, Some(&some[..]))]
        {
            let (heads, kv_heads) = (4, 2);
            let scale = (head_dim as f64).powf(-0.5);
            let spec = Spec { heads, kv_heads, head_dim, scale, softcap, window };
            let m = queries.map_or(200, <[u32]>::len);
            let rows = Rows { boundaries: &boundaries, queries };
            let wide = |s: &mut Stream, n: usize, heads: usize| random(s, (n, heads * head_dim));
            let inputs =
                [wide(s, m, heads), wide(s, 200, kv_heads), wide(s, 200, kv_heads), wide(s, m, heads)];
            compare(&format!("attention {spec:?}"), &inputs, |x| {
                let (y, saved) = attention::forward(&x[0], &x[1], &x[2], rows, &spec).unwrap();
                let (dq, dk, dv) =
                    attention::backward((&x[0], &x[1], &x[2]), &y, &saved, &x[3], rows, &spec).unwrap();
                vec![y, dq, dk, dv]
            });
        }
    }
}

#[test]
fn kl_and_adamw_agree_with_the_cpu() {
    let s = &mut rng::stream(0, "test/cuda-kl", 0);
    let targets = Targets {
        option_boundaries: &[0, 2, 5, 7],
        ids: &[3, 4, 5, 600, 7, 8, 9],
        probs: &[0.3, 0.7, 0.2, 0.5, 0.3, 1.0, 0.0],
        weights: &[1.0, 0.5, 2.0],
        whole_vocabulary: &[true, false, true],
    };
    for cap in [None, Some(3.0)] {
        compare(&format!("KL {cap:?}"), &[random(s, (3, 1000))], |x| {
            let (rows, grad) = kl::kl(&x[0], cap, targets, true).unwrap();
            let numbers = [&rows.kl[..], &rows.option_log_probs].concat();
            vec![Tensor::new(numbers, &Device::Cpu).unwrap(), grad.unwrap()]
        });
    }
    let step = Step { lr: 1e-2, betas: [0.9, 0.98], eps: 1e-8, weight_decay: 0.1, number: 3, factor: 0.3 };
    let [parameter, first, second, gradient] = [(); 4].map(|()| random(s, (30, 40)));
    let second = second.sqr().unwrap();
    let on = |device: &Device| {
        let place = |x: &Tensor| x.to_device(device).unwrap();
        let old = Moments { parameter: place(&parameter), first: place(&first), second: place(&second) };
        adamw::update(&old, &place(&gradient), &step).unwrap()
    };
    let (there, here) = (on(&gpu()), on(&Device::Cpu));
    assert_close("AdamW parameter", &there.parameter, &here.parameter, 1e-5);
    assert_close("AdamW first", &there.first, &here.first, 1e-5);
    assert_close("AdamW second", &there.second, &here.second, 1e-5);
}

/// The same bits: a run goes on elsewhere with the masks that it had.
#[test]
fn dropout_masks_are_those_of_the_cpu() {
    let dropout = Dropout { p: 0.3, seed: 5, keys: vec![9, 10, 11, 12] };
    for dtype in [DType::F32, DType::BF16] {
        let mask = |device: &Device| {
            let like = Tensor::zeros((1, 333), dtype, device).unwrap();
            values(&dropout.mask("m", &[0, 1, 1, 150, 157], &like).unwrap())
        };
        assert!(mask(&gpu()) == mask(&Device::Cpu), "{dtype:?}");
    }
}

/// From where the tests run, not from where they were built: the binary may have been carried.
fn folder(family: &str) -> PathBuf {
    Path::new("tests/data/reference").join(family)
}

/// The models of `tests/data/reference`, whose heads have no kernel but some, and models with heads that have one. All is
/// computed in `dtype`, on the CPU too.
fn decoder(family: &str, dtype: DType, device: &Device) -> (Decoder, Adapter) {
    let load = |weights: Weights, config: &ModelConfig| {
        Decoder::new(&weights.with_activations(dtype), config).unwrap()
    };
    let dir = folder(family);
    let Some(head_dim) = family.strip_prefix("gemma2 with heads of ") else {
        let config = ModelConfig::load(&dir).unwrap();
        let (_, adapter) = peft::read(&dir.join("adapter"), &config).unwrap();
        return (load(Weights::open(&dir, &config, dtype, device).unwrap(), &config), adapter);
    };
    // With soft caps and a sliding window.
    let text = std::fs::read(folder("gemma2").join("config.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    json["head_dim"] = head_dim.parse::<usize>().unwrap().into();
    let config = ModelConfig::parse(&json).unwrap();
    let mut lora =
        Lora::new(&LoraConfig { r: 4, ..LoraConfig::default() }, &config, 1, &Device::Cpu).unwrap();
    let s = &mut rng::stream(0, "test/cuda-adapter", 0);
    for module in lora.modules.values_mut() {
        module.b = (random(s, module.b.shape().clone()) * 0.1).unwrap();
    }
    (load(Weights::random(3, &config, dtype, device), &config), Adapter::Lora(lora))
}

/// Log-probabilities of options, and every adapter's gradient.
fn gradients(family: &str, dtype: DType, device: &Device, keep: Keep) -> BTreeMap<String, Tensor> {
    let (mut model, adapter) = decoder(family, dtype, device);
    model.set_adapter(Some(&adapter)).unwrap();
    let s = &mut rng::stream(0, "test/cuda-model", 0);
    let input_ids: Vec<u32> = (0..90).map(|_| s.below(100) as u32).collect();
    let positions: Vec<u32> = (0..50).chain(0..40).collect();
    let tokens = Tokens { input_ids: &input_ids, positions: &positions, boundaries: &[0, 50, 90] };
    let targets = Targets {
        option_boundaries: &[0, 2, 4, 6],
        ids: &[3, 4, 5, 6, 7, 8],
        probs: &[0.3, 0.7, 0.5, 0.5, 0.9, 0.1],
        weights: &[1.0, 1.0, 0.5],
        whole_vocabulary: &[true, true, false],
    };
    let run = model.run(tokens, None).unwrap().only(&[11, 49, 89]);
    let mut grads = Gradients::new(Trainable::Lora);
    let (hidden, tape) = model.forward(&run, keep).unwrap();
    let (pending, dhidden) = model.answer_kl(&hidden, targets, Some(&mut grads)).unwrap();
    model.backward(tape, dhidden.unwrap(), &run, &mut grads).unwrap();
    let rows = pending.read(&targets).unwrap();
    let mut all = grads.into_sums();
    all.insert("log-probabilities".into(), Tensor::new(rows.option_log_probs, &Device::Cpu).unwrap());
    all
}

/// In f32 up to rounding; in bf16 as far from f32 as the CPU is in bf16, or twice that: how far a tensor may be depends on
/// what cancels in it.
#[test]
fn models_agree_with_the_cpu() {
    let with_heads = ["gemma2 with heads of 64", "gemma2 with heads of 128"];
    for family in FAMILIES.into_iter().chain(with_heads) {
        let expected = gradients(family, DType::F32, &Device::Cpu, Keep::Everything);
        let rounded = gradients(family, DType::BF16, &Device::Cpu, Keep::Everything);
        for keep in [Keep::Everything, Keep::BlockInputs] {
            for dtype in [DType::F32, DType::BF16] {
                let computed = gradients(family, dtype, &gpu(), keep);
                assert_eq!(expected.len(), computed.len(), "{family}");
                for (name, gradient) in &expected {
                    let tolerance = match dtype {
                        DType::F32 => 1e-4,
                        _ => 0.02 + 2.0 * relative_difference(&rounded[name], gradient),
                    };
                    let what = format!("{family}, {dtype:?}, {name}");
                    assert_close(&what, &computed[name], gradient, tolerance);
                }
            }
        }
    }
}
