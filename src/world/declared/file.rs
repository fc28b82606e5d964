//! The keys of a declared world's file.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use toml::{Spanned, Value};

use crate::world::choice::{ChoiceRule, SupposedRule};
use crate::world::items::Order;

/// A whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WorldFile {
    pub(super) format_version: Spanned<u32>,
    /// The file's name without `.toml` where absent.
    pub(super) name: Option<Spanned<String>>,
    /// Questions in an episode where the config does not say.
    pub(super) rounds: Option<Spanned<usize>>,
    /// As many users, drawn from the prior; every combination once where absent.
    pub(super) population: Option<Spanned<usize>>,
    pub(super) text: TextTable,

    #[serde(default)]
    pub(super) questionnaire: Option<Spanned<QuestionnaireTable>>,
    #[serde(default)]
    pub(super) factors: Vec<Spanned<FactorTable>>,
    #[serde(default)]
    pub(super) questions: Vec<Spanned<QuestionTable>>,

    #[serde(default)]
    pub(super) choice: Option<Spanned<ChoiceTable>>,
    #[serde(default)]
    pub(super) features: Vec<Spanned<FeatureTable>>,
    #[serde(default)]
    pub(super) hypotheses: Vec<Spanned<HypothesisTable>>,
}

/// `[text]`: templates.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TextTable {
    pub(super) opening: Spanned<String>,
    pub(super) question: Option<Spanned<String>>,
    pub(super) reply: Option<Spanned<String>>,
    pub(super) feedback: Spanned<String>,
}

/// `[questionnaire]`: what holds for all questions that do not say otherwise.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuestionnaireTable {
    #[serde(default)]
    pub(super) order: Order,
    pub(super) options: Option<Spanned<Vec<String>>>,
    /// Options are steps on a scale.
    #[serde(default)]
    pub(super) ordered: bool,
    pub(super) lapse: Option<Spanned<f64>>,
    pub(super) teacher_lapse: Option<Spanned<f64>>,
    pub(super) slope: Option<Spanned<f64>>,
    pub(super) thresholds: Option<Spanned<Vec<f64>>>,
}

/// One of `[[factors]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FactorTable {
    pub(super) name: Spanned<String>,
    /// Names or numbers.
    pub(super) values: Spanned<Vec<Value>>,
    pub(super) prior: Option<Spanned<Vec<f64>>>,
}

/// One of `[[questions]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuestionTable {
    pub(super) text: String,
    /// A factor's name or several.
    pub(super) on: Option<Spanned<Value>>,
    pub(super) options: Option<Spanned<Vec<String>>>,
    pub(super) ordered: Option<bool>,
    pub(super) table: Option<Spanned<Rows>>,
    pub(super) graded: Option<Spanned<GradedTable>>,
}

/// `graded` of a question.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GradedTable {
    pub(super) slope: Option<Spanned<f64>>,
    pub(super) thresholds: Option<Spanned<Vec<f64>>>,
    #[serde(default)]
    pub(super) reversed: bool,
    #[serde(default)]
    pub(super) loadings: BTreeMap<String, Spanned<f64>>,
}

/// Probabilities of the options, or such rows by the values of a factor.
pub(super) enum Rows {
    Probs(Vec<f64>),
    ByValue(Vec<(String, Spanned<Rows>)>),
}

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rows, D::Error> {
        struct RowsVisitor;
        impl<'de> Visitor<'de> for RowsVisitor {
            type Value = Rows;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of probabilities, or a table of them by a factor's values")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Rows, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(Rows::Probs)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Rows, A::Error> {
                let mut rows = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    rows.push(entry);
                }
                Ok(Rows::ByValue(rows))
            }
        }
        deserializer.deserialize_any(RowsVisitor)
    }
}

/// `[choice]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChoiceTable {
    /// Of the options of a round.
    pub(super) labels: Option<Spanned<Vec<String>>>,
    pub(super) rule: Option<Spanned<ChoiceRule>>,
    pub(super) teacher_likelihood: Option<Spanned<SupposedRule>>,
    /// That a user may give to a feature.
    pub(super) weights: Option<Spanned<Vec<f64>>>,
    /// How many questions come first, in a world that has questions too.
    pub(super) after: Option<Spanned<usize>>,
    /// The templates of this stage, likewise.
    pub(super) text: Option<TextTable>,
}

/// One of `[[features]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FeatureTable {
    pub(super) name: Spanned<String>,
    pub(super) label: Option<String>,
    /// A list of texts, or a range.
    pub(super) levels: Spanned<Levels>,
    pub(super) values: Option<Spanned<Vec<f64>>>,
    pub(super) weights: Option<Spanned<Vec<f64>>>,
    /// What a user gives to it, as an expression of the factors, in a world that has questions too.
    pub(super) weight: Option<Spanned<String>>,
}

/// The levels of a feature.
pub(super) enum Levels {
    List(Vec<String>),
    Range(LevelRange),
}

/// Evenly spaced numbers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LevelRange {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) count: usize,
    /// A template with `level`.
    pub(super) text: String,
}

impl<'de> Deserialize<'de> for Levels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Levels, D::Error> {
        struct LevelsVisitor;
        impl<'de> Visitor<'de> for LevelsVisitor {
            type Value = Levels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts, or { from, to, count, text }")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Levels, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(Levels::List)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Levels, A::Error> {
                LevelRange::deserialize(de::value::MapAccessDeserializer::new(map)).map(Levels::Range)
            }
        }
        deserializer.deserialize_any(LevelsVisitor)
    }
}

/// One of `[[hypotheses]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HypothesisTable {
    pub(super) name: Spanned<String>,
    pub(super) prior: Option<Spanned<f64>>,
    /// By the features' names; 0 where a feature is missing.
    pub(super) weights: BTreeMap<Spanned<String>, f64>,
}
