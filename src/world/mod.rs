//! Worlds: who the users are, what they are asked, how they answer, and how it all reads.
//!
//! A user is a tuple of independent *factors*, each with finitely many hypotheses: one factor of 624 preference
//! vectors in [`flights`], five traits of five levels in [`personality`]. Every [`Question`] bears on exactly one
//! factor and carries all that a teacher needs to know about it: the likelihood of each option under each
//! hypothesis of that factor, and what a recommendation is worth. So the teacher never knows which world it is in,
//! and a question that bears on several traits makes them one joint factor.
//!
//! What differs between worlds is the drawing of questions and the text around them. There are two kinds: in a
//! [`choice`] world options are drawn from features and users have linear preferences ([`flights`], [`hotels`]); an
//! [`items`] world has a list of questions ([`personality`]). Either may be [`declared`] in a file;
//! [`trait_flights`] has both in one dialogue. The [`shop`] alone has no exact teacher.
//!
//! Worlds without such a grid, whose users are drawn sources, are a [`process`]: [`coins`], [`markov`] chains, hidden
//! Markov models ([`hmm`]), [`regression`].

pub mod attribute;
pub mod chain;
pub mod choice;
pub mod coins;
pub mod declared;
pub mod flights;
mod graded;
pub mod hidden_markov;
pub mod hmm;
pub mod hotels;
pub mod ipip;
pub mod items;
mod joint;
mod likelihood;
pub mod markov;
pub mod personality;
pub mod process;
pub mod regression;
pub mod shop;
pub mod staged;
mod text;
pub mod trait_flights;

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use crate::rng::{self, Stream};
pub use attribute::Attribute;
use choice::ChoiceWorld;
use flights::FlightsConfig;
use hotels::HotelsConfig;
use items::ItemWorld;
pub use likelihood::Likelihood;
use personality::PersonalityConfig;
use shop::{Shop, ShopConfig};
use staged::StagedWorld;
use trait_flights::TraitFlightsConfig;

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
    /// The same with a mark where it says its place in the episode, for [`at`](Question::at); none where it does not.
    pub placed: Option<Arc<str>>,
    /// The label of each option.
    pub labels: Arc<[String]>,
    /// Index of the factor that it bears on.
    pub factor: usize,
    /// The probability of each option under each hypothesis of the factor, as the teacher supposes it.
    pub likelihood: Arc<Likelihood>,
    /// The same as it truly is, by which users answer: another table only where the teacher is mistaken.
    pub behaviour: Arc<Likelihood>,
    /// What recommending an option is worth.
    pub reward: Reward,
    /// The level of each feature of each option, (options, features); empty where options are not made of features.
    pub levels: Arc<[Vec<usize>]>,
}

/// How many combinations of hypotheses there are.
fn combinations(factors: &[Factor]) -> usize {
    factors.iter().map(|factor| factor.prior.len()).fold(1, usize::saturating_mul)
}

/// The mark: a character that no text has.
const PLACE: &str = "\u{f8ff}";

impl Question {
    /// The same question as it reads at a place (from 1) of an episode.
    #[must_use]
    pub fn at(&self, place: usize) -> Question {
        let text = match &self.placed {
            Some(placed) => placed.replace(PLACE, &place.to_string()),
            None => self.text.clone(),
        };
        Question { text, ..self.clone() }
    }
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
    /// 1 for what the user answers and 0 for anything else: highest in expectation at the most probable option.
    Match,
}

/// One vector of weights for each hypothesis.
#[derive(Clone, Debug)]
pub struct Weights {
    dimensions: usize,
    cells: Vec<f64>,
    /// The same, all hypotheses of one weight after the other.
    columns: Vec<f64>,
}

impl Weights {
    /// `cells` has `dimensions` weights (at least 1) of one hypothesis after the other.
    fn new(dimensions: usize, cells: Vec<f64>) -> Weights {
        let column = |d: usize| cells.iter().skip(d).step_by(dimensions).copied();
        let columns = (0..dimensions).flat_map(column).collect();
        Weights { dimensions, cells, columns }
    }

    /// How many weights a hypothesis has.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// How many hypotheses there are.
    pub fn hypotheses(&self) -> usize {
        self.cells.len() / self.dimensions
    }

