//! Runs a model over episodes and hands what it predicts to `metrics`.
//!
//! [`predictions`] are of the dialogues as they are. To look into an episode, its teacher goes through it again
//! ([`crate::teacher::Replayer`]): [`Tails`] then go on from it with what the dialogue does not ask, on its own keys and
//! values, and leave the dialogue as it was; [`look_into`] asks held-out option sets and beliefs so, [`interact`] lets the
//! model's own recommendations get the feedback, and [`learnt_from_sets`] lets users choose from sets that tell more or
//! less. [`replies`] are written out freely.

mod config;
mod dialogues;
mod generate;
mod in_depth;
mod interactive;
mod sensitivity;
mod tails;

pub use config::EvalConfig;
pub use dialogues::{predictions, users};
pub use generate::replies;
pub use in_depth::{Chosen, InDepth, Looking, look_into};
pub use interactive::interact;
pub use sensitivity::{TESTS, learnt_from_sets};
pub use tails::Tails;
