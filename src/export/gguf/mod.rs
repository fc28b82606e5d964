//! GGUF files for llama.cpp and what is built on it: the merged model, and the adapter alone.

mod file;
pub mod lora;
mod vocabulary;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};

use super::card::Kind;
use super::merge::Merge;
use super::{Exported, Subject, float_bytes, python, values};
use crate::files;
use crate::model::config::ModelConfig;
use crate::model::gguf::layout::{self, Entry, Metadata, Origin};
use file::TensorInfo;
use vocabulary::Vocabulary;

/// The file of a whole model.
pub const MODEL_FILE: &str = "model.gguf";

/// What Ollama makes its model from; it takes the rest out of the GGUF file.
pub const OLLAMA_FILE: &str = "Modelfile";

/// How matrices are stored; vectors are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 32-bit floats
    F32,
    /// 16-bit floats
    F16,
    /// bfloat16
    Bf16,
    /// 8 bits a weight in blocks of 32
    Q8_0,
    /// 4 bits a weight in blocks of 256; the embedding and the head 6 bits, as llama.cpp's own Q4_K_S has them
    Q4K,
}

impl Quantization {
    /// llama.cpp's number for the file as a whole.
    fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4K => 14,
            Self::Bf16 => 32,
        }
    }

    /// The type of one tensor: the wanted one, or the next finer one whose blocks divide its rows.
    fn of(self, entry: &Entry) -> GgmlDType {
        let &[.., _, columns] = entry.shape.as_slice() else { return GgmlDType::F32 };
        if entry.name.ends_with(layout::ROUTER) {
            return GgmlDType::F32;
        }
        let is_vocabulary = entry.name == "token_embd.weight" || entry.name == "output.weight";
        let wanted: &[GgmlDType] = match self {
            Self::F32 => &[GgmlDType::F32],
            Self::F16 => &[GgmlDType::F16],
            Self::Bf16 => &[GgmlDType::BF16],
            Self::Q8_0 => &[GgmlDType::Q8_0, GgmlDType::F16],
            Self::Q4K if is_vocabulary => &[GgmlDType::Q6K, GgmlDType::Q8_0, GgmlDType::F16],
            Self::Q4K => &[GgmlDType::Q4K, GgmlDType::Q8_0, GgmlDType::F16],
        };
        let fits = |dtype: &&GgmlDType| columns.is_multiple_of(dtype.block_size());
        wanted.iter().find(fits).copied().unwrap_or(GgmlDType::F32)
    }
}

/// What else there is to choose.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// How matrices are stored.
    pub quantization: Quantization,
    /// llama.cpp's name for how text is cut into words, where the tokenizer's own rule is unknown.
    pub pre_tokenizer: Option<&'a str>,
}

