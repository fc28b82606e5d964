//! `[teacher]`: which users are taught about, by whom, and over how many questions.

use std::path::PathBuf;

use anyhow::Result;
use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::belief::Belief;
use super::beliefs::{self, BeliefsConfig};
use super::decision::Decision;
use super::drift::DriftConfig;
use super::evidence::{self, Evidence};
use super::rival::{self, ForgetfulConfig, Kind, NoisyOracleConfig, TemperedConfig, WrongPriorConfig};
use crate::error::usage;
use crate::world::World;
use crate::world::coins::CoinsConfig;
use crate::world::flights::FlightsConfig;
use crate::world::hmm::HmmConfig;
use crate::world::hotels::HotelsConfig;
use crate::world::markov::MarkovConfig;
use crate::world::personality::PersonalityConfig;
use crate::world::process::Process;
use crate::world::regression::{FunctionPrior, RegressionConfig};
use crate::world::shop::ShopConfig;
use crate::world::trait_flights::TraitFlightsConfig;

/// From how many users on the number to draw must be given: beyond it a whole grid takes hours.
const MANY_USERS: usize = 10_000;

/// How many users are drawn where they are sources without a grid and no number is given.
const DRAWN_USERS: usize = 1_000;

/// `[teacher]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// The domain.
    pub world: WorldName,
    /// Who teaches.
    #[serde(default)]
    pub kind: Kind,
    /// How many users to draw from the world's grid, none twice; the whole grid where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<usize>,
    /// Episodes of each user.
    #[serde(default = "default_episodes_per_user")]
    pub episodes_per_user: usize,
    /// Questions in an episode; the world's own number where absent (flights and hotels 5, personality 50).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<usize>,
    /// What the assistant says.
    #[serde(default)]
    pub decision: Decision,
    /// What the episodes give as `probs`.
    #[serde(default)]
    pub targets: Targets,
    /// How questions are chosen.
    #[serde(default)]
    pub evidence: Evidence,
    /// Random option sets among which `evidence = "eig"` chooses, where they are drawn freely.
    #[serde(default = "default_candidates")]
    pub candidates: usize,
    /// An episode ends before a question once the entropy of the posterior (all factors) is below this, in nats; 0:
    /// never.
    #[serde(default)]
    pub stop_entropy: f64,
    /// An episode ends before a question whose expected information gain, though the best, is below this, in nats; 0:
    /// never.
    #[serde(default)]
    pub stop_gain: f64,
    /// Of `kind = "noisy-oracle"`.
    #[serde(default, rename = "noisy-oracle")]
    pub noisy_oracle: NoisyOracleConfig,
    /// Of `kind = "wrong-prior"`.
    #[serde(default, rename = "wrong-prior")]
    pub wrong_prior: WrongPriorConfig,
    /// Of `kind = "tempered"`.
    #[serde(default)]
    pub tempered: TemperedConfig,
    /// Of `kind = "forgetful"`.
    #[serde(default)]
    pub forgetful: ForgetfulConfig,
    /// Users that change.
    #[serde(default)]
    pub drift: DriftConfig,
    /// Reports of beliefs.
    #[serde(default)]
    pub beliefs: BeliefsConfig,
    /// The flights world's own settings.
    #[serde(default)]
    pub flights: FlightsConfig,
    /// The hotels world's own settings.
    #[serde(default)]
    pub hotels: HotelsConfig,
    /// The personality world's own settings.
    #[serde(default)]
    pub personality: PersonalityConfig,
    /// The settings of the world of flights that follow from traits.
    #[serde(default)]
    pub trait_flights: TraitFlightsConfig,
    /// The shop's own settings.
    #[serde(default)]
    pub shop: ShopConfig,
    /// The coins world's own settings.
    #[serde(default)]
    pub coins: CoinsConfig,
    /// The Markov world's own settings.
    #[serde(default)]
    pub markov: MarkovConfig,
    /// The world of hidden Markov models' own settings.
    #[serde(default)]
    pub hmm: HmmConfig,
    /// The regression world's own settings.
    #[serde(default)]
    pub regression: RegressionConfig,
}

/// A world, by how its users come about.
#[derive(Clone, Debug)]
pub enum Domain {
    /// Users are a finite grid of hypotheses.
    Grid(World),
    /// Users are drawn sources.
    Process(Process),
}

impl Domain {
    /// As it stands in configs and episodes.
    pub fn name(&self) -> &str {
        match self {
            Domain::Grid(world) => world.name(),
            Domain::Process(world) => world.name(),
        }
    }
}

fn default_episodes_per_user() -> usize {
    5
}

fn default_candidates() -> usize {
    500
}

/// The worlds there are: a name, or the path of a declared world, which ends in `.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", remote = "Self")]
pub enum WorldName {
    /// See [`crate::world::flights`].
    Flights,
    /// See [`crate::world::hotels`].
    Hotels,
    /// See [`crate::world::personality`].
    Personality,
    /// See [`crate::world::trait_flights`].
    TraitFlights,
    /// See [`crate::world::shop`].
    Shop,
    /// See [`crate::world::coins`].
    Coins,
    /// See [`crate::world::markov`].
    Markov,
    /// See [`crate::world::hmm`].
    Hmm,
    /// See [`crate::world::regression`].
    Regression,
    /// See [`crate::world::declared`]; the path is taken from the working directory.
    #[serde(skip)]
    Declared(PathBuf),
}

