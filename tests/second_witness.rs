//! Logits against a second implementation, candle-transformers, which shares no code with ours but the tensors.
//!
//! What candle-transformers 0.11.1 computes otherwise than transformers, and what is done about it here:
//!
//! - llama.rs takes `hidden_size / num_attention_heads` as the size of a head, so it cannot hold the `llama3`
//!   reference (heads of 16, where 32 / 4 = 8). Its rope scaling is checked on the weights of `llama`.
//! - qwen2.rs obeys `sliding_window` whatever `use_sliding_window` says, on every layer, and its mask
//!   (`j + sliding_window < i`) lets a query see one key more: here its window is one smaller than ours.
//! - gemma2.rs slides on every layer instead of every other one, so windows are off in both for `gemma2`.
//! - gemma2.rs and gemma3.rs scale scores by `head_dim`, whatever `query_pre_attn_scalar` is, so in both it is
//!   set to `head_dim` here.
//! - gemma3.rs knows no `rope_scaling`, so there is none here. Its cache refuses more than one token at a time
//!   with more than one key-value head ("slice-set only supports contiguous tensors", of the transposed
//!   values), so it gets them one by one; then its ring of `sliding_window` keys is the window, with no mask.
//!
//! Changed configs keep the reference's weights: both implementations read the same changed numbers.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use bayesteach::model::config::ModelConfig;
use bayesteach::model::decoder::{Decoder, Keep, Tokens};
use bayesteach::rng;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma, gemma2, gemma3, llama, qwen2, qwen3};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

struct Witness {
    name: &'static str,
    dir: PathBuf,
    json: Value,
}

impl Witness {
    /// The reference `name` with some values of its config replaced.
    fn new(name: &'static str, changes: &Value) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference").join(name);
        let json = bayesteach::files::read_json(&dir.join("config.json")).unwrap();
        Self { name, dir, json: changed(json, changes) }
    }

    /// candle-transformers' config struct, from the same values and `changes`.
    fn config<C: DeserializeOwned>(&self, changes: &Value) -> C {
        serde_json::from_value(changed(self.json.clone(), changes)).unwrap()
    }

    fn weights(&self) -> VarBuilder<'static> {
        let tensors =
            candle_core::safetensors::load(self.dir.join("model.safetensors"), &Device::Cpu).unwrap();
        VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
    }

    /// `theirs` gives the logits after the last of the tokens (1, T).
    fn agrees(&self, mut theirs: impl FnMut(&Tensor) -> candle_core::Result<Tensor>) {
        let config = ModelConfig::parse(&self.json).unwrap();
        let model = Decoder::load(&self.dir, &config, DType::F32, &Device::Cpu).unwrap();
        let mut s = rng::stream(0, "witness", 0);
        for length in [1, 2, 6, 7, 8, 17, 63, 64, 65, 120] {
            let ids: Vec<u32> = (0..length).map(|_| s.below(config.vocab_size) as u32).collect();
            let want = theirs(&Tensor::new(&ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap());
            let want: Vec<f32> = want.unwrap().flatten_all().unwrap().to_vec1().unwrap();

            let positions: Vec<u32> = (0..length).collect();
            let tokens = Tokens { input_ids: &ids, positions: &positions, boundaries: &[0, length] };
            let run = model.run(tokens, None).unwrap();
            let (hidden, _) = model.forward(&run, Keep::Nothing).unwrap();
            let last = hidden.narrow(0, length as usize - 1, 1).unwrap();
            let got: Vec<f32> = model.logits(&last).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(got.len(), want.len());
            for (a, b) in got.iter().zip(&want) {
                assert!((a - b).abs() <= 1e-4, "{} over {length} tokens: {a}, not {b}", self.name);
            }
        }
    }
}

fn changed(mut json: Value, changes: &Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    json
}

fn llama_agrees(changes: &Value) {
    let witness = Witness::new("llama", changes);
    let config = witness.config::<llama::LlamaConfig>(&json!({})).into_config(false);
    let model = llama::Llama::load(witness.weights(), &config).unwrap();
    witness.agrees(|ids| {
        let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
        model.forward(ids, 0, &mut cache)
    });
}

#[test]
fn llama_as_it_is() {
    llama_agrees(&json!({}));
}

#[test]
fn llama_with_scaled_rope() {
    llama_agrees(&json!({ "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }}));
}

fn qwen2_agrees(ours: &Value, theirs: &Value) {
    let witness = Witness::new("qwen2", ours);
    let config: qwen2::Config = witness.config(theirs);
    let mut model = qwen2::ModelForCausalLM::new(&config, witness.weights()).unwrap();
    witness.agrees(|ids| {
        model.clear_kv_cache();
        model.forward(ids, 0)
    });
}

#[test]
fn qwen2_as_it_is() {
    qwen2_agrees(&json!({}), &json!({ "sliding_window": 1_000 }));
}

#[test]
fn qwen2_with_a_window() {
    let ours = json!({ "use_sliding_window": true, "sliding_window": 7, "max_window_layers": 0 });
    qwen2_agrees(&ours, &json!({ "sliding_window": 6 }));
}

#[test]
fn qwen3_as_it_is() {
    let witness = Witness::new("qwen3", &json!({}));
    let config: qwen3::Config = witness.config(&json!({ "rope_theta": 1_000_000.0 }));
    let mut model = qwen3::ModelForCausalLM::new(&config, witness.weights()).unwrap();
    witness.agrees(|ids| {
        model.clear_kv_cache();
        model.forward(ids, 0)
    });
}

#[test]
fn gemma_with_the_tanh_gelu() {
    // "gelu" is the erf form in candle-transformers, as it is in transformers 5.17 but not in 5.23.
    let witness = Witness::new("gemma", &json!({}));
    let config: gemma::Config =
        witness.config(&json!({ "hidden_act": null, "hidden_activation": "gelu_pytorch_tanh" }));
    let mut model = gemma::Model::new(false, &config, witness.weights()).unwrap();
    witness.agrees(|ids| {
        model.clear_kv_cache();
        model.forward(ids, 0)
    });
}

#[test]
fn gemma2_with_soft_caps() {
    let witness = Witness::new("gemma2", &json!({ "query_pre_attn_scalar": 12, "sliding_window": 1_000 }));
    let config: gemma2::Config = witness.config(&json!({ "rope_theta": 10_000.0 }));
    let mut model = gemma2::Model::new(false, &config, witness.weights()).unwrap();
    witness.agrees(|ids| {
        model.clear_kv_cache();
        model.forward(ids, 0)
    });
}

#[test]
fn gemma3_with_windows() {
    let witness = Witness::new("gemma3_text", &json!({ "query_pre_attn_scalar": 16, "rope_scaling": null }));
    let config: gemma3::Config = witness.config(&json!({}));
    let mut model = gemma3::Model::new(false, &config, witness.weights()).unwrap();
    witness.agrees(|ids| {
        model.clear_kv_cache();
        let last = ids.dim(1)? - 1;
        for i in 0..last {
            model.forward(&ids.narrow(1, i, 1)?, i)?;
        }
        model.forward(&ids.narrow(1, last, 1)?, last)
    });
}
