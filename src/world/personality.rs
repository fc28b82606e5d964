//! Personality: a user answers items of the 50-item Big-Five questionnaire, and the assistant predicts each answer.
//!
//! A user has one of several levels on each of five traits; an answer follows Samejima's graded response model on
//! the item's trait, with a negatively keyed item answered x as often as a positively keyed one is answered 6 - x.
//! Every item bears on one trait and the prior is uniform, so the posterior over the 5^5 users is five independent
//! ones over 5 levels. The default parameters are those at which this teacher scores the published .536 accuracy
//! and 1.140 nats over 50 items.
//!
//! The assistant says a bare digit, its prediction. What the user truly answered stands only in the user's next
//! message.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::ipip::{ITEMS, Key, Trait};
use super::{Attribute, Factor, Likelihood, Question, Reward};
use crate::error::usage;
use crate::rng::Stream;

/// Answers go from 1 to this.
const CATEGORIES: usize = 5;

const TASK: &str = "Predict how I rate statements about myself, from 1 (very inaccurate) to 5 (very accurate). \
    Reply with the number only.";

/// `[teacher.personality]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PersonalityConfig {
    /// How sharply answers depend on the level: the discrimination of every item.
    pub slope: f64,
    /// Where the answers 2, 3, 4 and 5 become more likely than not to be reached, in ascending order.
    pub thresholds: [f64; CATEGORIES - 1],
    /// The levels of a trait, in ascending order; every combination of levels over the five traits is a user.
    pub levels: Vec<f64>,
    /// In which order the items are asked.
    pub order: Order,
}

impl Default for PersonalityConfig {
    fn default() -> PersonalityConfig {
        PersonalityConfig {
            slope: 1.955,
            thresholds: [-1.084, -0.361, 0.361, 1.084],
            levels: vec![-2.0, -1.0, 0.0, 1.0, 2.0],
            order: Order::Shuffled,
        }
    }
}

/// In which order items are asked. No item is asked twice in an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A random subset in random order.
    Shuffled,
    /// The traits take turns; a random subset of each trait's items, in the official order.
    Interleaved,
    /// One trait after the other; a random subset of each trait's items, in the official order.
    Blocked,
}

impl PersonalityConfig {
    /// Checks that the parameters make a graded response model.
    ///
    /// # Errors
    /// Names the key, its value and what it must be.
    pub fn validate(&self) -> Result<()> {
        let increasing = |values: &[f64]| {
            values.iter().all(|v| v.is_finite()) && values.windows(2).all(|pair| pair[0] < pair[1])
        };
        if !(self.slope.is_finite() && self.slope > 0.0) {
            return Err(usage(format!("teacher.personality.slope is {}, it must be above 0", self.slope)));
        }
        if !increasing(&self.thresholds) {
            return Err(usage(format!(
                "teacher.personality.thresholds {:?} must be numbers in ascending order",
                self.thresholds
            )));
        }
        if !increasing(&self.levels) || !(2..=100).contains(&self.levels.len()) {
            return Err(usage(format!(
                "teacher.personality.levels {:?} must be 2 to 100 numbers in ascending order",
                self.levels
            )));
        }
        Ok(())
    }
}

/// The personality world; see the module's documentation.
#[derive(Clone, Debug)]
pub struct Personality {
    order: Order,
    slope: f64,
    thresholds: [f64; CATEGORIES - 1],
    levels: Vec<f64>,
    factors: Vec<Factor>,
    /// One an item.
    likelihoods: Vec<Arc<Likelihood>>,
    labels: Arc<[String]>,
}

impl Personality {
    /// Checks the config and works out every item's likelihood.
    ///
    /// # Errors
    /// If the parameters make no graded response model.
    pub fn new(config: &PersonalityConfig) -> Result<Personality> {
        config.validate()?;
        let levels = config.levels.len();
        let factor = |t: &Trait| Factor { name: t.name().into(), prior: vec![1.0 / levels as f64; levels] };
        let likelihood = |item: &super::ipip::Item| {
            let of_level = |level: &f64| {
                let mut answers = graded_response(config.slope, &config.thresholds, *level);
                if item.key == Key::Negative {
                    answers.reverse();
                }
                answers
            };
            Arc::new(Likelihood::from_log_probs(
                CATEGORIES,
                config.levels.iter().flat_map(of_level).collect(),
            ))
        };
        Ok(Personality {
            order: config.order,
            slope: config.slope,
            thresholds: config.thresholds,
            levels: config.levels.clone(),
            factors: Trait::ALL.iter().map(factor).collect(),
            likelihoods: ITEMS.iter().map(likelihood).collect(),
            labels: (1..=CATEGORIES).map(|i| i.to_string()).collect(),
        })
    }

