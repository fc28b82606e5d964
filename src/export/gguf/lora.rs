//! An adapter alone as GGUF, to be loaded beside its base by llama.cpp.
//!
//! llama.cpp adds `alpha / r · B A`, with one alpha for the file and r from each tensor; a scale that differs, such as
//! that of rank-stabilised LoRA, goes into alpha, or where linears differ into B.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use candle_core::{Device, Tensor};

use super::super::card::Kind;
use super::super::{Exported, Subject, TEMPLATE_FILE, ensure_same};
use super::file::{self, TensorInfo};
use super::{check_base, encode, origin};
use crate::files;
use crate::model::gguf::layout;
use crate::model::lora::{self, Lora};

/// The file of an adapter.
pub const ADAPTER_FILE: &str = "adapter.gguf";

/// Writes the adapter as `out/adapter.gguf` in f32, whole or not at all.
///
/// # Errors
/// If there is no adapter, llama.cpp cannot compute its base, the disk fails, or what was written is not what was
/// meant.
pub fn export(subject: &Subject, out: &Path) -> Result<Exported> {
    check_base(subject.model)?;
    let adapter = subject.lora()?;
    let alpha = alpha(adapter)?;
    let mut infos = Vec::new();
    let mut tensors: Vec<Tensor> = Vec::new();
    let mut left = adapter.modules.len();
    for layer in 0..subject.model.num_layers() {
        for linear in lora::LINEARS {
            let path = lora::module_path(subject.model, layer, linear);
            let Some(module) = adapter.modules.get(&path) else { continue };
            left -= 1;
            let factor = module.scale * module.a.dim(0)? as f64 / alpha;
            let b = if factor == 1.0 { module.b.clone() } else { (&module.b * factor)? };
            let b = layout::linear_change(subject.model, linear).apply(&b)?;
            let name = layout::linear_name(layer, linear);
            for (half, tensor) in [("lora_a", module.a.clone()), ("lora_b", b)] {
                let name = format!("{name}.weight.{half}");
                infos.push(TensorInfo { name, shape: tensor.dims().to_vec(), dtype: GgmlDType::F32 });
                tensors.push(tensor);
            }
        }
    }
    ensure!(left == 0, "the adapter has linears that this model does not have");
    let text = |key: &str, value: &str| (key.to_string(), Value::String(value.to_string()));
    let mut metadata = vec![
        text("general.architecture", layout::architecture(subject.model)),
        text("general.type", "adapter"),
        text("general.name", &subject.card.title),
        text("adapter.type", "lora"),
        ("adapter.lora.alpha".to_string(), Value::F32(alpha as f32)),
    ];
    metadata.extend(origin(subject));
    let load = |path: &str| {
        let file = |name: &str| files::quoted(Path::new(path).join(name));
        let template = match subject.pipeline {
            Some(_) => format!(" --chat-template-file {}", file(TEMPLATE_FILE)),
            None => String::new(),
        };
        let base = subject.gguf.map_or_else(|| "BASE.gguf".to_string(), files::quoted);
        format!("llama-cli --jinja{template} -m {base} --lora {}", file(ADAPTER_FILE))
    };
    let notes = match subject.gguf {
        Some(_) => Vec::new(),
        None => vec![format!("BASE.gguf is {} as llama.cpp's own converter writes it", subject.base_name)],
    };
    files::write_folder(out, |dir| {
        let path = dir.join(ADAPTER_FILE);
        let hashes = file::write(&path, &metadata, &infos, &mut |i| encode(&tensors[i], GgmlDType::F32))?;
        let content = file::check(&path, &metadata, &infos, &hashes).context("checking what was written")?;
        let mut file = file::open(&path)?;
        for (info, meant) in infos.iter().zip(&tensors) {
            let found = content.tensor(&mut file, &info.name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
            ensure_same(&info.name, meant, &found)?;
        }
        subject.write_template(dir)?;
        subject.card.write(dir, Kind::GgufLora, &load("."), &notes)
    })?;
    Ok(Exported { load: load(&out.display().to_string()), notes })
}

/// The alpha that is right for the first linear with an effect. llama.cpp takes 0 to mean a scale of 1.
fn alpha(adapter: &Lora) -> Result<f64> {
    match adapter.modules.values().find(|module| module.scale != 0.0) {
        // As the file holds it, so that what goes into B makes up for the rounding.
        Some(module) => Ok(f64::from((module.scale * module.a.dim(0)? as f64) as f32)),
        None => Ok(1.0),
    }
}
