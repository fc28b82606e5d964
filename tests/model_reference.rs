//! Logits, losses and gradients of every family against transformers and PEFT.
//!
//! The reference data in `tests/data/reference` was computed in float64 by `scripts/make_reference.py`, that of soft
//! prompts by `scripts/make_prompt_reference.py`; each folder's `reference.json` names the library versions.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bayesteach::model::config::ModelConfig;
use bayesteach::model::decoder::{Decoder, Keep, Past, Tokens};
use bayesteach::model::gradients::{Gradients, Trainable};
use bayesteach::model::loading::Weights;
use bayesteach::model::lora::LoraConfig;
use bayesteach::model::{peft, prefix, tensors};
use bayesteach::ops::kl::Targets;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

const FAMILIES: [&str; 9] =
    ["llama", "llama3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3", "qwen3_moe"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference").join(name)
}

struct Reference {
    dir: PathBuf,
    json: Value,
    tensors: BTreeMap<String, Tensor>,
    model: Decoder,
}

/// All sequences of a reference as one flat run with targets.
#[derive(Default)]
struct Flat {
    input_ids: Vec<u32>,
    positions: Vec<u32>,
    boundaries: Vec<u32>,
    rows: Vec<u32>,
    option_boundaries: Vec<u32>,
    ids: Vec<u32>,
    probs: Vec<f32>,
    weights: Vec<f32>,
}

impl Reference {
    fn load(name: &str, dtype: DType) -> Self {
        let dir = folder(name);
        let json = bayesteach::files::read_json(&dir.join("reference.json")).unwrap();
        let tensors = tensors::read(&dir.join("reference.safetensors")).unwrap();
        let config = ModelConfig::load(&dir).unwrap();
        let model = Decoder::load(&dir, &config, dtype, &Device::Cpu).unwrap();
        Self { dir, json, tensors, model }
    }

    fn with_adapter(mut self) -> Self {
        let (_, adapter) = peft::read(&self.dir.join("adapter"), self.model.config()).unwrap();
        self.model.set_adapter(Some(&adapter)).unwrap();
        self
    }

    /// The same model behind the soft prompt that PEFT saved.
    fn with_prompt(mut self) -> Self {
        let dir = self.dir.join("prompt");
        let (_, adapter) = peft::read(&dir, self.model.config()).unwrap();
        self.model.set_adapter(Some(&adapter)).unwrap();
        self.json["losses"]["prompt"] =
            bayesteach::files::read_json::<Value>(&dir.join("reference.json")).unwrap()["losses"].clone();
        for (name, tensor) in tensors::read(&dir.join("reference.safetensors")).unwrap() {
            self.tensors.insert(format!("prompt_{name}"), tensor);
        }
        self
    }

    fn flat(&self, reverse: bool) -> Flat {
        let mut flat = Flat { boundaries: vec![0], option_boundaries: vec![0], ..Flat::default() };
        let mut sequences = self.json["sequences"].as_array().unwrap().clone();
        if reverse {
            sequences.reverse();
        }
        for sequence in &sequences {
            let start = flat.input_ids.len() as u32;
            let ids: Vec<u32> = serde_json::from_value(sequence["input_ids"].clone()).unwrap();
            flat.positions.extend(0..ids.len() as u32);
            flat.input_ids.extend(ids);
            flat.boundaries.push(flat.input_ids.len() as u32);
            for target in sequence["targets"].as_array().unwrap() {
                flat.rows.push(start + target["position"].as_u64().unwrap() as u32);
                let ids: Vec<u32> = serde_json::from_value(target["token_ids"].clone()).unwrap();
                let probs: Vec<f32> = serde_json::from_value(target["probs"].clone()).unwrap();
                flat.ids.extend(ids);
                flat.probs.extend(probs);
                flat.option_boundaries.push(flat.ids.len() as u32);
                flat.weights.push(1.0);
            }
        }
        flat
    }

