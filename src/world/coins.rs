//! Coins and dice: a user throws one and the same coin or die again and again, and every throw is to be predicted.
//!
//! One turn of the dialogue a throw, and a turn is a single symbol: the assistant says its prediction (`H`), the user
//! what came (`T`). Roles tell the two apart, so no other words are spent on them; and since the same token stands
//! for a symbol in both roles, a model finds the count that it needs in the very tokens that it predicts.
//!
//! The sources are those of Genewein et al. 2025 (arXiv 2505.17010): biases drawn from a Dirichlet distribution, one
//! fixed coin, and mixtures of fixed coins. `source` may differ from `prior`, so that a teacher can be watched where
//! its assumption is wrong.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::chain::{Family, RowsPrior, prior_and_source};
use super::process::{LETTERS, spell};

/// `[teacher.coins]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoinsConfig {
    /// What the teacher assumes of the coin: the distribution over heads and tails, or over the sides of a die.
    pub prior: Family<Vec<f64>>,
    /// What the users' coins truly are; the prior where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Family<Vec<f64>>>,
}

impl Default for CoinsConfig {
    fn default() -> CoinsConfig {
        CoinsConfig { prior: Family::Dirichlet(vec![1.0, 1.0]), source: None }
    }
}

/// The coins world; see the module's documentation.
#[derive(Clone, Debug)]
pub struct Coins {
    prior: RowsPrior,
    source: RowsPrior,
    pub(super) labels: Arc<[String]>,
}

impl Coins {
    /// Checks the config.
    ///
    /// # Errors
    /// If its numbers are no distributions, or have fewer than 2 or more than 26 symbols.
    pub fn new(config: &CoinsConfig) -> Result<Coins> {
        let (prior, source) =
            prior_and_source("teacher.coins", &config.prior, config.source.as_ref(), |row| {
                vec![row.clone()]
            })?;
        let (_, sides) = prior.shape();
        let labels = match sides {
            2 => vec!["H".to_owned(), "T".to_owned()],
            3..=9 => (1..=sides).map(|side| side.to_string()).collect(),
            _ => LETTERS[..sides].iter().map(char::to_string).collect(),
        };
        Ok(Coins { prior, source, labels: labels.into() })
    }

    /// What the teacher assumes.
    pub fn prior(&self) -> &RowsPrior {
        &self.prior
    }

    /// What the users truly are.
    pub fn source(&self) -> &RowsPrior {
        &self.source
    }

    pub(super) fn opening(&self) -> String {
        let sides = spell(&self.labels);
        match self.labels.len() {
            2 => "I flip one coin again and again and tell you each result. Predict every flip: H (heads) or T \
                  (tails). Reply with the letter only."
                .to_owned(),
            3..=9 => format!(
                "I roll one die again and again and tell you each result. Predict every roll: {sides}. Reply with the \
                 number only."
            ),
            _ => format!(
                "I roll one die with letters on its sides again and again and tell you each result. Predict every \
                 roll: {sides}. Reply with the letter only."
            ),
        }
    }
}
