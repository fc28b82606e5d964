//! A dialogue as one text, and where every assistant's message stands in it.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use minijinja::Value;
use quick_cache::sync::Cache;

use super::per_turn::{self, Trim, quoted};
use super::skeleton::{Contents, MOST_PROMPTS, Skeleton, assistant_messages};
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
    /// By the roles of a dialogue's messages.
    skeletons: Arc<Cache<Vec<Role>, Option<Arc<Skeleton>>>>,
}

/// Dialogues of so many kinds are remembered.
const SKELETONS: usize = 256;

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
        let with = |template, variant| {
            let skeletons = Arc::new(Cache::new(SKELETONS));
            Self { template, variant, skeletons }
        };
        if keeps_earlier_turns(&template)? {
            return Ok(with(template, Variant::Native));
        }
        ensure!(
            !strict,
            "the model's chat template changes earlier turns once a dialogue goes on, which tokens.template = \
             \"strict\" refuses: set \"auto\" to render every assistant turn as generation prompt + content + end of \
             turn"
        );
        let template = template.with_source(&per_turn::synthesise(&template)?)?;
        Ok(with(template, Variant::PerTurn))
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
        let skeleton = self.skeleton(messages);
        let contents = match skeleton.and_then(|skeleton| skeleton.fill(messages, &text)) {
            Some(contents) if contents.places.len() == assistant_messages(messages).count() => {
                // The skeleton's prompts are right, whatever is said. With what is said here, those of the first turn and the
                // last are looked at, and one between, which is another one from dialogue to dialogue.
                let last = contents.places.len().saturating_sub(1);
                let between = text.len() % contents.places.len().max(1);
                self.check_prompts(&values, &text, &contents.places, |i| [0, between, last].contains(&i))?;
                contents
            }
            _ => self.locate(messages, &values, &text)?,
        };
        let mut turns = Vec::with_capacity(contents.places.len());
        for (index, content) in contents.places {
            let label = label_range(&messages[index], &content, contents.trim)
                .with_context(|| format!("the chat template trims the label off message {index}"))?;
            turns.push(Turn { message: index, content, label });
        }
        Ok(Rendered { text, turns })
    }

    /// That of the dialogue's roles, where one serves all such dialogues.
    fn skeleton(&self, messages: &[Message]) -> Option<Arc<Skeleton>> {
        let roles: Vec<Role> = messages.iter().map(|m| m.role).collect();
        if let Some(known) = self.skeletons.get(&roles) {
            return known;
        }
        let skeleton = Skeleton::of_roles(&self.template, messages).map(Arc::new);
        self.skeletons.insert(roles, skeleton.clone());
        skeleton
    }

    /// Finds the assistant's contents in a dialogue of its own kind, and checks some of its prompts. To render every prompt
    /// would take time that grows with the square of the turns.
    fn locate(&self, messages: &[Message], values: &[Value], text: &str) -> Result<Contents> {
        let skeleton = Skeleton::of_dialogue(&self.template, messages, values, text)?;
        let Some(contents) = skeleton.and_then(|skeleton| skeleton.fill(messages, text)) else {
            bail!(
                "the chat template rewrites the assistant's messages, so that their answers cannot be found"
            )
        };
        let places = &contents.places;
        if let Some(missing) = assistant_messages(messages).find(|i| !places.iter().any(|(j, _)| i == j)) {
            bail!("the chat template leaves out the assistant's message {missing}")
        }
        let (step, last) = (places.len().div_ceil(MOST_PROMPTS).max(1), places.len().saturating_sub(1));
        self.check_prompts(values, text, places, |i| i % step == 0 || i == last)?;
        Ok(contents)
    }

    /// Checks that the text begins with the prompts for the assistant's turns for which `checked`, and the contents follow
    /// them.
    fn check_prompts(
        &self,
        values: &[Value],
        text: &str,
        places: &[(usize, Range<usize>)],
        checked: impl Fn(usize) -> bool,
    ) -> Result<()> {
        for (_, (index, content)) in places.iter().enumerate().filter(|(i, _)| checked(*i)) {
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
