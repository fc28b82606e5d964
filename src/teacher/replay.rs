//! Episodes gone through again: what the teacher believed and who the user was after every round, so that a model can be
//! asked there what the dialogue does not ask.

use anyhow::{Context as _, Result};

use super::config::TeacherConfig;
use super::drift::Transition;
use super::held_out::held_out_draws;
use super::posterior::Posterior;
use super::simulate::{Asked, Course, Simulation, assistant_says, user_says};
use crate::episode::{Answer, Episode, FORMAT_VERSION, Message, Role};
use crate::error::usage;
use crate::rng::{self, Stream};
use crate::world::{Question, World};

/// Two probabilities that differ by less are the same, computed elsewhere.
const SAME: f64 = 1e-6;

/// Goes through the episodes of a config and a seed again.
pub struct Replayer<'a> {
    course: Course<'a>,
    seed: u64,
}

/// An episode gone through again.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Everything that was asked, in order.
    pub asked: Vec<Asked>,
    /// Before the first round, and after each.
    pub moments: Vec<Moment>,
    messages: Vec<Message>,
}

/// What holds after a number of rounds, before anything else is asked.
#[derive(Clone, Debug)]
pub struct Moment {
    /// How many.
    pub rounds: usize,
    /// How many of [`Replay::asked`] came before, reports of beliefs too.
    pub asked: usize,
    /// What the teacher believes.
    pub posterior: Posterior,
    /// The user, as one hypothesis a factor.
    pub hypotheses: Vec<usize>,
}

