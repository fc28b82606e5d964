//! The teacher: exact Bayesian inference about a user, and the episodes that it leaves behind.
//!
//! [`Posterior`] is the whole of the inference: observe an answer, predict the next one. [`decide`] turns a
//! prediction into what the assistant says. [`simulate`] takes one user through one episode, and [`teach`] all
//! of them into the files that training reads. Nothing here knows which world it teaches.

mod config;
mod decision;
mod files;
mod held_out;
mod posterior;
mod simulate;
mod split;
mod summary;
mod teach;

pub use config::{Evidence, Kind, Targets, TeacherConfig, WorldName};
pub use decision::{Decision, decide, expected_rewards};
pub use posterior::Posterior;
pub use simulate::{AnswerRecord, Simulation, simulate};
pub use split::{Part, SplitBy, SplitConfig};
pub use summary::{HeldOutSummary, SplitSummary, TeacherAt, TeacherSummary};
pub use teach::{TEACHER_FILE, teach};
