//! GGUF files as base models: every family, floats and quantised, their tokenizers, every command that takes a model, and
//! bad files. The independent side is candle's reader with plain loops (`common::gguf`), and the models that the files
//! were made of.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bayesteach::export::Subject;
use bayesteach::export::card::Card;
use bayesteach::export::gguf::{self as export, Options, Quantization};
use bayesteach::files;
use bayesteach::model::config::ModelConfig;
use bayesteach::model::decoder::{Decoder, Keep, Tokens};
use bayesteach::model::gguf::GgufFile;
use bayesteach::model::loading::Weights;
use bayesteach::model::tensors;
use bayesteach::ops::weight::Storage;
use bayesteach::tokens::{Tokenizer, gguf as vocabulary};
use candle_core::{DType, Device, Tensor};
use common::gguf::{flat, hub_name, largest_difference, read_gguf, unpermute};
use common::{Place, repository};
use serde_json::{Value, json};

const FAMILIES: [&str; 9] =
    ["llama", "llama3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3", "qwen3_moe"];

fn export_base(base: &Path, quantization: Quantization, out: &Path) -> PathBuf {
    let model = ModelConfig::load(base).unwrap();
    let card = Card::default();
    let subject = Subject {
        base,
        base_name: "base",
        gguf: None,
        model: &model,
        adapter: None,
        pipeline: None,
        card: &card,
    };
    export::export(&subject, Options { quantization, pre_tokenizer: None }, out, &|_, _| {}).unwrap();
    out.join(export::MODEL_FILE)
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    let vocabulary = decoder.config().vocab_size as u32;
    let input_ids: Vec<u32> = (0..20).map(|i| i * 37 % vocabulary).collect();
    let positions: Vec<u32> = (0..20).collect();
    let tokens = Tokens { input_ids: &input_ids, positions: &positions, boundaries: &[0, 20] };
    let run = decoder.run(tokens, None).unwrap();
    let (hidden, _) = decoder.forward(&run, Keep::Nothing).unwrap();
    flat(&decoder.logits(&hidden).unwrap())
}

fn of_folder(dir: &Path) -> Vec<f32> {
    let config = ModelConfig::load(dir).unwrap();
    logits(&Decoder::load(dir, &config, DType::F32, &Device::Cpu).unwrap())
}

fn of_gguf(path: &Path, storage: Storage) -> Vec<f32> {
    let file = GgufFile::open(path).unwrap();
    let config = ModelConfig::parse(&file.config_json().unwrap()).unwrap();
    let weights = Weights::of_gguf(file, &config, DType::F32, &Device::Cpu).unwrap().stored_as(storage);
    logits(&Decoder::new(&weights, &config).unwrap())
}

/// The file's tensors, dequantised by candle, as a hub snapshot in f32 with the base's own config.
fn dequantised(gguf: &Path, base: &Path, dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let model = ModelConfig::load(base).unwrap();
    let mut config: Value = files::read_json(&base.join("config.json")).unwrap();
    if model.multimodal {
        let mut text = config["text_config"].clone();
        text["architectures"] = json!(["Gemma3ForCausalLM"]);
        config = text;
    }
    // The file holds q with what llama.cpp scales otherwise folded in.
    let kind = config["model_type"].as_str().unwrap();
    if kind.starts_with("gemma2") || kind.starts_with("gemma3") {
        config["query_pre_attn_scalar"] = json!(model.head_dim);
    }
    files::write_json(&dir.join("config.json"), &config).unwrap();
    let gemma = config["model_type"].as_str().unwrap().starts_with("gemma");
    let (_, found) = read_gguf(gguf);
    let mut weights = BTreeMap::new();
    for (name, tensor) in found.iter().filter(|(name, _)| *name != "rope_freqs.weight") {
        let mut values = flat(tensor);
        if config["model_type"] == "llama" && (name.contains("attn_q.") || name.contains("attn_k.")) {
            let q = name.contains("attn_q.");
            let heads = if q { model.num_attention_heads } else { model.num_key_value_heads };
            let columns = if tensor.rank() == 2 { tensor.dim(1).unwrap() } else { 1 };
            values = unpermute(&values, heads, columns);
        }
        if gemma && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|v| *v -= 1.0);
        }
        let below = hub_name(name, &model);
        let name = if below.starts_with("lm_head") { below } else { format!("model.{below}") };
        weights.insert(name, Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap());
    }
    tensors::write(&dir.join("model.safetensors"), &weights).unwrap();
}

