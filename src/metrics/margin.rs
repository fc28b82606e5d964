//! Agreement by how sure the teacher is: the lead of its most probable option over the second.

use serde::{Deserialize, Serialize};

use super::cluster::ClusteredMean;

/// A teacher's margin above which its choice is clear. Below, two perfect predictors may well differ: many first
/// answers of a questionnaire are exact ties.
pub const CLEAR_MARGIN: f64 = 0.05;

/// The edges between which agreement is given.
const EDGES: [f64; 8] = [0.0, 0.02, CLEAR_MARGIN, 0.1, 0.2, 0.4, 0.6, 1.0];

/// The lead of the most probable option over the second; 1 where there is only one.
pub fn margin(probs: &[f64]) -> f64 {
    let (mut first, mut second) = (f64::NEG_INFINITY, 0.0);
    for &p in probs {
        if p > first {
            second = first.max(0.0);
            first = p;
        } else if p > second {
            second = p;
        }
    }
    first - second
}

/// Agreement with the teacher where its margin is in a range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MarginBin {
    /// The margin is above this (or 0).
    pub from: f64,
    /// And at most this.
    pub to: f64,
    /// How many answers.
    pub answers: usize,
    /// How often the most probable option is the teacher's.
    pub agreement: f64,
    /// Of the agreement, over users.
    pub standard_error: Option<f64>,
}

/// Collects agreement by margin.
#[derive(Clone, Debug, Default)]
pub(super) struct MarginBins([ClusteredMean; EDGES.len() - 1]);

impl MarginBins {
    pub(super) fn add(&mut self, user: usize, margin: f64, agrees: bool) {
        let bin = EDGES[1..].iter().position(|&to| margin <= to).unwrap_or(EDGES.len() - 2);
        self.0[bin].add(user, f64::from(u8::from(agrees)));
    }

    /// The bins that have answers.
    pub(super) fn bins(&self) -> Vec<MarginBin> {
        let bin = |(i, mean): (usize, &ClusteredMean)| {
            Some(MarginBin {
                from: EDGES[i],
                to: EDGES[i + 1],
                answers: mean.answers(),
                agreement: mean.mean()?,
                standard_error: mean.standard_error(),
            })
        };
        self.0.iter().enumerate().filter_map(bin).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_by_hand() {
        for (probs, expected) in [
            (&[0.5, 0.2, 0.3][..], 0.2),
            (&[0.2, 0.3, 0.5], 0.2),
            (&[0.4, 0.4, 0.2], 0.0),
            (&[1.0, 0.0], 1.0),
            (&[1.0], 1.0),
        ] {
            assert!((margin(probs) - expected).abs() < 1e-12, "{probs:?}");
        }
    }

    #[test]
    fn bins_hold_their_upper_edge() {
        let mut bins = MarginBins::default();
        for (user, margin, agrees) in [(0, 0.0, false), (1, 0.02, true), (0, 0.03, true), (1, 1.0, true)] {
            bins.add(user, margin, agrees);
        }
        let bins = bins.bins();
        let told: Vec<_> = bins.iter().map(|b| (b.from, b.to, b.answers, b.agreement)).collect();
        assert_eq!(told, [(0.0, 0.02, 2, 0.5), (0.02, 0.05, 1, 1.0), (0.6, 1.0, 1, 1.0)]);
        assert_eq!(bins[0].standard_error, Some(0.5));
    }
}
