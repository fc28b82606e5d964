//! Which sequences make an optimizer step, as a function of the step alone.

use crate::rng;

/// Every epoch goes through all examples once, in an order of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// The run's seed.
    pub seed: u64,
    /// The number of sequences.
    pub examples: usize,
    /// Sequences per optimizer step.
    pub batch_size: usize,
}

impl Sampler {
    /// Optimizer steps per epoch; the last may have fewer sequences.
    pub fn steps_per_epoch(&self) -> usize {
        self.examples.div_ceil(self.batch_size.max(1))
    }

    /// The examples of a step, counted from 0 over all epochs.
    pub fn batch(&self, step: usize) -> Vec<usize> {
        let steps = self.steps_per_epoch();
        if steps == 0 {
            return Vec::new();
        }
        let (epoch, within) = (step / steps, step % steps);
        let mut order: Vec<usize> = (0..self.examples).collect();
        rng::stream(self.seed, "order", epoch as u64).shuffle(&mut order);
        let first = within * self.batch_size.max(1);
        order[first..(first + self.batch_size.max(1)).min(self.examples)].to_vec()
    }
}

/// Cuts the examples of a step into micro-batches of at most `token_budget` tokens, in order. An example that is
/// longer has one to itself.
pub fn micro_batches(lengths: &[usize], indices: &[usize], token_budget: usize) -> Vec<Vec<usize>> {
    let mut micro_batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for &index in indices {
        tokens += lengths[index];
        match micro_batches.last_mut() {
            Some(last) if tokens <= token_budget => last.push(index),
            _ => {
                micro_batches.push(vec![index]);
                tokens = lengths[index];
            }
        }
    }
    micro_batches
}
