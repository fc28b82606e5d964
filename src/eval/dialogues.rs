//! The predictions of all answers of the dialogues as they are.

use std::collections::HashMap;

use anyhow::{Context as _, Result};

use crate::metrics::Prediction;
use crate::model::decoder::{Decoder, Keep, Tokens};
use crate::ops::kl::Targets;
use crate::tokens::{Batch, Sequence, TargetKind, micro_batches};

/// The model's prediction at every answer of `sequences`, in order; `progress` gets the number of sequences done.
///
/// # Errors
/// If the device fails, or the model's output is not a number.
pub fn predictions(
    decoder: &Decoder,
    sequences: &[Sequence],
    tokens_at_once: usize,
    progress: &dyn Fn(usize),
) -> Result<Vec<Prediction>> {
    let lengths: Vec<usize> =
        sequences.iter().map(|sequence| decoder.prefix_len() + sequence.len()).collect();
    let all: Vec<usize> = (0..sequences.len()).collect();
    let users = users(sequences);
    let mut predictions = Vec::new();
    let mut done = 0;
    for indices in micro_batches(&lengths, &all, tokens_at_once) {
        let chosen: Vec<(usize, &Sequence)> = indices.iter().map(|&i| (i, &sequences[i])).collect();
        predict(decoder, &chosen, &users, &mut predictions)?;
        done += indices.len();
        progress(done);
    }
    Ok(predictions)
}

/// A number for the user of each sequence; one whose user is not known counts as a user of its own.
pub fn users(sequences: &[Sequence]) -> Vec<usize> {
    let mut known: HashMap<&str, usize> = HashMap::new();
    let mut users = Vec::with_capacity(sequences.len());
    for (i, sequence) in sequences.iter().enumerate() {
        users.push(if sequence.user.is_empty() { i } else { *known.entry(&sequence.user).or_insert(i) });
    }
    users
}

fn predict(
    decoder: &Decoder,
    chosen: &[(usize, &Sequence)],
    users: &[usize],
    out: &mut Vec<Prediction>,
) -> Result<()> {
    let batch = Batch::new(chosen, TargetKind::default());
    let tokens =
        Tokens { input_ids: &batch.input_ids, positions: &batch.positions, boundaries: &batch.boundaries };
    if batch.targets() == 0 {
        return Ok(());
    }
    let run = decoder.run(tokens, None)?.only(&batch.target_rows);
    let (hidden, _) = decoder.forward(&run, Keep::Nothing)?;
    let whole_vocabulary = vec![true; batch.targets()];
    let targets = Targets {
        option_boundaries: &batch.option_boundaries,
        ids: &batch.target_ids,
        probs: &batch.target_probs,
        weights: &batch.weights,
        whole_vocabulary: &whole_vocabulary,
    };
    let (pending, _) = decoder.answer_kl(&hidden, targets, None)?;
    let rows = pending.read(&targets)?;
    let mut row = 0;
    for (number, sequence) in chosen {
        // Reports of beliefs are no rounds: nobody tells whether they were right.
        let mut rounds = 0;
        for (i, target) in sequence.targets.iter().enumerate() {
            let earlier = rounds;
            rounds += usize::from(target.belief.is_none());
            if target.weight <= 0.0 {
                continue;
            }
            let round = rounds.max(1);
            let options = batch.option_boundaries[row] as usize..batch.option_boundaries[row + 1] as usize;
            row += 1;
            let (truth, observations) =
                target.answer.as_ref().map_or((None, earlier), |a| (a.truth, a.observations));
            let prediction =
                Prediction::new(&rows.option_log_probs[options], target.predictive(), truth, observations)
                    .with_context(|| format!("episode {:?}, answer {}", sequence.id, i + 1))?;
            out.push(prediction.asked(users[*number], round).about(target.belief.clone()));
        }
    }
    Ok(())
}
