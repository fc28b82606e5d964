//! What a question is worth: the expected information gain about the user.

use super::posterior::Posterior;
use crate::metrics::entropy;
use crate::world::{Likelihood, Question};

impl Posterior {
    /// The expected information gain of a question in nats: by how much its answer is expected to lower the entropy of
    /// the posterior, which is the mutual information of answer and hypothesis.
    ///
    /// It is Σ q(h) KL(P(·|h) ‖ predictive) over the hypotheses h, so that rounding never makes it negative. Where
    /// every hypothesis answers for certain, that is the entropy of the predictive distribution.
    ///
    /// ```
    /// use bayesteach::{rng, teacher::Posterior, world::World};
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let world = World::flights(&Default::default())?;
    /// let question = world.questions(1, &mut rng::stream(1, "an example", 0)).remove(0);
    /// let mut posterior = Posterior::prior(world.factors());
    /// assert!(posterior.expected_gain(&question) > 0.6);
    /// posterior.observe(&question, 0);
    /// assert_eq!(posterior.expected_gain(&question), 0.0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn expected_gain(&self, question: &Question) -> f64 {
        self.expected_gain_of(&question.likelihood, question.factor)
    }

    /// The expected information gain of an answer of this likelihood.
    pub(super) fn expected_gain_of(&self, likelihood: &Likelihood, factor: usize) -> f64 {
        let predictive = self.predictive_of(likelihood, factor);
        match likelihood {
            Likelihood::Choice { .. } => return entropy(&predictive),
            Likelihood::Uniform { .. } => return 0.0,
            // The entropy of an answer is the same whatever is true.
            Likelihood::Lapsing { options, lapse, .. } => {
                let mut of_user = vec![lapse / *options as f64; *options];
                of_user[0] += 1.0 - lapse;
                return (entropy(&predictive) - entropy(&of_user)).max(0.0);
            }
            Likelihood::Table { .. } => {}
        }
        let log_predictive: Vec<f64> = predictive.iter().map(|p| p.ln()).collect();
        let gain = self.weighted(factor, |h| likelihood.kl_from(h, &log_predictive));
        gain.max(0.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::world::{Factor, Reward};

    /// Two coins of .9 and .1 heads: a binary symmetric channel with a uniform input, ln 2 - H(.9, .1).
    #[test]
    fn a_binary_symmetric_channel() {
        let rows = [0.9_f64, 0.1, 0.1, 0.9].map(f64::ln).to_vec();
        let likelihood = Arc::new(Likelihood::from_log_probs(2, rows));
        let question = Question {
            text: String::new(),
            placed: None,
            labels: ["heads".to_owned(), "tails".to_owned()].into(),
            factor: 0,
            behaviour: Arc::clone(&likelihood),
            likelihood,
            reward: Reward::Nearness,
            levels: Arc::default(),
        };
        let posterior = Posterior::prior(&[Factor { name: "coin".into(), prior: vec![0.5, 0.5] }]);
        let expected = 2.0_f64.ln() + 0.9 * 0.9_f64.ln() + 0.1 * 0.1_f64.ln();
        assert!((posterior.expected_gain(&question) - expected).abs() < 1e-12);
        let lapsing = Likelihood::Choice { options: 2, choices: vec![0, 1] }.with_lapse(0.2);
        assert!((posterior.expected_gain_of(&lapsing, 0) - expected).abs() < 1e-12);
        assert_eq!(posterior.expected_gain_of(&Likelihood::Uniform { options: 2 }, 0), 0.0);
        // Nothing is left to learn about a coin that is known.
        let known = Posterior::prior(&[Factor { name: "coin".into(), prior: vec![1.0, 0.0] }]);
        assert_eq!(known.expected_gain(&question), 0.0);
    }
}
