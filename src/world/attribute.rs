//! What can be said of a user in one word and a level: how a feature is weighed, how high a trait is.
//!
//! An attribute divides the hypotheses of a factor by levels. Beliefs are reported about attributes, wrong priors are
//! declared over their levels, and users who change by one step move to the next level of one of them.

use std::sync::Arc;

use super::{Likelihood, Question, Reward};

/// The most levels of an attribute. What has more of them, or a single one, is none.
pub(super) const MOST_LEVELS: usize = 256;

/// One attribute of a user.
#[derive(Clone, Debug)]
pub struct Attribute {
    /// What it is called, such as `price` or `extraversion`.
    pub name: String,
    /// Index of the factor whose hypotheses it divides.
    pub factor: usize,
    /// How many levels it has, 2 to 256.
    pub levels: usize,
    /// The level in `0..levels` of each hypothesis of the factor.
    pub level_of: Vec<u8>,
    /// What each level is called: its number on the scale from 1, or a name.
    pub values: Vec<String>,
    /// Whether the levels are steps on a scale, and not names in the order of a list.
    pub ordered: bool,
    /// How a belief about it is asked for, on a scale from 1 to `levels`.
    pub ask: String,
}

/// The levels by number, for scales without names.
pub(super) fn numbered(levels: usize) -> Vec<String> {
    (1..=levels).map(|level| level.to_string()).collect()
}

impl Attribute {
    /// The level, from 0, of that name or number.
    pub fn level(&self, text: &str) -> Option<usize> {
        let number = || text.parse::<usize>().ok()?.checked_sub(1).filter(|level| *level < self.levels);
        self.values.iter().position(|value| value == text).or_else(number)
    }

    /// The question for a belief about the attribute. Its options are the levels, so that its likelihood is certain
    /// under every hypothesis and a teacher's prediction of the "answer" is the marginal belief.
    pub fn question(&self) -> Question {
        let likelihood =
            Arc::new(Likelihood::Choice { options: self.levels, choices: self.level_of.clone() });
        Question {
            text: self.ask.clone(),
            placed: None,
            labels: numbered(self.levels).into(),
            factor: self.factor,
            behaviour: Arc::clone(&likelihood),
            likelihood,
            reward: if self.ordered { Reward::Nearness } else { Reward::Match },
            levels: Arc::default(),
        }
    }
}

/// The assistant's message that reports a level, and the byte at which the label begins.
pub fn report(label: &str) -> (String, usize) {
    (label.to_owned(), 0)
}
