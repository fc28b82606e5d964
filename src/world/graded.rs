//! Samejima's graded response model.

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
