//! What a model says that it believes, beside what it does.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::cluster::ClusteredMean;
use super::correlation::ClusteredCorrelation;
use super::measures::{Measures, summarise};
use super::numeric::argmax;
use super::prediction::Prediction;

/// A number with its standard error over users.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Of it; none for too few users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error: Option<f64>,
}

impl Estimate {
    /// A mean; none of nothing.
    pub fn of_mean(mean: &ClusteredMean) -> Option<Estimate> {
        Some(Estimate { value: mean.mean()?, standard_error: mean.standard_error() })
    }

    /// A correlation; none where one side does not vary.
    pub fn of_correlation(correlation: &ClusteredCorrelation) -> Option<Estimate> {
        Some(Estimate { value: correlation.value()?, standard_error: correlation.standard_error() })
    }

    /// A slope; none where the first side does not vary.
    pub fn of_slope(pairs: &ClusteredCorrelation) -> Option<Estimate> {
        Some(Estimate { value: pairs.slope()?, standard_error: pairs.slope_standard_error() })
    }
}

/// The same question answered in two ways.
#[derive(Clone, Debug)]
pub struct Acted {
    /// By the model itself.
    pub direct: Prediction,
    /// By one who believes what the model says that it believes, and infers exactly.
    pub stated: Prediction,
}

/// Beliefs stated on copies of the dialogues, which the dialogues know nothing of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeliefProbe {
    /// The stated distributions over levels, against the teacher's marginals and the user's true levels.
    pub reports: Box<Measures>,
    /// How the mean levels stated go with the teacher's, and with the user's.
    #[serde(flatten)]
    pub all: Correlations,
    /// By what the belief is about, in alphabetical order.
    pub by_belief: Vec<CorrelationsOf>,
    /// By the number of earlier answers that bear on the belief.
    pub by_observations: Vec<CorrelationsAt>,
    /// What the model does beside what it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acting: Option<Acting>,
}

/// Correlations of the mean level stated; none where one side does not vary.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Correlations {
    /// With the mean of the teacher's marginal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with_teacher: Option<Estimate>,
    /// With the user's level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with_truth: Option<Estimate>,
}

/// Correlations of the reports of one belief.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CorrelationsOf {
    /// What it is about.
    pub belief: String,
    /// How many reports.
    pub reports: usize,
    /// Of these reports.
    #[serde(flatten)]
    pub correlations: Correlations,
}

/// Correlations of the reports with one number of observations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CorrelationsAt {
    /// Earlier answers that bear on them.
    pub observations: usize,
    /// How many reports.
    pub reports: usize,
    /// Of these reports.
    #[serde(flatten)]
    pub correlations: Correlations,
}

/// Answers of the model, and those that follow from the beliefs that it states, to the same questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Acting {
    /// The model's own answers.
    pub direct: Box<Measures>,
    /// What follows from its stated beliefs.
    pub stated: Box<Measures>,
    /// How much more often the model's own answer is right than the one that its stated beliefs lead to: above zero it
    /// knows more than it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy_gap: Option<Estimate>,
    /// How often the two agree on the most probable option.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Estimate>,
    /// KL(own ‖ stated), in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<Estimate>,
}

/// Pairs to be correlated.
#[derive(Default)]
struct Pairs {
    reports: usize,
    with_teacher: ClusteredCorrelation,
    with_truth: ClusteredCorrelation,
}

impl Pairs {
    fn add(&mut self, report: &Prediction) {
        let mean = |probs: &[f64]| probs.iter().enumerate().map(|(level, p)| level as f64 * p).sum::<f64>();
        let stated = mean(&report.probs());
        self.reports += 1;
        self.with_teacher.add(report.user, stated, mean(&report.teacher));
        if let Some(truth) = report.truth {
            self.with_truth.add(report.user, stated, truth as f64);
        }
    }

    fn correlations(&self) -> Correlations {
        Correlations {
            with_teacher: Estimate::of_correlation(&self.with_teacher),
            with_truth: Estimate::of_correlation(&self.with_truth),
        }
    }
}

impl BeliefProbe {
    /// Measures reports of beliefs, and what was done beside them.
    ///
    /// # Errors
    /// If there are no reports, or one does not say what it is about.
    pub fn new(reports: &[Prediction], acted: &[Acted]) -> Result<BeliefProbe> {
        ensure!(reports.iter().all(|report| report.belief.is_some()), "a report that is about nothing");
        let (mut all, mut by_belief, mut by_observations) =
            (Pairs::default(), BTreeMap::<&str, Pairs>::new(), BTreeMap::<usize, Pairs>::new());
        for report in reports {
            all.add(report);
            by_belief.entry(report.belief.as_deref().unwrap_or_default()).or_default().add(report);
            by_observations.entry(report.observations).or_default().add(report);
        }
        let mut measures = summarise(reports)?;
        if let Some(beliefs) = measures.beliefs.take() {
            measures = *beliefs;
        }
        Ok(BeliefProbe {
            reports: Box::new(measures),
            all: all.correlations(),
            by_belief: (by_belief.iter())
                .map(|(belief, pairs)| CorrelationsOf {
                    belief: (*belief).to_owned(),
                    reports: pairs.reports,
                    correlations: pairs.correlations(),
                })
                .collect(),
            by_observations: (by_observations.iter())
                .map(|(&observations, pairs)| CorrelationsAt {
                    observations,
                    reports: pairs.reports,
                    correlations: pairs.correlations(),
                })
                .collect(),
            acting: if acted.is_empty() { None } else { Some(Acting::new(acted)?) },
        })
    }
}

