//! Pearson's correlation and the slope of a regression, with standard errors over users.

use std::collections::BTreeMap;

/// A correlation of pairs, whose standard error takes the pairs of one user as dependent: it is the jackknife's, which
/// leaves out one user at a time (Efron and Tibshirani, *An Introduction to the Bootstrap*, §11.5).
///
/// ```
/// let mut correlation = bayesteach::metrics::ClusteredCorrelation::default();
/// for (user, x, y) in [(0, 1.0, 2.0), (0, 2.0, 4.0), (1, 3.0, 6.0), (2, 4.0, 8.0)] {
///     correlation.add(user, x, y);
/// }
/// assert!((correlation.value().unwrap() - 1.0).abs() < 1e-12);
/// assert!(correlation.standard_error().unwrap() < 1e-6);
/// ```
#[derive(Clone, Debug, Default)]
pub struct ClusteredCorrelation {
    users: BTreeMap<usize, Sums>,
}

/// What a correlation is computed from.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    pairs: f64,
    x: f64,
    y: f64,
    xx: f64,
    yy: f64,
    xy: f64,
}

/// What is the same but for rounding does not vary.
const CONSTANT: f64 = 1e-15;

impl Sums {
    fn plus(self, other: Sums, sign: f64) -> Sums {
        Sums {
            pairs: self.pairs + sign * other.pairs,
            x: self.x + sign * other.x,
            y: self.y + sign * other.y,
            xx: self.xx + sign * other.xx,
            yy: self.yy + sign * other.yy,
            xy: self.xy + sign * other.xy,
        }
    }

    /// The variances of both sides, and the covariance.
    fn moments(self) -> (f64, f64, f64) {
        let n = self.pairs;
        let variance = |squares: f64, sum: f64| squares / n - (sum / n).powi(2);
        (variance(self.xx, self.x), variance(self.yy, self.y), self.xy / n - self.x / n * (self.y / n))
    }

    fn correlation(self) -> Option<f64> {
        let (vx, vy, covariance) = self.moments();
        let varies = self.pairs > 1.5 && vx > CONSTANT && vy > CONSTANT;
        varies.then(|| (covariance / (vx * vy).sqrt()).clamp(-1.0, 1.0))
    }

    fn slope(self) -> Option<f64> {
        let (vx, _, covariance) = self.moments();
        (self.pairs > 1.5 && vx > CONSTANT).then(|| covariance / vx)
    }
}

impl ClusteredCorrelation {
    /// Counts one pair of a user.
    pub fn add(&mut self, user: usize, x: f64, y: f64) {
        let pair = Sums { pairs: 1.0, x, y, xx: x * x, yy: y * y, xy: x * y };
        let sums = self.users.entry(user).or_default();
        *sums = sums.plus(pair, 1.0);
    }

    /// The correlation; none where one side does not vary.
    pub fn value(&self) -> Option<f64> {
        self.total().correlation()
    }

    /// Its standard error; none for fewer than three users.
    pub fn standard_error(&self) -> Option<f64> {
        self.jackknife(Sums::correlation)
    }

    /// The slope of the regression of the second of each pair on the first; none where the first does not vary.
    pub fn slope(&self) -> Option<f64> {
        self.total().slope()
    }

    /// Its standard error, likewise.
    pub fn slope_standard_error(&self) -> Option<f64> {
        self.jackknife(Sums::slope)
    }

    fn jackknife(&self, of: fn(Sums) -> Option<f64>) -> Option<f64> {
        let (total, users) = (self.total(), self.users.len() as f64);
        if self.users.len() < 3 {
            return None;
        }
        let without = self.users.values().map(|user| of(total.plus(*user, -1.0)));
        let without: Vec<f64> = without.collect::<Option<_>>()?;
        let mean = without.iter().sum::<f64>() / users;
        let squares: f64 = without.iter().map(|r| (r - mean).powi(2)).sum();
        Some(((users - 1.0) / users * squares).sqrt())
    }

    fn total(&self) -> Sums {
        self.users.values().fold(Sums::default(), |total, user| total.plus(*user, 1.0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn by_hand() {
        let mut correlation = ClusteredCorrelation::default();
        assert_eq!((correlation.value(), correlation.standard_error()), (None, None));
        // (1, 1), (2, 3), (3, 2): covariance ⅓, variances ⅔ and ⅔.
        for (user, (x, y)) in [(1.0, 1.0), (2.0, 3.0), (3.0, 2.0)].into_iter().enumerate() {
            correlation.add(user, x, y);
        }
        assert!((correlation.value().unwrap() - 0.5).abs() < 1e-12);
        assert!((correlation.slope().unwrap() - 0.5).abs() < 1e-12);
        // Without one at a time: -1, 1 and 1; their mean ⅓, squares 16/9 + 4/9 + 4/9, times ⅔.
        assert!((correlation.standard_error().unwrap() - (16.0_f64 / 9.0).sqrt()).abs() < 1e-12);
        let mut constant = ClusteredCorrelation::default();
        (0..5).for_each(|user| constant.add(user, 0.1, user as f64));
        assert_eq!(constant.value(), None);
    }

    /// Of independent normal pairs of correlation .6 the standard error is about (1 - .36)/√n; copies tell nothing new.
    #[test]
    fn errors_are_those_of_repetition() {
        let (mut once, mut often) = (ClusteredCorrelation::default(), ClusteredCorrelation::default());
        let mut draws = rng::stream(1, "test", 0);
        for user in 0..4000 {
            let x = draws.normal();
            let y = 0.6 * x + 0.8 * draws.normal();
            once.add(user, x, y);
            (0..3).for_each(|_| often.add(user, x, y));
        }
        let error = once.standard_error().unwrap();
        assert!((error / (0.64 / 4000.0_f64.sqrt()) - 1.0).abs() < 0.1, "{error}");
        assert!((error - often.standard_error().unwrap()).abs() < 1e-9);
    }
}
