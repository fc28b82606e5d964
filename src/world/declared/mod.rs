//! Declared worlds: a domain in one TOML file, without a line of Rust.
//!
//! A *questionnaire* has `[[factors]]` that can be true of a user, each with its values, and `[[questions]]` with the
//! probability of every option: a table by value, or a graded response. A *choice* has `[[features]]` with levels, from
//! which options are drawn, and users that weigh the features: every combination of some weights, or a table of
//! `[[hypotheses]]`. A file with both is a world in two stages: questions first, then choices, where each weight follows
//! from the factors. `[text]` has the templates (Jinja) of the dialogue.
//! `configs/worlds/` has examples with every key explained.
//!
//! A mistake is reported with file, line, column and reason.

mod choice;
mod file;
mod mistake;
mod questionnaire;
mod staged;

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use toml::Spanned;

use self::file::{TextTable, WorldFile};
use self::mistake::{Mistake, mistake};
use super::text::{TextMistake, TextTemplates};
use super::{Factor, World, combinations};
use crate::error::usage;

/// The most options that a question may have.
const MOST_OPTIONS: usize = 64;

/// The most users that a world may have: an episode's random numbers are keyed by user and number in 64 bits.
const MOST_USERS: usize = u32::MAX as usize;

/// Reads a declared world.
///
/// # Errors
/// A usage error if the file cannot be read, or that says where in it what is wrong.
pub(super) fn read(path: &Path) -> Result<World> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".into(),
            _ => error.to_string(),
        };
        usage(format!(
            "cannot read the world {}: {reason} (taken from the working directory: {})",
            path.display(),
            absolute.display()
        ))
    })?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("declared");
    parse(&text, stem).map_err(|mistake| usage(mistake.in_file(path, &text)))
}

/// `stem` names the world where the file does not.
fn parse(text: &str, stem: &str) -> Result<World, Mistake> {
    let file: WorldFile = toml::from_str(text).map_err(|error| Mistake::of_toml(&error))?;
    if *file.format_version.get_ref() != 1 {
        return mistake(&file.format_version, "this program reads format_version 1");
    }
    let name = match &file.name {
        Some(name) => name.get_ref().clone(),
        None => stem.to_owned(),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || !name.chars().all(plain) {
        let message = format!("the world is called {name:?}: letters, digits, - and _ are possible");
        return Err(Mistake { span: file.name.map(|name| name.span()), message });
    }
    for (key, number) in [("rounds", &file.rounds), ("population", &file.population)] {
        if let Some(number) = number
            && !(1..=MOST_USERS).contains(number.get_ref())
        {
            return mistake(number, format!("{key} must be 1 to {MOST_USERS}"));
        }
    }
    match (&file.choice, file.questions.is_empty()) {
        (None, true) => Err(Mistake {
            span: Some(file.format_version.span()),
            message: "a world needs [choice] with [[features]], or [[factors]] with [[questions]]".into(),
        }),
        (Some(choice), false) => {
            staged::world(name, &file, choice).map(|world| World::Staged(Box::new(world)))
        }
        (Some(choice), true) => choice::world(name, &file, choice).map(World::Choice),
        (None, false) => questionnaire::world(name, &file).map(World::Items),
    }
}

/// A prior that sums to one exactly, uniform where none is given.
fn prior(given: Option<&Spanned<Vec<f64>>>, values: usize) -> Result<Vec<f64>, Mistake> {
    match given {
        None => Ok(vec![1.0 / values as f64; values]),
        Some(probs) if probs.get_ref().len() != values => {
            mistake(probs, format!("{} prior probabilities for {values} values", probs.get_ref().len()))
        }
        Some(probs) => distribution(probs, "prior"),
    }
}

/// Probabilities that sum to one exactly.
fn distribution(probs: &Spanned<Vec<f64>>, what: &str) -> Result<Vec<f64>, Mistake> {
    let values = probs.get_ref();
    if let Some(bad) = values.iter().find(|p| !(0.0..=1.0).contains(*p)) {
        return mistake(probs, format!("{what}: {bad} is not a probability"));
    }
    let sum: f64 = values.iter().sum();
    if (sum - 1.0).abs() > 1e-6 {
        return mistake(probs, format!("{what}: the probabilities sum to {sum}, not to 1"));
    }
    Ok(values.iter().map(|p| p / sum).collect())
}

/// Users are every combination once, unless that many people are drawn from the prior: then only would a prior that
/// is not uniform be true of them.
fn check_users(file: &WorldFile, factors: &[Factor]) -> Result<(), Mistake> {
    if file.population.is_some() {
        return Ok(());
    }
    let uniform = |factor: &Factor| factor.prior.windows(2).all(|pair| (pair[0] - pair[1]).abs() < 1e-9);
    if let Some(factor) = factors.iter().find(|factor| !uniform(factor)) {
        let given = file.factors.iter().filter_map(|table| table.get_ref().prior.as_ref());
        let not_uniform =
            |prior: &&Spanned<Vec<f64>>| prior.get_ref().windows(2).any(|pair| pair[0] != pair[1]);
        return Err(Mistake {
            span: given.filter(not_uniform).map(Spanned::span).next().or_else(|| last_table(file)),
            message: format!(
                "the prior of {} is not uniform, so users must be drawn from it: say how many, such as \
                 `population = 1000`, before the first table",
                factor.name
            ),
        });
    }
    if combinations(factors) > MOST_USERS {
        return Err(Mistake {
            span: last_table(file),
            message: format!(
                "there are more than {MOST_USERS} combinations of values: draw users with `population = 1000`, say, \
                 before the first table"
            ),
        });
    }
    Ok(())
}

/// The last of the tables that say who the users are.
fn last_table(file: &WorldFile) -> Option<Range<usize>> {
    let factor = file.factors.last().map(Spanned::span);
    let hypothesis = || file.hypotheses.last().map(Spanned::span);
    factor.or_else(hypothesis).or_else(|| file.features.last().map(Spanned::span))
}

/// Whether templates and expressions can name it.
fn is_identifier(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit()) && !name.is_empty()
}

/// Labels can be told apart.
fn check_options(options: &Spanned<Vec<String>>) -> Result<(), Mistake> {
    let labels = options.get_ref();
    if !(2..=MOST_OPTIONS).contains(&labels.len()) {
        return mistake(options, format!("{} options, 2 to {MOST_OPTIONS} are possible", labels.len()));
    }
    if let Some(i) =
        (0..labels.len()).find(|&i| labels[i].trim().is_empty() || labels[..i].contains(&labels[i]))
    {
        return mistake(options, format!("option {:?} is empty or there twice", labels[i]));
    }
    Ok(())
}

fn templates(text: &TextTable) -> TextTemplates<'_> {
    TextTemplates {
        opening: text.opening.get_ref(),
        reply: text.reply.as_ref().map_or("{{ label }}", |reply| reply.get_ref()),
        feedback: text.feedback.get_ref(),
    }
}

/// Where in the file a wrong template of a table such as `text` stands.
fn place_text_mistake(table: &str, text: &TextTable, wrong: TextMistake) -> Mistake {
    let span = match wrong.key {
        "opening" => Some(text.opening.span()),
        "reply" => text.reply.as_ref().map(Spanned::span),
        "feedback" => Some(text.feedback.span()),
        _ => text.question.as_ref().map(Spanned::span),
    };
    Mistake { span, message: format!("{table}.{}: {}", wrong.key, wrong.message) }
}
