//! Adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! What is written is a small set of keys that old versions of PEFT and vLLM's loader take. What is read may
//! come from elsewhere: anything that would change the computation and is not implemented is an error.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::adapter::Adapter;
use super::config::ModelConfig;
use super::lora::{self, Lora, LoraConfig, LoraModule};
use super::prefix::{self, Prefix};
use super::tensors;
use crate::files;

/// The file of settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file of tensors.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";
/// What PEFT puts before a module's path.
const PREFIX: &str = "base_model.model.";

/// What `adapter_config.json` says, by `peft_type`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "peft_type")]
pub enum PeftConfig {
    /// Additions to linears.
    #[serde(rename = "LORA")]
    Lora(PeftLora),
    /// A soft prompt.
    #[serde(rename = "PROMPT_TUNING")]
    PromptTuning(PeftPrompt),
}

impl PeftConfig {
    /// Where the base model was found, and its commit.
    pub fn base(&self) -> (Option<&str>, Option<&str>) {
        let (base, revision) = match self {
            Self::Lora(lora) => (&lora.base_model_name_or_path, &lora.revision),
            Self::PromptTuning(prompt) => (&prompt.base_model_name_or_path, &prompt.revision),
        };
        (base.as_deref(), revision.as_deref())
    }

    /// Names another base model.
    pub fn set_base(&mut self, name: &str, commit: Option<&str>) {
        let (base, revision) = match self {
            Self::Lora(lora) => (&mut lora.base_model_name_or_path, &mut lora.revision),
            Self::PromptTuning(prompt) => (&mut prompt.base_model_name_or_path, &mut prompt.revision),
        };
        *base = Some(name.into());
        *revision = commit.map(Into::into);
    }
}

