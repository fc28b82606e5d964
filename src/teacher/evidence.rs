//! What is asked next, and when enough has been asked.

use std::vec::IntoIter;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::config::TeacherConfig;
use super::posterior::Posterior;
use crate::error::usage;
use crate::metrics::argmax;
use crate::rng::{self, Stream};
use crate::world::{Likelihood, Question, World};

/// The most candidates for a question.
const MOST_CANDIDATES: usize = 1_000_000;

/// How questions are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// At random, as the world draws them.
    #[default]
    Random,
    /// By the highest expected information gain: among random candidates where questions are drawn freely, among the
    /// items not yet asked in a questionnaire.
    Eig,
    /// By the highest Fisher information at the posterior mean of the level: the classic rule of adaptive
    /// questionnaires, for comparison.
    Fisher,
}

/// The questions of one episode, one after the other.
pub(super) struct Questions<'a> {
    config: &'a TeacherConfig,
    world: &'a World,
    supply: Supply,
    draws: Stream,
    asked: usize,
    rounds: usize,
}

enum Supply {
    /// All drawn beforehand, at random.
    Drawn(IntoIter<Question>),
    /// Chosen, as they are needed: among these items, as (item, question), while the world's bank is asked from; and
    /// then among option sets.
    Chosen(Vec<(usize, Question)>),
}

impl<'a> Questions<'a> {
    pub(super) fn new(config: &'a TeacherConfig, world: &'a World, seed: u64, episode: u64) -> Questions<'a> {
        let rounds = config.rounds_in(world);
        let mut draws = rng::stream(seed, "teacher.questions", episode);
        let supply = match config.evidence {
            Evidence::Random => Supply::Drawn(world.questions(rounds, &mut draws).into_iter()),
            Evidence::Eig | Evidence::Fisher => {
                let question = |item| world.item(item, 1).map(|question| (item, question));
                Supply::Chosen(world.bank(&mut draws).into_iter().filter_map(question).collect())
            }
        };
        Questions { config, world, supply, draws, asked: 0, rounds }
    }

    /// The next question; none where the episode ends.
    pub(super) fn next(&mut self, posterior: &Posterior) -> Option<Question> {
        let has_begun = self.asked > 0;
        if self.asked == self.rounds || (has_begun && posterior.entropy() < self.config.stop_entropy) {
            return None;
        }
        self.asked += 1;
        let (world, place) = (self.world, self.asked);
        let question = match &mut self.supply {
            Supply::Drawn(questions) => questions.next()?,
            Supply::Chosen(items) if place <= world.bank_rounds() => {
                let value = |(item, question): &(usize, Question)| match self.config.evidence {
                    Evidence::Fisher => {
                        let marginal = posterior.marginal(question.factor);
                        world.fisher_information(*item, marginal).unwrap_or(0.0)
                    }
                    _ => posterior.expected_gain(question),
                };
                let values: Vec<f64> = items.iter().map(value).collect();
                if values.is_empty() {
                    return None;
                }
                let best = argmax(&values);
                let item = items[best].0;
                if !world.items_come_again() {
                    items.remove(best);
                }
                world.item(item, place)?
            }
            Supply::Chosen(_) => {
                let mut best = f64::NEG_INFINITY;
                let mut is_better = |likelihood: &Likelihood, factor| {
                    // Rounded as by `argmax`, so that the first of equals is taken.
                    let gain = (posterior.expected_gain_of(likelihood, factor) * 1e9).round();
                    let is_better = gain > best;
                    best = best.max(gain);
                    is_better
                };
                world.best_question(place, self.config.candidates, &mut self.draws, &mut is_better)?
            }
        };
        let stop_gain = self.config.stop_gain;
        let is_enough = has_begun && stop_gain > 0.0 && posterior.expected_gain(&question) < stop_gain;
        (!is_enough).then_some(question)
    }
}

/// Checks the settings of evidence and stopping.
pub(super) fn check(config: &TeacherConfig, world: &World) -> Result<()> {
    let refuse = |message: String| Err(usage(message));
    if !(1..=MOST_CANDIDATES).contains(&config.candidates) {
        return refuse(format!(
            "teacher.candidates is {}, it must be 1 to {MOST_CANDIDATES}",
            config.candidates
        ));
    }
    for (key, value) in [("stop_entropy", config.stop_entropy), ("stop_gain", config.stop_gain)] {
        if !(value.is_finite() && value >= 0.0) {
            return refuse(format!("teacher.{key} is {value}, it must be a number of nats, 0 for never"));
        }
    }
    if config.stop_gain > 0.0 && config.evidence == Evidence::Random {
        return refuse(
            "teacher.stop_gain ends an episode when even the best question would tell too little, but with \
             teacher.evidence = \"random\" none is chosen: set evidence = \"eig\", or use stop_entropy"
                .into(),
        );
    }
    if config.evidence != Evidence::Random && !world.has_exact_teacher() {
        return refuse(format!(
            "teacher.evidence chooses questions by what their answers tell, but no exact teacher exists for the {} world, \
             and so nothing says what they tell: use \"random\"",
            world.name()
        ));
    }
    if config.evidence == Evidence::Fisher {
        let bank = world.bank(&mut rng::stream(0, "teacher.check", 0));
        let has_information = |item: &usize| {
            let question = world.item(*item, 1);
            let prior = question.and_then(|q| world.factors().get(q.factor));
            prior.is_some_and(|factor| world.fisher_information(*item, &factor.prior).is_some())
        };
        let all_rounds = config.rounds_in(world) <= world.bank_rounds();
        if !all_rounds || bank.is_empty() || !bank.iter().all(has_information) {
            return refuse(format!(
                "teacher.evidence is \"fisher\", but answers in the {} world as configured are no smooth function of one \
                 level: use \"eig\"",
                world.name()
            ));
        }
    }
    Ok(())
}
