//! Replies that a model writes out by itself, token by token, where the dialogue has the teacher's.

use anyhow::{Context as _, Result};

use super::tails::Tails;
use crate::episode::{Episode, Role};
use crate::metrics::{Prediction, Reading, Reply, argmax};
use crate::model::decoder::Decoder;
use crate::tokens::Pipeline;

/// The longest reply in tokens: several times what an answer takes.
const MOST_TOKENS: usize = 48;

/// The most probable reply at every prediction of an episode, in the dialogue as taught. `predictions` are those of all
/// its answers. A reply ends where the model says so, by any of the tokenizer's added tokens.
///
/// # Errors
/// If the model fails, or the dialogue is not the predictions'.
pub fn replies(
    decoder: &Decoder,
    pipeline: &Pipeline,
    user: usize,
    episode: &Episode,
    predictions: &[Prediction],
) -> Result<Vec<Reply>> {
    let mut tails = Tails::new(MOST_TOKENS);
    let mut predictions = predictions.iter();
    let mut replies = Vec::new();
    let dialogue: Vec<(Role, &str)> =
        episode.messages.iter().map(|message| (message.role, message.content.as_str())).collect();
    for (i, message) in episode.messages.iter().enumerate() {
        let Some(answer) = message.answer.as_ref().filter(|answer| answer.weight > 0.0) else { continue };
        let prediction = predictions.next().context("an answer that was not predicted")?;
        if answer.belief.is_some() {
            continue;
        }
        let prompt = pipeline.prompt(&dialogue[..i])?;
        let (text, ended) = write(decoder, pipeline, &mut tails, prompt)?;
        replies.push(Reply {
            user,
            reading: Reading::of(&text, &message.content[..answer.start], &answer.options),
            ended,
            truth: answer.truth,
            teacher: argmax(prediction.teacher()),
            scored: argmax(&prediction.probs()),
        });
    }
    Ok(replies)
}

/// What the model writes after a prompt, and whether it came to an end.
fn write(
    decoder: &Decoder,
    pipeline: &Pipeline,
    tails: &mut Tails,
    prompt: Vec<u32>,
) -> Result<(String, bool)> {
    let tokenizer = pipeline.tokenizer();
    let room = decoder.max_tokens().saturating_sub(prompt.len());
    let (first, mut ids) = (prompt.len(), prompt);
    let mut ended = false;
    for _ in 0..MOST_TOKENS.min(room) {
        let next = tails.most_probable_after(decoder, &ids)?;
        if tokenizer.is_added(next) {
            ended = true;
            break;
        }
        ids.push(next);
    }
    Ok((tokenizer.decode(&ids[first..])?, ended))
}
