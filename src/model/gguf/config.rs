//! The metadata of a GGUF file as the hub's `config.json`.

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, Value as Json, json};

use super::super::config::{Family, Llama3Scaling};
use super::layout::{ARCHITECTURES, sliding_pattern};
use super::{GgufFile, unsigned};

/// The hyper-parameters of one architecture.
struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'a str,
}

impl Keys<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.file.value(&format!("{}.{key}", self.architecture))
    }

    fn size(&self, key: &str) -> Result<Option<u64>> {
        let number = |value: &Value| match value {
            // Some writers give one number a layer; this program's models have the same in all.
            Value::Array(values) => {
                let first = values.first().and_then(unsigned);
                first.filter(|first| values.iter().all(|v| unsigned(v) == Some(*first)))
            }
            value => unsigned(value),
        };
        let name = format!("{}.{key}", self.architecture);
        self.value(key)
            .map(|v| number(v).with_context(|| format!("{name} is {v:?}, one whole number is wanted")))
            .transpose()
    }

    fn needed(&self, key: &str) -> Result<u64> {
        let name = format!("{}.{key}", self.architecture);
        self.size(key)?.with_context(|| format!("the metadata have no {name}"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let number = |value: &Value| match value {
            // The shortest decimal that the f32 stands for, as config files have it.
            Value::F32(x) => x.to_string().parse().ok(),
            Value::F64(x) => Some(*x),
            _ => None,
        };
        let name = format!("{}.{key}", self.architecture);
        self.value(key).map(|v| number(v).with_context(|| format!("{name} is {v:?}, no number"))).transpose()
    }
}

pub(super) fn config_json(file: &GgufFile) -> Result<Json> {
    let name = file.text("general.architecture").context("the metadata have no general.architecture")?;
    let Some(known) = ARCHITECTURES.iter().find(|known| known.name == name) else {
        let known = ARCHITECTURES.map(|known| known.name).join(", ");
        bail!("unknown architecture {name:?}; supported in GGUF files: {known}");
    };
    let family = known.family;
    let keys = Keys { file, architecture: name };
    let experts = keys.size("expert_count")?.unwrap_or(0);
    ensure!(
        known.is_mixture == (experts > 0),
        "{name}.expert_count is {experts}, which this program does not compute"
    );
    let embedding = file.shape("token_embd.weight").context("there is no tensor token_embd.weight")?;
    let &[vocabulary, hidden] = embedding else { bail!("token_embd.weight has shape {embedding:?}") };
    // Before anything is made for each of them.
    if known.is_mixture {
        let router = file
            .shape("blk.0.ffn_gate_inp.weight")
            .context("there is no tensor blk.0.ffn_gate_inp.weight")?;
        ensure!(
            router == [experts as usize, hidden],
            "blk.0.ffn_gate_inp.weight has shape {router:?}, where {name}.expert_count is {experts}"
        );
    }
    let heads = keys.needed("attention.head_count")?;
    ensure!(heads > 0, "{name}.attention.head_count is 0");
    let head_dim = keys.size("attention.key_length")?.unwrap_or(hidden as u64 / heads);
    let rotated = keys.size("rope.dimension_count")?.unwrap_or(head_dim);
    ensure!(
        rotated == head_dim && keys.size("attention.value_length")?.unwrap_or(head_dim) == head_dim,
        "heads of size {head_dim} of which {rotated} are rotated, or values of another size: this program does not compute \
         that"
    );
    let layers = keys.needed("block_count")?;
    let tensors = file.content.tensor_infos.len();
    ensure!(layers <= tensors as u64, "{name}.block_count is {layers}, and there are {tensors} tensors");
    let has = |tensor: &str| file.shape(&format!("blk.0.{tensor}")).is_some();
    let mut json = json!({
        "architectures": [class(family, known.is_mixture)],
        "model_type": model_type(family, known.is_mixture),
        "vocab_size": vocabulary,
        "hidden_size": keys.needed("embedding_length")?,
        "intermediate_size": keys.needed("feed_forward_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.needed("context_length")?,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon")?
            .with_context(|| format!("the metadata have no {name}.attention.layer_norm_rms_epsilon"))?,
        "rope_theta": keys.number("rope.freq_base")?.unwrap_or(1e4),
        "tie_word_embeddings": file.shape("output.weight").is_none(),
    });
    let more = json.as_object_mut().context("an object")?;
    if family == Family::Llama || family == Family::Qwen3 {
        more.insert("attention_bias".into(), has("attn_q.bias").into());
        more.insert("mlp_bias".into(), has("ffn_gate.bias").into());
    }
    if known.is_mixture {
        let per_token = keys.needed("expert_used_count")?;
        ensure!(per_token > 0, "{name}.expert_used_count is 0");
        let width = keys.size("expert_feed_forward_length")?;
        let width = width.unwrap_or(keys.needed("feed_forward_length")? / per_token);
        more.insert("num_experts".into(), experts.into());
        more.insert("num_experts_per_tok".into(), per_token.into());
        more.insert("moe_intermediate_size".into(), width.into());
        // As llama.cpp computes it.
        more.insert("norm_topk_prob".into(), true.into());
    }
    if matches!(family, Family::Gemma | Family::Gemma2 | Family::Gemma3) {
        more.insert("hidden_activation".into(), "gelu_pytorch_tanh".into());
    }
    if matches!(family, Family::Gemma2 | Family::Gemma3) {
        gemma(&keys, family, layers as usize, (hidden as u64, heads, head_dim), more)?;
    }
    scaling(&keys, head_dim, more)?;
    token_ids(file, more);
    Ok(json)
}

fn class(family: Family, is_mixture: bool) -> &'static str {
    match family {
        Family::Qwen3 if is_mixture => "Qwen3MoeForCausalLM",
        Family::Llama => "LlamaForCausalLM",
        Family::Qwen2 => "Qwen2ForCausalLM",
        Family::Qwen3 => "Qwen3ForCausalLM",
        Family::Gemma => "GemmaForCausalLM",
        Family::Gemma2 => "Gemma2ForCausalLM",
        Family::Gemma3 => "Gemma3ForCausalLM",
    }
}

