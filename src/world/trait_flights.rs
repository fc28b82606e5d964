//! Flights for a personality: the transfer task of the questionnaire. What a user likes in a flight follows from the
//! five traits, so that whoever knows the traits knows the preferences.
//!
//! A user is one of the questionnaire's, with the same index; items of the questionnaire may come first, in the same
//! dialogue. The weights of the features follow from the levels, scaled to [-1, 1], by a [`Mapping`]. Everything else
//! is as in [`flights`](super::flights).

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Weights;
use super::choice::{self, ChoiceRule, SupposedRule};
use super::flights::{Feature, FlightsConfig};
use super::ipip::{ITEMS, Trait};
use super::personality::{self, PersonalityConfig};
use super::staged::{StagedParts, StagedWorld};
use crate::error::usage;

/// `[teacher.trait_flights]`; the traits' levels and the items are those of `[teacher.personality]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraitFlightsConfig {
    /// How preferences follow from traits.
    pub mapping: Mapping,
    /// How many items of the questionnaire come before the flights.
    pub items: usize,
    /// What a flight is described by, in the order of the text: 2 to 8 different ones.
    pub features: Vec<Feature>,
    /// How users choose.
    pub choice: ChoiceRule,
    /// How the teacher supposes that users choose.
    pub teacher_likelihood: SupposedRule,
}

impl Default for TraitFlightsConfig {
    fn default() -> TraitFlightsConfig {
        TraitFlightsConfig {
            mapping: Mapping::default(),
            items: 0,
            features: FlightsConfig::default().features,
            choice: ChoiceRule::default(),
            teacher_likelihood: SupposedRule::default(),
        }
    }
}

/// How the weights of a flight's features follow from the traits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// Every weight depends on conscientiousness, emotional stability and intellect together, by an arbitrary rule
    /// with products of traits: no choice speaks for one trait alone.
    #[default]
    Coupled,
    /// Every weight is plus or minus the level of this one trait: each choice is about it and nothing else.
    Single(Trait),
    /// Every weight is a weighted sum of all five traits, in directions that are plausible for people: the
    /// conscientious leave early and mind the price, the easily upset avoid stops and want to be able to cancel, the
    /// open put up with detours. The sizes are chosen, not fitted to data.
    Grounded,
}

impl Mapping {
    /// The traits that it depends on.
    fn traits(self) -> Vec<usize> {
        use Trait::{Conscientiousness, EmotionalStability, Intellect};
        let of = |traits: &[Trait]| traits.iter().map(|t| *t as usize).collect();
        match self {
            Mapping::Coupled => of(&[Conscientiousness, EmotionalStability, Intellect]),
            Mapping::Single(one) => of(&[one]),
            Mapping::Grounded => of(&Trait::ALL),
        }
    }

    /// The weight of a feature for the levels of the five traits, in [-1, 1].
    fn weight(self, feature: Feature, levels: [f64; 5]) -> f64 {
        let [e, a, c, s, o] = levels;
        match self {
            Mapping::Coupled => match feature {
                Feature::DepartureTime => 0.5 * o - 0.5 * c * s,
                Feature::ArrivalTime => -0.5 * s + 0.5 * c * o,
                Feature::Duration => -0.5 * c + 0.5 * o * s,
                Feature::NumberOfStops => 0.5 * s + 0.5 * o * c,
                Feature::LayoverDuration => 0.5 * o + 0.5 * c * s,
                Feature::Price => -0.5 * s - 0.5 * c * o,
                Feature::Flexibility => 0.5 * c - 0.5 * o * s,
                Feature::Bags => -0.5 * o + 0.5 * s * c,
            },
            Mapping::Single(one) => match feature {
                Feature::DepartureTime | Feature::Duration | Feature::Price | Feature::LayoverDuration => {
                    -levels[one as usize]
                }
                Feature::ArrivalTime | Feature::NumberOfStops | Feature::Flexibility | Feature::Bags => {
                    levels[one as usize]
                }
            },
            Mapping::Grounded => match feature {
                Feature::DepartureTime => 0.3 * e - 0.1 * a - 0.5 * c + 0.1 * o,
                Feature::ArrivalTime => 0.3 * e - 0.4 * c + 0.1 * s,
                Feature::Duration => -0.2 * e - 0.2 * c + 0.2 * s + 0.4 * o,
                Feature::NumberOfStops => 0.1 * e - 0.1 * c + 0.4 * s + 0.4 * o,
                Feature::LayoverDuration => 0.2 * a - 0.2 * c + 0.3 * s + 0.3 * o,
                Feature::Price => 0.2 * e - 0.1 * a - 0.4 * c + 0.2 * o,
                Feature::Flexibility => -0.1 * e + 0.3 * c - 0.5 * s - 0.1 * o,
                Feature::Bags => 0.2 * e + 0.1 * a + 0.3 * c - 0.3 * s,
            },
        }
    }
}

