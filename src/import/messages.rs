//! Chat messages, a dialogue a line: with soft labels (`probs` beside the content of an assistant's message), or without,
//! where what the assistant said becomes the target.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Imported, stem};
use crate::episode::{Answer, Episode, FORMAT_VERSION, Message, Problem, Role, parse_json, scan};
use crate::error::usage;

/// How answers are found in messages that carry none of their own.
#[derive(Clone, Debug, Default)]
pub struct MessagesOptions {
    /// The labels of all options.
    pub options: Vec<String>,
    /// The words around the label, with `{}` in its place; nothing but the label where absent.
    pub answer: Option<String>,
}

#[derive(Deserialize)]
struct Dialogue {
    messages: Vec<Raw>,
    id: Option<Value>,
    idx: Option<Value>,
    user: Option<Value>,
}

/// A message as it stands in the file.
#[derive(Deserialize)]
struct Raw {
    role: String,
    /// Text, or a list of parts.
    #[serde(default)]
    content: Value,
    #[serde(flatten)]
    labels: Labels,
}

struct Said {
    role: Role,
    content: String,
    labels: Labels,
}

/// What may stand beside the content of an assistant's message.
#[derive(Clone, Deserialize)]
struct Labels {
    /// Soft labels: each option's probability.
    probs: Option<Map<String, Value>>,
    /// The label that stands in the content, where that is not plain.
    said: Option<String>,
    /// The label of what is true.
    truth: Option<String>,
    weight: Option<f64>,
    /// The byte at which the label begins, where that is not plain.
    start: Option<usize>,
}

impl Raw {
    fn read(&self) -> Result<Said> {
        let role = [Role::System, Role::User, Role::Assistant].into_iter().find(|r| r.as_str() == self.role);
        let role = match (role, self.role.as_str()) {
            (Some(role), _) => role,
            (None, "tool" | "function") => bail!(
                "its role is {:?}: dialogues with tools are not taken, only messages of system, user and assistant",
                self.role
            ),
            _ => bail!("its role is {:?}, which is none of system, user and assistant", self.role),
        };
        Ok(Said { role, content: text(&self.content)?, labels: self.labels.clone() })
    }
}

/// The text of a message, which some programs write in parts.
fn text(content: &Value) -> Result<String> {
    let part = |part: &Value| match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some(kind), _) => bail!("a part of its content is of the type {kind:?}: only text is taken"),
        _ => bail!("a part of its content is {part}, which is no text"),
    };
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect(),
        Value::Null => bail!("it has no content, as calls of tools have none: only text is taken"),
        other => bail!("its content is {other}, which is no text"),
    }
}

/// Reads dialogues. A line that is only the beginning of another line's dialogue is left out: its answers are all in the
/// longer one.
///
/// # Errors
/// If the file cannot be read, has nothing in it, or the options make no sense.
pub fn messages(path: &Path, options: &MessagesOptions) -> Result<Imported> {
    let pattern = Pattern::new(options)?;
    let stem = stem(path);
    let mut imported = Imported::default();
    let mut lines = Vec::new();
    let mut beginnings: HashSet<blake3::Hash> = HashSet::new();
    let problems = scan(path, |line, text| {
        let dialogue: Dialogue = parse_json(text)?;
        let said = |(i, raw): (usize, &Raw)| raw.read().with_context(|| format!("message {i}"));
        let read = || -> Result<_> {
            let messages: Vec<Said> =
                dialogue.messages.iter().enumerate().map(said).collect::<Result<_>>()?;
            let episode = episode(&dialogue, &messages, &stem, line, pattern.as_ref())?;
            Ok((messages, episode))
        };
        let (messages, episode) = read().map_err(|e| vec![format!("{e:#}")])?;
        lines.push((line, hash(&messages, &mut beginnings), episode));
        Ok(())
    })?;
    ensure!(!lines.is_empty() || !problems.is_empty(), "{}: there is nothing in it", path.display());
    imported.problems = problems;
    let all = lines.len();
    let mut without = Vec::new();
    for (line, whole, episode) in lines {
        if beginnings.contains(&whole) {
            continue;
        }
        if episode.answers().next().is_none() {
            without.push(line);
            continue;
        }
        imported.episodes.push(episode);
    }
    let shorter = all - imported.episodes.len() - without.len();
    if shorter > 0 {
        imported
            .notes
            .push(format!("{shorter} lines are only the beginning of another's dialogue: left out"));
    }
    let told = imported.episodes.iter().flat_map(|e| &e.messages).filter(|m| m.role == Role::Assistant);
    let (all, silent) =
        told.fold((0, 0), |(all, silent), m| (all + 1, silent + usize::from(m.answer.is_none())));
    if silent > 0 {
        imported.notes.push(format!(
            "{silent} of {all} assistant messages {}: they are part of the dialogue, and nothing is asked of them",
            match pattern {
                None => "have no probs",
                Some(_) => "have no probs and do not say one of the options in the words of --answer",
            }
        ));
    }
    let hint = match pattern {
        None => "no assistant message has probs: give --options A,B,… for what was said to be the target",
        Some(_) => "no assistant message has probs or says one of the options in the words of --answer",
    };
    imported.problems.extend(without.iter().map(|&line| Problem { line, message: hint.into() }));
    imported.problems.sort_by_key(|problem| problem.line);
    Ok(imported)
}

