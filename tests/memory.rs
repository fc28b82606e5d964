//! Quantised and rounded base weights, and the memory plan against what a process measures.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use assert_cmd::Command;
use bayesteach::model::adapter::Adapter;
use bayesteach::model::config::ModelConfig;
use bayesteach::model::decoder::{Decoder, Keep, Tokens};
use bayesteach::model::gradients::{Gradients, Trainable};
use bayesteach::model::loading::Weights;
use bayesteach::model::lora::{Lora, LoraConfig};
use bayesteach::ops::kl::Targets;
use bayesteach::ops::weight::{Storage, Weight};
use bayesteach::rng;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::json;

fn random(seed: u64, shape: (usize, usize)) -> Tensor {
    let mut s = rng::stream(seed, "weights", 0);
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| s.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn rows(t: &Tensor) -> Vec<Vec<f32>> {
    t.to_vec2().unwrap()
}

/// In 8-bit blocks of 32 a value moves by at most half of the block's largest / 127, and the scale's own rounding to
/// f16; what 128 rows at a time give is what candle gives for the whole.
#[test]
fn kept_weights_come_back() {
    let weight = random(1, (300, 512));
    let keep = |storage| {
        let kept = Weight::new(&weight, storage, DType::F32, &Device::Cpu).unwrap();
        rows(&kept.dense().unwrap())
    };
    assert_eq!(keep(Storage::Dense), rows(&weight));
    let rounded = weight.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    assert_eq!(keep(Storage::Bf16), rows(&rounded));
    for (storage, blocks) in [(Storage::Q8_0, GgmlDType::Q8_0), (Storage::Q4K, GgmlDType::Q4K)] {
        let whole = QTensor::quantize(&weight, blocks).unwrap().dequantize(&Device::Cpu).unwrap();
        assert_eq!(keep(storage), rows(&whole), "{storage:?}");
    }
    for (kept, row) in keep(Storage::Q8_0).iter().zip(rows(&weight)) {
        for (kept, block) in kept.chunks(32).zip(row.chunks(32)) {
            let largest = block.iter().fold(0f32, |m, x| m.max(x.abs()));
            for (k, x) in kept.iter().zip(block) {
                assert!((k - x).abs() <= largest / 127.0 * (0.5 + 127.0 / 1024.0), "{x} became {k}");
            }
        }
    }
    // 192 is no multiple of 256, but of 32.
    let narrow = Weight::new(&random(2, (4, 192)), Storage::Q4K, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(narrow.shape(), (4, 192));
    assert_eq!(Storage::Q4K.bytes((4, 192), DType::F32), 4 * 192 / 32 * 34);
    assert_eq!(Storage::Q4K.bytes((4, 256), DType::F32), 4 * 144);
    assert!(Weight::new(&random(3, (4, 20)), Storage::Q8_0, DType::F32, &Device::Cpu).is_err());
}

/// Loss and adapter gradients are those of a dense f32 model with the dequantised weights.
#[test]
fn gradients_go_through_kept_weights() {
    let config = ModelConfig::parse(&json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 100, "tie_word_embeddings": true,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "initializer_range": 0.05,
    }))
    .unwrap();
    let weights = || Weights::random(5, &config, DType::F32, &Device::Cpu);
    let lora = LoraConfig { r: 4, alpha: 8.0, ..LoraConfig::default() };
    let mut adapter = Lora::new(&lora, &config, 1, &Device::Cpu).unwrap();
    for (i, module) in adapter.modules.values_mut().enumerate() {
        module.b = (random(i as u64, module.b.dims2().unwrap()) * 0.1).unwrap();
    }
    for storage in [Storage::Bf16, Storage::Q8_0, Storage::Q4K] {
        let mut kept = Decoder::new(&weights().stored_as(storage), &config).unwrap();
        let mut dense = Decoder::new(&weights(), &config).unwrap();
        let mut parameters = dense.parameters();
        for (name, tensor) in &mut parameters {
            if name.contains("_proj") {
                let weight = Weight::new(tensor, storage, DType::F32, &Device::Cpu).unwrap();
                *tensor = weight.dense().unwrap().into_owned();
            }
        }
        dense.set_parameters(&parameters).unwrap();
        let [(kl, gradients), (kl_dense, gradients_dense)] = [&mut kept, &mut dense].map(|model| {
            model.set_adapter(Some(&Adapter::Lora(adapter.clone()))).unwrap();
            gradients_of(model)
        });
        assert_eq!(kl, kl_dense, "{storage:?}");
        assert_eq!(gradients.len(), 2 * 7 * 2);
        for (name, gradient) in &gradients {
            assert!(gradient.iter().any(|g| *g != 0.0), "{storage:?}: {name}");
            assert_eq!(gradient, &gradients_dense[name], "{storage:?}: {name}");
        }
    }
}

