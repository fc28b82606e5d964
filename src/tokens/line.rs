//! The lines of episode files: dialogues, and sequences that were tokenised elsewhere.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::sequence::{Sequence, SoftTarget};
use crate::episode::{self, Episode, FORMAT_VERSION, Problem};
use crate::error::Problems;

/// One line of an episode file.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A dialogue, which is still to be encoded.
    Episode(Episode),
    /// A sequence that was tokenised elsewhere.
    Tokenised(Sequence),
}

impl Line {
    /// The episode's id, or the one given to a tokenised line.
    pub fn id(&self) -> &str {
        match self {
            Self::Episode(episode) => &episode.id,
            Self::Tokenised(sequence) => &sequence.id,
        }
    }

    /// Who the user is; empty where that is not known.
    pub fn user(&self) -> &str {
        match self {
            Self::Episode(episode) => &episode.user,
            Self::Tokenised(sequence) => &sequence.user,
        }
    }
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckedFile {
    /// The lines that are in order, with their numbers.
    pub lines: Vec<(usize, Line)>,
    /// What is wrong with the others, in the order of the lines.
    pub problems: Vec<Problem>,
}

/// Reads a file of episodes, of tokenised sequences, or of both, and finds all that is wrong with its lines.
///
/// # Errors
/// If the file cannot be read, or there is nothing in it.
pub fn check_lines(path: &Path) -> Result<CheckedFile> {
    let mut lines = Vec::new();
    let problems = for_each_line(path, |line| line, |number, _, line| lines.push((number, line)))?;
    Ok(CheckedFile { lines, problems })
}

/// Reads a file on all cores, without keeping more than a part of it: `map` is called with the lines in any order, and
/// `take` in their own order with the number, the id and what `map` made of it. Returns what is wrong with the other lines.
///
/// # Errors
/// If the file cannot be read, or there is nothing in it.
pub(super) fn for_each_line<T: Send>(
    path: &Path,
    map: impl Fn(Line) -> T + Sync,
    mut take: impl FnMut(usize, &str, T),
) -> Result<Vec<Problem>> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let parse = |number, text: &str| {
        let line = parse_line(text, number)?;
        Ok((line.id().to_owned(), map(line)))
    };
    let problems = episode::scan_in_parallel(path, parse, |number, (id, mapped)| {
        let place = match seen.entry(id) {
            Entry::Occupied(other) => {
                return Err(vec![format!("the id {:?} is that of line {} too", other.key(), other.get())]);
            }
            Entry::Vacant(place) => place.insert_entry(number),
        };
        take(number, place.key(), mapped);
        Ok(())
    })?;
    ensure!(!seen.is_empty() || !problems.is_empty(), "{}: no episodes in it", path.display());
    Ok(problems)
}

/// Reads and validates a file of episodes, of tokenised sequences, or of both.
///
/// # Errors
/// Names the file, the line and the problem.
pub fn read_lines(path: &Path) -> Result<Vec<Line>> {
    let checked = check_lines(path)?;
    episode::refuse(path, &checked.problems)?;
    Ok(checked.lines.into_iter().map(|(_, line)| line).collect())
}

#[derive(Deserialize)]
struct Kind {
    input_ids: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenisedLine {
    format_version: u32,
    id: Option<String>,
    #[serde(default)]
    user: String,
    input_ids: Vec<u32>,
    targets: Vec<TokenisedTarget>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenisedTarget {
    position: u32,
    token_ids: Vec<u32>,
    probs: Vec<f64>,
    #[serde(default = "one")]
    weight: f32,
}

fn one() -> f32 {
    1.0
}

/// One line, or all that is wrong with it; `number` names a tokenised sequence that has no id.
fn parse_line(text: &str, number: usize) -> Result<Line, Vec<String>> {
    let tokenised = text.contains("\"input_ids\"") && episode::parse_json::<Kind>(text)?.input_ids.is_some();
    if !tokenised {
        return episode::parse(text).map(Line::Episode);
    }
    let line: TokenisedLine = episode::parse_json(text)?;
    let mut problems = Problems::default();
    problems.unless(line.format_version == FORMAT_VERSION, || {
        format!("format_version is {}, this program reads {FORMAT_VERSION}", line.format_version)
    });
    let mut targets: Vec<SoftTarget> = line
        .targets
        .into_iter()
        .map(|t| SoftTarget {
            position: t.position,
            token_ids: t.token_ids,
            probs: t.probs,
            predictive: None,
            weight: t.weight,
            answer: None,
            belief: None,
        })
        .collect();
    targets.sort_by_key(|t| t.position);
    let id = line.id.unwrap_or_else(|| format!("tokenised-{number}"));
    let (user, input_ids) = (line.user, line.input_ids);
    let sequence = Sequence { id, user, input_ids, targets, format_positions: Vec::new() };
    sequence.find_problems(None, &mut problems);
    let mut found = Problems::default();
    found.of(&format!("sequence {:?}", sequence.id), problems);
    let found = found.into_vec();
    if found.is_empty() { Ok(Line::Tokenised(sequence)) } else { Err(found) }
}
