//! Means over a set of answers, in the words of the result files.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::calibration::{Calibration, ReliabilityBin};
use super::cluster::ClusteredMean;
use super::confusion::{Confusion, count};
use super::interactive::Interactive;
use super::margin::{MarginBin, MarginBins, margin};
use super::measure::{Means, Measure};
use super::numeric::{argmax, entropy};
use super::prediction::Prediction;
use super::probe::BeliefProbe;
use super::reasoner::FittedReasoner;
use super::reply::Replies;
use super::sensitivity::Sensitivity;

/// All that is said about a set of predictions. For the teacher's own, what compares with the teacher is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// How many answers were measured.
    pub answers: usize,
    /// How many users gave them.
    pub users: usize,
    /// The mean of each measure.
    #[serde(flatten)]
    pub means: Means,
    /// Standard errors of the means, over users; none for fewer than two.
    pub standard_errors: Means,
    /// Expected calibration error of the most probable option: 15 bins of equal width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ece: Option<f64>,
    /// What perfect calibration would score on these answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ece_expected: Option<f64>,
    /// The bins behind `ece` that have answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reliability: Vec<ReliabilityBin>,
    /// Correlation of the predictions' entropies with the teacher's; none where one of them does not vary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy_correlation: Option<f64>,
    /// Agreement by the teacher's margin.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agreement_by_margin: Vec<MarginBin>,
    /// Which options are taken for which.
    pub confusion: Confusion,
    /// The means by the number of earlier answers that bear on the answer, in ascending order.
    pub by_observations: Vec<MeasuresAt>,
    /// Accuracy by the round of the episode, where truths are known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_round: Vec<RoundAccuracy>,
    /// The means by what a belief was reported about, in alphabetical order; only in `beliefs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_belief: Vec<MeasuresOf>,
    /// Of some measures the sum and the number of each user's answers, users in the order of the episodes, so that two
    /// models can be compared on the same answers; only of the dialogues as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_user: BTreeMap<Measure, Vec<(f64, usize)>>,
    /// Of the reports of beliefs, which are measured apart: everything above is about what was predicted or
    /// recommended. (Where there is nothing but reports, everything above is about them too.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beliefs: Option<Box<Measures>>,
    /// On option sets shared by all users, asked after each round without feedback, by the number of rounds; of the
    /// episodes that were looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<Box<Measures>>,
    /// Of the same answers where the dialogue holds the model's own recommendations instead of the teacher's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interactive: Option<Box<Interactive>>,
    /// Beliefs stated on copies of the dialogues, beside what is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Box<BeliefProbe>>,
    /// The reasoner that explains the answers best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoner: Option<Box<FittedReasoner>>,
    /// Whether what is learnt from an option set goes with how much it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<Box<Sensitivity>>,
    /// Replies written out freely, and read as a user would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replies: Option<Box<Replies>>,
}

/// The means over the reports of one belief.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuresOf {
    /// What the belief is about.
    pub belief: String,
    /// How many reports.
    pub answers: usize,
    /// The mean of each measure.
    #[serde(flatten)]
    pub means: Means,
    /// Standard errors of the means, over users.
    pub standard_errors: Means,
}

/// The means over the answers with one number of observations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuresAt {
    /// Earlier answers that bear on these.
    pub observations: usize,
    /// How many answers.
    pub answers: usize,
    /// The mean of each measure.
    #[serde(flatten)]
    pub means: Means,
    /// Standard errors of the means, over users.
    pub standard_errors: Means,
}

/// Accuracy by round, in both conventions that are published: *at* round i the predictor has seen the i − 1 answers
/// before; *after* round i it has seen that round's too, so that it is the next prediction that is scored. The same
/// predictor scores higher in the second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundAccuracy {
    /// Counted from 1.
    pub round: usize,
    /// Answers at this round.
    pub answers: usize,
    /// Accuracy of the prediction of this round's answer.
    pub accuracy_at: f64,
    /// Of `accuracy_at`, over users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error_at: Option<f64>,
    /// Accuracy of the prediction after this round: of the next one; none after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy_after: Option<f64>,
    /// Of `accuracy_after`, over users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error_after: Option<f64>,
}

