//! GGUF files as base models: one file with weights, config, tokenizer and chat template, as llama.cpp has them.
//!
//! What such a file says is turned back into what the hub says: a `config.json` (here), tokenizer files
//! ([`crate::tokens::gguf`]), and tensors by the hub's names, with llama.cpp's changes to them undone. Blocks of
//! quantised linears are kept as they are.

mod config;
pub(crate) mod layout;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{Cursor, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use serde_json::{Map, Value as Json};

use super::config::ModelConfig;
use super::mapped;
use crate::ops::weight::{Storage, Weight};
use layout::{Change, Origin};

/// A GGUF file of a whole model, its header read and checked.
pub struct GgufFile {
    path: PathBuf,
    map: Mmap,
    content: Content,
}

/// The tensors of a model in a GGUF file, by the hub's names.
pub struct GgufWeights {
    file: GgufFile,
    /// By the name below the model's root; the head is `lm_head.weight`.
    entries: BTreeMap<String, Place>,
}

/// Where the file has a tensor of the hub's.
struct Place {
    name: String,
    change: Change,
    /// Which one of a stack of experts' it is.
    expert: Option<usize>,
}

/// Whether a path is that of a GGUF file, by its name or, where it has another one, by its first letters.
pub fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut start = [0; 4];
        let read =
            path.is_file() && std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut start)).is_ok();
        read && start == *b"GGUF"
    };
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) || begins()
}

/// How much there is of a file's weights, see [`GgufFile::sizes`].
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of the weights in blocks.
    blocks: usize,
    /// Weights that are kept as floats.
    floats: usize,
}

impl Sizes {
    /// Bytes where floats are kept in `dtype`.
    pub fn bytes(self, dtype: DType) -> usize {
        self.blocks + self.floats * dtype.size_in_bytes()
    }
}

