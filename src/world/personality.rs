//! Personality: a user answers items of the 50-item Big-Five questionnaire, and the assistant predicts each answer.
//!
//! A user has one of several levels on each of five traits; an answer follows Samejima's graded response model on
//! the item's trait, with a negatively keyed item answered x as often as a positively keyed one is answered 6 - x.
//! Where every item bears on one trait alone, the posterior over the 5^5 users is five independent ones over 5
//! levels; items that load on several traits make these one joint factor. The default parameters are those at which
//! this teacher scores the published .536 accuracy and 1.140 nats over 50 items.
//!
//! Items may differ: in slope and location by a seed, or each as told by `items`. Users may lapse. The teacher may
//! be mistaken about both.
//!
//! The assistant says a bare digit, its prediction. What the user truly answered stands only in the user's next
//! message.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::attribute::numbered;
use super::graded::{GradedItem, graded_response};
use super::ipip::{ITEMS, Key, Trait};
use super::items::{ItemParts, ItemWorld, ItemWorldParts};
use super::joint::Joint;
use super::text::TextTemplates;
use super::{Attribute, Factor, Likelihood, Reward, combinations};
use crate::error::usage;
use crate::rng;

pub use super::items::Order;

/// Answers go from 1 to this.
pub(super) const CATEGORIES: usize = 5;

pub(super) const TASK: &str = "Predict how I rate statements about myself, from 1 (very inaccurate) to 5 (very \
    accurate). Reply with the number only.";

/// `[teacher.personality]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PersonalityConfig {
    /// How sharply answers depend on the level: the discrimination of every item, or the mean over items.
    pub slope: f64,
    /// Where the answers 2, 3, 4 and 5 become more likely than not to be reached, in ascending order.
    pub thresholds: [f64; CATEGORIES - 1],
    /// The levels of a trait, in ascending order; every combination of levels over the five traits is a user.
    pub levels: Vec<f64>,
    /// In which order the items are asked.
    pub order: Order,
    /// The standard deviation of the items' slopes, drawn from a lognormal distribution of mean `slope`; 0: all the
    /// same.
    pub slope_sd: f64,
    /// The standard deviation of the items' locations, by which all thresholds of an item are shifted; 0: no shift.
    pub shift_sd: f64,
    /// What items differ by is a function of this seed and the item, and not of the run's seed: every run has the same
    /// questionnaire.
    pub item_seed: u64,
    /// How probable it is that a user answers at random, all answers equally probable.
    pub lapse: f64,
    /// Items that differ from all that.
    pub items: Vec<ItemConfig>,
    /// What the teacher supposes about the items.
    pub teacher_items: SupposedItems,
    /// The lapse that the teacher supposes, where it is not `lapse`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_lapse: Option<f64>,
}

/// One of `[[teacher.personality.items]]`: what is not given stays as it is for all items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemConfig {
    /// The item's number in the official order, from 1 to 50.
    pub number: usize,
    /// Its discrimination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slope: Option<f64>,
    /// Its thresholds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<[f64; CATEGORIES - 1]>,
    /// How much each trait counts besides the item's own, which counts 1: the answer depends on the weighted sum.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loadings: BTreeMap<Trait, f64>,
}

/// What the teacher supposes about the items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SupposedItems {
    /// What is true.
    #[default]
    Matched,
    /// That all have `slope` and `thresholds`, and load on their own trait alone.
    Homogeneous,
}