impl Measures {
    /// The mean of a measure, where there is one.
    pub fn get(&self, measure: Measure) -> Option<f64> {
        self.means.get(&measure).copied()
    }

    /// Its standard error.
    pub fn standard_error(&self, measure: Measure) -> Option<f64> {
        self.standard_errors.get(&measure).copied()
    }

    /// What is left where no teacher exists, so that what stands in for its distributions says nothing.
    pub(super) fn without_teacher(mut self) -> Measures {
        self.keep(|measure| !measure.needs_teacher());
        self.entropy_correlation = None;
        self.agreement_by_margin.clear();
        self.confusion.teacher.clear();
        let strip = |part: Option<Box<Measures>>| part.map(|measures| Box::new(measures.without_teacher()));
        self.beliefs = strip(self.beliefs);
        self.held_out = strip(self.held_out);
        if let Some(interactive) = &mut self.interactive {
            interactive.kl_gap = None;
            for measures in [&mut interactive.own, &mut interactive.as_taught] {
                **measures = std::mem::take(&mut **measures).without_teacher();
            }
        }
        if let Some(replies) = &mut self.replies {
            replies.agreement = None;
        }
        // These compare with a posterior.
        (self.probe, self.reasoner, self.sensitivity) = (None, None, None);
        self
    }

    /// What is said of a teacher that does not exist: how many answers it would have given.
    pub(super) fn of_no_teacher(mut self) -> Measures {
        self.keep(|_| false);
        let Measures { answers, users, by_observations, .. } = self;
        Measures { answers, users, by_observations, ..Measures::default() }
    }

    /// Keeps some of the means.
    fn keep(&mut self, keep: impl Fn(Measure) -> bool) {
        self.by_user.retain(|measure, _| keep(*measure));
        let own = [&mut self.means, &mut self.standard_errors];
        let at = self.by_observations.iter_mut().flat_map(|at| [&mut at.means, &mut at.standard_errors]);
        let of = self.by_belief.iter_mut().flat_map(|of| [&mut of.means, &mut of.standard_errors]);
        own.into_iter().chain(at).chain(of).for_each(|means| means.retain(|measure, _| keep(*measure)));
    }
}

impl MeasuresAt {
    /// The mean of a measure, where there is one.
    pub fn get(&self, measure: Measure) -> Option<f64> {
        self.means.get(&measure).copied()
    }

    /// Its standard error.
    pub fn standard_error(&self, measure: Measure) -> Option<f64> {
        self.standard_errors.get(&measure).copied()
    }
}

impl MeasuresOf {
    /// The mean of a measure, where there is one.
    pub fn get(&self, measure: Measure) -> Option<f64> {
        self.means.get(&measure).copied()
    }
}

/// Measures predictions; reports of beliefs apart from the rest.
///
/// # Errors
/// If there are none.
pub fn summarise(predictions: &[Prediction]) -> Result<Measures> {
    measure_apart(predictions, |some| measure_all(some, |_| true))
}

/// Of [`PAIRED`] the sum and the number of each user's answers, but for reports of beliefs.
pub(super) fn sums_by_user(predictions: &[Prediction]) -> BTreeMap<Measure, Vec<(f64, usize)>> {
    let users: std::collections::BTreeSet<usize> = predictions.iter().map(|p| p.user).collect();
    let of = |measure: Measure| {
        let mut mean = ClusteredMean::default();
        for prediction in predictions.iter().filter(|p| p.belief.is_none()) {
            // What is infinite is no number in JSON; the mean is left out as well.
            measure.of(prediction).into_iter().for_each(|value| mean.add(prediction.user, value));
        }
        mean.mean()?.is_finite().then(|| (measure, users.iter().map(|user| mean.sum_of(*user)).collect()))
    };
    PAIRED.into_iter().filter_map(of).collect()
}