impl GgufFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// If it cannot be read, is damaged or cut short, or is not one whole model.
    pub fn open(path: &Path) -> Result<Self> {
        let at = || format!("cannot open {}", path.display());
        let file = std::fs::File::open(path).with_context(at)?;
        #[expect(unsafe_code, reason = "a memory map; the file is not written to while it is open")]
        let map = unsafe { Mmap::map(&file) }.with_context(at)?;
        Self::read(path, map).with_context(|| path.display().to_string())
    }

    fn read(path: &Path, map: Mmap) -> Result<Self> {
        ensure!(map.starts_with(b"GGUF"), "this is no GGUF file: it does not begin with those letters");
        ensure!(!has_zero_alignment(&map), "the file is damaged: general.alignment is 0");
        let content = Content::read(&mut Cursor::new(&map[..])).map_err(|error| {
            let text = error.to_string();
            let text = text.lines().next().unwrap_or_default().to_string();
            match text.contains("unknown dtype") {
                true => anyhow::anyhow!(
                    "it has tensors of a type that this program does not read ({text}): F32, F16, BF16, Q4_0 to Q8_0 and \
                     Q2_K to Q6_K are read, IQ types are not"
                ),
                false => anyhow::anyhow!("the file is damaged or cut short: {text}"),
            }
        })?;
        let file = Self { path: path.to_path_buf(), map, content };
        let kind = file.text("general.type").unwrap_or("model");
        ensure!(kind == "model", "it holds no model but what it calls {kind:?}");
        let parts = file.content.metadata.get("split.count").and_then(unsigned).unwrap_or(1);
        ensure!(parts <= 1, "it is one of {parts} parts of a model: join them with llama-gguf-split --merge");
        for name in file.content.tensor_infos.keys() {
            file.bytes(name)?;
        }
        Ok(file)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the hub's `config.json` would say.
    ///
    /// # Errors
    /// If a value is missing, or the model is of a kind that this program does not compute.
    pub fn config_json(&self) -> Result<Json> {
        config::config_json(self).with_context(|| self.path.display().to_string())
    }

    /// All metadata as JSON, by key.
    pub fn metadata(&self) -> Map<String, Json> {
        let entry = |(key, value): (&String, &Value)| (key.clone(), json(value));
        self.content.metadata.iter().map(entry).collect()
    }

    /// The quantised storage that comes nearest to how most weights of linears are stored, or coarser.
    pub fn storage(&self) -> Storage {
        let kind = self.of_most_weights(|dtype| match dtype {
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => 0,
            GgmlDType::Q2K | GgmlDType::Q3K | GgmlDType::Q4K | GgmlDType::Q4_0 | GgmlDType::Q4_1 => 1,
            _ => 2,
        });
        match kind {
            Some(1) => Storage::Q4K,
            Some(2) => Storage::Q8_0,
            _ => Storage::Dense,
        }
    }

    /// What `kind` says of the types of linears, for more of their weights than anything else it says.
    fn of_most_weights<K: Ord>(&self, kind: impl Fn(GgmlDType) -> K) -> Option<K> {
        let mut count: BTreeMap<K, usize> = BTreeMap::new();
        for (name, info) in &self.content.tensor_infos {
            if name.starts_with("blk.") && info.shape.rank() >= 2 {
                *count.entry(kind(info.ggml_dtype)).or_default() += info.shape.elem_count();
            }
        }
        count.into_iter().max_by_key(|(_, weights)| *weights).map(|(kind, _)| kind)
    }

    /// How much the weights are where linears stay in their blocks.
    pub fn sizes(&self) -> Sizes {
        let mut sizes = Sizes { blocks: 0, floats: 0 };
        for (name, info) in &self.content.tensor_infos {
            let elements = info.shape.elem_count();
            let block = info.ggml_dtype.block_size();
            match block > 1 && name.starts_with("blk.") {
                true => sizes.blocks += elements / block * info.ggml_dtype.type_size(),
                false => sizes.floats += elements,
            }
        }
        sizes
    }

    /// The dtype in which a snapshot of this model is stored: that of most weights of linears, and f16 where they are
    /// quantised. Scales of blocks are in f16; bf16 has too few digits for what they stand for.
    pub(crate) fn float_dtype(&self) -> safetensors::Dtype {
        let dtype = self.of_most_weights(|dtype| match dtype {
            GgmlDType::F32 => safetensors::Dtype::F32,
            GgmlDType::BF16 => safetensors::Dtype::BF16,
            _ => safetensors::Dtype::F16,
        });
        dtype.unwrap_or(safetensors::Dtype::F16)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.value(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.content.tensor_infos.get(name).map(|info| info.shape.dims())
    }

    /// A tensor's bytes, type and shape.
    fn bytes(&self, name: &str) -> Result<(&[u8], GgmlDType, &[usize])> {
        let info =
            self.content.tensor_infos.get(name).with_context(|| format!("there is no tensor {name}"))?;
        let damaged = || format!("{name} does not fit the file: it is damaged or cut short");
        let shape = info.shape.dims();
        let count = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).with_context(damaged)?;
        let block = info.ggml_dtype.block_size();
        let columns = shape.last().copied().unwrap_or(1);
        ensure!(
            columns.is_multiple_of(block),
            "{name} has rows of {columns}, which do not fill blocks of {block}"
        );
        let size = (count / block).checked_mul(info.ggml_dtype.type_size()).with_context(damaged)?;
        let start = self.content.tensor_data_offset.checked_add(info.offset).with_context(damaged)?;
        let start = usize::try_from(start).ok().with_context(damaged)?;
        let end = start.checked_add(size).with_context(damaged)?;
        let bytes = self.map.get(start..end).with_context(damaged)?;
        Ok((bytes, info.ggml_dtype, shape))
    }

    /// A tensor in f32 on the CPU.
    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.part(name, None)
    }

    /// [`GgufFile::bytes`], or those of one of the tensors that are stacked there.
    fn part_bytes(&self, name: &str, index: Option<usize>) -> Result<(&[u8], GgmlDType, &[usize])> {
        let (bytes, dtype, shape) = self.bytes(name)?;
        match (index, shape) {
            (Some(index), &[count, ..]) if index < count => {
                let size = bytes.len() / count;
                Ok((&bytes[index * size..][..size], dtype, &shape[1..]))
            }
            (Some(index), _) => bail!("{name} of shape {shape:?} has no part {index}"),
            (None, _) => Ok((bytes, dtype, shape)),
        }
    }

    fn part(&self, name: &str, index: Option<usize>) -> Result<Tensor> {
        let (bytes, dtype, shape) = self.part_bytes(name, index)?;
        let words = |n: usize| bytes.chunks_exact(n);
        let values: Vec<f32> = match dtype {
            GgmlDType::F32 => words(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            GgmlDType::F16 => words(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            GgmlDType::BF16 => words(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            blocks => {
                // A copy, so that blocks lie where their type wants them.
                let storage = QStorage::from_data(Cow::Owned(bytes.to_vec()), &Device::Cpu, blocks)?;
                return Ok(QTensor::new(storage, shape)?.dequantize(&Device::Cpu)?);
            }
        };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}

impl GgufWeights {
    /// The weights of the model that the file holds; `model` must be of the file's own [`GgufFile::config_json`].
    ///
    /// # Errors
    /// If tensors are missing, have other shapes, or are there that this program knows nothing of.
    pub fn new(file: GgufFile, model: &ModelConfig) -> Result<Self> {
        let mut entries = BTreeMap::new();
        let mut known = vec!["rope_freqs.weight".to_string()];
        for entry in layout::entries(model)? {
            let belows = match entry.origin {
                Origin::Below(below) => vec![(below, None)],
                Origin::Experts(belows) => belows.into_iter().zip((0..).map(Some)).collect(),
                Origin::Head => vec![("lm_head.weight".to_string(), None)],
                Origin::Values(_) => continue,
            };
            let found = file.shape(&entry.name);
            let at = file.path.display();
            let Some(found) = found else { bail!("{at}: there is no tensor {}", entry.name) };
            ensure!(
                found == entry.shape,
                "{at}: {} has shape {found:?}, where the metadata imply {:?}",
                entry.name,
                entry.shape
            );
            known.push(entry.name.clone());
            for (below, expert) in belows {
                entries.insert(below, Place { name: entry.name.clone(), change: entry.change, expert });
            }
        }
        known.sort();
        let unknown =
            file.content.tensor_infos.keys().filter(|name| known.binary_search(name).is_err()).min();
        if let Some(unknown) = unknown {
            bail!(
                "{}: this program does not know what {unknown} is for, so it would compute something else",
                file.path.display()
            );
        }
        Ok(Self { file, entries })
    }

    /// Names below the model's root, and shapes.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.entries.iter().map(|(below, place)| {
            let stacked = usize::from(place.expert.is_some());
            (below.as_str(), &self.file.shape(&place.name).unwrap_or_default()[stacked..])
        })
    }

    fn place(&self, name: &str, shape: &[usize]) -> Result<&Place> {
        let place = self.entries.get(name).with_context(|| format!("there is no tensor {name}"))?;
        let (_, _, found) = self.file.part_bytes(&place.name, place.expert)?;
        ensure!(found == shape, "{} has shape {found:?}, {shape:?} is wanted", place.name);
        Ok(place)
    }

    /// The tensor of that name below the model's root, in f32 on the CPU.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let place = self.place(name, shape)?;
        let read = || -> Result<Tensor> {
            let tensor = place.change.undo(&self.file.part(&place.name, place.expert)?)?;
            give_back(self.file.part_bytes(&place.name, place.expert)?.0);
            Ok(tensor)
        };
        read().with_context(|| format!("{}: {}", self.file.path.display(), place.name))
    }

    /// A linear's weight: in its own blocks where it has some and `storage` asks for no others.
    pub(super) fn linear(
        &self,
        name: &str,
        shape: (usize, usize),
        storage: Storage,
        dtype: DType,
        device: &Device,
    ) -> Result<Weight> {
        let place = self.place(name, &[shape.0, shape.1])?;
        let (bytes, kind, _) = self.file.part_bytes(&place.name, place.expert)?;
        let is_blocks = kind.block_size() > 1;
        let kept = is_blocks && (storage == Storage::Dense || storage.blocks(shape.1) == Some(kind));
        let rows = match place.change {
            Change::Nothing if kept => Some(Cow::Borrowed(bytes)),
            Change::PermuteHeads(heads) if kept => Some(Cow::Owned(unpermute(bytes, shape.0, heads))),
            _ => None,
        };
        match rows {
            Some(rows) => {
                let weight = Weight::of_blocks(&rows, kind, shape, dtype, device);
                give_back(bytes);
                weight
            }
            None => Weight::new(&self.get(name, &[shape.0, shape.1])?, storage, dtype, device),
        }
    }
}

