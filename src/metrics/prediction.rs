//! One answer's prediction, beside what the teacher predicted and what the user answered.

use anyhow::{Result, ensure};

use super::numeric::log_sum_exp;

/// Log-probabilities count as no lower than this, about ln of the smallest positive f64: a model that gives an
/// option no mass at all gets a large KL, but a finite one.
pub const LOG_FLOOR: f64 = -708.0;

/// What one answer was predicted to be, beside what the teacher predicted and what the user answered.
#[derive(Clone, Debug)]
pub struct Prediction {
    /// Renormalised over the options, and not below [`LOG_FLOOR`].
    pub(super) log_probs: Vec<f64>,
    pub(super) log_option_mass: f64,
    pub(super) teacher: Vec<f64>,
    pub(super) truth: Option<usize>,
    pub(super) observations: usize,
    pub(super) user: usize,
    pub(super) round: usize,
    pub(super) belief: Option<String>,
}

impl Prediction {
    /// A prediction from the log-probabilities that a model gives the options, among its whole vocabulary.
    ///
    /// Their mass (at most 1) becomes `option_mass`; pass renormalised values where only those are known. It counts
    /// as the answer of round `observations + 1` of one same user, until [`Prediction::asked`] says otherwise.
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
            user: 0,
            round: observations + 1,
            belief: None,
        })
    }

    /// Says who was asked (any number that is the same for the answers of one user), and in which round of the
    /// episode, counted from 1.
    #[must_use]
    pub fn asked(self, user: usize, round: usize) -> Prediction {
        Prediction { user, round, ..self }
    }

    /// Says what the answer reports a belief about; none where it predicts or recommends.
    #[must_use]
    pub fn about(self, belief: Option<String>) -> Prediction {
        Prediction { belief, ..self }
    }

    /// Another prediction of the same answer, from the log-probabilities of its options.
    ///
    /// # Errors
    /// As [`Prediction::new`].
    pub fn predicting(&self, option_log_probs: &[f64]) -> Result<Prediction> {
        let other = Prediction::new(option_log_probs, &self.teacher, self.truth, self.observations)?;
        Ok(other.asked(self.user, self.round).about(self.belief.clone()))
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

    /// The teacher's distribution over the options.
    pub fn teacher(&self) -> &[f64] {
        &self.teacher
    }

    /// Who was asked.
    pub fn user(&self) -> usize {
        self.user
    }

    /// The mass that the whole vocabulary leaves to the options.
    pub fn option_mass(&self) -> f64 {
        self.log_option_mass.exp()
    }

    /// KL(teacher ‖ prediction) in nats.
    pub fn kl(&self) -> f64 {
        let terms = self.teacher.iter().zip(&self.log_probs);
        let kl: f64 = terms.filter(|(t, _)| **t > 0.0).map(|(t, log_p)| t * (t.ln() - log_p)).sum();
        // Equal distributions may round to a little below zero.
        kl.max(0.0)
    }
}
