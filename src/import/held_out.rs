//! Published held-out option sets: which option each user prefers in sets that were no part of the interaction.
//!
//! An episode is some rounds of the user's interaction, whose answers carry no weight, and then one held-out set, whose
//! answer is the only one that is measured.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::choices::{Interaction, Round, Worlds};
use super::{Imported, Person, follow_all, stem};
use crate::episode::{Problem, parse_json, refuse, scan};
use crate::teacher::{Follower, TeacherConfig};

/// Which of the sets, and after what.
#[derive(Clone, Copy, Debug)]
pub struct HeldOutOptions<'a> {
    /// The file of the users' interactions; without it nothing goes before a set.
    pub interactions: Option<&'a Path>,
    /// So many rounds of the interaction go before a set; all where absent.
    pub after: Option<usize>,
    /// Only so many sets of each user.
    pub sets: Option<usize>,
}

/// Flights and hotels: sets that all users share.
#[derive(Deserialize)]
struct Shared {
    features: Option<Vec<String>>,
    all_options: Vec<Vec<String>>,
    user_idxs: Vec<Preferred>,
}

#[derive(Deserialize)]
struct Preferred {
    reward_fn: Vec<f64>,
    idxs: Vec<usize>,
}

/// The web shop: a line a user.
#[derive(Deserialize)]
struct Own {
    all_options: Vec<Round>,
}

/// A user's sets, and who it is.
struct User {
    name: String,
    rounds: Vec<Round>,
    sets: Vec<Round>,
    line: usize,
}

/// Reads held-out sets, and lets the teacher of `config` predict each.
///
/// # Errors
/// If a file cannot be read or has nothing in it, a user has no interaction, or the config makes no sense.
pub fn held_out(path: &Path, options: HeldOutOptions, config: &TeacherConfig, seed: u64) -> Result<Imported> {
    let interactions = options.interactions.map(read_interactions).transpose()?;
    let after = match &interactions {
        None => {
            ensure!(
                options.after.unwrap_or(0) == 0,
                crate::error::usage("--after needs the file of the interactions (--interactions FILE)")
            );
            0
        }
        Some(_) => options.after.unwrap_or(usize::MAX),
    };
    let mut problems = Vec::new();
    let (features, users) = match read_shared(path)? {
        Some(shared) => users_of(&shared, interactions.as_deref(), &mut problems),
        None => (None, own_users(path, interactions.as_deref(), &mut problems)?),
    };
    let first = users.iter().find_map(|user| user.sets.first()?.options.first());
    let Some(first) = first else {
        ensure!(!problems.is_empty(), "{}: there are no option sets in it", path.display());
        return Ok(Imported { problems, ..Imported::default() });
    };
    let mut worlds = Worlds::new(config);
    let (_, place) = worlds.of(first, features.as_deref())?;
    let stem = stem(path);
    // As (index of the user, index of the set).
    let mut asked = Vec::new();
    for (u, user) in users.iter().enumerate() {
        for i in 0..user.sets.len().min(options.sets.unwrap_or(usize::MAX)) {
            let id = format!("{stem}-{}-{i:03}", user.name);
            asked.push(Person { id, user: user.name.clone(), said: (u, i) });
        }
    }
    let answers = |&(u, i): &(usize, usize)| {
        let user = &users[u];
        let mut rounds = user.rounds[..after.min(user.rounds.len())].to_vec();
        rounds.push(user.sets[i].clone());
        place.questions(&rounds)
    };
    let mut imported = Imported { problems, ..Imported::default() };
    let teacher = Follower::new(&place.config, &place.world, seed)?;
    for (person, error) in follow_all(&teacher, &asked, answers, &mut imported) {
        let (u, i) = asked[person].said;
        let message = format!("user {}, set {i}: {error:#}", users[u].name);
        imported.problems.push(Problem { line: users[u].line, message });
    }
    for episode in &mut imported.episodes {
        let mut answers = episode.messages.iter_mut().rev().filter_map(|m| m.answer.as_mut());
        answers.next();
        answers.for_each(|answer| answer.weight = 0.0);
    }
    Ok(imported)
}

/// The whole file as one object; none where it is one a line.
fn read_shared(path: &Path) -> Result<Option<Shared>> {
    let at = || format!("cannot read {}", path.display());
    let text = std::fs::read_to_string(path).with_context(at)?;
    #[derive(Deserialize)]
    struct Kind {
        user_idxs: Option<serde::de::IgnoredAny>,
    }
    let kind = serde_json::from_str::<Kind>(&text);
    match kind {
        Ok(Kind { user_idxs: None }) => Ok(None),
        Err(error) if error.line() > 1 && text.trim_start().starts_with("{\"") => Ok(None),
        _ => Ok(Some(serde_json::from_str(&text).with_context(|| path.display().to_string())?)),
    }
}

fn read_interactions(path: &Path) -> Result<Vec<Interaction>> {
    let mut lines = Vec::new();
    let problems = scan(path, |_, text| {
        lines.push(parse_json::<Interaction>(text)?);
        Ok(())
    })?;
    refuse(path, &problems)?;
    Ok(lines)
}

fn users_of(
    shared: &Shared,
    interactions: Option<&[Interaction]>,
    problems: &mut Vec<Problem>,
) -> (Option<Vec<String>>, Vec<User>) {
    let mut users = Vec::new();
    for (i, preferred) in shared.user_idxs.iter().enumerate() {
        let mut problem =
            |message: String| problems.push(Problem { line: 1, message: format!("user {i}: {message}") });
        if preferred.idxs.len() != shared.all_options.len() {
            problem(format!("{} choices for {} sets", preferred.idxs.len(), shared.all_options.len()));
            continue;
        }
        let interaction = interactions.map(|all| {
            all.iter().find(|one| one.reward_fn.as_deref() == Some(preferred.reward_fn.as_slice()))
        });
        let rounds = match interaction {
            None => Vec::new(),
            Some(Some(interaction)) => interaction.rounds.clone(),
            Some(None) => {
                problem(format!("the interactions have no user of reward_fn {:?}", preferred.reward_fn));
                continue;
            }
        };
        let sets = shared.all_options.iter().zip(&preferred.idxs);
        let sets = sets.map(|(options, &user_idx)| Round { options: options.clone(), user_idx }).collect();
        users.push(User { name: i.to_string(), rounds, sets, line: 1 });
    }
    (shared.features.clone(), users)
}

fn own_users(
    path: &Path,
    interactions: Option<&[Interaction]>,
    problems: &mut Vec<Problem>,
) -> Result<Vec<User>> {
    let mut users = Vec::new();
    let mut index = 0;
    problems.extend(scan(path, |line, text| {
        let own: Own = parse_json(text)?;
        let rounds = match interactions.map(|all| all.get(index)) {
            None => Vec::new(),
            Some(Some(interaction)) => interaction.rounds.clone(),
            Some(None) => return Err(vec![format!("the interactions have no line {}", index + 1)]),
        };
        users.push(User { name: index.to_string(), rounds, sets: own.all_options, line });
        index += 1;
        Ok(())
    })?);
    Ok(users)
}
