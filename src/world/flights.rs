//! Flights: a user with fixed, hidden preferences is recommended one of three flights, round after round.
//!
//! As published by Qiu et al. (arXiv 2503.17523): every feature lies on an even grid in [0, 1], drawn uniformly
//! and independently; a user weighs each feature with -1, -½, 0, ½ or 1 (negative: prefers the low end) and takes
//! the flight of highest weighted sum. The user who cares about nothing is left out: 5^k - 1 users for k features,
//! 624 for the published four. Rewards are integers (levels in tenths, weights in halves), so that ties are exact;
//! the lowest index among equals is taken.
//!
//! The text is the published one. Where the newlines are not fixed by what was published, it is: a blank line
//! before each question, one line for the question, then for each option the header line `Flight 1:` and the
//! attributes on the line after it.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Attribute, Factor, Likelihood, Question, Reward, Weights};
use crate::error::usage;
use crate::rng::Stream;

/// The published number of rounds.
pub const DEFAULT_ROUNDS: usize = 5;

/// Flights to choose from in a round.
pub const OPTIONS: usize = 3;

/// From -1 to 1 in halves.
const WEIGHTS: usize = 5;

const TASK: &str = "Help me select the best flights for my trips. I have specific preferences for what I like and \
    dislike in a flight, and these preferences remain the same. You need to figure out my preferences and select \
    the best flights for me. Use your best judgment if you are unsure. Do not say you need more information.";
const QUESTION: &str = "Which flight is the best option?";

/// `[teacher.flights]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlightsConfig {
    /// What a flight is described by, in the order of the text: 2 to 8 different ones.
    pub features: Vec<Feature>,
}

impl Default for FlightsConfig {
    fn default() -> FlightsConfig {
        use Feature::{DepartureTime, Duration, NumberOfStops, Price};
        FlightsConfig { features: vec![DepartureTime, Duration, NumberOfStops, Price] }
    }
}

/// The published features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// 06:00 AM to 10:00 PM.
    DepartureTime,
    /// 06:00 AM to 10:00 PM, independent of the departure.
    ArrivalTime,
    /// 30 min to 20 hr.
    Duration,
    /// None, one or two.
    NumberOfStops,
    /// 0 to 5 hours.
    LayoverDuration,
    /// $100 to $1000.
    Price,
    /// From non-refundable to fully refundable.
    Flexibility,
    /// What may be taken along.
    Bags,
}

impl Feature {
    /// How many levels it has, evenly spaced in [0, 1].
    pub fn levels(self) -> usize {
        match self {
            Feature::NumberOfStops | Feature::Flexibility | Feature::Bags => 3,
            Feature::DepartureTime
            | Feature::ArrivalTime
            | Feature::Duration
            | Feature::LayoverDuration
            | Feature::Price => 11,
        }
    }

    /// How a level in `0..self.levels()` reads, such as `price: $730`.
    pub fn text(self, level: usize) -> String {
        match self {
            Feature::DepartureTime => format!("departure time: {}", clock(6 * 60 + 96 * level)),
            Feature::ArrivalTime => format!("arrival time: {}", clock(6 * 60 + 96 * level)),
            Feature::Duration => format!("duration: {}", span(30 + 117 * level)),
            Feature::NumberOfStops => format!("number of stops: {level}"),
            Feature::LayoverDuration => format!("layover duration: {}", span(30 * level)),
            Feature::Price => format!("price: ${}", 100 + 90 * level),
            Feature::Flexibility => {
                let texts = ["non-refundable", "refundable with fee", "fully refundable"];
                format!("flexibility: {}", texts[level])
            }
            Feature::Bags => {
                let texts = [
                    "0 carry-on bags, 0 checked bags",
                    "1 carry-on bag, 0 checked bags",
                    "1 carry-on bag, 1 checked bag",
                ];
                format!("bags: {}", texts[level])
            }
        }
    }

    fn tenths(self, level: usize) -> i32 {
        (level * 10 / (self.levels() - 1)) as i32
    }
}

