//! One user, one episode.

use super::beliefs::Reports;
use super::config::{Targets, TeacherConfig};
use super::decision::{Decision, decide};
use super::drift::Transition;
use super::evidence::Questions;
use super::posterior::Posterior;
use super::rival::Rules;
use crate::episode::{Answer, Episode, FORMAT_VERSION, Message, Role};
use crate::metrics::{argmax, entropy};
use crate::rng::{self, Stream};
use crate::world::{Question, World, attribute};

/// An episode, and what is to be known about it.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// The dialogue.
    pub episode: Episode,
    /// How well each answer was predicted, whatever the episode gives as targets.
    pub answers: Vec<AnswerRecord>,
    /// How good each reported belief was, likewise.
    pub beliefs: Vec<BeliefRecord>,
    /// Answers that the posterior could not explain and so ignored.
    pub ignored: usize,
    /// Everything that was asked, in order, for beliefs too; empty where users are drawn sources.
    pub asked: Vec<Asked>,
}

/// Something that was asked in an episode, and what came of it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The question.
    pub question: Question,
    /// The option that the assistant said.
    pub said: usize,
    /// The option that is true of the user.
    pub truth: usize,
    /// The attribute, where a belief was asked for: the user says nothing to that.
    pub belief: Option<String>,
}

/// How well one answer was predicted by the teacher's whole predictive distribution.
#[derive(Clone, Copy, Debug)]
pub struct AnswerRecord {
    /// Earlier answers that bear on it.
    pub observations: usize,
    /// The probability of the most probable option.
    pub top_probability: f64,
    /// Whether the most probable option was the truth.
    pub correct: bool,
    /// Whether the option of highest expected reward was the truth.
    pub correct_expected_reward: bool,
    /// The entropy of the predictive distribution, in nats.
    pub entropy: f64,
}

/// How good one reported belief was.
#[derive(Clone, Debug)]
pub struct BeliefRecord {
    /// The attribute that it is about.
    pub belief: String,
    /// As of an answer; the "options" are the attribute's levels.
    pub answer: AnswerRecord,
}

/// Takes a user (an index into the world's grid) through an episode, the `number`th of this user.
///
/// The config must have passed [`TeacherConfig::validate`]. After every answer, and before the first, `observer` is
/// shown the posterior.
///
/// Everything random is a function of the seed, the user and the number, so a user's first episodes stay the same
/// when more are asked for; and what is asked at random and answered is the same whoever teaches.
pub fn simulate(
    config: &TeacherConfig,
    world: &World,
    seed: u64,
    user: usize,
    number: usize,
    mut observer: impl FnMut(&Posterior),
) -> Simulation {
    Course::new(config, world).episode(seed, user, number, |posterior, _| observer(posterior))
}

/// What all episodes of a config have in common.
pub(super) struct Course<'a> {
    config: &'a TeacherConfig,
    pub(super) world: &'a World,
    pub(super) rules: Rules,
    reports: Reports,
    change: Option<Transition>,
}

/// What the teacher makes of one question.
pub(super) struct Forecast {
    pub(super) probs: Vec<f64>,
    pub(super) said: usize,
    pub(super) record: AnswerRecord,
}

/// The random choices of one episode.
struct Draws {
    answers: Stream,
    targets: Stream,
    errors: Stream,
    beliefs: Stream,
    changes: Stream,
}

