//! What a model learns from option sets that tell more or less: its predictions on held-out sets before and after.

use anyhow::{Context as _, Result};
use rayon::prelude::*;

use super::in_depth::{Chosen, Looking};
use super::tails::Tails;
use crate::metrics::{Learnt, Measure, Prediction};
use crate::teacher::{Aside, Asides, Moment, Replay};
use crate::tokens::Sequence;

/// Held-out sets on which learning is measured.
pub const TESTS: usize = 20;

/// What the model learns from the sets chosen for each episode, before the first round and after half of them;
/// `progress` gets the number of episodes done. What is too long for the model is left out.
///
/// # Errors
/// If an episode is not what the replayer's teacher teaches, or the model fails.
pub fn learnt_from_sets(
    looking: Looking,
    chosen: &[Chosen],
    progress: &dyn Fn(usize),
) -> Result<Vec<Learnt>> {
    let mut learner = Learner {
        looking,
        asides: Asides::new(looking.replayer, TESTS),
        tails: Tails::new(looking.tokens_at_once),
    };
    let mut learnt = Vec::new();
    for (i, one) in chosen.iter().enumerate() {
        let replay = looking.replayer.replay(one.episode)?;
        let mut rounds = vec![0, (replay.moments.len() - 1) / 2];
        rounds.dedup();
        for moment in rounds.into_iter().map(|rounds| &replay.moments[rounds]) {
            let found = learner.at(i, one, &replay, moment);
            learnt.extend(
                found.with_context(|| {
                    format!("episode {:?} after {} rounds", one.episode.id, moment.rounds)
                })?,
            );
        }
        progress(i + 1);
    }
    Ok(learnt)
}

struct Learner<'a> {
    looking: Looking<'a>,
    asides: Asides<'a>,
    tails: Tails,
}

/// The means over the held-out sets.
struct Level {
    log_prob: f64,
    accuracy: f64,
}

impl Learner<'_> {
    fn at(&mut self, number: usize, one: &Chosen, replay: &Replay, moment: &Moment) -> Result<Vec<Learnt>> {
        let before = self.asides.ask(number, replay, moment, false);
        let Some((own, teachers)) = self.levels(&before)? else { return Ok(Vec::new()) };
        let sets = self.looking.config.sensitivity;
        let mut learnt = Vec::new();
        for set in self.asides.informative(number, replay, moment, sets, TESTS) {
            let Some((own_after, teachers_after)) = self.levels(&set.asides)? else { continue };
            learnt.push(Learnt {
                user: one.user,
                rounds: moment.rounds,
                gain: set.gain,
                expected_gain: set.expected_gain,
                own: own_after.log_prob - own.log_prob,
                teacher: teachers_after.log_prob - teachers.log_prob,
                own_accuracy: own_after.accuracy,
                teacher_accuracy: teachers_after.accuracy,
            });
        }
        Ok(learnt)
    }

    /// How well the model and the teacher do on held-out sets of one dialogue; none where there are none, or too long.
    fn levels(&mut self, asides: &[Aside]) -> Result<Option<(Level, Level)>> {
        let pipeline = self.looking.pipeline;
        let encoded: Vec<Option<Sequence>> =
            asides.par_iter().map(|aside| pipeline.encode_fitting(&aside.episode)).collect::<Result<_>>()?;
        let Some(sequences) = encoded.into_iter().collect::<Option<Vec<Sequence>>>() else { return Ok(None) };
        let Some(first) = sequences.first() else { return Ok(None) };
        self.tails.take_up(self.looking.decoder, &first.input_ids)?;
        let mut own = Vec::new();
        for (aside, log_probs) in
            asides.iter().zip(self.tails.last_answers(self.looking.decoder, &sequences)?)
        {
            let (answer, _) = aside.episode.answers().last().context("nothing was asked")?;
            own.push(Prediction::new(&log_probs, answer.predictive(), answer.truth, 0)?);
        }
        let teachers: Vec<Prediction> = own.iter().map(Prediction::of_teacher).collect();
        Ok(Some((level(&own), level(&teachers))))
    }
}

fn level(predictions: &[Prediction]) -> Level {
    let mean = |measure: Measure| {
        let values: Vec<f64> = predictions.iter().filter_map(|p| measure.of(p)).collect();
        values.iter().sum::<f64>() / values.len().max(1) as f64
    };
    Level { log_prob: -mean(Measure::LogLoss), accuracy: mean(Measure::Accuracy) }
}