    pub(super) fn factors(&self) -> &[Factor] {
        &self.factors
    }

    pub(super) fn questions(&self, rounds: usize, draws: &mut Stream) -> Vec<Question> {
        let items = choose_items(self.order, rounds, draws);
        items.iter().enumerate().map(|(i, &item)| self.question(i + 1, item)).collect()
    }

    /// All items, in the configured order.
    pub(super) fn bank(&self, draws: &mut Stream) -> Vec<usize> {
        choose_items(self.order, ITEMS.len(), draws)
    }

    pub(super) fn item(&self, item: usize, place: usize) -> Option<Question> {
        (item < ITEMS.len()).then(|| self.question(place, item))
    }

    /// Of an item at the posterior mean of the level. Which way an item is keyed makes no difference.
    pub(super) fn fisher_information(&self, item: usize, marginal: &[f64]) -> Option<f64> {
        (item < ITEMS.len()).then(|| {
            let level = marginal.iter().zip(&self.levels).map(|(p, level)| p * level).sum();
            fisher_information(self.slope, &self.thresholds, level)
        })
    }

    /// The traits.
    pub(super) fn attributes(&self) -> Vec<Attribute> {
        let levels = self.levels.len();
        let attribute = |(factor, of): (usize, &Trait)| Attribute {
            name: of.name().into(),
            factor,
            levels,
            level_of: (0..levels).map(|level| level as u8).collect(),
            ask: format!(
                "How high do you think I am on {}, on a scale from 1 (very low) to {levels} (very high)? Reply \
                 with the number only.",
                of.name().replace('_', " ")
            ),
        };
        Trait::ALL.iter().enumerate().map(attribute).collect()
    }

    /// An item as the question of a place (from 1) of the episode.
    fn question(&self, place: usize, item: usize) -> Question {
        Question {
            text: format!("Item {place}: {}", ITEMS[item].text),
            labels: Arc::clone(&self.labels),
            factor: ITEMS[item].measures as usize,
            likelihood: Arc::clone(&self.likelihoods[item]),
            reward: Reward::Nearness,
        }
    }
}

/// The log-probabilities of the answers 1 to 5 to a positively keyed item.
///
/// P(x) = σ(u) - σ(v) with u = slope·(level - threshold below x) and v = slope·(level - threshold above x), which
/// equals σ(u)·σ(-v)·(1 - e^(v-u)): in this form its logarithm stays exact far out, where the difference rounds to 0.
fn graded_response(slope: f64, thresholds: &[f64], level: f64) -> Vec<f64> {
    (0..=thresholds.len())
        .map(|x| {
            let u = x.checked_sub(1).map_or(f64::INFINITY, |below| slope * (level - thresholds[below]));
            let v = thresholds.get(x).map_or(f64::NEG_INFINITY, |above| slope * (level - above));
            log_sigmoid(u) + log_sigmoid(-v) + (-(v - u).exp_m1()).ln()
        })
        .collect()
}

/// I(level) = Σ (P'(x))² / P(x) over the answers x (Samejima, 1969), where P(x) is a difference of two logistic
/// functions of the level and P'(x) the difference of their derivatives.
fn fisher_information(slope: f64, thresholds: &[f64], level: f64) -> f64 {
    let sigmoid = |x: f64| log_sigmoid(x).exp();
    let derivative = |threshold: Option<&f64>| {
        threshold.map_or(0.0, |b| slope * sigmoid(slope * (level - b)) * sigmoid(-slope * (level - b)))
    };
    let probs = graded_response(slope, thresholds, level);
    let term = |(x, log_prob): (usize, &f64)| {
        let change =
            derivative(x.checked_sub(1).and_then(|i| thresholds.get(i))) - derivative(thresholds.get(x));
        // (P')²/P, where P may be far below what a square can hold.
        if change == 0.0 { 0.0 } else { (2.0 * change.abs().ln() - log_prob).exp() }
    };
    probs.iter().enumerate().map(term).sum()
}