impl Acting {
    fn new(acted: &[Acted]) -> Result<Acting> {
        let (mut gap, mut agreement, mut kl) =
            (ClusteredMean::default(), ClusteredMean::default(), ClusteredMean::default());
        for Acted { direct, stated } in acted {
            let (own, said) = (direct.probs(), stated.probs());
            let (own_top, said_top) = (argmax(&own), argmax(&said));
            let indicator = |holds: bool| f64::from(u8::from(holds));
            if let Some(truth) = direct.truth {
                gap.add(direct.user, indicator(own_top == truth) - indicator(said_top == truth));
            }
            agreement.add(direct.user, indicator(own_top == said_top));
            let terms = own.iter().zip(direct.log_probs.iter().zip(&stated.log_probs));
            let divergence: f64 = terms.map(|(p, (log_p, log_q))| p * (log_p - log_q)).sum();
            kl.add(direct.user, divergence.max(0.0));
        }
        let (direct, stated): (Vec<Prediction>, Vec<Prediction>) =
            acted.iter().map(|acted| (acted.direct.clone(), acted.stated.clone())).unzip();
        Ok(Acting {
            direct: Box::new(summarise(&direct)?),
            stated: Box::new(summarise(&stated)?),
            accuracy_gap: Estimate::of_mean(&gap),
            agreement: Estimate::of_mean(&agreement),
            kl: Estimate::of_mean(&kl),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::metrics::Measure;

    fn prediction(user: usize, probs: &[f64], teacher: &[f64], truth: usize) -> Prediction {
        let logs: Vec<f64> = probs.iter().map(|p| p.ln()).collect();
        Prediction::new(&logs, teacher, Some(truth), 0).unwrap().asked(user, 1)
    }

    /// Three users state 0, 1 and ½ of a level of two; the teacher has 0, ½ and 1, the truth is 0, 1 and 1.
    /// With the teacher: covariance (0 + ½ + ½)/3 - ¼ = 1/12, variances 1/6 each: ½.
    /// With the truth: (0 + 1 + ½)/3 - ½·⅔ = 1/6, variances 1/6 and 2/9: √3/2.
    #[test]
    fn correlations_by_hand() {
        let report = |user, stated: f64, teacher: f64, truth| {
            prediction(user, &[1.0 - stated, stated], &[1.0 - teacher, teacher], truth)
                .about(Some("price".into()))
        };
        let reports = [report(0, 0.0, 0.0, 0), report(1, 1.0, 0.5, 1), report(2, 0.5, 1.0, 1)];
        let probe = BeliefProbe::new(&reports, &[]).unwrap();
        assert!((probe.all.with_teacher.unwrap().value - 0.5).abs() < 1e-9);
        assert!((probe.all.with_truth.unwrap().value - 0.75_f64.sqrt()).abs() < 1e-9);
        assert_eq!((probe.by_belief[0].belief.as_str(), probe.by_belief[0].reports), ("price", 3));
        assert_eq!(probe.by_belief[0].correlations, probe.all);
        assert_eq!((probe.by_observations[0].observations, probe.reports.answers), (0, 3));
        assert!(
            probe.acting.is_none() && BeliefProbe::new(&[prediction(0, &[1.0], &[1.0], 0)], &[]).is_err()
        );
    }

    /// Two users: one acts right and says wrong (its own .75, stated .25, KL ½ ln 3), one is right both ways, alike.
    #[test]
    fn the_gap_by_hand() {
        let acted = [
            Acted {
                direct: prediction(0, &[0.75, 0.25], &[0.5, 0.5], 0),
                stated: prediction(0, &[0.25, 0.75], &[0.5, 0.5], 0),
            },
            Acted {
                direct: prediction(1, &[0.9, 0.1], &[0.5, 0.5], 0),
                stated: prediction(1, &[0.9, 0.1], &[0.5, 0.5], 0),
            },
        ];
        let acting = Acting::new(&acted).unwrap();
        let expected = [(acting.accuracy_gap, 0.5, 0.5), (acting.agreement, 0.5, 0.5)];
        for (estimate, value, error) in expected {
            let estimate = estimate.unwrap();
            assert_eq!((estimate.value, estimate.standard_error), (value, Some(error)));
        }
        assert!((acting.kl.unwrap().value - 0.25 * 3.0_f64.ln()).abs() < 1e-12);
        assert_eq!(acting.direct.get(Measure::Accuracy), Some(1.0));
        assert_eq!(acting.stated.get(Measure::Accuracy), Some(0.5));
    }
}
