//! Exports: every format of every family, read back by another reader than the writer's and compared with base and
//! adapter; hostile inputs. `scripts/check-exports.sh` does the same in the programs that the formats are for.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bayesteach::export::card::Card;
use bayesteach::export::gguf::{self, Options, Quantization};
use bayesteach::export::{Adapted, Exported, Subject, merged, mlx, peft as peft_export};
use bayesteach::model::adapter::Adapter;
use bayesteach::model::config::{Family, ModelConfig};
use bayesteach::model::decoder::{Decoder, Keep, Tokens};
use bayesteach::model::lora::Lora;
use bayesteach::model::peft::PeftConfig;
use bayesteach::model::{lora, peft, tensors};
use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device, Tensor};
use common::gguf::{flat, hub_name, largest_difference, read_gguf, unpermute};
use common::{Place, repository};
use serde_json::json;

const FAMILIES: [&str; 9] =
    ["llama", "llama3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3", "qwen3_moe"];

/// A reference model and its adapter, and a place to export to.
struct Case {
    base: PathBuf,
    model: ModelConfig,
    adapted: Adapted,
    card: Card,
    place: tempfile::TempDir,
}

impl Case {
    fn new(name: &str) -> Self {
        let base = repository("tests/data/reference").join(name);
        let model = ModelConfig::load(&base).unwrap();
        let (config, adapter) = peft::read(&base.join("adapter"), &model).unwrap();
        let card = Card { title: name.into(), base: name.into(), ..Card::default() };
        Self { base, model, adapted: Adapted { config, adapter }, card, place: tempfile::tempdir().unwrap() }
    }

    fn lora(&self) -> &Lora {
        self.adapted.adapter.lora().unwrap()
    }

    fn lora_mut(&mut self) -> &mut Lora {
        match &mut self.adapted.adapter {
            Adapter::Lora(lora) => lora,
            Adapter::Prefix(_) => panic!("a soft prompt"),
        }
    }

    fn is_rank_stabilised(&self) -> bool {
        matches!(&self.adapted.config, PeftConfig::Lora(lora) if lora.use_rslora)
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            base: &self.base,
            base_name: "org/base",
            gguf: None,
            model: &self.model,
            adapter: Some(&self.adapted),
            pipeline: None,
            card: &self.card,
        }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn gguf(&self, quantization: Quantization, out: &Path) -> anyhow::Result<Exported> {
        gguf::export(&self.subject(), Options { quantization, pre_tokenizer: None }, out, &|_, _| {})
    }

    /// The base's weights in f32 by hub name below the root (and `lm_head.weight`), with the adapter's part added, as
    /// plain loops compute it.
    fn merged(&self) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let decoder = Decoder::load(&self.base, &self.model, DType::F32, &Device::Cpu).unwrap();
        let root = format!("{}.", lora::root(&self.model));
        let mut merged = BTreeMap::new();
        for (name, tensor) in decoder.parameters() {
            let shape = tensor.dims().to_vec();
            let mut values = flat(&tensor);
            if let Some(module) = self.lora().modules.get(name.trim_end_matches(".weight")) {
                let (a, b) = (flat(&module.a), flat(&module.b));
                let (d_out, d_in, r) = (shape[0], shape[1], module.a.dim(0).unwrap());
                for row in 0..d_out {
                    for column in 0..d_in {
                        let terms =
                            (0..r).map(|k| f64::from(b[row * r + k]) * f64::from(a[k * d_in + column]));
                        values[row * d_in + column] += (module.scale * terms.sum::<f64>()) as f32;
                    }
                }
            }
            merged.insert(name.trim_start_matches(&root).to_string(), (shape, values));
        }
        merged
    }
}

/// Logits of some tokens in f32.
fn logits(dir: &Path, adapter: Option<&Adapted>) -> Vec<f32> {
    let config = ModelConfig::load(dir).unwrap();
    let mut decoder = Decoder::load(dir, &config, DType::F32, &Device::Cpu).unwrap();
    decoder.set_adapter(adapter.map(|a| &a.adapter)).unwrap();
    let input_ids: Vec<u32> = (0..20).map(|i| i * 37 % config.vocab_size as u32).collect();
    let positions: Vec<u32> = (0..20).collect();
    let tokens = Tokens { input_ids: &input_ids, positions: &positions, boundaries: &[0, 20] };
    let run = decoder.run(tokens, None).unwrap();
    let (hidden, _) = decoder.forward(&run, Keep::Nothing).unwrap();
    flat(&decoder.logits(&hidden).unwrap())
}