impl Default for PersonalityConfig {
    fn default() -> PersonalityConfig {
        PersonalityConfig {
            slope: 1.955,
            thresholds: [-1.084, -0.361, 0.361, 1.084],
            levels: vec![-2.0, -1.0, 0.0, 1.0, 2.0],
            order: Order::Shuffled,
            slope_sd: 0.0,
            shift_sd: 0.0,
            item_seed: 0,
            lapse: 0.0,
            items: Vec::new(),
            teacher_items: SupposedItems::Matched,
            teacher_lapse: None,
        }
    }
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
        let slope = |key: &str, slope: f64| {
            if slope.is_finite() && slope > 0.0 {
                return Ok(());
            }
            Err(usage(format!("teacher.personality.{key} is {slope}, it must be above 0")))
        };
        let thresholds = |key: &str, thresholds: &[f64]| {
            if increasing(thresholds) {
                return Ok(());
            }
            Err(usage(format!("teacher.personality.{key} {thresholds:?} must be numbers in ascending order")))
        };
        let probability = |key: &str, lapse: f64| {
            if (0.0..=1.0).contains(&lapse) {
                return Ok(());
            }
            Err(usage(format!("teacher.personality.{key} is {lapse}, it must be a probability")))
        };
        slope("slope", self.slope)?;
        thresholds("thresholds", &self.thresholds)?;
        if !increasing(&self.levels) || !(2..=100).contains(&self.levels.len()) {
            return Err(usage(format!(
                "teacher.personality.levels {:?} must be 2 to 100 numbers in ascending order",
                self.levels
            )));
        }
        for (key, sd) in [("slope_sd", self.slope_sd), ("shift_sd", self.shift_sd)] {
            if !(0.0..=100.0).contains(&sd) {
                return Err(usage(format!("teacher.personality.{key} is {sd}, it must be 0 to 100")));
            }
        }
        probability("lapse", self.lapse)?;
        self.teacher_lapse.map_or(Ok(()), |lapse| probability("teacher_lapse", lapse))?;
        for (i, item) in self.items.iter().enumerate() {
            if !(1..=ITEMS.len()).contains(&item.number) {
                return Err(usage(format!(
                    "teacher.personality.items[{i}].number is {}, items are numbered 1 to {}",
                    item.number,
                    ITEMS.len()
                )));
            }
            if self.items[..i].iter().any(|other| other.number == item.number) {
                return Err(usage(format!("teacher.personality.items has number {} twice", item.number)));
            }
            item.slope.map_or(Ok(()), |s| slope(&format!("items[{i}].slope"), s))?;
            item.thresholds.map_or(Ok(()), |t| thresholds(&format!("items[{i}].thresholds"), &t))?;
            if let Some((of, loading)) = item.loadings.iter().find(|(_, loading)| !loading.is_finite()) {
                return Err(usage(format!(
                    "teacher.personality.items[{i}].loadings.{} is {loading}, it must be a number",
                    of.name()
                )));
            }
        }
        Ok(())
    }

    /// The parameters of every item, in the official order.
    fn item_models(&self) -> Vec<ItemModel> {
        // Of a lognormal variable, from its mean and standard deviation.
        let variance = (self.slope_sd / self.slope).powi(2).ln_1p();
        let drawn = ITEMS.iter().enumerate().map(|(i, item)| {
            let mut draws = rng::stream(self.item_seed, "world.personality.items", i as u64);
            let slope = self.slope * (variance.sqrt() * draws.normal() - variance / 2.0).exp();
            let shift = self.shift_sd * draws.normal();
            let mut loadings = [0.0; Trait::ALL.len()];
            loadings[item.measures as usize] = 1.0;
            ItemModel { slope, thresholds: self.thresholds.map(|t| t + shift), loadings, key: item.key }
        });
        let mut models: Vec<ItemModel> = drawn.collect();
        for item in &self.items {
            let model = &mut models[item.number - 1];
            model.slope = item.slope.unwrap_or(model.slope);
            model.thresholds = item.thresholds.unwrap_or(model.thresholds);
            item.loadings.iter().for_each(|(of, loading)| model.loadings[*of as usize] = *loading);
        }
        models
    }
}

/// The graded response model of one item.
#[derive(Clone, Copy, Debug)]
struct ItemModel {
    slope: f64,
    thresholds: [f64; CATEGORIES - 1],
    loadings: [f64; Trait::ALL.len()],
    key: Key,
}

impl ItemModel {
    fn bears_on(&self) -> impl Iterator<Item = usize> {
        let loadings = self.loadings;
        (0..loadings.len()).filter(move |&t| loadings[t] != 0.0)
    }

    /// Of the answers under every hypothesis of a group of traits.
    fn likelihood(&self, joint: &Joint, group: usize, levels: &[f64]) -> Likelihood {
        let of_hypothesis = |hypothesis: usize| {
            let level = self.bears_on().map(|t| self.loadings[t] * levels[joint.value(t, hypothesis)]).sum();
            let mut answers = graded_response(self.slope, &self.thresholds, level);
            if self.key == Key::Negative {
                answers.reverse();
            }
            answers
        };
        let hypotheses = joint.factors[group].prior.len();
        Likelihood::from_log_probs(CATEGORIES, (0..hypotheses).flat_map(of_hypothesis).collect())
    }

    /// Where the item bears on one trait alone.
    fn graded(&self, joint: &Joint, levels: &[f64], lapse: f64) -> Option<GradedItem> {
        let mut on = self.bears_on();
        let (Some(of), None) = (on.next(), on.next()) else { return None };
        let hypotheses = 0..joint.factors[joint.group(of)].prior.len();
        Some(GradedItem {
            slope: self.slope,
            thresholds: self.thresholds.into(),
            loading: self.loadings[of],
            lapse,
            levels: hypotheses.map(|h| levels[joint.value(of, h)]).collect(),
        })
    }
}