/// Writes the model, with its adapter added if it has one, as `out/model.gguf`, whole or not at all. `progress` hears
/// how many tensors of how many are done.
///
/// # Errors
/// If llama.cpp cannot compute this model or hold its tokenizer, the adapter does not fit, the disk fails, or what was
/// written is not what was meant.
pub fn export(
    subject: &Subject,
    options: Options,
    out: &Path,
    progress: &dyn Fn(usize, usize),
) -> Result<Exported> {
    let model = subject.model;
    layout::check(model)?;
    let Vocabulary { metadata: tokenizer, mut notes } = match subject.pipeline {
        Some(pipeline) => {
            vocabulary::vocabulary(subject.base, pipeline, model.vocab_size, options.pre_tokenizer)?
        }
        None => vocabulary::without(),
    };
    if layout::scale_mismatch(model) != 1.0 {
        notes.push(
            "llama.cpp scales attention by the size of the heads, whatever query_pre_attn_scalar says: the difference is \
             folded into q, so this file computes what the model does, but adapters of the base do not fit it"
                .into(),
        );
    }
    if model.multimodal {
        notes
            .push("only the text model is in the file; llama.cpp takes the vision tower from another".into());
    }
    if subject.pipeline.is_some() {
        notes.push(format!(
            "Ollama knows common chat templates by their text, and gives the bare prompt to a model with another: where \
             `ollama show --template` says so, write the template as TEMPLATE into {OLLAMA_FILE}"
        ));
    }
    let merge = Merge::open(subject)?;
    let entries = layout::entries(model)?;
    let infos: Vec<TensorInfo> = entries
        .iter()
        .map(|e| TensorInfo {
            name: e.name.clone(),
            shape: e.shape.clone(),
            dtype: options.quantization.of(e),
        })
        .collect();
    let coarse =
        |info: &&TensorInfo| info.dtype == GgmlDType::F16 && options.quantization != Quantization::F16;
    let finer = match options.quantization {
        Quantization::Q4K => infos.iter().filter(|i| i.dtype == GgmlDType::Q8_0 || coarse(i)).count(),
        Quantization::Q8_0 => infos.iter().filter(coarse).count(),
        _ => 0,
    };
    if finer > 0 {
        notes.push(format!(
            "{finer} tensors have rows that do not divide into blocks and are stored in a finer type"
        ));
    }
    let mut metadata = general(subject, options.quantization);
    metadata.extend(layout::hyper_parameters(model));
    metadata.extend(tokenizer);
    let with_tokenizer = subject.pipeline.is_some();
    let load = |path: &str| load(Path::new(path), with_tokenizer, &subject.card.title);
    files::write_folder(out, |dir| {
        let path = dir.join(MODEL_FILE);
        let hashes = file::write(&path, &metadata, &infos, &mut |i| {
            let tensor = tensor(&merge, &entries[i])?;
            progress(i + 1, infos.len());
            encode(&tensor, infos[i].dtype)
        })?;
        check(&path, &metadata, &infos, &hashes, &merge, &entries).context("checking what was written")?;
        if with_tokenizer {
            files::write(&dir.join(OLLAMA_FILE), format!("FROM ./{MODEL_FILE}\n").as_bytes())?;
        }
        subject.card.write(dir, Kind::Gguf, &load("."), &notes)
    })?;
    Ok(Exported { load: load(&out.display().to_string()), notes })
}

/// The commands that load `folder` elsewhere.
fn load(folder: &Path, with_tokenizer: bool, title: &str) -> String {
    let file = folder.join(MODEL_FILE);
    if !with_tokenizer {
        return format!(
            "llama_model_load_from_file({}, …) of llama.cpp's library, and llama_decode with token ids: the file has no \
             tokenizer",
            python(&file.display().to_string())
        );
    }
    // Ollama takes names of these characters.
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    let name: String = title.to_lowercase().chars().filter(is_plain).collect();
    let name = name.trim_matches(['-', '_', '.']);
    format!(
        "llama-cli --jinja -m {}\nollama create {} -f {}",
        files::quoted(file),
        if name.is_empty() { "model" } else { name },
        files::quoted(folder.join(OLLAMA_FILE))
    )
}

/// What the file is.
fn general(subject: &Subject, quantization: Quantization) -> Metadata {
    let text = |key: &str, value: &str| (format!("general.{key}"), Value::String(value.to_string()));
    let mut metadata = vec![
        text("architecture", layout::architecture(subject.model)),
        text("type", "model"),
        text("name", &subject.card.title),
        ("general.file_type".to_string(), Value::U32(quantization.file_type())),
        ("general.quantization_version".to_string(), Value::U32(2)),
    ];
    metadata.extend(origin(subject));
    metadata
}

/// The base, where it is on the hub.
fn origin(subject: &Subject) -> Metadata {
    let card = subject.card;
    let Some((organization, name)) = card.base.split_once('/').filter(|_| card.base_on_hub) else {
        return Metadata::new();
    };
    let text = |key: &str, value: String| (format!("general.base_model.0.{key}"), Value::String(value));
    let mut metadata = vec![
        ("general.base_model.count".to_string(), Value::U32(1)),
        text("name", name.to_string()),
        text("organization", organization.to_string()),
        text("repo_url", format!("https://huggingface.co/{}", card.base)),
    ];
    metadata.extend(card.revision.iter().map(|revision| text("version", revision.clone())));
    metadata
}

