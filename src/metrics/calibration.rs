//! Top-label calibration: does what is predicted with probability p come true p of the time?

use serde::{Deserialize, Serialize};

use super::cluster::ClusteredMean;
use crate::rng;

const BINS: usize = 15;

fn bin_of(top_probability: f64) -> usize {
    ((top_probability * BINS as f64) as usize).min(BINS - 1)
}

/// Sums of the answers whose top probability falls into each of 15 bins of equal width.
#[derive(Clone, Debug, Default)]
pub struct CalibrationBins {
    answers: [usize; BINS],
    top_probability: [f64; BINS],
    correct: [f64; BINS],
}

impl CalibrationBins {
    /// Counts one answer: the probability of the most probable option, and whether that option was the truth.
    pub fn add(&mut self, top_probability: f64, correct: bool) {
        let bin = bin_of(top_probability);
        self.answers[bin] += 1;
        self.top_probability[bin] += top_probability;
        self.correct[bin] += f64::from(u8::from(correct));
    }

    /// The expected calibration error: the mean distance between confidence and accuracy, by bin.
    pub fn ece(&self) -> Option<f64> {
        let answers: usize = self.answers.iter().sum();
        let distances = self.top_probability.iter().zip(&self.correct).map(|(p, c)| (p - c).abs());
        (answers > 0).then(|| distances.sum::<f64>() / answers as f64)
    }
}

/// One bin of a reliability diagram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// The top probability is at least this.
    pub from: f64,
    /// And below this (or 1).
    pub to: f64,
    /// How many answers.
    pub answers: usize,
    /// Their mean top probability.
    pub top_probability: f64,
    /// How often the top option was the truth.
    pub accuracy: f64,
    /// Of the accuracy, over users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error: Option<f64>,
}

/// Collects answers for [`ece`](Calibration::ece) and what a perfectly calibrated predictor would score.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    bins: CalibrationBins,
    accuracies: [ClusteredMean; BINS],
    top_probabilities: Vec<f64>,
}

impl Calibration {
    /// Counts one answer, of whomever.
    pub fn add(&mut self, top_probability: f64, correct: bool) {
        self.bins.add(top_probability, correct);
        self.top_probabilities.push(top_probability);
    }

    /// Counts one answer of a user, for [`reliability`](Calibration::reliability) too.
    pub fn add_of(&mut self, user: usize, top_probability: f64, correct: bool) {
        self.add(top_probability, correct);
        self.accuracies[bin_of(top_probability)].add(user, f64::from(u8::from(correct)));
    }

    /// The bins that have answers of known users.
    pub fn reliability(&self) -> Vec<ReliabilityBin> {
        let bin = |(i, accuracy): (usize, &ClusteredMean)| {
            Some(ReliabilityBin {
                from: i as f64 / BINS as f64,
                to: (i + 1) as f64 / BINS as f64,
                answers: accuracy.answers(),
                top_probability: self.bins.top_probability[i] / self.bins.answers[i] as f64,
                accuracy: accuracy.mean()?,
                standard_error: accuracy.standard_error(),
            })
        };
        self.accuracies.iter().enumerate().filter_map(bin).collect()
    }

    /// The expected calibration error; none without answers.
    pub fn ece(&self) -> Option<f64> {
        self.bins.ece()
    }

    /// What perfect calibration would score on these answers.
    pub fn expected(&self) -> Option<ExpectedEce> {
        expected_ece(&self.top_probabilities)
    }
}

/// The ECE of a perfectly calibrated predictor, over repetitions of the same answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpectedEce {
    /// Mean over the repetitions.
    pub mean: f64,
    /// Standard deviation of a single repetition.
    pub standard_deviation: f64,
}