fn gradients_of(model: &Decoder) -> (Vec<f64>, BTreeMap<String, Vec<f32>>) {
    let input_ids: Vec<u32> = (0..40).map(|i| i * 7 % 100).collect();
    let positions: Vec<u32> = (0..40).collect();
    let tokens = Tokens { input_ids: &input_ids, positions: &positions, boundaries: &[0, 40] };
    let targets = Targets {
        option_boundaries: &[0, 2, 4],
        ids: &[3, 4, 5, 6],
        probs: &[0.3, 0.7, 0.5, 0.5],
        weights: &[1.0, 1.0],
        whole_vocabulary: &[true, true],
    };
    let run = model.run(tokens, None).unwrap().only(&[11, 39]);
    let mut gradients = Gradients::new(Trainable::Lora);
    let (hidden, tape) = model.forward(&run, Keep::BlockInputs).unwrap();
    let (pending, dhidden) = model.answer_kl(&hidden, targets, Some(&mut gradients)).unwrap();
    model.backward(tape, dhidden.unwrap(), &run, &mut gradients).unwrap();
    let rows = pending.read(&targets).unwrap();
    let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
    (rows.kl, gradients.into_sums().into_iter().map(|(name, t)| (name, flat(t))).collect())
}

/// The program and what it keeps besides: measured as 15 to 20 MB.
const PROGRAM: f64 = 18e6;

#[cfg(target_os = "linux")]
#[test]
fn the_plan_is_what_a_process_measures() {
    for arguments in [&[][..], &["--checkpointing", "block"], &["--quantization", "q8_0"]] {
        let output = Command::cargo_bin("bayesteach")
            .unwrap()
            .args(["bench", "--seq", "384", "--batch", "2", "--answers", "20", "--steps", "1", "--json"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let (planned, peak) = (
            report["planned_memory_bytes"].as_f64().unwrap() + PROGRAM,
            report["peak_memory_bytes"].as_f64().unwrap(),
        );
        assert!((planned / peak - 1.0).abs() < 0.1, "{arguments:?}: planned {planned}, measured {peak}");
    }
}

/// What `plan` says of a config is what its training measures, episodes and program included. A tiny model, so that nothing
/// hides behind its weights.
#[cfg(target_os = "linux")]
#[test]
fn the_plan_is_what_a_training_measures() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = format!("run.dir={}", dir.path().display());
    for checkpointing in ["none", "block"] {
        let checkpointing = format!("train.checkpointing={checkpointing}");
        let name = format!("run.name={}", checkpointing.replace('.', "-"));
        let settings = [&run_dir, &checkpointing, &name, "train.max_steps=2", "eval.episodes=4"];
        let command = |what: &str| {
            let output = Command::cargo_bin("bayesteach")
                .unwrap()
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .args([what, "configs/quickstart.toml"])
                .args(settings.iter().flat_map(|setting| ["--set", setting]))
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let said = command("plan");
        let planned = said.lines().find_map(|line| line.strip_prefix("memory ")).unwrap();
        let planned: f64 = planned.trim().split_once(" MB at the peak").unwrap().0.parse().unwrap();
        command("train");
        let run = name.strip_prefix("run.name=").unwrap();
        let log = std::fs::read_to_string(dir.path().join(run).join("metrics.jsonl")).unwrap();
        let steps = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let peak = steps.filter_map(|step| step["peak_memory_bytes"].as_f64()).next_back().unwrap() / 1e6;
        assert!((planned / peak - 1.0).abs() < 0.1, "{checkpointing}: planned {planned}, measured {peak}");
    }
}
