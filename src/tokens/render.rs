//! A dialogue as one text, and where every assistant's message stands in it.

use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};
use minijinja::Value;

use super::per_turn::{self, Trim, quoted};
use super::template::{ChatTemplate, message};
use crate::episode::{Message, Role};

/// How dialogues are rendered; a property of the template, not of the dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// By the model's own template, which keeps earlier turns as they were.
    Native,
    /// Every assistant turn as generation prompt + content + end of turn, since the model's own template
    /// changes earlier turns.
    PerTurn,
}

impl Variant {
    /// The name for files and people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::PerTurn => "per-turn",
        }
    }
}

/// Renders dialogues such that every answer stands where the model gives it: the prompt for a turn is a prefix
/// of the whole.
#[derive(Clone, Debug)]
pub struct Renderer {
    template: ChatTemplate,
    variant: Variant,
}

/// A rendered dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The assistant's messages, in order.
    pub turns: Vec<Turn>,
}

/// Where a message of the assistant stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Index of the message in the dialogue.
    pub message: usize,
    /// Bytes of the text that its content takes.
    pub content: Range<usize>,
    /// Bytes of the label that was said, where the message has an answer.
    pub label: Option<Range<usize>>,
}

impl Renderer {
    /// Decides the variant by probe dialogues. `strict` refuses all but [`Variant::Native`].
    ///
    /// # Errors
    /// If the template fails on a plain dialogue, cannot be kept per turn, or is refused.
    pub fn new(template: ChatTemplate, strict: bool) -> Result<Self> {
        if keeps_earlier_turns(&template)? {
            return Ok(Self { template, variant: Variant::Native });
        }
        ensure!(
            !strict,
            "the model's chat template changes earlier turns once a dialogue goes on, which tokens.template = \
             \"strict\" refuses: set \"auto\" to render every assistant turn as generation prompt + content + end of \
             turn"
        );
        let template = template.with_source(&per_turn::synthesise(&template)?)?;
        Ok(Self { template, variant: Variant::PerTurn })
    }

