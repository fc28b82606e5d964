//! Mixtures of hidden Markov models: the forward algorithm within each, Bayes' rule between them, all in log space.

use std::sync::Arc;

use super::rival::Weighing;
use crate::metrics::log_sum_exp;
use crate::world::hidden_markov::HiddenMarkov;
use crate::world::hmm::{DELIMITER, Hmm, Inference};

/// One of the models that a sequence may come from.
#[derive(Clone, Debug)]
pub struct Hypothesis {
    /// The model.
    pub model: Arc<HiddenMarkov>,
    /// The distribution of its first hidden state.
    pub start: Vec<f64>,
    /// Its prior probability.
    pub prior: f64,
}

/// What stands between the examples of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// The delimiter, which the model emitted like any other symbol.
    Symbol,
    /// A new beginning, of which the delimiter is the sign.
    Restart,
}

/// The posterior over finitely many hidden Markov models and their hidden states.
///
/// A symbol that no model still alive could have emitted is ignored: all models move on to their next state as if
/// they had not been looked at.
///
/// ```
/// use std::sync::Arc;
///
/// use bayesteach::teacher::{Between, Forward, Hypothesis};
/// use bayesteach::world::hidden_markov::HiddenMarkov;
///
/// // One model repeats its symbol, the other alternates.
/// let emission = [vec![1.0, 0.0], vec![0.0, 1.0]];
/// let model = |stay: f64| {
///     let transition = [vec![stay, 1.0 - stay], vec![1.0 - stay, stay]];
///     Arc::new(HiddenMarkov::new(vec![0.5, 0.5], &transition, &emission))
/// };
/// let hypothesis = |stay| Hypothesis { model: model(stay), start: vec![0.5, 0.5], prior: 0.5 };
/// let mut belief = Forward::new(vec![hypothesis(0.9), hypothesis(0.1)], Between::Symbol);
/// for symbol in [0, 0, 0] {
///     belief.observe(symbol);
/// }
/// assert!((belief.hypotheses()[0] - 0.81 / 0.82).abs() < 1e-12);
/// assert!((belief.predictive()[0] - (0.81 * 0.9 + 0.01 * 0.1) / 0.82).abs() < 1e-12);
/// ```
#[derive(Clone, Debug)]
pub struct Forward {
    hypotheses: Arc<[Hypothesis]>,
    filters: Vec<Filter>,
    log_weights: Vec<f64>,
    between: Between,
    begun: bool,
    ignored: usize,
}

impl Forward {
    /// Nothing observed yet; the priors sum to 1.
    pub fn new(hypotheses: Vec<Hypothesis>, between: Between) -> Forward {
        Forward {
            filters: hypotheses.iter().map(|h| Filter::new(Arc::clone(&h.model), &h.start)).collect(),
            log_weights: hypotheses.iter().map(|h| h.prior.ln()).collect(),
            hypotheses: hypotheses.into(),
            between,
            begun: false,
            ignored: 0,
        }
    }

    /// The world's own teacher: its concepts equally likely, and with prompt-aware inference each slot as well.
    pub(super) fn of_mixture(world: &Hmm) -> Forward {
        let concepts = world.mixture().iter();
        match world.config().inference {
            Inference::PretrainingMixture => {
                let prior = 1.0 / concepts.len() as f64;
                let of_concept = |model: &Arc<HiddenMarkov>| Hypothesis {
                    model: Arc::clone(model),
                    start: model.start().to_vec(),
                    prior,
                };
                Forward::new(concepts.map(of_concept).collect(), Between::Symbol)
            }
            Inference::PromptAware => {
                let slots = 1..world.config().slots;
                let prior = 1.0 / (concepts.len() * slots.len()) as f64;
                let of_concept = |model: &Arc<HiddenMarkov>| {
                    let of_slot = |slot| Hypothesis {
                        model: Arc::clone(model),
                        start: world.example_start(slot),
                        prior,
                    };
                    slots.clone().map(of_slot).collect::<Vec<_>>()
                };
                Forward::new(concepts.flat_map(of_concept).collect(), Between::Restart)
            }
        }
    }

