//! Measures predictions against the truth and against the teacher; knows neither worlds nor models.
//!
//! Everything but `option_mass` and `kl_vocabulary` is about the distribution renormalised over the options,
//! whatever the loss of the training was. Logarithms are natural; sums run in a fixed order, so that the result does
//! not depend on threads. Answers of one user depend on each other, so standard errors are over users. Reports of
//! beliefs are measured apart from what was predicted or recommended.

mod calibration;
mod cluster;
mod confusion;
mod correlation;
mod eval_file;
mod interactive;
mod margin;
mod measure;
mod measures;
mod numeric;
mod predicted;
mod prediction;
mod probe;
mod reasoner;
mod reply;
mod sensitivity;

pub use calibration::{Calibration, CalibrationBins, ExpectedEce, ReliabilityBin, expected_ece};
pub use cluster::ClusteredMean;
pub use confusion::Confusion;
pub use correlation::ClusteredCorrelation;
pub use eval_file::{EVAL_FILE, EvalFile, Model};
pub use interactive::Interactive;
pub use margin::{CLEAR_MARGIN, MarginBin, margin};
pub use measure::{Means, Measure};
pub use measures::{Measures, MeasuresAt, MeasuresOf, PAIRED, RoundAccuracy, summarise, summarise_teacher};
pub use numeric::{argmax, entropy, log_sum_exp};
pub use predicted::{PREDICTIONS_FILE, PredictedAnswer, PredictedEpisode};
pub use prediction::{LOG_FLOOR, Prediction};
pub use probe::{Acted, Acting, BeliefProbe, Correlations, CorrelationsAt, CorrelationsOf, Estimate};
pub use reasoner::{Fitted, FittedReasoner};
pub use reply::{Reading, Replies, Reply};
pub use sensitivity::{GainBin, Learnt, Sensitivity, SensitivityAt};