/// |a − b| / |a|
fn relative_change(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    squares(&mut a.iter().zip(b).map(|(x, y)| f64::from(*x) - f64::from(*y)))
        / squares(&mut a.iter().map(|x| f64::from(*x)))
}

#[test]
fn merged_weights_compute_what_base_and_adapter_do() {
    for name in FAMILIES {
        let case = Case::new(name);
        let with_adapter = logits(&case.base, Some(&case.adapted));
        // One file, and one tensor a file.
        for (out, size) in [("whole", merged::MAX_SHARD_SIZE), ("sharded", 1)] {
            let out = case.out(out);
            let exported = merged::export(&case.subject(), size, &out, &|_, _| {}).unwrap();
            assert!(exported.load.contains(&out.display().to_string()));
            // Rounding to what the base is stored as costs what `fidelity.md` says.
            let tolerance = match stored_dtype(&case.base) {
                DType::F32 => 1e-4,
                DType::F16 => 0.03,
                _ => 0.3,
            };
            let difference = largest_difference(&logits(&out, None), &with_adapter);
            assert!(difference < tolerance, "{name}: {difference}");
            assert_eq!(out.join("model.safetensors.index.json").exists(), size == 1);
            let (found, base) = (all_tensors(&out), all_tensors(&case.base));
            let list = |tensors: &BTreeMap<String, Tensor>| -> Vec<_> {
                tensors.iter().map(|(n, t)| (n.clone(), t.dims().to_vec(), t.dtype())).collect()
            };
            assert_eq!(list(&found), list(&base), "{name}");
            let changed = found.iter().filter(|(n, t)| flat(t) != flat(&base[*n])).count();
            assert_eq!(changed, case.lora().modules.len(), "{name}");
            let config = |dir: &Path| std::fs::read(dir.join("config.json")).unwrap();
            assert_eq!(config(&out), config(&case.base));
        }
    }
}

fn all_tensors(dir: &Path) -> BTreeMap<String, Tensor> {
    let files = bayesteach::model::loading::weight_files(dir).unwrap();
    files.iter().flat_map(|file| tensors::read(file).unwrap()).collect()
}

fn stored_dtype(dir: &Path) -> DType {
    all_tensors(dir).values().next().unwrap().dtype()
}

#[test]
fn gguf_holds_the_merged_weights_as_llama_cpp_wants_them() {
    // Relative root mean square of rounding to 11 and 8 bits and to blocks of 8 bits.
    let formats = [
        (Quantization::F32, 1e-6),
        (Quantization::F16, 3e-4),
        (Quantization::Bf16, 3e-3),
        (Quantization::Q8_0, 1e-2),
    ];
    for name in FAMILIES {
        let case = Case::new(name);
        let merged = case.merged();
        let gemma = matches!(case.model.family, Family::Gemma | Family::Gemma2 | Family::Gemma3);
        for (quantization, precision) in formats {
            let out = case.out(&format!("{quantization:?}"));
            case.gguf(quantization, &out).unwrap();
            let (metadata, tensors) = read_gguf(&out.join(gguf::MODEL_FILE));
            let mut left: Vec<&String> = merged.keys().collect();
            for (tensor_name, tensor) in tensors.iter().filter(|(n, _)| *n != "rope_freqs.weight") {
                let hub = hub_name(tensor_name, &case.model);
                left.retain(|n| **n != hub);
                let (shape, meant) = &merged[&hub];
                assert_eq!(tensor.dims(), shape, "{name} {tensor_name}");
                let mut found = flat(tensor);
                let columns = shape.get(1).copied().unwrap_or(1);
                if case.model.family == Family::Llama && hub.contains("q_proj") {
                    found = unpermute(&found, case.model.num_attention_heads, columns);
                } else if case.model.family == Family::Llama && hub.contains("k_proj") {
                    found = unpermute(&found, case.model.num_key_value_heads, columns);
                }
                let one = if gemma && hub.ends_with("norm.weight") { 1.0 } else { 0.0 };
                // What llama.cpp scales attention by too much is taken out of q's norm, or of q.
                let folded = match case.model.family {
                    Family::Gemma3 => hub.ends_with("q_norm.weight"),
                    Family::Gemma2 => hub.ends_with("q_proj.weight"),
                    _ => false,
                };
                let factor = match folded {
                    true => case.model.attention_scale * (case.model.head_dim as f64).sqrt(),
                    false => 1.0,
                };
                let meant: Vec<f32> = meant.iter().map(|v| (f64::from(v + one) * factor) as f32).collect();
                let change = relative_change(&meant, &found);
                let is_rounded = shape.len() == 2 && !hub.ends_with("mlp.gate.weight");
                let allowed = if is_rounded { precision } else { 1e-6 };
                assert!(change <= allowed, "{name} {quantization:?} {tensor_name}: {change}");
            }
            assert!(left.is_empty(), "{name}: {left:?} are not in the file");
            check_metadata(name, &case.model, &metadata);
        }
    }
}

