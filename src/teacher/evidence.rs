//! What is asked next, and when enough has been asked.

use std::vec::IntoIter;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::config::TeacherConfig;
use super::posterior::Posterior;
use crate::error::usage;
use crate::metrics::argmax;
use crate::rng::{self, Stream};
use crate::world::{Question, World};

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
    /// All drawn beforehand.
    Drawn(IntoIter<Question>),
    /// Items that are left, as (item, question).
    Bank(Vec<(usize, Question)>),
    /// Drawn freely, as they are needed.
    Free,
}

impl<'a> Questions<'a> {
    pub(super) fn new(config: &'a TeacherConfig, world: &'a World, seed: u64, episode: u64) -> Questions<'a> {
        let rounds = config.rounds_in(world);
        let mut draws = rng::stream(seed, "teacher.questions", episode);
        let supply = match config.evidence {
            Evidence::Random => Supply::Drawn(world.questions(rounds, &mut draws).into_iter()),
            Evidence::Eig | Evidence::Fisher => match world.bank(&mut draws) {
                Some(items) => {
                    let question = |item| world.item(item, 1).map(|question| (item, question));
                    Supply::Bank(items.into_iter().filter_map(question).collect())
                }
                None => Supply::Free,
            },
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
        let question = match &mut self.supply {
            Supply::Drawn(questions) => questions.next()?,
            Supply::Bank(items) => {
                let value = |(item, question): &(usize, Question)| match self.config.evidence {
                    Evidence::Fisher => {
                        let marginal = posterior.marginal(question.factor);
                        self.world.fisher_information(*item, marginal).unwrap_or(0.0)
                    }
                    _ => posterior.expected_gain(question),
                };
                let values: Vec<f64> = items.iter().map(value).collect();
                if values.is_empty() {
                    return None;
                }
                let (item, _) = items.remove(argmax(&values));
                self.world.item(item, self.asked)?
            }
            Supply::Free => {
                let mut best = f64::NEG_INFINITY;
                self.world.best_question(
                    self.config.candidates,
                    &mut self.draws,
                    &mut |likelihood, factor| {
                        // Rounded as by `argmax`, so that the first of equals is taken.
                        let gain = (posterior.expected_gain_of(likelihood, factor) * 1e9).round();
                        let is_better = gain > best;
                        best = best.max(gain);
                        is_better
                    },
                )
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
    if config.evidence == Evidence::Fisher {
        let bank = world.bank(&mut rng::stream(0, "teacher.check", 0)).unwrap_or_default();
        let has_information = |item: &usize| {
            let question = world.item(*item, 1);
            let prior = question.and_then(|q| world.factors().get(q.factor));
            prior.is_some_and(|factor| world.fisher_information(*item, &factor.prior).is_some())
        };
        if bank.is_empty() || !bank.iter().all(has_information) {
            return refuse(format!(
                "teacher.evidence is \"fisher\", but answers in the {} world are no smooth function of a level: use \
                 \"eig\"",
                world.name()
            ));
        }
    }
    Ok(())
}