    /// A new example of a prompt begins; nothing happens before the first.
    pub fn begin_example(&mut self, weighing: Weighing) {
        if !self.begun {
            return;
        }
        match self.between {
            Between::Symbol => self.observe_weighing(DELIMITER, weighing),
            Between::Restart => {
                for (filter, hypothesis) in self.filters.iter_mut().zip(self.hypotheses.iter()) {
                    filter.restart(&hypothesis.start);
                }
            }
        }
    }

    /// Takes in the next symbol.
    pub fn observe(&mut self, symbol: usize) {
        self.observe_weighing(symbol, Weighing::EXACT);
    }

    /// Takes in the next symbol: for the models, its likelihood counts to the `power`, and all evidence before it to the
    /// `discount`. Where each model's hidden states are is known exactly all the same.
    pub fn observe_weighing(&mut self, symbol: usize, Weighing { power, discount }: Weighing) {
        self.begun = true;
        if discount < 1.0 {
            let discounted = |(weight, hypothesis): (&f64, &Hypothesis)| match *weight > f64::NEG_INFINITY {
                true => discount * weight + (1.0 - discount) * hypothesis.prior.ln(),
                false => *weight,
            };
            let weights: Vec<f64> =
                self.log_weights.iter().zip(self.hypotheses.iter()).map(discounted).collect();
            let log_sum = log_sum_exp(&weights);
            self.log_weights = weights.into_iter().map(|weight| weight - log_sum).collect();
        }
        let joint: Vec<f64> = (self.log_weights.iter().zip(&self.filters))
            .map(|(&weight, filter)| match weight > f64::NEG_INFINITY {
                true => weight + power * filter.log_prob(symbol),
                false => weight,
            })
            .collect();
        let log_evidence = log_sum_exp(&joint);
        if log_evidence == f64::NEG_INFINITY {
            self.ignored += 1;
            self.filters.iter_mut().for_each(Filter::skip);
            return;
        }
        for ((weight, filter), log_prob) in self.log_weights.iter_mut().zip(&mut self.filters).zip(joint) {
            *weight = log_prob - log_evidence;
            if *weight > f64::NEG_INFINITY {
                filter.observe(symbol);
            }
        }
    }

    /// The distribution of the next symbol.
    pub fn predictive(&self) -> Vec<f64> {
        let symbols = self.hypotheses.first().map_or(0, |h| h.model.symbols());
        let mut total = vec![0.0; symbols];
        for (weight, filter) in self.log_weights.iter().zip(&self.filters) {
            if *weight > f64::NEG_INFINITY {
                filter.add_weighted(weight.exp(), &mut total);
            }
        }
        let sum: f64 = total.iter().sum();
        total.iter_mut().for_each(|p| *p /= sum);
        total
    }

    /// The posterior probability of each model.
    pub fn hypotheses(&self) -> Vec<f64> {
        self.log_weights.iter().map(|w| w.exp()).collect()
    }

    /// How many symbols were impossible and so ignored.
    pub fn ignored(&self) -> usize {
        self.ignored
    }
}

/// Below this a sum of products of probabilities is done again in logarithms, where it may have lost terms.
const SAFE: f64 = 1e-250;

/// What one model knows about its next hidden state, after the symbols so far: the forward algorithm, normalised at
/// every step.
#[derive(Clone, Debug)]
struct Filter {
    model: Arc<HiddenMarkov>,
    /// Log-probability of each state to be the one that emits next; their exponentials sum to 1.
    log_states: Vec<f64>,
    states: Vec<f64>,
}

impl Filter {
    /// Nothing seen yet; the first state has the distribution `start`.
    fn new(model: Arc<HiddenMarkov>, start: &[f64]) -> Filter {
        let log_states = start.iter().map(|p| p.ln()).collect();
        Filter { model, log_states, states: start.to_vec() }
    }

