//! LoRA: which linears get an adapter, its initial values, its scale, and merging.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::config::ModelConfig;
use crate::error::usage;
use crate::rng;

/// The linears of a block, by their hub names.
pub const LINEARS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// `[lora]`: the adapter to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The adapter's output is scaled by alpha / r.
    pub alpha: f64,
    /// Dropout on the adapter's input.
    pub dropout: f64,
    /// Which linears.
    pub target_modules: TargetModules,
    /// Scale by alpha / √r instead.
    pub use_rslora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: TargetModules::All(AllLinear::AllLinear),
            use_rslora: false,
        }
    }
}

/// `"all-linear"` or a list of names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "\"all-linear\" or a list of names such as [\"q_proj\", \"v_proj\"]")]
pub enum TargetModules {
    /// Every linear of every block; never the head, the embedding or a vision tower.
    All(AllLinear),
    /// Linears by name.
    Names(Vec<String>),
}

/// The word `"all-linear"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllLinear {
    /// `"all-linear"`
    #[serde(rename = "all-linear")]
    AllLinear,
}

impl LoraConfig {
    /// Checks the ranges, and that every name is one of [`LINEARS`].
    ///
    /// # Errors
    /// Names the key and what it may be.
    pub fn validate(&self) -> Result<()> {
        if self.r == 0 || self.r > 4096 {
            return Err(usage(format!("lora.r is {}, it must be between 1 and 4096", self.r)));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(usage(format!("lora.alpha is {}, it must be positive", self.alpha)));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(usage(format!("lora.dropout is {}, it must be in [0, 1)", self.dropout)));
        }
        if let TargetModules::Names(names) = &self.target_modules {
            if names.is_empty() {
                return Err(usage("lora.target_modules is empty: nothing would be trained"));
            }
            for name in names {
                if !LINEARS.contains(&name.as_str()) {
                    let known = LINEARS.join(", ");
                    return Err(usage(format!(
                        "lora.target_modules names {name:?}; what can be adapted is \"all-linear\" or {known}"
                    )));
                }
            }
        }
        Ok(())
    }

    /// The targeted linears' names, in the order of [`LINEARS`].
    pub fn targets(&self) -> Vec<&'static str> {
        let wanted = |name: &&str| match &self.target_modules {
            TargetModules::All(_) => true,
            TargetModules::Names(names) => names.iter().any(|n| n == name),
        };
        LINEARS.into_iter().filter(wanted).collect()
    }

    /// The targeted linears' names on this model, in the order of [`LINEARS`].
    pub fn targets_in(&self, model: &ModelConfig) -> Vec<&'static str> {
        self.targets().into_iter().filter(|name| linears(model).contains(name)).collect()
    }

    /// Refuses names that this model has no linears of.
    ///
    /// # Errors
    /// Names them.
    pub fn check_against(&self, model: &ModelConfig) -> Result<()> {
        let TargetModules::Names(names) = &self.target_modules else { return Ok(()) };
        if let Some(name) = names.iter().find(|name| !linears(model).contains(&name.as_str())) {
            let known = linears(model).join(", ");
            return Err(usage(format!(
                "lora.target_modules names {name:?}, but this model's MLPs are experts: {known} can be adapted"
            )));
        }
        Ok(())
    }

    /// Parameters of the adapter on this model.
    pub fn parameter_count(&self, model: &ModelConfig) -> usize {
        let per_layer: usize = (self.targets_in(model).iter())
            .map(|name| linear_shape(model, name))
            .map(|(d_out, d_in)| self.r * (d_out + d_in))
            .sum();
        per_layer * model.num_layers()
    }

    /// alpha / r, or alpha / √r.
    pub fn scale(&self) -> f64 {
        self.alpha / if self.use_rslora { (self.r as f64).sqrt() } else { self.r as f64 }
    }
}

/// A LoRA adapter's tensors and scales by module path (`model.layers.0.self_attn.q_proj`).
#[derive(Clone, Debug)]
pub struct Lora {
    /// One entry an adapted linear.
    pub modules: BTreeMap<String, LoraModule>,
    /// Dropout on the adapter's input while training.
    pub dropout: f64,
}

/// The adapter of one linear, in f32.
#[derive(Clone, Debug)]
pub struct LoraModule {
    /// A (r, in)
    pub a: Tensor,
    /// B (out, r)
    pub b: Tensor,
    /// Factor on B A.
    pub scale: f64,
}

