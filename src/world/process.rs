//! Worlds whose users are drawn, not listed: coins and dice, Markov chains, hidden Markov models, regression.
//!
//! A user is a *source*: a coin's bias, a chain, a concept, a function. There is no grid of them, so a user's index
//! keys the draw of the source, which is the same in all episodes of that user. Every round has a [`Query`], and the
//! source gives an [`Outcome`]; all earlier outcomes of an episode bear on the next one. What the teacher believes
//! about the source is its own matter, see `teacher::Belief`.
//!
//! **Text.** One round is one turn of the dialogue. The assistant's message is the bare label, the user's message
//! says the outcome and what comes next, in as few tokens as stay readable.
//!
//! **Decisions.** Symbols of a sequence are categories: a recommendation is worth 1 if it comes true, so the highest
//! expected reward is the most probable symbol. Bins are ordered: the reward falls with the squared distance in bins,
//! so the best is the bin nearest to the predictive mean.

use std::sync::Arc;

use anyhow::Result;

use super::chain::{Rows, RowsPrior};
use super::coins::{Coins, CoinsConfig};
use super::hmm::{Format, HiddenSource, Hmm, HmmConfig};
use super::markov::{Markov, MarkovConfig};
use super::regression::{Function, Regression, RegressionConfig};
use crate::rng::{Stream, stream};

/// Labels that are one token in any tokenizer.
pub(super) const LETTERS: [char; 26] = [
    'A', 'B', 'C', 'D', 'E', 'F', 'G', 'H', 'I', 'J', 'K', 'L', 'M', 'N', 'O', 'P', 'Q', 'R', 'S', 'T', 'U',
    'V', 'W', 'X', 'Y', 'Z',
];

/// A world whose users are drawn sources.
#[derive(Clone, Debug)]
pub enum Process {
    /// Throws of a coin or a die.
    Coins(Coins),
    /// Letters of a Markov chain.
    Markov(Markov),
    /// Characters of a hidden Markov model.
    Hmm(Hmm),
    /// Noisy values of a function.
    Regression(Regression),
}

/// What is asked in one round.
#[derive(Clone, Debug, PartialEq)]
pub enum Query {
    /// The next symbol of a sequence.
    Next,
    /// The last symbol of an example; the others are given.
    Example {
        /// They tell about the source, as an outcome does.
        given: Vec<usize>,
    },
    /// The bin of a function's value at an input.
    At(Vec<f64>),
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Index of the label.
    pub option: usize,
    /// The told value that fell into the bin; none where outcomes are symbols.
    pub value: Option<f64>,
}

impl Outcome {
    /// The outcome that is a symbol.
    pub fn symbol(option: usize) -> Outcome {
        Outcome { option, value: None }
    }
}

/// A user within an episode.
#[derive(Clone, Debug)]
pub enum Source<'w> {
    /// A coin, die or chain.
    Rows {
        /// Its distributions.
        rows: Rows,
        /// The symbol that came last; none at the beginning.
        previous: Option<usize>,
    },
    /// A concept of a mixture of hidden Markov models.
    Hidden {
        /// Where the concepts are.
        world: &'w Hmm,
        /// Which concept, and where in it the episode stands.
        at: HiddenSource,
    },
    /// A function.
    Function {
        /// What a function's numbers mean.
        world: &'w Regression,
        /// The function.
        function: Function,
    },
}

impl Source<'_> {
    /// Draws what is asked next, and what comes.
    pub fn step(&mut self, questions: &mut Stream, answers: &mut Stream) -> (Query, Outcome) {
        match self {
            Source::Rows { rows, previous } => {
                let symbol = answers.categorical(&rows.after(*previous));
                *previous = Some(symbol);
                (Query::Next, Outcome::symbol(symbol))
            }
            Source::Hidden { world, at } => world.step(at, answers),
            Source::Function { world, function } => {
                let x = world.draw_input(questions);
                let outcome = world.outcome(function, &x, answers);
                (Query::At(x), outcome)
            }
        }
    }
}

