//! The teachers: the exact one, and rivals to compare it with.
//!
//! All keep a posterior over the same hypotheses and differ in how it starts and moves; the oracles look at the user
//! instead. [`Rules`] are what a config makes of this, once for all episodes.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::config::TeacherConfig;
use super::drift::Transition;
use super::posterior::Posterior;
use crate::error::usage;
use crate::metrics::log_sum_exp;
use crate::rng::Stream;
use crate::world::{Factor, Question, World};

/// The teachers there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The exact posterior.
    #[default]
    Bayes,
    /// Says and predicts, for certain, what the user will answer.
    Oracle,
    /// As the oracle, but every so often for another option, each as likely.
    NoisyOracle,
    /// The exact update of a prior that is not the users'.
    WrongPrior,
    /// Raises every likelihood to a power: over-confident or under-confident.
    Tempered,
    /// Discounts what was observed by every answer that follows.
    Forgetful,
}

impl Kind {
    /// As it stands in configs.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bayes => "bayes",
            Kind::Oracle => "oracle",
            Kind::NoisyOracle => "noisy-oracle",
            Kind::WrongPrior => "wrong-prior",
            Kind::Tempered => "tempered",
            Kind::Forgetful => "forgetful",
        }
    }
}

/// `[teacher.noisy-oracle]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NoisyOracleConfig {
    /// How often it takes another option than the user's.
    pub error_rate: f64,
}

impl Default for NoisyOracleConfig {
    fn default() -> NoisyOracleConfig {
        NoisyOracleConfig { error_rate: 0.4 }
    }
}

/// `[teacher.wrong-prior]`: the users' prior times a weight for the level of every attribute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WrongPriorConfig {
    /// The weight of level l (from 0) is e^(tilt·l): below 0, low levels are believed in.
    pub tilt: f64,
    /// Weights of an attribute's levels, from the lowest on, instead of the tilt's.
    pub levels: BTreeMap<String, Vec<f64>>,
}

impl Default for WrongPriorConfig {
    fn default() -> WrongPriorConfig {
        WrongPriorConfig { tilt: -1.0, levels: BTreeMap::new() }
    }
}

/// `[teacher.tempered]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TemperedConfig {
    /// The exponent of every likelihood: above 1 over-confident, below 1 under-confident.
    pub power: f64,
}

impl Default for TemperedConfig {
    fn default() -> TemperedConfig {
        TemperedConfig { power: 2.0 }
    }
}

/// `[teacher.forgetful]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForgetfulConfig {
    /// The evidence of k answers ago weighs discount^k.
    pub discount: f64,
}

impl Default for ForgetfulConfig {
    fn default() -> ForgetfulConfig {
        ForgetfulConfig { discount: 0.9 }
    }
}

/// How much an answer tells a teacher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weighing {
    /// Its likelihood counts to this power.
    pub power: f64,
    /// All evidence before it counts to this power from now on.
    pub discount: f64,
}

impl Weighing {
    /// Bayes' rule.
    pub const EXACT: Weighing = Weighing { power: 1.0, discount: 1.0 };

    /// Of a config's teacher.
    pub(super) fn of(config: &TeacherConfig) -> Weighing {
        match config.kind {
            Kind::Tempered => Weighing { power: config.tempered.power, ..Self::EXACT },
            Kind::Forgetful => Weighing { discount: config.forgetful.discount, ..Self::EXACT },
            Kind::Bayes | Kind::Oracle | Kind::NoisyOracle | Kind::WrongPrior => Self::EXACT,
        }
    }
}

/// What a config says about how a teacher starts, learns and predicts.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) oracle: Oracle,
    factors: Vec<Factor>,
    weighing: Weighing,
    expected_change: Option<Transition>,
}

impl Rules {
    /// Of a config that has been checked against the world.
    pub(super) fn new(config: &TeacherConfig, world: &World) -> Rules {
        let factors = match config.kind {
            Kind::WrongPrior => wrong_prior(&config.wrong_prior, world),
            _ => world.factors().to_vec(),
        };
        let expected_change =
            if config.drift.known { Transition::of(&config.drift, world, &factors) } else { None };
        Rules { oracle: Oracle::of(config), factors, weighing: Weighing::of(config), expected_change }
    }

    /// Before anything is observed.
    pub(super) fn prior(&self) -> Posterior {
        Posterior::prior(&self.factors)
    }

    /// Takes in what the user answered.
    pub(super) fn observe(&self, posterior: &mut Posterior, question: &Question, answer: usize) {
        let Weighing { power, discount } = self.weighing;
        posterior.forget(discount, &self.factors);
        posterior.observe_to_the_power(question, answer, power);
        if let Some(change) = &self.expected_change {
            posterior.advance(change);
        }
    }
}

/// A teacher that knows what will come, if it is one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Oracle {
    kind: Kind,
    error_rate: f64,
}

impl Oracle {
    pub(super) fn of(config: &TeacherConfig) -> Oracle {
        Oracle { kind: config.kind, error_rate: config.noisy_oracle.error_rate }
    }

