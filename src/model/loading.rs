//! Weights from safetensors files: single or sharded, f32, f16 or bf16, read through a memory map, one
//! tensor at a time, so that no second copy of the model ever exists. Or weights drawn at random, to train a
//! small model from the start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use serde_json::Value;

use super::config::ModelConfig;
use super::gguf::{GgufFile, GgufWeights};
use super::mapped;
use crate::ops;
use crate::ops::rms_norm::Gain;
use crate::ops::weight::{Storage, Weight};
use crate::rng;

/// Where a model's weights come from.
pub struct Weights {
    source: Source,
    dtype: DType,
    activations: DType,
    device: Device,
    storage: Storage,
}

enum Source {
    Files(WeightFiles),
    Gguf(GgufWeights),
    Random { seed: u64, gain: Gain, scale: f64 },
}

/// The tensors of a snapshot as they lie on disk.
pub struct WeightFiles {
    files: MmapedSafetensors,
    names: BTreeMap<String, (Vec<usize>, safetensors::Dtype)>,
    /// What stands before `layers.0…` on disk.
    prefix: String,
    dir: PathBuf,
}

/// The weight files of a snapshot folder.
///
/// # Errors
/// If there are none, or the index is damaged.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    let index = dir.join("model.safetensors.index.json");
    if single.is_file() {
        return Ok(vec![single]);
    }
    if !index.is_file() {
        bail!("{}: neither model.safetensors nor model.safetensors.index.json is there", dir.display());
    }
    let at = || index.display().to_string();
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(&index).with_context(at)?).with_context(at)?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.with_context(|| format!("{}: weight_map is missing", index.display()))?;
    let mut files = Vec::new();
    for name in map.values() {
        let name =
            name.as_str().with_context(|| format!("{}: {name} is not a file name", index.display()))?;
        ensure!(
            Path::new(name).components().count() == 1 && !name.starts_with('.'),
            "{}: {name:?} is not a plain file name",
            index.display()
        );
        files.push(dir.join(name));
    }
    files.sort();
    files.dedup();
    for file in &files {
        ensure!(file.is_file(), "{}: the index names this shard, but it is not there", file.display());
    }
    Ok(files)
}

impl Weights {
    /// Opens the weights of the snapshot in `dir`, to be converted to `dtype` on `device`.
    ///
    /// # Errors
    /// If files are missing, damaged, or do not hold this model.
    pub fn open(dir: &Path, config: &ModelConfig, dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self::of(Source::Files(WeightFiles::open(dir, config)?), dtype, device))
    }

    /// The weights of a GGUF file, whose quantised linears stay as they are unless [`Weights::stored_as`] says otherwise.
    ///
    /// # Errors
    /// If the file does not hold this model.
    pub fn of_gguf(file: GgufFile, config: &ModelConfig, dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self::of(Source::Gguf(GgufWeights::new(file, config)?), dtype, device))
    }

    /// Weights drawn from `seed`: normal with standard deviation `initializer_range`, norms without effect, biases 0.
    pub fn random(seed: u64, config: &ModelConfig, dtype: DType, device: &Device) -> Self {
        let source = Source::Random { seed, gain: config.gain, scale: config.initializer_range };
        Self::of(source, dtype, device)
    }

    fn of(source: Source, dtype: DType, device: &Device) -> Self {
        let activations = ops::activations(dtype, device);
        Self { source, dtype, activations, device: device.clone(), storage: Storage::Dense }
    }

    /// Computes activations in `dtype`, where it is not what the device would choose.
    pub fn with_activations(self, dtype: DType) -> Self {
        Self { activations: dtype, ..self }
    }

    /// Keeps the linears' weights so; the embedding and the head stay in the dtype of weights.
    pub fn stored_as(self, storage: Storage) -> Self {
        Self { storage, ..self }
    }

    /// The dtype of activations, in which norms, biases and routers are kept too.
    pub fn activations(&self) -> DType {
        self.activations
    }

    /// Where the weights go.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A linear's weight (out, in).
    ///
    /// # Errors
    /// As [`Weights::get`], or if its rows do not fill quantised blocks.
    pub fn linear(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        if let (Source::Gguf(weights), &[d_out, d_in]) = (&self.source, shape) {
            return weights.linear(name, (d_out, d_in), self.storage, self.dtype, &self.device);
        }
        let weight = self.read(name, shape)?;
        Weight::new(&weight, self.storage, self.dtype, &self.device).with_context(|| name.to_string())
    }

    /// The small tensor of that name below the model's root (`layers.0.input_layernorm.weight`), of that shape, in the dtype
    /// of activations.
    ///
    /// # Errors
    /// If it is missing, or has another shape or a dtype that is not a float.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(self.read(name, shape)?.to_dtype(self.activations)?.to_device(&self.device)?)
    }

    /// The embedding (vocabulary, hidden).
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn embedding(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(self.read("embed_tokens.weight", shape)?.to_dtype(self.dtype)?.to_device(&self.device)?)
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match &self.source {
            Source::Files(files) => files.get(&format!("{}{name}", files.prefix), shape),
            Source::Gguf(weights) => weights.get(name, shape),
            Source::Random { seed, gain, scale } => random(*seed, *gain, *scale, name, shape),
        }
    }

    /// The output head (vocabulary, hidden) of a model that does not tie it.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn head(&self, shape: &[usize]) -> Result<Tensor> {
        let tensor = match &self.source {
            Source::Files(files) if files.names.contains_key("lm_head.weight") => {
                files.get("lm_head.weight", shape)?
            }
            Source::Files(files) => files.get("language_model.lm_head.weight", shape)?,
            Source::Gguf(weights) => weights.get("lm_head.weight", shape)?,
            Source::Random { seed, gain, scale } => random(*seed, *gain, *scale, "lm_head.weight", shape)?,
        };
        Ok(tensor.to_dtype(self.dtype)?.to_device(&self.device)?)
    }
}

