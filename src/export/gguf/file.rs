//! GGUF files, version 3, written tensor by tensor. (candle reads them; its writer wants all tensors in memory.)
//!
//! A file is: magic, version, counts; the metadata; each tensor's name, dimensions (innermost first), type and offset;
//! then the tensors, each at a multiple of 32 bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, DEFAULT_ALIGNMENT, Value};

use crate::model::gguf::layout::Metadata;

/// A tensor that a file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorInfo {
    pub name: String,
    /// Outermost first, as everywhere else in this program.
    pub shape: Vec<usize>,
    pub dtype: GgmlDType,
}

impl TensorInfo {
    pub(super) fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.dtype.block_size() * self.dtype.type_size()
    }
}

/// Writes a file, asking `data` for one tensor's bytes at a time; returns their hashes in order.
pub(super) fn write(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorInfo],
    data: &mut dyn FnMut(usize) -> Result<Vec<u8>>,
) -> Result<Vec<blake3::Hash>> {
    let at = || format!("cannot write {}", path.display());
    let mut header = Vec::new();
    header.extend(b"GGUF");
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        string(&mut header, key);
        header.extend(type_code(value).to_le_bytes());
        put(&mut header, value).with_context(|| key.clone())?;
    }
    let mut offset = 0;
    for info in tensors {
        string(&mut header, &info.name);
        header.extend((info.shape.len() as u32).to_le_bytes());
        for &size in info.shape.iter().rev() {
            header.extend((size as u64).to_le_bytes());
        }
        header.extend(dtype_code(info.dtype)?.to_le_bytes());
        header.extend((offset as u64).to_le_bytes());
        offset += aligned(info.bytes());
    }
    header.resize(aligned(header.len()), 0);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).with_context(at)?);
    file.write_all(&header).with_context(at)?;
    let mut hashes = Vec::with_capacity(tensors.len());
    for (i, info) in tensors.iter().enumerate() {
        let mut bytes = data(i).with_context(|| info.name.clone())?;
        ensure!(bytes.len() == info.bytes(), "{} would be written with {} bytes", info.name, bytes.len());
        hashes.push(blake3::hash(&bytes));
        bytes.resize(aligned(bytes.len()), 0);
        file.write_all(&bytes).with_context(at)?;
    }
    file.into_inner().map_err(|e| e.into_error()).and_then(|file| file.sync_all()).with_context(at)?;
    Ok(hashes)
}

/// Reads a file with candle's reader and compares it, every byte of every tensor included, with what was meant.
pub(super) fn check(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorInfo],
    hashes: &[blake3::Hash],
) -> Result<Content> {
    let mut file = open(path)?;
    let content = Content::read(&mut file).with_context(|| format!("{} is damaged", path.display()))?;
    let meant: BTreeMap<&String, &Value> = metadata.iter().map(|(key, value)| (key, value)).collect();
    let found: BTreeMap<&String, &Value> = content.metadata.iter().collect();
    // Values have no equality; their text has.
    ensure!(
        meant.len() == metadata.len() && format!("{meant:?}") == format!("{found:?}"),
        "the metadata was not written as it was meant"
    );
    ensure!(content.tensor_infos.len() == tensors.len(), "not all tensors are there");
    let mut bytes = Vec::new();
    for (info, hash) in tensors.iter().zip(hashes) {
        let found =
            content.tensor_infos.get(&info.name).with_context(|| format!("{} is missing", info.name))?;
        ensure!(
            found.shape.dims() == info.shape && found.ggml_dtype == info.dtype,
            "{} has shape {:?} and type {:?}",
            info.name,
            found.shape,
            found.ggml_dtype
        );
        file.seek(SeekFrom::Start(content.tensor_data_offset + found.offset))?;
        bytes.resize(info.bytes(), 0);
        file.read_exact(&mut bytes).with_context(|| format!("{} is cut short", info.name))?;
        ensure!(
            blake3::hash(&bytes) == *hash,
            "{} was not written as it was meant: is the disk failing?",
            info.name
        );
    }
    Ok(content)
}

/// Opens a file to read tensors from.
pub(super) fn open(path: &Path) -> Result<BufReader<File>> {
    Ok(BufReader::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?))
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(DEFAULT_ALIGNMENT as usize)
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) -> Result<()> {
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => string(out, v),
        Value::Array(values) => {
            let first = values.first().context("an empty list has no type")?;
            let code = type_code(first);
            ensure!(values.iter().all(|v| type_code(v) == code), "a list of values of several types");
            out.extend(code.to_le_bytes());
            out.extend((values.len() as u64).to_le_bytes());
            for value in values {
                put(out, value)?;
            }
        }
    }
    Ok(())
}

fn type_code(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn dtype_code(dtype: GgmlDType) -> Result<u32> {
    Ok(match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q4K => 12,
        GgmlDType::Q6K => 14,
        GgmlDType::BF16 => 30,
        other => bail!("tensors are not written as {other:?}"),
    })
}
