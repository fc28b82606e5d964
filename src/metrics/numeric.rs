//! The few functions on distributions that everything else agrees on.

/// The index of the largest value; the lowest index among values that are equal after rounding to 9 digits.
///
/// Every decision between options goes through here, so that two programs that sum in another order break ties
/// alike. The slice must not be empty.
pub fn argmax(values: &[f64]) -> usize {
    let rounded = |v: f64| (v * 1e9).round();
    let mut best = 0;
    for (i, &value) in values.iter().enumerate().skip(1) {
        if rounded(value) > rounded(values[best]) {
            best = i;
        }
    }
    best
}

/// The entropy of a distribution, in nats.
pub fn entropy(probs: &[f64]) -> f64 {
    let terms = probs.iter().filter(|p| **p > 0.0).map(|p| p * p.ln());
    // Written as a difference, so that certainty gives 0 and not -0.
    0.0 - terms.sum::<f64>()
}

/// ln Σ exp(value), without overflow; negative infinity where every value is.
pub fn log_sum_exp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + values.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_index() {
        assert_eq!(argmax(&[0.1, 0.3, 0.3]), 1);
        assert_eq!(argmax(&[0.3, 0.3 + 1e-12, 0.1]), 0);
        assert_eq!(argmax(&[0.3, 0.3 + 1e-8, 0.1]), 1);
        assert_eq!(argmax(&[-2.0, -1.0]), 1);
    }

    #[test]
    fn extremes() {
        assert_eq!(entropy(&[1.0, 0.0]), 0.0);
        assert!(entropy(&[1.0, 0.0]).is_sign_positive());
        assert!((entropy(&[0.5, 0.5]) - 2.0_f64.ln()).abs() < 1e-15);
        assert_eq!(log_sum_exp(&[f64::NEG_INFINITY; 3]), f64::NEG_INFINITY);
        assert!((log_sum_exp(&[1000.0, 1000.0]) - 1000.0 - 2.0_f64.ln()).abs() < 1e-12);
    }
}