impl<'a> Course<'a> {
    /// Of a config that has been checked against the world.
    pub(super) fn new(config: &'a TeacherConfig, world: &'a World) -> Course<'a> {
        Course {
            config,
            world,
            rules: Rules::new(config, world),
            reports: Reports::new(&config.beliefs, world),
            change: Transition::of(&config.drift, world, world.factors()),
        }
    }

    /// How users change, where the teacher allows for it.
    pub(super) fn expected_change(&self) -> Option<&Transition> {
        self.change.as_ref().filter(|_| self.config.drift.known)
    }

    /// As [`simulate`]; the observer is also shown the user's present hypotheses.
    pub(super) fn episode(
        &self,
        seed: u64,
        user: usize,
        number: usize,
        mut observer: impl FnMut(&Posterior, &[usize]),
    ) -> Simulation {
        let index = ((user as u64) << 32) | number as u64;
        let stream = |purpose| rng::stream(seed, purpose, index);
        let mut draws = Draws {
            answers: stream("teacher.answers"),
            targets: stream("teacher.targets"),
            errors: stream("teacher.errors"),
            beliefs: Reports::draws(seed, index),
            changes: stream("teacher.changes"),
        };
        let mut questions = Questions::new(self.config, self.world, seed, index);
        let mut hypotheses = self.world.user(user);
        let mut posterior = self.rules.prior();
        let mut dialogue = Dialogue::new(self.world);
        let mut simulation = Simulation {
            episode: self.no_episode(user, number),
            answers: Vec::new(),
            beliefs: Vec::new(),
            ignored: 0,
            asked: Vec::new(),
        };
        observer(&posterior, &hypotheses);
        while let Some(question) = questions.next(&posterior) {
            let truth = self.world.answer(&hypotheses, &question, &mut draws.answers);
            let streams = (&mut draws.errors, &mut draws.targets);
            let (record, asked) = self.round(&mut dialogue, &mut posterior, &question, truth, streams);
            simulation.answers.push(record);
            simulation.asked.push(asked);
            if let Some(change) = &self.change {
                change.change(&mut hypotheses, &mut draws.changes);
            }
            observer(&posterior, &hypotheses);
            for (name, question) in self.reports.after(simulation.answers.len(), &mut draws.beliefs) {
                let (record, asked) =
                    self.report(&mut dialogue, question, name, &posterior, &hypotheses, &mut draws);
                simulation.beliefs.push(BeliefRecord { belief: name.clone(), answer: record });
                simulation.asked.push(asked);
            }
        }
        simulation.episode.messages = dialogue.messages;
        simulation.ignored = posterior.ignored();
        simulation
    }

    /// Takes a real user instead, whose answers are known and whose hypotheses are not. Nobody is asked for beliefs.
    /// `index` tells the episodes of one seed apart.
    pub(super) fn follow(
        &self,
        seed: u64,
        index: u64,
        (id, user): (&str, &str),
        answers: &[(Question, usize)],
    ) -> Simulation {
        let mut errors = rng::stream(seed, "teacher.errors", index);
        let mut targets = rng::stream(seed, "teacher.targets", index);
        let mut posterior = self.rules.prior();
        let mut dialogue = Dialogue::new(self.world);
        let mut records = Vec::with_capacity(answers.len());
        let mut asked = Vec::with_capacity(answers.len());
        for (question, truth) in answers {
            let streams = (&mut errors, &mut targets);
            let (record, what) = self.round(&mut dialogue, &mut posterior, question, *truth, streams);
            records.push(record);
            asked.push(what);
        }
        let world = self.world.name().to_string();
        let (id, user) = (id.to_string(), user.to_string());
        let episode =
            Episode { format_version: FORMAT_VERSION, id, world, user, messages: dialogue.messages };
        let ignored = posterior.ignored();
        Simulation { episode, answers: records, beliefs: Vec::new(), ignored, asked }
    }

    /// Asks a question, lets the assistant answer and the user tell what is true, and learns from that.
    fn round(
        &self,
        dialogue: &mut Dialogue,
        posterior: &mut Posterior,
        question: &Question,
        truth: usize,
        (errors, targets): (&mut Stream, &mut Stream),
    ) -> (AnswerRecord, Asked) {
        let forecast = self.forecast(posterior, question, truth, errors);
        let (record, said) = (forecast.record, forecast.said);
        dialogue.ask(question);
        let (content, start) = self.world.reply(question, said);
        dialogue.answer(content, self.answer(question, start, truth, forecast, targets));
        dialogue.tell(question, said, truth);
        self.rules.observe(posterior, question, truth);
        (record, Asked { question: question.clone(), said, truth, belief: None })
    }

    fn no_episode(&self, user: usize, number: usize) -> Episode {
        Episode {
            format_version: FORMAT_VERSION,
            id: format!("{}-{user:06}-{number}", self.world.name()),
            world: self.world.name().into(),
            user: user.to_string(),
            messages: Vec::new(),
        }
    }

    /// Asks the assistant for a belief; the user says nothing to it.
    fn report(
        &self,
        dialogue: &mut Dialogue,
        question: &Question,
        name: &str,
        posterior: &Posterior,
        hypotheses: &[usize],
        draws: &mut Draws,
    ) -> (AnswerRecord, Asked) {
        let truth = self.world.answer(hypotheses, question, &mut draws.beliefs);
        let forecast = self.forecast(posterior, question, truth, &mut draws.errors);
        let (record, said) = (forecast.record, forecast.said);
        dialogue.ask(question);
        let (content, start) = attribute::report(&question.labels[said]);
        let answer = self.answer(question, start, truth, forecast, &mut draws.targets);
        dialogue.answer(content, Answer { belief: Some(name.to_owned()), ..answer });
        dialogue.tell_nothing();
        (record, Asked { question: question.clone(), said, truth, belief: Some(name.to_owned()) })
    }

    pub(super) fn forecast(
        &self,
        posterior: &Posterior,
        question: &Question,
        truth: usize,
        errors: &mut Stream,
    ) -> Forecast {
        let mut probs = posterior.predictive(question);
        let (most_probable, best_reward) = match self.rules.oracle.says(probs.len(), truth, errors) {
            Some(option) => {
                probs = one_hot(probs.len(), option);
                (option, option)
            }
            None => (argmax(&probs), decide(Decision::ExpectedReward, posterior, question, &probs)),
        };
        let record = AnswerRecord {
            observations: posterior.observations(question.factor),
            top_probability: probs[most_probable],
            correct: most_probable == truth,
            correct_expected_reward: best_reward == truth,
            entropy: entropy(&probs),
        };
        let said = match self.config.decision {
            Decision::MostProbable => most_probable,
            Decision::ExpectedReward => best_reward,
        };
        Forecast { probs, said, record }
    }

    fn answer(
        &self,
        question: &Question,
        start: usize,
        truth: usize,
        forecast: Forecast,
        targets: &mut Stream,
    ) -> Answer {
        let Forecast { probs: predictive, said, record } = forecast;
        let target = match self.config.targets {
            Targets::Predictive => None,
            Targets::Argmax => Some(argmax(&predictive)),
            Targets::Sampled => Some(targets.categorical(&predictive)),
        };
        let (probs, predictive) = match target {
            Some(option) => (one_hot(predictive.len(), option), Some(predictive)),
            None => (predictive, None),
        };
        Answer {
            start,
            options: question.labels.to_vec(),
            probs,
            predictive,
            said,
            truth: Some(truth),
            weight: 1.0,
            observations: Some(record.observations),
            belief: None,
        }
    }
}