    /// The weights of a hypothesis.
    pub fn row(&self, hypothesis: usize) -> &[f64] {
        &self.cells[hypothesis * self.dimensions..][..self.dimensions]
    }

    /// One weight under each hypothesis.
    fn column(&self, dimension: usize) -> &[f64] {
        &self.columns[dimension * self.hypotheses()..][..self.hypotheses()]
    }
}

/// A domain.
#[derive(Clone, Debug)]
pub enum World {
    /// Choosing one of some options, round after round: flights, hotels, and others of their kind.
    Choice(ChoiceWorld),
    /// Answering the questions of a list: the personality questionnaire, and others of its kind.
    Items(ItemWorld),
    /// Questions of a list first, then choices by what they were about: flights that follow from personality, and others
    /// of their kind.
    Staged(Box<StagedWorld>),
    /// Choosing products by attributes that the text only paraphrases.
    Shop(Shop),
}

impl World {
    /// The flights world.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn flights(config: &FlightsConfig) -> Result<World> {
        flights::world(config).map(World::Choice)
    }

    /// The hotels world.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn hotels(config: &HotelsConfig) -> Result<World> {
        hotels::world(config).map(World::Choice)
    }

    /// The personality world.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn personality(config: &PersonalityConfig) -> Result<World> {
        personality::world(config).map(World::Items)
    }

    /// The world of flights that follow from traits.
    ///
    /// # Errors
    /// If either config makes no sense.
    pub fn trait_flights(config: &TraitFlightsConfig, personality: &PersonalityConfig) -> Result<World> {
        Ok(World::Staged(Box::new(trait_flights::world(config, personality)?)))
    }

    /// The shop.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn shop(config: &ShopConfig) -> Result<World> {
        Shop::new(config).map(World::Shop)
    }

    /// The name of the world without an exact teacher.
    pub const SHOP: &'static str = "shop";

    /// As it stands in configs and episodes.
    pub fn name(&self) -> &str {
        match self {
            World::Choice(world) => world.name(),
            World::Items(world) => world.name(),
            World::Staged(world) => world.name(),
            World::Shop(_) => World::SHOP,
        }
    }

    /// What can be true of a user, in independent parts.
    pub fn factors(&self) -> &[Factor] {
        match self {
            World::Choice(world) => world.factors(),
            World::Items(world) => world.factors(),
            World::Staged(world) => world.factors(),
            World::Shop(world) => world.factors(),
        }
    }

    /// A world declared in a file, see [`declared`].
    ///
    /// # Errors
    /// If the file cannot be read, or with where in it what is wrong.
    pub fn declared(path: &Path) -> Result<World> {
        declared::read(path)
    }

    /// How many different users there are: every combination of hypotheses once, or as many people as were declared.
    pub fn users(&self) -> usize {
        self.population().unwrap_or_else(|| combinations(self.factors()))
    }

    /// The number of people drawn from the prior, where users are that.
    fn population(&self) -> Option<usize> {
        match self {
            World::Choice(world) => world.population(),
            World::Items(world) => world.population(),
            World::Staged(world) => world.population(),
            World::Shop(_) => None,
        }
    }

    /// The true hypothesis of each factor for a user in `0..self.users()`. In a grid the last factor varies fastest;
    /// people are drawn from the prior, always the same ones.
    pub fn user(&self, index: usize) -> Vec<usize> {
        if self.population().is_some() {
            let mut draws = rng::stream(0, "world.population", index as u64);
            return self.factors().iter().map(|factor| draws.categorical(&factor.prior)).collect();
        }
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
            World::Choice(world) => world.default_rounds(),
            World::Items(world) => world.default_rounds(),
            World::Staged(world) => world.default_rounds(),
            World::Shop(_) => shop::DEFAULT_ROUNDS,
        }
    }

    /// The most rounds that an episode can have, where there is a limit.
    pub fn max_rounds(&self) -> Option<usize> {
        match self {
            World::Choice(_) | World::Staged(_) | World::Shop(_) => None,
            World::Items(world) => world.max_rounds(),
        }
    }

    /// Whether the teacher knows how probable each answer is: everywhere but in the shop, where it predicts all options
    /// alike.
    pub fn has_exact_teacher(&self) -> bool {
        !matches!(self, World::Shop(_))
    }

    /// Draws option sets alone, each to be asked at the same place (from 1) of an episode; none where they cannot be
    /// drawn freely.
    pub fn option_sets(&self, place: usize, count: usize, draws: &mut Stream) -> Vec<Question> {
        let draw = |_| match self {
            World::Choice(world) => Some(world.question(place, draws)),
            World::Items(_) | World::Shop(_) => None,
            World::Staged(world) => Some(world.option_set(place, draws)),
        };
        (0..count).map_while(draw).collect()
    }

    /// Whether option sets can be drawn freely, at least for an episode: see [`option_sets_for`](Self::option_sets_for).
    pub fn has_option_sets(&self) -> bool {
        !matches!(self, World::Items(_))
    }

    /// As [`option_sets`](Self::option_sets), such as could be asked in the episode that begins with `first`: the shop's are
    /// of its category.
    pub fn option_sets_for(
        &self,
        first: &Question,
        place: usize,
        count: usize,
        draws: &mut Stream,
    ) -> Vec<Question> {
        match self {
            World::Shop(shop) => shop.option_sets(shop.category_of(first), count, draws),
            _ => self.option_sets(place, count, draws),
        }
    }

    /// Where the option sets of the episode that begins with `first` come from: in the shop its category, elsewhere always
    /// the same.
    pub fn region_of(&self, first: &Question) -> usize {
        match self {
            World::Shop(shop) => shop.category_of(first),
            _ => 0,
        }
    }

    /// Draws the questions of an episode of at most [`max_rounds`](World::max_rounds) rounds.
    pub fn questions(&self, rounds: usize, draws: &mut Stream) -> Vec<Question> {
        match self {
            World::Choice(world) => world.questions(rounds, draws),
            World::Items(world) => world.questions(rounds, draws),
            World::Staged(world) => world.questions(rounds, draws),
            World::Shop(world) => world.questions(rounds, draws),
        }
    }

    /// The question of a place (from 1) about options that are given as text, such as `Flight 1: price: $730, …`.
    ///
    /// # Errors
    /// If the world has no options that are read so, or with what was not understood.
    pub fn question_of_text(&self, place: usize, options: &[String]) -> Result<Question> {
        match self {
            World::Choice(world) => world.question_of_text(place, options),
            World::Shop(world) => world.question_of_text(options),
            World::Items(_) | World::Staged(_) => {
                anyhow::bail!("options of the {} world cannot be read from text", self.name())
            }
        }
    }

    /// Of an episode's first so many rounds the questions come from a fixed [`bank`](World::bank), where they are chosen
    /// and not drawn; those of all later rounds are drawn freely.
    pub fn bank_rounds(&self) -> usize {
        match self {
            World::Choice(_) | World::Shop(_) => 0,
            World::Items(_) => usize::MAX,
            World::Staged(world) => world.bank_rounds(),
        }
    }

    /// All items of the bank, in an order in which they could be asked; none where there is no bank.
    pub fn bank(&self, draws: &mut Stream) -> Vec<usize> {
        match self {
            World::Choice(_) | World::Shop(_) => Vec::new(),
            World::Items(world) => world.bank(draws),
            World::Staged(world) => world.items().bank(draws),
        }
    }

    /// Whether an item of the bank may be asked again.
    pub fn items_come_again(&self) -> bool {
        match self {
            World::Choice(_) | World::Shop(_) => false,
            World::Items(world) => world.items_come_again(),
            World::Staged(world) => world.items().items_come_again(),
        }
    }

    /// An item of the [`bank`](World::bank) as the question of a place (from 1) of the episode.
    pub fn item(&self, item: usize, place: usize) -> Option<Question> {
        match self {
            World::Choice(_) | World::Shop(_) => None,
            World::Items(world) => world.item(item, place),
            World::Staged(world) => world.items().item(item, place),
        }
    }

    /// The Fisher information of an item at the mean of its trait's level, given the probability of each hypothesis of
    /// the item's factor; none where answers are no smooth function of one level.
    pub fn fisher_information(&self, item: usize, marginal: &[f64]) -> Option<f64> {
        match self {
            World::Choice(_) | World::Shop(_) => None,
            World::Items(world) => world.fisher_information(item, marginal),
            World::Staged(world) => world.items().fisher_information(item, marginal),
        }
    }

    /// Draws `candidates` option sets (at least 1) for a place (from 1) of the episode and keeps the last of which
    /// `is_better` said that it is better than those before, or the first; it is shown the likelihood and the factor of
    /// each. None where option sets cannot be drawn freely.
    pub fn best_question(
        &self,
        place: usize,
        candidates: usize,
        draws: &mut Stream,
        is_better: &mut dyn FnMut(&Likelihood, usize) -> bool,
    ) -> Option<Question> {
        match self {
            World::Choice(world) => {
                let mut is_better = |likelihood: &Likelihood| is_better(likelihood, 0);
                Some(world.best_question(place, candidates, draws, &mut is_better))
            }
            World::Staged(world) => Some(world.best_question(place, candidates, draws, is_better)),
            World::Items(_) | World::Shop(_) => None,
        }
    }

    /// The question that stands at the end of a user's message, as that of a place (from 1) of the episode: what
    /// [`opening`](World::opening) or [`feedback`](World::feedback) put there. None if there is none, or what it says does
    /// not tell which question it is.
    pub fn read_question(&self, message: &str, place: usize) -> Option<Question> {
        match self {
            World::Choice(world) => world.read_question(message, place),
            World::Items(world) => world.read_question(message, place),
            World::Staged(world) => world.read_question(message, place),
            World::Shop(_) => None,
        }
    }

    /// Whether answers, as the teacher supposes them, can only rule hypotheses out: nobody errs, or nothing can be
    /// learnt. See [`Likelihood::only_rules_out`].
    pub fn answers_only_rule_out(&self) -> bool {
        match self {
            World::Choice(world) => world.answers_only_rule_out(),
            World::Items(world) => world.answers_only_rule_out(),
            World::Staged(world) => world.answers_only_rule_out(),
            World::Shop(_) => true,
        }
    }

    /// What can be said of a user in one word and a level; nothing of the shop's buyers, whose goals have no levels.
    pub fn attributes(&self) -> Vec<Attribute> {
        match self {
            World::Choice(world) => world.user_attributes(),
            World::Items(world) => world.attributes().to_vec(),
            World::Staged(world) => world.items().attributes().to_vec(),
            World::Shop(_) => Vec::new(),
        }
    }

    /// What a user truly answers.
    pub fn answer(&self, user: &[usize], question: &Question, draws: &mut Stream) -> usize {
        question.behaviour.draw(user[question.factor], draws)
    }

    /// The first message of the dialogue: the task, then the first question.
    pub fn opening(&self, first: &Question) -> String {
        match self {
            World::Choice(world) => world.texts().opening(&first.text),
            World::Items(world) => world.texts().opening(&first.text),
            World::Staged(world) => world.opening(first),
            World::Shop(world) => world.texts().opening(&first.text),
        }
    }

    /// The user's message after a report of a belief: the next question, and what it is about where that is new. `before` is
    /// the last that was asked before the report.
    pub fn going_on(&self, before: Option<&Question>, next: &Question) -> String {
        match (self, before) {
            (World::Staged(world), Some(before)) => world.going_on(before, next),
            _ => next.text.clone(),
        }
    }

    /// The assistant's message that says an option, and the byte at which the option's label begins.
    pub fn reply(&self, question: &Question, said: usize) -> (String, usize) {
        let label = &question.labels[said];
        match self {
            World::Choice(world) => world.texts().reply(label),
            World::Items(world) => world.texts().reply(label),
            World::Staged(world) => world.reply(question, label),
            World::Shop(world) => world.texts().reply(label),
        }
    }

    /// The user's message after an answer: what the user truly answered, then the next question.
    pub fn feedback(&self, question: &Question, said: usize, truth: usize, next: &Question) -> String {
        match self {
            World::Choice(world) => world.feedback(question, said, truth, &next.text),
            World::Items(world) => world.texts().feedback(&question.labels, said, truth, &[], &next.text),
            World::Staged(world) => world.feedback(question, said, truth, next),
            World::Shop(world) => world.texts().feedback(&question.labels, said, truth, &[], &next.text),
        }
    }
}