impl Serialize for WorldName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            WorldName::Declared(path) => path.serialize(serializer),
            name => WorldName::serialize(name, serializer),
        }
    }
}

impl<'de> Deserialize<'de> for WorldName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WorldName, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.ends_with(".toml") {
            return Ok(WorldName::Declared(text.into()));
        }
        WorldName::deserialize(text.into_deserializer())
    }
}

/// What an episode gives as `probs`, which training imitates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Targets {
    /// The teacher's whole predictive distribution.
    #[default]
    Predictive,
    /// All on the most probable option.
    Argmax,
    /// All on an option drawn from the predictive distribution.
    Sampled,
}

impl TeacherConfig {
    /// Every setting but the world at its default.
    pub fn new(world: WorldName) -> TeacherConfig {
        TeacherConfig {
            world,
            kind: Kind::default(),
            users: None,
            episodes_per_user: default_episodes_per_user(),
            rounds: None,
            decision: Decision::default(),
            targets: Targets::default(),
            evidence: Evidence::default(),
            candidates: default_candidates(),
            stop_entropy: 0.0,
            stop_gain: 0.0,
            noisy_oracle: NoisyOracleConfig::default(),
            wrong_prior: WrongPriorConfig::default(),
            tempered: TemperedConfig::default(),
            forgetful: ForgetfulConfig::default(),
            drift: DriftConfig::default(),
            beliefs: BeliefsConfig::default(),
            flights: FlightsConfig::default(),
            hotels: HotelsConfig::default(),
            personality: PersonalityConfig::default(),
            trait_flights: TraitFlightsConfig::default(),
            shop: ShopConfig::default(),
            coins: CoinsConfig::default(),
            markov: MarkovConfig::default(),
            hmm: HmmConfig::default(),
            regression: RegressionConfig::default(),
        }
    }

    /// The world as configured.
    ///
    /// # Errors
    /// If its own settings make no sense.
    pub fn build(&self) -> Result<Domain> {
        match &self.world {
            WorldName::Flights => World::flights(&self.flights).map(Domain::Grid),
            WorldName::Hotels => World::hotels(&self.hotels).map(Domain::Grid),
            WorldName::Personality => World::personality(&self.personality).map(Domain::Grid),
            WorldName::TraitFlights => {
                World::trait_flights(&self.trait_flights, &self.personality).map(Domain::Grid)
            }
            WorldName::Shop => World::shop(&self.shop).map(Domain::Grid),
            WorldName::Declared(path) => World::declared(path).map(Domain::Grid),
            WorldName::Coins => Process::coins(&self.coins).map(Domain::Process),
            WorldName::Markov => Process::markov(&self.markov).map(Domain::Process),
            WorldName::Hmm => Process::hmm(&self.hmm).map(Domain::Process),
            WorldName::Regression => Process::regression(&self.regression).map(Domain::Process),
        }
    }

    /// The world as configured, where its users are a grid.
    ///
    /// # Errors
    /// If its own settings make no sense, or its users are drawn.
    pub fn build_world(&self) -> Result<World> {
        match self.build()? {
            Domain::Grid(world) => Ok(world),
            Domain::Process(world) => {
                Err(usage(format!("the users of the {} world are drawn sources, not a grid", world.name())))
            }
        }
    }

    /// Questions in an episode.
    pub fn rounds_in(&self, world: &World) -> usize {
        self.rounds.unwrap_or_else(|| world.default_rounds())
    }

    /// Checks everything, the world's own settings too.
    ///
    /// # Errors
    /// Names the key, its value and what is possible.
    pub fn validate(&self) -> Result<()> {
        self.checked_domain().map(|_| ())
    }

    /// The world, where every setting goes with it.
    pub(super) fn checked_domain(&self) -> Result<Domain> {
        let domain = self.build()?;
        match &domain {
            Domain::Grid(world) => self.check_against(world)?,
            Domain::Process(world) => self.check_process(world)?,
        }
        Ok(domain)
    }

    /// How many users to draw where they are sources.
    pub(super) fn drawn_users(&self) -> usize {
        self.users.unwrap_or(DRAWN_USERS)
    }

    /// Rounds in an episode of a drawn source.
    pub(super) fn process_rounds(&self, world: &Process) -> usize {
        self.rounds.unwrap_or_else(|| world.default_rounds())
    }

