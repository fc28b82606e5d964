//! `teacher.json`: how good the teacher itself is, over all episodes drawn.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rival::Kind;
use super::simulate::{AnswerRecord, BeliefRecord};
use super::split::SplitBy;
use crate::metrics::Calibration;

/// What `teacher.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherSummary {
    /// Always 1.
    pub format_version: u32,
    /// The world's name.
    pub world: String,
    /// Who taught; all measures are of this teacher.
    #[serde(default)]
    pub kind: Kind,
    /// Episodes of all parts together.
    pub episodes: usize,
    /// Answers in them.
    pub answers: usize,
    /// How often the most probable option was the truth.
    pub accuracy: f64,
    /// How often the option of highest expected reward was.
    pub accuracy_expected_reward: f64,
    /// Mean entropy of the predictive distribution, in nats.
    pub entropy: f64,
    /// Expected calibration error of the most probable option.
    pub ece: f64,
    /// What perfect calibration would score on as many answers.
    pub ece_expected: f64,
    /// Answers that no hypothesis could explain and that were ignored.
    pub ignored_answers: usize,
    /// Where users are drawn sources: the teacher's cumulative regret over an episode in nats, its log loss less that
    /// of one who knows the user, as a mean over the episodes. Log-probabilities count as no lower than -708.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regret: Option<f64>,
    /// How the episodes are divided.
    pub split: SplitSummary,
    /// By the number of earlier answers that bear on the answer.
    pub by_observations: Vec<TeacherAt>,
    /// On option sets shared by all users, where the world has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOutSummary>,
    /// Of the reports of beliefs, which are in none of the measures above, where there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beliefs: Option<BeliefsSummary>,
}

/// How good the reported beliefs are, against the user's true levels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeliefsSummary {
    /// Reports in all episodes together.
    pub answers: usize,
    /// How often the most probable level was the truth.
    pub accuracy: f64,
    /// Mean entropy of the marginal belief, in nats.
    pub entropy: f64,
    /// Expected calibration error of the most probable level.
    pub ece: f64,
    /// What perfect calibration would score on as many reports.
    pub ece_expected: f64,
    /// By what the belief is about, in alphabetical order.
    pub by_belief: Vec<BeliefAt>,
    /// By the number of earlier answers that bear on it.
    pub by_observations: Vec<TeacherAt>,
}

/// Means over the reports of one belief.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeliefAt {
    /// What it is about.
    pub belief: String,
    /// How many reports.
    pub answers: usize,
    /// How often the most probable level was the truth.
    pub accuracy: f64,
    /// Mean entropy of the marginal belief, in nats.
    pub entropy: f64,
}

/// How the episodes are divided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitSummary {
    /// What was kept together.
    pub by: SplitBy,
    /// Episodes to train on.
    pub train: usize,
    /// Episodes to choose checkpoints by.
    pub validation: usize,
    /// Episodes to measure on.
    pub test: usize,
    /// Users with episodes in more than one of them, counted over the episodes written; 0 for a split by user.
    pub shared_users: usize,
}

/// On held-out option sets, asked after each round without feedback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutSummary {
    /// How many.
    pub sets: usize,
    /// By the number of rounds observed.
    pub by_observations: Vec<TeacherAt>,
}

/// Means over the answers with one number of observations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherAt {
    /// Earlier answers that bear on these.
    pub observations: usize,
    /// How many answers.
    pub answers: usize,
    /// How often the most probable option was the truth.
    pub accuracy: f64,
    /// How often the option of highest expected reward was.
    pub accuracy_expected_reward: f64,
    /// Mean entropy of the predictive distribution, in nats.
    pub entropy: f64,
}

/// Sums over answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    answers: usize,
    correct: usize,
    correct_expected_reward: usize,
    entropy: f64,
}

impl Tally {
    pub(super) fn add(&mut self, correct: bool, correct_expected_reward: bool, entropy: f64) {
        self.answers += 1;
        self.correct += usize::from(correct);
        self.correct_expected_reward += usize::from(correct_expected_reward);
        self.entropy += entropy;
    }

    fn merge(&mut self, other: &Tally) {
        self.answers += other.answers;
        self.correct += other.correct;
        self.correct_expected_reward += other.correct_expected_reward;
        self.entropy += other.entropy;
    }