fn check_metadata(name: &str, model: &ModelConfig, metadata: &BTreeMap<String, Value>) {
    let architecture = match name {
        "llama3" => "llama",
        "gemma3_text" => "gemma3",
        "qwen3_moe" => "qwen3moe",
        other => other,
    };
    let text = |key: &str| metadata[key].to_string().unwrap().as_str();
    let number = |key: &str| metadata[&format!("{architecture}.{key}")].to_u32().unwrap() as usize;
    assert_eq!(text("general.architecture"), architecture);
    assert_eq!(text("tokenizer.ggml.model"), "no_vocab");
    assert_eq!(number("block_count"), model.num_layers());
    assert_eq!(number("attention.head_count"), model.num_attention_heads);
    assert_eq!(number("attention.head_count_kv"), model.num_key_value_heads);
    assert_eq!(number("attention.key_length"), model.head_dim);
    assert_eq!(number("vocab_size"), model.vocab_size);
    match model.routing {
        Some(routing) => {
            assert_eq!(
                (number("expert_count"), number("expert_used_count")),
                (routing.experts, routing.per_token)
            );
            assert_eq!(number("expert_feed_forward_length"), model.intermediate_size);
        }
        None => assert_eq!(number("feed_forward_length"), model.intermediate_size),
    }
}

#[test]
fn llama_3s_rope_scaling_is_a_tensor_of_divisors() {
    let case = Case::new("llama3");
    case.gguf(Quantization::F32, &case.out("gguf")).unwrap();
    let (_, tensors) = read_gguf(&case.out("gguf").join(gguf::MODEL_FILE));
    // By the formula of Llama 3.1: config.json has factor 8, 1 and 4, and 128 original positions; heads of 16.
    let expected: Vec<f32> = (0..8)
        .map(|i| {
            let wavelength = std::f64::consts::TAU * 10000f64.powf(f64::from(i) / 8.0);
            let smooth = (128.0 / wavelength - 1.0) / (4.0 - 1.0);
            let smooth = f64::clamp(smooth, 0.0, 1.0);
            (1.0 / ((1.0 - smooth) / 8.0 + smooth)) as f32
        })
        .collect();
    assert!(largest_difference(&flat(&tensors["rope_freqs.weight"]), &expected) < 1e-5);
    assert!(expected.contains(&8.0) && expected.contains(&1.0));
}

#[test]
fn linear_rope_scaling_and_sliding_layers_of_gemma_3_are_said() {
    let case = Case::new("gemma3");
    let exported = case.gguf(Quantization::F32, &case.out("gguf")).unwrap();
    let (metadata, _) = read_gguf(&case.out("gguf").join(gguf::MODEL_FILE));
    assert_eq!(metadata["gemma3.rope.scaling.type"].to_string().unwrap(), "linear");
    assert_eq!(metadata["gemma3.rope.scaling.factor"].to_f32().unwrap(), 8.0);
    assert_eq!(metadata["gemma3.rope.freq_base"].to_f32().unwrap(), 1e6);
    assert_eq!(metadata["gemma3.rope.freq_base_swa"].to_f32().unwrap(), 1e4);
    assert_eq!(metadata["gemma3.attention.sliding_window"].to_u32().unwrap(), 6);
    // Every sixth layer is global, which llama.cpp knows.
    assert!(!metadata.contains_key("gemma3.attention.sliding_window_pattern"));
    let said = exported.notes.join("\n");
    assert!(said.contains("query_pre_attn_scalar") && said.contains("vision tower"), "{said}");
}

