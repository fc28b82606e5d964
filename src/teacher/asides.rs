//! What is asked aside, on copies of a dialogue that goes on as if it had never been asked: held-out option sets, and
//! beliefs about the user.

use std::collections::HashMap;

use super::informativity::Candidates;
use super::posterior::Posterior;
use super::replay::{Moment, Replay, Replayer};
use crate::episode::Episode;
use crate::world::{Attribute, Question};

/// The questions that may be asked aside in the episodes of one teacher.
pub struct Asides<'a> {
    pub(super) replayer: &'a Replayer<'a>,
    held_out_sets: usize,
    attributes: Vec<Attribute>,
    beliefs: Vec<Question>,
    /// The held-out option sets of a region of the world as they are worded after so many rounds.
    sets: HashMap<(usize, usize), Vec<Question>>,
    /// Option sets to choose informative ones from, likewise.
    pub(super) candidates: HashMap<usize, Candidates>,
}

/// A question asked aside.
#[derive(Clone, Debug)]
pub struct Aside {
    /// What it is about.
    pub about: About,
    /// The dialogue up to it, and an answer, which alone is to be predicted.
    pub episode: Episode,
    pub(super) question: Question,
}

/// What a question asked aside is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// A held-out option set.
    HeldOut,
    /// What the dialogue asks next.
    Next,
    /// The belief about the attribute of this index.
    Belief(usize),
}

impl<'a> Asides<'a> {
    /// With so many held-out option sets after each round, where they can be drawn freely.
    pub fn new(replayer: &'a Replayer<'a>, held_out_sets: usize) -> Asides<'a> {
        let attributes = replayer.world().attributes();
        let beliefs = attributes.iter().map(Attribute::question).collect();
        let (sets, candidates) = (HashMap::new(), HashMap::new());
        Asides { replayer, held_out_sets, attributes, beliefs, sets, candidates }
    }

    /// How many beliefs can be asked for.
    pub fn beliefs(&self) -> usize {
        self.beliefs.len()
    }

    /// What is asked at a moment of the `number`th episode: the held-out option sets; and with `beliefs`, all of them, and
    /// the dialogue's next question where there are no option sets. `number` makes the errors of a noisy oracle its own.
    pub fn ask(&mut self, number: usize, replay: &Replay, moment: &Moment, beliefs: bool) -> Vec<Aside> {
        let replayer = self.replayer;
        let mut errors = replayer.errors(number, moment);
        let mut ask = |about, question: &Question, truth, belief: Option<&str>| Aside {
            about,
            episode: replayer.ask(replay, moment, question, truth, belief, &mut errors),
            question: question.clone(),
        };
        let region = replay.asked.first().map_or(0, |first| replayer.world().region_of(&first.question));
        let draw = || replayer.held_out_sets(replay, moment.rounds, self.held_out_sets);
        let sets = self.sets.entry((region, moment.rounds)).or_insert_with(draw);
        let mut asides: Vec<Aside> =
            sets.iter().map(|set| ask(About::HeldOut, set, moment.best(set), None)).collect();
        if beliefs {
            for (i, (attribute, question)) in self.attributes.iter().zip(&self.beliefs).enumerate() {
                let level = attribute.level_of[moment.hypotheses[attribute.factor]];
                asides.push(ask(About::Belief(i), question, usize::from(level), Some(&attribute.name)));
            }
            let next = replay.asked[moment.asked..].iter().find(|asked| asked.belief.is_none());
            if let Some(next) = next.filter(|_| sets.is_empty() && !self.beliefs.is_empty()) {
                asides.push(ask(About::Next, &next.question, next.truth, None));
            }
        }
        asides
    }

    /// What one believes who holds these beliefs, one distribution over levels for each.
    pub fn believing(&self, stated: &[Vec<f64>]) -> Posterior {
        Posterior::of_stated(self.replayer.world(), stated)
    }
}

impl Aside {
    /// The prediction of one who believes this.
    pub fn predicted_by(&self, posterior: &Posterior) -> Vec<f64> {
        posterior.predictive(&self.question)
    }
}