    fn means(&self, observations: usize) -> TeacherAt {
        let n = self.answers.max(1) as f64;
        TeacherAt {
            observations,
            answers: self.answers,
            accuracy: self.correct as f64 / n,
            accuracy_expected_reward: self.correct_expected_reward as f64 / n,
            entropy: self.entropy / n,
        }
    }
}

/// Adds up episodes, in their order.
#[derive(Default)]
pub(super) struct Totals {
    episodes: usize,
    ignored: usize,
    all: Tally,
    by_observations: BTreeMap<usize, Tally>,
    held_out: BTreeMap<usize, Tally>,
    calibration: Calibration,
    regret: Option<f64>,
    beliefs: Tally,
    beliefs_by_name: BTreeMap<String, Tally>,
    beliefs_by_observations: BTreeMap<usize, Tally>,
    beliefs_calibration: Calibration,
}

impl Totals {
    /// `held_out` has one tally for each number of rounds observed.
    pub(super) fn add(
        &mut self,
        answers: &[AnswerRecord],
        beliefs: &[BeliefRecord],
        ignored: usize,
        held_out: &[Tally],
    ) {
        self.episodes += 1;
        self.ignored += ignored;
        for answer in answers {
            let at = self.by_observations.entry(answer.observations).or_default();
            for tally in [&mut self.all, at] {
                tally.add(answer.correct, answer.correct_expected_reward, answer.entropy);
            }
            self.calibration.add(answer.top_probability, answer.correct);
        }
        for BeliefRecord { belief, answer } in beliefs {
            let of_name = self.beliefs_by_name.entry(belief.clone()).or_default();
            let at = self.beliefs_by_observations.entry(answer.observations).or_default();
            for tally in [&mut self.beliefs, of_name, at] {
                tally.add(answer.correct, answer.correct_expected_reward, answer.entropy);
            }
            self.beliefs_calibration.add(answer.top_probability, answer.correct);
        }
        for (round, tally) in held_out.iter().enumerate() {
            self.held_out.entry(round).or_default().merge(tally);
        }
    }

    pub(super) fn add_regret(&mut self, regret: f64) {
        *self.regret.get_or_insert(0.0) += regret;
    }

    pub(super) fn summary(
        &self,
        world: &str,
        kind: Kind,
        split: SplitSummary,
        held_out_sets: usize,
    ) -> TeacherSummary {
        let by_observations = |tallies: &BTreeMap<usize, Tally>| {
            tallies.iter().map(|(observations, tally)| tally.means(*observations)).collect()
        };
        let all = self.all.means(0);
        TeacherSummary {
            format_version: 1,
            world: world.to_owned(),
            kind,
            episodes: self.episodes,
            answers: all.answers,
            accuracy: all.accuracy,
            accuracy_expected_reward: all.accuracy_expected_reward,
            entropy: all.entropy,
            ece: self.calibration.ece().unwrap_or(0.0),
            ece_expected: self.calibration.expected().map_or(0.0, |e| e.mean),
            ignored_answers: self.ignored,
            regret: self.regret.map(|sum| sum / self.episodes as f64),
            split,
            by_observations: by_observations(&self.by_observations),
            held_out: (held_out_sets > 0).then(|| HeldOutSummary {
                sets: held_out_sets,
                by_observations: by_observations(&self.held_out),
            }),
            beliefs: (!self.beliefs_by_name.is_empty()).then(|| self.beliefs_summary()),
        }
    }

    fn beliefs_summary(&self) -> BeliefsSummary {
        let all = self.beliefs.means(0);
        let of_belief = |(belief, tally): (&String, &Tally)| {
            let means = tally.means(0);
            BeliefAt {
                belief: belief.clone(),
                answers: means.answers,
                accuracy: means.accuracy,
                entropy: means.entropy,
            }
        };
        BeliefsSummary {
            answers: all.answers,
            accuracy: all.accuracy,
            entropy: all.entropy,
            ece: self.beliefs_calibration.ece().unwrap_or(0.0),
            ece_expected: self.beliefs_calibration.expected().map_or(0.0, |e| e.mean),
            by_belief: self.beliefs_by_name.iter().map(of_belief).collect(),
            by_observations: (self.beliefs_by_observations.iter())
                .map(|(observations, tally)| tally.means(*observations))
                .collect(),
        }
    }
}
