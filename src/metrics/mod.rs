//! Measures predictions against the truth and against the teacher; knows neither worlds nor models.
//!
//! Everything but `option_mass` and `kl_vocabulary` is about the distribution renormalised over the options,
//! whatever the loss of the training was. Logarithms are natural; sums run in the order of the answers, so
//! that the result does not depend on threads.

mod calibration;
mod numeric;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

pub use calibration::{Calibration, CalibrationBins, ExpectedEce, expected_ece};
pub use numeric::{argmax, entropy, log_sum_exp};

/// Log-probabilities count as no lower than this, about ln of the smallest positive f64: a model that gives an
/// option no mass at all gets a large KL, but a finite one.
pub const LOG_FLOOR: f64 = -708.0;

/// What one answer was predicted to be, beside what the teacher predicted and what the user answered.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// Renormalised over the options, and not below [`LOG_FLOOR`].
    log_probs: Vec<f64>,
    log_option_mass: f64,
    teacher: Vec<f64>,
    truth: Option<usize>,
    observations: usize,
    belief: Option<String>,
}

impl Prediction {
    /// A prediction from the log-probabilities that a model gives the options, among its whole vocabulary.
    ///
    /// Their mass (at most 1) becomes `option_mass`; pass renormalised values where only those are known.
    ///
    /// # Errors
    /// If the lengths differ, a log-probability is NaN or infinite upwards, the teacher's distribution does not
    /// sum to 1, or the truth is none of the options.
    pub fn new(
        option_log_probs: &[f64],
        teacher: &[f64],
        truth: Option<usize>,
        observations: usize,
    ) -> Result<Prediction> {
        let n = option_log_probs.len();
        ensure!(n > 0, "a prediction needs options");
        ensure!(teacher.len() == n, "{n} options but {} teacher probabilities", teacher.len());
        ensure!(
            option_log_probs.iter().all(|p| !p.is_nan() && *p < f64::INFINITY),
            "log-probabilities {option_log_probs:?} are not numbers: the model's output is broken"
        );
        ensure!(
            teacher.iter().all(|p| *p >= 0.0) && (teacher.iter().sum::<f64>() - 1.0).abs() <= 1e-6,
            "the teacher's probabilities {teacher:?} must not be negative and sum to 1"
        );
        if let Some(truth) = truth {
            ensure!(truth < n, "truth is {truth} but there are {n} options");
        }
        let log_mass = log_sum_exp(option_log_probs);
        let log_probs = option_log_probs.iter().map(|&p| match log_mass {
            // No mass on any option leaves nothing to renormalise: the prediction says nothing.
            f64::NEG_INFINITY => -(n as f64).ln(),
            _ => (p - log_mass).max(LOG_FLOOR),
        });
        Ok(Prediction {
            log_probs: log_probs.collect(),
            // Rounding in a model's f32 softmax may leave a mass a little above 1.
            log_option_mass: log_mass.clamp(LOG_FLOOR, 0.0),
            teacher: teacher.to_vec(),
            truth,
            observations,
            belief: None,
        })
    }

    /// Says what the answer reports a belief about; none where it predicts or recommends.
    #[must_use]
    pub fn about(self, belief: Option<String>) -> Prediction {
        Prediction { belief, ..self }
    }

    /// The teacher's own prediction of this answer, to be measured beside the model's.
    #[must_use]
    pub fn of_teacher(&self) -> Prediction {
        Prediction {
            log_probs: self.teacher.iter().map(|p| p.ln().max(LOG_FLOOR)).collect(),
            log_option_mass: 0.0,
            ..self.clone()
        }
    }

    /// The predicted distribution over the options.
    pub fn probs(&self) -> Vec<f64> {
        self.log_probs.iter().map(|p| p.exp()).collect()
    }

    /// KL(teacher ‖ prediction) in nats.
    pub fn kl(&self) -> f64 {
        let terms = self.teacher.iter().zip(&self.log_probs);
        let kl: f64 = terms.filter(|(t, _)| **t > 0.0).map(|(t, log_p)| t * (t.ln() - log_p)).sum();
        // Equal distributions may round to a little below zero.
        kl.max(0.0)
    }
}

