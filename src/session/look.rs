//! What there is to see at one place of a live dialogue.

use anyhow::Result;
use serde::Serialize;

use super::predictor::Predictor;
use crate::episode::Message;
use crate::rng;
use crate::teacher::{Interview, Session, Sessions, implied_belief};
use crate::world::{Attribute, Question};

/// What teacher and model think at one place of the dialogue.
#[derive(Clone, Debug, Serialize)]
pub struct Look {
    /// What the user is told before the first question.
    pub task: String,
    /// How many answers were given.
    pub answers: usize,
    /// How many there can be.
    pub rounds: usize,
    /// The question that waits; none where the session is over.
    pub question: Option<Asked>,
    /// One an attribute.
    pub beliefs: Vec<BeliefAt>,
    /// The entropy of the teacher's posterior over all that can be true of the user, in nats.
    pub entropy: f64,
    /// Answers that nobody of the world could have given.
    pub ignored: usize,
}

/// A question with what is predicted for it.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    /// How it reads.
    pub text: String,
    /// Its options.
    pub labels: Vec<String>,
    /// What its answer is expected to tell, in nats.
    pub expected_gain: f64,
    /// The teacher's predictive distribution.
    pub teacher: Vec<f64>,
    /// The model's, renormalised over the options.
    pub model: Option<Vec<f64>>,
    /// The mass that the model gives to the options.
    pub option_mass: Option<f64>,
}

/// What is believed about one attribute: distributions over its levels.
#[derive(Clone, Debug, Serialize)]
pub struct BeliefAt {
    /// The attribute.
    pub name: String,
    /// How the model is asked for it, which says what the levels mean.
    pub ask: String,
    /// What each level is called.
    pub values: Vec<String>,
    /// Whether its levels are steps on a scale.
    pub ordered: bool,
    /// The exact marginal.
    pub teacher: Vec<f64>,
    /// What the model acts as if it believed, see [`implied_belief`]; none where it is not looked for.
    pub implied: Option<Vec<f64>>,
    /// What the model says when it is asked on a copy of the dialogue.
    pub stated: Option<Vec<f64>>,
}

/// Questions by which a model's beliefs are found out, on copies of the dialogue that nobody answers.
pub struct Probes {
    /// Items of the bank by factor, as many as asked for.
    per_factor: usize,
    items: Vec<usize>,
    option_sets: Vec<Question>,
}

impl Probes {
    /// `count` questions a factor where there is a list of them, and six times as many option sets where these are drawn; 0
    /// for none. They are the same in all sessions.
    pub fn new(sessions: &Sessions, count: usize) -> Probes {
        let world = sessions.world();
        let mut draws = rng::stream(0, "session.probes", 0);
        let has_items = count > 0 && world.bank_rounds() > 0;
        Probes {
            per_factor: count,
            items: if has_items { world.bank(&mut draws) } else { Vec::new() },
            option_sets: world.option_sets(1, 6 * count, &mut draws),
        }
    }

    /// Those for a place of the dialogue: items that were not asked come first.
    pub fn at(&self, sessions: &Sessions, interview: &Interview) -> Vec<Question> {
        let world = sessions.world();
        let place = interview.asked().len() + 1;
        let was_asked = |item: usize| {
            let at = |(i, asked): (usize, &Question)| {
                world.item(item, i + 1).is_some_and(|question| question.text == asked.text)
            };
            interview.asked().iter().enumerate().any(at)
        };
        let mut order: Vec<(bool, usize)> = self.items.iter().map(|&item| (was_asked(item), item)).collect();
        order.sort_by_key(|(asked, _)| *asked);
        let mut left = vec![self.per_factor; world.factors().len()];
        let mut probes = Vec::new();
        for question in order.into_iter().filter_map(|(_, item)| world.item(item, place)) {
            if left[question.factor] > 0 {
                left[question.factor] -= 1;
                probes.push(question);
            }
        }
        probes.extend(self.option_sets.iter().map(|question| question.at(place)));
        probes
    }
}

