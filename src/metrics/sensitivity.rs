//! Whether what was learnt from an option set goes with how much the set tells.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::cluster::ClusteredMean;
use super::correlation::ClusteredCorrelation;
use super::probe::Estimate;

/// Bins of equal numbers of sets in which gains are told.
const BINS: usize = 5;

/// What one option set told a user's predictors.
#[derive(Clone, Copy, Debug)]
pub struct Learnt {
    /// Any number that is the same for the sets of one user.
    pub user: usize,
    /// Rounds observed before.
    pub rounds: usize,
    /// By how much the choice raises the log-probability of what is true of the user, in nats.
    pub gain: f64,
    /// What it was expected to.
    pub expected_gain: f64,
    /// By how much the model's mean log-probability of the user's choices on held-out sets rose, in nats.
    pub own: f64,
    /// The teacher's.
    pub teacher: f64,
    /// The model's accuracy on the held-out sets after it.
    pub own_accuracy: f64,
    /// The teacher's.
    pub teacher_accuracy: f64,
}

/// Sensitivity to informativity: by the rounds observed before, in ascending order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// Held-out option sets on which learning is measured.
    pub tests: usize,
    /// By rounds.
    pub by_rounds: Vec<SensitivityAt>,
}

/// Sensitivity after a number of rounds. What is learnt is the rise of the mean log-probability of the user's choices on
/// held-out sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SensitivityAt {
    /// Rounds observed before.
    pub rounds: usize,
    /// How many sets were chosen from.
    pub sets: usize,
    /// Slope of what the model learns on the gain g.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slope: Option<Estimate>,
    /// The teacher's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_slope: Option<Estimate>,
    /// Slope of what the model learns on the expected gain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slope_expected: Option<Estimate>,
    /// The teacher's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_slope_expected: Option<Estimate>,
    /// Correlation of what the model learns with what the teacher learns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Estimate>,
    /// Sets of similar gain, in ascending order.
    pub bins: Vec<GainBin>,
}

/// Sets of similar gain.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GainBin {
    /// How many.
    pub sets: usize,
    /// Their mean gain in nats.
    pub gain: f64,
    /// Their mean expected gain.
    pub expected_gain: f64,
    /// What the model learnt, in nats.
    pub own: Estimate,
    /// What the teacher learnt.
    pub teacher: Estimate,
    /// The model's accuracy on the held-out sets after them.
    pub own_accuracy: Estimate,
    /// The teacher's.
    pub teacher_accuracy: Estimate,
}

impl Sensitivity {
    /// From what was learnt, measured on `tests` held-out sets each.
    ///
    /// # Errors
    /// If there is nothing, or a gain is not a number.
    pub fn new(tests: usize, learnt: &[Learnt]) -> Result<Sensitivity> {
        ensure!(!learnt.is_empty(), "no option sets were chosen from");
        ensure!(
            learnt.iter().all(|l| l.gain.is_finite() && l.own.is_finite() && l.teacher.is_finite()),
            "what was learnt is not a number"
        );
        let mut by_rounds: BTreeMap<usize, Vec<Learnt>> = BTreeMap::new();
        learnt.iter().for_each(|one| by_rounds.entry(one.rounds).or_default().push(*one));
        Ok(Sensitivity {
            tests,
            by_rounds: by_rounds
                .into_iter()
                .map(|(rounds, learnt)| SensitivityAt::new(rounds, learnt))
                .collect(),
        })
    }
}

impl SensitivityAt {
    fn new(rounds: usize, mut learnt: Vec<Learnt>) -> SensitivityAt {
        let pairs = |x: fn(&Learnt) -> f64, y: fn(&Learnt) -> f64| {
            let mut pairs = ClusteredCorrelation::default();
            learnt.iter().for_each(|one| pairs.add(one.user, x(one), y(one)));
            pairs
        };
        let slope = |x, y| Estimate::of_slope(&pairs(x, y));
        let (slope_of, teacher_slope) = (slope(|l| l.gain, |l| l.own), slope(|l| l.gain, |l| l.teacher));
        let (slope_expected, teacher_slope_expected) =
            (slope(|l| l.expected_gain, |l| l.own), slope(|l| l.expected_gain, |l| l.teacher));
        let correlation = Estimate::of_correlation(&pairs(|l| l.teacher, |l| l.own));
        learnt.sort_by(|a, b| a.gain.total_cmp(&b.gain));
        let bins = learnt.chunks(learnt.len().div_ceil(BINS)).filter_map(GainBin::new).collect();
        SensitivityAt {
            rounds,
            sets: learnt.len(),
            slope: slope_of,
            teacher_slope,
            slope_expected,
            teacher_slope_expected,
            correlation,
            bins,
        }
    }
}

impl GainBin {
    fn new(learnt: &[Learnt]) -> Option<GainBin> {
        let mean = |of: fn(&Learnt) -> f64| {
            let mut mean = ClusteredMean::default();
            learnt.iter().for_each(|one| mean.add(one.user, of(one)));
            Estimate::of_mean(&mean)
        };
        Some(GainBin {
            sets: learnt.len(),
            gain: mean(|l| l.gain)?.value,
            expected_gain: mean(|l| l.expected_gain)?.value,
            own: mean(|l| l.own)?,
            teacher: mean(|l| l.teacher)?,
            own_accuracy: mean(|l| l.own_accuracy)?,
            teacher_accuracy: mean(|l| l.teacher_accuracy)?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// A model that learns half of what a set tells, beside a teacher who learns all of it.
    #[test]
    fn half_a_learner() {
        let one = |i: usize| {
            let gain = 0.5 + 0.1 * i as f64;
            Learnt {
                user: i % 4,
                rounds: i / 20,
                gain,
                expected_gain: 2.0 * gain,
                own: 0.5 * gain - 0.2,
                teacher: gain,
                own_accuracy: 0.5,
                teacher_accuracy: 1.0,
            }
        };
        let learnt: Vec<Learnt> = (0..30).map(one).collect();
        let sensitivity = Sensitivity::new(10, &learnt).unwrap();
        let [first, second] = sensitivity.by_rounds.as_slice() else { panic!("two moments") };
        assert_eq!((first.rounds, first.sets, second.rounds, second.sets), (0, 20, 1, 10));
        for (estimate, expected) in [
            (first.slope, 0.5),
            (first.teacher_slope, 1.0),
            (first.slope_expected, 0.25),
            (first.teacher_slope_expected, 0.5),
            (first.correlation, 1.0),
        ] {
            let Estimate { value, standard_error } = estimate.unwrap();
            assert!((value - expected).abs() < 1e-9 && standard_error.unwrap() < 1e-6);
        }
        assert_eq!(first.bins.iter().map(|bin| bin.sets).collect::<Vec<_>>(), [4; 5]);
        // The lowest four gains are .5, .6, .7 and .8.
        assert!((first.bins[0].gain - 0.65).abs() < 1e-12 && (first.bins[0].own.value - 0.125).abs() < 1e-12);
        assert!(Sensitivity::new(10, &[]).is_err());
        assert!(Sensitivity::new(10, &[Learnt { own: f64::NAN, ..learnt[0] }]).is_err());
    }
}
