//! The probability of every option under every hypothesis of a factor.

use crate::rng::Stream;

/// A table of hypotheses × options.
#[derive(Clone, Debug)]
pub enum Likelihood {
    /// Each hypothesis picks one option for certain.
    Choice {
        /// How many options there are, at most 256.
        options: usize,
        /// The option that each hypothesis picks.
        choices: Vec<u8>,
    },
    /// Each hypothesis answers at random.
    Table {
        /// How many options there are.
        options: usize,
        /// Log-probabilities, one hypothesis after the other.
        log_probs: Vec<f64>,
        /// Their exponentials, kept because every prediction needs them.
        probs: Vec<f64>,
    },
}

impl Likelihood {
    /// A table from log-probabilities, one hypothesis after the other, each hypothesis's summing to one.
    pub fn from_log_probs(options: usize, log_probs: Vec<f64>) -> Likelihood {
        let probs = log_probs.iter().map(|p| p.exp()).collect();
        Likelihood::Table { options, log_probs, probs }
    }

    /// How many options there are.
    pub fn options(&self) -> usize {
        match self {
            Likelihood::Choice { options, .. } | Likelihood::Table { options, .. } => *options,
        }
    }

    /// The log-probability of an option under a hypothesis; nothing answers what is no option.
    pub fn log_prob(&self, hypothesis: usize, option: usize) -> f64 {
        match self {
            Likelihood::Choice { choices, .. } if usize::from(choices[hypothesis]) == option => 0.0,
            Likelihood::Table { options, log_probs, .. } if option < *options => {
                log_probs[hypothesis * options + option]
            }
            _ => f64::NEG_INFINITY,
        }
    }

    /// Adds `weight` times the distribution under a hypothesis to `total`.
    #[inline]
    pub fn add_weighted(&self, hypothesis: usize, weight: f64, total: &mut [f64]) {
        match self {
            Likelihood::Choice { choices, .. } => total[usize::from(choices[hypothesis])] += weight,
            Likelihood::Table { options, probs, .. } => {
                let row = &probs[hypothesis * options..][..*options];
                total.iter_mut().zip(row).for_each(|(t, p)| *t += weight * p);
            }
        }
    }

    /// Whether every hypothesis answers for certain.
    pub fn is_certain(&self) -> bool {
        match self {
            Likelihood::Choice { .. } => true,
            Likelihood::Table { probs, .. } => probs.iter().all(|p| *p == 0.0 || *p == 1.0),
        }
    }

    /// KL(distribution under a hypothesis ‖ `other`), in nats; `log_other` has the logarithms of a distribution over
    /// the options.
    pub fn kl_from(&self, hypothesis: usize, log_other: &[f64]) -> f64 {
        match self {
            Likelihood::Choice { choices, .. } => -log_other[usize::from(choices[hypothesis])],
            Likelihood::Table { options, log_probs, probs } => {
                let row = hypothesis * options..(hypothesis + 1) * options;
                let terms = probs[row.clone()].iter().zip(&log_probs[row]).zip(log_other);
                terms.filter(|((p, _), _)| **p > 0.0).map(|((p, log_p), log_q)| p * (log_p - log_q)).sum()
            }
        }
    }

    /// What a user of whom the hypothesis is true answers.
    pub fn draw(&self, hypothesis: usize, draws: &mut Stream) -> usize {
        match self {
            Likelihood::Choice { choices, .. } => usize::from(choices[hypothesis]),
            Likelihood::Table { options, probs, .. } => {
                draws.categorical(&probs[hypothesis * options..][..*options])
            }
        }
    }
}
