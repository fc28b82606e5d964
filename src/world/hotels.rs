//! Hotels: as [`flights`](super::flights), with the published features and words of hotels.
//!
//! The same 624 users for four features; rating and amenities have five levels, distance and price eleven.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::choice::{self, Attribute, ChoiceRule, ChoiceWorld, SupposedRule};

/// `[teacher.hotels]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HotelsConfig {
    /// What a hotel is described by, in the order of the text: 2 to 4 different ones.
    pub features: Vec<Feature>,
    /// How users choose.
    pub choice: ChoiceRule,
    /// How the teacher supposes that users choose.
    pub teacher_likelihood: SupposedRule,
}

impl Default for HotelsConfig {
    fn default() -> HotelsConfig {
        use Feature::{Amenities, DistanceToDowntown, Price, Rating};
        HotelsConfig {
            features: vec![DistanceToDowntown, Price, Rating, Amenities],
            choice: ChoiceRule::default(),
            teacher_likelihood: SupposedRule::default(),
        }
    }
}

/// The published features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// 0 to 10 miles.
    DistanceToDowntown,
    /// $100 to $1000.
    Price,
    /// 1 to 5 stars.
    Rating,
    /// None, then one more at each level: parking, breakfast, pool, fitness center.
    Amenities,
}

impl Feature {
    fn attribute(self) -> Attribute {
        match self {
            Feature::DistanceToDowntown => {
                Attribute::even("distance to downtown", (0..=10).map(|d| format!("{d} miles")).collect())
            }
            Feature::Price => {
                Attribute::even("price", (0..=10).map(|p| format!("${}", 100 + 90 * p)).collect())
            }
            Feature::Rating => Attribute::even("rating", (1..=5).map(|r| format!("{r} stars")).collect()),
            Feature::Amenities => {
                let nested = [
                    "none",
                    "free parking",
                    "free parking and free breakfast",
                    "free parking, free breakfast, and pool",
                    "free parking, free breakfast, pool, and fitness center",
                ];
                Attribute::even("amenities", nested.map(String::from).to_vec())
            }
        }
    }
}

/// The hotels world; see the module's documentation.
///
/// # Errors
/// If the features are too few or repeated, or a rule has an impossible number.
pub(super) fn world(config: &HotelsConfig) -> Result<ChoiceWorld> {
    choice::published(choice::Published {
        name: "hotels",
        noun: "hotel",
        purpose: "for my trips",
        features: config.features.iter().map(|feature| feature.attribute()).collect(),
        users: config.choice,
        supposed: config.teacher_likelihood,
        hypotheses: None,
        key: "teacher.hotels",
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn grids_read_as_published() {
        let all = |feature: Feature| feature.attribute().levels.join(";");
        assert_eq!(
            all(Feature::DistanceToDowntown),
            "0 miles;1 miles;2 miles;3 miles;4 miles;5 miles;6 miles;7 miles;8 miles;9 miles;10 miles"
        );
        assert_eq!(all(Feature::Price), "$100;$190;$280;$370;$460;$550;$640;$730;$820;$910;$1000");
        assert_eq!(all(Feature::Rating), "1 stars;2 stars;3 stars;4 stars;5 stars");
        assert_eq!(Feature::Rating.attribute().values, [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(Feature::Amenities.attribute().levels.len(), 5);
        assert_eq!(world(&HotelsConfig::default()).unwrap().factors()[0].prior.len(), 624);
    }
}
