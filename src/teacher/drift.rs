//! Users that change while they are talked to, and the step by which a teacher allows for it.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::usage;
use crate::metrics::log_sum_exp;
use crate::rng::Stream;
use crate::world::{Attribute, Factor, World};

/// `[teacher.drift]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DriftConfig {
    /// How likely each factor of a user changes between two questions; 0: never.
    pub hazard: f64,
    /// What it changes to.
    pub to: DriftTo,
    /// Whether the teacher allows for it.
    pub known: bool,
}

impl Default for DriftConfig {
    fn default() -> DriftConfig {
        DriftConfig { hazard: 0.0, to: DriftTo::Prior, known: true }
    }
}

/// What a user who changes becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriftTo {
    /// Drawn anew from the prior, which may give the same again.
    Prior,
    /// A neighbouring hypothesis, each as likely: one attribute differs by one level.
    Neighbour,
}

impl DriftConfig {
    /// Checks the range, and that there are neighbours to move to.
    pub(super) fn check(&self, world: &World) -> Result<()> {
        if !(0.0..=1.0).contains(&self.hazard) {
            return Err(usage(format!("teacher.drift.hazard is {}, it must be in [0, 1]", self.hazard)));
        }
        let attributes = world.attributes();
        if self.hazard == 0.0 || self.to == DriftTo::Prior {
            return Ok(());
        }
        let is_alone = |f: &usize| {
            let here: Vec<&Attribute> = attributes.iter().filter(|a| a.factor == *f).collect();
            neighbours(world.factors()[*f].prior.len(), &here).iter().all(Vec::is_empty)
        };
        // A factor of one hypothesis cannot change anyway.
        let factors = (0..world.factors().len()).filter(|&f| world.factors()[f].prior.len() > 1);
        if let Some(f) = factors.into_iter().find(is_alone) {
            return Err(usage(format!(
                "teacher.drift.to is \"neighbour\", but nothing says which hypotheses of {} are neighbours: use \
                 \"prior\"",
                world.factors()[f].name
            )));
        }
        Ok(())
    }
}

/// How a user moves between two questions, each factor independently of the others (so that the posterior still
/// factorises).
#[derive(Clone, Debug)]
pub struct Transition {
    hazard: f64,
    /// One a factor.
    moves: Vec<Moves>,
}

#[derive(Clone, Debug)]
enum Moves {
    /// Anew from these probabilities.
    Prior(Vec<f64>),
    /// To one of the hypotheses listed for each; those without any stay.
    Neighbours(Vec<Vec<usize>>),
}

impl Transition {
    /// With probability `hazard`, a factor is drawn anew from its prior.
    pub fn to_prior(hazard: f64, factors: &[Factor]) -> Transition {
        let moves = factors.iter().map(|factor| Moves::Prior(factor.prior.clone())).collect();
        Transition { hazard, moves }
    }

    /// With probability `hazard`, a factor moves to one of the hypotheses that `neighbours` lists for the present one
    /// (per factor, per hypothesis), each as likely; where there are none, it stays.
    pub fn to_neighbours(hazard: f64, neighbours: Vec<Vec<Vec<usize>>>) -> Transition {
        Transition { hazard, moves: neighbours.into_iter().map(Moves::Neighbours).collect() }
    }

    /// As configured, with the world's factors or what a teacher believes of them; none where users do not change.
    pub(super) fn of(config: &DriftConfig, world: &World, factors: &[Factor]) -> Option<Transition> {
        (config.hazard > 0.0).then(|| match config.to {
            DriftTo::Prior => Transition::to_prior(config.hazard, factors),
            DriftTo::Neighbour => {
                let attributes = world.attributes();
                let of_factor = |(f, factor): (usize, &Factor)| {
                    let here: Vec<&Attribute> = attributes.iter().filter(|a| a.factor == f).collect();
                    neighbours(factor.prior.len(), &here)
                };
                let all = factors.iter().enumerate().map(of_factor).collect();
                Transition::to_neighbours(config.hazard, all)
            }
        })
    }