    /// How dialogues are rendered.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// The template in use: the model's own, or the one made for [`Variant::PerTurn`].
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }

    /// Renders the messages and the opening of the assistant's next one.
    ///
    /// # Errors
    /// If the template refuses the dialogue.
    pub fn prompt(&self, messages: &[(Role, &str)]) -> Result<String> {
        self.template.render(messages, true)
    }

    /// Renders a whole dialogue once, and finds the assistant's messages in it.
    ///
    /// # Errors
    /// If the template refuses the dialogue or does not keep an earlier turn, or changes a label.
    pub fn render(&self, messages: &[Message]) -> Result<Rendered> {
        let values: Vec<Value> = messages.iter().map(|m| message(m.role, &m.content)).collect();
        let text = self.template.render_values(&values, false)?;
        let found = self.locate(messages, &values, &text)?;
        self.check_prompts(&values, &text, &found)?;

        let mut turns = Vec::with_capacity(found.len());
        for (index, content, trim) in found {
            let label = label_range(&messages[index], &content, trim)
                .with_context(|| format!("the chat template trims the label off message {index}"))?;
            turns.push(Turn { message: index, content, label });
        }
        Ok(Rendered { text, turns })
    }

    /// Checks that the text begins with the prompt for an assistant's turn, and the content follows it. What the
    /// probes have settled for the template is checked for the dialogue at the first turn, the last and one between,
    /// which is another one from dialogue to dialogue: rendering every prompt would take time that grows with the square of
    /// the turns.
    fn check_prompts(
        &self,
        values: &[Value],
        text: &str,
        found: &[(usize, Range<usize>, Trim)],
    ) -> Result<()> {
        let last = found.len().saturating_sub(1);
        let between = text.len() % found.len().max(1);
        let checked = |i: &usize| [0, between, last].contains(i);
        for (_, (index, content, _)) in found.iter().enumerate().filter(|(i, _)| checked(i)) {
            let prompt = self.template.render_values(&values[..*index], true)?;
            ensure!(
                text.starts_with(&prompt),
                "the chat template renders what comes before message {index} differently once the dialogue goes on \
                 (set tokens.template to a template that does not)"
            );
            ensure!(
                content.start >= prompt.len(),
                "message {index} does not stand after its generation prompt"
            );
        }
        Ok(())
    }

    /// For every assistant message: its index, the bytes of its content and what was trimmed.
    ///
    /// The dialogue is rendered once more with marks in place of these contents. What stands between the marks
    /// is the template's own, so the text must be exactly that with the contents put back.
    fn locate(
        &self,
        messages: &[Message],
        values: &[Value],
        text: &str,
    ) -> Result<Vec<(usize, Range<usize>, Trim)>> {
        let mark = unused_mark(text)?;
        let mut marked = values.to_vec();
        for (i, m) in assistant_messages(messages) {
            marked[i] = message(m.role, &format!("{mark}{i}{mark}"));
        }
        let skeleton = self.template.render_values(&marked, false)?;
        // Marks come in pairs, so every second part is the index of a message.
        let parts: Vec<&str> = skeleton.split(mark).collect();
        for trim in Trim::ALL {
            if let Some(found) = fill(&parts, messages, trim, text) {
                return match assistant_messages(messages).find(|(i, _)| !found.iter().any(|(j, _)| i == j)) {
                    Some((missing, _)) => {
                        bail!("the chat template leaves out the assistant's message {missing}")
                    }
                    None => Ok(found.into_iter().map(|(i, range)| (i, range, trim)).collect()),
                };
            }
        }
        bail!("the chat template rewrites the assistant's messages, so that their answers cannot be found")
    }

    /// The template for other programs: the one in use, with what this program settles (the date, no thinking)
    /// written into it where it asks for that.
    pub fn portable_template(&self) -> String {
        let source = self.template.source();
        let date = quoted(&self.template.date());
        let mut settings = String::new();
        if source.contains("date_string") {
            settings += &format!("{{%- set date_string = {date} -%}}\n");
        }
        if source.contains("enable_thinking") {
            settings += "{%- set enable_thinking = false -%}\n";
        }
        let fixed_clock =
            format!("{{%- macro strftime_now(format) -%}}{{{{- {date} -}}}}{{%- endmacro -%}}\n");
        let candidates = [source.to_owned(), settings.clone() + source, settings + &fixed_clock + source];
        let same = |candidate: &&String| self.renders_alike(candidate).unwrap_or(false);
        candidates.iter().find(same).unwrap_or(&candidates[0]).clone()
    }

    fn renders_alike(&self, source: &str) -> Result<bool> {
        let elsewhere = self.template.elsewhere(source)?;
        for messages in probes(&self.template) {
            for prompt in [false, true] {
                if elsewhere.render(&messages, prompt)? != self.template.render(&messages, prompt)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn assistant_messages(messages: &[Message]) -> impl Iterator<Item = (usize, &Message)> {
    messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant)
}

/// A character that the text does not have, from those that Unicode gives no meaning.
fn unused_mark(text: &str) -> Result<char> {
    ('\u{e000}'..='\u{f8ff}').find(|c| !text.contains(*c)).context("the text has every private-use character")
}

/// The text as the skeleton with every content put back: where each content stands first, or nothing if the text
/// is anything else.
fn fill(parts: &[&str], messages: &[Message], trim: Trim, text: &str) -> Option<Vec<(usize, Range<usize>)>> {
    let mut found: Vec<(usize, Range<usize>)> = Vec::new();
    let mut at = 0;
    for (i, part) in parts.iter().enumerate() {
        let literal = if i % 2 == 0 {
            part
        } else {
            let index: usize = part.parse().ok()?;
            let content = trim.apply(&messages.get(index)?.content);
            if !found.iter().any(|(j, _)| *j == index) {
                found.push((index, at..at + content.len()));
            }
            content
        };
        text.get(at..)?.strip_prefix(literal)?;
        at += literal.len();
    }
    (at == text.len()).then_some(found)
}

/// The label's bytes in the text; an error (no range) if trimming took a part of it.
fn label_range(message: &Message, content: &Range<usize>, trim: Trim) -> Option<Option<Range<usize>>> {
    let Some(answer) = &message.answer else {
        return Some(None);
    };
    let cut = match trim {
        Trim::Keep | Trim::End => 0,
        Trim::Both | Trim::Start => message.content.len() - message.content.trim_start().len(),
    };
    let start = content.start + answer.start.checked_sub(cut)?;
    let end = start + answer.options.get(answer.said)?.len();
    (end <= content.end).then_some(Some(start..end))
}

type Probe = Vec<(Role, &'static str)>;

/// Dialogues that show how a template treats earlier turns, with a system message where it takes one.
fn probes(template: &ChatTemplate) -> Vec<Probe> {
    let dialogue: Probe = vec![
        (Role::User, "First question"),
        (Role::Assistant, "First answer"),
        (Role::User, "Second question"),
        (Role::Assistant, "Second answer"),
        (Role::User, "Third question"),
    ];
    let mut probes =
        vec![dialogue[..1].to_vec(), dialogue[..2].to_vec(), dialogue[..4].to_vec(), dialogue.clone()];
    let with_system: Probe = [(Role::System, "Instructions")].into_iter().chain(dialogue).collect();
    if template.render(&with_system, false).is_ok() {
        probes.push(with_system[..5].to_vec());
        probes.push(with_system);
    }
    probes
}

fn keeps_earlier_turns(template: &ChatTemplate) -> Result<bool> {
    for messages in probes(template) {
        let text =
            template.render(&messages, false).context("the chat template fails on a plain dialogue")?;
        for (i, (role, content)) in messages.iter().enumerate() {
            if *role != Role::Assistant {
                continue;
            }
            let prompt = template.render(&messages[..i], true)?;
            let Some(rest) = text.strip_prefix(prompt.as_str()) else {
                return Ok(false);
            };
            // Nothing but white space may come between the prompt and the answer.
            if !rest.trim_start().starts_with(content) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
