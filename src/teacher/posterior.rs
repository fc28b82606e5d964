//! What the teacher knows about a user: the exact posterior over each factor's hypotheses, in log space.

use super::drift::Transition;
use crate::metrics::{entropy, log_sum_exp};
use crate::world::{Factor, Likelihood, Question, Weights};

/// The posterior over all factors, which are independent of each other before and after every answer.
///
/// **Impossible answers.** An answer that no hypothesis still alive could have given leaves the posterior as it was
/// before, and is counted as ignored. (It cannot come from a user of the same world; a real one may give it.)
///
/// ```
/// use bayesteach::{rng, teacher::Posterior, world::World};
///
/// # fn main() -> anyhow::Result<()> {
/// let world = World::personality(&Default::default())?;
/// let questions = world.questions(50, &mut rng::stream(1, "an example", 0));
/// let mut posterior = Posterior::prior(world.factors());
/// let surprise = posterior.predictive(&questions[0])[4];
/// posterior.observe(&questions[0], 4);
/// assert!(posterior.predictive(&questions[0])[4] > surprise);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Posterior {
    beliefs: Vec<Belief>,
    ignored: usize,
}

/// The posterior over one factor.
#[derive(Clone, Debug)]
struct Belief {
    log_probs: Vec<f64>,
    probs: Vec<f64>,
    /// The hypotheses that are not ruled out; a probability may round to 0 and still recover.
    alive: Vec<usize>,
    observations: usize,
}

impl Posterior {
    /// Nothing observed yet.
    pub fn prior(factors: &[Factor]) -> Posterior {
        let belief = |factor: &Factor| {
            let log_probs: Vec<f64> = factor.prior.iter().map(|p| p.ln()).collect();
            let alive = (0..log_probs.len()).filter(|&h| log_probs[h] > f64::NEG_INFINITY).collect();
            Belief { log_probs, probs: factor.prior.clone(), alive, observations: 0 }
        };
        Posterior { beliefs: factors.iter().map(belief).collect(), ignored: 0 }
    }

    /// Takes in what the user answered. Returns false if the answer was impossible and so ignored.
    pub fn observe(&mut self, question: &Question, answer: usize) -> bool {
        self.observe_to_the_power(question, answer, 1.0)
    }

    /// As [`observe`](Posterior::observe), with the likelihood raised to a power above 0: above 1 an answer says more
    /// than it should (over-confident), below 1 less.
    pub fn observe_to_the_power(&mut self, question: &Question, answer: usize, power: f64) -> bool {
        let belief = &mut self.beliefs[question.factor];
        belief.observations += 1;
        let updated: Vec<f64> = (belief.alive.iter())
            .map(|&h| belief.log_probs[h] + power * question.likelihood.log_prob(h, answer))
            .collect();
        let log_evidence = log_sum_exp(&updated);
        if log_evidence == f64::NEG_INFINITY {
            self.ignored += 1;
            return false;
        }
        belief.renormalise(&updated, log_evidence);
        belief.alive.retain(|&h| belief.log_probs[h] > f64::NEG_INFINITY);
        true
    }

    /// Discounts all past evidence on all factors: the posterior q becomes q^discount · prior^(1 - discount),
    /// normalised, with a discount above 0 and at most 1. `factors` have the prior that the teacher started from.
    ///
    /// Called before every answer is observed, this weighs the evidence of k answers ago by discount^k.
    pub fn forget(&mut self, discount: f64, factors: &[Factor]) {
        if discount == 1.0 {
            return;
        }
        for (belief, factor) in self.beliefs.iter_mut().zip(factors) {
            let discounted: Vec<f64> = (belief.alive.iter())
                .map(|&h| discount * belief.log_probs[h] + (1.0 - discount) * factor.prior[h].ln())
                .collect();
            let log_sum = log_sum_exp(&discounted);
            // Users who change may have left all that the prior held possible.
            if log_sum > f64::NEG_INFINITY {
                belief.renormalise(&discounted, log_sum);
                belief.alive.retain(|&h| belief.log_probs[h] > f64::NEG_INFINITY);
            }
        }
    }

    /// Allows for what may have changed about the user since the last answer.
    pub fn advance(&mut self, transition: &Transition) {
        for (factor, belief) in self.beliefs.iter_mut().enumerate() {
            belief.log_probs = transition.step(factor, &belief.log_probs);
            belief.alive =
                (0..belief.log_probs.len()).filter(|&h| belief.log_probs[h] > f64::NEG_INFINITY).collect();
            // Also of those that nobody can be any more.
            belief.probs.fill(0.0);
            let stepped: Vec<f64> = belief.alive.iter().map(|&h| belief.log_probs[h]).collect();
            belief.renormalise(&stepped, log_sum_exp(&stepped));
        }
    }

    /// The distribution of the user's answer to a question.
    pub fn predictive(&self, question: &Question) -> Vec<f64> {
        self.predictive_of(&question.likelihood, question.factor)
    }

    /// The distribution of an answer of this likelihood.
    pub(super) fn predictive_of(&self, likelihood: &Likelihood, factor: usize) -> Vec<f64> {
        let belief = &self.beliefs[factor];
        let mut total = vec![0.0; likelihood.options()];
        for &h in &belief.alive {
            likelihood.add_weighted(h, belief.probs[h], &mut total);
        }
        let sum: f64 = total.iter().sum();
        total.iter_mut().for_each(|p| *p /= sum);
        total
    }

