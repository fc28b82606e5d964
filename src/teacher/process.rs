//! One user, one episode, in the worlds whose users are drawn sources.

use super::belief::Belief;
use super::config::{Targets, TeacherConfig};
use super::decision::{Decision, nearness_rewards};
use super::rival::{Oracle, Weighing};
use super::simulate::{AnswerRecord, Simulation, one_hot};
use crate::episode::{Answer, Episode, FORMAT_VERSION, Message, Role};
use crate::metrics::{LOG_FLOOR, argmax, entropy};
use crate::rng;
use crate::world::process::Process;

/// An episode of a drawn source.
#[derive(Clone, Debug)]
pub struct ProcessSimulation {
    /// The dialogue and its records.
    pub simulation: Simulation,
    /// The teacher's cumulative regret in nats: its log loss less that of one who knows the user.
    pub regret: f64,
}

/// Takes a user, the `user`th draw of a source, through an episode, the `number`th of this user.
///
/// The config must have passed [`TeacherConfig::validate`]. Everything random is a function of the seed, the user and
/// the number, so a user's first episodes stay the same when more are asked for, and the first rounds when more
/// follow.
pub fn simulate_process(
    config: &TeacherConfig,
    world: &Process,
    seed: u64,
    user: usize,
    number: usize,
) -> ProcessSimulation {
    let index = ((user as u64) << 32) | number as u64;
    let mut question_draws = rng::stream(seed, "teacher.questions", index);
    let mut answer_draws = rng::stream(seed, "teacher.answers", index);
    let mut target_draws = rng::stream(seed, "teacher.targets", index);
    let mut error_draws = rng::stream(seed, "teacher.errors", index);
    let (oracle, weighing) = (Oracle::of(config), Weighing::of(config));
    let mut source = world.source(seed, user, number);
    let mut knowing = Belief::knowing(&source);
    let mut belief = Belief::prior(world);

    let rounds = config.process_rounds(world);
    let mut answers = Vec::with_capacity(rounds);
    let mut messages = Vec::with_capacity(2 * rounds);
    let mut regret = 0.0;
    let mut before = None;
    for round in 0..rounds {
        let (query, outcome) = source.step(&mut question_draws, &mut answer_draws);
        let ask = match before {
            None => world.opening(&query),
            Some(outcome) => world.feedback(&outcome, &query),
        };
        belief.read_weighing(&query, weighing.power);
        knowing.read(&query);
        let truth = outcome.option;
        let predictive = belief.predictive(&query);
        let predictive = match oracle.says(predictive.len(), truth, &mut error_draws) {
            Some(option) => one_hot(predictive.len(), option),
            None => predictive,
        };
        regret += log_prob(&knowing.predictive(&query), truth) - log_prob(&predictive, truth);

        let most_probable = argmax(&predictive);
        let best_reward =
            if world.is_ordered() { argmax(&nearness_rewards(&predictive)) } else { most_probable };
        let said = match config.decision {
            Decision::MostProbable => most_probable,
            Decision::ExpectedReward => best_reward,
        };
        answers.push(AnswerRecord {
            observations: round,
            top_probability: predictive[most_probable],
            correct: most_probable == truth,
            correct_expected_reward: best_reward == truth,
            entropy: entropy(&predictive),
        });
        let target = match config.targets {
            Targets::Argmax => Some(most_probable),
            Targets::Sampled => Some(target_draws.categorical(&predictive)),
            Targets::Predictive => None,
        };
        let (probs, predictive) = match target {
            Some(option) => (one_hot(predictive.len(), option), Some(predictive)),
            None => (predictive, None),
        };
        let answer = Answer {
            start: 0,
            options: world.labels().to_vec(),
            probs,
            predictive,
            said,
            truth: Some(truth),
            weight: 1.0,
            observations: Some(round),
            belief: None,
        };
        let content = world.labels()[said].clone();
        messages.push(Message { role: Role::User, content: ask, answer: None });
        messages.push(Message { role: Role::Assistant, content, answer: Some(answer) });

        belief.observe_weighing(&query, &outcome, weighing);
        knowing.observe(&query, &outcome);
        before = Some(outcome);
    }

    let episode = Episode {
        format_version: FORMAT_VERSION,
        id: format!("{}-{user:06}-{number}", world.name()),
        world: world.name().into(),
        user: user.to_string(),
        messages,
    };
    ProcessSimulation {
        simulation: Simulation {
            episode,
            answers,
            beliefs: Vec::new(),
            ignored: belief.ignored(),
            asked: Vec::new(),
        },
        regret,
    }
}

fn log_prob(predictive: &[f64], truth: usize) -> f64 {
    predictive[truth].ln().max(LOG_FLOOR)
}
