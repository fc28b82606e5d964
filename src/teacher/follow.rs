//! Real users: their answers as they gave them, with what the teacher predicts at each.

use anyhow::Result;

use super::config::{Domain, TeacherConfig};
use super::evidence::Evidence;
use super::simulate::{Course, Simulation};
use crate::error::usage;
use crate::world::{Question, World};

/// A teacher that follows dialogues which took place already.
pub struct Follower<'a> {
    course: Course<'a>,
    seed: u64,
}

impl<'a> Follower<'a> {
    /// A teacher of `config`, which must have passed [`TeacherConfig::validate`], in `world`, which must be the config's.
    ///
    /// # Errors
    /// If the config asks for what real users do not give: beliefs, chosen evidence, or an early end.
    pub fn new(config: &'a TeacherConfig, world: &'a World, seed: u64) -> Result<Follower<'a>> {
        for (key, chosen) in [
            ("beliefs.every", config.beliefs.every > 0),
            ("evidence", config.evidence != Evidence::Random),
            ("stop_entropy", config.stop_entropy > 0.0),
            ("stop_gain", config.stop_gain > 0.0),
        ] {
            if chosen {
                return Err(usage(format!(
                    "teacher.{key} means nothing where people answered already: leave it out"
                )));
            }
        }
        Ok(Follower { course: Course::new(config, world), seed })
    }

    /// The episode of a user who was asked these questions and took these options; `index` tells the episodes of one
    /// seed apart. Answers that no hypothesis explains are ignored by the posterior, and counted.
    ///
    /// # Panics
    /// If a question is not of the world, or has no such option.
    pub fn follow(&self, index: u64, id: &str, user: &str, answers: &[(Question, usize)]) -> Simulation {
        self.course.follow(self.seed, index, (id, user), answers)
    }
}

impl TeacherConfig {
    /// The world of a config for people who answered already: the number of simulated users does not matter.
    ///
    /// # Errors
    /// If the config makes no sense, or users of its world are drawn sources.
    pub fn world_of_people(&mut self) -> Result<World> {
        self.users = Some(1);
        match self.checked_domain()? {
            Domain::Grid(world) => Ok(world),
            Domain::Process(world) => Err(usage(format!(
                "people's answers cannot be followed in the {} world, whose users are drawn sources",
                world.name()
            ))),
        }
    }
}