    /// The option that it predicts and says; none of a teacher that knows only its posterior.
    pub(super) fn says(self, options: usize, truth: usize, draws: &mut Stream) -> Option<usize> {
        match self.kind {
            Kind::Oracle => Some(truth),
            Kind::NoisyOracle if draws.uniform() < self.error_rate => {
                let other = draws.below(options - 1);
                Some(if other < truth { other } else { other + 1 })
            }
            Kind::NoisyOracle => Some(truth),
            Kind::Bayes | Kind::WrongPrior | Kind::Tempered | Kind::Forgetful => None,
        }
    }
}

/// Every factor with the prior that the config makes of the users' own.
fn wrong_prior(config: &WrongPriorConfig, world: &World) -> Vec<Factor> {
    let attributes = world.attributes();
    let log_weight = |name: &str, level: u8| match config.levels.get(name) {
        Some(weights) => weights.get(usize::from(level)).map_or(f64::NEG_INFINITY, |w| w.ln()),
        None => config.tilt * f64::from(level),
    };
    let tilted = |(f, factor): (usize, &Factor)| {
        let here: Vec<_> = attributes.iter().filter(|a| a.factor == f).collect();
        let log_prior: Vec<f64> = (factor.prior.iter().enumerate())
            .map(|(h, p)| p.ln() + here.iter().map(|a| log_weight(&a.name, a.level_of[h])).sum::<f64>())
            .collect();
        let log_sum = log_sum_exp(&log_prior);
        Factor { name: factor.name.clone(), prior: log_prior.iter().map(|p| (p - log_sum).exp()).collect() }
    };
    world.factors().iter().enumerate().map(tilted).collect()
}

/// Checks the settings of every kind, and that the chosen one makes a difference in this world.
pub(super) fn check(config: &TeacherConfig, world: &World) -> Result<()> {
    check_settings(config)?;
    let refuse = |message: String| Err(usage(message));
    check_wrong_prior(&config.wrong_prior, config.kind == Kind::WrongPrior, world)?;
    if matches!(config.kind, Kind::Tempered | Kind::Forgetful) && world.answers_only_rule_out() {
        return refuse(format!(
            "teacher.kind is {:?}, but users of the {} world as configured never err, as the teacher supposes, or their \
             answers tell nothing: an answer can only rule users out, to any power, so this teacher would be the exact \
             one. Use users who err, or another kind (\"wrong-prior\", \"noisy-oracle\")",
            config.kind.name(),
            world.name()
        ));
    }
    Ok(())
}

/// Checks the settings of the kinds that every world has.
pub(super) fn check_settings(config: &TeacherConfig) -> Result<()> {
    let refuse = |message: String| Err(usage(message));
    let error_rate = config.noisy_oracle.error_rate;
    if !(0.0..=1.0).contains(&error_rate) {
        return refuse(format!("teacher.noisy-oracle.error_rate is {error_rate}, it must be in [0, 1]"));
    }
    let power = config.tempered.power;
    // Beyond this nothing is left to be uncertain about, but for rounding.
    if !(power > 0.0 && power <= 1000.0) {
        return refuse(format!("teacher.tempered.power is {power}, it must be above 0 and at most 1000"));
    }
    let discount = config.forgetful.discount;
    if !(discount > 0.0 && discount <= 1.0) {
        return refuse(format!("teacher.forgetful.discount is {discount}, it must be above 0 and at most 1"));
    }
    Ok(())
}

fn check_wrong_prior(config: &WrongPriorConfig, chosen: bool, world: &World) -> Result<()> {
    let refuse = |message: String| Err(usage(message));
    if !config.tilt.is_finite() {
        return refuse(format!("teacher.wrong-prior.tilt is {}, it must be a number", config.tilt));
    }
    let attributes = world.attributes();
    for (name, weights) in &config.levels {
        let key = format!("teacher.wrong-prior.levels.{name}");
        let Some(attribute) = attributes.iter().find(|a| &a.name == name) else {
            let known: Vec<&str> = attributes.iter().map(|a| a.name.as_str()).collect();
            return refuse(format!(
                "{key}: the {} world as configured has {}",
                world.name(),
                known.join(", ")
            ));
        };
        if weights.len() != attribute.levels {
            return refuse(format!("{key} has {} weights for {} levels", weights.len(), attribute.levels));
        }
        if weights.iter().any(|w| !(w.is_finite() && *w >= 0.0)) {
            return refuse(format!("{key} is {weights:?}: weights must not be negative"));
        }
    }
    if chosen && config.tilt == 0.0 && config.levels.is_empty() {
        return refuse(
            "teacher.wrong-prior.tilt is 0 and no levels are given: that is the true prior".into(),
        );
    }
    if chosen && attributes.is_empty() {
        return refuse(format!(
            "teacher.kind is \"wrong-prior\", but the {} world has no attributes to believe something wrong about",
            world.name()
        ));
    }
    let nothing_left = |factor: &Factor| factor.prior.iter().any(|p| !p.is_finite());
    if let Some(factor) = wrong_prior(config, world).iter().find(|f| nothing_left(f)) {
        return refuse(format!("teacher.wrong-prior.levels leave no {} possible at all", factor.name));
    }
    Ok(())
}
