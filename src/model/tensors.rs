//! Named tensors to and from safetensors files.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView};

use crate::files;

/// Writes tensors whole or not at all, with the metadata that transformers' loaders ask for.
///
/// # Errors
/// If a dtype cannot be stored or the disk fails.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let mut data = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let (dtype, bytes) = bytes(tensor).with_context(|| name.clone())?;
        data.push((name.as_str(), dtype, tensor.dims().to_vec(), bytes));
    }
    let views = data.iter().map(|(name, dtype, shape, bytes)| {
        Ok((*name, TensorView::new(*dtype, shape.clone(), bytes.as_slice())?))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    files::write(path, &safetensors::serialize(views, Some(metadata))?)
}

fn bytes(tensor: &Tensor) -> Result<(Dtype, Vec<u8>)> {
    let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    Ok(match tensor.dtype() {
        DType::F32 => (Dtype::F32, flat.to_vec1::<f32>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
        DType::F64 => (Dtype::F64, flat.to_vec1::<f64>()?.iter().flat_map(|v| v.to_le_bytes()).collect()),
        DType::BF16 => {
            (Dtype::BF16, flat.to_vec1::<half::bf16>()?.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        other => bail!("tensors of dtype {other:?} cannot be stored"),
    })
}

/// Reads all tensors of a file to the CPU, in their own dtypes.
///
/// # Errors
/// If the file cannot be read, or is damaged.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let data = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let parsed = SafeTensors::deserialize(&data).with_context(|| format!("{} is damaged", path.display()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in parsed.tensors() {
        let dtype = DType::try_from(view.dtype())
            .with_context(|| format!("{}: {name} is stored as {:?}", path.display(), view.dtype()))?;
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?;
        tensors.insert(name.clone(), tensor);
    }
    Ok(tensors)
}