/// The measures by which two models are compared on the same answers.
pub const PAIRED: [Measure; 4] =
    [Measure::Accuracy, Measure::AgreementWhenClear, Measure::Kl, Measure::ExcessLogLoss];

/// Measures the teacher's own predictions of the same answers, by all that makes sense for a teacher; reports of
/// beliefs apart from the rest.
///
/// # Errors
/// If there are none.
pub fn summarise_teacher(predictions: &[Prediction]) -> Result<Measures> {
    let teacher: Vec<Prediction> = predictions.iter().map(Prediction::of_teacher).collect();
    measure_apart(&teacher, |some| {
        let mut measures = measure_all(some, |measure| !measure.is_against_teacher())?;
        measures.entropy_correlation = None;
        measures.agreement_by_margin.clear();
        measures.confusion.teacher.clear();
        Ok(measures)
    })
}

/// Measures reports of beliefs by themselves and the rest by itself.
fn measure_apart(
    predictions: &[Prediction],
    measure: impl Fn(&[&Prediction]) -> Result<Measures>,
) -> Result<Measures> {
    let (reports, actions): (Vec<&Prediction>, Vec<&Prediction>) =
        predictions.iter().partition(|p| p.belief.is_some());
    if reports.is_empty() {
        return measure(&actions);
    }
    let mut beliefs = measure(&reports)?;
    // A report is made after a round, not at one.
    beliefs.by_round.clear();
    let rest = if actions.is_empty() { beliefs.clone() } else { measure(&actions)? };
    Ok(Measures { by_belief: Vec::new(), beliefs: Some(Box::new(beliefs)), ..rest })
}

fn measure_all(predictions: &[&Prediction], wanted: impl Fn(Measure) -> bool) -> Result<Measures> {
    ensure!(!predictions.is_empty(), "there are no answers to measure");
    let mut total = Tally::default();
    let mut by_observations: BTreeMap<usize, Tally> = BTreeMap::new();
    let mut by_round: BTreeMap<usize, ClusteredMean> = BTreeMap::new();
    let mut by_belief: BTreeMap<&str, Tally> = BTreeMap::new();
    let mut calibration = Calibration::default();
    let mut margins = MarginBins::default();
    let mut confusion = Confusion::default();
    for &prediction in predictions {
        let at = by_observations.entry(prediction.observations).or_default();
        let mut of = prediction.belief.as_deref().map(|belief| by_belief.entry(belief).or_default());
        for measure in Measure::ALL.into_iter().filter(|m| wanted(*m)) {
            if let Some(value) = measure.of(prediction) {
                total.add(prediction.user, measure, value);
                at.add(prediction.user, measure, value);
                if let Some(of) = &mut of {
                    of.add(prediction.user, measure, value);
                }
            }
        }
        at.answers += 1;
        if let Some(of) = of {
            of.answers += 1;
        }
        let (user, options) = (prediction.user, prediction.teacher.len());
        let probs = prediction.probs();
        let (top, teachers_top) = (argmax(&probs), argmax(&prediction.teacher));
        margins.add(user, margin(&prediction.teacher), top == teachers_top);
        count(&mut confusion.teacher, teachers_top, top, options);
        if let Some(truth) = prediction.truth {
            calibration.add_of(user, probs[top], top == truth);
            count(&mut confusion.truth, truth, top, options);
            by_round.entry(prediction.round).or_default().add(user, f64::from(u8::from(top == truth)));
        }
    }
    let users: std::collections::BTreeSet<usize> = predictions.iter().map(|p| p.user).collect();
    Ok(Measures {
        answers: predictions.len(),
        users: users.len(),
        means: total.means(),
        standard_errors: total.standard_errors(),
        ece: calibration.ece(),
        ece_expected: calibration.expected().map(|e| e.mean),
        reliability: calibration.reliability(),
        entropy_correlation: entropy_correlation(predictions),
        agreement_by_margin: margins.bins(),
        confusion,
        by_observations: by_observations.iter().map(|(n, tally)| tally.at(*n)).collect(),
        by_round: round_accuracies(&by_round),
        by_belief: by_belief.iter().map(|(belief, tally)| tally.about(belief)).collect(),
        by_user: BTreeMap::new(),
        beliefs: None,
        held_out: None,
        interactive: None,
        probe: None,
        reasoner: None,
        sensitivity: None,
        replies: None,
    })
}