impl Lora {
    /// A fresh adapter with PEFT's initialisation: A uniform in ±1/√in, B zero.
    ///
    /// # Errors
    /// If the device fails.
    pub fn new(config: &LoraConfig, model: &ModelConfig, seed: u64, device: &Device) -> Result<Self> {
        let mut modules = BTreeMap::new();
        for layer in 0..model.num_layers() {
            for name in config.targets_in(model) {
                let path = module_path(model, layer, name);
                let (d_out, d_in) = linear_shape(model, name);
                let mut stream = rng::stream(seed, &format!("lora_A/{path}"), 0);
                let bound = 1.0 / (d_in as f64).sqrt();
                let mut draw = || ((2.0 * stream.uniform() - 1.0) * bound) as f32;
                let a: Vec<f32> = (0..config.r * d_in).map(|_| draw()).collect();
                let a = Tensor::from_vec(a, (config.r, d_in), &Device::Cpu)?.to_device(device)?;
                let b = Tensor::zeros((d_out, config.r), DType::F32, device)?;
                modules.insert(path, LoraModule { a, b, scale: config.scale() });
            }
        }
        Ok(Self { modules, dropout: config.dropout })
    }

    /// The tensors by name (`….lora_A.weight`, `….lora_B.weight`).
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let pair =
            |(path, m): (&String, &LoraModule)| [(a_name(path), m.a.clone()), (b_name(path), m.b.clone())];
        self.modules.iter().flat_map(pair).collect()
    }

    /// Replaces the tensors by those of the same names.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn set_tensors(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        for (path, module) in &mut self.modules {
            for (name, slot) in [(a_name(path), &mut module.a), (b_name(path), &mut module.b)] {
                let Some(tensor) = tensors.get(&name) else { anyhow::bail!("{name} is missing") };
                let (found, expected) = (tensor.shape(), slot.shape());
                ensure!(found == expected, "{name} has shape {found:?}, expected {expected:?}");
                *slot = tensor.clone();
            }
        }
        Ok(())
    }
}

impl LoraModule {
    /// s B A (out, in), computed in `dtype`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn delta(&self, dtype: DType) -> Result<Tensor> {
        Ok((self.b.to_dtype(dtype)?.matmul(&self.a.to_dtype(dtype)?)? * self.scale)?)
    }
}

/// `path` + `.lora_A.weight`
pub fn a_name(path: &str) -> String {
    format!("{path}.lora_A.weight")
}

/// `path` + `.lora_B.weight`
pub fn b_name(path: &str) -> String {
    format!("{path}.lora_B.weight")
}

/// The linears of a block that an adapter can be added to: where there are experts, those of attention, as PEFT has it,
/// since transformers holds the experts of a block as one parameter.
pub fn linears(model: &ModelConfig) -> &'static [&'static str] {
    if model.routing.is_some() { &LINEARS[..4] } else { &LINEARS }
}

/// The path of the module that holds the layers, as transformers names it in memory.
pub fn root(model: &ModelConfig) -> &'static str {
    if model.multimodal { "model.language_model" } else { "model" }
}

/// The path of a block's linear, as transformers names it in memory.
pub fn module_path(model: &ModelConfig, layer: usize, linear: &str) -> String {
    format!("{}.layers.{layer}.{}", root(model), within_block(linear))
}

/// `self_attn.q_proj` for `q_proj`, `mlp.up_proj` for `up_proj`.
pub fn within_block(linear: &str) -> String {
    let part = if ["gate_proj", "up_proj", "down_proj"].contains(&linear) { "mlp" } else { "self_attn" };
    format!("{part}.{linear}")
}

/// (out, in) of a block's linear.
pub fn linear_shape(model: &ModelConfig, linear: &str) -> (usize, usize) {
    let (d, f) = (model.hidden_size, model.intermediate_size);
    let q = model.num_attention_heads * model.head_dim;
    let kv = model.num_key_value_heads * model.head_dim;
    match linear {
        "q_proj" => (q, d),
        "k_proj" | "v_proj" => (kv, d),
        "o_proj" => (d, q),
        "down_proj" => (d, f),
        _ => (f, d),
    }
}

/// How often a block has a linear: once, or once for each expert.
pub fn copies(model: &ModelConfig, linear: &str) -> usize {
    match model.routing {
        Some(routing) if !linears(model).contains(&linear) => routing.experts,
        _ => 1,
    }
}

/// How many weights the linears of all blocks have.
pub fn linear_weights(model: &ModelConfig) -> usize {
    let weights = |name: &&str| {
        let (d_out, d_in) = linear_shape(model, name);
        copies(model, name) * d_out * d_in
    };
    LINEARS.iter().map(weights).sum::<usize>() * model.num_layers()
}