impl WeightFiles {
    /// Opens the weights of the snapshot in `dir`.
    ///
    /// # Errors
    /// If files are missing, damaged, or do not hold this model.
    pub fn open(dir: &Path, config: &ModelConfig) -> Result<Self> {
        let paths = weight_files(dir)?;
        let mut names = BTreeMap::new();
        for path in &paths {
            read_header(path, &mut names).with_context(|| format!("{} is damaged", path.display()))?;
        }
        #[expect(unsafe_code, reason = "a memory map; the files are not written to while they are open")]
        let files = unsafe { MmapedSafetensors::multi(&paths) }
            .with_context(|| format!("cannot open the weights in {}", dir.display()))?;
        let prefixes: &[&str] = if config.multimodal {
            &["language_model.model.", "model.language_model.", "language_model."]
        } else {
            &["model."]
        };
        let embedding = |p: &&&str| names.contains_key(&format!("{p}embed_tokens.weight"));
        let Some(prefix) = prefixes.iter().find(embedding) else {
            bail!(
                "{}: the weights have no tensor {}embed_tokens.weight; are they another model's, or quantised?",
                dir.display(),
                prefixes[0]
            );
        };
        Ok(Self { files, names, prefix: (*prefix).to_string(), dir: dir.to_path_buf() })
    }

    /// What a tensor below the model's root (`layers.0.self_attn.q_proj.weight`) is called on disk.
    pub fn on_disk(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Every tensor's name on disk, shape and dtype, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize], safetensors::Dtype)> {
        self.names.iter().map(|(name, (shape, dtype))| (name.as_str(), shape.as_slice(), *dtype))
    }

    /// A tensor by its name on disk, in its own dtype, which may be none that this program computes with.
    ///
    /// # Errors
    /// If it is missing.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>> {
        let dir = self.dir.display();
        ensure!(self.names.contains_key(name), "{dir}: the weights have no tensor {name}");
        self.files.get(name).with_context(|| format!("{dir}: cannot read {name}"))
    }

    /// A tensor of floats by its name on disk, in its own dtype, on the CPU.
    ///
    /// # Errors
    /// If it is missing, or has another shape or a dtype that is not a float.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let dir = self.dir.display();
        let Some((found, dtype)) = self.names.get(name) else {
            bail!("{dir}: the weights have no tensor {name}");
        };
        ensure!(found == shape, "{dir}: {name} has shape {found:?}, but config.json implies {shape:?}");
        use safetensors::Dtype::{BF16, F16, F32, F64};
        ensure!(
            matches!(dtype, BF16 | F16 | F32 | F64),
            "{dir}: {name} is stored as {dtype:?}; only f32, f16 and bf16 weights are supported"
        );
        let read = || -> candle_core::Result<Tensor> {
            let tensor = self.files.load(name, &Device::Cpu)?;
            let bytes = self.files.get(name)?.data();
            #[expect(unsafe_code, reason = "the bytes are the file's map's")]
            unsafe {
                mapped::give_back(bytes);
            }
            Ok(tensor)
        };
        read().with_context(|| format!("cannot read {name}"))
    }
}

/// Random weights that one stream draws.
const RANDOM_CHUNK: usize = 1 << 20;

fn random(seed: u64, gain: Gain, scale: f64, name: &str, shape: &[usize]) -> Result<Tensor> {
    let count = shape.iter().product();
    let values: Vec<f32> = if name.ends_with("norm.weight") {
        vec![if gain == Gain::Weight { 1.0 } else { 0.0 }; count]
    } else if name.ends_with(".bias") {
        vec![0.0; count]
    } else {
        let mut values = vec![0.0; count];
        values.par_chunks_mut(RANDOM_CHUNK).enumerate().for_each(|(i, chunk)| {
            let mut stream = rng::stream(seed, &format!("init/{name}"), i as u64);
            chunk.iter_mut().for_each(|value| *value = (stream.normal() * scale) as f32);
        });
        values
    };
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn read_header(path: &Path, names: &mut BTreeMap<String, (Vec<usize>, safetensors::Dtype)>) -> Result<()> {
    let file = std::fs::File::open(path)?;
    #[expect(unsafe_code, reason = "a memory map; the file is not written to while it is open")]
    let map = unsafe { memmap2::Mmap::map(&file)? };
    let tensors = safetensors::SafeTensors::deserialize(&map)?;
    for (name, view) in tensors.iter() {
        names.insert(name.to_string(), (view.shape().to_vec(), view.dtype()));
    }
    Ok(())
}
