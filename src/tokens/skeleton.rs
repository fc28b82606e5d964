//! What a chat template makes of a dialogue, with gaps for the contents of messages.
//!
//! Most templates write the same around a message whatever it says, so one skeleton serves all dialogues of the same roles.
//! Whether it does is seen when it is filled: it gives exactly the text that the template gave, or it is of no use.

use std::ops::Range;

use anyhow::{Context as _, Result};
use minijinja::Value;

use super::per_turn::Trim;
use super::template::{ChatTemplate, message};
use crate::episode::{Message, Role};

/// A rendered dialogue without the contents of some of its messages.
#[derive(Debug)]
pub(super) struct Skeleton {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Own(String),
    /// The content of the message with this index.
    Content(usize),
}

/// Where the contents of the assistant's messages stand in a text.
#[derive(Debug)]
pub(super) struct Contents {
    /// By the index of the message: the bytes of the text.
    pub(super) places: Vec<(usize, Range<usize>)>,
    /// What the template trims off them.
    pub(super) trim: Trim,
}

/// How many prompts of a dialogue are compared with a skeleton or with its text, about.
pub(super) const MOST_PROMPTS: usize = 6;

impl Skeleton {
    /// That of every dialogue with the roles of this one, with gaps for all contents. None where the prompts of its turns
    /// are not beginnings of it, so that each dialogue must be looked at by itself.
    pub(super) fn of_roles(template: &ChatTemplate, messages: &[Message]) -> Option<Self> {
        let mark = '\u{e000}';
        let marked: Vec<Value> =
            messages.iter().enumerate().map(|(i, m)| message(m.role, &gap(mark, i))).collect();
        let text = template.render_values(&marked, false).ok()?;
        let turns: Vec<usize> = assistant_messages(messages).collect();
        for &turn in turns.iter().step_by(turns.len().div_ceil(MOST_PROMPTS).max(1)) {
            let prompt = template.render_values(&marked[..turn], true).ok()?;
            let follows = text.find(&gap(mark, turn)).is_some_and(|content| content >= prompt.len());
            if !text.starts_with(&prompt) || !follows {
                return None;
            }
        }
        Self::parse(&text, mark)
    }

    /// That of one dialogue, with gaps for the assistant's contents. `text` is what the template made of it, and `values`
    /// are its messages as the template sees them.
    ///
    /// # Errors
    /// If the template fails.
    pub(super) fn of_dialogue(
        template: &ChatTemplate,
        messages: &[Message],
        values: &[Value],
        text: &str,
    ) -> Result<Option<Self>> {
        // One of those that Unicode gives no meaning.
        let mark = ('\u{e000}'..='\u{f8ff}').find(|c| !text.contains(*c));
        let mark = mark.context("the text has every private-use character")?;
        let mut marked = values.to_vec();
        for i in assistant_messages(messages) {
            marked[i] = message(Role::Assistant, &gap(mark, i));
        }
        Ok(Self::parse(&template.render_values(&marked, false)?, mark))
    }

    /// None where the template broke a mark.
    fn parse(text: &str, mark: char) -> Option<Self> {
        // Marks come in pairs, so every second part is the index of a message.
        let part = |(i, part): (usize, &str)| match i % 2 {
            0 => Some(Part::Own(part.to_owned())),
            _ => part.parse().ok().map(Part::Content),
        };
        Some(Self { parts: text.split(mark).enumerate().map(part).collect::<Option<_>>()? })
    }

    /// Where the assistant's contents stand first in a text that is this skeleton with the contents of `messages` put back,
    /// some white space trimmed off. None if the text is anything else, or could be read in two ways.
    pub(super) fn fill(&self, messages: &[Message], text: &str) -> Option<Contents> {
        // Most contents have no white space to trim.
        let all = if messages.iter().all(|m| m.content.trim() == m.content) { 1 } else { Trim::ALL.len() };
        let mut contents: Option<Contents> = None;
        for &trim in &Trim::ALL[..all] {
            for &others in &Trim::ALL[..all] {
                let Some(places) = self.fill_trimmed(messages, trim, others, text) else { continue };
                match &contents {
                    Some(known) if known.places != places => return None,
                    Some(_) => {}
                    None => contents = Some(Contents { places, trim }),
                }
            }
        }
        contents
    }

    /// `trim` is for the assistant's contents, `others` for those of other roles.
    fn fill_trimmed(
        &self,
        messages: &[Message],
        trim: Trim,
        others: Trim,
        text: &str,
    ) -> Option<Vec<(usize, Range<usize>)>> {
        let mut places = Vec::new();
        let mut seen = vec![false; messages.len()];
        let mut at = 0;
        for part in &self.parts {
            let literal = match part {
                Part::Own(literal) => literal,
                Part::Content(index) => {
                    let message = messages.get(*index)?;
                    let is_assistant = message.role == Role::Assistant;
                    let content = if is_assistant { trim } else { others }.apply(&message.content);
                    if is_assistant && !std::mem::replace(&mut seen[*index], true) {
                        places.push((*index, at..at + content.len()));
                    }
                    content
                }
            };
            text.get(at..)?.strip_prefix(literal)?;
            at += literal.len();
        }
        (at == text.len()).then_some(places)
    }
}

/// Indices of the assistant's messages.
pub(super) fn assistant_messages(messages: &[Message]) -> impl Iterator<Item = usize> {
    messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant).map(|(i, _)| i)
}

/// What stands for the content of the message with this index.
fn gap(mark: char, index: usize) -> String {
    format!("{mark}{index}{mark}")
}
