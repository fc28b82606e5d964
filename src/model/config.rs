//! A model's shape and rules, parsed from the hub's `config.json` or the form that transformers 5 saves.
//!
//! Only what changes the computation is read. A value that this program does not implement is an error that
//! names it, never ignored.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

pub use crate::ops::glu::Activation;
pub use crate::ops::rms_norm::Gain;

/// The families that the decoder implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2, 3, 3.1, 3.2, 3.3
    Llama,
    /// Qwen 2 and 2.5
    Qwen2,
    /// Qwen 3, dense or a mixture of experts
    Qwen3,
    /// Gemma 1
    Gemma,
    /// Gemma 2
    Gemma2,
    /// Gemma 3, text only or the text part of the multimodal checkpoints
    Gemma3,
}

/// Everything that the decoder needs to know.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The family.
    pub family: Family,
    /// The text model is one part of a multimodal checkpoint.
    pub multimodal: bool,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Size of each head.
    pub head_dim: usize,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// How norms use their weight.
    pub gain: Gain,
    /// Activation of the MLP.
    pub activation: Activation,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// The attention's output has a bias.
    pub o_bias: bool,
    /// The MLP's linears have biases.
    pub mlp_bias: bool,
    /// q and k are normalised per head before they are rotated.
    pub qk_norm: bool,
    /// Norms on the branches' outputs too (Gemma 2 and 3).
    pub post_norms: bool,
    /// Embeddings are scaled by √hidden, rounded to the weights' dtype.
    pub scale_embedding: bool,
    /// Factor on q · k.
    pub attention_scale: f64,
    /// Soft cap on attention scores.
    pub attention_softcap: Option<f64>,
    /// Soft cap on logits.
    pub final_softcap: Option<f64>,
    /// How tokens choose experts, where the model is a mixture of them; `intermediate_size` is then that of an expert.
    pub routing: Option<Routing>,
    /// Standard deviation of weights drawn at random.
    pub initializer_range: f64,
    /// One entry a layer.
    pub layers: Vec<LayerKind>,
    /// Rotary frequencies (head size / 2) that layers choose from.
    pub inv_freq: Vec<Vec<f32>>,
    /// The base θ of each of [`ModelConfig::inv_freq`], before any scaling.
    pub rope_theta: Vec<f64>,
}

/// How tokens choose experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Experts of a block.
    pub experts: usize,
    /// Experts of a token.
    pub per_token: usize,
    /// The chosen experts' weights are made to sum to 1.
    pub normalise: bool,
}

/// What differs between layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerKind {
    /// Sliding window, itself included.
    pub window: Option<usize>,
    /// Index into [`ModelConfig::inv_freq`].
    pub rope: usize,
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// Names the file and the key that is missing, malformed or not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!("cannot read {}: is this a folder laid out like a hub snapshot?", path.display())
        })?;
        let json: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        Self::parse(&json).with_context(|| path.display().to_string())
    }

    /// Parses the contents of a `config.json`.
    ///
    /// # Errors
    /// Names the key that is missing, malformed or not supported.
    pub fn parse(json: &Value) -> Result<Self> {
        let (family, multimodal) = family(json)?;
        let source = if multimodal {
            Source { json: json.get("text_config").context("text_config is missing")? }
        } else {
            Source { json }
        };
        source.parse(family, multimodal, json)
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Parameters of the text model.
    pub fn parameter_count(&self) -> usize {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let flag = |on: bool, count: usize| if on { count } else { 0 };
        let attention = 2 * d * q + 2 * d * kv + flag(self.qkv_bias, q + 2 * kv) + flag(self.o_bias, d);
        let mlp = match self.routing {
            Some(routing) => routing.experts * (3 * d * f + d),
            None => 3 * d * f + flag(self.mlp_bias, 2 * f + d),
        };
        let norms = flag(self.post_norms, 2 * d) + 2 * d + flag(self.qk_norm, 2 * self.head_dim);
        let head = flag(!self.tie_word_embeddings, self.vocab_size * d);
        self.num_layers() * (attention + mlp + norms) + self.vocab_size * d + d + head
    }
}

