//! Randomness as a function of (seed, purpose, index), never of a generator's history.
//!
//! A resumed run asks for the same streams as the uninterrupted one and so gets the same numbers,
//! in any order and on any number of threads. The few distributions that the project needs are written
//! here, because libraries may change theirs between minor versions.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

/// One stream of random numbers.
pub struct Stream(ChaCha8Rng);

/// The stream of `(seed, purpose, index)`.
pub fn stream(seed: u64, purpose: &str, index: u64) -> Stream {
    Stream(ChaCha8Rng::from_seed(key(seed, purpose, index)))
}

/// The key of ChaCha8 whose words the stream of `(seed, purpose, index)` has.
pub fn key(seed: u64, purpose: &str, index: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&index.to_le_bytes());
    hasher.update(purpose.as_bytes());
    *hasher.finalize().as_bytes()
}

impl Stream {
    /// The stream from its word `first` on: what `first` times [`Stream::bits`] would have left.
    pub fn from_word(mut self, first: u64) -> Self {
        self.0.set_word_pos(first.into());
        self
    }

    /// Uniform 32 bits.
    pub fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`, without bias (rejection); `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let draw = self.0.next_u64();
            if draw < limit {
                return (draw % n) as usize;
            }
        }
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// The logarithm of a draw from the gamma distribution of a shape above 0 and scale 1 (Marsaglia and Tsang 2000).
    ///
    /// A logarithm, because draws of a small shape lie below what an f64 can hold.
    pub fn log_gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            // 1 - u is above 0.
            return self.log_gamma(shape + 1.0) + (1.0 - self.uniform()).ln() / shape;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.uniform()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d.ln() + v.ln();
            }
        }
    }

    /// A distribution drawn from the Dirichlet distribution with these parameters, each above 0.
    pub fn dirichlet(&mut self, alpha: &[f64]) -> Vec<f64> {
        let logs: Vec<f64> = alpha.iter().map(|&a| self.log_gamma(a)).collect();
        let max = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut probs: Vec<f64> = logs.iter().map(|l| (l - max).exp()).collect();
        let sum: f64 = probs.iter().sum();
        probs.iter_mut().for_each(|p| *p /= sum);
        probs
    }

    /// An index drawn from `probs`, which sum to 1.
    pub fn categorical(&mut self, probs: &[f64]) -> usize {
        let draw = self.uniform();
        let mut cumulative = 0.0;
        for (i, p) in probs.iter().enumerate() {
            cumulative += p;
            if draw < cumulative {
                return i;
            }
        }
        // Rounding left `cumulative` just below 1: the last option that can happen at all.
        probs.iter().rposition(|&p| p > 0.0).unwrap_or(0)
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_keyed() {
        let draw = |seed, purpose, index| stream(seed, purpose, index).bits();
        assert_eq!(draw(1, "a", 0), draw(1, "a", 0));
        assert_ne!(draw(1, "a", 0), draw(2, "a", 0));
        assert_ne!(draw(1, "a", 0), draw(1, "b", 0));
        assert_ne!(draw(1, "a", 0), draw(1, "a", 1));
    }

    #[test]
    fn distributions_have_their_moments() {
        let mut s = stream(7, "test", 0);
        let n = 100_000;
        let normals: Vec<f64> = (0..n).map(|_| s.normal()).collect();
        let mean = normals.iter().sum::<f64>() / n as f64;
        let variance = normals.iter().map(|x| x * x).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03);
        let mut counts = [0; 3];
        for _ in 0..n {
            counts[s.categorical(&[0.2, 0.0, 0.8])] += 1;
        }
        assert!(counts[1] == 0 && (counts[0] as f64 / n as f64 - 0.2).abs() < 0.01);
        // Gamma of shape a: mean a and variance a.
        for shape in [0.3, 1.0, 4.5] {
            let draws: Vec<f64> = (0..n).map(|_| s.log_gamma(shape).exp()).collect();
            let mean = draws.iter().sum::<f64>() / n as f64;
            let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            assert!((mean / shape - 1.0).abs() < 0.03 && (variance / shape - 1.0).abs() < 0.06, "{shape}");
        }
        assert!(s.dirichlet(&[1e-4, 1e-4]).iter().all(|p| p.is_finite()));
        let mut items: Vec<usize> = (0..100).collect();
        s.shuffle(&mut items);
        let mut sorted = items.clone();
        sorted.sort_unstable();
        assert!(items != sorted && sorted == (0..100).collect::<Vec<_>>());
    }
}
