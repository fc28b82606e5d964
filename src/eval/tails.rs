//! Many short continuations of one dialogue: its tokens go through the model once, and every tail goes on from their keys
//! and values.

use anyhow::{Context as _, Result, ensure};
use candle_core::{DType, Device, Tensor};

use crate::model::decoder::{Decoder, Keep, Past, Tokens};
use crate::ops::kl::Targets;
use crate::tokens::{Sequence, SoftTarget};

/// How many times more tokens may be attended to than computed at a time: a past stands before every tail.
const ATTENDED: usize = 4;

/// A dialogue's tokens with their keys and values. All calls must be with the same model.
pub struct Tails {
    ids: Vec<u32>,
    past: Option<Past>,
    tokens_at_once: usize,
}

impl Tails {
    /// Nothing has gone through the model yet. At most `tokens_at_once` tokens do at a time, but for a longer tail.
    pub fn new(tokens_at_once: usize) -> Self {
        Self { ids: Vec::new(), past: None, tokens_at_once }
    }

    /// Takes up a dialogue; what it shares with the one before, from the beginning on, is not computed again.
    ///
    /// # Errors
    /// If the device fails, or there are no tokens.
    pub fn take_up(&mut self, decoder: &Decoder, ids: &[u32]) -> Result<()> {
        self.advance(decoder, ids).map(drop)
    }

    /// Takes up what all sequences begin with, but for the token that predicts an answer.
    ///
    /// # Errors
    /// If the device fails, or a sequence has no target.
    pub fn take_up_common(&mut self, decoder: &Decoder, sequences: &[Sequence]) -> Result<()> {
        let Some(first) = sequences.first() else { return Ok(()) };
        let mut common = first.input_ids.len();
        for sequence in sequences {
            let answer = sequence.targets.last().context("a tail without an answer")?.position as usize;
            common = common.min(shared(&first.input_ids, &sequence.input_ids)).min(answer);
        }
        let common = &first.input_ids[..common];
        if shared(&self.ids, common) == common.len() {
            return Ok(());
        }
        self.take_up(decoder, common)
    }

    /// The logits of what follows (vocabulary); the dialogue is then taken up.
    ///
    /// # Errors
    /// As [`take_up`](Self::take_up), or if the model's output is not a number.
    pub fn logits_after(&mut self, decoder: &Decoder, ids: &[u32]) -> Result<Vec<f32>> {
        let hidden = self.advance(decoder, ids)?;
        let logits = decoder.logits(&hidden)?.squeeze(0)?.to_dtype(DType::F32)?;
        let logits: Vec<f32> = logits.to_device(&Device::Cpu)?.to_vec1()?;
        ensure!(logits.iter().all(|logit| !logit.is_nan()), "the model's output is not a number");
        Ok(logits)
    }

    /// The token that most probably follows, the lowest among equals; the dialogue is then taken up.
    ///
    /// # Errors
    /// As [`logits_after`](Self::logits_after).
    pub fn most_probable_after(&mut self, decoder: &Decoder, ids: &[u32]) -> Result<u32> {
        let logits = self.logits_after(decoder, ids)?;
        let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
        Ok((1..logits.len()).fold(0, better) as u32)
    }

    /// Takes up a dialogue, and gives the hidden state of its last token (1, hidden).
    fn advance(&mut self, decoder: &Decoder, ids: &[u32]) -> Result<Tensor> {
        ensure!(!ids.is_empty(), "a dialogue without tokens");
        let same = shared(&self.ids, ids).min(ids.len() - 1);
        let new = &ids[same..];
        let positions: Vec<u32> = (same as u32..ids.len() as u32).collect();
        let boundaries = [0, new.len() as u32];
        let last = [new.len() as u32 - 1];
        let tokens = Tokens { input_ids: new, positions: &positions, boundaries: &boundaries };
        let past = cut(self.past.take(), same)?;
        // Whatever fails from here on leaves nothing taken up.
        self.ids.clear();
        let run = decoder.run_after(tokens, past.as_ref())?.only(&last);
        let (hidden, tape) = decoder.forward(&run, Keep::KeysValues)?;
        drop(run);
        self.past = Some(tape.into_past()?);
        self.ids = ids.to_vec();
        Ok(hidden)
    }

