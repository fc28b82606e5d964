//! The whole snapshot with the adapter added to the weights: names, shapes and dtypes are the base's own on disk, so
//! that every program that loads the base loads this.
//!
//! Tensors pass through one at a time; what the adapter does not touch is copied byte for byte.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use super::card::Kind;
use super::merge::{Merge, Stored};
use super::{Exported, Subject, python};
use crate::files;
use crate::model::loading::WeightFiles;
use crate::rng;

/// Bytes of a file of weights above which there are several, as other programs have it.
pub const MAX_SHARD_SIZE: u64 = 5_000_000_000;

/// Copied beside the weights where the base has them. The tokenizer's own files are written by the pipeline.
const COPIED: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

/// Writes the merged snapshot to `out`, whole or not at all, in files of at most `max_shard_size` bytes of weights
/// (a larger tensor gets a file of its own). `progress` hears how many tensors of how many are done.
///
/// # Errors
/// If there is no adapter or it does not fit, a weight is stored in a dtype that nothing can be added to, the disk
/// fails, or what was written is not what was meant.
pub fn export(
    subject: &Subject,
    max_shard_size: u64,
    out: &Path,
    progress: &dyn Fn(usize, usize),
) -> Result<Exported> {
    ensure!(!subject.lora()?.modules.is_empty(), "the adapter has no tensors");
    let config: serde_json::Value = files::read_json(&subject.base.join("config.json"))?;
    ensure!(
        config.pointer("/rope_scaling/rope_type").is_none_or(|kind| kind != "factors"),
        "the base's GGUF file gives a divisor for each rotary frequency, for which config.json has no form: name the model that \
         it was made of with --model, or export as gguf"
    );
    let merge = Merge::open(subject)?;
    let shards = plan(&merge, max_shard_size)?;
    let load = load(&out.display().to_string());
    let mut notes = Vec::new();
    files::write_folder(out, |dir| {
        let mut hashes = BTreeMap::new();
        let total = shards.iter().map(|shard| shard.tensors.len()).sum();
        for shard in &shards {
            write_shard(&dir.join(&shard.file), &merge, &shard.tensors, &mut |name, bytes| {
                hashes.insert(name.to_string(), blake3::hash(bytes));
                progress(hashes.len(), total);
            })?;
        }
        if shards.len() > 1 {
            write_index(dir, &shards)?;
        }
        for name in COPIED.into_iter().filter(|name| subject.base.join(name).is_file()) {
            std::fs::copy(subject.base.join(name), dir.join(name))
                .with_context(|| format!("cannot copy {name} to {}", dir.display()))?;
        }
        if let Some(pipeline) = subject.pipeline {
            pipeline.save_beside(subject.base, dir)?;
        }
        notes = check(&merge, subject, dir, &hashes).context("checking what was written")?;
        subject.card.write(dir, Kind::Merged, &self::load("."), &notes)
    })?;
    Ok(Exported { load, notes })
}

fn load(path: &str) -> String {
    let path = python(path);
    format!(
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\
         model, tokenizer = AutoModelForCausalLM.from_pretrained({path}), AutoTokenizer.from_pretrained({path})"
    )
}

/// One file of weights.
struct Shard {
    file: String,
    tensors: Vec<Stored>,
    bytes: u64,
}

fn plan(merge: &Merge, max_shard_size: u64) -> Result<Vec<Shard>> {
    let mut shards: Vec<Shard> = Vec::new();
    for tensor in merge.base.tensors() {
        let size = tensor.bytes() as u64;
        match shards.last_mut().filter(|shard| shard.bytes + size <= max_shard_size) {
            Some(shard) => {
                shard.bytes += size;
                shard.tensors.push(tensor);
            }
            None => shards.push(Shard { file: String::new(), tensors: vec![tensor], bytes: size }),
        }
    }
    let count = shards.len();
    for (i, shard) in shards.iter_mut().enumerate() {
        shard.file = match count {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        // Readers want every tensor aligned to its dtype: the widest come first.
        shard.tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    }
    Ok(shards)
}

/// Writes a safetensors file tensor by tensor; `done` sees each one's bytes.
fn write_shard(
    path: &Path,
    merge: &Merge,
    tensors: &[Stored],
    done: &mut dyn FnMut(&str, &[u8]),
) -> Result<()> {
    let at = || format!("cannot write {}", path.display());
    let mut offset = 0;
    let infos = tensors.iter().map(|info| {
        let data_offsets = (offset, offset + info.bytes());
        offset = data_offsets.1;
        (info.name.clone(), TensorInfo { dtype: info.dtype, shape: info.shape.clone(), data_offsets })
    });
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let mut header = serde_json::to_vec(&Metadata::new(Some(format), infos.collect())?)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).with_context(at)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).with_context(at)?;
    file.write_all(&header).with_context(at)?;
    for info in tensors {
        let bytes = merge.stored(info)?;
        ensure!(bytes.len() == info.bytes(), "{} would be written with {} bytes", info.name, bytes.len());
        file.write_all(&bytes).with_context(at)?;
        done(&info.name, &bytes);
    }
    file.into_inner().map_err(|e| e.into_error()).and_then(|file| file.sync_all()).with_context(at)
}

