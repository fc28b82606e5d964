//! The models: config, weights, decoder and adapters. Names are the hub's, end to end.
//!
//! This folder knows `ops` and `device` only: neither tokenizers nor episodes nor training.

pub mod adapter;
mod block;
pub mod config;
pub mod decoder;
mod experts;
pub mod gguf;
pub mod gradients;
pub mod loading;
pub mod lora;
mod mapped;
pub mod memory;
pub mod peft;
pub mod prefix;
pub mod shapes;
pub mod tensors;