    /// The log-probabilities, among the whole vocabulary, of the options of each sequence's last target. What all the
    /// sequences share with the dialogue is not computed again.
    ///
    /// # Errors
    /// If the device fails, or a sequence has no target.
    pub fn last_answers(&self, decoder: &Decoder, sequences: &[Sequence]) -> Result<Vec<Vec<f64>>> {
        let mut tails = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            tails.push((sequence, sequence.targets.last().context("a tail without an answer")?));
        }
        // The token that predicts the answer goes through the model in any case.
        let own = |(sequence, target): &(&Sequence, &SoftTarget)| {
            shared(&self.ids, &sequence.input_ids).min(target.position as usize)
        };
        let same = tails.iter().map(own).min().unwrap_or(0);
        let past = cut(self.past.clone(), same)?;
        let mut answers = Vec::with_capacity(tails.len());
        let mut rest = tails.as_slice();
        while !rest.is_empty() {
            let (mut new, mut attended, mut count) = (0, 0, 0);
            for (_, target) in rest {
                let end = target.position as usize + 1;
                new += end - same;
                attended += end;
                let fits = new <= self.tokens_at_once && attended <= ATTENDED * self.tokens_at_once;
                if count > 0 && !fits {
                    break;
                }
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            self.answer(decoder, now, same, past.as_ref(), &mut answers)?;
            rest = later;
        }
        Ok(answers)
    }

    fn answer(
        &self,
        decoder: &Decoder,
        tails: &[(&Sequence, &SoftTarget)],
        same: usize,
        past: Option<&Past>,
        answers: &mut Vec<Vec<f64>>,
    ) -> Result<()> {
        let (mut input_ids, mut positions, mut boundaries, mut rows) =
            (Vec::new(), Vec::new(), vec![0], Vec::new());
        let (mut option_boundaries, mut ids, mut probs) = (vec![0], Vec::new(), Vec::new());
        for (sequence, target) in tails {
            // Nothing after the asked token matters to it.
            let end = target.position as usize + 1;
            input_ids.extend(&sequence.input_ids[same..end]);
            positions.extend(same as u32..end as u32);
            boundaries.push(input_ids.len() as u32);
            rows.push(input_ids.len() as u32 - 1);
            ids.extend(&target.token_ids);
            probs.extend(target.probs.iter().map(|&p| p as f32));
            option_boundaries.push(ids.len() as u32);
        }
        let tokens = Tokens { input_ids: &input_ids, positions: &positions, boundaries: &boundaries };
        let run = decoder.run_after(tokens, past)?.only(&rows);
        let (hidden, _) = decoder.forward(&run, Keep::Nothing)?;
        let targets = Targets {
            option_boundaries: &option_boundaries,
            ids: &ids,
            probs: &probs,
            weights: &vec![1.0; tails.len()],
            whole_vocabulary: &vec![true; tails.len()],
        };
        let (pending, _) = decoder.answer_kl(&hidden, targets, None)?;
        let found = pending.read(&targets)?;
        let of_tail = |b: &[u32]| found.option_log_probs[b[0] as usize..b[1] as usize].to_vec();
        answers.extend(option_boundaries.windows(2).map(of_tail));
        Ok(())
    }
}

/// How many tokens two sequences begin with alike.
fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The first `length` tokens of a past; none where there are none.
fn cut(past: Option<Past>, length: usize) -> Result<Option<Past>> {
    let Some(mut past) = past.filter(|_| length > 0) else { return Ok(None) };
    past.truncate(length)?;
    Ok(Some(past))
}