#[test]
fn gguf_adapters_give_the_same_product() {
    for name in ["llama", "llama3", "qwen2", "qwen3", "gemma", "qwen3_moe"] {
        let mut case = Case::new(name);
        // One linear with a scale and one with a rank of its own, as PEFT's patterns make them.
        let scaled = lora::module_path(&case.model, 0, "q_proj");
        case.lora_mut().modules.get_mut(&scaled).unwrap().scale *= 3.0;
        let path = lora::module_path(&case.model, 0, "o_proj");
        let narrow = case.lora_mut().modules.get_mut(&path).unwrap();
        narrow.a = narrow.a.narrow(0, 0, 2).unwrap().contiguous().unwrap();
        narrow.b = narrow.b.narrow(1, 0, 2).unwrap().contiguous().unwrap();
        let out = case.out("adapter");
        gguf::lora::export(&case.subject(), &out).unwrap();
        let (metadata, tensors) = read_gguf(&out.join(gguf::lora::ADAPTER_FILE));
        assert_eq!(metadata["general.type"].to_string().unwrap(), "adapter");
        assert_eq!(metadata["adapter.type"].to_string().unwrap(), "lora");
        let alpha = f64::from(metadata["adapter.lora.alpha"].to_f32().unwrap());
        assert_eq!(tensors.len(), 2 * case.lora().modules.len());
        for (tensor_name, a) in tensors.iter().filter(|(n, _)| n.ends_with(".lora_a")) {
            let weight = tensor_name.trim_end_matches(".lora_a");
            let b = &tensors[&format!("{weight}.lora_b")];
            // llama.cpp's scale.
            let product = (b.matmul(a).unwrap() * (alpha / a.dim(0).unwrap() as f64)).unwrap();
            let path = format!("{}.{}", lora::root(&case.model), hub_name(weight, &case.model));
            let module = &case.lora().modules[path.trim_end_matches(".weight")];
            let meant = (module.b.matmul(&module.a).unwrap() * module.scale).unwrap();
            let mut found = flat(&product);
            let heads = match weight {
                w if w.contains("attn_q.") => case.model.num_attention_heads,
                w if w.contains("attn_k.") => case.model.num_key_value_heads,
                _ => 0,
            };
            if case.model.family == Family::Llama && heads > 0 {
                found = unpermute(&found, heads, meant.dim(1).unwrap());
            }
            assert!(relative_change(&flat(&meant), &found) < 1e-6, "{name} {tensor_name}");
        }
    }
}

#[test]
fn rank_stabilised_scale_goes_into_alpha() {
    let mut case = Case::new("qwen2");
    let PeftConfig::Lora(config) = &mut case.adapted.config else { panic!("a soft prompt") };
    config.use_rslora = true;
    for module in case.lora_mut().modules.values_mut() {
        module.scale = 5.0 / 3f64.sqrt();
    }
    gguf::lora::export(&case.subject(), &case.out("adapter")).unwrap();
    let (metadata, _) = read_gguf(&case.out("adapter").join(gguf::lora::ADAPTER_FILE));
    let alpha = metadata["adapter.lora.alpha"].to_f32().unwrap();
    assert!((alpha - 5.0 * 3f32.sqrt()).abs() < 1e-6, "{alpha}");
}

#[test]
fn mlx_adapters_are_transposed() {
    for name in FAMILIES {
        let case = Case::new(name);
        let out = case.out("mlx");
        mlx::export(&case.subject(), DType::F32, &out).unwrap();
        let config: serde_json::Value = bayesteach::files::read_json(&out.join(mlx::CONFIG_FILE)).unwrap();
        assert_eq!(config["fine_tune_type"], "lora");
        assert_eq!(config["num_layers"], case.model.num_layers());
        let parameters = &config["lora_parameters"];
        // alpha 5 and rank 3 in all of them, rank-stabilised in some.
        let scale = 5.0 / if case.is_rank_stabilised() { 3f64.sqrt() } else { 3.0 };
        assert_eq!((parameters["rank"].as_u64(), parameters["scale"].as_f64()), (Some(3), Some(scale)));
        let linears = lora::linears(&case.model).len();
        assert_eq!(parameters["keys"].as_array().unwrap().len(), linears);
        assert!(parameters["keys"].as_array().unwrap().contains(&json!("self_attn.q_proj")));
        let tensors = tensors::read(&out.join(mlx::TENSORS_FILE)).unwrap();
        assert_eq!(tensors.len(), 2 * case.lora().modules.len());
        for (path, module) in &case.lora().modules {
            let path = path.replace("model.language_model.", "language_model.model.");
            for (half, meant) in [("lora_a", &module.a), ("lora_b", &module.b)] {
                let found = &tensors[&format!("{path}.{half}")];
                let (rows, columns) = meant.dims2().unwrap();
                assert_eq!(found.dims(), [columns, rows]);
                let (found, meant) = (flat(found), flat(meant));
                let same = |i: usize| found[i % columns * rows + i / columns] == meant[i];
                assert!((0..meant.len()).all(same), "{name} {path}.{half}");
            }
        }
    }
}