/// The opening of the dialogue without the question that it ends with.
fn task(sessions: &Sessions, session: &Session) -> String {
    let Some(first) = session.interview().asked().first().or(session.question()) else {
        return String::new();
    };
    let opening = sessions.world().opening(first);
    opening.strip_suffix(first.text.as_str()).unwrap_or(&opening).trim_end().to_owned()
}

impl Look {
    /// At the place where a session stands.
    ///
    /// # Errors
    /// If the dialogue does not fit the model, or the device fails.
    pub fn at(
        sessions: &Sessions,
        session: &Session,
        model: Option<(&mut Predictor, &Probes)>,
    ) -> Result<Look> {
        let interview = session.interview();
        let posterior = interview.posterior();
        let mut look = Look {
            task: task(sessions, session),
            answers: interview.asked().len(),
            rounds: sessions.rounds(),
            question: session.question().map(|question| Asked {
                text: question.text.clone(),
                labels: question.labels.to_vec(),
                expected_gain: posterior.expected_gain(question),
                teacher: posterior.predictive(question),
                model: None,
                option_mass: None,
            }),
            beliefs: (sessions.attributes().iter())
                .map(|attribute| BeliefAt {
                    name: attribute.name.clone(),
                    ask: attribute.ask.clone(),
                    values: attribute.values.clone(),
                    ordered: attribute.ordered,
                    teacher: interview.belief(attribute),
                    implied: None,
                    stated: None,
                })
                .collect(),
            entropy: posterior.entropy(),
            ignored: posterior.ignored(),
        };
        if let Some((predictor, probes)) = model {
            look.ask_model(sessions, session, predictor, probes)?;
        }
        Ok(look)
    }

    /// All questions to the model are tails on one dialogue, read at once.
    fn ask_model(
        &mut self,
        sessions: &Sessions,
        session: &Session,
        predictor: &mut Predictor,
        probes: &Probes,
    ) -> Result<()> {
        let interview = session.interview();
        let probes = probes.at(sessions, interview);
        let is_scale = |attribute: &&Attribute| (2..=9).contains(&attribute.levels);
        let scales: Vec<&Attribute> = sessions.attributes().iter().filter(is_scale).collect();
        let mut dialogues: Vec<Vec<Message>> =
            session.question().map(|q| interview.asking(q)).into_iter().collect();
        dialogues.extend(scales.iter().map(|attribute| interview.asking_belief(attribute)));
        dialogues.extend(probes.iter().map(|question| interview.asking(question)));
        let mut predicted = predictor.predict(&dialogues)?.into_iter();

        if let Some((asked, own)) =
            self.question.as_mut().zip(session.question().and_then(|_| predicted.next()))
        {
            asked.option_mass = Some(own.option_mass);
            asked.model = Some(own.probs);
        }
        for attribute in scales {
            let stated = predicted.next().map(|own| own.probs);
            if let Some(belief) = self.beliefs.iter_mut().find(|belief| belief.name == attribute.name) {
                belief.stated = stated;
            }
        }
        let answers: Vec<Vec<f64>> = predicted.map(|own| own.probs).collect();
        let factors = sessions.world().factors();
        let implied: Vec<Option<Vec<f64>>> = (factors.iter().enumerate())
            .map(|(f, factor)| {
                let on = probes.iter().zip(&answers).filter(|(question, _)| question.factor == f);
                let on: Vec<(&Question, &[f64])> = on.map(|(question, p)| (question, p.as_slice())).collect();
                implied_belief(&factor.prior, &on)
            })
            .collect();
        for (attribute, belief) in sessions.attributes().iter().zip(&mut self.beliefs) {
            belief.implied = implied[attribute.factor].as_ref().map(|of_factor| {
                let mut levels = vec![0.0; attribute.levels];
                for (level, q) in attribute.level_of.iter().zip(of_factor) {
                    levels[usize::from(*level)] += q;
                }
                levels
            });
        }
        Ok(())
    }
}