/// A tensor as the file is to hold it, in f32.
fn tensor(merge: &Merge, entry: &Entry) -> Result<Tensor> {
    let merged = match &entry.origin {
        Origin::Below(name) => merge.tensor(&merge.base.on_disk(name), &entry.shape)?,
        Origin::Experts(names) => {
            let one = |name: &String| merge.tensor(&merge.base.on_disk(name), &entry.shape[1..]);
            Tensor::stack(&names.iter().map(one).collect::<Result<Vec<_>>>()?, 0)?
        }
        Origin::Head => merge.tensor(merge.head_name(), &entry.shape)?,
        Origin::Values(values) => Tensor::from_slice(values, entry.shape.as_slice(), &Device::Cpu)?,
    };
    entry.change.apply(&merged)
}

/// A tensor's bytes in the file.
fn encode(tensor: &Tensor, dtype: GgmlDType) -> Result<Vec<u8>> {
    let finite = tensor.abs()?.max_all()?.to_scalar::<f32>()?.is_finite();
    ensure!(finite, "it has values that are not finite");
    let floats = match dtype {
        GgmlDType::F32 => DType::F32,
        GgmlDType::F16 => DType::F16,
        GgmlDType::BF16 => DType::BF16,
        _ => return Ok(QTensor::quantize(tensor, dtype)?.data()?.into_owned()),
    };
    float_bytes(tensor, floats)?
        .context("it has values beyond the range of f16 (65504): choose another --quantization")
}

/// The largest root mean square of what storing may change, as a share of the tensor's own.
fn precision(dtype: GgmlDType) -> f64 {
    match dtype {
        GgmlDType::F32 => 0.0,
        GgmlDType::F16 => 5e-4,
        GgmlDType::BF16 => 4e-3,
        GgmlDType::Q8_0 => 0.02,
        GgmlDType::Q6K => 0.05,
        _ => 0.2,
    }
}

/// Reads everything back, and some tensors as numbers, by candle's reader.
fn check(
    path: &Path,
    metadata: &Metadata,
    infos: &[TensorInfo],
    hashes: &[blake3::Hash],
    merge: &Merge,
    entries: &[Entry],
) -> Result<()> {
    let content = file::check(path, metadata, infos, hashes)?;
    let mut file = file::open(path)?;
    for i in [0, infos.len() / 2, infos.len() - 1] {
        let name = &infos[i].name;
        let found = values(&content.tensor(&mut file, name, &Device::Cpu)?.dequantize(&Device::Cpu)?)?;
        let meant = values(&tensor(merge, &entries[i])?)?;
        let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
        let size = squares(&mut meant.iter().map(|&v| f64::from(v)));
        let change = squares(&mut meant.iter().zip(&found).map(|(&a, &b)| f64::from(a) - f64::from(b)));
        let allowed = precision(infos[i].dtype);
        ensure!(
            meant.len() == found.len() && change.sqrt() <= allowed * size.sqrt() + f64::MIN_POSITIVE,
            "{name} changed by {:.2e} of its size, {allowed:.2e} is what its type allows",
            (change / size).sqrt()
        );
    }
    Ok(())
}

/// Refuses a base on which llama.cpp cannot be right, whatever the adapter.
fn check_base(model: &ModelConfig) -> Result<()> {
    layout::check(model)?;
    ensure!(
        layout::scale_mismatch(model) == 1.0,
        "llama.cpp scales this base's attention by the size of its heads, where query_pre_attn_scalar says {:.4}: no adapter \
         can be right on that. --format gguf folds the difference into the merged model",
        model.attention_scale.powi(-2)
    );
    Ok(())
}