#[test]
fn mlx_keeps_scales_of_their_own_in_b_and_refuses_ranks_of_their_own() {
    let mut case = Case::new("llama");
    let path = lora::module_path(&case.model, 1, "v_proj");
    case.lora_mut().modules.get_mut(&path).unwrap().scale *= 2.0;
    mlx::export(&case.subject(), DType::F32, &case.out("mlx")).unwrap();
    let tensors = tensors::read(&case.out("mlx").join(mlx::TENSORS_FILE)).unwrap();
    let module = &case.lora().modules[&path];
    let doubled: Vec<f32> = flat(&module.b.t().unwrap()).iter().map(|v| v * 2.0).collect();
    assert_eq!(flat(&tensors[&format!("{path}.lora_b")]), doubled);

    let module = case.lora_mut().modules.get_mut(&path).unwrap();
    module.a = module.a.narrow(0, 0, 2).unwrap();
    module.b = module.b.narrow(1, 0, 2).unwrap();
    let error = mlx::export(&case.subject(), DType::F32, &case.out("refused")).unwrap_err().to_string();
    assert!(error.contains("one rank"), "{error}");
    assert!(!case.out("refused").exists());
}

#[test]
fn peft_adapters_keep_their_values_or_round_to_bf16() {
    for name in FAMILIES {
        let case = Case::new(name);
        for dtype in [DType::F32, DType::BF16] {
            let out = case.out(&format!("{dtype:?}"));
            peft_export::export(&case.subject(), dtype, &out).unwrap();
            let stored = tensors::read(&out.join(peft::TENSORS_FILE)).unwrap();
            assert!(stored.values().all(|t| t.dtype() == dtype));
            let (_, written) = peft::read(&out, &case.model).unwrap();
            for (name, tensor) in case.adapted.adapter.tensors() {
                assert_eq!(flat(&written.tensors()[&name]), flat(&tensor.to_dtype(dtype).unwrap()));
            }
        }
    }
}

/// 256 columns, so that the blocks of q4_k fit.
#[test]
fn q4_k_keeps_the_weights_to_four_bits_and_the_vocabulary_to_six() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 256,
        "intermediate_size": 320, "num_hidden_layers": 1, "num_attention_heads": 4, "tie_word_embeddings": true,
    });
    bayesteach::files::write_json(&dir.path().join("config.json"), &config).unwrap();
    let model = ModelConfig::load(dir.path()).unwrap();
    let decoder = Decoder::random(&model, 3, DType::F32, &Device::Cpu).unwrap();
    tensors::write(&dir.path().join("model.safetensors"), &decoder.parameters()).unwrap();
    let card = Card::default();
    let subject = Subject {
        base: dir.path(),
        base_name: "wide",
        gguf: None,
        model: &model,
        adapter: None,
        pipeline: None,
        card: &card,
    };
    let out = dir.path().join("gguf");
    let options = Options { quantization: Quantization::Q4K, pre_tokenizer: None };
    let exported = gguf::export(&subject, options, &out, &|_, _| {}).unwrap();
    // The rows of down_proj are 320 wide.
    assert!(exported.notes.iter().any(|note| note.starts_with("1 tensors")), "{:?}", exported.notes);
    let (_, tensors) = read_gguf(&out.join(gguf::MODEL_FILE));
    let original = decoder.parameters();
    // 4 bits over a block's range of about ±2.5 standard deviations: a step of a third, an error of a tenth at most.
    for (name, hub, low, high) in [
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight", 0.03, 0.1),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight", 1e-3, 0.01),
        ("token_embd.weight", "model.embed_tokens.weight", 5e-3, 0.03),
    ] {
        let change = relative_change(&flat(&original[hub]), &flat(&tensors[name]));
        assert!((low..high).contains(&change), "{name}: {change}");
    }
}

