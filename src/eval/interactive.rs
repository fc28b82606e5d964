//! Dialogues gone through again with the model's own recommendations in them: it is told of its own mistakes, where the
//! dialogues as taught have the teacher's.
//!
//! The questions, the user and the teacher's predictions are those of the episode: neither depends on what was said.

use anyhow::{Context as _, Result};

use super::in_depth::{Chosen, Looking};
use super::tails::Tails;
use crate::episode::{Episode, Message};
use crate::metrics::{Prediction, argmax};
use crate::teacher::Asked;

/// The model's predictions while it says what it holds most probable; `progress` gets the number of episodes done.
///
/// # Errors
/// If an episode is not what the replayer's teacher teaches, or the model fails.
pub fn interact(looking: Looking, chosen: &[Chosen], progress: &dyn Fn(usize)) -> Result<Vec<Prediction>> {
    let mut tails = Tails::new(looking.tokens_at_once);
    let mut predictions = Vec::new();
    for (i, one) in chosen.iter().enumerate() {
        let of_episode = one_dialogue(looking, one, &mut tails);
        predictions
            .extend(of_episode.with_context(|| format!("episode {:?}, interactively", one.episode.id))?);
        progress(i + 1);
    }
    Ok(predictions)
}

fn one_dialogue(looking: Looking, one: &Chosen, tails: &mut Tails) -> Result<Vec<Prediction>> {
    let replay = looking.replayer.replay(one.episode)?;
    let mut predictions = Vec::new();
    let mut dialogue = Episode { messages: Vec::new(), ..one.episode.clone() };
    let mut said: Vec<Asked> = Vec::new();
    let mut rounds = 0;
    for (asked, (answer, observations)) in replay.asked.iter().zip(one.episode.answers()) {
        let [asking, reply] = looking.replayer.exchange(&said, asked);
        dialogue.messages.push(asking);
        dialogue.messages.push(Message { answer: Some(answer.clone()), ..reply });
        let sequence = looking.pipeline.encode(&dialogue)?.sequence;
        let target = sequence.targets.last().context("a dialogue without an answer")?;
        tails.take_up(looking.decoder, &sequence.input_ids[..(target.position as usize).max(1)])?;
        let log_probs = tails.last_answers(looking.decoder, std::slice::from_ref(&sequence))?.remove(0);
        rounds += usize::from(answer.belief.is_none());
        let prediction = Prediction::new(&log_probs, answer.predictive(), answer.truth, observations)?
            .asked(one.user, rounds.max(1))
            .about(answer.belief.clone());

        let own = Asked { said: argmax(&prediction.probs()), ..asked.clone() };
        let [_, reply] = looking.replayer.exchange(&said, &own);
        dialogue.messages.pop();
        dialogue.messages.push(reply);
        said.push(own);
        predictions.push(prediction);
    }
    Ok(predictions)
}