/// ln(1 / (1 + e^-x)), without overflow.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// Indices of the items of an episode, in the order in which they are asked.
fn choose_items(order: Order, rounds: usize, draws: &mut Stream) -> Vec<usize> {
    let mut items: Vec<usize> = (0..ITEMS.len()).collect();
    draws.shuffle(&mut items);
    if order == Order::Shuffled {
        items.truncate(rounds);
        return items;
    }
    // As evenly as possible over the traits, each trait's items in the official order.
    let traits = Trait::ALL.len();
    let mut by_trait: Vec<Vec<usize>> = (0..traits)
        .map(|t| {
            let count = rounds / traits + usize::from(t < rounds % traits);
            let mut of_trait: Vec<usize> =
                items.iter().copied().filter(|&i| ITEMS[i].measures as usize == t).take(count).collect();
            of_trait.sort_unstable();
            of_trait
        })
        .collect();
    if order == Order::Blocked {
        return by_trait.concat();
    }
    by_trait.iter_mut().for_each(|of_trait| of_trait.reverse());
    (0..rounds).filter_map(|place| by_trait[place % traits].pop()).collect()
}

pub(super) fn opening(first: &Question) -> String {
    format!("{TASK}\n{}", first.text)
}

pub(super) fn reply(label: &str) -> (String, usize) {
    (label.to_owned(), 0)
}

pub(super) fn feedback(truth: &str, next: &Question) -> String {
    format!("I answered {truth}.\n{}", next.text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::rng;

    /// What the calibration of the defaults was reported with, in percent.
    #[test]
    fn answers_by_level_as_calibrated() {
        let config = PersonalityConfig::default();
        let expected = [
            (-2.0, [85.7, 10.4, 2.9, 0.7, 0.2]),
            (-1.0, [45.9, 31.8, 15.8, 4.9, 1.7]),
            (0.0, [10.7, 22.3, 33.9, 22.3, 10.7]),
        ];
        for (level, percents) in expected {
            let computed = graded_response(config.slope, &config.thresholds, level);
            let mirrored = graded_response(config.slope, &config.thresholds, -level);
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
        for level in [-3.0, -0.7, 0.0, 0.4, 2.5] {
            let at = |level: f64| graded_response(slope, &thresholds, level);
            let (below, here, above) = (at(level - step), at(level), at(level + step));
            let curvature = |x: usize| (below[x] - 2.0 * here[x] + above[x]) / (step * step);
            let expected: f64 = (0..5).map(|x| -here[x].exp() * curvature(x)).sum();
            let computed = fisher_information(slope, &thresholds, level);
            assert!((computed - expected).abs() < 1e-4, "level {level}: {computed}, expected {expected}");
        }
        assert!(fisher_information(slope, &thresholds, 500.0).abs() < 1e-12);
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

    #[test]
    fn no_item_twice_in_any_order() {
        for order in [Order::Shuffled, Order::Interleaved, Order::Blocked] {
            for rounds in [1, 7, 20, 50] {
                let mut items = choose_items(order, rounds, &mut rng::stream(1, "test", rounds as u64));
                items.sort_unstable();
                items.dedup();
                assert_eq!(items.len(), rounds, "{order:?}");
            }
        }
    }

    #[test]
    fn orders_are_what_they_are_called() {
        let draw = |order, rounds| choose_items(order, rounds, &mut rng::stream(5, "test", 0));
        let traits = |items: Vec<usize>| items.iter().map(|i| i % 5).collect::<Vec<_>>();
        assert_eq!(draw(Order::Interleaved, 50), (0..50).collect::<Vec<_>>());
        assert_eq!(traits(draw(Order::Interleaved, 7)), [0, 1, 2, 3, 4, 0, 1]);
        assert_eq!(traits(draw(Order::Blocked, 7)), [0, 0, 1, 1, 2, 3, 4]);
        let mut shuffled = draw(Order::Shuffled, 50);
        assert_ne!(shuffled, (0..50).collect::<Vec<_>>());
        shuffled.sort_unstable();
        assert_eq!(shuffled, (0..50).collect::<Vec<_>>());
        let other = choose_items(Order::Shuffled, 20, &mut rng::stream(5, "test", 1));
        assert_ne!(draw(Order::Shuffled, 20), other);
    }

    #[test]
    fn bad_parameters_are_refused() {
        let message = |toml: &str| {
            let config: PersonalityConfig = toml::from_str(toml).unwrap();
            let error = Personality::new(&config).unwrap_err();
            assert!(error.downcast_ref::<crate::error::UsageError>().is_some());
            error.to_string()
        };
        assert!(message("slope = 0.0").contains("slope is 0"));
        assert!(message("slope = nan").contains("slope is NaN"));
        assert!(message("thresholds = [-1.0, 0.0, 0.0, 1.0]").contains("thresholds"));
        assert!(message("levels = [1.0]").contains("levels"));
        assert!(message("levels = [1.0, 0.0]").contains("ascending"));
        assert!(toml::from_str::<PersonalityConfig>("slpe = 1").is_err());
        assert!(toml::from_str::<PersonalityConfig>("order = \"random\"").is_err());
    }
}