/// What a user's traits can be, and how each item is answered.
pub(super) struct Questionnaire {
    /// One a trait, joined where items bear on several.
    pub(super) joint: Joint,
    /// In the official order.
    pub(super) items: Vec<ItemParts>,
    /// The traits.
    pub(super) attributes: Vec<Attribute>,
}

/// The questionnaire as configured; `together` are traits that something else bears on together.
///
/// # Errors
/// If the parameters make no graded response model, or join too many levels.
pub(super) fn questionnaire(config: &PersonalityConfig, together: &[usize]) -> Result<Questionnaire> {
    config.validate()?;
    let levels = config.levels.len();
    let traits =
        Trait::ALL.map(|t| Factor { name: t.name().into(), prior: vec![1.0 / levels as f64; levels] });
    let models = config.item_models();
    let supposed = match config.teacher_items {
        SupposedItems::Matched => models.clone(),
        SupposedItems::Homogeneous => {
            let plain =
                PersonalityConfig { slope_sd: 0.0, shift_sd: 0.0, items: Vec::new(), ..config.clone() };
            plain.item_models()
        }
    };
    let mut bears_on: Vec<Vec<usize>> = models.iter().map(|model| model.bears_on().collect()).collect();
    bears_on.push(together.to_vec());
    // An item whose own loading was set to 0 still belongs to its trait.
    bears_on.iter_mut().zip(ITEMS).for_each(|(on, item)| on.push(item.measures as usize));
    let joint = Joint::new(&traits, bears_on.iter().map(Vec::as_slice))
        .map_err(|message| usage(format!("items that load on several traits: {message}")))?;

    let labels: Arc<[String]> = (1..=CATEGORIES).map(|i| i.to_string()).collect();
    let teacher_lapse = config.teacher_lapse.unwrap_or(config.lapse);
    let matched = config.teacher_items == SupposedItems::Matched && teacher_lapse == config.lapse;
    let item = |i: usize| {
        let group = joint.group(ITEMS[i].measures as usize);
        let of = |model: &ItemModel, lapse| {
            Arc::new(model.likelihood(&joint, group, &config.levels).with_lapse(lapse))
        };
        let behaviour = of(&models[i], config.lapse);
        ItemParts {
            text: ITEMS[i].text.into(),
            labels: Arc::clone(&labels),
            group: ITEMS[i].measures as usize,
            factor: group,
            likelihood: if matched { Arc::clone(&behaviour) } else { of(&supposed[i], teacher_lapse) },
            behaviour,
            reward: Reward::Nearness,
            graded: supposed[i].graded(&joint, &config.levels, teacher_lapse),
        }
    };
    let items = (0..ITEMS.len()).map(item).collect();
    let attributes = Trait::ALL.iter().map(|of| attribute(*of, levels, &joint)).collect();
    Ok(Questionnaire { joint, items, attributes })
}

/// How high a trait is.
fn attribute(of: Trait, levels: usize, joint: &Joint) -> Attribute {
    let group = joint.group(of as usize);
    let hypotheses = 0..joint.factors[group].prior.len();
    Attribute {
        name: of.name().into(),
        factor: group,
        levels,
        level_of: hypotheses.map(|h| joint.value(of as usize, h) as u8).collect(),
        values: numbered(levels),
        ordered: true,
        ask: format!(
            "How high do you think I am on {}, on a scale from 1 (very low) to {levels} (very high)? Reply with the \
             number only.",
            of.name().replace('_', " ")
        ),
    }
}

/// The personality world; see the module's documentation.
///
/// # Errors
/// If the parameters make no graded response model, or join too many levels.
pub(super) fn world(config: &PersonalityConfig) -> Result<ItemWorld> {
    world_of(questionnaire(config, &[])?, config.order)
}