    /// Mean KL and the gradients of the mean.
    fn loss_and_grads(
        &self,
        flat: &Flat,
        whole: bool,
        trainable: Trainable,
        keep: Keep,
    ) -> (f64, BTreeMap<String, Tensor>) {
        let whole = vec![whole; flat.rows.len()];
        let targets = Targets {
            option_boundaries: &flat.option_boundaries,
            ids: &flat.ids,
            probs: &flat.probs,
            weights: &flat.weights,
            whole_vocabulary: &whole,
        };
        let run = self.model.run(flat.tokens(), None).unwrap().only(&flat.rows);
        let mut grads = Gradients::new(trainable);
        let (hidden, tape) = self.model.forward(&run, keep).unwrap();
        let (pending, dhidden) = self.model.answer_kl(&hidden, targets, Some(&mut grads)).unwrap();
        self.model.backward(tape, dhidden.unwrap(), &run, &mut grads).unwrap();
        let rows = pending.read(&targets).unwrap();
        let count = rows.kl.len() as f64;
        let mean = |(name, t): (String, Tensor)| (name, (t / count).unwrap());
        (rows.kl.iter().sum::<f64>() / count, grads.into_sums().into_iter().map(mean).collect())
    }
}

impl Flat {
    fn tokens(&self) -> Tokens<'_> {
        Tokens { input_ids: &self.input_ids, positions: &self.positions, boundaries: &self.boundaries }
    }
}