#[test]
fn floats_of_every_family_compute_what_the_base_does() {
    for name in FAMILIES {
        let place = tempfile::tempdir().unwrap();
        let base = repository("tests/data/reference").join(name);
        let expected = of_folder(&base);
        for (quantization, tolerance) in
            [(Quantization::F32, 2e-5), (Quantization::F16, 1e-2), (Quantization::Bf16, 1e-1)]
        {
            let out = place.path().join(format!("{quantization:?}"));
            let file = export_base(&base, quantization, &out);
            let found = of_gguf(&file, Storage::Dense);
            let off = largest_difference(&expected, &found);
            assert!(off < tolerance, "{name} {quantization:?}: {off}");
            let plain = out.join("plain");
            dequantised(&file, &base, &plain);
            let off = largest_difference(&of_folder(&plain), &found);
            assert!(off < 1e-4, "{name} {quantization:?} rounded: {off}");
        }
    }
}

#[test]
fn blocks_stay_as_they_are_and_compute_what_they_stand_for() {
    for name in FAMILIES {
        let place = tempfile::tempdir().unwrap();
        let base = repository("tests/data/reference").join(name);
        let file = export_base(&base, Quantization::Q8_0, &place.path().join("q8"));
        let plain = place.path().join("plain");
        dequantised(&file, &base, &plain);
        let off = largest_difference(&of_folder(&plain), &of_gguf(&file, Storage::Dense));
        assert!(off < 1e-4, "{name}: {off}");
        // Dequantised and quantised again, whatever the blocks were.
        of_gguf(&file, Storage::Bf16);
    }
}

/// Files hold a divisor for each frequency; the settings that give them are what other programs read.
#[test]
fn rotary_settings_of_llama_3_are_found_again() {
    let place = tempfile::tempdir().unwrap();
    let base = repository("tests/data/reference/llama3");
    let file = GgufFile::open(&export_base(&base, Quantization::F32, &place.path().join("g"))).unwrap();
    let meant: Value = files::read_json(&base.join("config.json")).unwrap();
    let found = &file.config_json().unwrap()["rope_scaling"];
    for key in ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"] {
        assert_eq!(found[key].as_f64(), meant["rope_scaling"][key].as_f64(), "{key} of {found}");
    }
}

/// What the metadata of a mixture say is compared with the tensors before anything is made for each expert of each block.
#[test]
fn hostile_numbers_of_experts_and_blocks_are_refused() {
    let place = Place::new();
    with_tokenizer(&place, "qwen3", "qwen3_moe", "f32");
    place.write("ids.jsonl", "{\"input_ids\": [1, 3]}\n");
    let good = std::fs::read(place.path("gguf/model.gguf")).unwrap();
    for (key, number, part) in [
        ("qwen3moe.expert_count", 65_536u32, "expert_count is 65536"),
        ("qwen3moe.expert_count", 0, "expert_count is 0"),
        ("qwen3moe.block_count", 10_000, "block_count is 10000"),
        ("qwen3moe.expert_used_count", 0, "expert_used_count is 0"),
        ("qwen3moe.expert_used_count", 7, "num_experts_per_tok = 7 of num_experts = 6"),
        ("qwen3moe.expert_feed_forward_length", 1 << 31, "the metadata imply"),
    ] {
        let at = good.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len() + 4;
        let mut bad = good.clone();
        bad[at..at + 4].copy_from_slice(&number.to_le_bytes());
        place.write("bad.gguf", bad);
        place.fails("logits --model bad.gguf --input ids.jsonl --out l.safetensors", 1, &["bad.gguf", part]);
    }
}

/// 256 columns, which the blocks of q4_k want.
fn wide(dir: &Path, architecture: &str, model_type: &str) {
    std::fs::create_dir_all(dir).unwrap();
    let config = json!({
        "architectures": [architecture], "model_type": model_type, "vocab_size": 64, "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "query_pre_attn_scalar": 64, "sliding_window": 8, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "initializer_range": 0.08, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 256, "norm_topk_prob": true,
    });
    files::write_json(&dir.join("config.json"), &config).unwrap();
    let model = ModelConfig::load(dir).unwrap();
    let decoder = Decoder::random(&model, 3, DType::F32, &Device::Cpu).unwrap();
    tensors::write(&dir.join("model.safetensors"), &decoder.parameters()).unwrap();
}

