//! Markov chains: a user writes letter after letter, each depending on the one before, and every letter is to be
//! predicted.
//!
//! A user's chain is a row of probabilities for each letter that may have come before; the first letter of an episode
//! is uniform. One turn of the dialogue a letter, as in [`coins`](super::coins).

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::chain::{Family, RowsPrior, prior_and_source};
use super::process::{LETTERS, spell};
use crate::error::usage;

/// `[teacher.markov]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MarkovConfig {
    /// What the teacher assumes of the chain: square tables, the row of a letter says what comes after it.
    pub prior: Family<Vec<Vec<f64>>>,
    /// What the users' chains truly are; the prior where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Family<Vec<Vec<f64>>>>,
}

impl Default for MarkovConfig {
    fn default() -> MarkovConfig {
        MarkovConfig { prior: Family::Dirichlet(vec![vec![1.0; 3]; 3]), source: None }
    }
}

/// The Markov world; see the module's documentation.
#[derive(Clone, Debug)]
pub struct Markov {
    prior: RowsPrior,
    source: RowsPrior,
    pub(super) labels: Arc<[String]>,
}

impl Markov {
    /// Checks the config.
    ///
    /// # Errors
    /// If its tables are not square or their rows no distributions, or they have fewer than 2 or more than 26 letters.
    pub fn new(config: &MarkovConfig) -> Result<Markov> {
        let (prior, source) =
            prior_and_source("teacher.markov", &config.prior, config.source.as_ref(), Vec::clone)?;
        let (contexts, letters) = prior.shape();
        if contexts != letters {
            return Err(usage(format!(
                "teacher.markov.prior has {contexts} rows of {letters} letters: it must be square"
            )));
        }
        let labels = LETTERS[..letters].iter().map(char::to_string).collect();
        Ok(Markov { prior, source, labels })
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
        format!(
            "I write one letter after another. How likely each letter is depends on the letter before it. Predict every \
             letter: {}. Reply with the letter only.",
            spell(&self.labels)
        )
    }
}
