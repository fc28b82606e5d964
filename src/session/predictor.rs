//! A model's predictions at the end of dialogues that begin alike.

use anyhow::{Result, ensure};

use crate::episode::{Episode, FORMAT_VERSION, Message};
use crate::eval::Tails;
use crate::metrics::log_sum_exp;
use crate::model::decoder::Decoder;
use crate::tokens::{Pipeline, Sequence};

/// Tokens of continuations that go through the model at once.
const TOKENS_AT_ONCE: usize = 4096;

/// A model that keeps what it has read, so that a dialogue that goes on is not read again.
pub struct Predictor {
    pipeline: Pipeline,
    decoder: Decoder,
    tails: Tails,
}

/// What a model predicts for one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// The distribution over the options, renormalised.
    pub probs: Vec<f64>,
    /// The mass that the whole vocabulary leaves to the options.
    pub option_mass: f64,
}

impl Predictor {
    /// A model with its tokenizer.
    pub fn new(pipeline: Pipeline, decoder: Decoder) -> Self {
        Self { pipeline, decoder, tails: Tails::new(TOKENS_AT_ONCE) }
    }

    /// What the model would say where the last message of each dialogue has its answer. What the dialogues have in common
    /// goes through the model once, and not at all where it did before.
    ///
    /// # Errors
    /// If a dialogue does not fit the model or its last message has no answer, or the device fails.
    pub fn predict(&mut self, dialogues: &[Vec<Message>]) -> Result<Vec<Predicted>> {
        let sequences = dialogues.iter().map(|d| self.encode(d)).collect::<Result<Vec<_>>>()?;
        self.tails.take_up_common(&self.decoder, &sequences)?;
        let answers = self.tails.last_answers(&self.decoder, &sequences)?;
        answers.iter().map(|log_probs| predicted(log_probs)).collect()
    }

    fn encode(&self, dialogue: &[Message]) -> Result<Sequence> {
        let episode = Episode {
            format_version: FORMAT_VERSION,
            id: "live".into(),
            world: String::new(),
            user: String::new(),
            messages: dialogue.to_vec(),
        };
        let sequence = self.pipeline.encode(&episode)?.sequence;
        ensure!(!sequence.targets.is_empty(), "the last message has no answer");
        Ok(sequence)
    }
}

fn predicted(option_log_probs: &[f64]) -> Result<Predicted> {
    ensure!(option_log_probs.iter().all(|l| !l.is_nan()), "the model's output is not a number");
    let log_mass = log_sum_exp(option_log_probs);
    Ok(Predicted {
        probs: option_log_probs.iter().map(|l| (l - log_mass).exp()).collect(),
        option_mass: log_mass.exp(),
    })
}