#[test]
fn what_llama_cpp_cannot_compute_is_refused_by_name() {
    let refused = |name: &str, change: &dyn Fn(&mut ModelConfig)| {
        let mut case = Case::new(name);
        change(&mut case.model);
        let error = case.gguf(Quantization::F32, &case.out("out")).unwrap_err();
        assert!(!case.out("out").exists() && std::fs::read_dir(case.place.path()).unwrap().next().is_none());
        format!("{error:#}")
    };
    let has = |error: String, part: &str| assert!(error.contains(part), "{error}");
    has(refused("qwen2", &|m| m.layers[0].window = Some(4)), "sliding window");
    has(refused("gemma2", &|m| m.attention_softcap = None), "caps the attention scores");
    has(refused("gemma2", &|m| m.final_softcap = None), "final_logit_softcapping");
    has(refused("gemma", &|m| m.tie_word_embeddings = false), "head of its own");
    has(refused("qwen3", &|m| m.o_bias = true), "no bias");
    has(refused("qwen3", &|m| m.inv_freq[0][2] *= 0.5), "rotary frequencies");
    has(refused("gemma3", &|m| m.inv_freq[1][2] *= 0.5), "rotary frequencies");
    // An adapter alone cannot make up for a base that llama.cpp computes otherwise.
    let case = Case::new("gemma2");
    let error = gguf::lora::export(&case.subject(), &case.out("out")).unwrap_err().to_string();
    has(error, "query_pre_attn_scalar");
}

#[test]
fn adapters_that_do_not_fit_leave_nothing() {
    for out in ["merged", "gguf"] {
        let mut case = Case::new("llama");
        let other = Case::new("qwen3");
        let module = other.lora().modules[&lora::module_path(&other.model, 0, "q_proj")].clone();
        case.lora_mut().modules.insert("model.layers.9.self_attn.q_proj".into(), module);
        let path = lora::module_path(&case.model, 0, "o_proj");
        case.lora_mut().modules.get_mut(&path).unwrap().b =
            Tensor::zeros((5, 3), DType::F32, &Device::Cpu).unwrap();
        let path = case.out(out);
        let error = match out {
            "merged" => merged::export(&case.subject(), 1 << 30, &path, &|_, _| {}).unwrap_err(),
            _ => case.gguf(Quantization::F32, &path).unwrap_err(),
        };
        let error = format!("{error:#}");
        assert!(error.contains("self_attn"), "{error}");
        assert!(std::fs::read_dir(case.place.path()).unwrap().next().is_none(), "something was left");
    }
}

#[test]
fn f16_that_overflows_is_refused() {
    let mut case = Case::new("llama");
    for module in case.lora_mut().modules.values_mut() {
        module.scale = 1e8;
    }
    let error = format!("{:#}", case.gguf(Quantization::F16, &case.out("out")).unwrap_err());
    assert!(error.contains("f16") && error.contains("--quantization"), "{error}");
    assert!(!case.out("out").exists());
}

