//! The same answers predicted in two dialogues: as taught, and with the model's own recommendations in it.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::cluster::ClusteredMean;
use super::measure::Measure;
use super::measures::{Measures, summarise};
use super::prediction::Prediction;
use super::probe::Estimate;

/// Interactive measures beside those of the dialogues as taught, of the same episodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interactive {
    /// With the model's own recommendations in the dialogue.
    pub own: Box<Measures>,
    /// With the teacher's.
    pub as_taught: Box<Measures>,
    /// How much the own recommendations add to the accuracy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy_gap: Option<Estimate>,
    /// And to the KL from the teacher, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_gap: Option<Estimate>,
}

impl Interactive {
    /// From predictions of the same answers in the same order.
    ///
    /// # Errors
    /// If there are none, or not as many of both.
    pub fn new(own: &[Prediction], as_taught: &[Prediction]) -> Result<Interactive> {
        ensure!(own.len() == as_taught.len(), "{} answers beside {}", own.len(), as_taught.len());
        let gap = |measure: Measure| {
            let mut mean = ClusteredMean::default();
            for (own, taught) in own.iter().zip(as_taught).filter(|(own, _)| own.belief.is_none()) {
                if let (Some(a), Some(b)) = (measure.of(own), measure.of(taught)) {
                    mean.add(own.user, a - b);
                }
            }
            Estimate::of_mean(&mean)
        };
        Ok(Interactive {
            accuracy_gap: gap(Measure::Accuracy),
            kl_gap: gap(Measure::Kl),
            own: Box::new(summarise(own)?),
            as_taught: Box::new(summarise(as_taught)?),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// One user is right only interactively, one both times: a gap of ½, and the user's means differ by 1 and 0.
    #[test]
    fn gaps_are_of_the_same_answers() {
        let prediction = |user, p: f64| {
            Prediction::new(&[p.ln(), (1.0 - p).ln()], &[0.5, 0.5], Some(0), 0).unwrap().asked(user, 1)
        };
        let own = [prediction(0, 0.75), prediction(1, 0.75)];
        let interactive = Interactive::new(&own, &[prediction(0, 0.25), prediction(1, 0.75)]).unwrap();
        assert_eq!(interactive.accuracy_gap, Some(Estimate { value: 0.5, standard_error: Some(0.5) }));
        // ½ ln(½/¾) + ½ ln(½/¼) either way round.
        assert!(interactive.kl_gap.unwrap().value.abs() < 1e-12);
        assert!(Interactive::new(&own, &own[..1]).is_err());
    }
}
