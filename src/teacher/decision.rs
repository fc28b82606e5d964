//! From a prediction to what the assistant says.

use serde::{Deserialize, Serialize};

use super::posterior::Posterior;
use crate::metrics::argmax;
use crate::world::{Question, Reward};

/// The rule by which the assistant decides. Equals (after rounding to 9 digits) go to the lowest index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The option that the user most probably answers.
    #[default]
    MostProbable,
    /// The option of highest posterior-expected reward: in flights by the posterior mean of the weights, in the
    /// questionnaire the step nearest to the mean of the predictive distribution.
    ExpectedReward,
}

/// The option that a rule decides for; `predictive` is the posterior's for this question.
pub fn decide(decision: Decision, posterior: &Posterior, question: &Question, predictive: &[f64]) -> usize {
    match decision {
        Decision::MostProbable => argmax(predictive),
        Decision::ExpectedReward => argmax(&expected_rewards(posterior, question, predictive)),
    }
}

/// The posterior-expected reward of recommending each option.
pub fn expected_rewards(posterior: &Posterior, question: &Question, predictive: &[f64]) -> Vec<f64> {
    match &question.reward {
        Reward::Linear { weights, features } => {
            linear_rewards(&posterior.mean(question.factor, weights), features)
        }
        Reward::Nearness => {
            let mean: f64 = predictive.iter().enumerate().map(|(i, p)| i as f64 * p).sum();
            // Expected squared distance is this plus the variance, which is the same for every option.
            (0..predictive.len()).map(|i| -(i as f64 - mean).powi(2)).collect()
        }
        Reward::Match => predictive.to_vec(),
    }
}

/// The reward of each option under given weights.
pub(super) fn linear_rewards(weights: &[f64], features: &[f64]) -> Vec<f64> {
    let reward = |option: &[f64]| option.iter().zip(weights).map(|(x, w)| x * w).sum();
    features.chunks_exact(weights.len()).map(reward).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::rng;
    use crate::world::World;

    #[test]
    fn at_the_flights_prior_all_rewards_are_equal() {
        let world = World::flights(&Default::default()).unwrap();
        let question = world.questions(1, &mut rng::stream(0, "test", 0)).remove(0);
        let posterior = Posterior::prior(world.factors());
        let predictive = posterior.predictive(&question);
        assert!(expected_rewards(&posterior, &question, &predictive).iter().all(|r| r.abs() < 1e-12));
        assert_eq!(decide(Decision::ExpectedReward, &posterior, &question, &predictive), 0);
    }

    #[test]
    fn the_nearest_step_may_differ_from_the_most_probable() {
        let world = World::personality(&Default::default()).unwrap();
        let question = world.questions(1, &mut rng::stream(0, "test", 0)).remove(0);
        let posterior = Posterior::prior(world.factors());
        let decide = |rule, predictive: &[f64]| decide(rule, &posterior, &question, predictive);
        // Mean step 1.5 counted from 0: a tie between 1 and 2.
        let predictive = [0.5, 0.0, 0.0, 0.5, 0.0];
        assert_eq!(decide(Decision::MostProbable, &predictive), 0);
        assert_eq!(decide(Decision::ExpectedReward, &predictive), 1);
        // Mean step 2.4.
        let predictive = [0.4, 0.0, 0.0, 0.0, 0.6];
        assert_eq!(decide(Decision::MostProbable, &predictive), 4);
        assert_eq!(decide(Decision::ExpectedReward, &predictive), 2);
    }
}
