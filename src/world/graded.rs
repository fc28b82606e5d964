//! Samejima's graded response model.

use std::sync::Arc;

/// An item whose answers depend on one level.
#[derive(Clone, Debug)]
pub(super) struct GradedItem {
    pub(super) slope: f64,
    pub(super) thresholds: Arc<[f64]>,
    /// What the level is multiplied by.
    pub(super) loading: f64,
    /// How probable it is that all answers are equally probable.
    pub(super) lapse: f64,
    /// The level under each hypothesis of the item's factor.
    pub(super) levels: Arc<[f64]>,
}

impl GradedItem {
    /// About the level, at its mean under the probabilities of the hypotheses. Whether the answers are reversed makes
    /// no difference.
    pub(super) fn fisher_information(&self, marginal: &[f64]) -> f64 {
        let mean: f64 = marginal.iter().zip(&*self.levels).map(|(p, level)| p * level).sum();
        // By the chain rule, as the answers are a function of loading · level.
        self.loading.powi(2)
            * fisher_information(self.slope, &self.thresholds, self.lapse, self.loading * mean)
    }
}

/// I(level) = Σ (P'(x))² / P(x) over the answers x (Samejima, 1969), where P(x) is a difference of two logistic
/// functions of the level, mixed with a lapse, and P'(x) its derivative.
fn fisher_information(slope: f64, thresholds: &[f64], lapse: f64, level: f64) -> f64 {
    let sigmoid = |x: f64| log_sigmoid(x).exp();
    let derivative = |threshold: Option<&f64>| {
        threshold.map_or(0.0, |b| slope * sigmoid(slope * (level - b)) * sigmoid(-slope * (level - b)))
    };
    let log_probs = graded_response(slope, thresholds, level);
    let answers = log_probs.len() as f64;
    let term = |(x, log_prob): (usize, &f64)| {
        let below = x.checked_sub(1).and_then(|i| thresholds.get(i));
        let change = (1.0 - lapse) * (derivative(below) - derivative(thresholds.get(x)));
        let log_prob =
            if lapse > 0.0 { ((1.0 - lapse) * log_prob.exp() + lapse / answers).ln() } else { *log_prob };
        // (P')²/P, where P may be far below what a square can hold.
        if change == 0.0 { 0.0 } else { (2.0 * change.abs().ln() - log_prob).exp() }
    };
    log_probs.iter().enumerate().map(term).sum()
}

/// The log-probabilities of the answers 1, 2, … at a level.
///
/// The answer reaches at least x with probability σ(slope·(level - threshold below x)). So P(x) = σ(u) - σ(v) with
/// u = slope·(level - threshold below x) and v = slope·(level - threshold above x), which equals
/// σ(u)·σ(-v)·(1 - e^(v-u)): in this form its logarithm stays exact far out, where the difference rounds to 0.
pub(super) fn graded_response(slope: f64, thresholds: &[f64], level: f64) -> Vec<f64> {
    (0..=thresholds.len())
        .map(|x| {
            let u = x.checked_sub(1).map_or(f64::INFINITY, |below| slope * (level - thresholds[below]));
            let v = thresholds.get(x).map_or(f64::NEG_INFINITY, |above| slope * (level - above));
            log_sigmoid(u) + log_sigmoid(-v) + (-(v - u).exp_m1()).ln()
        })
        .collect()
}

/// ln(1 / (1 + e^-x)), without overflow.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the calibration of the personality world's defaults was reported with, in percent.
    #[test]
    fn answers_by_level_as_calibrated() {
        let answers = |level: f64| graded_response(1.955, &[-1.084, -0.361, 0.361, 1.084], level);
        let expected = [
            (-2.0, [85.7, 10.4, 2.9, 0.7, 0.2]),
            (-1.0, [45.9, 31.8, 15.8, 4.9, 1.7]),
            (0.0, [10.7, 22.3, 33.9, 22.3, 10.7]),
        ];
        for (level, percents) in expected {
            let (computed, mirrored) = (answers(level), answers(-level));
            for (x, p) in percents.iter().map(|p| p / 100.0).enumerate() {
                assert!((computed[x].exp() - p).abs() < 0.0006, "level {level}, answer {}", x + 1);
                assert!((mirrored[4 - x].exp() - p).abs() < 0.0006, "level {}, answer {}", -level, 5 - x);
            }
        }
    }

    /// The information is also the expected curvature, -E[d² ln P / d level²], taken here by differences.
    #[test]
    fn fisher_information_is_the_expected_curvature() {
        let (slope, thresholds, step) = (1.7, [-1.4, -0.2, 0.3, 1.9], 1e-3);
        for (loading, lapse) in [(1.0, 0.0), (-0.6, 0.0), (1.3, 0.2)] {
            let at = |level: f64| -> Vec<f64> {
                let probs = graded_response(slope, &thresholds, loading * level);
                probs.iter().map(|p| ((1.0 - lapse) * p.exp() + lapse / 5.0).ln()).collect()
            };
            for level in [-3.0, -0.7, 0.0, 0.4, 2.5] {
                let (below, here, above) = (at(level - step), at(level), at(level + step));
                let curvature = |x: usize| (below[x] - 2.0 * here[x] + above[x]) / (step * step);
                let expected: f64 = (0..5).map(|x| -here[x].exp() * curvature(x)).sum();
                let item = GradedItem {
                    slope,
                    thresholds: thresholds.into(),
                    loading,
                    lapse,
                    levels: [level - 1.0, level + 3.0].into(),
                };
                let computed = item.fisher_information(&[0.75, 0.25]);
                assert!((computed - expected).abs() < 1e-4, "level {level}: {computed}, expected {expected}");
            }
        }
        assert!(fisher_information(slope, &thresholds, 0.0, 500.0).abs() < 1e-12);
    }

    #[test]
    fn far_out_levels_stay_finite_and_sum_to_one() {
        for level in [-400.0, -40.0, -3.0, 0.2, 40.0, 400.0] {
            let logs = graded_response(1.955, &[-1.084, -0.361, 0.361, 1.084], level);
            assert!(logs.iter().all(|p| p.is_finite()), "level {level}: {logs:?}");
            assert!((logs.iter().map(|p| p.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        }
        // At 40, answer 1: ln σ(1.955·(-1.084 - 40)) is the exponent itself to within e^-80.
        let logs = graded_response(1.955, &[-1.084, -0.361, 0.361, 1.084], 40.0);
        assert!((logs[0] + 1.955 * 41.084).abs() < 1e-10);
    }
}