fn family(json: &Value) -> Result<(Family, bool)> {
    let architecture = json.pointer("/architectures/0").and_then(Value::as_str);
    let model_type = json.get("model_type").and_then(Value::as_str);
    let known = match (architecture, model_type) {
        (Some("LlamaForCausalLM"), _) | (None, Some("llama")) => (Family::Llama, false),
        (Some("Qwen2ForCausalLM"), _) | (None, Some("qwen2")) => (Family::Qwen2, false),
        (Some("Qwen3ForCausalLM" | "Qwen3MoeForCausalLM"), _) | (None, Some("qwen3" | "qwen3_moe")) => {
            (Family::Qwen3, false)
        }
        (Some("GemmaForCausalLM"), _) | (None, Some("gemma")) => (Family::Gemma, false),
        (Some("Gemma2ForCausalLM"), _) | (None, Some("gemma2")) => (Family::Gemma2, false),
        (Some("Gemma3ForCausalLM"), _) | (None, Some("gemma3_text")) => (Family::Gemma3, false),
        (Some("Gemma3ForConditionalGeneration"), _) | (None, Some("gemma3")) => (Family::Gemma3, true),
        _ => bail!(
            "{}architecture {} (model_type {}); supported: LlamaForCausalLM, Qwen2ForCausalLM, \
             Qwen3ForCausalLM, Qwen3MoeForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, \
             Gemma3ForConditionalGeneration",
            reason(architecture.or(model_type).unwrap_or_default()),
            architecture.unwrap_or("(none)"),
            model_type.unwrap_or("(none)")
        ),
    };
    Ok(known)
}

fn is_mixture(json: &Value) -> bool {
    let architecture = json.pointer("/architectures/0").and_then(Value::as_str);
    architecture.or(json.get("model_type").and_then(Value::as_str)).is_some_and(|name| {
        let name = name.to_lowercase();
        name.contains("qwen3moe") || name.contains("qwen3_moe")
    })
}

/// What stands in the way of families that are asked for.
fn reason(name: &str) -> String {
    let name = name.to_lowercase();
    let missing = if name.contains("moe") || name.contains("mixtral") {
        "layers that choose among experts"
    } else if name.contains("gemma4") {
        "per-layer embeddings, values that are normalised, keys and values that layers share, and heads whose size differs \
         between layers"
    } else if name.contains("gemma3n") {
        "per-layer embeddings and alternating updates of several residual streams"
    } else {
        return "unknown ".into();
    };
    format!("the decoder does not compute what this model needs ({missing}): ")
}

/// A rotation.
struct Rope {
    theta: f64,
    /// Scaled frequencies (head size / 2).
    inv_freq: Vec<f32>,
}

struct Source<'a> {
    json: &'a Value,
}

