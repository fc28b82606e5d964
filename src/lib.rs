//! x
pub mod cli;
pub mod config;
pub mod device;
pub mod episode;
pub mod error;
pub mod eval;
pub mod export;
pub mod files;
pub mod hub;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod rng;
pub mod teacher;
pub mod tokens;
pub mod train;
pub mod world;
