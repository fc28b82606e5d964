//! Held-out option sets, shared by all users and asked after each round without feedback.

use super::decision::{expected_rewards, linear_rewards};
use super::posterior::Posterior;
use super::rival::Rules;
use super::summary::Tally;
use crate::metrics::{argmax, entropy};
use crate::rng::{self, Stream};
use crate::world::{Question, Reward, World};

/// As many as published.
const SETS: usize = 100;

/// The option sets, and what the teacher predicts on each before it has seen anything, the same for all users.
pub(super) struct HeldOut {
    questions: Vec<Question>,
    at_prior: Vec<Forecast>,
}

#[derive(Clone, Copy)]
struct Forecast {
    most_probable: usize,
    best_reward: usize,
    entropy: f64,
}

/// What option sets are drawn from: the first ones of a seed are always the same.
pub(super) fn held_out_draws(seed: u64) -> Stream {
    rng::stream(seed, "teacher.held_out", 0)
}

impl HeldOut {
    /// Draws the sets, at random however evidence is chosen; none where the world's questions cannot be drawn freely.
    pub(super) fn draw(world: &World, rules: &Rules, seed: u64) -> HeldOut {
        let questions = world.option_sets(1, SETS, &mut held_out_draws(seed));
        let at_prior = forecasts(&rules.prior(), &questions);
        HeldOut { questions, at_prior }
    }

    pub(super) fn sets(&self) -> usize {
        self.questions.len()
    }

    /// What a user, given as one hypothesis a factor, likes best in each set: what a noisy user would choose without
    /// the noise.
    pub(super) fn truths(&self, hypotheses: &[usize]) -> Vec<usize> {
        let best = |question: &Question| question.behaviour.most_probable(hypotheses[question.factor]);
        self.questions.iter().map(best).collect()
    }

    /// How well the posterior after `round` rounds predicts the answers, or an oracle that sees them does.
    pub(super) fn ask(
        &self,
        rules: &Rules,
        posterior: &Posterior,
        round: usize,
        truths: &[usize],
        errors: &mut Stream,
    ) -> Tally {
        let computed;
        let forecasts = if round == 0 {
            &self.at_prior
        } else {
            computed = forecasts(posterior, &self.questions);
            &computed
        };
        let mut tally = Tally::default();
        for ((forecast, question), &truth) in forecasts.iter().zip(&self.questions).zip(truths) {
            match rules.oracle.says(question.labels.len(), truth, errors) {
                Some(option) => tally.add(option == truth, option == truth, 0.0),
                None => tally.add(
                    forecast.most_probable == truth,
                    forecast.best_reward == truth,
                    forecast.entropy,
                ),
            }
        }
        tally
    }
}

fn forecasts(posterior: &Posterior, questions: &[Question]) -> Vec<Forecast> {
    // All sets have the weights of the one factor that they bear on: their mean is needed once, not once a set.
    let mean = questions.first().and_then(|question| match &question.reward {
        Reward::Linear { weights, .. } => Some(posterior.mean(question.factor, weights)),
        Reward::Nearness | Reward::Match => None,
    });
    let forecast = |question: &Question| {
        let predictive = posterior.predictive(question);
        let rewards = match (&mean, &question.reward) {
            (Some(mean), Reward::Linear { features, .. }) => linear_rewards(mean, features),
            _ => expected_rewards(posterior, question, &predictive),
        };
        Forecast {
            most_probable: argmax(&predictive),
            best_reward: argmax(&rewards),
            entropy: entropy(&predictive),
        }
    };
    questions.iter().map(forecast).collect()
}
