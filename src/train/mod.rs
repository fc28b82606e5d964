//! Training: the loss of a step, AdamW, the loop, checkpoints and the metrics log.
//!
//! This folder knows neither worlds nor teachers: it trains on sequences with soft targets.

pub mod checkpoint;
pub mod config;
pub mod loss;
pub mod metrics_log;
pub mod optimizer;
pub mod tensorboard;
pub mod trainer;
