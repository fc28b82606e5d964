//! Worlds: who the users are, what they are asked, how they answer, and how it all reads.
//!
//! A user is a tuple of independent *factors*, each with finitely many hypotheses: one factor of 624 preference
//! vectors in [`flights`], five traits of five levels in [`personality`]. Every [`Question`] bears on exactly one
//! factor and carries all that a teacher needs to know about it: the likelihood of each option under each
//! hypothesis of that factor, and what a recommendation is worth. So the teacher never knows which world it is in,
//! and a question that bears on several traits would make them one joint factor.
//!
//! What differs between worlds is the drawing of questions and the text around them.

pub mod attribute;
pub mod flights;
pub mod ipip;
mod likelihood;
pub mod personality;

use std::sync::Arc;

use anyhow::Result;

use crate::rng::Stream;
pub use attribute::Attribute;
use flights::{Flights, FlightsConfig};
pub use likelihood::Likelihood;
use personality::{Personality, PersonalityConfig};

/// One independent part of what can be true of a user.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// What it is called, such as `extraversion`.
    pub name: String,
    /// The prior probability of each hypothesis.
    pub prior: Vec<f64>,
}

/// One question, as drawn for one place of an episode.
#[derive(Clone, Debug)]
pub struct Question {
    /// How it reads, options included.
    pub text: String,
    /// The label of each option.
    pub labels: Arc<[String]>,
    /// Index of the factor that it bears on.
    pub factor: usize,
    /// The probability of each option under each hypothesis of the factor.
    pub likelihood: Arc<Likelihood>,
    /// What recommending an option is worth.
    pub reward: Reward,
}

/// What recommending an option is worth, for the rule of highest expected reward.
#[derive(Clone, Debug)]
pub enum Reward {
    /// The user's weights times the option's features.
    Linear {
        /// The weights under each hypothesis of the factor.
        weights: Arc<Weights>,
        /// The features of each option, one option after the other.
        features: Vec<f64>,
    },
    /// Options are steps on a scale, and the reward falls with the squared distance to the true step.
    ///
    /// Its expectation is highest at the step nearest to the mean of the predictive distribution.
    Nearness,
}

/// One vector of weights for each hypothesis.
#[derive(Clone, Debug)]
pub struct Weights {
    dimensions: usize,
    cells: Vec<f64>,
}

impl Weights {
    /// How many weights a hypothesis has.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The weights of a hypothesis.
    pub fn row(&self, hypothesis: usize) -> &[f64] {
        &self.cells[hypothesis * self.dimensions..][..self.dimensions]
    }
}

/// A domain.
#[derive(Clone, Debug)]
pub enum World {
    /// Recommending flights to a user with fixed preferences.
    Flights(Flights),
    /// Predicting a user's answers to a personality questionnaire.
    Personality(Personality),
}