    /// Begins anew.
    fn restart(&mut self, start: &[f64]) {
        self.log_states = start.iter().map(|p| p.ln()).collect();
        self.states = start.to_vec();
    }

    /// Adds `weight` times the distribution of the next symbol to `total`.
    fn add_weighted(&self, weight: f64, total: &mut [f64]) {
        for (symbol, sum) in total.iter_mut().enumerate() {
            let emitters = self.model.emitters(symbol).iter();
            *sum += weight * emitters.map(|&(state, p)| self.states[state] * p).sum::<f64>();
        }
    }

    /// The log-probability that `symbol` is next.
    fn log_prob(&self, symbol: usize) -> f64 {
        log_sum_exp(&self.emitting(symbol).iter().map(|(_, log_prob)| *log_prob).collect::<Vec<_>>())
    }

    /// Takes in the next symbol, which must be possible, and moves on to the state after it.
    fn observe(&mut self, symbol: usize) {
        let mut emitting = self.emitting(symbol);
        let log_evidence = self.log_prob(symbol);
        emitting.iter_mut().for_each(|(_, log_prob)| *log_prob -= log_evidence);
        self.advance(&emitting);
    }

    /// Moves on to the next state without having seen a symbol.
    fn skip(&mut self) {
        let all: Vec<(usize, f64)> = self.log_states.iter().copied().enumerate().collect();
        self.advance(&all);
    }

    /// The states that may emit a symbol, with the log-probability of being there and emitting it.
    fn emitting(&self, symbol: usize) -> Vec<(usize, f64)> {
        let emitters = self.model.emitters(symbol).iter();
        let joint = emitters.map(|&(state, p)| (state, self.log_states[state] + p.ln()));
        joint.filter(|(_, log_prob)| *log_prob > f64::NEG_INFINITY).collect()
    }

    /// One transition from states with these log-probabilities.
    fn advance(&mut self, from: &[(usize, f64)]) {
        self.states.fill(0.0);
        for &(state, log_prob) in from {
            let weight = log_prob.exp();
            let row = self.model.transition(state);
            self.states.iter_mut().zip(row).for_each(|(sum, p)| *sum += weight * p);
        }
        for (to, (log_prob, &prob)) in self.log_states.iter_mut().zip(&self.states).enumerate() {
            *log_prob = if prob > SAFE {
                prob.ln()
            } else {
                // Reached only from states that are all but ruled out, and may yet turn out to be the true ones.
                let terms = from.iter().map(|&(state, l)| l + self.model.transition(state)[to].ln());
                log_sum_exp(&terms.collect::<Vec<_>>())
            };
        }
        // Each step rounds; 10,000 of them must not add up.
        let total: f64 = self.states.iter().sum();
        self.states.iter_mut().for_each(|p| *p /= total);
        let log_total = total.ln();
        self.log_states.iter_mut().for_each(|l| *l -= log_total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two states that never mix, telling themselves apart by a symbol: a thousand symbols for one, then a thousand
    /// for the other, leave both as likely as at the start. On the way the one is at 9^-1000.
    #[test]
    fn states_recover_from_underflow() {
        let identity = [vec![1.0, 0.0], vec![0.0, 1.0]];
        let emission = [vec![0.9, 0.1], vec![0.1, 0.9]];
        let model = Arc::new(HiddenMarkov::new(vec![0.5, 0.5], &identity, &emission));
        let mut filter = Filter::new(Arc::clone(&model), model.start());
        for symbol in [0, 1] {
            for _ in 0..1000 {
                filter.observe(symbol);
            }
            if symbol == 0 {
                assert!((filter.log_prob(1) - 0.1_f64.ln()).abs() < 1e-9);
            }
        }
        assert!((filter.log_prob(0) - 0.5_f64.ln()).abs() < 1e-9, "{}", filter.log_prob(0));
    }
}