/// Means over a set of answers, in the words of the result files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// How many answers were measured.
    pub answers: usize,
    /// How often the most probable option is the truth; none where no truth is known.
    pub accuracy: Option<f64>,
    /// How often the most probable option is the teacher's most probable one.
    pub agreement: f64,
    /// Mean KL(teacher ‖ prediction) over the options, in nats.
    pub kl: f64,
    /// `kl` minus the mean log `option_mass`: what the loss over the whole vocabulary goes by.
    pub kl_vocabulary: f64,
    /// Mean entropy of the prediction, in nats.
    pub entropy: f64,
    /// Mean probability of the most probable option.
    pub top_probability: f64,
    /// Mean mass that the whole vocabulary leaves to the options.
    pub option_mass: f64,
    /// Expected calibration error of the most probable option: 15 bins of equal width.
    pub ece: Option<f64>,
    /// What perfect calibration would score on these answers.
    pub ece_expected: Option<f64>,
    /// Mean squared distance between the prediction and the truth as a one-hot vector, summed over options.
    pub brier: Option<f64>,
    /// The same by the number of earlier answers that bear on the answer, in ascending order.
    pub by_observations: Vec<MeasuresAt>,
    /// The same by what a belief was reported about, in alphabetical order; only in `beliefs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_belief: Vec<MeasuresOf>,
    /// Of the reports of beliefs, which are measured apart: everything above is about what was predicted or
    /// recommended. (Where there is nothing but reports, everything above is about them too.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beliefs: Option<Box<Measures>>,
}

/// The means over the reports of one belief.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuresOf {
    /// What the belief is about.
    pub belief: String,
    /// See [`Measures`].
    pub answers: usize,
    /// See [`Measures`].
    pub accuracy: Option<f64>,
    /// See [`Measures`].
    pub agreement: f64,
    /// See [`Measures`].
    pub kl: f64,
    /// See [`Measures`].
    pub entropy: f64,
    /// See [`Measures`].
    pub brier: Option<f64>,
}

/// The means over the answers with one number of observations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuresAt {
    /// Earlier answers that bear on these.
    pub observations: usize,
    /// See [`Measures`].
    pub answers: usize,
    /// See [`Measures`].
    pub accuracy: Option<f64>,
    /// See [`Measures`].
    pub agreement: f64,
    /// See [`Measures`].
    pub kl: f64,
    /// See [`Measures`].
    pub kl_vocabulary: f64,
    /// See [`Measures`].
    pub entropy: f64,
    /// See [`Measures`].
    pub top_probability: f64,
    /// See [`Measures`].
    pub option_mass: f64,
    /// See [`Measures`].
    pub brier: Option<f64>,
}

/// Measures predictions; reports of beliefs apart from the rest.
///
/// # Errors
/// If there are none.
pub fn summarise(predictions: &[Prediction]) -> Result<Measures> {
    let (reports, actions): (Vec<&Prediction>, Vec<&Prediction>) =
        predictions.iter().partition(|p| p.belief.is_some());
    if reports.is_empty() {
        return measures(&actions);
    }
    let beliefs = measures(&reports)?;
    let rest = if actions.is_empty() { beliefs.clone() } else { measures(&actions)? };
    Ok(Measures { by_belief: Vec::new(), beliefs: Some(Box::new(beliefs)), ..rest })
}