fn to_f64(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    to_f64(a).iter().zip(to_f64(b)).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

fn relative_l2(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (to_f64(a), to_f64(b));
    let difference: f64 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
    (difference / b.iter().map(|y| y * y).sum::<f64>()).sqrt()
}

/// (logits, loss, gradients): `fidelity.md`'s for f32; f64 is limited by the reference being stored in f32.
fn tolerances(dtype: DType) -> (f64, f64, f64) {
    if dtype == DType::F64 { (2e-6, 1e-7, 2e-6) } else { (1e-4, 1e-5, 1e-4) }
}

#[test]
fn logits_agree() {
    for name in FAMILIES {
        for dtype in [DType::F32, DType::F64] {
            let reference = Reference::load(name, dtype);
            check_logits(&reference, "logits", tolerances(dtype).0, name);
            let reference = reference.with_adapter();
            check_logits(&reference, "adapter_logits", tolerances(dtype).0, name);
            // Angles, whose frequencies are rounded to f32, grow with the position, and the prompt moves the logits far.
            check_logits(&reference.with_prompt(), "prompt_logits", 2.0 * tolerances(dtype).0, name);
        }
    }
}

fn check_logits(reference: &Reference, key: &str, tolerance: f64, name: &str) {
    let flat = reference.flat(false);
    let run = reference.model.run(flat.tokens(), None).unwrap();
    let (hidden, _) = reference.model.forward(&run, Keep::Nothing).unwrap();
    let logits = reference.model.logits(&hidden).unwrap();
    for (i, b) in flat.boundaries.windows(2).enumerate() {
        let ours = logits.narrow(0, b[0] as usize, (b[1] - b[0]) as usize).unwrap();
        let want = &reference.tensors[&format!("{key}_{i}")];
        let difference = max_difference(&ours, want);
        assert!(difference < tolerance, "{name} {key}_{i}: {difference:e}");
    }
}

/// A sequence in pieces, each going on from the keys and values of those before, and two continuations of one past
/// side by side, against the reference's logits of the whole sequence.
#[test]
fn going_on_from_a_past_is_the_whole() {
    for (name, prompt) in FAMILIES.iter().flat_map(|name| [(name, false), (name, true)]) {
        let reference = Reference::load(name, DType::F64);
        let reference = if prompt { reference.with_prompt() } else { reference.with_adapter() };
        let flat = reference.flat(false);
        let (first, last) = (flat.boundaries[0] as usize, flat.boundaries[1] as usize);
        let ids = &flat.input_ids[first..last];
        let want = &reference.tensors[if prompt { "prompt_logits_0" } else { "adapter_logits_0" }];
        let model = &reference.model;
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let check = |hidden: &Tensor, rows: std::ops::Range<usize>, what: &str| {
            let ours = model.logits(hidden).unwrap();
            let difference = max_difference(&ours, &want.narrow(0, rows.start, rows.len()).unwrap());
            assert!(difference < tolerances(DType::F64).0, "{name}, {what} {rows:?}: {difference:e}");
        };

        let half = ids.len() / 2;
        let mut past: Option<Past> = None;
        let mut at = 0;
        for size in [half, 1, 1, ids.len() - half - 2] {
            let rows = at..at + size;
            let boundaries = [0, size as u32];
            let tokens = Tokens {
                input_ids: &ids[rows.clone()],
                positions: &positions[rows.clone()],
                boundaries: &boundaries,
            };
            let run = model.run_after(tokens, past.as_ref()).unwrap();
            let (hidden, tape) = model.forward(&run, Keep::KeysValues).unwrap();
            check(&hidden, rows.clone(), "a piece");
            drop(run);
            past = Some(tape.into_past().unwrap());
            at = rows.end;
            assert_eq!(past.as_ref().unwrap().len(), at);
        }

        // Forget the second half and go on twice at once; only the last rows are asked for.
        let mut past = past.unwrap();
        past.truncate(half).unwrap();
        let rest = ids.len() - half;
        let twice = [&ids[half..], &ids[half..ids.len() - 1]].concat();
        let positions_twice = [&positions[half..], &positions[half..ids.len() - 1]].concat();
        let boundaries = [0, rest as u32, (2 * rest - 1) as u32];
        let tokens = Tokens { input_ids: &twice, positions: &positions_twice, boundaries: &boundaries };
        let asked = [rest as u32 - 1, (2 * rest - 2) as u32];
        let run = model.run_after(tokens, Some(&past)).unwrap().only(&asked);
        let (hidden, _) = model.forward(&run, Keep::Nothing).unwrap();
        check(&hidden.narrow(0, 0, 1).unwrap(), ids.len() - 1..ids.len(), "the first tail");
        check(&hidden.narrow(0, 1, 1).unwrap(), ids.len() - 2..ids.len() - 1, "the second tail");
        assert!(model.forward(&run, Keep::Everything).is_err());
        assert!(model.forward(&run, Keep::KeysValues).is_err());
    }
}

#[test]
fn both_config_styles_mean_the_same() {
    for name in FAMILIES {
        let dir = folder(name);
        for other in ["config.transformers5.json", "config.hub.json"] {
            if !dir.join(other).exists() {
                continue;
            }
            let json: Value = bayesteach::files::read_json(&dir.join(other)).unwrap();
            let parsed = ModelConfig::parse(&json).unwrap();
            assert_eq!(format!("{parsed:?}"), format!("{:?}", ModelConfig::load(&dir).unwrap()), "{name}");
        }
    }
}

#[test]
fn losses_and_adapter_gradients_agree() {
    for name in FAMILIES {
        for dtype in [DType::F32, DType::F64] {
            let reference = Reference::load(name, dtype).with_adapter();
            let (_, loss_tolerance, grad_tolerance) = tolerances(dtype);
            for (whole, support) in [(true, "vocabulary"), (false, "options")] {
                for keep in [Keep::Everything, Keep::BlockInputs] {
                    let (loss, grads) =
                        reference.loss_and_grads(&reference.flat(false), whole, Trainable::Lora, keep);
                    let want = reference.json["losses"]["adapter"][format!("kl_{support}")]["mean"]
                        .as_f64()
                        .unwrap();
                    assert!((loss - want).abs() < loss_tolerance, "{name} {support}: {loss} not {want}");
                    let prefix = format!("grad_{support}/base_model.model.");
                    let expected: Vec<_> =
                        reference.tensors.iter().filter(|(k, _)| k.starts_with(&prefix)).collect();
                    assert_eq!(expected.len(), grads.len(), "{name}: which tensors get gradients");
                    for (key, want) in expected {
                        let difference = relative_l2(&grads[&key[prefix.len()..]], want);
                        assert!(difference < grad_tolerance, "{name} {key}: {difference:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn losses_and_soft_prompt_gradients_agree() {
    for name in FAMILIES {
        for dtype in [DType::F32, DType::F64] {
            let reference = Reference::load(name, dtype).with_prompt();
            let (_, loss_tolerance, grad_tolerance) = tolerances(dtype);
            for (whole, support) in [(true, "vocabulary"), (false, "options")] {
                for (keep, reverse) in [(Keep::Everything, false), (Keep::BlockInputs, true)] {
                    let flat = reference.flat(reverse);
                    let (loss, grads) = reference.loss_and_grads(&flat, whole, Trainable::Prefix, keep);
                    let want = reference.json["losses"]["prompt"][format!("kl_{support}")]["mean"].as_f64();
                    let want = want.unwrap();
                    assert!((loss - want).abs() < loss_tolerance, "{name} {support}: {loss} not {want}");
                    assert_eq!(grads.keys().collect::<Vec<_>>(), [prefix::NAME], "{name}");
                    let want = &reference.tensors[&format!("prompt_grad_{support}")];
                    let difference = relative_l2(&grads[prefix::NAME], want);
                    assert!(difference < grad_tolerance, "{name} {support}: {difference:e}");
                }
            }
        }
    }
}

/// Weights in bf16 on the CPU, with everything but products in f32, and all in bf16 as a GPU computes it: the first is nearer to
/// float64 in every family, and loss and gradients are off by what rounding weights and inputs of products to 8 bits costs.
#[test]
fn bf16_on_the_cpu_loses_less_than_all_in_bf16() {
    for name in FAMILIES {
        let differences = [DType::F32, DType::BF16].map(|activations| {
            let mut reference = Reference::load(name, DType::F32);
            let config = reference.model.config().clone();
            let weights = Weights::open(&reference.dir, &config, DType::BF16, &Device::Cpu).unwrap();
            reference.model = Decoder::new(&weights.with_activations(activations), &config).unwrap();
            assert_eq!(reference.model.dtype(), activations);
            let reference = reference.with_adapter();
            let (loss, grads) =
                reference.loss_and_grads(&reference.flat(false), true, Trainable::Lora, Keep::BlockInputs);
            let want = reference.json["losses"]["adapter"]["kl_vocabulary"]["mean"].as_f64().unwrap();
            let (mut difference, mut size) = (0.0, 0.0);
            for (name, gradient) in &grads {
                let want = to_f64(&reference.tensors[&format!("grad_vocabulary/base_model.model.{name}")]);
                for (ours, want) in to_f64(gradient).iter().zip(want) {
                    difference += (ours - want).powi(2);
                    size += want.powi(2);
                }
            }
            ((loss - want).abs() / want, (difference / size).sqrt())
        });
        let [(loss, gradient), (_, all_gradient)] = differences;
        assert!(loss < 0.01 && gradient < 0.1 && gradient < all_gradient, "{name}: {differences:?}");
    }
}

/// There is no room for more tokens than the model has positions, less the soft prompt.
#[test]
fn a_soft_prompt_takes_positions() {
    let model = Reference::load("llama", DType::F32).with_prompt().model;
    let most = model.max_tokens();
    assert_eq!(most, model.config().max_position_embeddings - 4);
    for (length, fits) in [(most, true), (most + 1, false)] {
        let ids = vec![7; length];
        let positions: Vec<u32> = (0..length as u32).collect();
        let boundaries = [0, length as u32];
        let tokens = Tokens { input_ids: &ids, positions: &positions, boundaries: &boundaries };
        assert_eq!(model.run(tokens, None).is_ok(), fits);
    }
}

#[test]
fn gradients_of_all_weights_agree() {
    for name in ["llama", "gemma2", "qwen3_moe"] {
        for dtype in [DType::F32, DType::F64] {
            let reference = Reference::load(name, dtype);
            let (loss, grads) =
                reference.loss_and_grads(&reference.flat(false), true, Trainable::All, Keep::Everything);
            let want = reference.json["losses"]["base"]["kl_vocabulary"]["mean"].as_f64().unwrap();
            assert!((loss - want).abs() < tolerances(dtype).1);
            let keys: Vec<_> =
                reference.tensors.keys().filter(|k| k.starts_with("grad_base/")).cloned().collect();
            assert_eq!(keys.len(), grads.len(), "{name}: {:?}", grads.keys());
            for key in keys {
                let difference = relative_l2(&grads[&key["grad_base/".len()..]], &reference.tensors[&key]);
                assert!(difference < tolerances(dtype).2, "{name} {key}: {difference:e}");
            }
        }
    }
}

#[test]
fn order_and_packing_change_nothing() {
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-10)] {
        let reference = Reference::load("gemma2", dtype).with_adapter();
        let grads = |reverse| {
            reference.loss_and_grads(&reference.flat(reverse), true, Trainable::Lora, Keep::Everything).1
        };
        let (forward, reversed) = (grads(false), grads(true));
        for (name, gradient) in &forward {
            let difference = relative_l2(&reversed[name], gradient);
            assert!(difference < tolerance, "{name}: {difference:e}");
        }
    }
}

#[test]
fn a_merged_adapter_equals_base_plus_adapter() {
    for name in FAMILIES {
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-10)] {
            let mut reference = Reference::load(name, dtype).with_adapter();
            let flat = reference.flat(false);
            let logits = |model: &Decoder| {
                let run = model.run(flat.tokens(), None).unwrap();
                model.logits(&model.forward(&run, Keep::Nothing).unwrap().0).unwrap()
            };
            let with_adapter = logits(&reference.model);
            let (_, adapter) = peft::read(&reference.dir.join("adapter"), reference.model.config()).unwrap();
            let mut weights = reference.model.parameters();
            for (path, module) in &adapter.lora().unwrap().modules {
                let weight = weights.get_mut(&format!("{path}.weight")).unwrap();
                *weight = (&*weight + module.delta(dtype).unwrap()).unwrap();
            }
            reference.model.set_adapter(None).unwrap();
            reference.model.set_parameters(&weights).unwrap();
            let difference = relative_l2(&logits(&reference.model), &with_adapter);
            assert!(difference < tolerance, "{name} {dtype:?}: {difference:e}");
        }
    }
}

#[test]
fn mixtures_take_adapters_on_attention_and_say_what_they_do_not_take() {
    let dir = folder("qwen3_moe");
    let model = ModelConfig::load(&dir).unwrap();
    let decoder = Decoder::load(&dir, &model, DType::F32, &Device::Cpu).unwrap();
    let counted: usize = decoder.parameters().values().map(Tensor::elem_count).sum();
    assert_eq!(model.parameter_count(), counted);
    let all = LoraConfig::default();
    assert_eq!(all.targets_in(&model), ["q_proj", "k_proj", "v_proj", "o_proj"]);
    all.check_against(&model).unwrap();
    let names: LoraConfig = toml::from_str("target_modules = [\"q_proj\", \"up_proj\"]").unwrap();
    let refused = names.check_against(&model).unwrap_err().to_string();
    assert!(refused.contains("\"up_proj\"") && refused.contains("experts"), "{refused}");

    let json: Value = bayesteach::files::read_json(&dir.join("config.json")).unwrap();
    for (key, value, part) in [
        ("mlp_only_layers", serde_json::json!([0]), "mlp_only_layers"),
        ("decoder_sparse_step", serde_json::json!(2), "decoder_sparse_step"),
        ("num_experts_per_tok", serde_json::json!(7), "num_experts_per_tok = 7"),
        ("moe_intermediate_size", Value::Null, "moe_intermediate_size is missing"),
    ] {
        let mut bad = json.clone();
        bad[key] = value;
        let error = format!("{:#}", ModelConfig::parse(&bad).unwrap_err());
        assert!(error.contains(part), "{error}");
    }
}