fn write_index(dir: &Path, shards: &[Shard]) -> Result<()> {
    let names = shards.iter().flat_map(|shard| shard.tensors.iter().map(|info| (&info.name, &shard.file)));
    let map: BTreeMap<_, _> = names.collect();
    let total: u64 = shards.iter().map(|shard| shard.bytes).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    files::write_json(&dir.join("model.safetensors.index.json"), &index)
}

/// Reads everything back: the list of tensors is the base's, every byte is the one meant, and the merged weights
/// map a vector to where base and adapter map it.
fn check(
    merge: &Merge,
    subject: &Subject,
    dir: &Path,
    hashes: &BTreeMap<String, blake3::Hash>,
) -> Result<Vec<String>> {
    let written = WeightFiles::open(dir, subject.model)?;
    let tensors = merge.base.tensors();
    ensure!(
        written.tensors().eq(tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice(), t.dtype))),
        "the tensors in {} are not those of the base",
        dir.display()
    );
    for (name, hash) in hashes {
        let found = blake3::hash(written.view(name)?.data());
        ensure!(found == *hash, "{name} was not written as it was meant: is the disk failing?");
    }
    let adapted: Vec<&String> = merge.adapted().keys().collect();
    let mut lost = 0.0f64;
    for name in [0, adapted.len() / 2, adapted.len() - 1].map(|i| adapted[i]) {
        lost = lost.max(check_products(merge, &written, name)?);
    }
    Ok(match lost > 0.01 {
        true => vec![format!(
            "rounding to the dtype of the base's weights changes what the adapter adds by about {:.0} % (of its norm, on \
             the weights that were looked at); the adapter itself is exact",
            100.0 * lost
        )],
        false => Vec::new(),
    })
}

/// Rows of a weight that are looked at.
const ROWS: usize = 128;

/// Compares W' x with W x + s B (A x) within the rounding of W'; returns how much of s B A the rounding took, as a
/// share of its Frobenius norm.
fn check_products(merge: &Merge, written: &WeightFiles, name: &str) -> Result<f64> {
    let Some((_, shape, dtype)) = written.tensors().find(|(found, ..)| *found == name) else {
        bail!("{name} is missing")
    };
    let module = merge.adapted()[name];
    let rows = |t: &Tensor| t.narrow(0, 0, ROWS.min(shape[0]))?.to_dtype(DType::F64);
    let after = rows(&written.get(name, shape)?)?;
    let before = rows(&merge.base.get(name, shape)?)?;
    let (a, b) = (module.a.to_dtype(DType::F64)?, rows(&module.b)?);
    let mut stream = rng::stream(0, "export/check", 0);
    let x: Vec<f64> = (0..shape[1]).map(|_| 2.0 * stream.uniform() - 1.0).collect();
    let x = Tensor::from_vec(x, (shape[1], 1), &Device::Cpu)?;
    let expected = (before.matmul(&x)? + (b.matmul(&a.matmul(&x)?)? * module.scale)?)?;
    let found = after.matmul(&x)?;
    // Half a unit in the last place of each weight; f32 adds the rounding of the product and of the sum.
    let unit = match dtype {
        Dtype::BF16 => 2f64.powi(-8),
        Dtype::F16 => 2f64.powi(-10),
        _ => 2f64.powi(-20),
    };
    let size = ((before.abs()? + (b.abs()?.matmul(&a.abs()?)? * module.scale.abs())?)?).matmul(&x.abs()?)?;
    let size = size.flatten_all()?.to_vec1::<f64>()?;
    let pairs =
        expected.flatten_all()?.to_vec1::<f64>()?.into_iter().zip(found.flatten_all()?.to_vec1::<f64>()?);
    for (row, ((expected, found), size)) in pairs.zip(size).enumerate() {
        // The smallest numbers of f16 have fewer digits.
        let allowed = unit * size + 1e-6;
        ensure!(
            (expected - found).abs() <= allowed,
            "{name}, row {row}: the merged weights give {found}, base and adapter {expected}"
        );
    }
    let delta = (b.matmul(&a)? * module.scale)?;
    let norm = |t: &Tensor| -> Result<f64> { Ok(t.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt()) };
    let size = norm(&delta)?;
    Ok(if size > 0.0 { norm(&((after - before)? - delta)?)? / size } else { 0.0 })
}