fn measures(predictions: &[&Prediction]) -> Result<Measures> {
    let mut total = Sums::default();
    let mut by_observations: BTreeMap<usize, Sums> = BTreeMap::new();
    let mut by_belief: BTreeMap<&str, Sums> = BTreeMap::new();
    let mut calibration = Calibration::default();
    for prediction in predictions {
        let one = Sums::of(prediction, &mut calibration);
        total.add(&one);
        by_observations.entry(prediction.observations).or_default().add(&one);
        if let Some(belief) = &prediction.belief {
            by_belief.entry(belief).or_default().add(&one);
        }
    }
    let means = total.means(0).context("there are no answers to measure")?;
    Ok(Measures {
        answers: means.answers,
        accuracy: means.accuracy,
        agreement: means.agreement,
        kl: means.kl,
        kl_vocabulary: means.kl_vocabulary,
        entropy: means.entropy,
        top_probability: means.top_probability,
        option_mass: means.option_mass,
        ece: calibration.ece(),
        ece_expected: calibration.expected().map(|e| e.mean),
        brier: means.brier,
        by_observations: by_observations.iter().filter_map(|(n, sums)| sums.means(*n)).collect(),
        by_belief: by_belief.iter().filter_map(|(belief, sums)| sums.means_of(belief)).collect(),
        beliefs: None,
    })
}

/// Measures the teacher's own predictions of the same answers: a KL of 0, an agreement and an option mass of 1.
///
/// # Errors
/// If there are none.
pub fn summarise_teacher(predictions: &[Prediction]) -> Result<Measures> {
    let teacher: Vec<Prediction> = predictions.iter().map(Prediction::of_teacher).collect();
    summarise(&teacher)
}

#[derive(Clone, Copy, Default)]
struct Sums {
    answers: usize,
    with_truth: usize,
    correct: usize,
    agree: usize,
    kl: f64,
    entropy: f64,
    top_probability: f64,
    option_mass: f64,
    log_option_mass: f64,
    brier: f64,
}

impl Sums {
    fn of(prediction: &Prediction, calibration: &mut Calibration) -> Sums {
        let probs = prediction.probs();
        let top = argmax(&probs);
        let mut sums = Sums {
            answers: 1,
            agree: usize::from(top == argmax(&prediction.teacher)),
            kl: prediction.kl(),
            entropy: entropy(&probs),
            top_probability: probs[top],
            option_mass: prediction.log_option_mass.exp(),
            log_option_mass: prediction.log_option_mass,
            ..Sums::default()
        };
        if let Some(truth) = prediction.truth {
            sums.with_truth = 1;
            sums.correct = usize::from(top == truth);
            let target = |i| if i == truth { 1.0 } else { 0.0 };
            sums.brier = probs.iter().enumerate().map(|(i, p)| (p - target(i)).powi(2)).sum();
            calibration.add(probs[top], top == truth);
        }
        sums
    }

    fn add(&mut self, other: &Sums) {
        self.answers += other.answers;
        self.with_truth += other.with_truth;
        self.correct += other.correct;
        self.agree += other.agree;
        self.kl += other.kl;
        self.entropy += other.entropy;
        self.top_probability += other.top_probability;
        self.option_mass += other.option_mass;
        self.log_option_mass += other.log_option_mass;
        self.brier += other.brier;
    }

    fn means_of(&self, belief: &str) -> Option<MeasuresOf> {
        self.means(0).map(|means| MeasuresOf {
            belief: belief.to_owned(),
            answers: means.answers,
            accuracy: means.accuracy,
            agreement: means.agreement,
            kl: means.kl,
            entropy: means.entropy,
            brier: means.brier,
        })
    }