/// A time of day, such as `07:36 AM`.
fn clock(minutes: usize) -> String {
    let (hour, minute) = (minutes / 60, minutes % 60);
    let half = if hour < 12 { "AM" } else { "PM" };
    format!("{:02}:{minute:02} {half}", (hour + 11) % 12 + 1)
}

/// A length of time, such as `2 hr 27 min`.
fn span(minutes: usize) -> String {
    match (minutes / 60, minutes % 60) {
        (hours, 0) => format!("{hours} hr"),
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} hr {minutes} min"),
    }
}

/// The flights world; see the module's documentation.
#[derive(Clone, Debug)]
pub struct Flights {
    features: Vec<Feature>,
    factors: Vec<Factor>,
    /// In halves: the weights of all hypotheses for one feature after the other.
    columns: Vec<Vec<i16>>,
    weights: Arc<Weights>,
    labels: Arc<[String]>,
}

impl Flights {
    /// Checks the config and lists the users.
    ///
    /// # Errors
    /// If the features are too few or repeated.
    pub fn new(config: &FlightsConfig) -> Result<Flights> {
        let features = &config.features;
        if features.len() < 2 {
            return Err(usage(format!(
                "teacher.flights.features has {} features, 2 to 8 are possible",
                features.len()
            )));
        }
        if let Some(i) = (1..features.len()).find(|&i| features[..i].contains(&features[i])) {
            let name = features[i].text(0);
            let name = name.split(':').next().unwrap_or_default().replace(' ', "_");
            return Err(usage(format!("teacher.flights.features names {name:?} twice")));
        }
        let halves = preferences(features.len());
        let users = halves.len() / features.len();
        let weights = Weights {
            dimensions: features.len(),
            cells: halves.iter().map(|&w| f64::from(w) / 2.0).collect(),
        };
        let prior = vec![1.0 / users as f64; users];
        let column = |f: usize| halves.chunks_exact(features.len()).map(|row| row[f] as i16).collect();
        let columns = (0..features.len()).map(column).collect();
        Ok(Flights {
            features: features.clone(),
            factors: vec![Factor { name: "preferences".into(), prior }],
            columns,
            weights: Arc::new(weights),
            labels: (1..=OPTIONS).map(|i| i.to_string()).collect(),
        })
    }

    pub(super) fn factors(&self) -> &[Factor] {
        &self.factors
    }

    /// Draws one option set.
    pub(super) fn question(&self, draws: &mut Stream) -> Question {
        let levels = self.draw_levels(draws);
        self.question_of(&levels, self.likelihood(&levels))
    }

    /// The level of each feature of each option, (OPTIONS, features).
    fn draw_levels(&self, draws: &mut Stream) -> Vec<Vec<usize>> {
        (0..OPTIONS)
            .map(|_| self.features.iter().map(|feature| draws.below(feature.levels())).collect())
            .collect()
    }

    /// Draws option sets and keeps the last that is better than those before. Only this one becomes text.
    pub(super) fn best_question(
        &self,
        candidates: usize,
        draws: &mut Stream,
        is_better: &mut dyn FnMut(&Likelihood, usize) -> bool,
    ) -> Question {
        let mut best = self.draw_levels(draws);
        let mut likelihood = self.likelihood(&best);
        is_better(&likelihood, 0);
        for _ in 1..candidates {
            let levels = self.draw_levels(draws);
            let candidate = self.likelihood(&levels);
            if is_better(&candidate, 0) {
                (best, likelihood) = (levels, candidate);
            }
        }
        self.question_of(&best, likelihood)
    }

    /// What each user chooses from an option set.
    fn likelihood(&self, levels: &[Vec<usize>]) -> Likelihood {
        let tenths: Vec<Vec<i16>> = levels
            .iter()
            .map(|option| {
                self.features.iter().zip(option).map(|(f, &level)| f.tenths(level) as i16).collect()
            })
            .collect();
        Likelihood::Choice { options: levels.len(), choices: choices(&self.columns, &tenths) }
    }

