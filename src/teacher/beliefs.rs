//! Reports of beliefs: the dialogue is interrupted and the assistant asked what it thinks of the user, on a scale.
//!
//! The target is the teacher's marginal over the levels of one attribute: how a feature is weighed, how high a trait
//! is. Nobody tells whether a report was right, so that it teaches nothing about the user.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::config::TeacherConfig;
use crate::error::usage;
use crate::rng::{self, Stream};
use crate::world::{Question, World};

/// Labels are single digits, which every tokenizer tells apart.
const MOST_LEVELS: usize = 9;

/// `[teacher.beliefs]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BeliefsConfig {
    /// Beliefs are asked for after every so many rounds; 0: never.
    pub every: usize,
    /// About how many attributes each time, drawn at random.
    pub attributes: usize,
}

impl Default for BeliefsConfig {
    fn default() -> BeliefsConfig {
        BeliefsConfig { every: 0, attributes: 1 }
    }
}

/// The questions for beliefs that an episode may have.
pub(super) struct Reports {
    every: usize,
    at_a_time: usize,
    /// Each with the name of its attribute.
    questions: Vec<(String, Question)>,
}

impl Reports {
    pub(super) fn new(config: &BeliefsConfig, world: &World) -> Reports {
        let questions = match config.every {
            0 => Vec::new(),
            _ => world.attributes().into_iter().map(|a| (a.name.clone(), a.question())).collect(),
        };
        Reports { every: config.every, at_a_time: config.attributes, questions }
    }

    /// What is asked after so many rounds.
    pub(super) fn after(&self, rounds: usize, draws: &mut Stream) -> Vec<&(String, Question)> {
        if self.every == 0 || !rounds.is_multiple_of(self.every) {
            return Vec::new();
        }
        let mut order: Vec<usize> = (0..self.questions.len()).collect();
        draws.shuffle(&mut order);
        order.iter().take(self.at_a_time).map(|&i| &self.questions[i]).collect()
    }

    /// The draws of one episode.
    pub(super) fn draws(seed: u64, episode: u64) -> Stream {
        rng::stream(seed, "teacher.beliefs", episode)
    }
}

/// Checks that there is something to ask for.
pub(super) fn check(config: &TeacherConfig, world: &World) -> Result<()> {
    let BeliefsConfig { every, attributes } = config.beliefs;
    if every == 0 {
        return Ok(());
    }
    let known = world.attributes();
    if attributes == 0 || attributes > known.len() {
        return Err(usage(format!(
            "teacher.beliefs.attributes is {attributes}, but the {} world as configured has {} to ask about",
            world.name(),
            known.len()
        )));
    }
    if let Some(attribute) = known.iter().find(|a| !(2..=MOST_LEVELS).contains(&a.levels)) {
        return Err(usage(format!(
            "teacher.beliefs: {} has {} levels, a belief can be reported on a scale of 2 to {MOST_LEVELS}",
            attribute.name, attribute.levels
        )));
    }
    let rounds = config.rounds_in(world);
    if every > rounds {
        return Err(usage(format!(
            "teacher.beliefs.every is {every}, but an episode has {rounds} rounds: no belief would be asked for"
        )));
    }
    Ok(())
}
