//! The teacher: exact Bayesian inference about a user, and the episodes that it leaves behind.
//!
//! [`Posterior`] is the whole of the inference: observe an answer, predict the next one. [`decide`] turns a
//! prediction into what the assistant says. [`simulate`] takes one user through one episode, and [`teach`] all
//! of them into the files that training reads. Nothing here knows which world it teaches.
//!
//! Where users are drawn sources ([`crate::world::process`]), [`Belief`] is the inference (conjugate [`Counts`], a
//! [`Mixture`] of known sources, the [`Forward`] algorithm, [`Gaussian`] posteriors) and [`simulate_process`] the
//! episode.

mod belief;
mod config;
mod counts;
mod decision;
mod files;
mod forward;
mod gaussian;
mod held_out;
mod mixture;
mod posterior;
mod process;
mod simulate;
mod split;
mod summary;
mod teach;

pub use belief::Belief;
pub use config::{Domain, Evidence, Kind, Targets, TeacherConfig, WorldName};
pub use counts::Counts;
pub use decision::{Decision, decide, expected_rewards};
pub use forward::{Between, Forward, Hypothesis};
pub use gaussian::Gaussian;
pub use mixture::Mixture;
pub use posterior::Posterior;
pub use process::{ProcessSimulation, simulate_process};
pub use simulate::{AnswerRecord, Simulation, simulate};
pub use split::{Part, SplitBy, SplitConfig};
pub use summary::{HeldOutSummary, SplitSummary, TeacherAt, TeacherSummary};
pub use teach::{TEACHER_FILE, teach};