    /// The question of an option set, given as the level of each feature of each option.
    fn question_of(&self, levels: &[Vec<usize>], likelihood: Likelihood) -> Question {
        let tenths: Vec<Vec<i32>> = levels
            .iter()
            .map(|option| self.features.iter().zip(option).map(|(f, &level)| f.tenths(level)).collect())
            .collect();
        Question {
            text: self.text(levels),
            labels: Arc::clone(&self.labels),
            factor: 0,
            likelihood: Arc::new(likelihood),
            reward: Reward::Linear {
                weights: Arc::clone(&self.weights),
                features: tenths.iter().flatten().map(|&t| f64::from(t) / 10.0).collect(),
            },
        }
    }

    /// How each feature is weighed.
    pub(super) fn attributes(&self) -> Vec<Attribute> {
        let attribute = |(feature, column): (&Feature, &Vec<i16>)| {
            let end = |level: usize| {
                let text = feature.text(level);
                text.split_once(": ").map(|(name, end)| (name.to_owned(), end.to_owned())).unwrap_or_default()
            };
            let ((name, low), (_, high)) = (end(0), end(feature.levels() - 1));
            Attribute {
                ask: format!(
                    "How do you think I feel about the {name} of a flight, on a scale from 1 to 5? 1 means that I \
                     strongly prefer the low end ({low}), 3 that I do not mind, and 5 that I strongly prefer the high \
                     end ({high}). Reply with the number only."
                ),
                name: name.replace(' ', "_"),
                factor: 0,
                levels: WEIGHTS,
                level_of: column.iter().map(|weight| (weight + 2) as u8).collect(),
            }
        };
        self.features.iter().zip(&self.columns).map(attribute).collect()
    }

    fn text(&self, levels: &[Vec<usize>]) -> String {
        let mut text = QUESTION.to_owned();
        for (i, option) in levels.iter().enumerate() {
            let attributes: Vec<String> =
                self.features.iter().zip(option).map(|(feature, &level)| feature.text(level)).collect();
            text += &format!("\nFlight {}:\n{}", i + 1, attributes.join(", "));
        }
        text
    }
}

/// All weight vectors over {-2, …, 2} halves but the one of zeros, the last feature varying fastest.
fn preferences(features: usize) -> Vec<i32> {
    let vectors = 5_usize.pow(features as u32);
    let weight = |vector: usize, feature: usize| {
        let digit = vector / 5_usize.pow((features - 1 - feature) as u32) % 5;
        digit as i32 - 2
    };
    (0..vectors)
        .map(|vector| (0..features).map(move |feature| weight(vector, feature)))
        .filter(|weights| weights.clone().any(|w| w != 0))
        .flatten()
        .collect()
}

/// The option of highest reward for every hypothesis, the lowest index among equals. `columns` has the weights of all
/// hypotheses for one feature after the other, `tenths` one row an option.
///
/// All hypotheses at once, option by option: hundreds of candidate sets a question are gone through by this.
fn choices(columns: &[Vec<i16>], tenths: &[Vec<i16>]) -> Vec<u8> {
    let hypotheses = columns.first().map_or(0, Vec::len);
    let rewards = |option: &[i16]| {
        let mut rewards = vec![0_i16; hypotheses];
        for (column, x) in columns.iter().zip(option) {
            rewards.iter_mut().zip(column).for_each(|(reward, weight)| *reward += weight * x);
        }
        rewards
    };
    let mut best = rewards(&tenths[0]);
    let mut choices = vec![0_u8; hypotheses];
    for (i, option) in tenths.iter().enumerate().skip(1) {
        for ((best, choice), reward) in best.iter_mut().zip(&mut choices).zip(rewards(option)) {
            *choice = if reward > *best { i as u8 } else { *choice };
            *best = reward.max(*best);
        }
    }
    choices
}

pub(super) fn opening(first: &Question) -> String {
    format!("{TASK}\n\n{}", first.text)
}

pub(super) fn reply(label: &str) -> (String, usize) {
    let before = "The best option is Flight ";
    (format!("{before}{label}."), before.len())
}