/// Means of every measure over a group of answers.
#[derive(Default)]
struct Tally {
    answers: usize,
    means: BTreeMap<Measure, ClusteredMean>,
}

impl Tally {
    fn add(&mut self, user: usize, measure: Measure, value: f64) {
        self.means.entry(measure).or_default().add(user, value);
    }

    /// Those that are numbers: JSON has no other, and an infinite mean says nothing more than that.
    fn of(&self, value: impl Fn(&ClusteredMean) -> Option<f64>) -> Means {
        let finite = |(measure, mean): (&Measure, &ClusteredMean)| {
            mean.mean()?.is_finite().then_some(())?;
            Some((*measure, value(mean)?))
        };
        self.means.iter().filter_map(finite).collect()
    }

    fn means(&self) -> Means {
        self.of(ClusteredMean::mean)
    }

    fn standard_errors(&self) -> Means {
        self.of(ClusteredMean::standard_error)
    }

    fn at(&self, observations: usize) -> MeasuresAt {
        MeasuresAt {
            observations,
            answers: self.answers,
            means: self.means(),
            standard_errors: self.standard_errors(),
        }
    }

    fn about(&self, belief: &str) -> MeasuresOf {
        MeasuresOf {
            belief: belief.to_owned(),
            answers: self.answers,
            means: self.means(),
            standard_errors: self.standard_errors(),
        }
    }
}

fn round_accuracies(by_round: &BTreeMap<usize, ClusteredMean>) -> Vec<RoundAccuracy> {
    let of = |(&round, at): (&usize, &ClusteredMean)| {
        let after = by_round.get(&(round + 1));
        Some(RoundAccuracy {
            round,
            answers: at.answers(),
            accuracy_at: at.mean()?,
            standard_error_at: at.standard_error(),
            accuracy_after: after.and_then(ClusteredMean::mean),
            standard_error_after: after.and_then(ClusteredMean::standard_error),
        })
    };
    by_round.iter().filter_map(of).collect()
}

