//! Means with standard errors over users.

use std::collections::BTreeMap;

/// A mean over answers, whose standard error takes the answers of one user as dependent.
///
/// With S and n the sum and the number of the answers of one of C users, the mean is m = ΣS / Σn and its squared
/// standard error C/(C−1) · Σ(S − m n)² / (Σn)²: the linearised variance of a ratio of totals (Cochran, *Sampling
/// Techniques*, 3rd ed., §6.3; it is also the cluster-robust variance of a regression on a constant). Where every user
/// has as many answers it is the usual standard error of the users' means.
///
/// ```
/// let mut mean = bayesteach::metrics::ClusteredMean::default();
/// for (user, value) in [(0, 1.0), (0, 0.0), (1, 1.0), (1, 1.0)] {
///     mean.add(user, value);
/// }
/// assert_eq!(mean.mean(), Some(0.75));
/// assert_eq!(mean.standard_error(), Some(0.25)); // of the users' means .5 and 1
/// ```
#[derive(Clone, Debug, Default)]
pub struct ClusteredMean {
    users: BTreeMap<usize, (f64, usize)>,
}

impl ClusteredMean {
    /// Counts one answer of a user.
    pub fn add(&mut self, user: usize, value: f64) {
        let (sum, answers) = self.users.entry(user).or_default();
        *sum += value;
        *answers += 1;
    }

    /// Of answers of users, as the sum and the number of each user's, in order.
    pub fn of_sums(sums: impl IntoIterator<Item = (f64, usize)>) -> ClusteredMean {
        let users = sums.into_iter().enumerate().filter(|(_, (_, answers))| *answers > 0).collect();
        ClusteredMean { users }
    }

    /// The sum and the number of a user's answers; both 0 for one who gave none.
    pub(super) fn sum_of(&self, user: usize) -> (f64, usize) {
        self.users.get(&user).copied().unwrap_or_default()
    }

    /// How many answers were counted.
    pub fn answers(&self) -> usize {
        self.users.values().map(|(_, answers)| answers).sum()
    }

    /// How many users they are of.
    pub fn users(&self) -> usize {
        self.users.len()
    }

    /// The mean over all answers; none without answers.
    pub fn mean(&self) -> Option<f64> {
        let sum: f64 = self.users.values().map(|(sum, _)| sum).sum();
        (!self.users.is_empty()).then(|| sum / self.answers() as f64)
    }

    /// The standard error of the mean; none for fewer than two users.
    pub fn standard_error(&self) -> Option<f64> {
        let (mean, users) = (self.mean()?, self.users.len() as f64);
        let squares = self.users.values().map(|(sum, answers)| (sum - mean * *answers as f64).powi(2));
        let total = squares.sum::<f64>() * users / (users - 1.0);
        (self.users.len() > 1).then(|| total.sqrt() / self.answers() as f64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::rng;

    fn of(values: &[(usize, f64)]) -> ClusteredMean {
        let mut mean = ClusteredMean::default();
        values.iter().for_each(|&(user, value)| mean.add(user, value));
        mean
    }

    #[test]
    fn few_users() {
        assert_eq!((of(&[]).mean(), of(&[]).standard_error()), (None, None));
        let one = of(&[(7, 2.0), (7, 4.0)]);
        assert_eq!((one.mean(), one.standard_error(), one.answers(), one.users()), (Some(3.0), None, 2, 1));
    }

    /// A user for every answer: s / √n of the sample 1, 2, 4 (mean 7/3, Σ squares 42/9, s² = 21/9, over 3).
    #[test]
    fn one_answer_each_is_the_usual_standard_error() {
        let mean = of(&[(0, 1.0), (1, 2.0), (2, 4.0)]);
        assert!((mean.mean().unwrap() - 7.0 / 3.0).abs() < 1e-12);
        assert!((mean.standard_error().unwrap() - (21.0_f64 / 27.0).sqrt()).abs() < 1e-12);
    }

    /// Unequal users by hand: sums 3 and 1 of 3 and 1 answers, and 0 of 2. m = 4/6; residuals 1, 1/3, -4/3; their
    /// squares sum to 26/9, times 3/2 is 13/3, over 36.
    #[test]
    fn unequal_users() {
        let mean = of(&[(0, 1.0), (0, 1.0), (0, 1.0), (1, 1.0), (2, 0.0), (2, 0.0)]);
        assert!((mean.standard_error().unwrap() - (13.0_f64 / 108.0).sqrt()).abs() < 1e-12);
    }

    /// Every answer k times over tells nothing new: the error does not shrink, as that of independent answers would.
    #[test]
    fn copies_of_an_answer_count_once() {
        let once: Vec<(usize, f64)> = (0..50).map(|u| (u, (u % 3) as f64)).collect();
        let often: Vec<(usize, f64)> = once.iter().flat_map(|&answer| [answer; 10]).collect();
        let (a, b) = (of(&once).standard_error().unwrap(), of(&often).standard_error().unwrap());
        assert!((a - b).abs() < 1e-12);
    }

    /// Users whose means differ (sd .3) with noisy answers (sd 1), 8 each: the variance of the mean of 40 users is
    /// (.09 + 1/8) / 40. Over many samples the error estimates agree with it.
    #[test]
    fn errors_are_those_of_repetition() {
        let mut mean_variance = 0.0;
        let repetitions = 2000;
        for repetition in 0..repetitions {
            let mut draws = rng::stream(1, "test", repetition);
            let mut mean = ClusteredMean::default();
            for user in 0..40 {
                let own = 0.3 * draws.normal();
                (0..8).for_each(|_| mean.add(user, own + draws.normal()));
            }
            mean_variance += mean.standard_error().unwrap().powi(2) / repetitions as f64;
        }
        assert!((mean_variance / ((0.09 + 0.125) / 40.0) - 1.0).abs() < 0.03, "{mean_variance}");
    }
}