    fn means(&self, observations: usize) -> Option<MeasuresAt> {
        if self.answers == 0 {
            return None;
        }
        let mean = |sum: f64| sum / self.answers as f64;
        let mean_of_truth = |sum: f64| (self.with_truth > 0).then(|| sum / self.with_truth as f64);
        Some(MeasuresAt {
            observations,
            answers: self.answers,
            accuracy: mean_of_truth(self.correct as f64),
            agreement: mean(self.agree as f64),
            kl: mean(self.kl),
            kl_vocabulary: mean(self.kl) - mean(self.log_option_mass),
            entropy: mean(self.entropy),
            top_probability: mean(self.top_probability),
            option_mass: mean(self.option_mass),
            brier: mean_of_truth(self.brier),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    fn logs(probs: &[f64]) -> Vec<f64> {
        probs.iter().map(|p| p.ln()).collect()
    }

    /// Two answers worked out by hand.
    ///
    /// 1: the model has .45 and .05 within its vocabulary (mass .5, renormalised .9 and .1), the teacher .5 and .5,
    ///    the truth is 1. KL = ½ ln(.5/.9) + ½ ln(.5/.1) = ½ ln(25/9). The teacher's tie goes to option 0.
    /// 2: the model has .25 and .75, the teacher 0 and 1, the truth is 1. KL = ln(1/.75).
    #[test]
    fn hand_computed() {
        let predictions = [
            Prediction::new(&logs(&[0.45, 0.05]), &[0.5, 0.5], Some(1), 0).unwrap(),
            Prediction::new(&logs(&[0.25, 0.75]), &[0.0, 1.0], Some(1), 3).unwrap(),
        ];
        let m = summarise(&predictions).unwrap();
        assert_eq!((m.answers, m.accuracy, m.agreement), (2, Some(0.5), 1.0));
        let kl = [0.5 * (25.0_f64 / 9.0).ln(), (4.0_f64 / 3.0).ln()];
        close(m.kl, (kl[0] + kl[1]) / 2.0);
        close(m.option_mass, 0.75);
        close(m.kl_vocabulary, m.kl + 0.5 * 2.0_f64.ln());
        close(m.top_probability, 0.825);
        close(m.brier.unwrap(), (2.0 * 0.81 + 2.0 * 0.0625) / 2.0);
        let entropies =
            [-(0.9 * 0.9_f64.ln() + 0.1 * 0.1_f64.ln()), -(0.25 * 0.25_f64.ln() + 0.75 * 0.75_f64.ln())];
        close(m.entropy, (entropies[0] + entropies[1]) / 2.0);
        // 0.9 falls in the 14th of 15 bins and is wrong, .75 in the 12th and is right.
        close(m.ece.unwrap(), (0.9 + 0.25) / 2.0);
        assert_eq!(m.by_observations.iter().map(|b| b.observations).collect::<Vec<_>>(), [0, 3]);
        close(m.by_observations[0].kl, kl[0]);
        close(m.by_observations[0].kl_vocabulary, kl[0] + 2.0_f64.ln());
        close(m.by_observations[1].kl, kl[1]);
        assert_eq!(m.by_observations[0].accuracy, Some(0.0));
        assert_eq!(m.by_observations[1].accuracy, Some(1.0));
    }

    #[test]
    fn teacher_beside_it() {
        let predictions = [
            Prediction::new(&logs(&[0.9, 0.05, 0.05]), &[0.2, 0.5, 0.3], Some(0), 0).unwrap(),
            Prediction::new(&logs(&[0.1, 0.1, 0.1]), &[0.0, 0.25, 0.75], Some(2), 1).unwrap(),
        ];
        let m = summarise_teacher(&predictions).unwrap();
        assert_eq!((m.kl, m.kl_vocabulary, m.agreement, m.option_mass), (0.0, 0.0, 1.0, 1.0));
        assert_eq!(m.accuracy, Some(0.5));
        close(m.top_probability, 0.625);
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
        let beliefs = m.beliefs.unwrap();
        assert_eq!((beliefs.answers, beliefs.accuracy, beliefs.agreement), (2, Some(0.0), 1.0));
        close(beliefs.kl, (4.0_f64 / 3.0).ln());
        let names: Vec<&str> = beliefs.by_belief.iter().map(|of| of.belief.as_str()).collect();
        assert_eq!(names, ["bags", "price"]);
        assert_eq!(summarise_teacher(&all).unwrap().beliefs.unwrap().kl, 0.0);
        // Nothing but reports.
        let m = summarise(&[of_price]).unwrap();
        close(m.kl, (4.0_f64 / 3.0).ln());
        assert!(m.by_belief.is_empty() && m.beliefs.is_some());
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
            assert!(m.kl.is_finite() && m.kl_vocabulary.is_finite() && m.entropy.is_finite());
            assert_eq!((m.accuracy, m.ece, m.ece_expected, m.brier), (None, None, None, None));
        }
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
}