    fn check_process(&self, world: &Process) -> Result<()> {
        let name = world.name();
        rival::check_settings(self)?;
        if self.kind == Kind::WrongPrior {
            let instead = match world {
                Process::Coins(_) | Process::Markov(_) => format!(
                    "what it believes is teacher.{name}.prior, and what users are can be another: teacher.{name}.source"
                ),
                Process::Hmm(_) | Process::Regression(_) => "use another kind".to_string(),
            };
            return Err(usage(format!(
                "teacher.kind is \"wrong-prior\", but in the {name} world a teacher has no attributes to believe something wrong \
                 about: {instead}"
            )));
        }
        let knows_all = Belief::prior(world).hypotheses().is_some_and(|probs| probs.len() == 1);
        if matches!(self.kind, Kind::Tempered | Kind::Forgetful) && knows_all {
            return Err(usage(format!(
                "teacher.kind is {:?}, but the prior of this {name} world leaves nothing to learn: this teacher would be the exact \
                 one. Use another prior, or another kind (\"noisy-oracle\")",
                self.kind.name()
            )));
        }
        for (key, chosen) in [
            ("evidence", self.evidence != Evidence::Random),
            ("stop_entropy", self.stop_entropy > 0.0),
            ("stop_gain", self.stop_gain > 0.0),
            ("drift.hazard", self.drift.hazard > 0.0),
            ("beliefs.every", self.beliefs.every > 0),
        ] {
            if chosen {
                return Err(usage(format!(
                    "teacher.{key} is not available in the {name} world, whose users are drawn sources and not a list of \
                     hypotheses: leave it out"
                )));
            }
        }
        let numbers = [("users", self.drawn_users()), ("episodes_per_user", self.episodes_per_user)];
        for (key, number) in numbers {
            if !(1..=10_000_000).contains(&number) {
                return Err(usage(format!("teacher.{key} is {number}, 1 to 10000000 are possible")));
            }
        }
        let episodes = self.drawn_users() * self.episodes_per_user;
        if episodes > 100_000_000 {
            return Err(usage(format!(
                "teacher.users times teacher.episodes_per_user is {episodes}, more than 100000000"
            )));
        }
        let rounds = self.process_rounds(world);
        // Who forgets solves for all earlier values again at each.
        const MOST_FORGOTTEN: usize = 200;
        let is_gaussian_process = matches!(world, Process::Regression(world)
            if matches!(world.config().function, FunctionPrior::GaussianProcess { .. }));
        if self.kind == Kind::Forgetful && is_gaussian_process && rounds > MOST_FORGOTTEN {
            return Err(usage(format!(
                "teacher.rounds is {rounds}, but a forgetful teacher of a Gaussian process takes {MOST_FORGOTTEN} at most"
            )));
        }
        if !(1..=world.max_rounds()).contains(&rounds) {
            return Err(usage(format!(
                "teacher.rounds is {rounds}, but an episode of the {name} world has 1 to {}",
                world.max_rounds()
            )));
        }
        Ok(())
    }

    fn check_against(&self, world: &World) -> Result<()> {
        let grid = world.users();
        match self.users {
            None if grid > MANY_USERS => {
                return Err(usage(format!(
                    "the {} world has {grid} users as configured, too many to teach about them all: set \
                     teacher.users (1000, say) to draw that many",
                    world.name()
                )));
            }
            Some(users) if users == 0 || users > grid => {
                return Err(usage(format!(
                    "teacher.users is {users}, but the {} world has {grid} users as configured: 1 to {grid} can be \
                     drawn",
                    world.name()
                )));
            }
            _ => {}
        }
        if self.episodes_per_user == 0 {
            return Err(usage("teacher.episodes_per_user is 0, it must be at least 1"));
        }
        let rounds = self.rounds_in(world);
        let max = world.max_rounds().unwrap_or(1000);
        if rounds == 0 || rounds > max {
            return Err(usage(format!(
                "teacher.rounds is {rounds}, but an episode of the {} world has 1 to {max}",
                world.name()
            )));
        }
        rival::check(self, world)?;
        evidence::check(self, world)?;
        self.drift.check(world)?;
        beliefs::check(self, world)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn message(toml: &str) -> String {
        let config: TeacherConfig = toml::from_str(toml).unwrap();
        let error = config.validate().unwrap_err();
        assert!(error.downcast_ref::<crate::error::UsageError>().is_some());
        error.to_string()
    }

    #[test]
    fn the_world_is_enough() {
        let config: TeacherConfig = toml::from_str("world = \"personality\"").unwrap();
        assert_eq!(config, TeacherConfig::new(WorldName::Personality));
        config.validate().unwrap();
        let again: TeacherConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn bad_values_are_refused() {
        assert!(message("world = \"flights\"\nusers = 625").contains("users is 625"));
        assert!(message("world = \"flights\"\nusers = 0").contains("users is 0"));
        assert!(message("world = \"flights\"\nepisodes_per_user = 0").contains("episodes_per_user"));
        assert!(message("world = \"flights\"\nrounds = 0").contains("rounds is 0"));
        assert!(message("world = \"personality\"\nrounds = 51").contains("1 to 50"));
        let six = r#"["departure_time", "duration", "number_of_stops", "price", "bags", "flexibility"]"#;
        let many = format!("world = \"flights\"\n[flights]\nfeatures = {six}");
        assert!(message(&many).contains("15624 users"));
        for unknown in
            ["world = \"trains\"", "world = \"flights\"\nkind = \"oracel\"", "world = \"flights\"\nuser = 3"]
        {
            assert!(toml::from_str::<TeacherConfig>(unknown).is_err(), "{unknown}");
        }
    }
}
