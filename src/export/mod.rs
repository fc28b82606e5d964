//! What other programs load.

pub mod peft;