/// [`mapped::give_back`] of bytes of a file's map.
fn give_back(bytes: &[u8]) {
    #[expect(unsafe_code, reason = "the bytes are the file's map's")]
    unsafe {
        mapped::give_back(bytes);
    }
}

/// Rows of whole blocks, in the hub's order.
fn unpermute(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let size = bytes.len() / rows.max(1);
    let order = layout::unpermuted_rows(rows, heads);
    order.into_iter().flat_map(|row| &bytes[row as usize * size..][..size]).copied().collect()
}

/// candle divides by the alignment before anyone can look at it.
fn has_zero_alignment(bytes: &[u8]) -> bool {
    const KEY: &[u8] = b"general.alignment";
    // Metadata with a vocabulary may be long; this key stands before it or not at all.
    let header = &bytes[..bytes.len().min(1 << 24)];
    header.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY).any(|(at, _)| {
        let after = &header[at + KEY.len()..];
        let width = match after.first_chunk::<4>().map(|code| u32::from_le_bytes(*code)) {
            Some(0 | 1) => 1,
            Some(2 | 3) => 2,
            _ => 4,
        };
        after.get(4..4 + width).is_some_and(|value| value.iter().all(|b| *b == 0))
    })
}

fn unsigned(value: &Value) -> Option<u64> {
    match value {
        Value::U8(v) => Some((*v).into()),
        Value::U16(v) => Some((*v).into()),
        Value::U32(v) => Some((*v).into()),
        Value::U64(v) => Some(*v),
        Value::I8(v) => (*v).try_into().ok(),
        Value::I16(v) => (*v).try_into().ok(),
        Value::I32(v) => (*v).try_into().ok(),
        Value::I64(v) => (*v).try_into().ok(),
        _ => None,
    }
}

fn json(value: &Value) -> Json {
    match value {
        Value::String(text) => Json::from(text.as_str()),
        Value::Bool(flag) => Json::from(*flag),
        Value::F32(x) => Json::from(f64::from(*x)),
        Value::F64(x) => Json::from(*x),
        Value::Array(values) => values.iter().map(json).collect(),
        Value::I8(v) => Json::from(*v),
        Value::I16(v) => Json::from(*v),
        Value::I32(v) => Json::from(*v),
        Value::I64(v) => Json::from(*v),
        other => unsigned(other).map_or(Json::Null, Json::from),
    }
}