pub(super) fn feedback(said: &str, truth: &str, next: &Question) -> String {
    let verdict = if said == truth {
        format!("Your option Flight {said} is correct.")
    } else {
        format!("Your option Flight {said} is incorrect. I prefer Flight {truth}.")
    };
    format!("{verdict}\n\n{}", next.text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn grids_read_as_published() {
        let all = |feature: Feature| -> Vec<String> {
            let text = |level| feature.text(level).split_once(": ").unwrap().1.to_owned();
            (0..feature.levels()).map(text).collect()
        };
        let clock = "06:00 AM,07:36 AM,09:12 AM,10:48 AM,12:24 PM,02:00 PM,03:36 PM,05:12 PM,06:48 PM,08:24 PM,10:00 PM";
        assert_eq!(all(Feature::DepartureTime).join(","), clock);
        assert_eq!(all(Feature::ArrivalTime).join(","), clock);
        assert_eq!(
            all(Feature::Duration).join(","),
            "30 min,2 hr 27 min,4 hr 24 min,6 hr 21 min,8 hr 18 min,10 hr 15 min,12 hr 12 min,14 hr 9 min,\
             16 hr 6 min,18 hr 3 min,20 hr"
        );
        assert_eq!(all(Feature::NumberOfStops).join(","), "0,1,2");
        assert_eq!(
            all(Feature::LayoverDuration).join(","),
            "0 hr,30 min,1 hr,1 hr 30 min,2 hr,2 hr 30 min,3 hr,3 hr 30 min,4 hr,4 hr 30 min,5 hr"
        );
        assert_eq!(all(Feature::Price).join(","), "$100,$190,$280,$370,$460,$550,$640,$730,$820,$910,$1000");
        assert_eq!(Feature::NumberOfStops.tenths(1), 5);
        assert_eq!(
            (0..11).map(|l| Feature::Price.tenths(l)).collect::<Vec<_>>(),
            (0..11).collect::<Vec<_>>()
        );
    }

    #[test]
    fn as_many_users_as_published() {
        let users = |features: &[Feature]| {
            Flights::new(&FlightsConfig { features: features.to_vec() }).unwrap().factors[0].prior.len()
        };
        use Feature::{Bags, DepartureTime, Duration, NumberOfStops, Price};
        assert_eq!(users(&[Duration, Price]), 24);
        assert_eq!(users(&[Price, DepartureTime, Duration]), 124);
        assert_eq!(users(&FlightsConfig::default().features), 624);
        assert_eq!(users(&[Price, DepartureTime, Bags, NumberOfStops, Duration]), 3_124);
    }

    #[test]
    fn no_user_is_without_preference_and_none_is_there_twice() {
        let mut rows: Vec<Vec<i32>> = preferences(3).chunks(3).map(<[i32]>::to_vec).collect();
        assert!(rows.iter().all(|row| row.iter().any(|w| *w != 0) && row.iter().all(|w| w.abs() <= 2)));
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), 124);
    }

    #[test]
    fn equals_go_to_the_lowest_index() {
        // Weights -1 and ½: rewards in twentieths -10, -10, -20 and then -20, -10, -10.
        let tenths = |options: [[i16; 2]; 3]| options.iter().map(|o| o.to_vec()).collect::<Vec<_>>();
        let choice = |options| choices(&[vec![-2], vec![1]], &tenths(options))[0];
        assert_eq!(choice([[5, 0], [10, 10], [10, 0]]), 0);
        assert_eq!(choice([[10, 0], [10, 10], [5, 0]]), 1);
    }

    #[test]
    fn bad_features_are_refused() {
        let message = |features: Vec<Feature>| {
            let error = Flights::new(&FlightsConfig { features }).unwrap_err();
            assert!(error.downcast_ref::<crate::error::UsageError>().is_some());
            error.to_string()
        };
        assert!(message(vec![Feature::Price]).contains("has 1 features"));
        assert!(message(vec![Feature::ArrivalTime, Feature::ArrivalTime]).contains("\"arrival_time\" twice"));
        let unknown = toml::from_str::<FlightsConfig>("features = [\"airline\"]").unwrap_err().to_string();
        assert!(unknown.contains("airline") && unknown.contains("departure_time"), "{unknown}");
    }
}
