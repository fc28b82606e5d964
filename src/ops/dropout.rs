//! Dropout masks that depend on (seed, module, step, episode) only.
//!
//! A mask is a function of its key, so it is made again for the backward instead of being kept, and how
//! a step's episodes are spread over micro-batches changes nothing.

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::on_cuda;
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

    /// The factors 0 or 1 / (1 - p) of `module` for rows (N, width) in the dtype and on the device of `like` (_, width).
    ///
    /// # Errors
    /// If there is not one key for each sequence, or the device fails.
    pub fn mask(&self, module: &str, boundaries: &[u32], like: &Tensor) -> Result<Tensor> {
        let (_, width) = like.dims2()?;
        let sequences = boundaries.len().saturating_sub(1);
        ensure!(
            self.keys.len() == sequences,
            "{} keys of dropout for {sequences} sequences",
            self.keys.len()
        );
        let factors = Factors {
            purpose: format!("dropout/{module}"),
            threshold: (self.p * (u64::from(u32::MAX) + 1) as f64) as u64,
            keep: (1.0 / (1.0 - self.p)) as f32,
        };
        on_cuda!(like, {
            let key = |&index: &u64| rng::key(self.seed, &factors.purpose, index);
            let keys: Vec<[u8; 32]> = self.keys.iter().map(key).collect();
            cuda::dropout(&keys, boundaries, like, factors.threshold, factors.keep)
        });
        let rows = boundaries.last().map_or(0, |&end| end as usize);
        let mut mask = vec![0f32; rows * width];
        self.fill(&mut mask, boundaries, width, &factors);
        Ok(Tensor::from_vec(mask, (rows, width), &Device::Cpu)?
            .to_dtype(like.dtype())?
            .to_device(like.device())?)
    }

    fn fill(&self, mut mask: &mut [f32], boundaries: &[u32], width: usize, factors: &Factors) {
        let mut pieces = Vec::new();
        for (&key, rows) in self.keys.iter().zip(boundaries.windows(2)) {
            let sequence = mask.split_off_mut(..(rows[1] - rows[0]) as usize * width).unwrap_or_default();
            pieces.extend(sequence.chunks_mut(PIECE).enumerate().map(|(number, piece)| (key, number, piece)));
        }
        pieces.into_par_iter().for_each(|(key, number, piece)| {
            let stream = rng::stream(self.seed, &factors.purpose, key);
            let mut stream = stream.from_word((number * PIECE) as u64);
            for factor in piece {
                *factor = if u64::from(stream.bits()) < factors.threshold { 0.0 } else { factors.keep };
            }
        });
    }
}

/// What a mask is drawn by.
struct Factors {
    purpose: String,
    /// Words of the stream below it drop an element.
    threshold: u64,
    keep: f32,
}

/// Elements that one thread draws at a time.
const PIECE: usize = 1 << 14;
