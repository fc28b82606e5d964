//! A frozen weight as it is kept: dense, rounded to bf16, or in the quantised blocks of GGUF.
//!
//! Whatever it is, every operation works on [`Weight::dense`], one tensor at a time, so that gradients through it
//! are those of the dequantised weight.

use std::borrow::Cow;

use anyhow::{Context as _, Result, ensure};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor, WithDType};
use half::bf16;
use rayon::prelude::*;

use super::cpu::{self, Real as _};

/// How frozen weights of linears are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// In the dtype of weights.
    #[default]
    Dense,
    /// Rounded to bf16; multiplied in the dtype of weights.
    Bf16,
    /// 8-bit blocks of 32 with one scale each: 8.5 bits a weight.
    Q8_0,
    /// 4-bit blocks of 32 with a scale and a minimum, 256 together: 4.5 bits a weight. Rows that 256 does not divide
    /// are kept as [`Storage::Q8_0`].
    Q4K,
}

impl Storage {
    /// All, by name.
    pub const NAMES: [(&'static str, Storage); 4] =
        [("none", Storage::Dense), ("bf16", Storage::Bf16), ("q8_0", Storage::Q8_0), ("q4_k", Storage::Q4K)];

    /// The storage of that name.
    pub fn parse(name: &str) -> Option<Storage> {
        Self::NAMES
            .into_iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, storage)| storage)
    }

    /// Bytes of a weight (out, in) where weights are in `dtype`.
    pub fn bytes(self, (d_out, d_in): (usize, usize), dtype: DType) -> usize {
        match self.blocks(d_in) {
            Some(blocks) => d_out * d_in / blocks.block_size() * blocks.type_size(),
            None if self == Storage::Bf16 => d_out * d_in * 2,
            None => d_out * d_in * dtype.size_in_bytes(),
        }
    }

    /// The blocks of a weight with such rows; none where it is kept as floats.
    pub(crate) fn blocks(self, d_in: usize) -> Option<GgmlDType> {
        match self {
            Storage::Dense | Storage::Bf16 => None,
            Storage::Q4K if d_in.is_multiple_of(GgmlDType::Q4K.block_size()) => Some(GgmlDType::Q4K),
            Storage::Q4K | Storage::Q8_0 => Some(GgmlDType::Q8_0),
        }
    }
}

/// A frozen weight (out, in).
#[derive(Debug)]
pub struct Weight {
    kept: Kept,
    shape: (usize, usize),
    dtype: DType,
}

#[derive(Debug)]
enum Kept {
    Dense(Tensor),
    Rounded(Tensor),
    /// Some rows each, so that they are dequantised in parallel.
    Blocks(Vec<QTensor>),
}

/// Rows of a part on the CPU.
const PART: usize = 128;

impl Weight {
    /// Keeps `weight` (out, in) as `storage` says on `device`, to be multiplied in `dtype`.
    ///
    /// # Errors
    /// If the rows do not fill blocks, or the device fails.
    pub fn new(weight: &Tensor, storage: Storage, dtype: DType, device: &Device) -> Result<Self> {
        let shape = weight.dims2()?;
        let kept = match storage.blocks(shape.1) {
            Some(blocks) => {
                ensure!(
                    shape.1.is_multiple_of(blocks.block_size()),
                    "a weight with rows of {} cannot be quantised in blocks of {}",
                    shape.1,
                    blocks.block_size()
                );
                Kept::Blocks(quantise(&weight.to_dtype(DType::F32)?, blocks, device)?)
            }
            None if storage == Storage::Bf16 && dtype != DType::BF16 => {
                Kept::Rounded(weight.to_dtype(DType::BF16)?.to_device(device)?)
            }
            None => Kept::Dense(weight.to_dtype(dtype)?.to_device(device)?),
        };
        Ok(Self { kept, shape, dtype })
    }

    /// Keeps a weight that is quantised already; `bytes` are those of its rows, one after the other.
    ///
    /// # Errors
    /// If they are not as many as the shape (out, in) needs, or the device fails.
    pub fn of_blocks(
        bytes: &[u8],
        blocks: GgmlDType,
        (d_out, d_in): (usize, usize),
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let row = d_in / blocks.block_size() * blocks.type_size();
        ensure!(
            d_in.is_multiple_of(blocks.block_size()) && bytes.len() == d_out * row && row > 0,
            "{} bytes are no weight of {d_out} rows of {d_in} in blocks of {blocks:?}",
            bytes.len()
        );
        let part = if device.is_cpu() { PART } else { d_out.max(1) };
        let keep = |rows: &[u8]| -> Result<QTensor> {
            // A copy, so that blocks lie where their type wants them.
            let storage = QStorage::from_data(Cow::Owned(rows.to_vec()), device, blocks)?;
            Ok(QTensor::new(storage, (rows.len() / row, d_in))?)
        };
        let parts = bytes.par_chunks(part * row).map(keep).collect::<Result<_>>()?;
        Ok(Self { kept: Kept::Blocks(parts), shape: (d_out, d_in), dtype })
    }