#[test]
fn four_bit_blocks_too() {
    for (architecture, model_type) in [
        ("LlamaForCausalLM", "llama"),
        ("Qwen3ForCausalLM", "qwen3"),
        ("Qwen3MoeForCausalLM", "qwen3_moe"),
        ("Gemma2ForCausalLM", "gemma2"),
    ] {
        let place = tempfile::tempdir().unwrap();
        let base = place.path().join("base");
        wide(&base, architecture, model_type);
        let file = export_base(&base, Quantization::Q4K, &place.path().join("q4"));
        let read = GgufFile::open(&file).unwrap();
        assert_eq!(read.storage(), Storage::Q4K);
        if model_type == "llama" {
            let linears = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256);
            let rest = 64 * 256 + 5 * 256;
            // 144 bytes for 256 weights.
            assert_eq!(read.sizes().bytes(DType::F32), linears / 256 * 144 + 4 * rest);
        }
        let plain = place.path().join("plain");
        dequantised(&file, &base, &plain);
        let expected = of_folder(&plain);
        let off = largest_difference(&expected, &of_gguf(&file, Storage::Dense));
        assert!(off < 1e-4, "{model_type}: {off}");
        // Asking for the blocks that are there changes nothing, for others it does.
        let off = largest_difference(&expected, &of_gguf(&file, Storage::Q4K));
        assert!(off < 1e-4, "{model_type}: {off}");
        assert!(largest_difference(&expected, &of_gguf(&file, Storage::Q8_0)) > 1e-6);
    }
}

/// A tiny random model with one of the reference tokenizers, as a folder `m` and as a file `gguf/model.gguf`.
fn with_tokenizer(place: &Place, name: &str, family: &str, quantization: &str) {
    let source = repository("tests/data/tokenizers").join(name);
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        if source.join(file).exists() {
            place.write(&format!("m/{file}"), std::fs::read(source.join(file)).unwrap());
        }
    }
    let reference = repository("tests/data/reference").join(family).join("config.json");
    let mut config: Value = files::read_json(&reference).unwrap();
    config["vocab_size"] = json!(600);
    config["max_position_embeddings"] = json!(4096);
    files::write_json(&place.path("m/config.json"), &config).unwrap();
    let config = ModelConfig::load(&place.path("m")).unwrap();
    let decoder = Decoder::random(&config, 1, DType::F32, &Device::Cpu).unwrap();
    tensors::write(&place.path("m/model.safetensors"), &decoder.parameters()).unwrap();
    place.ok(&format!("export m --format gguf --quantization {quantization} --out gguf"));
}