/// Pearson's correlation.
fn entropy_correlation(predictions: &[&Prediction]) -> Option<f64> {
    let n = predictions.len() as f64;
    let own: Vec<f64> = predictions.iter().map(|p| entropy(&p.probs())).collect();
    let teachers: Vec<f64> = predictions.iter().map(|p| entropy(&p.teacher)).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / n;
    let (a, b) = (mean(&own), mean(&teachers));
    let covariance = |x: &[f64], x0: f64, y: &[f64], y0: f64| -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - x0) * (y - y0)).sum::<f64>() / n
    };
    let (own_variance, variance) = (covariance(&own, a, &own, a), covariance(&teachers, b, &teachers, b));
    // Entropies that are equal but for rounding do not vary.
    let varies = own_variance > 1e-18 && variance > 1e-18;
    varies.then(|| covariance(&own, a, &teachers, b) / (own_variance * variance).sqrt())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::metrics::{EvalFile, Model};

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    fn logs(probs: &[f64]) -> Vec<f64> {
        probs.iter().map(|p| p.ln()).collect()
    }

    /// Two answers of two users, worked out by hand.
    ///
    /// 1: the model has .45 and .05 within its vocabulary (mass .5, renormalised .9 and .1), the teacher .5 and .5,
    ///    the truth is 1. KL = ½ ln(.5/.9) + ½ ln(.5/.1) = ½ ln(25/9). The teacher's tie goes to option 0.
    /// 2: the model has .25 and .75, the teacher 0 and 1, the truth is 1. KL = ln(1/.75).
    fn by_hand() -> [Prediction; 2] {
        [
            Prediction::new(&logs(&[0.45, 0.05]), &[0.5, 0.5], Some(1), 0).unwrap().asked(4, 1),
            Prediction::new(&logs(&[0.25, 0.75]), &[0.0, 1.0], Some(1), 3).unwrap().asked(9, 2),
        ]
    }

    #[test]
    fn means_by_hand() {
        let m = summarise(&by_hand()).unwrap();
        let get = |measure| m.get(measure).unwrap();
        assert_eq!((m.answers, m.users, get(Measure::Accuracy), get(Measure::Agreement)), (2, 2, 0.5, 1.0));
        let kl = [0.5 * (25.0_f64 / 9.0).ln(), (4.0_f64 / 3.0).ln()];
        close(get(Measure::Kl), (kl[0] + kl[1]) / 2.0);
        close(get(Measure::OptionMass), 0.75);
        close(get(Measure::KlVocabulary), get(Measure::Kl) + 0.5 * 2.0_f64.ln());
        close(get(Measure::TopProbability), 0.825);
        close(get(Measure::Brier), (2.0 * 0.81 + 2.0 * 0.0625) / 2.0);
        // The truth got .1 and .75; the teacher gave it .5 and 1.
        let log_loss = [10.0_f64.ln(), (4.0_f64 / 3.0).ln()];
        close(get(Measure::LogLoss), (log_loss[0] + log_loss[1]) / 2.0);
        close(get(Measure::ExcessLogLoss), (log_loss[0] - 2.0_f64.ln() + log_loss[1]) / 2.0);
        let entropies =
            [-(0.9 * 0.9_f64.ln() + 0.1 * 0.1_f64.ln()), -(0.25 * 0.25_f64.ln() + 0.75 * 0.75_f64.ln())];
        close(get(Measure::Entropy), (entropies[0] + entropies[1]) / 2.0);
        // The teacher's are ln 2 and 0: one too low, one too high.
        let (low, high) = (entropies[0] - 2.0_f64.ln(), entropies[1]);
        assert!(low < 0.0 && high > 0.0);
        close(get(Measure::EntropyBias), (low + high) / 2.0);
        close(get(Measure::EntropyError), (high - low) / 2.0);
        // Two points lie on a line, which rises or falls.
        close(m.entropy_correlation.unwrap(), if entropies[0] > entropies[1] { 1.0 } else { -1.0 });
        // 0.9 falls in the 14th of 15 bins and is wrong, .75 in the 12th and is right.
        close(m.ece.unwrap(), (0.9 + 0.25) / 2.0);
        assert_eq!(m.reliability.len(), 2);
        // Only the second answer is no tie.
        assert_eq!(get(Measure::AgreementWhenClear), 1.0);
        assert_eq!(
            m.agreement_by_margin.iter().map(|b| (b.to, b.answers)).collect::<Vec<_>>(),
            [(0.02, 1), (1.0, 1)]
        );
        assert_eq!(m.confusion.truth, [[0, 0], [1, 1]]);
        assert_eq!(m.confusion.teacher, [[1, 0], [0, 1]]);
    }

    #[test]
    fn standard_errors_by_hand() {
        let m = summarise(&by_hand()).unwrap();
        // Two users of one answer each, 0 and 1: s / √2 = ½.
        close(m.standard_error(Measure::Accuracy).unwrap(), 0.5);
        close(m.standard_error(Measure::Agreement).unwrap(), 0.0);
        close(m.standard_error(Measure::OptionMass).unwrap(), 0.25);
        // One user alone has none.
        assert_eq!(m.standard_error(Measure::AgreementWhenClear), None);
        assert!(m.by_observations.iter().all(|at| at.standard_errors.is_empty()));
    }

    #[test]
    fn groups_by_hand() {
        let m = summarise(&by_hand()).unwrap();
        let at: Vec<_> = m.by_observations.iter().map(|b| (b.observations, b.answers)).collect();
        assert_eq!(at, [(0, 1), (3, 1)]);
        close(m.by_observations[0].get(Measure::Kl).unwrap(), 0.5 * (25.0_f64 / 9.0).ln());
        close(
            m.by_observations[0].get(Measure::KlVocabulary).unwrap(),
            0.5 * (25.0_f64 / 9.0).ln() + 2.0_f64.ln(),
        );
        close(m.by_observations[1].get(Measure::Kl).unwrap(), (4.0_f64 / 3.0).ln());
        assert_eq!(m.by_observations[0].get(Measure::Accuracy), Some(0.0));
        assert_eq!(m.by_observations[0].get(Measure::AgreementWhenClear), None);
        assert_eq!(m.by_observations[1].get(Measure::Accuracy), Some(1.0));
        // After round 1 is at round 2; nothing follows the last.
        let rounds: Vec<_> = m.by_round.iter().map(|r| (r.round, r.accuracy_at, r.accuracy_after)).collect();
        assert_eq!(rounds, [(1, 0.0, Some(1.0)), (2, 1.0, None)]);
    }

    #[test]
    fn teacher_beside_it() {
        let predictions = [
            Prediction::new(&logs(&[0.9, 0.05, 0.05]), &[0.2, 0.5, 0.3], Some(0), 0).unwrap(),
            Prediction::new(&logs(&[0.1, 0.1, 0.1]), &[0.0, 0.25, 0.75], Some(2), 1).unwrap(),
        ];
        let m = summarise_teacher(&predictions).unwrap();
        for measure in Measure::ALL {
            assert_eq!(m.get(measure).is_none(), measure.is_against_teacher(), "{measure:?}");
        }
        assert_eq!(m.get(Measure::Accuracy), Some(0.5));
        close(m.get(Measure::TopProbability).unwrap(), 0.625);
        close(m.get(Measure::LogLoss).unwrap(), (5.0_f64.ln() - 0.75_f64.ln()) / 2.0);
        assert_eq!(m.confusion.truth, [[0, 1, 0], [0, 0, 0], [0, 0, 1]]);
        let json = serde_json::to_value(&m).unwrap();
        for key in ["kl", "agreement", "option_mass", "agreement_by_margin", "entropy_correlation"] {
            assert!(json.get(key).is_none(), "{key} makes no sense for a teacher");
        }
        assert!(json["confusion"].get("teacher").is_none());
    }

    #[test]
    fn reports_of_beliefs_are_measured_apart() {
        let action = Prediction::new(&logs(&[0.9, 0.1]), &[0.5, 0.5], Some(0), 0).unwrap();
        let of_price = Prediction::new(&logs(&[0.25, 0.75]), &[0.0, 1.0], Some(0), 1).unwrap();
        let of_price = of_price.about(Some("price".into()));
        let of_bags = of_price.clone().about(Some("bags".into()));
        let alone = summarise(std::slice::from_ref(&action)).unwrap();
        let all = [action, of_price.clone(), of_bags];
        let m = summarise(&all).unwrap();
        assert_eq!(Measures { beliefs: None, ..m.clone() }, alone);
        let text = serde_json::to_string(&m).unwrap();
        assert_eq!(serde_json::from_str::<Measures>(&text).unwrap(), m);
        let beliefs = m.beliefs.unwrap();
        assert_eq!(beliefs.answers, 2);
        assert_eq!((beliefs.get(Measure::Accuracy), beliefs.get(Measure::Agreement)), (Some(0.0), Some(1.0)));
        close(beliefs.get(Measure::Kl).unwrap(), (4.0_f64 / 3.0).ln());
        assert!(beliefs.by_round.is_empty());
        let names: Vec<_> = beliefs.by_belief.iter().map(|of| (of.belief.as_str(), of.answers)).collect();
        assert_eq!(names, [("bags", 1), ("price", 1)]);
        close(beliefs.by_belief[1].get(Measure::Kl).unwrap(), (4.0_f64 / 3.0).ln());
        let teacher = summarise_teacher(&all).unwrap().beliefs.unwrap();
        assert_eq!((teacher.get(Measure::Kl), teacher.get(Measure::Accuracy)), (None, Some(0.0)));
        assert!(teacher.agreement_by_margin.is_empty() && teacher.confusion.teacher.is_empty());
        // Nothing but reports.
        let m = summarise(&[of_price]).unwrap();
        close(m.get(Measure::Kl).unwrap(), (4.0_f64 / 3.0).ln());
        assert!(m.by_belief.is_empty() && m.beliefs.is_some());
    }

    /// A teacher that is measured as if it were the model: nothing between them.
    #[test]
    fn the_teacher_agrees_with_itself() {
        let teacher: Vec<Prediction> = by_hand().iter().map(Prediction::of_teacher).collect();
        let m = summarise(&teacher).unwrap();
        for (measure, expected) in [
            (Measure::Kl, 0.0),
            (Measure::KlVocabulary, 0.0),
            (Measure::Agreement, 1.0),
            (Measure::OptionMass, 1.0),
            (Measure::ExcessLogLoss, 0.0),
            (Measure::EntropyError, 0.0),
        ] {
            close(m.get(measure).unwrap(), expected);
        }
        close(m.entropy_correlation.unwrap(), 1.0);
    }

    #[test]
    fn collapse_is_large_but_finite() {
        let certain = Prediction::new(&[0.0, f64::NEG_INFINITY], &[0.5, 0.5], None, 0).unwrap();
        close(certain.kl(), 0.5 * 0.5_f64.ln() + 0.5 * (0.5_f64.ln() + 708.0));
        // Differences that exp would underflow survive in log space.
        let far = Prediction::new(&[-1000.0, -1001.0], &[0.5, 0.5], None, 0).unwrap();
        close(far.probs()[0], 1.0 / (1.0 + (-1.0_f64).exp()));
        let nothing = Prediction::new(&[f64::NEG_INFINITY; 2], &[0.5, 0.5], None, 0).unwrap();
        close(nothing.kl(), 0.0);
        for p in [&certain, &far, &nothing] {
            let m = summarise(std::slice::from_ref(p)).unwrap();
            assert!(m.means.values().all(|mean| mean.is_finite()));
            assert!(m.get(Measure::Kl).is_some() && m.get(Measure::KlVocabulary).is_some());
            assert_eq!(
                (m.get(Measure::Accuracy), m.get(Measure::Brier), m.ece, m.ece_expected),
                (None, None, None, None)
            );
        }
    }

    /// Targets that are one-hot may give the truth no probability: a log loss above theirs is no number.
    #[test]
    fn an_infinite_mean_is_left_out() {
        let p = Prediction::new(&logs(&[0.5, 0.5]), &[1.0, 0.0], Some(1), 0).unwrap();
        let m = summarise(&[p]).unwrap();
        assert_eq!(m.get(Measure::ExcessLogLoss), None);
        close(m.get(Measure::LogLoss).unwrap(), 2.0_f64.ln());
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |logs: &[f64], teacher: &[f64], truth, expected: &str| {
            let message = Prediction::new(logs, teacher, truth, 0).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} does not say {expected:?}");
        };
        refused(&[f64::NAN, 0.0], &[0.5, 0.5], None, "broken");
        refused(&[0.0], &[0.5, 0.5], None, "1 options but 2");
        refused(&[-1.0, -1.0], &[0.5, 0.6], None, "sum to 1");
        refused(&[-1.0, -1.0], &[0.5, 0.5], Some(2), "truth is 2");
        assert!(summarise(&[]).unwrap_err().to_string().contains("no answers"));
    }

    #[test]
    fn result_files_round_trip() {
        let file = EvalFile::new(Model::FineTuned, 2, &by_hand()).unwrap();
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(serde_json::from_str::<EvalFile>(&text).unwrap(), file);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["fine_tuned"]["accuracy"], 0.5);
        assert_eq!(json["fine_tuned"]["standard_errors"]["accuracy"], 0.5);
        assert_eq!(json["fine_tuned"]["by_observations"][1]["observations"], 3);
        assert!(json.get("baseline").is_none());
    }
}
