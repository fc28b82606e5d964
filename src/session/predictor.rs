//! A model's predictions at the end of dialogues that begin alike.

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Device};

use crate::episode::{Episode, FORMAT_VERSION, Message};
use crate::model::decoder::{Decoder, Keep, Past, Tokens};
use crate::tokens::Pipeline;

/// Tokens of continuations that go through the model at once.
const TOKENS_AT_ONCE: usize = 4096;

/// A model that keeps what it has read, so that a dialogue that goes on is not read again.
pub struct Predictor {
    pipeline: Pipeline,
    decoder: Decoder,
    /// The tokens whose keys and values are kept.
    ids: Vec<u32>,
    past: Option<Past>,
}

/// What a model predicts for one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// The distribution over the options, renormalised.
    pub probs: Vec<f64>,
    /// The mass that the whole vocabulary leaves to the options.
    pub option_mass: f64,
}

/// A dialogue up to the token that an answer begins with.
struct Prompt {
    ids: Vec<u32>,
    /// The token of each option.
    options: Vec<u32>,
}

impl Predictor {
    /// A model with its tokenizer.
    pub fn new(pipeline: Pipeline, decoder: Decoder) -> Self {
        Self { pipeline, decoder, ids: Vec::new(), past: None }
    }

    /// What the model would say where the last message of each dialogue has its answer. What the dialogues have in common
    /// goes through the model once, and not at all where it did before.
    ///
    /// # Errors
    /// If a dialogue does not fit the model or its last message has no answer, or the device fails.
    pub fn predict(&mut self, dialogues: &[Vec<Message>]) -> Result<Vec<Predicted>> {
        let prompts = dialogues.iter().map(|d| self.prompt(d)).collect::<Result<Vec<_>>>()?;
        let Some(first) = prompts.first() else { return Ok(Vec::new()) };
        let same = |prompt: &Prompt| common(&prompt.ids, &first.ids);
        // At least one token of each is left to be read, after which the answer comes.
        let shared = prompts.iter().map(|p| same(p).min(p.ids.len() - 1)).min().unwrap_or(0);
        self.read(&first.ids[..shared])?;
        let mut predicted = Vec::with_capacity(prompts.len());
        let mut rest = prompts.as_slice();
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = |p: &&Prompt| {
                tokens += p.ids.len() - shared;
                tokens <= TOKENS_AT_ONCE
            };
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            predicted.extend(self.finish(now, shared)?);
            rest = later;
        }
        Ok(predicted)
    }

    fn prompt(&self, dialogue: &[Message]) -> Result<Prompt> {
        let episode = Episode {
            format_version: FORMAT_VERSION,
            id: "live".into(),
            world: String::new(),
            user: String::new(),
            messages: dialogue.to_vec(),
        };
        let mut sequence = self.pipeline.encode(&episode)?.sequence;
        let target = sequence.targets.pop().context("the last message has no answer")?;
        sequence.input_ids.truncate(target.position as usize + 1);
        Ok(Prompt { ids: sequence.input_ids, options: target.token_ids })
    }

    /// Keeps the keys and values of exactly `ids`.
    fn read(&mut self, ids: &[u32]) -> Result<()> {
        let mut known = common(&self.ids, ids);
        // Where this fails half-way, nothing is kept.
        self.ids.clear();
        let mut past = self.past.take().filter(|_| known > 0);
        if let Some(past) = &mut past {
            past.truncate(known)?;
        } else {
            known = 0;
        }
        if ids.len() > known {
            let (positions, last) = (positions(known, ids.len()), [(ids.len() - known) as u32 - 1]);
            let boundaries = [0, (ids.len() - known) as u32];
            let tokens = Tokens { input_ids: &ids[known..], positions: &positions, boundaries: &boundaries };
            let run = self.decoder.run(tokens, None)?.only(&last);
            let run = match &past {
                Some(past) => run.after(past),
                None => run,
            };
            let (_, tape) = self.decoder.forward(&run, Keep::KeysValues)?;
            drop(run);
            past = Some(tape.into_past()?);
        }
        self.past = past;
        self.ids = ids.to_vec();
        Ok(())
    }

    /// The predictions at the ends of `prompts`, whose first `shared` tokens have been read.
    fn finish(&self, prompts: &[Prompt], shared: usize) -> Result<Vec<Predicted>> {
        let (mut input_ids, mut all_positions, mut boundaries) = (Vec::new(), Vec::new(), vec![0]);
        for prompt in prompts {
            input_ids.extend_from_slice(&prompt.ids[shared..]);
            all_positions.extend(positions(shared, prompt.ids.len()));
            boundaries.push(input_ids.len() as u32);
        }
        let ends: Vec<u32> = boundaries[1..].iter().map(|end| end - 1).collect();
        let tokens = Tokens { input_ids: &input_ids, positions: &all_positions, boundaries: &boundaries };
        let run = self.decoder.run(tokens, None)?.only(&ends);
        let run = match &self.past {
            Some(past) => run.after(past),
            None => run,
        };
        let (hidden, _) = self.decoder.forward(&run, Keep::Nothing)?;
        let logits = self.decoder.logits(&hidden)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let logits: Vec<Vec<f32>> = logits.to_vec2()?;
        prompts.iter().zip(&logits).map(|(prompt, logits)| predicted(logits, &prompt.options)).collect()
    }
}

/// The tokens that two sequences begin with alike.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn positions(from: usize, to: usize) -> Vec<u32> {
    (from as u32..to as u32).collect()
}

fn predicted(logits: &[f32], options: &[u32]) -> Result<Predicted> {
    ensure!(logits.iter().all(|logit| !logit.is_nan()), "the model's output is not a number");
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    // Against the best option, so that options far below the rest keep their proportions.
    let of: Vec<f64> = options.iter().map(|&id| f64::from(logits[id as usize])).collect();
    let best = of.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = of.iter().map(|logit| (logit - best).exp()).sum();
    Ok(Predicted {
        probs: of.iter().map(|logit| (logit - best).exp() / sum).collect(),
        option_mass: (best - max).exp() * sum / total,
    })
}
