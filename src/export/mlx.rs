//! An adapter for mlx-lm: `adapters.safetensors` and `adapter_config.json`.
//!
//! mlx-lm multiplies from the right, so both halves are PEFT's transposed: `lora_a` (in, r) and `lora_b` (r, out).
//! Rank and scale hold for all linears at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Tensor};
use serde_json::json;

use super::card::Kind;
use super::{Exported, Subject, TEMPLATE_FILE, ensure_same};
use crate::files;
use crate::model::config::ModelConfig;
use crate::model::lora::{self, Lora};
use crate::model::tensors;

/// The file of tensors.
pub const TENSORS_FILE: &str = "adapters.safetensors";
/// The file of settings.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// Writes the adapter to `out`, whole or not at all, its tensors as `dtype` (f32 or bf16).
///
/// # Errors
/// If there is no adapter, its linears differ in rank, the disk fails, or what was written is not what was meant.
pub fn export(subject: &Subject, dtype: DType, out: &Path) -> Result<Exported> {
    let adapter = subject.lora()?;
    let (r, scale) = rank_and_scale(adapter)?;
    let root = mlx_root(subject.model);
    let mut named = BTreeMap::new();
    for (path, module) in &adapter.modules {
        let below = below_root(subject.model, path)?;
        // A linear with a scale of its own keeps it within B.
        let b = if module.scale == scale { module.b.clone() } else { (&module.b * (module.scale / scale))? };
        let transposed = |t: &Tensor| t.t()?.contiguous()?.to_dtype(dtype);
        named.insert(format!("{root}.{below}.lora_a"), transposed(&module.a)?);
        named.insert(format!("{root}.{below}.lora_b"), transposed(&b)?);
    }
    let config = json!({
        "fine_tune_type": "lora",
        "model": subject.base_name,
        "num_layers": subject.model.num_layers(),
        "lora_parameters": {
            "rank": r, "scale": scale, "dropout": adapter.dropout, "keys": keys(subject.model, adapter)?,
        },
    });
    let base = subject.gguf.map_or_else(|| files::quoted(subject.base_name), |_| "ORIGINAL".to_string());
    let load = |path: &str| {
        format!("mlx_lm.generate --model {base} --adapter-path {} --prompt \"…\"", files::quoted(path))
    };
    let mut notes = Vec::new();
    if let Some(file) = subject.gguf {
        notes.push(format!(
            "ORIGINAL is the model that {} was made of: mlx-lm puts no adapter on a GGUF file",
            file.display()
        ));
    }
    if subject.pipeline.is_some() {
        notes.push(format!(
            "mlx-lm takes the base's own chat template; the one that the adapter was trained with is {TEMPLATE_FILE}"
        ));
    }
    files::write_folder(out, |dir| {
        tensors::write(&dir.join(TENSORS_FILE), &named)?;
        files::write_json(&dir.join(CONFIG_FILE), &config)?;
        let written = tensors::read(&dir.join(TENSORS_FILE)).context("reading back what was written")?;
        ensure!(written.keys().eq(named.keys()), "{TENSORS_FILE} has not the tensors that it should have");
        for ((name, meant), found) in named.iter().zip(written.values()) {
            ensure_same(name, meant, found)?;
        }
        let found: serde_json::Value = files::read_json(&dir.join(CONFIG_FILE))?;
        ensure!(found == config, "{CONFIG_FILE} does not say what it should");
        subject.write_template(dir)?;
        subject.card.write(dir, Kind::Mlx, &load("."), &notes)
    })?;
    Ok(Exported { load: load(&out.display().to_string()), notes })
}

/// The one rank, and a scale that most linears have.
fn rank_and_scale(adapter: &Lora) -> Result<(usize, f64)> {
    let mut ranks = BTreeMap::new();
    for (path, module) in &adapter.modules {
        ranks.entry(module.a.dim(0)?).or_insert(path);
    }
    let mut ranks = ranks.into_iter();
    let (r, path) = ranks.next().context("the adapter has no tensors")?;
    if let Some((other, its)) = ranks.next() {
        anyhow::bail!(
            "mlx-lm has one rank for all linears, but that of {path} is {r} and that of {its} is {other}"
        );
    }
    let scale = adapter.modules.values().map(|module| module.scale).find(|&scale| scale != 0.0);
    Ok((r, scale.unwrap_or(1.0)))
}

/// Where the layers are in mlx-lm's models.
fn mlx_root(model: &ModelConfig) -> &'static str {
    if model.multimodal { "language_model.model" } else { "model" }
}

/// `layers.0.self_attn.q_proj`
fn below_root<'a>(model: &ModelConfig, path: &'a str) -> Result<&'a str> {
    let below = path.strip_prefix(lora::root(model)).and_then(|rest| rest.strip_prefix('.'));
    below.with_context(|| format!("{path} is not a linear of this model's blocks"))
}

/// The linears' names within a layer where all layers have the same ones, or else their whole paths.
fn keys(model: &ModelConfig, adapter: &Lora) -> Result<BTreeSet<String>> {
    let mut whole = BTreeSet::new();
    let mut within = BTreeSet::new();
    for path in adapter.modules.keys() {
        let below = below_root(model, path)?;
        whole.insert(format!("{}.{below}", mlx_root(model)));
        let name = below.splitn(3, '.').nth(2);
        within.insert(name.with_context(|| format!("{path} is not within a layer"))?.to_string());
    }
    Ok(if whole.len() == within.len() * model.num_layers() { within } else { whole })
}
