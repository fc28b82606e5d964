//! The probability of every option under every hypothesis of a factor.

use crate::rng::Stream;

/// A table of hypotheses × options.
#[derive(Clone, Debug, PartialEq)]
pub enum Likelihood {
    /// Each hypothesis picks one option for certain.
    Choice {
        /// How many options there are, at most 256.
        options: usize,
        /// The option that each hypothesis picks.
        choices: Vec<u8>,
    },
    /// Each hypothesis picks one option, but now and then any of them, all equally probable.
    Lapsing {
        /// How many options there are, at most 256.
        options: usize,
        /// The option that each hypothesis picks unless it lapses.
        choices: Vec<u8>,
        /// How probable it is to lapse.
        lapse: f64,
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
    /// All options are equally probable under every hypothesis: nothing can be learned from an answer.
    Uniform {
        /// How many options there are.
        options: usize,
    },
}

impl Likelihood {
    /// A table from log-probabilities, one hypothesis after the other, each hypothesis's summing to one.
    pub fn from_log_probs(options: usize, log_probs: Vec<f64>) -> Likelihood {
        let probs = log_probs.iter().map(|p| p.exp()).collect();
        Likelihood::Table { options, log_probs, probs }
    }

    /// The mixture in which an answer is, with probability `lapse`, any option with equal probability.
    pub fn with_lapse(self, lapse: f64) -> Likelihood {
        if lapse == 0.0 {
            return self;
        }
        match self {
            Likelihood::Choice { options, choices } => Likelihood::Lapsing { options, choices, lapse },
            Likelihood::Lapsing { options, choices, lapse: before } => {
                Likelihood::Lapsing { options, choices, lapse: 1.0 - (1.0 - before) * (1.0 - lapse) }
            }
            Likelihood::Table { options, probs, .. } => {
                let mixed = |p: &f64| (1.0 - lapse) * p + lapse / options as f64;
                let probs: Vec<f64> = probs.iter().map(mixed).collect();
                Likelihood::Table { options, log_probs: probs.iter().map(|p| p.ln()).collect(), probs }
            }
            Likelihood::Uniform { .. } => self,
        }
    }

    /// How many options there are.
    pub fn options(&self) -> usize {
        match self {
            Likelihood::Choice { options, .. }
            | Likelihood::Lapsing { options, .. }
            | Likelihood::Table { options, .. }
            | Likelihood::Uniform { options } => *options,
        }
    }

    /// The log-probability of an option under a hypothesis; nothing answers what is no option.
    pub fn log_prob(&self, hypothesis: usize, option: usize) -> f64 {
        if option >= self.options() {
            return f64::NEG_INFINITY;
        }
        match self {
            Likelihood::Choice { choices, .. } => {
                if usize::from(choices[hypothesis]) == option {
                    0.0
                } else {
                    f64::NEG_INFINITY
                }
            }
            Likelihood::Lapsing { options, choices, lapse } => {
                let picked = usize::from(choices[hypothesis]) == option;
                (lapse / *options as f64 + if picked { 1.0 - lapse } else { 0.0 }).ln()
            }
            Likelihood::Table { options, log_probs, .. } => log_probs[hypothesis * options + option],
            Likelihood::Uniform { options } => -(*options as f64).ln(),
        }
    }

    /// Adds `weight` times the distribution under a hypothesis to `total`.
    #[inline]
    pub fn add_weighted(&self, hypothesis: usize, weight: f64, total: &mut [f64]) {
        match self {
            Likelihood::Choice { choices, .. } => total[usize::from(choices[hypothesis])] += weight,
            Likelihood::Lapsing { options, choices, lapse } => {
                total.iter_mut().for_each(|t| *t += weight * lapse / *options as f64);
                total[usize::from(choices[hypothesis])] += weight * (1.0 - lapse);
            }
            Likelihood::Table { options, probs, .. } => {
                let row = &probs[hypothesis * options..][..*options];
                total.iter_mut().zip(row).for_each(|(t, p)| *t += weight * p);
            }
            Likelihood::Uniform { options } => {
                total.iter_mut().for_each(|t| *t += weight / *options as f64);
            }
        }
    }

    /// Whether an answer can only rule hypotheses out, and never makes one that is left more probable than another: all
    /// that do not exclude an answer give it the same probability. No power of such a likelihood teaches anything else.
    pub fn only_rules_out(&self) -> bool {
        match self {
            Likelihood::Choice { .. } | Likelihood::Uniform { .. } => true,
            Likelihood::Lapsing { lapse, .. } => *lapse == 0.0 || *lapse == 1.0,
            Likelihood::Table { options, probs, .. } => (0..*options).all(|option| {
                let mut possible = probs.iter().skip(option).step_by(*options).filter(|p| **p > 0.0);
                let first = possible.next();
                possible.all(|p| first.is_some_and(|first| (p - first).abs() < 1e-12))
            }),
        }
    }

