//! Hidden Markov models.

use crate::rng::Stream;

/// A model of finitely many hidden states, each emitting a symbol at every step.
#[derive(Clone, Debug)]
pub struct HiddenMarkov {
    states: usize,
    start: Vec<f64>,
    /// From × to.
    transition: Vec<f64>,
    /// For each state, the symbols that it may emit and how likely.
    emitted: Vec<Vec<(usize, f64)>>,
    /// For each symbol, the states that may emit it and how likely.
    emitters: Vec<Vec<(usize, f64)>>,
}

impl HiddenMarkov {
    /// A model from its start distribution, transition rows and emission rows (states × symbols).
    pub fn new(start: Vec<f64>, transition: &[Vec<f64>], emission: &[Vec<f64>]) -> HiddenMarkov {
        let possible = |probs: &mut dyn Iterator<Item = f64>| -> Vec<(usize, f64)> {
            probs.enumerate().filter(|(_, p)| *p > 0.0).collect()
        };
        let symbols = emission.first().map_or(0, Vec::len);
        HiddenMarkov {
            states: start.len(),
            start,
            transition: transition.concat(),
            emitted: emission.iter().map(|row| possible(&mut row.iter().copied())).collect(),
            emitters: (0..symbols).map(|k| possible(&mut emission.iter().map(|row| row[k]))).collect(),
        }
    }

    /// How many symbols there are.
    pub fn symbols(&self) -> usize {
        self.emitters.len()
    }

    /// How many hidden states there are.
    pub fn states(&self) -> usize {
        self.states
    }

    /// The states that may emit a symbol, and how likely each does.
    pub fn emitters(&self, symbol: usize) -> &[(usize, f64)] {
        &self.emitters[symbol]
    }

    /// The distribution of the state after a state.
    pub fn transition(&self, state: usize) -> &[f64] {
        &self.transition[state * self.states..][..self.states]
    }

    /// The distribution of the first hidden state.
    pub fn start(&self) -> &[f64] {
        &self.start
    }

    /// Draws a first state.
    pub fn draw_start(&self, draws: &mut Stream) -> usize {
        draws.categorical(&self.start)
    }

    /// Draws what a state emits.
    pub fn draw_symbol(&self, state: usize, draws: &mut Stream) -> usize {
        let probs: Vec<f64> = self.emitted[state].iter().map(|(_, p)| *p).collect();
        self.emitted[state][draws.categorical(&probs)].0
    }

    /// Draws the state after a state.
    pub fn draw_next(&self, state: usize, draws: &mut Stream) -> usize {
        draws.categorical(self.transition(state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    /// Frequencies of drawn symbol pairs against start · emission and start · transition · emission.
    #[test]
    fn draws_follow_the_model() {
        let transition = [vec![0.2, 0.8], vec![0.6, 0.4]];
        let emission = [vec![0.5, 0.5, 0.0], vec![0.0, 0.3, 0.7]];
        let model = HiddenMarkov::new(vec![0.3, 0.7], &transition, &emission);
        let mut draws = rng::stream(1, "test", 0);
        let n = 40_000;
        let mut counts = [[0.0_f64; 3]; 2];
        for _ in 0..n {
            let first = model.draw_start(&mut draws);
            let second = model.draw_next(first, &mut draws);
            counts[0][model.draw_symbol(first, &mut draws)] += 1.0 / f64::from(n);
            counts[1][model.draw_symbol(second, &mut draws)] += 1.0 / f64::from(n);
        }
        // Second state: .3·.2 + .7·.6 = .48.
        let expected = [[0.15, 0.15 + 0.21, 0.49], [0.24, 0.24 + 0.156, 0.364]];
        for (counts, expected) in counts.iter().flatten().zip(expected.iter().flatten()) {
            assert!((counts - expected).abs() < 0.01, "{counts} {expected}");
        }
    }
}