    /// Moves a user, given as one hypothesis a factor; says whether anything was drawn anew.
    pub fn change(&self, user: &mut [usize], draws: &mut Stream) -> bool {
        let mut changed = false;
        for (hypothesis, moves) in user.iter_mut().zip(&self.moves) {
            if draws.uniform() >= self.hazard {
                continue;
            }
            changed = true;
            match moves {
                Moves::Prior(prior) => *hypothesis = draws.categorical(prior),
                Moves::Neighbours(lists) => {
                    let list = &lists[*hypothesis];
                    if !list.is_empty() {
                        *hypothesis = list[draws.below(list.len())];
                    }
                }
            }
        }
        changed
    }

    /// The log-probabilities of a factor's hypotheses after the step, from those before it.
    pub(super) fn step(&self, factor: usize, log_probs: &[f64]) -> Vec<f64> {
        let (stay, go) = ((1.0 - self.hazard).ln(), self.hazard.ln());
        match &self.moves[factor] {
            Moves::Prior(prior) => (log_probs.iter().zip(prior))
                .map(|(log_p, prior)| log_sum_exp(&[stay + log_p, go + prior.ln()]))
                .collect(),
            Moves::Neighbours(lists) => {
                // What arrives at each hypothesis, from itself and from those that list it.
                let mut arrivals: Vec<Vec<f64>> = log_probs.iter().map(|log_p| vec![stay + log_p]).collect();
                for (from, (list, log_p)) in lists.iter().zip(log_probs).enumerate() {
                    if list.is_empty() {
                        arrivals[from].push(go + log_p);
                    }
                    let each = go + log_p - (list.len() as f64).ln();
                    list.iter().for_each(|&to| arrivals[to].push(each));
                }
                arrivals.iter().map(|terms| log_sum_exp(terms)).collect()
            }
        }
    }
}

/// The hypotheses of a factor that differ from each in one attribute by one level.
fn neighbours(hypotheses: usize, attributes: &[&Attribute]) -> Vec<Vec<usize>> {
    let levels = |h: usize| -> Vec<u8> { attributes.iter().map(|a| a.level_of[h]).collect() };
    let at: std::collections::HashMap<Vec<u8>, usize> = (0..hypotheses).map(|h| (levels(h), h)).collect();
    let of = |h: usize| {
        let here = levels(h);
        let mut found = Vec::new();
        for i in 0..here.len() {
            for level in [here[i].checked_sub(1), here[i].checked_add(1)].into_iter().flatten() {
                let mut there = here.clone();
                there[i] = level;
                found.extend(at.get(&there));
            }
        }
        found
    };
    (0..hypotheses).map(of).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn neighbours_differ_by_one_step() {
        let world = World::flights(&Default::default()).unwrap();
        let attributes = world.attributes();
        let all: Vec<&Attribute> = attributes.iter().collect();
        let lists = neighbours(624, &all);
        for (h, list) in lists.iter().enumerate() {
            // 5⁴ grid: two a feature, one less for each weight at an end; the user without preferences is left out.
            let levels: Vec<i32> = all.iter().map(|a| i32::from(a.level_of[h])).collect();
            let ends = levels.iter().filter(|l| [0, 4].contains(*l)).count();
            let next_to_nobody = levels.iter().map(|l| (l - 2).abs()).sum::<i32>() == 1;
            assert_eq!(list.len(), 8 - ends - usize::from(next_to_nobody), "{levels:?}");
            for &other in list {
                let distance: i32 =
                    all.iter().zip(&levels).map(|(a, l)| (i32::from(a.level_of[other]) - l).abs()).sum();
                assert_eq!(distance, 1);
            }
        }
        let traits = World::personality(&Default::default()).unwrap().attributes();
        assert_eq!(neighbours(5, &[&traits[0]]), [vec![1], vec![0, 2], vec![1, 3], vec![2, 4], vec![3]]);
    }
}