/// transformers' ids (`encodings.json`) of all texts, and the same text for a dialogue.
#[test]
fn tokenizers_and_templates_come_back() {
    for (name, family) in
        [("llama2", "llama"), ("gemma", "gemma"), ("llama3", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")]
    {
        let place = Place::new();
        with_tokenizer(&place, name, family, "f32");
        let file = GgufFile::open(&place.path("gguf/model.gguf")).unwrap();
        let found = vocabulary::tokenizer_files(&file.metadata()).unwrap();
        std::fs::create_dir_all(place.path("back")).unwrap();
        files::write_json(&place.path("back/tokenizer.json"), &found.tokenizer).unwrap();
        files::write_json(&place.path("back/tokenizer_config.json"), &found.config).unwrap();
        let back = Tokenizer::load(&place.path("back")).unwrap();
        let own = Tokenizer::load(&place.path("m")).unwrap();
        let encodings: Value =
            files::read_json(&repository("tests/data/tokenizers").join(name).join("encodings.json")).unwrap();
        for encoding in encodings.as_array().unwrap() {
            let text = encoding["text"].as_str().unwrap();
            let expected: Vec<u32> = serde_json::from_value(encoding["ids"].clone()).unwrap();
            let encoded = back.encode(text).unwrap();
            assert_eq!(encoded.ids, expected, "{name}: {text:?}");
            assert_eq!(encoded, own.encode(text).unwrap(), "{name}: {text:?}");
            assert_eq!(back.bos(&expected).unwrap(), own.bos(&expected).unwrap(), "{name}: {text:?}");
        }
        let episodes = place.path("e.jsonl");
        std::fs::write(&episodes, EPISODE).unwrap();
        // The file's template is the one that renders turn by turn, where the model's own does not; the text is the same.
        let shown = |model: &str| {
            let text = place.ok(&format!("inspect e.jsonl --model {model}"));
            text.lines().filter(|line| !line.starts_with("template")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(shown("gguf/model.gguf"), shown("m"), "{name}");
    }
}

const EPISODE: &str = r#"{"format_version": 1, "id": "a", "messages": [{"role": "user", "content": "Which flight is the best option?  Flight 1 or 2?"}, {"role": "assistant", "content": "The best option is Flight 2.", "answer": {"start": 26, "options": ["1", "2"], "probs": [0.3, 0.7], "said": 1, "truth": 0}}]}
"#;

const CONFIG: &str = r#"
[run]
name = "g"
[model]
source = "gguf/model.gguf"
[data]
train = "e.jsonl"
validation = "e.jsonl"
test = "e.jsonl"
[lora]
r = 2
[schedule]
kind = "constant"
[train]
max_steps = 3
batch_size = 1
save_every = 2
"#;

#[test]
fn every_command_takes_a_file() {
    for (name, family, quantization) in [("llama2", "llama", "f32"), ("qwen3", "qwen3", "q8_0")] {
        let place = Place::new();
        with_tokenizer(&place, name, family, quantization);
        place.write("e.jsonl", EPISODE);
        place.write("g.toml", CONFIG);
        place.write("ids.jsonl", "{\"input_ids\": [1, 3, 60, 70, 2]}\n");
        let said = place.ok("plan g.toml");
        assert!(said.contains("GB") || said.contains("MB"), "{said}");
        place.ok("logits --model m --input ids.jsonl --out m.safetensors");
        place.ok("logits --model gguf/model.gguf --input ids.jsonl --out g.safetensors");
        let read = |file: &str| flat(&tensors::read(&place.path(file)).unwrap()["0"]);
        let off = largest_difference(&read("m.safetensors"), &read("g.safetensors"));
        assert!(off < if quantization == "f32" { 1e-5 } else { 0.1 }, "{name}: {off}");
        place.ok("eval --model gguf/model.gguf --episodes e.jsonl --out base.json");
        place.ok("run g.toml");
        assert!(place.json("runs/g/eval.json")["fine_tuned"]["kl"].as_f64().unwrap().is_finite());
        place.ok("train g.toml --resume --set train.max_steps=4");
        place.ok("eval --model gguf/model.gguf --adapter runs/g/adapter --episodes e.jsonl");
        let config = place.json("runs/g/adapter/adapter_config.json");
        assert_eq!(config["base_model_name_or_path"], "gguf/model.gguf");
        assert!(place.names("runs/g/adapter").contains(&"tokenizer.json".to_string()));
        place.ok("export runs/g --format gguf-lora --out lora");
        // Merged into what the file's weights stand for: in their own dtype, or in bf16 where that is blocks.
        let adapted = "logits --model gguf/model.gguf --adapter runs/g --input ids.jsonl --out t.safetensors";
        place.ok(adapted);
        assert!(largest_difference(&read("g.safetensors"), &read("t.safetensors")) > 1e-6);
        place.ok("export runs/g --format merged --out merged");
        place.ok("export runs/g --format gguf --quantization f32 --out merged-gguf");
        let bf16 = if quantization == "f32" { 1e-4 } else { 0.3 };
        for (model, tolerance) in [("merged", bf16), ("merged-gguf/model.gguf", 1e-4)] {
            place.ok(&format!("logits --model {model} --input ids.jsonl --out u.safetensors"));
            let off = largest_difference(&read("t.safetensors"), &read("u.safetensors"));
            assert!(off < tolerance, "{name} {model}: {off}");
        }
        let stored = tensors::read(&place.path("merged/model.safetensors")).unwrap();
        // Rows of this model that fill no blocks are in f16.
        let dtype = if quantization == "f32" { DType::F32 } else { DType::F16 };
        assert!(stored.values().all(|tensor| tensor.dtype() == dtype));
        place.fails("train g.toml --set run.name=w --set train.weights=all", 2, &["GGUF file", "adapters"]);
        place.fails("train g.toml --set run.name=w --set model.revision=main", 2, &["no revisions"]);
        let mut chat = place.command("chat --model gguf/model.gguf --adapter runs/g --max-tokens 3");
        chat.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut chat = chat.stderr(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut chat.stdin.take().unwrap(), b"Flight 1?\n").unwrap();
        let done = chat.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && said.contains("one of 1,2, the probabilities"), "{said}");
        // Another file of the same name is another model.
        let weights = std::fs::read(place.path("gguf/model.gguf")).unwrap();
        let mut other = weights.clone();
        let last = other.len() - 40;
        other[last] ^= 1;
        place.write("gguf/model.gguf", &other);
        place.fails("train g.toml --resume --set train.max_steps=5", 2, &["model", "fingerprint"]);
        for format in ["merged", "gguf"] {
            let export = format!("export runs/g --format {format} --out other");
            place.fails(&export, 2, &["not the model that this adapter was trained on"]);
        }
    }
}

#[test]
fn bad_files_are_refused_by_name() {
    let place = Place::new();
    with_tokenizer(&place, "qwen2", "qwen2", "q8_0");
    place.write("ids.jsonl", "{\"input_ids\": [1, 3]}\n");
    place.write("e.jsonl", EPISODE);
    let good = std::fs::read(place.path("gguf/model.gguf")).unwrap();
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bad = good.clone();
        bad[at..at + to.len()].copy_from_slice(to.as_bytes());
        bad
    };
    let mut version = good.clone();
    version[4] = 9;
    let mut counts = good.clone();
    counts[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    // An alignment of 0, in place of a key that nobody needs.
    let key = b"general.quantization_version";
    let at = good.windows(key.len()).position(|w| w == key).unwrap();
    let mut aligned = good.clone();
    let mut zero = 17u64.to_le_bytes().to_vec();
    zero.extend(b"general.alignment");
    zero.extend(4u32.to_le_bytes());
    zero.extend(0u32.to_le_bytes());
    aligned.splice(at - 8..at + key.len() + 8, zero);
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", Vec::new(), &["bad.gguf"]),
        ("letters", b"GGUX and more".to_vec(), &["no GGUF file"]),
        ("header cut", good[..20].to_vec(), &["damaged or cut short"]),
        ("metadata cut", good[..1000].to_vec(), &["damaged or cut short"]),
        ("tensors cut", good[..good.len() - 64].to_vec(), &["cut short"]),
        ("version", version, &["damaged", "version"]),
        ("counts", counts, &["damaged"]),
        ("alignment", aligned, &["alignment"]),
        ("a missing key", replaced("qwen2.block_count", "qwen2.block_cOunt"), &["qwen2.block_count"]),
        (
            "a missing tensor",
            replaced("blk.0.ffn_up.weight", "blk.0.ffn_uP.weight"),
            &["blk.0.ffn_up.weight"],
        ),
    ];
    for (what, bytes, parts) in cases {
        place.write("bad.gguf", bytes);
        let command = "logits --model bad.gguf --input ids.jsonl --out l.safetensors";
        place.run(command).is_error(what, 1, parts);
    }
    let text = |from: &str, to: &str| place.write("bad.gguf", replaced(from, to));
    text("ggml.pre\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0qwen2", "ggml.pre\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0qwen7");
    place.fails("inspect e.jsonl --model bad.gguf", 1, &["qwen7", "llama-bpe"]);
    text(
        "architecture\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0qwen2",
        "architecture\u{8}\0\0\0\u{5}\0\0\0\0\0\0\0mamba",
    );
    place.fails("inspect e.jsonl --model bad.gguf", 1, &["mamba", "llama, qwen2"]);
    place.ok("export m --format gguf --quantization f16 --without-tokenizer --out bare");
    place.fails("inspect e.jsonl --model bare/model.gguf", 1, &["has no tokenizer"]);
    place.ok("logits --model bare/model.gguf --input ids.jsonl --out l.safetensors");
    place.fails("inspect e.jsonl --model nowhere.gguf", 2, &["nowhere.gguf", "no such file"]);
}