impl World {
    /// The flights world.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn flights(config: &FlightsConfig) -> Result<World> {
        Flights::new(config).map(World::Flights)
    }

    /// The personality world.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn personality(config: &PersonalityConfig) -> Result<World> {
        Personality::new(config).map(World::Personality)
    }

    /// As it stands in configs and episodes.
    pub fn name(&self) -> &'static str {
        match self {
            World::Flights(_) => "flights",
            World::Personality(_) => "personality",
        }
    }

    /// The factors, each with its prior.
    pub fn factors(&self) -> &[Factor] {
        match self {
            World::Flights(world) => world.factors(),
            World::Personality(world) => world.factors(),
        }
    }

    /// How many users there are: every combination of hypotheses is one.
    pub fn users(&self) -> usize {
        self.factors().iter().map(|factor| factor.prior.len()).product()
    }

    /// The true hypothesis of each factor for a user in `0..self.users()`; the last factor varies fastest.
    pub fn user(&self, index: usize) -> Vec<usize> {
        let mut rest = index;
        let mut hypotheses: Vec<usize> = (self.factors().iter().rev())
            .map(|factor| {
                let hypothesis = rest % factor.prior.len();
                rest /= factor.prior.len();
                hypothesis
            })
            .collect();
        hypotheses.reverse();
        hypotheses
    }

    /// Rounds of an episode where the config does not say.
    pub fn default_rounds(&self) -> usize {
        match self {
            World::Flights(_) => flights::DEFAULT_ROUNDS,
            World::Personality(_) => ipip::ITEMS.len(),
        }
    }

    /// The most rounds that an episode can have, where there is a limit.
    pub fn max_rounds(&self) -> Option<usize> {
        match self {
            World::Flights(_) => None,
            World::Personality(_) => Some(ipip::ITEMS.len()),
        }
    }

    /// Whether option sets can be drawn freely, so that users can be asked some without feedback.
    pub fn has_held_out_sets(&self) -> bool {
        matches!(self, World::Flights(_))
    }

    /// Draws the questions of an episode of at most [`max_rounds`](World::max_rounds) rounds.
    pub fn questions(&self, rounds: usize, draws: &mut Stream) -> Vec<Question> {
        match self {
            World::Flights(world) => (0..rounds).map(|_| world.question(draws)).collect(),
            World::Personality(world) => world.questions(rounds, draws),
        }
    }

    /// Draws `candidates` questions (at least 1) and keeps the last of which `is_better` said that it is better than
    /// those before, or the first; it is shown the likelihood and the factor of each. For worlds where there is no
    /// [`bank`](World::bank) of items.
    pub fn best_question(
        &self,
        candidates: usize,
        draws: &mut Stream,
        is_better: &mut dyn FnMut(&Likelihood, usize) -> bool,
    ) -> Question {
        match self {
            World::Flights(world) => world.best_question(candidates, draws, is_better),
            World::Personality(_) => {
                let mut best = self.questions(1, draws).remove(0);
                is_better(&best.likelihood, best.factor);
                for _ in 1..candidates {
                    let candidate = self.questions(1, draws).remove(0);
                    if is_better(&candidate.likelihood, candidate.factor) {
                        best = candidate;
                    }
                }
                best
            }
        }
    }

    /// The items of an episode in the order in which they would be asked, where they come from a fixed bank and none
    /// is asked twice; none where questions are drawn freely.
    pub fn bank(&self, draws: &mut Stream) -> Option<Vec<usize>> {
        match self {
            World::Flights(_) => None,
            World::Personality(world) => Some(world.bank(draws)),
        }
    }

    /// An item of the [`bank`](World::bank) as the question of a place (from 1) of the episode.
    pub fn item(&self, item: usize, place: usize) -> Option<Question> {
        match self {
            World::Flights(_) => None,
            World::Personality(world) => world.item(item, place),
        }
    }

    /// The Fisher information of an item at the mean of its trait's level under the given probabilities; none where
    /// answers are no smooth function of a level.
    pub fn fisher_information(&self, item: usize, marginal: &[f64]) -> Option<f64> {
        match self {
            World::Flights(_) => None,
            World::Personality(world) => world.fisher_information(item, marginal),
        }
    }

    /// Whether a user's answers are certain once the user is known, so that nobody ever errs.
    pub fn answers_are_certain(&self) -> bool {
        match self {
            World::Flights(_) => true,
            World::Personality(_) => false,
        }
    }

    /// What can be said of a user in one word and a level.
    pub fn attributes(&self) -> Vec<Attribute> {
        match self {
            World::Flights(world) => world.attributes(),
            World::Personality(world) => world.attributes(),
        }
    }

    /// What a user truly answers.
    pub fn answer(&self, user: &[usize], question: &Question, draws: &mut Stream) -> usize {
        question.likelihood.draw(user[question.factor], draws)
    }

    /// The first message of the dialogue: the task, then the first question.
    pub fn opening(&self, first: &Question) -> String {
        match self {
            World::Flights(_) => flights::opening(first),
            World::Personality(_) => personality::opening(first),
        }
    }

    /// The assistant's message that says an option, and the byte at which the option's label begins.
    pub fn reply(&self, question: &Question, said: usize) -> (String, usize) {
        let label = &question.labels[said];
        match self {
            World::Flights(_) => flights::reply(label),
            World::Personality(_) => personality::reply(label),
        }
    }

    /// The user's message after an answer: what the user truly answered, then the next question.
    pub fn feedback(&self, question: &Question, said: usize, truth: usize, next: &Question) -> String {
        let (said, truth) = (&question.labels[said], &question.labels[truth]);
        match self {
            World::Flights(_) => flights::feedback(said, truth, next),
            World::Personality(_) => personality::feedback(truth, next),
        }
    }
}