/// Simulates truths that come true exactly as often as predicted, and scores the same predictions against them.
///
/// A small sample never scores 0, so an ECE means something only beside this. The draws depend on nothing but
/// the number of the repetition.
pub fn expected_ece(top_probabilities: &[f64]) -> Option<ExpectedEce> {
    if top_probabilities.is_empty() {
        return None;
    }
    // Enough that the mean is known to a few percent, and bounded for large files.
    let repetitions = (4_000_000 / top_probabilities.len()).clamp(20, 1000);
    let scores: Vec<f64> = (0..repetitions)
        .filter_map(|repetition| {
            let mut draws = rng::stream(0, "metrics.expected_ece", repetition as u64);
            let mut bins = CalibrationBins::default();
            for &p in top_probabilities {
                bins.add(p, draws.uniform() < p);
            }
            bins.ece()
        })
        .collect();
    let n = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / n;
    let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / (n - 1.0);
    Some(ExpectedEce { mean, standard_deviation: variance.sqrt() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn bins_by_hand() {
        let mut c = Calibration::default();
        assert_eq!(c.ece(), None);
        assert_eq!(c.expected(), None);
        // .9 (14th bin): two of three right; 1.0 stays in the 15th: right.
        for (p, correct) in [(0.9, true), (0.9, true), (0.9, false), (1.0, true)] {
            c.add(p, correct);
        }
        assert!((c.ece().unwrap() - (2.7 - 2.0) / 4.0).abs() < 1e-12);
    }

    /// The bins behind the score: the 14th is from 13/15, and users 0 and 1 are right in half and all of it.
    #[test]
    fn reliability_by_hand() {
        let mut c = Calibration::default();
        assert!(c.reliability().is_empty());
        for (user, p, correct) in
            [(0, 0.9, true), (0, 0.88, false), (1, 0.92, true), (1, 0.9, true), (1, 1.0, true)]
        {
            c.add_of(user, p, correct);
        }
        let bins = c.reliability();
        assert_eq!(bins.iter().map(|b| (b.answers, b.accuracy)).collect::<Vec<_>>(), [(4, 0.75), (1, 1.0)]);
        assert!((bins[0].from - 13.0 / 15.0).abs() < 1e-12 && (bins[0].to - 14.0 / 15.0).abs() < 1e-12);
        assert!((bins[0].top_probability - 0.9).abs() < 1e-12);
        assert_eq!((bins[0].standard_error, bins[1].standard_error), (Some(0.25), None));
        let gaps: f64 = bins.iter().map(|b| b.answers as f64 * (b.accuracy - b.top_probability).abs()).sum();
        assert!((gaps / 5.0 - c.ece().unwrap()).abs() < 1e-12);
    }

    /// With one answer at p in its bin the score is 1 - p with probability p and p otherwise: 2p(1 - p) on average.
    #[test]
    fn expectation_of_a_single_answer() {
        let expected = expected_ece(&[0.7]).unwrap();
        assert!((expected.mean - 0.42).abs() < 0.02, "{expected:?}");
    }

    /// n answers of one probability: the score is |mean - p|, about sqrt(2 p (1 - p) / (π n)) on average.
    #[test]
    fn expectation_of_many_answers() {
        let expected = expected_ece(&[0.5; 10_000]).unwrap();
        let theory = (2.0 * 0.25 / (std::f64::consts::PI * 10_000.0)).sqrt();
        assert!((expected.mean / theory - 1.0).abs() < 0.15, "{} against {theory}", expected.mean);
    }

    #[test]
    fn over_confidence_shows() {
        let mut calibrated = Calibration::default();
        let mut over_confident = Calibration::default();
        let mut draws = rng::stream(3, "test", 0);
        for _ in 0..20_000 {
            let p = 0.4 + 0.5 * draws.uniform();
            let correct = draws.uniform() < p;
            calibrated.add(p, correct);
            over_confident.add((p + 0.08).min(1.0), correct);
        }
        let expected = calibrated.expected().unwrap();
        let distance = |ece: f64| (ece - expected.mean) / expected.standard_deviation;
        assert!(distance(calibrated.ece().unwrap()).abs() < 4.0);
        assert!(distance(over_confident.ece().unwrap()) > 20.0);
    }
}