/// The messages so far, and what the user's next one has to say first.
#[derive(Clone)]
pub(super) struct Dialogue<'a> {
    world: &'a World,
    pub(super) messages: Vec<Message>,
    told: Told,
}

/// What the user says to the assistant's last message. What would be said to the last of all, nobody learns from.
#[derive(Clone)]
enum Told {
    Nothing,
    Answer {
        question: Question,
        said: usize,
        truth: usize,
    },
    /// Nothing, to a report of a belief; the last that was asked before it.
    AfterReport(Option<Question>),
}

impl<'a> Dialogue<'a> {
    pub(super) fn new(world: &'a World) -> Dialogue<'a> {
        Dialogue { world, messages: Vec::new(), told: Told::Nothing }
    }

    pub(super) fn ask(&mut self, next: &Question) {
        let content = match &self.told {
            Told::Answer { question, said, truth } => self.world.feedback(question, *said, *truth, next),
            Told::Nothing => self.world.opening(next),
            Told::AfterReport(before) => self.world.going_on(before.as_ref(), next),
        };
        self.messages.push(Message { role: Role::User, content, answer: None });
    }

    pub(super) fn answer(&mut self, content: String, answer: Answer) {
        self.messages.push(Message { role: Role::Assistant, content, answer: Some(answer) });
    }

    /// The user's next message begins with what is true.
    pub(super) fn tell(&mut self, question: &Question, said: usize, truth: usize) {
        self.told = Told::Answer { question: question.clone(), said, truth };
    }

    /// The user's next message is the next question alone.
    fn tell_nothing(&mut self) {
        self.told = Told::AfterReport(match std::mem::replace(&mut self.told, Told::Nothing) {
            Told::Nothing => None,
            Told::Answer { question, .. } => Some(question),
            Told::AfterReport(before) => before,
        });
    }
}

/// The user's message that asks `next` after all that was asked before.
pub(super) fn user_says(world: &World, before: &[Asked], next: &Question) -> String {
    let mut dialogue = Dialogue::new(world);
    if let Some(answer) = before.iter().rfind(|asked| asked.belief.is_none()) {
        dialogue.tell(&answer.question, answer.said, answer.truth);
    }
    if before.last().is_some_and(|asked| asked.belief.is_some()) {
        dialogue.tell_nothing();
    }
    dialogue.ask(next);
    dialogue.messages.swap_remove(0).content
}

/// The assistant's message that says an option, and the byte at which its label begins.
pub(super) fn assistant_says(
    world: &World,
    question: &Question,
    said: usize,
    is_report: bool,
) -> (String, usize) {
    if is_report { attribute::report(&question.labels[said]) } else { world.reply(question, said) }
}

pub(super) fn one_hot(options: usize, hot: usize) -> Vec<f64> {
    (0..options).map(|i| if i == hot { 1.0 } else { 0.0 }).collect()
}