/// The world of flights that follow from traits; see the module's documentation.
///
/// # Errors
/// If either config makes no sense.
pub(super) fn world(config: &TraitFlightsConfig, personality: &PersonalityConfig) -> Result<StagedWorld> {
    if config.items > ITEMS.len() {
        return Err(usage(format!(
            "teacher.trait_flights.items is {}, the questionnaire has {}",
            config.items,
            ITEMS.len()
        )));
    }
    let traits = config.mapping.traits();
    let questionnaire = personality::questionnaire(personality, &traits)?;
    let joint = &questionnaire.joint;
    let factor = joint.group(traits[0]);
    let furthest = personality.levels.iter().fold(0.0, |furthest: f64, level| furthest.max(level.abs()));
    let mut cells = Vec::new();
    for hypothesis in 0..joint.factors[factor].prior.len() {
        let level = |t: usize| {
            // A trait of another factor does not count.
            let value = if joint.group(t) == factor { joint.value(t, hypothesis) } else { 0 };
            personality.levels[value] / furthest
        };
        let levels = [level(0), level(1), level(2), level(3), level(4)];
        cells.extend(config.features.iter().map(|feature| config.mapping.weight(*feature, levels)));
    }
    let weights = Weights::new(config.features.len(), cells);
    let flights = choice::published(choice::Published {
        name: "trait_flights",
        noun: "flight",
        purpose: "for my trips",
        features: config.features.iter().map(|feature| feature.attribute()).collect(),
        users: config.choice,
        supposed: config.teacher_likelihood,
        hypotheses: Some((joint.factors[factor].clone(), weights)),
        key: "teacher.trait_flights",
    })?;
    Ok(StagedWorld::new(StagedParts {
        name: "trait_flights".into(),
        rounds: None,
        population: None,
        factor,
        n_items: config.items,
        items: personality::world_of(questionnaire, personality.order)?,
        choices: flights,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// Over all levels, a weight of the coupled rule depends on each of three traits; of the single rule, on one.
    #[test]
    fn mappings_depend_on_what_they_say() {
        let grid: Vec<[f64; 5]> = (0..3125)
            .map(|i| [625, 125, 25, 5, 1].map(|stride| f64::from(i / stride % 5) / 2.0 - 1.0))
            .collect();
        let cases = [
            (Mapping::Coupled, vec![2, 3, 4]),
            (Mapping::Single(Trait::EmotionalStability), vec![3]),
            (Mapping::Grounded, vec![0, 1, 2, 3, 4]),
        ];
        for (mapping, traits) in cases {
            assert_eq!(mapping.traits(), traits);
            let mut found = [false; 5];
            for feature in all_features() {
                for levels in &grid {
                    let weight = mapping.weight(feature, *levels);
                    assert!(weight.abs() <= 1.0 + 1e-12, "{mapping:?} {feature:?}");
                    for (t, found) in found.iter_mut().enumerate() {
                        let mut other = *levels;
                        other[t] = -other[t];
                        *found |= mapping.weight(feature, other) != weight;
                    }
                }
            }
            let depends: Vec<usize> = (0..5).filter(|&t| found[t]).collect();
            assert_eq!(depends, traits, "{mapping:?}");
        }
    }

    fn all_features() -> [Feature; 8] {
        use Feature::{
            ArrivalTime, Bags, DepartureTime, Duration, Flexibility, LayoverDuration, NumberOfStops, Price,
        };
        [DepartureTime, ArrivalTime, Duration, NumberOfStops, LayoverDuration, Price, Flexibility, Bags]
    }

    #[test]
    fn users_are_those_of_the_questionnaire() {
        let personality = PersonalityConfig::default();
        let config = |mapping| TraitFlightsConfig { mapping, ..TraitFlightsConfig::default() };
        let sizes = |mapping| -> Vec<usize> {
            let world = world(&config(mapping), &personality).unwrap();
            world.factors().iter().map(|factor| factor.prior.len()).collect()
        };
        assert_eq!(sizes(Mapping::Coupled), [5, 5, 125]);
        assert_eq!(sizes(Mapping::Single(Trait::Extraversion)), [5; 5]);
        assert_eq!(sizes(Mapping::Grounded), [3125]);
        let error = world(&TraitFlightsConfig { items: 51, ..Default::default() }, &personality);
        assert!(error.unwrap_err().to_string().contains("items is 51"));
    }
}