    /// (out, in)
    pub fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// The weight itself, where it is kept dense: only then can it be trained.
    pub fn as_dense(&self) -> Option<&Tensor> {
        match &self.kept {
            Kept::Dense(weight) => Some(weight),
            Kept::Rounded(_) | Kept::Blocks(_) => None,
        }
    }

    /// The weight itself, to be replaced.
    pub fn as_dense_mut(&mut self) -> Option<&mut Tensor> {
        match &mut self.kept {
            Kept::Dense(weight) => Some(weight),
            Kept::Rounded(_) | Kept::Blocks(_) => None,
        }
    }

    /// The weight (out, in) in the dtype in which it is multiplied.
    ///
    /// # Errors
    /// If the device fails.
    pub fn dense(&self) -> Result<Cow<'_, Tensor>> {
        Ok(match &self.kept {
            Kept::Dense(weight) => Cow::Borrowed(weight),
            Kept::Rounded(weight) => Cow::Owned(widen(weight, self.dtype)?),
            Kept::Blocks(parts) => Cow::Owned(dequantise(parts, self.shape, self.dtype)?),
        })
    }
}

fn quantise(weight: &Tensor, blocks: GgmlDType, device: &Device) -> Result<Vec<QTensor>> {
    let (d_out, _) = weight.dims2()?;
    let weight = weight.to_device(&Device::Cpu)?;
    let part = if device.is_cpu() { PART } else { d_out.max(1) };
    let firsts: Vec<usize> = (0..d_out).step_by(part).collect();
    let quantise = |first: usize| -> Result<QTensor> {
        // Not a view: candle quantises a tensor's whole storage.
        let rows = weight.narrow(0, first, part.min(d_out - first))?.force_contiguous()?;
        Ok(match device {
            Device::Cpu => QTensor::quantize(&rows, blocks)?,
            _ => QTensor::quantize_onto(&rows, blocks, device)?,
        })
    };
    firsts.into_par_iter().map(quantise).collect()
}

fn dequantise(parts: &[QTensor], (d_out, d_in): (usize, usize), dtype: DType) -> Result<Tensor> {
    let device = parts.first().context("a weight without rows")?.device();
    if !device.is_cpu() {
        let dense: Vec<Tensor> = parts.iter().map(|p| p.dequantize(&device)).collect::<Result<_, _>>()?;
        return Ok(Tensor::cat(&dense, 0)?.to_dtype(dtype)?);
    }
    match dtype {
        DType::BF16 => dequantise_as(parts, (d_out, d_in), narrow),
        DType::F64 => dequantise_as(parts, (d_out, d_in), f64::from),
        _ => dequantise_as(parts, (d_out, d_in), |x: f32| x),
    }
}

/// Some rows at a time, so that all of them exist in `T` only.
fn dequantise_as<T: WithDType>(
    parts: &[QTensor],
    (d_out, d_in): (usize, usize),
    convert: impl Fn(f32) -> T + Sync,
) -> Result<Tensor> {
    let mut dense = vec![T::zero(); d_out * d_in];
    let rows = dense.par_chunks_mut(PART * d_in).zip(parts);
    rows.try_for_each(|(rows, part)| -> Result<()> {
        let part = part.dequantize(&Device::Cpu)?;
        let part = cpu::view::<f32>(&part)?;
        cpu::vectorised(
            #[inline(always)]
            || rows.iter_mut().zip(&*part).for_each(|(to, &from)| *to = convert(from)),
        );
        Ok(())
    })?;
    cpu::tensor(dense, (d_out, d_in))
}

/// The nearest bf16, of two the even one.
#[inline(always)]
fn narrow(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let nan = bits >> 16 | 0x40;
    bf16::from_bits(if x.is_nan() { nan } else { rounded } as u16)
}

fn widen(weight: &Tensor, dtype: DType) -> Result<Tensor> {
    if !weight.device().is_cpu() || dtype != DType::F32 {
        return Ok(weight.to_dtype(dtype)?);
    }
    let narrow = cpu::view::<bf16>(weight)?;
    let mut wide = vec![0f32; narrow.len()];
    let chunks = wide.par_chunks_mut(1 << 16).zip(narrow.par_chunks(1 << 16));
    chunks.for_each(|(wide, narrow)| {
        cpu::vectorised(
            #[inline(always)]
            || {
                for (w, n) in wide.iter_mut().zip(narrow) {
                    *w = f32::of_bf16(*n);
                }
            },
        );
    });
    cpu::tensor(wide, weight.shape())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the half crate rounds, for every upper half with ties and their neighbours below.
    #[test]
    fn numbers_become_the_nearest_bf16() {
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(upper) << 16 | lower);
                let (found, expected) = (narrow(x), bf16::from_f32(x));
                assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{x}");
            }
        }
    }
}