#[test]
fn cards_say_what_there_is_and_escape_fences() {
    let card = Card {
        title: "a\nb".into(),
        base: "org/base".into(),
        base_on_hub: true,
        revision: Some("abc".into()),
        facts: vec![("loss".into(), "kl".into())],
        evaluation: Some("| a |".into()),
        config: Some("x = \"\"\"\n```\n\"\"\"".into()),
    };
    let text = card.render(bayesteach::export::card::Kind::Mlx, "load it", &["mind this".into()]);
    for part in [
        "---\nlibrary_name: mlx\nbase_model: org/base\nbase_model_relation: adapter\n",
        "# a b\n",
        "- base: org/base\n- revision of the base: abc\n- loss: kl\n",
        "```\nload it\n```\n",
        "- mind this\n",
        "## Evaluation\n\n| a |\n",
        "````toml\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

/// The command: a run's adapter in every format, its card, and what is refused.
#[test]
fn the_command_exports_a_run() {
    let place = Place::new();
    place.ok("run c.toml --set train.max_steps=2 --set train.eval_every=0");
    for (format, file) in [
        ("peft", "adapter_model.safetensors"),
        ("merged", "model.safetensors"),
        ("gguf-lora", "adapter.gguf"),
        ("mlx", "adapters.safetensors"),
    ] {
        let said = place.ok(&format!("export runs/a --format {format} --out out/{format}"));
        assert!(said.contains("read it back") && said.contains(&format!("out/{format}")), "{said}");
        let names = place.names(&format!("out/{format}"));
        assert!(
            names.contains(&file.to_string()) && names.contains(&"chat_template.jinja".into()),
            "{names:?}"
        );
        let card = std::fs::read_to_string(place.path(&format!("out/{format}/README.md"))).unwrap();
        for part in ["world = personality", "kind = kl", "accuracy", "fine-tuned", "[optimizer]"] {
            assert!(card.contains(part), "{format}: the card does not say {part:?}: {card}");
        }
    }
    // The shipped base's tokenizer cuts words by a rule that llama.cpp does not have.
    place.fails("export runs/a --format gguf --out out/gguf", 2, &["--pre-tokenizer", "\\\\p{L}"]);
    place.ok("export runs/a --format gguf --pre-tokenizer gpt-2 --out out/gguf");
    place.ok("export runs/a --format gguf --quantization f16 --without-tokenizer --out out/bare");
    place.ok("export base --format gguf --pre-tokenizer gpt-2 --quantization f32 --out out/base");
    let (metadata, _) = read_gguf(&place.path("out/gguf/model.gguf"));
    assert_eq!(metadata["tokenizer.ggml.pre"].to_string().unwrap(), "gpt-2");
    assert_eq!(metadata["tokenizer.ggml.eos_token_id"].to_u32().unwrap(), 2);
    let tokens = metadata["tokenizer.ggml.tokens"].to_vec().unwrap();
    assert_eq!(tokens[2].to_string().unwrap(), "<|end|>");
    assert_eq!(metadata["tokenizer.ggml.token_type"].to_vec().unwrap()[2].to_i32().unwrap(), 3);

    // The exported adapter exports again, and the merged model computes what base and adapter do.
    place.ok("export out/peft --model base --format merged --max-shard-size 20KB --out out/again");
    place.write("ids.jsonl", "{\"input_ids\": [1, 3, 60, 70, 2]}\n");
    place.ok("logits --model base --adapter runs/a/adapter --input ids.jsonl --out a.safetensors");
    place.ok("logits --model out/again --input ids.jsonl --out b.safetensors");
    let read = |name: &str| flat(&tensors::read(&place.path(name)).unwrap()["0"]);
    assert!(largest_difference(&read("a.safetensors"), &read("b.safetensors")) < 1e-4);

    // A run that trained all weights is a whole model.
    place.ok("train c.toml --set run.name=w --set train.weights=all --set train.max_steps=1");
    place.ok("export runs/w --format gguf --quantization f32 --without-tokenizer --out out/whole");
    let (_, found) = read_gguf(&place.path("out/whole/model.gguf"));
    let trained = all_tensors(&place.path("runs/w/model"));
    assert_eq!(flat(&found["token_embd.weight"]), flat(&trained["model.embed_tokens.weight"]));

    let before = place.names("out").len();
    for (words, code, parts) in [
        ("export runs/a --format gguf --out out/gguf", 2, &["out/gguf exists already"][..]),
        ("export runs/a --format gguf --dtype bf16 --out out/x", 2, &["--dtype", "peft and mlx"]),
        ("export runs/a --format peft --quantization f16 --out out/x", 2, &["--quantization", "gguf"]),
        ("export runs/a --format merged --max-shard-size much --out out/x", 2, &["much", "5GB"]),
        ("export base --format merged --out out/x", 2, &["whole model", "gguf"]),
        ("export base --format gguf --model base --out out/x", 2, &["--model is for adapters"]),
        ("export out/gguf --format gguf --out out/x", 1, &["neither an adapter"]),
        ("export runs/a --model nowhere --format merged --out out/x", 2, &["\"nowhere\"", "--model"]),
    ] {
        place.fails(words, code, parts);
    }
    // Another base of the same shape: the run knows its own by its fingerprint.
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        place.write(&format!("other/{file}"), std::fs::read(place.path(&format!("base/{file}"))).unwrap());
    }
    let config = ModelConfig::load(&place.path("base")).unwrap();
    let other = Decoder::random(&config, 9, DType::F32, &Device::Cpu).unwrap();
    tensors::write(&place.path("other/model.safetensors"), &other.parameters()).unwrap();
    place.fails("export runs/a --model other --format merged --out out/x", 2, &["trained on", "fingerprint"]);
    // Damaged weights, and weights that are cut short.
    let weights = std::fs::read(place.path("base/model.safetensors")).unwrap();
    place.write("other/model.safetensors", &weights[..weights.len() / 2]);
    place.fails(
        "export out/peft --model other --format merged --out out/x",
        1,
        &["model.safetensors is damaged"],
    );
    place.write("other/tokenizer.json", "{}");
    place.write("other/model.safetensors", &weights);
    place.fails("export out/peft --model other --format gguf --out out/x", 1, &["tokenizer.json"]);
    std::fs::remove_file(place.path("other/model.safetensors")).unwrap();
    place.fails("export out/peft --model other --format merged --out out/x", 1, &["model.safetensors"]);
    assert_eq!(place.names("out").len(), before, "a refused export left something");
}

#[test]
fn tokenizers_become_vocabularies() {
    for (name, family, model, pre) in [
        ("llama2", "llama", "llama", "default"),
        ("gemma", "gemma", "llama", "default"),
        ("llama3", "llama", "gpt2", "llama-bpe"),
        ("qwen2", "qwen2", "gpt2", "qwen2"),
        ("qwen3", "qwen3", "gpt2", "qwen2"),
    ] {
        let place = Place::new();
        let (source, reference) = (repository("tests/data/tokenizers").join(name), Case::new(family));
        for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
            if source.join(file).exists() {
                place.write(&format!("m/{file}"), std::fs::read(source.join(file)).unwrap());
            }
        }
        let mut config: serde_json::Value =
            bayesteach::files::read_json(&reference.base.join("config.json")).unwrap();
        config["vocab_size"] = json!(600);
        bayesteach::files::write_json(&place.path("m/config.json"), &config).unwrap();
        let config = ModelConfig::load(&place.path("m")).unwrap();
        let decoder = Decoder::random(&config, 1, DType::F32, &Device::Cpu).unwrap();
        tensors::write(&place.path("m/model.safetensors"), &decoder.parameters()).unwrap();
        place.ok("export m --format gguf --quantization f32 --out out");
        let (metadata, _) = read_gguf(&place.path("out/model.gguf"));
        let text = |key: &str| metadata[key].to_string().unwrap().clone();
        assert_eq!((text("tokenizer.ggml.model"), text("tokenizer.ggml.pre")), (model.into(), pre.into()));
        let json: serde_json::Value = bayesteach::files::read_json(&source.join("tokenizer.json")).unwrap();
        let tokens = metadata["tokenizer.ggml.tokens"].to_vec().unwrap();
        let types = metadata["tokenizer.ggml.token_type"].to_vec().unwrap();
        assert_eq!((tokens.len(), types.len()), (600, 600));
        for (token, id) in json["model"]["vocab"].as_object().unwrap() {
            assert_eq!(tokens[id.as_u64().unwrap() as usize].to_string().unwrap(), token);
        }
        for added in json["added_tokens"].as_array().unwrap() {
            let kind = types[added["id"].as_u64().unwrap() as usize].to_i32().unwrap();
            let expected: &[i32] = if added["special"] == true { &[2, 3] } else { &[4] };
            assert!(expected.contains(&kind), "{name}: {added} has type {kind}");
        }
        assert_eq!(types[599].to_i32().unwrap(), 5, "a row without a token");
        assert!(!text("tokenizer.chat_template").is_empty());
        match model {
            "gpt2" => {
                let merges = metadata["tokenizer.ggml.merges"].to_vec().unwrap();
                assert_eq!(merges.len(), json["model"]["merges"].as_array().unwrap().len());
            }
            _ => {
                let scores = metadata["tokenizer.ggml.scores"].to_vec().unwrap();
                // Earlier merges score better.
                let merges = json["model"]["merges"].as_array().unwrap();
                let score = |i: usize| {
                    let pair = merges[i].as_array().unwrap();
                    let union = format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
                    let id = json["model"]["vocab"][&union].as_u64().unwrap() as usize;
                    scores[id].to_f32().unwrap()
                };
                assert!(score(0) > score(50) && score(50) > score(100));
                assert!(metadata["tokenizer.ggml.add_bos_token"].to_bool().unwrap());
            }
        }
    }
}
