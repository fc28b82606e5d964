//! Episodes looked into: what a model would answer to held-out option sets, and says that it believes, after every round.
//!
//! Both are asked as [`Tails`] on copies of the dialogue, which goes on as if they had never been.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use rayon::prelude::*;

use super::config::EvalConfig;
use super::tails::Tails;
use crate::episode::Episode;
use crate::metrics::{Acted, Prediction};
use crate::model::decoder::Decoder;
use crate::teacher::{About, Aside, Asides, Moment, Replay, Replayer};
use crate::tokens::{Pipeline, Sequence};

/// All that is needed to look into episodes.
#[derive(Clone, Copy)]
pub struct Looking<'a> {
    /// What is asked.
    pub config: &'a EvalConfig,
    /// The model.
    pub decoder: &'a Decoder,
    /// Its tokens.
    pub pipeline: &'a Pipeline,
    /// Who taught the episodes.
    pub replayer: &'a Replayer<'a>,
    /// Tokens that go through the model at a time.
    pub tokens_at_once: usize,
}

/// An episode to look into.
#[derive(Clone, Copy)]
pub struct Chosen<'a> {
    /// Any number that is the same for the episodes of one user.
    pub user: usize,
    /// As it was taught.
    pub episode: &'a Episode,
    /// As the model sees it.
    pub sequence: &'a Sequence,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct InDepth {
    /// Answers to held-out option sets; observations are rounds.
    pub held_out: Vec<Prediction>,
    /// Stated beliefs.
    pub reports: Vec<Prediction>,
    /// The model's own answers, and what follows from the stated beliefs: to the held-out option sets where there are
    /// any, else to the dialogue's next question.
    pub acted: Vec<Acted>,
    /// The same of the teacher, whose stated beliefs are its marginals.
    pub teacher_acted: Vec<Acted>,
    /// Questions that were not asked because the model takes no dialogue so long.
    pub too_long: usize,
}

/// Looks into episodes; `progress` gets the number of episodes done.
///
/// # Errors
/// If an episode is not what the replayer's teacher teaches, or the model fails.
pub fn look_into(looking: Looking, chosen: &[Chosen], progress: &dyn Fn(usize)) -> Result<InDepth> {
    let mut looker = Looker {
        looking,
        asides: Asides::new(looking.replayer, looking.config.held_out_sets),
        tails: Tails::new(looking.tokens_at_once),
        at_the_beginning: HashMap::new(),
        found: InDepth::default(),
    };
    for (i, one) in chosen.iter().enumerate() {
        let replay = looking.replayer.replay(one.episode)?;
        looker.tails.take_up(looking.decoder, &one.sequence.input_ids)?;
        for moment in &replay.moments {
            let context = || format!("episode {:?} after {} rounds", one.episode.id, moment.rounds);
            looker.look(i, one, &replay, moment).with_context(context)?;
        }
        progress(i + 1);
    }
    Ok(looker.found)
}

struct Looker<'a> {
    looking: Looking<'a>,
    asides: Asides<'a>,
    tails: Tails,
    /// What was answered before anything was known, to the same tokens: the same for all users.
    at_the_beginning: HashMap<Vec<u32>, Vec<f64>>,
    found: InDepth,
}

impl Looker<'_> {
    fn look(&mut self, number: usize, one: &Chosen, replay: &Replay, moment: &Moment) -> Result<()> {
        let probes = self.looking.config.probes;
        let beliefs = probes > 0 && moment.rounds.is_multiple_of(probes);
        let asides = self.asides.ask(number, replay, moment, beliefs);
        let answers = self.answers(&asides, moment)?;

        // What the model states of each attribute, and the teacher.
        let mut stated: Vec<Option<(Vec<f64>, Vec<f64>)>> = vec![None; self.asides.beliefs()];
        let mut choices = Vec::new();
        for (aside, log_probs) in asides.iter().zip(answers) {
            let Some(log_probs) = log_probs else { continue };
            let (answer, bearing) = aside.episode.answers().last().context("nothing was asked")?;
            let observations = if aside.about == About::HeldOut { moment.rounds } else { bearing };
            let prediction = Prediction::new(&log_probs, answer.predictive(), answer.truth, observations)?
                .asked(one.user, moment.rounds + 1)
                .about(answer.belief.clone());
            match aside.about {
                About::Belief(i) => {
                    stated[i] = Some((prediction.probs(), prediction.teacher().to_vec()));
                    self.found.reports.push(prediction);
                }
                About::HeldOut => {
                    self.found.held_out.push(prediction.clone());
                    choices.push((aside, prediction));
                }
                About::Next => choices.push((aside, prediction)),
            }
        }
        // Only who has stated all beliefs can be taken at their word.
        let stated: Option<Vec<(Vec<f64>, Vec<f64>)>> = stated.into_iter().collect();
        if let Some(stated) = stated.filter(|stated| beliefs && !stated.is_empty()) {
            let (own, teachers): (Vec<_>, Vec<_>) = stated.into_iter().unzip();
            let (own, teachers) = (self.asides.believing(&own), self.asides.believing(&teachers));
            for (aside, direct) in choices {
                let follows = |believed| -> Result<Prediction> {
                    let probs = aside.predicted_by(believed);
                    direct.predicting(&probs.iter().map(|p| p.ln()).collect::<Vec<f64>>())
                };
                let stated = follows(&teachers)?;
                self.found.teacher_acted.push(Acted { stated, direct: direct.of_teacher() });
                self.found.acted.push(Acted { stated: follows(&own)?, direct });
            }
        }
        Ok(())
    }

    /// The log-probabilities of the options of each question; none where it is too long to be asked.
    fn answers(&mut self, asides: &[Aside], moment: &Moment) -> Result<Vec<Option<Vec<f64>>>> {
        let pipeline = self.looking.pipeline;
        let encoded: Vec<Option<Sequence>> =
            asides.par_iter().map(|aside| pipeline.encode_fitting(&aside.episode)).collect::<Result<_>>()?;
        self.found.too_long += encoded.iter().filter(|sequence| sequence.is_none()).count();
        let known = |sequence: &Sequence| self.at_the_beginning.get(&sequence.input_ids).cloned();
        let mut answers: Vec<Option<Vec<f64>>> =
            encoded.iter().map(|sequence| sequence.as_ref().and_then(known)).collect();
        let is_open = |i: &usize| encoded[*i].is_some() && answers[*i].is_none();
        let open: Vec<usize> = (0..asides.len()).filter(is_open).collect();
        let tails: Vec<Sequence> = open.iter().filter_map(|&i| encoded[i].clone()).collect();
        for ((i, answer), tail) in
            open.into_iter().zip(self.tails.last_answers(self.looking.decoder, &tails)?).zip(tails)
        {
            if moment.rounds == 0 {
                self.at_the_beginning.insert(tail.input_ids, answer.clone());
            }
            answers[i] = Some(answer);
        }
        Ok(answers)
    }
}
