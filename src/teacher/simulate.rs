//! One user, one episode.

use super::config::{Targets, TeacherConfig};
use super::decision::{Decision, decide};
use super::posterior::Posterior;
use crate::episode::{Answer, Episode, FORMAT_VERSION, Message, Role};
use crate::metrics::{argmax, entropy};
use crate::rng;
use crate::world::World;

/// An episode, and what is to be known about it.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// The dialogue.
    pub episode: Episode,
    /// How well each answer was predicted, whatever the episode gives as targets.
    pub answers: Vec<AnswerRecord>,
    /// Answers that the posterior could not explain and so ignored.
    pub ignored: usize,
}

/// How well one answer was predicted by the whole predictive distribution.
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

/// Takes a user (an index into the world's grid) through an episode, the `number`th of this user.
///
/// The config must have passed [`TeacherConfig::validate`]. After every answer, and before the first, `observer` is
/// shown the posterior.
///
/// Everything random is a function of the seed, the user and the number, so a user's first episodes stay the same
/// when more are asked for.
pub fn simulate(
    config: &TeacherConfig,
    world: &World,
    seed: u64,
    user: usize,
    number: usize,
    mut observer: impl FnMut(&Posterior),
) -> Simulation {
    let index = ((user as u64) << 32) | number as u64;
    let hypotheses = world.user(user);
    let mut answer_draws = rng::stream(seed, "teacher.answers", index);
    let mut target_draws = rng::stream(seed, "teacher.targets", index);
    let questions =
        world.questions(config.rounds_in(world), &mut rng::stream(seed, "teacher.questions", index));

    let mut posterior = Posterior::prior(world.factors());
    observer(&posterior);
    let mut answers = Vec::with_capacity(questions.len());
    let mut messages = Vec::with_capacity(2 * questions.len());
    let mut ask = world.opening(&questions[0]);
    for (round, question) in questions.iter().enumerate() {
        let predictive = posterior.predictive(question);
        let most_probable = argmax(&predictive);
        let best_reward = decide(Decision::ExpectedReward, &posterior, question, &predictive);
        let said = match config.decision {
            Decision::MostProbable => most_probable,
            Decision::ExpectedReward => best_reward,
        };
        let truth = world.answer(&hypotheses, question, &mut answer_draws);
        let observations = posterior.observations(question.factor);
        answers.push(AnswerRecord {
            observations,
            top_probability: predictive[most_probable],
            correct: most_probable == truth,
            correct_expected_reward: best_reward == truth,
            entropy: entropy(&predictive),
        });

        let (content, start) = world.reply(question, said);
        let answer = Answer {
            start,
            options: question.labels.to_vec(),
            probs: match config.targets {
                Targets::Argmax => one_hot(predictive.len(), most_probable),
                Targets::Sampled => one_hot(predictive.len(), target_draws.categorical(&predictive)),
                Targets::Predictive => predictive,
            },
            said,
            truth: Some(truth),
            weight: 1.0,
            observations: Some(observations),
        };
        messages.push(Message { role: Role::User, content: ask, answer: None });
        messages.push(Message { role: Role::Assistant, content, answer: Some(answer) });

        posterior.observe(question, truth);
        observer(&posterior);
        // The dialogue ends with the assistant's last answer: what the user would say to it, nobody learns from.
        ask = match questions.get(round + 1) {
            Some(next) => world.feedback(question, said, truth, next),
            None => String::new(),
        };
    }

    let episode = Episode {
        format_version: FORMAT_VERSION,
        id: format!("{}-{user:06}-{number}", world.name()),
        world: world.name().into(),
        user: user.to_string(),
        messages,
    };
    Simulation { episode, answers, ignored: posterior.ignored() }
}

pub(super) fn one_hot(options: usize, hot: usize) -> Vec<f64> {
    (0..options).map(|i| if i == hot { 1.0 } else { 0.0 }).collect()
}