/// The world in which a questionnaire is asked.
///
/// # Errors
/// If there are too many users to be numbered.
pub(super) fn world_of(questionnaire: Questionnaire, order: Order) -> Result<ItemWorld> {
    let Questionnaire { joint, items, attributes } = questionnaire;
    let users = combinations(&joint.factors);
    if u32::try_from(users).is_err() {
        return Err(usage(format!(
            "the levels of {} traits make {users} users, at most {} can be told apart: give fewer levels",
            attributes.len(),
            u32::MAX
        )));
    }
    ItemWorld::new(ItemWorldParts {
        name: "personality".into(),
        rounds: None,
        population: None,
        order,
        factors: joint.factors,
        items,
        attributes,
        question: "Item {{ place }}: {{ text }}",
        text: TextTemplates {
            opening: &format!("{TASK}\n{{{{ question }}}}"),
            reply: "{{ label }}",
            feedback: "I answered {{ truth }}.\n{{ question }}",
        },
    })
    .map_err(|mistake| anyhow::anyhow!("the text of personality, {}: {}", mistake.key, mistake.message))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn bad_parameters_are_refused() {
        let message = |toml: &str| {
            let config: PersonalityConfig = toml::from_str(toml).unwrap();
            let error = world(&config).unwrap_err();
            assert!(error.downcast_ref::<crate::error::UsageError>().is_some());
            error.to_string()
        };
        assert!(message("slope = 0.0").contains("slope is 0"));
        assert!(message("slope = nan").contains("slope is NaN"));
        assert!(message("thresholds = [-1.0, 0.0, 0.0, 1.0]").contains("thresholds"));
        assert!(message("levels = [1.0]").contains("levels"));
        assert!(message("levels = [1.0, 0.0]").contains("ascending"));
        // 100⁵ users; 84⁵ are the last to have a number.
        let many =
            |levels: usize| format!("levels = {:?}", (0..levels).map(|i| i as f64).collect::<Vec<_>>());
        assert!(message(&many(100)).contains("10000000000 users"));
        assert!(message(&many(85)).contains("fewer levels"));
        assert!(world(&toml::from_str(&many(84)).unwrap()).is_ok());
        assert!(message("slope_sd = -0.1").contains("slope_sd is -0.1"));
        assert!(message("shift_sd = inf").contains("shift_sd is inf"));
        assert!(message("lapse = 1.1").contains("lapse is 1.1"));
        assert!(message("teacher_lapse = -1.0").contains("teacher_lapse is -1"));
        assert!(message("items = [{ number = 0 }]").contains("items[0].number is 0"));
        assert!(message("items = [{ number = 3 }, { number = 3 }]").contains("3 twice"));
        assert!(message("items = [{ number = 3, slope = -1.0 }]").contains("items[0].slope is -1"));
        assert!(
            message("items = [{ number = 3, loadings = { intellect = nan } }]").contains("intellect is NaN")
        );
        // Five traits of 100 levels, chained together.
        let levels: Vec<String> = (0..100).map(|i| format!("{i}.0")).collect();
        let chain =
            [(1, "agreeableness"), (2, "conscientiousness"), (3, "emotional_stability"), (4, "intellect")];
        let items: Vec<String> =
            chain.iter().map(|(n, t)| format!("{{ number = {n}, loadings = {{ {t} = 0.5 }} }}")).collect();
        let joined = message(&format!("levels = [{}]\nitems = [{}]", levels.join(", "), items.join(", ")));
        assert!(joined.contains("hypotheses"), "{joined}");
        assert!(toml::from_str::<PersonalityConfig>("slpe = 1").is_err());
        assert!(toml::from_str::<PersonalityConfig>("order = \"random\"").is_err());
        assert!(
            toml::from_str::<PersonalityConfig>("items = [{ number = 3, loadings = { wit = 1.0 } }]")
                .is_err()
        );
    }

    #[test]
    fn items_differ_as_told() {
        let config: PersonalityConfig = toml::from_str(
            "slope = 1.7\nslope_sd = 0.4\nshift_sd = 1.0\n\
             items = [{ number = 1, slope = 3.0, thresholds = [0.0, 1.0, 2.0, 3.0], loadings = { intellect = 0.5 } }]",
        )
        .unwrap();
        let models = config.item_models();
        assert_eq!((models[0].slope, models[0].thresholds), (3.0, [0.0, 1.0, 2.0, 3.0]));
        assert_eq!(models[0].loadings, [1.0, 0.0, 0.0, 0.0, 0.5]);
        // The moments over the items of many seeds: 10,000 draws.
        let many: Vec<ItemModel> = (0..200)
            .flat_map(|item_seed| {
                PersonalityConfig { item_seed, items: Vec::new(), ..config.clone() }.item_models()
            })
            .collect();
        let moments = |value: &dyn Fn(&ItemModel) -> f64| {
            let n = many.len() as f64;
            let mean = many.iter().map(value).sum::<f64>() / n;
            (mean, (many.iter().map(|m| (value(m) - mean).powi(2)).sum::<f64>() / n).sqrt())
        };
        let (slope, slope_sd) = moments(&|m| m.slope);
        assert!((slope - 1.7).abs() < 0.02 && (slope_sd - 0.4).abs() < 0.02, "{slope} {slope_sd}");
        let (shift, shift_sd) = moments(&|m| m.thresholds[0] - config.thresholds[0]);
        assert!(shift.abs() < 0.04 && (shift_sd - 1.0).abs() < 0.03, "{shift} {shift_sd}");
    }
}