    /// KL(distribution under a hypothesis ‖ `other`), in nats; `log_other` has the logarithms of a distribution over
    /// the options.
    pub fn kl_from(&self, hypothesis: usize, log_other: &[f64]) -> f64 {
        match self {
            Likelihood::Choice { choices, .. } => -log_other[usize::from(choices[hypothesis])],
            Likelihood::Lapsing { .. } | Likelihood::Uniform { .. } => {
                let log_probs = (0..log_other.len()).map(|option| self.log_prob(hypothesis, option));
                let terms = log_probs.zip(log_other).filter(|(log_p, _)| *log_p > f64::NEG_INFINITY);
                terms.map(|(log_p, log_q)| log_p.exp() * (log_p - log_q)).sum()
            }
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
            Likelihood::Lapsing { options, choices, lapse } => {
                if draws.uniform() < *lapse {
                    draws.below(*options)
                } else {
                    usize::from(choices[hypothesis])
                }
            }
            Likelihood::Table { options, probs, .. } => {
                draws.categorical(&probs[hypothesis * options..][..*options])
            }
            Likelihood::Uniform { options } => draws.below(*options),
        }
    }

    /// What a user of whom the hypothesis is true answers most probably, the lowest index among equals: without
    /// noise, so to speak.
    pub fn most_probable(&self, hypothesis: usize) -> usize {
        match self {
            Likelihood::Choice { choices, .. } | Likelihood::Lapsing { choices, .. } => {
                usize::from(choices[hypothesis])
            }
            Likelihood::Table { options, probs, .. } => {
                first_highest(probs[hypothesis * options..][..*options].iter().copied())
            }
            Likelihood::Uniform { .. } => 0,
        }
    }
}

/// What differs by less is equal: sums of decimal fractions differ by rounding alone.
pub(super) const EQUAL: f64 = 1e-9;

/// The index of the highest value, the lowest index among [equals](EQUAL).
pub(super) fn first_highest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (f64::NEG_INFINITY, 0);
    for (i, value) in values.enumerate() {
        if value > best.0 + EQUAL {
            best = (value, i);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    /// Every way to ask about a distribution gives the same one, the drawn answers too.
    #[test]
    fn all_forms_agree_with_themselves() {
        let table = || Likelihood::from_log_probs(3, [0.2, 0.3, 0.5, 0.6, 0.4, 0.0].map(f64::ln).to_vec());
        let choice = || Likelihood::Choice { options: 3, choices: vec![2, 0] };
        let cases = [
            (table(), [[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]]),
            (table().with_lapse(0.3), [[0.24, 0.31, 0.45], [0.52, 0.38, 0.1]]),
            (choice(), [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
            (choice().with_lapse(0.3), [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]),
            (choice().with_lapse(0.5).with_lapse(0.2), [[0.2, 0.2, 0.6], [0.6, 0.2, 0.2]]),
            (Likelihood::Uniform { options: 3 }, [[1.0 / 3.0; 3]; 2]),
        ];
        for (i, (likelihood, expected)) in cases.into_iter().enumerate() {
            assert_eq!(likelihood.options(), 3);
            for (h, expected) in expected.iter().enumerate() {
                let mut total = [0.0; 3];
                likelihood.add_weighted(h, 2.0, &mut total);
                let mut drawn = [0.0; 3];
                let mut draws = rng::stream(1, "test", i as u64);
                (0..20_000).for_each(|_| drawn[likelihood.draw(h, &mut draws)] += 1.0 / 20_000.0);
                for option in 0..3 {
                    let p = expected[option];
                    assert!((likelihood.log_prob(h, option).exp() - p).abs() < 1e-12, "case {i}");
                    assert!((total[option] - 2.0 * p).abs() < 1e-12, "case {i}");
                    assert!((drawn[option] - p).abs() < 0.015, "case {i}: {drawn:?}");
                }
                assert_eq!(likelihood.log_prob(h, 3), f64::NEG_INFINITY);
                let other = [0.5_f64, 0.3, 0.2];
                let kl: f64 = expected
                    .iter()
                    .zip(other)
                    .filter(|(p, _)| **p > 0.0)
                    .map(|(p, q)| p * (p / q).ln())
                    .sum();
                assert!((likelihood.kl_from(h, &other.map(f64::ln)) - kl).abs() < 1e-12, "case {i}");
                let highest = expected.iter().copied().fold(0.0, f64::max);
                let first = expected.iter().position(|p| highest - p < 1e-12);
                assert_eq!(Some(likelihood.most_probable(h)), first, "case {i}");
            }
        }
    }

    #[test]
    fn what_only_rules_out() {
        let table = |rows: &[f64]| {
            Likelihood::from_log_probs(2, rows.iter().map(|p| p.ln()).collect()).only_rules_out()
        };
        let choice = || Likelihood::Choice { options: 2, choices: vec![1, 0] };
        assert!(choice().only_rules_out() && choice().with_lapse(1.0).only_rules_out());
        assert!(!choice().with_lapse(0.1).only_rules_out());
        assert!(Likelihood::Uniform { options: 2 }.only_rules_out());
        assert!(table(&[1.0, 0.0, 0.0, 1.0]) && table(&[0.3, 0.7, 0.3, 0.7]));
        // Squared, half an answer says less than a whole one.
        assert!(!table(&[0.5, 0.5, 1.0, 0.0]) && !table(&[0.9, 0.1, 0.1, 0.9]));
    }
}