/// A hash of the dialogue; those of all its beginnings go into the set.
fn hash(messages: &[Said], beginnings: &mut HashSet<blake3::Hash>) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (i, message) in messages.iter().enumerate() {
        if i > 0 {
            beginnings.insert(hasher.finalize());
        }
        for part in [message.role.as_str(), &message.content] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
    }
    hasher.finalize()
}

fn episode(
    dialogue: &Dialogue,
    said: &[Said],
    stem: &str,
    line: usize,
    pattern: Option<&Pattern>,
) -> Result<Episode> {
    let name = |value: &Option<Value>| match value {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let id = format!("{stem}-{line:06}");
    let user = name(&dialogue.user).or_else(|| name(&dialogue.idx)).or_else(|| name(&dialogue.id));
    let mut messages = Vec::with_capacity(said.len());
    for (i, said) in said.iter().enumerate() {
        let answer = answer(said, pattern).with_context(|| format!("message {i}"))?;
        messages.push(Message { role: said.role, content: said.content.clone(), answer });
    }
    let user = user.unwrap_or_else(|| id.clone());
    let episode = Episode { format_version: FORMAT_VERSION, id, world: stem.into(), user, messages };
    episode.validate()?;
    Ok(episode)
}

fn answer(said: &Said, pattern: Option<&Pattern>) -> Result<Option<Answer>> {
    if let Some(probs) = &said.labels.probs {
        return soft(said, probs, pattern).map(Some);
    }
    let Some(pattern) = pattern.filter(|_| said.role == Role::Assistant) else { return Ok(None) };
    let Some((index, start)) = pattern.find(&said.content)? else { return Ok(None) };
    let n = pattern.options.len();
    Ok(Some(Answer {
        start,
        options: pattern.options.clone(),
        probs: (0..n).map(|i| if i == index { 1.0 } else { 0.0 }).collect(),
        predictive: None,
        said: index,
        truth: truth(said, &pattern.options)?,
        weight: said.labels.weight.unwrap_or(1.0),
        observations: None,
        belief: None,
    }))
}

fn soft(said: &Said, probs: &Map<String, Value>, pattern: Option<&Pattern>) -> Result<Answer> {
    let options: Vec<String> = probs.keys().cloned().collect();
    let mut values = Vec::with_capacity(options.len());
    for (label, value) in probs {
        let value = value.as_f64().with_context(|| format!("the probability of {label:?} is {value}"))?;
        ensure!(value.is_finite() && value >= 0.0, "the probability of {label:?} is {value}");
        values.push(value);
    }
    let sum: f64 = values.iter().sum();
    // Written with few digits; what is far from a distribution is a mistake.
    ensure!((sum - 1.0).abs() <= 0.01, "the probabilities sum to {sum}, not to 1");
    values.iter_mut().for_each(|p| *p /= sum);
    let (index, start) = match (&said.labels.said, said.labels.start) {
        (Some(label), start) => {
            let index = position(&options, label).with_context(|| format!("said is {label:?}"))?;
            (index, start.map_or_else(|| only_place(&said.content, label), Ok)?)
        }
        (None, Some(start)) => {
            let rest =
                said.content.get(start..).with_context(|| format!("byte {start} is not in the content"))?;
            let here = (0..options.len()).filter(|&i| rest.starts_with(&options[i]));
            let longest = here.max_by_key(|&i| options[i].len());
            (longest.with_context(|| format!("no option stands at byte {start}"))?, start)
        }
        (None, None) => {
            let own = Pattern {
                options: options.clone(),
                before: pattern.map_or_else(String::new, |p| p.before.clone()),
                after: pattern.map_or_else(String::new, |p| p.after.clone()),
                alone: pattern.is_none_or(|p| p.alone),
            };
            match own.find(&said.content)? {
                Some(found) => found,
                None => one_mentioned(&said.content, &options)?,
            }
        }
    };
    Ok(Answer {
        start,
        probs: values,
        predictive: None,
        said: index,
        truth: truth(said, &options)?,
        options,
        weight: said.labels.weight.unwrap_or(1.0),
        observations: None,
        belief: None,
    })
}

fn truth(said: &Said, options: &[String]) -> Result<Option<usize>> {
    said.labels
        .truth
        .as_ref()
        .map(|label| position(options, label).with_context(|| format!("truth is {label:?}")))
        .transpose()
}

fn position(options: &[String], label: &str) -> Result<usize> {
    let found = options.iter().position(|option| option == label);
    found.with_context(|| format!("the options are {}", options.join(", ")))
}

fn only_place(content: &str, label: &str) -> Result<usize> {
    let mut places = content.match_indices(label).map(|(at, _)| at);
    let first = places.next().with_context(|| format!("{label:?} (said) is not in {content:?}"))?;
    ensure!(places.next().is_none(), "{label:?} (said) stands several times in {content:?}: give its start");
    Ok(first)
}

/// The one option that the content mentions, once.
fn one_mentioned(content: &str, options: &[String]) -> Result<(usize, usize)> {
    let places = options
        .iter()
        .enumerate()
        .flat_map(|(i, option)| content.match_indices(option.as_str()).map(move |(at, _)| (i, at)));
    let places: Vec<(usize, usize)> = places.collect();
    match places[..] {
        [one] => Ok(one),
        [] => bail!("none of the options ({}) is in {content:?}", options.join(", ")),
        _ => bail!(
            "{content:?} mentions options several times: give said (the label) and start (its first byte)"
        ),
    }
}

/// The words in which an option is said.
struct Pattern {
    options: Vec<String>,
    before: String,
    after: String,
    /// Nothing else may stand in the message.
    alone: bool,
}

impl Pattern {
    fn new(options: &MessagesOptions) -> Result<Option<Self>> {
        let (before, after) = match &options.answer {
            None => ("", ""),
            Some(answer) => match answer.split_once("{}") {
                Some((before, after)) if !after.contains("{}") => (before, after),
                _ => return Err(usage("--answer must have {} once, where the option's label stands")),
            },
        };
        if options.options.is_empty() {
            return match options.answer {
                Some(_) => Err(usage("--answer needs --options too")),
                None => Ok(None),
            };
        }
        ensure!(
            options.options.len() >= 2 && options.options.iter().all(|o| !o.is_empty()),
            usage("--options needs at least 2 labels, parted by commas")
        );
        Ok(Some(Self {
            options: options.options.clone(),
            before: before.into(),
            after: after.into(),
            alone: options.answer.is_none(),
        }))
    }

    /// Which option is said, and at which byte.
    fn find(&self, content: &str) -> Result<Option<(usize, usize)>> {
        if self.alone {
            let trimmed = content.trim();
            let found = self.options.iter().position(|option| option == trimmed);
            return Ok(found.map(|i| (i, content.len() - content.trim_start().len())));
        }
        let mut found = None;
        for (at, _) in content.match_indices(self.before.as_str()) {
            let start = at + self.before.len();
            let here = |i: &usize| {
                let rest = content[start..].strip_prefix(self.options[*i].as_str());
                rest.is_some_and(|rest| rest.starts_with(self.after.as_str()))
            };
            // Of 1 and 10, the longer one.
            let longest = (0..self.options.len()).filter(here).max_by_key(|&i| self.options[i].len());
            if let Some(i) = longest {
                ensure!(found.is_none(), "the words of --answer stand several times in {content:?}");
                found = Some((i, start));
            }
        }
        Ok(found)
    }
}
