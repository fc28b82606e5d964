//! `[eval]`: what is measured, and on how much.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::usage;
use crate::rng;

/// `[eval]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// How many episodes of a file are measured; 0 for all.
    pub episodes: usize,
    /// How many of them are stored with the predictions of their answers, to be looked at in the report.
    pub examples: usize,
    /// How many of the measured episodes are looked into, by all that follows; 0 for all.
    pub in_depth: usize,
    /// Option sets shared by all users that are asked after each round without feedback, where the world's can be drawn
    /// freely; 0 for none.
    pub held_out_sets: usize,
    /// Beliefs are asked for on copies of the dialogue after every so many rounds; 0 for never.
    pub probes: usize,
    /// Whether the dialogues are gone through again with the model's own recommendations in them.
    pub interactive: bool,
    /// Of so many option sets, chosen to tell from little to much, each episode's user takes one at a time, and what the
    /// model learns from that is measured, before the first round and after half of them; 0 for none.
    pub sensitivity: usize,
    /// How many of the measured episodes have all their replies written out freely and read as a user would; 0 for none.
    pub generate: usize,
    /// Whether the reasoner is fitted that explains the answers best; this to all measured episodes.
    pub reasoner: bool,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            episodes: 200,
            examples: 8,
            in_depth: 50,
            held_out_sets: 100,
            probes: 0,
            interactive: false,
            sensitivity: 0,
            generate: 0,
            reasoner: true,
        }
    }
}

impl EvalConfig {
    /// The episodes to measure: `episodes` of `all`, drawn once and for all, in their order.
    ///
    /// Not the first ones: a teacher writes its users in the order of the grid.
    pub fn choose<T>(&self, all: Vec<T>) -> Vec<T> {
        if self.episodes == 0 || self.episodes >= all.len() {
            return all;
        }
        let mut order: Vec<usize> = (0..all.len()).collect();
        rng::stream(0, "eval/episodes", 0).shuffle(&mut order);
        let mut chosen = vec![false; all.len()];
        order[..self.episodes].iter().for_each(|&i| chosen[i] = true);
        all.into_iter().zip(chosen).filter_map(|(item, keep)| keep.then_some(item)).collect()
    }

    /// Which of `measured` episodes are stored as examples: evenly spread, in their order.
    pub fn choose_examples(&self, measured: usize) -> Vec<usize> {
        spread(self.examples.min(measured), measured)
    }

    /// Which of `measured` episodes are looked into, likewise.
    pub fn choose_in_depth(&self, measured: usize) -> Vec<usize> {
        spread(if self.in_depth == 0 { measured } else { self.in_depth.min(measured) }, measured)
    }

    /// Which of them have their replies written out, likewise.
    pub fn choose_generated(&self, measured: usize) -> Vec<usize> {
        spread(self.generate.min(measured), measured)
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the key, its value and what is possible.
    pub fn validate(&self) -> Result<()> {
        if self.held_out_sets > MOST_SETS {
            return Err(usage(format!(
                "eval.held_out_sets is {}, it must be at most {MOST_SETS}",
                self.held_out_sets
            )));
        }
        if self.sensitivity > MOST_CHOSEN {
            return Err(usage(format!(
                "eval.sensitivity is {}, it must be at most {MOST_CHOSEN}",
                self.sensitivity
            )));
        }
        Ok(())
    }
}

/// The most held-out option sets.
const MOST_SETS: usize = 10_000;

/// The most option sets of one user among which sensitivity is measured.
const MOST_CHOSEN: usize = 1_000;

fn spread(chosen: usize, all: usize) -> Vec<usize> {
    (0..chosen).map(|i| i * all / chosen).collect()
}