impl Process {
    /// Coins and dice.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn coins(config: &CoinsConfig) -> Result<Process> {
        Coins::new(config).map(Process::Coins)
    }

    /// Markov chains.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn markov(config: &MarkovConfig) -> Result<Process> {
        Markov::new(config).map(Process::Markov)
    }

    /// Mixtures of hidden Markov models.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn hmm(config: &HmmConfig) -> Result<Process> {
        Hmm::new(config).map(Process::Hmm)
    }

    /// Regression.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn regression(config: &RegressionConfig) -> Result<Process> {
        Regression::new(config).map(Process::Regression)
    }

    /// As it stands in configs and episodes.
    pub fn name(&self) -> &'static str {
        match self {
            Process::Coins(_) => "coins",
            Process::Markov(_) => "markov",
            Process::Hmm(_) => "hmm",
            Process::Regression(_) => "regression",
        }
    }

    /// The label of each outcome.
    pub fn labels(&self) -> &Arc<[String]> {
        match self {
            Process::Coins(world) => &world.labels,
            Process::Markov(world) => &world.labels,
            Process::Hmm(world) => &world.labels,
            Process::Regression(world) => &world.labels,
        }
    }

    /// Whether outcomes are steps on a scale rather than categories.
    pub fn is_ordered(&self) -> bool {
        matches!(self, Process::Regression(_))
    }

    /// Rounds of an episode where the config does not say.
    pub fn default_rounds(&self) -> usize {
        match self {
            Process::Coins(_) | Process::Markov(_) => 50,
            Process::Hmm(world) => world.default_rounds(),
            Process::Regression(_) => 20,
        }
    }

    /// The most rounds that an episode can have.
    pub fn max_rounds(&self) -> usize {
        match self {
            Process::Coins(_) | Process::Markov(_) | Process::Hmm(_) => 10_000,
            // A Gaussian process takes time cubic in the number of observations.
            Process::Regression(_) => 1_000,
        }
    }

    /// The user of an index, at the beginning of an episode, the `number`th of this user.
    pub fn source(&self, seed: u64, user: usize, number: usize) -> Source<'_> {
        let of_user = &mut stream(seed, "world.source", user as u64);
        let rows =
            |prior: &RowsPrior, draws: &mut Stream| Source::Rows { rows: prior.draw(draws), previous: None };
        match self {
            Process::Coins(world) => rows(world.source(), of_user),
            Process::Markov(world) => rows(world.source(), of_user),
            Process::Hmm(world) => {
                let episode = ((user as u64) << 32) | number as u64;
                let of_episode = &mut stream(seed, "world.episode", episode);
                Source::Hidden { world, at: world.source(of_user, of_episode) }
            }
            Process::Regression(world) => Source::Function { world, function: world.source(of_user) },
        }
    }

    /// The first message of the dialogue: the task, then the first question.
    pub fn opening(&self, first: &Query) -> String {
        let task = match self {
            Process::Coins(world) => world.opening(),
            Process::Markov(world) => world.opening(),
            Process::Hmm(world) => world.opening(),
            Process::Regression(world) => world.opening(),
        };
        format!("{task}{}", self.ask(first))
    }

    /// The user's message after an answer: what came, then the next question.
    pub fn feedback(&self, truth: &Outcome, next: &Query) -> String {
        let label = &self.labels()[truth.option];
        let told = match self {
            Process::Regression(world) => world.told(truth),
            // The delimiter stands between the examples of a prompt.
            Process::Hmm(world) if world.config().format == Format::Prompts => {
                format!("{label} {}", world.labels[super::hmm::DELIMITER])
            }
            _ => label.clone(),
        };
        format!("{told}{}", self.ask(next))
    }

    /// On a line of its own; nothing where the next symbol is asked for.
    fn ask(&self, query: &Query) -> String {
        match (self, query) {
            (Process::Hmm(world), Query::Example { given }) => format!("\n{}", world.line(given)),
            (Process::Regression(world), Query::At(x)) => format!("\n{}", world.inputs(x)),
            _ => String::new(),
        }
    }
}

impl Query {
    /// The input that is asked about; empty where there is none.
    pub fn input(&self) -> &[f64] {
        match self {
            Query::At(x) => x,
            Query::Next | Query::Example { .. } => &[],
        }
    }
}

/// `A or B`, `A, B or C`, `A to D`.
pub(super) fn spell(labels: &[String]) -> String {
    match labels {
        [a, b] => format!("{a} or {b}"),
        [a, b, c] => format!("{a}, {b} or {c}"),
        [first, .., last] => format!("{first} to {last}"),
        _ => labels.concat(),
    }
}
