//! Flights: a user with fixed, hidden preferences is recommended one of three flights, round after round.
//!
//! As published by Qiu et al. (arXiv 2503.17523): every feature lies on an even grid in [0, 1], drawn uniformly
//! and independently; a user weighs each feature with -1, -½, 0, ½ or 1 (negative: prefers the low end) and takes
//! the flight of highest weighted sum. The user who cares about nothing is left out: 5^k - 1 users for k features,
//! 624 for the published four. The lowest index among equals is taken. Users may also be noisy, and the teacher
//! mistaken about it, see [`ChoiceRule`].
//!
//! The text is the published one. Where the newlines are not fixed by what was published, it is: a blank line
//! before each question, one line for the question, then for each option the header line `Flight 1:` and the
//! attributes on the line after it.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::choice::{self, Attribute, ChoiceRule, ChoiceWorld, SupposedRule};

/// `[teacher.flights]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlightsConfig {
    /// What a flight is described by, in the order of the text: 2 to 8 different ones.
    pub features: Vec<Feature>,
    /// How users choose.
    pub choice: ChoiceRule,
    /// How the teacher supposes that users choose.
    pub teacher_likelihood: SupposedRule,
}

impl Default for FlightsConfig {
    fn default() -> FlightsConfig {
        use Feature::{DepartureTime, Duration, NumberOfStops, Price};
        FlightsConfig {
            features: vec![DepartureTime, Duration, NumberOfStops, Price],
            choice: ChoiceRule::default(),
            teacher_likelihood: SupposedRule::default(),
        }
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

    /// What it is called in the text.
    fn label(self) -> &'static str {
        match self {
            Feature::DepartureTime => "departure time",
            Feature::ArrivalTime => "arrival time",
            Feature::Duration => "duration",
            Feature::NumberOfStops => "number of stops",
            Feature::LayoverDuration => "layover duration",
            Feature::Price => "price",
            Feature::Flexibility => "flexibility",
            Feature::Bags => "bags",
        }
    }

    /// How a level in `0..self.levels()` reads, such as `$730`.
    pub fn text(self, level: usize) -> String {
        match self {
            Feature::DepartureTime | Feature::ArrivalTime => clock(6 * 60 + 96 * level),
            Feature::Duration => span(30 + 117 * level),
            Feature::NumberOfStops => level.to_string(),
            Feature::LayoverDuration => span(30 * level),
            Feature::Price => format!("${}", 100 + 90 * level),
            Feature::Flexibility => {
                ["non-refundable", "refundable with fee", "fully refundable"][level].into()
            }
            Feature::Bags => [
                "0 carry-on bags, 0 checked bags",
                "1 carry-on bag, 0 checked bags",
                "1 carry-on bag, 1 checked bag",
            ][level]
                .into(),
        }
    }

    pub(super) fn attribute(self) -> Attribute {
        Attribute::even(self.label(), (0..self.levels()).map(|level| self.text(level)).collect())
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
///
/// # Errors
/// If the features are too few or repeated, or a rule has an impossible number.
pub(super) fn world(config: &FlightsConfig) -> Result<ChoiceWorld> {
    choice::published(choice::Published {
        name: "flights",
        noun: "flight",
        purpose: "for my trips",
        features: config.features.iter().map(|feature| feature.attribute()).collect(),
        users: config.choice,
        supposed: config.teacher_likelihood,
        hypotheses: None,
        key: "teacher.flights",
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn grids_read_as_published() {
        let all = |feature: Feature| feature.attribute().levels.join(";");
        let clock = "06:00 AM;07:36 AM;09:12 AM;10:48 AM;12:24 PM;02:00 PM;03:36 PM;05:12 PM;06:48 PM;08:24 PM;10:00 PM";
        assert_eq!(all(Feature::DepartureTime), clock);
        assert_eq!(all(Feature::ArrivalTime), clock);
        assert_eq!(
            all(Feature::Duration),
            "30 min;2 hr 27 min;4 hr 24 min;6 hr 21 min;8 hr 18 min;10 hr 15 min;12 hr 12 min;14 hr 9 min;\
             16 hr 6 min;18 hr 3 min;20 hr"
        );
        assert_eq!(all(Feature::NumberOfStops), "0;1;2");
        assert_eq!(
            all(Feature::LayoverDuration),
            "0 hr;30 min;1 hr;1 hr 30 min;2 hr;2 hr 30 min;3 hr;3 hr 30 min;4 hr;4 hr 30 min;5 hr"
        );
        assert_eq!(all(Feature::Price), "$100;$190;$280;$370;$460;$550;$640;$730;$820;$910;$1000");
        assert_eq!(Feature::NumberOfStops.attribute().values, [0.0, 0.5, 1.0]);
        let tenths: Vec<f64> = (0..11).map(|i| f64::from(i) / 10.0).collect();
        assert_eq!(Feature::Price.attribute().values, tenths);
    }

    fn with(features: &[Feature]) -> FlightsConfig {
        FlightsConfig { features: features.to_vec(), ..FlightsConfig::default() }
    }

    #[test]
    fn as_many_users_as_published() {
        let users = |features: &[Feature]| world(&with(features)).unwrap().factors()[0].prior.len();
        use Feature::{Bags, DepartureTime, Duration, NumberOfStops, Price};
        assert_eq!(users(&[Duration, Price]), 24);
        assert_eq!(users(&[Price, DepartureTime, Duration]), 124);
        assert_eq!(users(&FlightsConfig::default().features), 624);
        assert_eq!(users(&[Price, DepartureTime, Bags, NumberOfStops, Duration]), 3_124);
    }

    #[test]
    fn bad_settings_are_refused() {
        let message = |config: FlightsConfig| {
            let error = world(&config).unwrap_err();
            assert!(error.downcast_ref::<crate::error::UsageError>().is_some());
            error.to_string()
        };
        assert!(message(with(&[Feature::Price])).contains("has 1 features"));
        assert!(
            message(with(&[Feature::ArrivalTime, Feature::ArrivalTime])).contains("\"arrival_time\" twice")
        );
        let unknown = toml::from_str::<FlightsConfig>("features = [\"airline\"]").unwrap_err().to_string();
        assert!(unknown.contains("airline") && unknown.contains("departure_time"), "{unknown}");
        let noisy = |toml: &str| message(toml::from_str(toml).unwrap());
        assert!(noisy("choice = { lapse = 1.5 }").contains("teacher.flights.choice.lapse is 1.5"));
        assert!(
            noisy("teacher_likelihood = { softmax = -1.0 }").contains("teacher_likelihood.softmax is -1")
        );
        assert!(noisy("choice = { softmax = nan }").contains("choice.softmax is NaN"));
        assert!(toml::from_str::<FlightsConfig>("choice = \"random\"").is_err());
    }
}