impl Source<'_> {
    /// A key's value; absent and null are the same.
    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|v| !v.is_null())
    }

    fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let value = match self.get(key) {
            Some(v) => v.as_u64().with_context(|| format!("{key} = {v} is not a whole number"))? as usize,
            None => default.with_context(|| format!("{key} is missing"))?,
        };
        ensure!((1..1 << 32).contains(&value), "{key} = {value} is out of range");
        Ok(value)
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let number = |v: &Value| {
            let n = v.as_f64().filter(|n| n.is_finite() && *n > 0.0);
            n.with_context(|| format!("{key} = {v} is not a positive number"))
        };
        self.get(key).map(number).transpose()
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            Some(v) => v.as_bool().with_context(|| format!("{key} = {v} is not true or false")),
            None => Ok(default),
        }
    }

    fn parse(&self, family: Family, multimodal: bool, outer: &Value) -> Result<ModelConfig> {
        let gemma = matches!(family, Family::Gemma | Family::Gemma2 | Family::Gemma3);
        let gemma3 = family == Family::Gemma3;
        // The 4B and 12B checkpoints of Gemma 3 leave out what equals transformers' defaults.
        let default = |size: usize| gemma3.then_some(size);
        let hidden_size = self.size("hidden_size", default(2304))?;
        let heads = self.size("num_attention_heads", default(8))?;
        let kv_heads = self.size("num_key_value_heads", default(4).or(Some(heads)))?;
        let head_dim = match family {
            Family::Gemma | Family::Gemma2 | Family::Gemma3 => self.size("head_dim", Some(256))?,
            Family::Qwen3 => self.size("head_dim", Some(128))?,
            Family::Llama | Family::Qwen2 => self.size("head_dim", Some((hidden_size / heads).max(1)))?,
        };
        let num_layers = self.size("num_hidden_layers", default(26))?;
        ensure!(num_layers <= 10_000, "num_hidden_layers = {num_layers} is out of range");
        ensure!(heads.is_multiple_of(kv_heads), "{heads} attention heads do not group over {kv_heads}");
        ensure!(head_dim <= 1 << 16, "head_dim = {head_dim} is out of range");
        ensure!(head_dim.is_multiple_of(2), "head_dim = {head_dim} is odd, which rotation cannot split");
        let tie_default = gemma;
        let tie = match outer.get("tie_word_embeddings").and_then(Value::as_bool) {
            Some(tie) if multimodal => tie,
            _ => self.flag("tie_word_embeddings", tie_default)?,
        };
        let attention_bias = self.flag("attention_bias", false)?;
        let query_scale = match family {
            Family::Gemma2 | Family::Gemma3 => self.number("query_pre_attn_scalar")?.unwrap_or(256.0),
            _ => head_dim as f64,
        };
        let softcap =
            |key: &str| if family == Family::Gemma2 || gemma3 { self.number(key) } else { Ok(None) };
        let (layers, ropes) = self.layers(family, num_layers, head_dim)?;
        let routing = if is_mixture(self.json) { Some(self.routing()?) } else { None };
        let width = if routing.is_some() { "moe_intermediate_size" } else { "intermediate_size" };
        Ok(ModelConfig {
            family,
            multimodal,
            vocab_size: self.size("vocab_size", default(262_208))?,
            hidden_size,
            intermediate_size: self.size(width, default(9216))?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: self.size("max_position_embeddings", Some(131_072))?,
            rms_norm_eps: self.number("rms_norm_eps")?.unwrap_or(1e-6),
            gain: if gemma { Gain::OnePlusWeight } else { Gain::Weight },
            activation: self.activation(gemma)?,
            tie_word_embeddings: tie,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            o_bias: attention_bias,
            mlp_bias: family == Family::Llama && self.flag("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3 || gemma3,
            post_norms: family == Family::Gemma2 || gemma3,
            scale_embedding: gemma,
            attention_scale: query_scale.powf(-0.5),
            attention_softcap: softcap("attn_logit_softcapping")?,
            final_softcap: softcap("final_logit_softcapping")?,
            routing,
            initializer_range: self.number("initializer_range")?.unwrap_or(0.02),
            layers,
            rope_theta: ropes.iter().map(|rope| rope.theta).collect(),
            inv_freq: ropes.into_iter().map(|rope| rope.inv_freq).collect(),
        })
    }

    fn routing(&self) -> Result<Routing> {
        let dense = self.get("mlp_only_layers").and_then(Value::as_array).is_some_and(|l| !l.is_empty());
        ensure!(
            !dense && self.size("decoder_sparse_step", Some(1))? == 1,
            "some layers have no experts (mlp_only_layers, decoder_sparse_step), which is not supported"
        );
        // Older configs say num_local_experts.
        let key = if self.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
        let experts = self.size(key, None)?;
        let per_token = self.size("num_experts_per_tok", Some(8))?;
        ensure!(
            per_token <= experts && experts <= 1 << 16,
            "num_experts_per_tok = {per_token} of {key} = {experts} is out of range"
        );
        Ok(Routing { experts, per_token, normalise: self.flag("norm_topk_prob", false)? })
    }

    fn activation(&self, gemma: bool) -> Result<Activation> {
        let key = if self.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
        let default = if gemma { "gelu_pytorch_tanh" } else { "silu" };
        match self.get(key).and_then(Value::as_str).unwrap_or(default) {
            "silu" | "swish" => Ok(Activation::Silu),
            // Gemma 1's "gelu" means the tanh form, as its authors' code has it.
            "gelu" if gemma => Ok(Activation::GeluTanh),
            "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
            other => bail!("{key} = {other:?} is not supported (silu or gelu_pytorch_tanh)"),
        }
    }

    fn layers(&self, family: Family, count: usize, head_dim: usize) -> Result<(Vec<LayerKind>, Vec<Rope>)> {
        let sliding = self.sliding_layers(family, count)?;
        let window = match sliding.contains(&true) {
            true => Some(self.size("sliding_window", (family == Family::Gemma3).then_some(4096))?),
            false => None,
        };
        let kind = |&sliding: &bool| LayerKind {
            window: window.filter(|_| sliding),
            rope: usize::from(family == Family::Gemma3 && sliding),
        };
        let layers = sliding.iter().map(kind).collect();
        let global_theta = if family == Family::Gemma3 { 1e6 } else { 1e4 };
        let mut ropes = vec![self.rope(Some("full_attention"), "rope_theta", global_theta, head_dim)?];
        if family == Family::Gemma3 {
            ropes.push(self.rope(Some("sliding_attention"), "rope_local_base_freq", 1e4, head_dim)?);
        }
        Ok((layers, ropes))
    }

    /// Which layers slide.
    fn sliding_layers(&self, family: Family, count: usize) -> Result<Vec<bool>> {
        let uses_window = match family {
            Family::Qwen2 | Family::Qwen3 => {
                self.flag("use_sliding_window", false)? && self.get("sliding_window").is_some()
            }
            Family::Gemma2 | Family::Gemma3 => true,
            Family::Llama | Family::Gemma => false,
        };
        if !uses_window {
            return Ok(vec![false; count]);
        }
        if let Some(types) = self.get("layer_types") {
            let types = types.as_array().context("layer_types is not a list")?;
            ensure!(types.len() == count, "layer_types has {} entries for {count} layers", types.len());
            return types
                .iter()
                .map(|t| match t.as_str() {
                    Some("sliding_attention") => Ok(true),
                    Some("full_attention") => Ok(false),
                    _ => bail!("layer_types has {t}, which is not supported"),
                })
                .collect();
        }
        match family {
            Family::Gemma2 => Ok((0..count).map(|i| i % 2 == 0).collect()),
            Family::Gemma3 => {
                let key = if self.get("_sliding_window_pattern").is_some() {
                    "_sliding_window_pattern"
                } else {
                    "sliding_window_pattern"
                };
                let pattern = self.size(key, Some(6))?;
                Ok((0..count).map(|i| (i + 1) % pattern != 0).collect())
            }
            _ => {
                let first = self.get("max_window_layers").and_then(Value::as_u64).unwrap_or(28) as usize;
                Ok((0..count).map(|i| i >= first).collect())
            }
        }
    }

    /// Rotary frequencies, with the scaling of `rope_scaling` or `rope_parameters`.
    fn rope(&self, layer_type: Option<&str>, key: &str, theta: f64, head_dim: usize) -> Result<Rope> {
        // transformers 5: rope_parameters, nested per layer type where types differ.
        let new_style = self.get("rope_parameters").map(|p| {
            let nested = layer_type.and_then(|t| p.get(t));
            nested.unwrap_or(p)
        });
        let local = key == "rope_local_base_freq";
        let scaling = match new_style {
            Some(parameters) => Some(parameters),
            None if local => None,
            None => self.get("rope_scaling"),
        };
        if let Some(json) = scaling.filter(|json| !json.is_object()) {
            bail!("rope scaling is {json}, not an object");
        }
        let scaling = scaling.map(|json| Source { json });
        let theta = match (new_style.map(|json| Source { json }), self.number(key)?) {
            (Some(new), old) => new.number("rope_theta")?.or(old).unwrap_or(theta),
            (None, old) => old.unwrap_or(theta),
        };
        let base: Vec<f64> =
            (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        let scaled = match scaling {
            Some(scaling) => scaling.scale_frequencies(base)?,
            None => base,
        };
        Ok(Rope { theta, inv_freq: scaled.into_iter().map(|f| f as f32).collect() })
    }

    fn scale_frequencies(&self, base: Vec<f64>) -> Result<Vec<f64>> {
        let kind = self.get("rope_type").or_else(|| self.get("type")).and_then(Value::as_str);
        let required = |key: &str| self.number(key)?.with_context(|| format!("rope scaling lacks {key}"));
        match kind.unwrap_or("default") {
            "default" => Ok(base),
            "linear" => {
                let factor = required("factor")?;
                Ok(base.into_iter().map(|f| f / factor).collect())
            }
            "llama3" => {
                let scaling = Llama3Scaling {
                    factor: required("factor")?,
                    low: required("low_freq_factor")?,
                    high: required("high_freq_factor")?,
                    original: required("original_max_position_embeddings")?,
                };
                let Llama3Scaling { low, high, .. } = scaling;
                ensure!(high > low, "rope scaling: high_freq_factor {high} is not above {low}");
                Ok(base.into_iter().map(|f| scaling.scale(f)).collect())
            }
            // This program's own, for GGUF files, which give a divisor for each frequency.
            "factors" => {
                let factors = self.get("factors").and_then(Value::as_array);
                let factors = factors.context("rope scaling lacks factors")?;
                ensure!(
                    factors.len() == base.len(),
                    "rope scaling has {} factors for {} frequencies",
                    factors.len(),
                    base.len()
                );
                let positive = |v: &Value| v.as_f64().filter(|f| f.is_finite() && *f > 0.0);
                let scale = |(f, v): (f64, &Value)| {
                    Ok(f / positive(v).with_context(|| format!("rope scaling has the factor {v}"))?)
                };
                base.into_iter().zip(factors).map(scale).collect()
            }
            other => bail!("rope scaling {other:?} is not supported (default, linear or llama3)"),
        }
    }
}

/// How Llama 3.1 and later scale rotary frequencies: long waves by a factor, short ones not, those between in between.
#[derive(Clone, Copy)]
pub(super) struct Llama3Scaling {
    pub factor: f64,
    /// `original / low` is the shortest of the long wavelengths.
    pub low: f64,
    /// `original / high` is the longest of the short wavelengths.
    pub high: f64,
    /// Positions before scaling.
    pub original: f64,
}

impl Llama3Scaling {
    pub(super) fn scale(self, frequency: f64) -> f64 {
        let Self { factor, low, high, original } = self;
        let wavelength = std::f64::consts::TAU / frequency;
        if wavelength > original / low {
            frequency / factor
        } else if wavelength < original / high {
            frequency
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    }
}