/// The keys of a soft prompt that this program writes, and reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeftPrompt {
    /// Where the base model was found.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// The base's commit.
    #[serde(default)]
    pub revision: Option<String>,
    /// Embeddings.
    pub num_virtual_tokens: usize,
    /// Their width.
    pub token_dim: usize,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl PeftPrompt {
    /// The settings of a soft prompt of `length` embeddings trained here.
    pub fn new(length: usize, model: &ModelConfig, base: &str, revision: Option<&str>) -> Self {
        let other = json!({
            "auto_mapping": null, "inference_mode": true, "num_attention_heads": model.num_attention_heads,
            "num_layers": model.num_layers(), "num_transformer_submodules": 1,
            "prompt_tuning_init": "SAMPLE_VOCAB", "prompt_tuning_init_text": null, "task_type": "CAUSAL_LM",
            "tokenizer_name_or_path": null,
        });
        Self {
            base_model_name_or_path: Some(base.into()),
            revision: revision.map(Into::into),
            num_virtual_tokens: length,
            token_dim: model.hidden_size,
            other: object(other),
        }
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The keys of a LoRA adapter that this program writes, and reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeftLora {
    /// Where the base model was found.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// The base's commit.
    #[serde(default)]
    pub revision: Option<String>,
    /// Rank.
    pub r: usize,
    /// alpha
    pub lora_alpha: f64,
    /// Dropout while training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Scale by alpha / √r.
    #[serde(default)]
    pub use_rslora: bool,
    /// Ranks of modules that differ.
    #[serde(default)]
    pub rank_pattern: BTreeMap<String, usize>,
    /// alphas of modules that differ.
    #[serde(default)]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Names or paths of the adapted modules.
    #[serde(default)]
    pub target_modules: Value,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl PeftLora {
    /// The settings of an adapter trained here.
    pub fn new(lora: &LoraConfig, model: &ModelConfig, base: &str, revision: Option<&str>) -> Self {
        let names = lora.targets_in(model);
        // In the multimodal layout short names would hit the vision tower too.
        let mut targets: Vec<String> = if model.multimodal {
            let layers = 0..model.num_layers();
            layers.flat_map(|i| names.iter().map(move |n| lora::module_path(model, i, n))).collect()
        } else {
            names.iter().map(ToString::to_string).collect()
        };
        targets.sort();
        let other = json!({
            "auto_mapping": null, "bias": "none", "fan_in_fan_out": false, "inference_mode": true,
            "init_lora_weights": true, "layers_pattern": null, "layers_to_transform": null,
            "modules_to_save": null, "task_type": "CAUSAL_LM", "use_dora": false,
        });
        Self {
            base_model_name_or_path: Some(base.into()),
            revision: revision.map(Into::into),
            r: lora.r,
            lora_alpha: lora.alpha,
            lora_dropout: lora.dropout,
            use_rslora: lora.use_rslora,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            target_modules: json!(targets),
            other: object(other),
        }
    }

    /// Refuses what this program does not compute.
    fn check(&self) -> Result<()> {
        let off = |v: &Value| match v {
            Value::Null | Value::Bool(false) => true,
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            Value::String(s) => s == "none",
            _ => false,
        };
        for key in [
            "use_dora",
            "bias",
            "modules_to_save",
            "fan_in_fan_out",
            "lora_bias",
            "layer_replication",
            "trainable_token_indices",
            "alora_invocation_tokens",
            "use_qalora",
            "target_parameters",
            "use_bdlora",
        ] {
            if let Some(value) = self.other.get(key).filter(|v| !off(v)) {
                bail!("{key} = {value} is not supported");
            }
        }
        // Some initialisations change the base's weights too, and the adapter is relative to those.
        let init = self.other.get("init_lora_weights");
        let changes_base =
            init.and_then(Value::as_str).filter(|kind| !["gaussian", "orthogonal", "eva"].contains(kind));
        if let Some(kind) = changes_base {
            bail!(
                "init_lora_weights = {kind:?} is relative to changed base weights: convert the adapter in PEFT first \
                 (path_initial_model_for_weight_conversion)"
            );
        }
        Ok(())
    }

    fn scale(&self, path: &str) -> Result<f64> {
        let alpha = of_pattern("alpha_pattern", &self.alpha_pattern, path)?.unwrap_or(self.lora_alpha);
        let r = self.rank(path)? as f64;
        Ok(alpha / if self.use_rslora { r.sqrt() } else { r })
    }

    /// The rank of a linear.
    fn rank(&self, path: &str) -> Result<usize> {
        Ok(of_pattern("rank_pattern", &self.rank_pattern, path)?.unwrap_or(self.r))
    }
}

/// The value of a linear that differs: patterns are whole paths or ends of them.
fn of_pattern<T: Copy>(name: &str, values: &BTreeMap<String, T>, path: &str) -> Result<Option<T>> {
    let mut found = None;
    for (pattern, &value) in values {
        let literal = pattern.trim_start_matches('^');
        ensure!(
            literal.chars().all(|c| c.is_alphanumeric() || "._".contains(c)),
            "{name} has the regular expression {pattern:?}, which is not supported"
        );
        if path == literal || path.ends_with(&format!(".{literal}")) {
            found = Some(value);
        }
    }
    Ok(found)
}

/// Writes an adapter's two files into `dir`.
///
/// # Errors
/// If the disk fails.
pub fn write(dir: &Path, config: &PeftConfig, adapter: &Adapter) -> Result<()> {
    // PEFT names a soft prompt's tensor plainly.
    let prefix = if matches!(adapter, Adapter::Lora(_)) { PREFIX } else { "" };
    let named =
        adapter.tensors().into_iter().map(|(name, t)| Ok((format!("{prefix}{name}"), t.contiguous()?)));
    tensors::write(&dir.join(TENSORS_FILE), &named.collect::<Result<_>>()?)?;
    files::write_json(&dir.join(CONFIG_FILE), config)
}

/// Reads an adapter for `model` from `dir`; its tensors become f32 on the CPU.
///
/// # Errors
/// If files are missing or damaged, a tensor's name, pairing or shape does not fit the model, or the adapter
/// does something that this program does not compute.
pub fn read(dir: &Path, model: &ModelConfig) -> Result<(PeftConfig, Adapter)> {
    let path = dir.join(CONFIG_FILE);
    let config: PeftConfig = files::read_json(&path)?;
    if let PeftConfig::Lora(lora) = &config {
        lora.check().with_context(|| path.display().to_string())?;
    }
    let path = dir.join(TENSORS_FILE);
    let tensors = tensors::read(&path)?;
    let adapter = match &config {
        PeftConfig::Lora(lora) => assemble(lora, tensors, model).map(Adapter::Lora),
        PeftConfig::PromptTuning(prompt) => soft_prompt(prompt, tensors, model).map(Adapter::Prefix),
    };
    Ok((config, adapter.with_context(|| path.display().to_string())?))
}

fn soft_prompt(
    config: &PeftPrompt,
    mut tensors: BTreeMap<String, Tensor>,
    model: &ModelConfig,
) -> Result<Prefix> {
    let Some(embeddings) = tensors.remove(prefix::NAME) else { bail!("there is no {} in it", prefix::NAME) };
    if let Some(name) = tensors.keys().next() {
        bail!("{name} is no part of a soft prompt");
    }
    ensure!(embeddings.dtype().is_float(), "{} is stored as {:?}", prefix::NAME, embeddings.dtype());
    let shape = [config.num_virtual_tokens, config.token_dim];
    ensure!(
        embeddings.dims() == shape && shape[0] > 0,
        "{} has shape {:?}, but {CONFIG_FILE} says {shape:?}",
        prefix::NAME,
        embeddings.dims()
    );
    ensure!(
        config.token_dim == model.hidden_size,
        "the soft prompt is {} wide, this model's embeddings are {}",
        config.token_dim,
        model.hidden_size
    );
    Ok(Prefix { embeddings: embeddings.to_dtype(DType::F32)? })
}

fn assemble(config: &PeftLora, tensors: BTreeMap<String, Tensor>, model: &ModelConfig) -> Result<Lora> {
    let mut halves: BTreeMap<String, (Option<Tensor>, Option<Tensor>)> = BTreeMap::new();
    for (name, tensor) in tensors {
        let Some(path) = name.strip_prefix(PREFIX) else {
            bail!("{name} does not begin with {PREFIX}");
        };
        // Older PEFT wrote the on-disk path of the multimodal layout.
        let path = match path.strip_prefix("language_model.model.") {
            Some(rest) if model.multimodal => format!("{}.{rest}", lora::root(model)),
            _ => path.to_string(),
        };
        ensure!(tensor.dtype().is_float(), "{name} is stored as {:?}, not as floats", tensor.dtype());
        let tensor = tensor.to_dtype(DType::F32)?;
        if let Some(module) = path.strip_suffix(".lora_A.weight") {
            halves.entry(module.to_string()).or_default().0 = Some(tensor);
        } else if let Some(module) = path.strip_suffix(".lora_B.weight") {
            halves.entry(module.to_string()).or_default().1 = Some(tensor);
        } else {
            bail!("{name} is not a lora_A.weight or lora_B.weight of a linear layer");
        }
    }
    ensure!(!halves.is_empty(), "there are no adapter tensors in it");
    let mut modules = BTreeMap::new();
    for (path, pair) in halves {
        let (Some(a), Some(b)) = pair else { bail!("{path} has only one of lora_A and lora_B") };
        let linear = path.rsplit('.').next().unwrap_or_default();
        let known = (0..model.num_layers())
            .any(|i| lora::linears(model).contains(&linear) && lora::module_path(model, i, linear) == path);
        ensure!(known, "{path} is not a linear of this model's blocks");
        let (d_out, d_in) = lora::linear_shape(model, linear);
        let r = a.dim(0)?;
        ensure!(
            a.dims() == [r, d_in] && b.dims() == [d_out, r] && r > 0,
            "{path}: A {:?} and B {:?} do not fit a linear from {d_in} to {d_out}",
            a.dims(),
            b.dims()
        );
        // Nothing else can be loaded by PEFT, and only this rank makes the scale right.
        let said = config.rank(&path)?;
        ensure!(
            r == said,
            "{path} has rank {r}, but {CONFIG_FILE} says {said} (r and rank_pattern): is it the file of these tensors?"
        );
        let scale = config.scale(&path)?;
        modules.insert(path, LoraModule { a, b, scale });
    }
    Ok(Lora { modules, dropout: config.lora_dropout })
}
