//! What is measured of a single prediction; everything else is a mean of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::LOG_FLOOR;
use super::margin::{CLEAR_MARGIN, margin};
use super::numeric::{argmax, entropy};
use super::prediction::Prediction;

/// Means by measure: those that have an answer to be measured on.
pub type Means = BTreeMap<Measure, f64>;

/// A measure of a prediction. Its name in result files is the variant's in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Whether the most probable option is the truth.
    Accuracy,
    /// Whether the most probable option is the teacher's most probable one.
    Agreement,
    /// The same where the teacher's margin is above [`CLEAR_MARGIN`], so that its choice is no near-tie.
    AgreementWhenClear,
    /// KL(teacher ‖ prediction) over the options, in nats.
    Kl,
    /// `kl` minus log `option_mass`: what the loss over the whole vocabulary goes by.
    KlVocabulary,
    /// Minus log of the probability that the truth was given, in nats.
    LogLoss,
    /// `log_loss` minus the teacher's: its mean is what acting on the prediction instead of the teacher's costs.
    ExcessLogLoss,
    /// Entropy of the prediction, in nats.
    Entropy,
    /// Distance of `entropy` from the teacher's.
    EntropyError,
    /// `entropy` minus the teacher's: below zero is over-confidence.
    EntropyBias,
    /// Probability of the most probable option.
    TopProbability,
    /// Mass that the whole vocabulary leaves to the options.
    OptionMass,
    /// Squared distance between the prediction and the truth as a one-hot vector, summed over options.
    Brier,
}

impl Measure {
    /// All measures.
    pub const ALL: [Measure; 13] = [
        Measure::Accuracy,
        Measure::Agreement,
        Measure::AgreementWhenClear,
        Measure::Kl,
        Measure::KlVocabulary,
        Measure::LogLoss,
        Measure::ExcessLogLoss,
        Measure::Entropy,
        Measure::EntropyError,
        Measure::EntropyBias,
        Measure::TopProbability,
        Measure::OptionMass,
        Measure::Brier,
    ];

    /// A few words for tables and plots.
    pub fn title(self) -> &'static str {
        match self {
            Measure::Accuracy => "accuracy",
            Measure::Agreement => "agreement with the teacher",
            Measure::AgreementWhenClear => "agreement beyond near-ties",
            Measure::Kl => "KL from the teacher (nats)",
            Measure::KlVocabulary => "KL over the vocabulary (nats)",
            Measure::LogLoss => "log loss (nats)",
            Measure::ExcessLogLoss => "log loss above the teacher's (nats)",
            Measure::Entropy => "entropy (nats)",
            Measure::EntropyError => "error of the entropy (nats)",
            Measure::EntropyBias => "entropy above the teacher's (nats)",
            Measure::TopProbability => "mass on the top option",
            Measure::OptionMass => "mass on the options",
            Measure::Brier => "Brier score",
        }
    }

    /// Whether the measure compares with the teacher, or with what the teacher cannot lack, and so says nothing
    /// about the teacher itself.
    pub fn is_against_teacher(self) -> bool {
        matches!(
            self,
            Measure::Agreement
                | Measure::AgreementWhenClear
                | Measure::Kl
                | Measure::KlVocabulary
                | Measure::ExcessLogLoss
                | Measure::EntropyError
                | Measure::EntropyBias
                | Measure::OptionMass
        )
    }

    /// Whether the measure needs a teacher to compare with: those that are [against](Self::is_against_teacher) one, but
    /// for what the model alone decides.
    pub fn needs_teacher(self) -> bool {
        self.is_against_teacher() && self != Measure::OptionMass
    }

    /// The measure of one prediction; none where it has no meaning, as accuracy without a truth.
    ///
    /// The excess log loss is infinite where the teacher gave the truth no probability: as targets that are not its
    /// predictive distribution do.
    pub fn of(self, prediction: &Prediction) -> Option<f64> {
        let indicator = |holds: bool| f64::from(u8::from(holds));
        let probs = prediction.probs();
        let teacher = &prediction.teacher;
        let agrees = || indicator(argmax(&probs) == argmax(teacher));
        let truth = prediction.truth;
        let log_loss = |truth: usize| -prediction.log_probs[truth];
        let entropy_bias = || entropy(&probs) - entropy(teacher);
        match self {
            Measure::Accuracy => truth.map(|truth| indicator(argmax(&probs) == truth)),
            Measure::Agreement => Some(agrees()),
            Measure::AgreementWhenClear => (margin(teacher) > CLEAR_MARGIN).then(agrees),
            Measure::Kl => Some(prediction.kl()),
            Measure::KlVocabulary => Some(prediction.kl() - prediction.log_option_mass),
            Measure::LogLoss => truth.map(log_loss),
            Measure::ExcessLogLoss => truth.map(|truth| match teacher[truth] {
                0.0 => f64::NEG_INFINITY,
                p => log_loss(truth) + p.ln().max(LOG_FLOOR),
            }),
            Measure::Entropy => Some(entropy(&probs)),
            Measure::EntropyError => Some(entropy_bias().abs()),
            Measure::EntropyBias => Some(entropy_bias()),
            Measure::TopProbability => Some(probs[argmax(&probs)]),
            Measure::OptionMass => Some(prediction.option_mass()),
            Measure::Brier => truth.map(|truth| {
                let target = |i| indicator(i == truth);
                probs.iter().enumerate().map(|(i, p)| (p - target(i)).powi(2)).sum()
            }),
        }
    }
}
