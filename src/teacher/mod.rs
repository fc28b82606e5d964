//! The teacher: exact Bayesian inference about a user, and the episodes that it leaves behind.
//!
//! [`Posterior`] is the whole of the inference: observe an answer, predict the next one, say what a question is worth;
//! a [`Transition`] allows for users that change. [`Kind`] lists the exact teacher and its rivals. [`decide`] turns a
//! prediction into what the assistant says. [`simulate`] takes one user through one episode, and [`teach`] all
//! of them into the files that training reads. Nothing here knows which world it teaches.
//!
//! In a [`Session`] the answers come one by one from a person, and [`implied_belief`] says what a predictor acts as if it
//! believed.
//! A [`Replayer`] goes through an episode again, so that [`Asides`] can be asked that the dialogue does not ask;
//! [`fit_reasoner`] finds the reasoner that explains a model's answers.
//!
//! Where users are drawn sources ([`crate::world::process`]), [`Belief`] is the inference (conjugate [`Counts`], a
//! [`Mixture`] of known sources, the [`Forward`] algorithm, [`Gaussian`] posteriors) and [`simulate_process`] the
//! episode.

mod asides;
mod belief;
mod beliefs;
mod config;
mod counts;
mod decision;
mod drift;
mod evidence;
mod files;
mod follow;
mod forward;
mod gaussian;
mod held_out;
mod implied;
mod information;
mod informativity;
mod mixture;
mod posterior;
mod process;
mod reasoner;
mod replay;
mod rival;
mod schedule;
mod session;
mod simulate;
mod split;
mod stated;
mod summary;
mod teach;

pub use asides::{About, Aside, Asides};
pub use belief::Belief;
pub use beliefs::BeliefsConfig;
pub use config::{Domain, Targets, TeacherConfig, WorldName};
pub use counts::Counts;
pub use decision::{Decision, decide, expected_rewards};
pub use drift::{DriftConfig, DriftTo, Transition};
pub use evidence::Evidence;
pub use follow::Follower;
pub use forward::{Between, Forward, Hypothesis};
pub use gaussian::Gaussian;
pub use implied::implied_belief;
pub use informativity::Informative;
pub use mixture::Mixture;
pub use posterior::Posterior;
pub use process::{ProcessSimulation, simulate_process};
pub use reasoner::{Explained, fit_reasoner};
pub use replay::{Moment, Replay, Replayer};
pub use rival::{ForgetfulConfig, Kind, NoisyOracleConfig, TemperedConfig, Weighing, WrongPriorConfig};
pub use schedule::{Example, Search, Target, schedule};
pub use session::{Interview, Session, Sessions};
pub use simulate::{AnswerRecord, Asked, BeliefRecord, Simulation, simulate};
pub use split::{Part, SplitBy, SplitConfig};
pub use summary::{BeliefAt, BeliefsSummary, HeldOutSummary, SplitSummary, TeacherAt, TeacherSummary};
pub use teach::{TEACHER_FILE, teach, teach_some};