impl<'a> Replayer<'a> {
    /// Of a config that has been checked against the world.
    pub fn new(config: &'a TeacherConfig, world: &'a World, seed: u64) -> Replayer<'a> {
        Replayer { course: Course::new(config, world), seed }
    }

    /// The world.
    pub fn world(&self) -> &World {
        self.course.world
    }

    /// How users change, where they do and the teacher allows for it.
    pub fn expected_change(&self) -> Option<&Transition> {
        self.course.expected_change()
    }

    /// Option sets shared by all users, the first ones of those that `teacher.json` is about, worded for the moment
    /// after `rounds` rounds; none where they cannot be drawn freely. In the shop by all episodes of the replay's category.
    pub fn held_out_sets(&self, replay: &Replay, rounds: usize, count: usize) -> Vec<Question> {
        let Some(first) = replay.asked.first() else { return Vec::new() };
        let draws = &mut held_out_draws(self.seed);
        self.world().option_sets_for(&first.question, rounds + 1, count, draws)
    }

    /// Goes through an episode again.
    ///
    /// # Errors
    /// A usage error if the config and the seed do not give this very episode.
    pub fn replay(&self, episode: &Episode) -> Result<Replay> {
        let number = episode.id.rsplit_once('-').and_then(|(_, number)| number.parse::<u32>().ok());
        let user = episode.user.parse::<u32>().ok().filter(|user| (*user as usize) < self.world().users());
        let (Some(user), Some(number)) = (user, number) else {
            return Err(usage(format!(
                "the {} world as configured has no episode {:?} of user {:?}: this is not the config that the episodes \
                 are from",
                self.world().name(),
                episode.id,
                episode.user
            )));
        };
        let mut moments: Vec<Moment> = Vec::new();
        let simulation = self.course.episode(self.seed, user as usize, number as usize, |posterior, user| {
            let (posterior, hypotheses) = (posterior.clone(), user.to_vec());
            moments.push(Moment { rounds: moments.len(), asked: 0, posterior, hypotheses });
        });
        check_same(episode, &simulation)?;
        let rounds = simulation.asked.iter().enumerate().filter(|(_, asked)| asked.belief.is_none());
        for (moment, (i, _)) in moments.iter_mut().skip(1).zip(rounds) {
            moment.asked = i + 1;
        }
        Ok(Replay { asked: simulation.asked, moments, messages: simulation.episode.messages })
    }

    /// The dialogue up to a moment, going on with a question and an answer to it, which alone is to be predicted. Nobody
    /// tells whether it was right. `truth` is what is true of the user, and `errors` the errors of a noisy oracle.
    pub fn ask(
        &self,
        replay: &Replay,
        moment: &Moment,
        question: &Question,
        truth: usize,
        belief: Option<&str>,
        errors: &mut Stream,
    ) -> Episode {
        let forecast = self.course.forecast(&moment.posterior, question, truth, errors);
        let asking = user_says(self.world(), &replay.asked[..moment.asked], question);
        let (reply, start) = assistant_says(self.world(), question, forecast.said, belief.is_some());
        let answer = Answer {
            start,
            options: question.labels.to_vec(),
            probs: forecast.probs,
            predictive: None,
            said: forecast.said,
            truth: Some(truth),
            weight: 1.0,
            observations: Some(forecast.record.observations),
            belief: belief.map(str::to_owned),
        };
        // Whose answers have been predicted is the whole dialogue's concern.
        let before = replay.messages[..2 * moment.asked].iter();
        let mut messages: Vec<Message> = before.map(|m| Message { answer: None, ..m.clone() }).collect();
        messages.push(Message { role: Role::User, content: asking, answer: None });
        messages.push(Message { role: Role::Assistant, content: reply, answer: Some(answer) });
        Episode {
            format_version: FORMAT_VERSION,
            id: format!("after {} rounds", moment.rounds),
            world: self.world().name().into(),
            user: String::new(),
            messages,
        }
    }

    /// The dialogue up to a moment, with one more question there, what the assistant decides for, and the user's answer;
    /// and the moment after it.
    pub fn go_on(
        &self,
        replay: &Replay,
        moment: &Moment,
        question: &Question,
        truth: usize,
        errors: &mut Stream,
    ) -> (Replay, Moment) {
        let said = self.course.forecast(&moment.posterior, question, truth, errors).said;
        let asked = Asked { question: question.clone(), said, truth, belief: None };
        let mut after = moment.clone();
        self.course.rules.observe(&mut after.posterior, question, truth);
        (after.rounds, after.asked) = (moment.rounds + 1, moment.asked + 1);
        let mut messages = replay.messages[..2 * moment.asked].to_vec();
        let mut all = replay.asked[..moment.asked].to_vec();
        messages.extend(self.exchange(&all, &asked));
        all.push(asked);
        (Replay { asked: all, moments: Vec::new(), messages }, after)
    }

    /// Option sets for the moment after `rounds` rounds, to choose informative ones from.
    pub fn candidates(&self, rounds: usize, count: usize) -> Vec<Question> {
        let draws = &mut rng::stream(self.seed, "replay.candidates", rounds as u64);
        self.world().option_sets(rounds + 1, count, draws)
    }

    /// How something is asked after all that was asked before, and the answer that says its option; without what was predicted.
    pub fn exchange(&self, before: &[Asked], asked: &Asked) -> [Message; 2] {
        let asking = user_says(self.world(), before, &asked.question);
        let (reply, _) = assistant_says(self.world(), &asked.question, asked.said, asked.belief.is_some());
        [(Role::User, asking), (Role::Assistant, reply)].map(|(role, content)| Message {
            role,
            content,
            answer: None,
        })
    }

    /// The errors of a noisy oracle at a moment of an episode.
    pub fn errors(&self, episode: usize, moment: &Moment) -> Stream {
        rng::stream(self.seed, "replay.errors", ((episode as u64) << 32) | moment.rounds as u64)
    }
}

impl Moment {
    /// What a user likes best of a set: what a noisy one would choose without the noise.
    pub fn best(&self, question: &Question) -> usize {
        question.behaviour.most_probable(self.hypotheses[question.factor])
    }
}

fn check_same(episode: &Episode, simulation: &Simulation) -> Result<()> {
    let again = &simulation.episode;
    let same_answer = |a: &Answer, b: &Answer| {
        let mut probs = a.predictive().iter().zip(b.predictive());
        (a.said, a.truth, &a.options, &a.belief) == (b.said, b.truth, &b.options, &b.belief)
            && a.weight == b.weight
            && probs.all(|(p, q)| (p - q).abs() < SAME)
    };
    let same = |(a, b): (&Message, &Message)| {
        let answers = match (&a.answer, &b.answer) {
            (Some(a), Some(b)) => same_answer(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        a.role == b.role && a.content == b.content && answers
    };
    let differs = episode.messages.iter().zip(&again.messages).position(|pair| !same(pair));
    let shorter = episode.messages.len().min(again.messages.len());
    let at = differs.or((episode.messages.len() != again.messages.len()).then_some(shorter));
    match at {
        None => Ok(()),
        Some(at) => Err(usage(format!(
            "episode {:?} is not what this config and its seed teach (from message {at} on): measure with the config that \
             the episodes are from",
            episode.id
        )))
        .context("the dialogues cannot be gone through again"),
    }
}
