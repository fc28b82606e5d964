//! Dropout masks that depend on (seed, module, step, episode) only.
//!
//! A mask is a function of its key, so it is made again for the backward instead of being kept, and how
//! a step's episodes are spread over micro-batches changes nothing.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::rng;

/// The dropout of one micro-batch.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// Probability that an element is dropped.
    pub p: f64,
    /// The run's seed.
    pub seed: u64,
    /// For each sequence of the micro-batch: a key that is unique to (step, place in the step's batch).
    pub keys: Vec<u64>,
}

impl Dropout {
    /// The key of the sequence at `place` in the batch of `step`.
    pub fn key(step: u64, place: usize) -> u64 {
        (step << 24) | place as u64
    }

    /// The factors 0 or 1 / (1 - p) for the input (N, width) of `module`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn mask(
        &self,
        module: &str,
        boundaries: &[u32],
        width: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let purpose = format!("dropout/{module}");
        let threshold = (self.p * (u64::from(u32::MAX) + 1) as f64) as u64;
        let keep = (1.0 / (1.0 - self.p)) as f32;
        let lengths = boundaries.windows(2).map(|b| (b[1] - b[0]) as usize);
        let sequences: Vec<(u64, usize)> = self.keys.iter().copied().zip(lengths).collect();
        let parts: Vec<Vec<f32>> = sequences
            .into_par_iter()
            .map(|(key, length)| {
                let mut stream = rng::stream(self.seed, &purpose, key);
                let mut factor = || if u64::from(stream.bits()) < threshold { 0.0 } else { keep };
                (0..length * width).map(|_| factor()).collect()
            })
            .collect();
        let mask = parts.concat();
        let rows = mask.len() / width;
        Ok(Tensor::from_vec(mask, (rows, width), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
    }
}
