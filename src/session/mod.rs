//! A person in a live dialogue with the exact teacher and a model side by side: what both predict and believe after every
//! answer. `ask` shows it in the terminal, `view` on a page.
//!
//! The teacher's part is [`teacher::Session`](crate::teacher::Session), a [`Predictor`] is the model's. A [`Look`] is what
//! there is to see at one place of the dialogue.

mod look;
mod predictor;

pub use look::{Asked, BeliefAt, Look, Probes};
pub use predictor::{Predicted, Predictor};
