//! The reasoner that explains a model's answers best: by how much it forgets, trusts answers and sharpens predictions.

use serde::{Deserialize, Serialize};

use super::probe::Estimate;

/// Fitted to a model's answers, by the least KL from them. Exact inference has 1 for discount, evidence weight and
/// temperature, and a lapse of 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FittedReasoner {
    /// How many answers were explained.
    pub answers: usize,
    /// Of how many users.
    pub users: usize,
    /// What was learnt from an answer weighs discount^k after k more: below 1 forgets, above 1 clings to what came first.
    pub discount: Fitted,
    /// The power that the likelihood of an answer is raised to: below 1 too little is learnt from it, above 1 too much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence_weight: Option<Fitted>,
    /// The prior's weight beside an answer's: one over the evidence weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior_weight: Option<Fitted>,
    /// Where an answer can only rule hypotheses out, so that no power of it says anything else: how often users are taken
    /// to answer at random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lapse: Option<Fitted>,
    /// Predictions are raised to the power of one over it: below 1 they are sharper than what is believed.
    pub temperature: Fitted,
    /// KL(model ‖ fitted reasoner), the mean over answers in nats: what stays unexplained.
    pub kl: Estimate,
    /// The same of exact inference.
    pub kl_exact: Estimate,
}

/// A fitted parameter with its 95 % interval over users.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fitted {
    /// The best value.
    pub value: f64,
    /// The interval's lower end; none where the answers do not determine the value, or it is at a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// Its upper end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// Whether the value is the smallest or the largest that is tried.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_limit: bool,
}

impl Fitted {
    /// One over it.
    #[must_use]
    pub fn inverse(self) -> Fitted {
        let inverse = |end: Option<f64>| end.map(|end| 1.0 / end);
        Fitted { value: 1.0 / self.value, low: inverse(self.high), high: inverse(self.low), ..self }
    }
}
