//! Published interactions: a user's rounds a line, each with options as text and the index of the user's choice.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::{Imported, Person, check_choice, follow_all, stem};
use crate::episode::{parse_json, scan};
use crate::teacher::{Follower, TeacherConfig, WorldName};
use crate::world::{Question, World};

/// One line. Published files have more fields, of which nothing follows.
#[derive(Deserialize)]
pub(super) struct Interaction {
    idx: Option<serde_json::Value>,
    pub(super) reward_fn: Option<Vec<f64>>,
    features: Option<Vec<String>>,
    pub(super) rounds: Vec<Round>,
}

#[derive(Clone, Deserialize)]
pub(super) struct Round {
    pub(super) options: Vec<String>,
    pub(super) user_idx: usize,
}

/// The worlds of a file: one for each list of features that is described in it.
pub(super) struct Worlds<'a> {
    config: &'a TeacherConfig,
    built: HashMap<String, Place>,
}

/// A world, with the config that it was built from.
pub(super) struct Place {
    pub(super) config: TeacherConfig,
    pub(super) world: World,
}

impl<'a> Worlds<'a> {
    pub(super) fn new(config: &'a TeacherConfig) -> Self {
        Self { config, built: HashMap::new() }
    }

    /// The world of options that read like `text`, described by `features`, and its key among all.
    pub(super) fn of(&mut self, text: &str, features: Option<&[String]>) -> Result<(String, &Place)> {
        let world = match text.split_whitespace().next() {
            Some("Flight") => WorldName::Flights,
            Some("Hotel") => WorldName::Hotels,
            Some("Product") => WorldName::Shop,
            _ => self.config.world.clone(),
        };
        let key = format!("{world:?} {}", features.map(|f| f.join(" ")).unwrap_or_default());
        if !self.built.contains_key(&key) {
            let place = self.build(world, features)?;
            self.built.insert(key.clone(), place);
        }
        let place = self.built.get(&key).context("a world that was just built")?;
        Ok((key, place))
    }

    pub(super) fn get(&self, key: &str) -> Option<&Place> {
        self.built.get(key)
    }

    fn build(&self, world: WorldName, features: Option<&[String]>) -> Result<Place> {
        let mut config = TeacherConfig { world, ..self.config.clone() };
        if let Some(features) = features {
            let list = || serde_json::Value::from(features.to_vec());
            match &config.world {
                WorldName::Flights => config.flights.features = serde_json::from_value(list())?,
                WorldName::Hotels => config.hotels.features = serde_json::from_value(list())?,
                _ => {}
            }
        }
        let world = config.world_of_people()?;
        Ok(Place { config, world })
    }
}

impl Place {
    /// The questions of rounds, with what was chosen.
    pub(super) fn questions(&self, rounds: &[Round]) -> Result<Vec<(Question, usize)>> {
        let question = |(i, round): (usize, &Round)| {
            let at = || format!("round {i} (counted from 0)");
            let question = self.world.question_of_text(i + 1, &round.options).with_context(at)?;
            let chosen = check_choice(round.user_idx, round.options.len()).with_context(at)?;
            Ok((question, chosen))
        };
        rounds.iter().enumerate().map(question).collect()
    }
}

/// What of a user an id says: the index that the file gives, with the line where indices come again.
pub(super) fn user_name(idx: Option<&serde_json::Value>, line: usize) -> String {
    match idx {
        Some(serde_json::Value::String(name)) => format!("{name}-{line}"),
        Some(number) => format!("{number}-{line}"),
        None => line.to_string(),
    }
}

/// Reads a file of published interactions (flights, hotels, the web shop; simulated users or people), and lets the
/// teacher of `config` go through each line.
///
/// # Errors
/// If the file cannot be read, has nothing in it, or the config makes no sense.
pub fn interactions(path: &Path, config: &TeacherConfig, seed: u64) -> Result<Imported> {
    let mut worlds = Worlds::new(config);
    let mut people: Vec<(String, Person<Vec<Round>>)> = Vec::new();
    let stem = stem(path);
    let mut fatal = None;
    let problems = scan(path, |number, text| {
        let line: Interaction = parse_json(text)?;
        let mut read = || -> Result<(String, Person<Vec<Round>>)> {
            ensure!(!line.rounds.is_empty(), "there are no rounds");
            let Some(first) = line.rounds[0].options.first() else { bail!("round 0 has no options") };
            let (key, place) = worlds.of(first, line.features.as_deref())?;
            // Only whether they can be asked: they are made again when the teacher comes to them.
            place.questions(&line.rounds)?;
            let user = user_name(line.idx.as_ref(), number);
            Ok((key, Person { id: format!("{stem}-{number:06}"), user, said: line.rounds.clone() }))
        };
        match read() {
            Ok(person) => people.push(person),
            // The settings are wrong for every line alike.
            Err(error) if error.is::<crate::error::UsageError>() => {
                fatal.get_or_insert(error);
            }
            Err(error) => return Err(vec![format!("{error:#}")]),
        }
        Ok(())
    })?;
    if let Some(error) = fatal {
        return Err(error);
    }
    ensure!(!people.is_empty() || !problems.is_empty(), "{}: there is nothing in it", path.display());
    let mut imported = Imported { problems, ..Imported::default() };
    // One world after the other; then the order of the file again.
    let mut keys: Vec<&String> = people.iter().map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let keys: Vec<String> = keys.into_iter().cloned().collect();
    for key in keys {
        let (these, others): (Vec<_>, Vec<_>) = people.into_iter().partition(|(of, _)| *of == key);
        people = others;
        let these: Vec<Person<_>> = these.into_iter().map(|(_, person)| person).collect();
        let place = worlds.get(&key).context("a world that was built")?;
        let teacher = Follower::new(&place.config, &place.world, seed)?;
        let failed = follow_all(&teacher, &these, |rounds| place.questions(rounds), &mut imported);
        if let Some((_, error)) = failed.into_iter().next() {
            return Err(error);
        }
        if !place.world.has_exact_teacher() {
            imported.notes.push(format!(
                "no exact teacher exists for the {} world: every option gets the same probability, so accuracy can be \
                 measured on these episodes and agreement cannot",
                place.world.name()
            ));
        }
    }
    imported.episodes.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(imported)
}