    /// The posterior mean of a function of a factor's hypotheses that are not ruled out.
    pub(super) fn weighted(&self, factor: usize, value: impl Fn(usize) -> f64) -> f64 {
        let belief = &self.beliefs[factor];
        let terms = belief.alive.iter().filter(|&&h| belief.probs[h] > 0.0);
        terms.map(|&h| belief.probs[h] * value(h)).sum()
    }

    /// The posterior probability of each hypothesis of a factor.
    pub fn marginal(&self, factor: usize) -> &[f64] {
        &self.beliefs[factor].probs
    }

    /// The mean weight vector over a factor's hypotheses.
    pub fn mean(&self, factor: usize, weights: &Weights) -> Vec<f64> {
        let belief = &self.beliefs[factor];
        let mut mean = vec![0.0; weights.dimensions()];
        for &h in &belief.alive {
            mean.iter_mut().zip(weights.row(h)).for_each(|(m, w)| *m += belief.probs[h] * w);
        }
        mean
    }

    /// The entropy of the joint posterior, in nats: the sum over the factors.
    pub fn entropy(&self) -> f64 {
        self.beliefs.iter().map(|belief| entropy(&belief.probs)).sum()
    }

    /// How many answers were observed that bear on a factor.
    pub fn observations(&self, factor: usize) -> usize {
        self.beliefs[factor].observations
    }

    /// How many answers were impossible and so ignored.
    pub fn ignored(&self) -> usize {
        self.ignored
    }
}

impl Belief {
    /// Takes unnormalised log-probabilities of the hypotheses alive, and the logarithm of their sum.
    fn renormalise(&mut self, unnormalised: &[f64], log_sum: f64) {
        for (&h, log_prob) in self.alive.iter().zip(unnormalised) {
            self.log_probs[h] = log_prob - log_sum;
            self.probs[h] = self.log_probs[h].exp();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::world::{Likelihood, Reward};

    fn question(likelihood: Likelihood) -> Question {
        let labels: Vec<String> = (0..likelihood.options()).map(|i| i.to_string()).collect();
        let likelihood = Arc::new(likelihood);
        Question {
            text: String::new(),
            placed: None,
            labels: labels.into(),
            factor: 0,
            behaviour: Arc::clone(&likelihood),
            likelihood,
            reward: Reward::Nearness,
            levels: Arc::default(),
        }
    }

    fn prior(probs: &[f64]) -> Posterior {
        Posterior::prior(&[Factor { name: "coin".into(), prior: probs.to_vec() }])
    }

    /// Two coins, .5 and .8 heads, prior .6 and .4. After heads, heads, tails:
    /// .6·.125 = .075 against .4·.8·.8·.2 = .0512, so .5943 and the next head .5·.5943 + .8·.4057.
    #[test]
    fn two_coins_by_hand() {
        let flip = question(Likelihood::from_log_probs(2, [0.5, 0.5, 0.8, 0.2].map(f64::ln).to_vec()));
        let mut posterior = prior(&[0.6, 0.4]);
        for answer in [0, 0, 1] {
            assert!(posterior.observe(&flip, answer));
        }
        let fair = 0.075 / (0.075 + 0.0512);
        assert!((posterior.marginal(0)[0] - fair).abs() < 1e-12);
        assert!((posterior.predictive(&flip)[0] - (0.5 * fair + 0.8 * (1.0 - fair))).abs() < 1e-12);
        let expected = -(fair * fair.ln() + (1.0 - fair) * (1.0 - fair).ln());
        assert!((posterior.entropy() - expected).abs() < 1e-12);
        assert_eq!((posterior.observations(0), posterior.ignored()), (3, 0));
    }

    #[test]
    fn an_impossible_answer_changes_nothing_but_the_counts() {
        let pick = question(Likelihood::Choice { options: 3, choices: vec![0, 1, 1] });
        let mut posterior = prior(&[0.5, 0.2, 0.3]);
        assert!(posterior.observe(&pick, 1));
        let before = posterior.marginal(0).to_vec();
        assert_eq!(before[0], 0.0);
        assert!((before[1] - 0.4).abs() < 1e-12);
        assert!(!posterior.observe(&pick, 2));
        assert!(!posterior.observe(&pick, 0));
        assert!(!posterior.observe(&pick, 3));
        assert_eq!(posterior.marginal(0), before);
        assert_eq!((posterior.observations(0), posterior.ignored()), (4, 3));
    }

    /// A thousand answers take one hypothesis far below what a probability can hold, and a thousand take it back.
    #[test]
    fn beliefs_recover_from_underflow() {
        let flip = question(Likelihood::from_log_probs(2, [0.9, 0.1, 0.1, 0.9].map(f64::ln).to_vec()));
        let mut posterior = prior(&[0.5, 0.5]);
        for answer in [0, 1] {
            for _ in 0..1000 {
                posterior.observe(&flip, answer);
            }
            assert!(posterior.predictive(&flip).iter().all(|p| p.is_finite()));
            if answer == 0 {
                assert_eq!(posterior.marginal(0), [1.0, 0.0]);
            }
        }
        assert!((posterior.marginal(0)[0] - 0.5).abs() < 1e-9);
    }
}
