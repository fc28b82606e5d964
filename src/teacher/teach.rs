//! All users through all episodes, into the files that training reads.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use rayon::prelude::*;

use super::config::{Domain, TeacherConfig};
use super::files::{PendingFile, remove_leftovers, sync_folder};
use super::held_out::HeldOut;
use super::process::simulate_process;
use super::simulate::{AnswerRecord, BeliefRecord, Course};
use super::split::{LeakageCheck, Part, SplitConfig};
use super::summary::{SplitSummary, Tally, TeacherSummary, Totals};
use crate::episode::{self, Episode};
use crate::rng;
use crate::world::World;
use crate::world::process::Process;

/// Written last: where it stands, the episode files beside it are whole.
pub const TEACHER_FILE: &str = "teacher.json";

/// Episodes simulated at once, between two writes: enough for every core, and a few dozen MB at most.
const CHUNK: usize = 512;

/// From so many users on, those to teach about are not drawn from a list of all.
const LARGE_GRID: usize = 1 << 24;

/// Draws users, takes each through its episodes, and writes `train.jsonl`, `validation.jsonl`, `test.jsonl` and,
/// last, `teacher.json` into `out_dir`. A part whose fraction is 0 gets an empty file.
///
/// The files are a function of the configs and the seed: threads change nothing. They get their names only when
/// all are complete; an error leaves what was there before. Two programs must not teach into one folder at once.
/// `progress` is told of episodes done and in total.
///
/// # Errors
/// If the configs make no sense, or the files cannot be written.
pub fn teach(
    config: &TeacherConfig,
    split: &SplitConfig,
    seed: u64,
    out_dir: &Path,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<TeacherSummary> {
    let domain = config.checked_domain()?;
    let school = School::open(config, &domain, split, seed)?;
    let held_out = match (&domain, &school.source) {
        (Domain::Grid(world), Source::Grid(course)) => Some(HeldOut::draw(world, &course.rules, seed)),
        _ => None,
    };
    let parts = &school.parts;

    std::fs::create_dir_all(out_dir).with_context(|| format!("cannot create {}", out_dir.display()))?;
    remove_leftovers(out_dir)?;
    let mut files = Vec::new();
    for part in Part::ALL {
        files.push(PendingFile::create(out_dir.join(part.file_name()))?);
    }

    let mut totals = Totals::default();
    let mut leakage = LeakageCheck::default();
    let total = parts.len() as u64;
    progress(0, total);
    let at_once = school.episodes_at_once();
    for first in (0..parts.len()).step_by(at_once) {
        let chunk = first..(first + at_once).min(parts.len());
        let last = chunk.end;
        let taught: Vec<Taught> = chunk
            .into_par_iter()
            .map(|i| {
                let (user, number) = school.user_and_number(i);
                match &school.source {
                    Source::Grid(course) => teach_one(course, held_out.as_ref(), seed, user, number),
                    Source::Process(world) => teach_process(config, world, seed, user, number),
                }
            })
            .collect::<Result<_>>()?;
        for (one, &part) in taught.iter().zip(&parts[first..]) {
            files[part as usize].write(&one.line)?;
            leakage.add(&one.user, part);
            totals.add(&one.answers, &one.beliefs, one.ignored, &one.held_out);
            one.regret.into_iter().for_each(|regret| totals.add_regret(regret));
        }
        progress(last as u64, total);
    }
    leakage.check(split.by)?;

    let count = |part| parts.iter().filter(|p| **p == part).count();
    let split = SplitSummary {
        by: split.by,
        train: count(Part::Train),
        validation: count(Part::Validation),
        test: count(Part::Test),
        shared_users: leakage.shared_users(),
    };
    let held_out_sets = held_out.as_ref().map_or(0, HeldOut::sets);
    let summary = totals.summary(domain.name(), config.kind, split, held_out_sets);
    publish(files, &summary, out_dir)?;
    Ok(summary)
}

/// Some episodes of the part that a model is measured on: of the test part, or where that is empty of the validation
/// part, or else of those to train on. `choose` gets the numbers of the part's episodes, in the order of its file, and
/// gives those that are wanted. They are what [`teach`] writes, without the others being taught.
///
/// # Errors
/// If the configs make no sense.
pub fn teach_some(
    config: &TeacherConfig,
    split: &SplitConfig,
    seed: u64,
    choose: &dyn Fn(Vec<usize>) -> Vec<usize>,
) -> Result<Vec<Episode>> {
    let domain = config.checked_domain()?;
    let school = School::open(config, &domain, split, seed)?;
    let parts = &school.parts;
    let of = |part| (0..parts.len()).filter(|&i| parts[i] == part).collect::<Vec<usize>>();
    let numbers = [Part::Test, Part::Validation, Part::Train].into_iter().map(of).find(|of| !of.is_empty());
    let episode = |i: usize| {
        let (user, number) = school.user_and_number(i);
        match &school.source {
            Source::Grid(course) => course.episode(seed, user, number, |_, _| {}).episode,
            Source::Process(world) => simulate_process(config, world, seed, user, number).simulation.episode,
        }
    };
    Ok(choose(numbers.unwrap_or_default()).into_par_iter().map(episode).collect())
}

/// Where episodes come from.
enum Source<'a> {
    Grid(Box<Course<'a>>),
    Process(&'a Process),
}

/// A source with its users, and which part each of their episodes is of.
struct School<'a> {
    config: &'a TeacherConfig,
    source: Source<'a>,
    users: Vec<usize>,
    parts: Vec<Part>,
}

impl<'a> School<'a> {
    fn open(config: &'a TeacherConfig, domain: &'a Domain, split: &SplitConfig, seed: u64) -> Result<Self> {
        let (source, users) = match domain {
            Domain::Grid(world) => {
                (Source::Grid(Box::new(Course::new(config, world))), draw_users(config, world, seed))
            }
            Domain::Process(world) => (Source::Process(world), (0..config.drawn_users()).collect()),
        };
        let parts = split.assign(users.len(), config.episodes_per_user, seed)?;
        Ok(Self { config, source, users, parts })
    }

    /// Whose episode one is, and which of theirs.
    fn user_and_number(&self, episode: usize) -> (usize, usize) {
        let each = self.config.episodes_per_user;
        (self.users[episode / each], episode % each)
    }

    /// How many episodes to simulate between two writes: fewer where they may have thousands of rounds.
    fn episodes_at_once(&self) -> usize {
        match &self.source {
            Source::Grid(_) => CHUNK,
            Source::Process(world) => (50 * CHUNK / self.config.process_rounds(world)).clamp(8, CHUNK),
        }
    }
}

/// Indices into the world's grid, in ascending order where only some are drawn.
fn draw_users(config: &TeacherConfig, world: &World, seed: u64) -> Vec<usize> {
    if let Some(count) = config.users
        && world.users() > LARGE_GRID
    {
        let mut draws = rng::stream(seed, "teacher.users", 0);
        let mut users = BTreeSet::new();
        while users.len() < count {
            users.insert(draws.below(world.users()));
        }
        return users.into_iter().collect();
    }
    let mut users: Vec<usize> = (0..world.users()).collect();
    if let Some(count) = config.users {
        rng::stream(seed, "teacher.users", 0).shuffle(&mut users);
        users.truncate(count);
        users.sort_unstable();
    }
    users
}

/// One episode, ready to be written.
struct Taught {
    line: Vec<u8>,
    user: String,
    answers: Vec<AnswerRecord>,
    beliefs: Vec<BeliefRecord>,
    ignored: usize,
    held_out: Vec<Tally>,
    regret: Option<f64>,
}

fn teach_one(
    course: &Course,
    held_out: Option<&HeldOut>,
    seed: u64,
    user: usize,
    number: usize,
) -> Result<Taught> {
    let mut errors = rng::stream(seed, "teacher.held_out_errors", ((user as u64) << 32) | number as u64);
    // The truths of a user as of the last round, for users that change.
    let mut known: Option<(Vec<usize>, Vec<usize>)> = None;
    let mut tallies = Vec::new();
    let simulation = course.episode(seed, user, number, |posterior, hypotheses| {
        let Some(held_out) = held_out.filter(|held_out| held_out.sets() > 0) else { return };
        let truths = match known.take() {
            Some((of, truths)) if of == hypotheses => truths,
            _ => held_out.truths(hypotheses),
        };
        tallies.push(held_out.ask(&course.rules, posterior, tallies.len(), &truths, &mut errors));
        known = Some((hypotheses.to_vec(), truths));
    });
    let mut line = Vec::new();
    episode::write_line(&mut line, &simulation.episode)?;
    Ok(Taught {
        line,
        user: simulation.episode.user,
        answers: simulation.answers,
        beliefs: simulation.beliefs,
        ignored: simulation.ignored,
        held_out: tallies,
        regret: None,
    })
}

fn teach_process(
    config: &TeacherConfig,
    world: &Process,
    seed: u64,
    user: usize,
    number: usize,
) -> Result<Taught> {
    let taught = simulate_process(config, world, seed, user, number);
    let simulation = taught.simulation;
    let mut line = Vec::new();
    episode::write_line(&mut line, &simulation.episode)?;
    Ok(Taught {
        line,
        user: simulation.episode.user,
        answers: simulation.answers,
        beliefs: Vec::new(),
        ignored: simulation.ignored,
        held_out: Vec::new(),
        regret: Some(taught.regret),
    })
}

/// Gives the complete files their names. An old `teacher.json` goes first, so that it never stands beside new
/// episodes.
fn publish(mut files: Vec<PendingFile>, summary: &TeacherSummary, out_dir: &Path) -> Result<()> {
    let teacher_path = out_dir.join(TEACHER_FILE);
    let mut teacher = PendingFile::create(teacher_path.clone())?;
    let mut json = serde_json::to_vec_pretty(summary)?;
    json.push(b'\n');
    teacher.write(&json)?;
    teacher.flush()?;
    files.iter_mut().try_for_each(PendingFile::flush)?;

    match std::fs::remove_file(&teacher_path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot replace {}", teacher_path.display()));
        }
        _ => {}
    }
    files.into_iter().try_for_each(PendingFile::finish)?;
    sync_folder(out_dir)?;
    teacher.finish()?;
    sync_folder(out_dir)
}