fn model_type(family: Family, is_mixture: bool) -> &'static str {
    match family {
        Family::Llama => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 if is_mixture => "qwen3_moe",
        Family::Qwen3 => "qwen3",
        Family::Gemma => "gemma",
        Family::Gemma2 => "gemma2",
        Family::Gemma3 => "gemma3_text",
    }
}

/// Windows, caps and scale, where llama.cpp takes them from.
fn gemma(
    keys: &Keys,
    family: Family,
    layers: usize,
    (hidden, heads, head_dim): (u64, u64, u64),
    out: &mut Map<String, Json>,
) -> Result<()> {
    let gemma2 = family == Family::Gemma2;
    // Of the 27B models, which it knows by their layers.
    let scalar = if layers == if gemma2 { 46 } else { 62 } { hidden / heads } else { head_dim };
    out.insert("query_pre_attn_scalar".into(), scalar.into());
    let cap = |key: &str, default: f64| Ok::<_, anyhow::Error>(keys.number(key)?.unwrap_or(default));
    if gemma2 {
        out.insert("attn_logit_softcapping".into(), cap("attn_logit_softcapping", 50.0)?.into());
        out.insert("final_logit_softcapping".into(), cap("final_logit_softcapping", 30.0)?.into());
    } else if let Some(cap) = keys.number("final_logit_softcapping")? {
        out.insert("final_logit_softcapping".into(), cap.into());
    }
    let window = keys.size("attention.sliding_window")?;
    let window = if gemma2 { window.or(Some(4096)) } else { window };
    out.insert(
        "sliding_window".into(),
        window.context("the metadata have no attention.sliding_window")?.into(),
    );
    let sliding: Vec<bool> = match keys.value("attention.sliding_window_pattern") {
        Some(Value::Array(flags)) => {
            let flag = |value: &Value| match value {
                Value::Bool(flag) => Some(*flag),
                other => unsigned(other).map(|n| n != 0),
            };
            let flags: Option<Vec<bool>> = flags.iter().map(flag).collect();
            flags.context("attention.sliding_window_pattern is no list of flags")?
        }
        Some(period) => {
            let period = unsigned(period).filter(|p| *p > 0);
            let period = period.context("attention.sliding_window_pattern is no number above 0")? as usize;
            (0..layers).map(|i| i % period < period - 1).collect()
        }
        None => sliding_pattern(family, layers),
    };
    let kinds = sliding.into_iter().map(|s| if s { "sliding_attention" } else { "full_attention" });
    out.insert("layer_types".into(), kinds.collect());
    if !gemma2 {
        let theta = keys.number("rope.freq_base_swa")?.unwrap_or(1e4);
        out.insert("rope_local_base_freq".into(), theta.into());
    }
    Ok(())
}

