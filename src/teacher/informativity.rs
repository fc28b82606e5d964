//! How much an option set tells about a user, and sets chosen to span that.

use super::asides::{About, Aside, Asides};
use super::posterior::Posterior;
use super::replay::{Moment, Replay};
use crate::world::Question;

/// Random option sets from which the informative ones are selected, as many as published.
const CANDIDATES: usize = 5000;
/// Probabilities that are kept of them at most: with very many users there are fewer candidates.
const MOST_PROBABILITIES: usize = 50_000_000;

/// The part of the candidates that is left out at either end, as too rare to be spanned.
const TAIL: f64 = 0.01;

/// Candidates for a moment.
pub(super) struct Candidates(Vec<Question>);

/// An option set that a user chose from, and what is asked after it.
#[derive(Clone, Debug)]
pub struct Informative {
    /// By how much the choice raises the log-probability of what is true of the user, in nats: the published g.
    pub gain: f64,
    /// What it was expected to lower the entropy of the posterior by, in nats.
    pub expected_gain: f64,
    /// Held-out option sets, in the dialogue that goes on from the choice.
    pub asides: Vec<Aside>,
}

impl Posterior {
    /// By how much an answer raises the log-probability of a hypothesis of the question's factor, in nats. It is negative
    /// where the answer speaks against it.
    ///
    /// By Bayes's rule that is log P(answer | hypothesis) less the logarithm of the predictive probability.
    pub fn gain_about(&self, hypothesis: usize, question: &Question, answer: usize) -> f64 {
        question.likelihood.log_prob(hypothesis, answer) - self.predictive(question)[answer].ln()
    }
}

impl Asides<'_> {
    /// Of the candidates at a moment of the `number`th episode, `sets` whose gains are spread evenly over what there is,
    /// in ascending order, each with the first `tests` held-out option sets asked after it. None where option sets
    /// cannot be drawn freely.
    pub fn informative(
        &mut self,
        number: usize,
        replay: &Replay,
        moment: &Moment,
        sets: usize,
        tests: usize,
    ) -> Vec<Informative> {
        let replayer = self.replayer;
        let draw = || {
            let users = replayer.world().factors().iter().map(|factor| factor.prior.len()).max().unwrap_or(1);
            let count = (MOST_PROBABILITIES / users).clamp(100, CANDIDATES);
            Candidates(replayer.candidates(moment.rounds, count))
        };
        let candidates = &self.candidates.entry(moment.rounds).or_insert_with(draw).0;
        let gain = |question: &Question| {
            moment.posterior.gain_about(moment.hypotheses[question.factor], question, moment.best(question))
        };
        let gains: Vec<f64> = candidates.iter().map(gain).collect();
        let mut errors = replayer.errors(number, moment);
        let held_out = replayer.held_out_sets(replay, moment.rounds + 1, tests);
        let mut one = |i: usize| {
            let question = &candidates[i];
            let (again, after) = replayer.go_on(replay, moment, question, moment.best(question), &mut errors);
            let mut aside = |test: &Question| Aside {
                about: About::HeldOut,
                episode: replayer.ask(&again, &after, test, after.best(test), None, &mut errors),
                question: test.clone(),
            };
            Informative {
                gain: gains[i],
                expected_gain: moment.posterior.expected_gain(question),
                asides: held_out.iter().map(&mut aside).collect(),
            }
        };
        spread(&gains, sets).into_iter().map(&mut one).collect()
    }
}

/// The indices of values that are nearest to evenly spaced ones between the lowest and the highest but a few, each once,
/// in ascending order of the values.
fn spread(values: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).filter(|&i| values[i].is_finite()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let left_out = (order.len() as f64 * TAIL) as usize;
    let mut order = order[left_out..order.len() - left_out].to_vec();
    let ends = order.first().zip(order.last()).map(|(a, b)| (values[*a], values[*b]));
    let Some((low, high)) = ends else { return Vec::new() };
    let mut chosen = Vec::new();
    for i in 0..count.min(order.len()) {
        let target = low + (high - low) * i as f64 / (count.max(2) - 1) as f64;
        let distance = |at: &usize| (values[order[*at]] - target).abs();
        let nearest = (0..order.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)));
        chosen.extend(nearest.map(|at| order.remove(at)));
    }
    chosen.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    chosen
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::rng;
    use crate::world::World;

    #[test]
    fn what_is_chosen_is_spread() {
        let values: Vec<f64> = (0..1000).map(|i| f64::from((i * 7) % 1000)).collect();
        let chosen: Vec<f64> = spread(&values, 5).into_iter().map(|i| values[i]).collect();
        // Evenly between the first and the last hundredth: at 10, 254.75, 499.5, 744.25 and 989.
        assert_eq!(chosen, [10.0, 255.0, 499.0, 744.0, 989.0]);
        assert_eq!(spread(&[1.0, f64::NEG_INFINITY], 4), [0]);
        assert_eq!(spread(&[], 4), Vec::<usize>::new());
        assert_eq!(spread(&[2.0, 2.0, 2.0], 2).len(), 2);
    }

    /// teaching.md, A.9: under the uniform prior of four features, g over random sets has mean 1.07 and standard
    /// deviation .22 nats, 1 to 99 % of it from .74 to 1.78; its expectation is at most ln 3. And g is by how much the
    /// posterior of the truth rises.
    #[test]
    fn the_published_gains() {
        let world = World::flights(&Default::default()).unwrap();
        let prior = Posterior::prior(world.factors());
        let mut draws = rng::stream(1, "test", 0);
        let mut gains = Vec::new();
        for i in 0..5000 {
            let (question, user) = (&world.option_sets(1, 1, &mut draws)[0], draws.below(624));
            let truth = question.behaviour.most_probable(user);
            let gain = prior.gain_about(user, question, truth);
            if i < 20 {
                let mut after = prior.clone();
                after.observe(question, truth);
                let rise = (after.marginal(0)[user] / prior.marginal(0)[user]).ln();
                assert!((gain - rise).abs() < 1e-9);
            }
            gains.push(gain);
        }
        gains.sort_by(f64::total_cmp);
        let mean = gains.iter().sum::<f64>() / 5000.0;
        let sd = (gains.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / 5000.0).sqrt();
        assert!((mean - 1.07).abs() < 0.02 && (sd - 0.22).abs() < 0.02, "{mean} {sd}");
        assert!(
            (gains[50] - 0.74).abs() < 0.04 && (gains[4950] - 1.78).abs() < 0.1,
            "{} {}",
            gains[50],
            gains[4950]
        );
    }
}
