//! Data of other people as episodes: published evaluation files, questionnaires that people filled in, chat messages.
//!
//! Where people answered questions of a world that the teacher knows, the teacher goes through their answers, and each
//! gets the exact predictive distribution: so a model is measured on real users as it is on simulated ones. What is
//! wrong with a row is told with its line; the other rows are imported all the same, and the caller decides.

mod choices;
mod held_out;
mod messages;
mod questionnaire;

pub use choices::interactions;
pub use held_out::{HeldOutOptions, held_out};
pub use messages::{MessagesOptions, messages};
pub use questionnaire::questionnaire;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rayon::prelude::*;

use crate::episode::{Episode, Problem};
use crate::teacher::Follower;
use crate::world::Question;

/// What a file gave.
#[derive(Debug, Default)]
pub struct Imported {
    /// In the order of the file.
    pub episodes: Vec<Episode>,
    /// Rows that could not be understood.
    pub problems: Vec<Problem>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Answers that the teacher held to be impossible, and so ignored.
    pub ignored: usize,
}

/// The kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Published interactions, of simulated users or of people: a user's rounds a line.
    Interactions,
    /// Published held-out option sets.
    HeldOut,
    /// A table with a person a row and an item a column.
    Questionnaire,
    /// Chat messages, with soft labels or without.
    Messages,
}

impl Format {
    /// All, by name.
    pub const NAMES: [(&'static str, Format); 4] = [
        ("interactions", Format::Interactions),
        ("held-out", Format::HeldOut),
        ("questionnaire", Format::Questionnaire),
        ("messages", Format::Messages),
    ];

    /// What a file seems to be, by its name and its beginning.
    ///
    /// # Errors
    /// If the file cannot be read, or seems to be none of them.
    pub fn detect(path: &Path) -> Result<Format> {
        use std::io::Read as _;
        let at = || format!("cannot open {}", path.display());
        let mut start = Vec::new();
        std::fs::File::open(path).and_then(|f| f.take(1 << 16).read_to_end(&mut start)).with_context(at)?;
        let start = String::from_utf8_lossy(&start);
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
        if ["csv", "tsv"].contains(&extension.as_str()) {
            return Ok(Format::Questionnaire);
        }
        // The key that comes first: the text of a message may name others.
        let keys = [
            ("\"rounds\"", Format::Interactions),
            ("\"all_options\"", Format::HeldOut),
            ("\"messages\"", Format::Messages),
        ];
        let found = keys.iter().filter_map(|(key, format)| Some((start.find(key)?, format)));
        let first = found.min_by_key(|(at, _)| *at).map(|(_, format)| *format);
        let names = Format::NAMES.map(|(name, _)| name).join(", ");
        first.with_context(|| {
            format!("{}: it is not plain what this file holds: say --format ({names})", path.display())
        })
    }
}

/// A person, and what of their answers is kept until the teacher comes to them.
struct Person<T> {
    id: String,
    user: String,
    said: T,
}

/// Lets the teacher go through everybody's answers, in parallel; the order is theirs. A person's questions exist only
/// meanwhile: under a likelihood that is not certain, one has a number for every user that there could be. What fails is
/// given back with the person's index.
fn follow_all<T: Sync>(
    teacher: &Follower,
    people: &[Person<T>],
    answers: impl Fn(&T) -> Result<Vec<(Question, usize)>> + Sync,
    imported: &mut Imported,
) -> Vec<(usize, anyhow::Error)> {
    let follow = |(i, one): (usize, &Person<T>)| {
        Ok(teacher.follow(i as u64, &one.id, &one.user, &answers(&one.said)?))
    };
    let followed: Vec<Result<_>> = people.par_iter().enumerate().map(follow).collect();
    let mut failed = Vec::new();
    for (i, simulation) in followed.into_iter().enumerate() {
        match simulation {
            Ok(simulation) => {
                imported.ignored += simulation.ignored;
                imported.episodes.push(simulation.episode);
            }
            Err(error) => failed.push((i, error)),
        }
    }
    failed
}

/// A file's name without its ending, for ids.
fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| "import".into(), |stem| stem.to_string_lossy().into_owned())
}

/// One of the answers of a round, counted from 0.
fn check_choice(chosen: usize, options: usize) -> Result<usize> {
    ensure!(chosen < options, "option {chosen} was chosen, but there are {options} (counted from 0)");
    Ok(chosen)
}