/// How rotary frequencies are scaled: all alike, or each by its own factor.
fn scaling(keys: &Keys, head_dim: u64, out: &mut Map<String, Json>) -> Result<()> {
    let kind = match keys.value("rope.scaling.type") {
        Some(Value::String(kind)) => kind.as_str(),
        Some(other) => bail!("rope.scaling.type is {other:?}"),
        None => "none",
    };
    let scaling = match (kind, keys.file.shape("rope_freqs.weight")) {
        ("none", None) => return Ok(()),
        ("none", Some(_)) => {
            let factors = keys.file.tensor("rope_freqs.weight")?.flatten_all()?.to_vec1::<f32>()?;
            let positive = factors.iter().all(|f| f.is_finite() && *f > 0.0);
            ensure!(
                positive && factors.len() as u64 * 2 == head_dim,
                "rope_freqs.weight has {} factors for heads of size {head_dim}, or some that are not above 0",
                factors.len()
            );
            let theta = keys.number("rope.freq_base")?.unwrap_or(1e4);
            llama3(&factors, theta).unwrap_or_else(|| json!({"rope_type": "factors", "factors": factors}))
        }
        ("linear", None) => {
            let factor = keys.number("rope.scaling.factor")?;
            json!({"rope_type": "linear", "factor": factor.context("the metadata have no rope.scaling.factor")?})
        }
        (kind, _) => bail!("rotary frequencies are scaled by {kind:?}, which this program does not compute"),
    };
    out.insert("rope_scaling".into(), scaling);
    Ok(())
}

/// The settings of Llama 3.1 and later that give these divisors, if any do: files hold the divisors only.
fn llama3(factors: &[f32], theta: f64) -> Option<Json> {
    let factor = f64::from(*factors.last()?);
    let gives_them = |scaling: &Llama3Scaling| {
        factors.iter().enumerate().all(|(i, &found)| {
            let frequency = theta.powf(-(i as f64) / factors.len() as f64);
            (f64::from(found) * scaling.scale(frequency) / frequency - 1.0).abs() < 1e-5
        })
    };
    let candidates = (5..=20).map(|k| Llama3Scaling { factor, low: 1.0, high: 4.0, original: 2f64.powi(k) });
    let Llama3Scaling { low, high, original, .. } = candidates.into_iter().find(gives_them)?;
    Some(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original as u64,
    }))
}

/// The tokens that begin and end texts, for programs that generate.
fn token_ids(file: &GgufFile, out: &mut Map<String, Json>) {
    let id = |key: &str| file.value(&format!("tokenizer.ggml.{key}_token_id")).and_then(unsigned);
    if let Some(bos) = id("bos") {
        out.insert("bos_token_id".into(), bos.into());
    }
    let ends: Vec<u64> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
    if !ends.is_empty() {
        out.insert("eos_token_id".into(), ends.into());
    }
}
