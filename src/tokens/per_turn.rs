//! A template that keeps earlier turns as they were, made from one that does not.
//!
//! Some templates render an assistant's turn differently once the dialogue goes on (Qwen 3 drops its thinking
//! part). A dialogue with answers in many turns then has no rendering in which every answer stands where the
//! model will give it. Here every assistant turn becomes generation prompt + content + end of turn. The pieces
//! are read off renderings of probe dialogues; the outcome is again a Jinja template, which other programs load.
//! It knows system (first), user and assistant messages, and neither tools nor thinking.

use anyhow::{Context as _, Result, ensure};

use super::template::ChatTemplate;
use crate::episode::Role;

const SYSTEM: &str = "SystemProbe";
const USER: &str = "UserProbe";
const ASSISTANT: &str = "AssistantProbe";
const LATER: &str = "LaterProbe";

/// What stands around the contents.
struct Pieces {
    before_first_user: String,
    after_user: String,
    generation_prompt: String,
    after_assistant: String,
    before_later_user: String,
    /// Absent where the template refuses two user messages in a row.
    between_users: Option<String>,
    /// Absent where the template refuses system messages.
    system: Option<SystemPieces>,
    trim: [Trim; 3],
}

struct SystemPieces {
    before: String,
    before_user: String,
}

/// What a template does to the white space around a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trim {
    Keep,
    Both,
    Start,
    End,
}

impl Trim {
    pub(super) const ALL: [Self; 4] = [Self::Keep, Self::Both, Self::Start, Self::End];

    pub(super) fn apply(self, content: &str) -> &str {
        match self {
            Self::Keep => content,
            Self::Both => content.trim(),
            Self::Start => content.trim_start(),
            Self::End => content.trim_end(),
        }
    }

    fn expression(self) -> &'static str {
        match self {
            Self::Keep => "message.content",
            Self::Both => "message.content | trim",
            Self::Start => "message.content.lstrip()",
            Self::End => "message.content.rstrip()",
        }
    }
}

/// The Jinja text of the per-turn variant of `template`.
///
/// # Errors
/// If the template does not fall into pieces.
pub(super) fn synthesise(template: &ChatTemplate) -> Result<String> {
    let source = read_off(template)
        .context("the model's chat template changes earlier turns and does not fall into pieces that could be kept")?
        .jinja();
    check(template, &source)?;
    Ok(source)
}

fn read_off(template: &ChatTemplate) -> Result<Pieces> {
    let user = (Role::User, USER);
    let one = template.render(&[user], false)?;
    let (before_first_user, after_user) = around(&one, USER)?;
    let prompted = template.render(&[user], true)?;
    let generation_prompt = prompted
        .strip_prefix(one.as_str())
        .context("with a generation prompt, the rendering does not begin as it does without")?;

    let answered = template.render(&[user, (Role::Assistant, ASSISTANT)], false)?;
    let (before_answer, after_assistant) = around(&answered, ASSISTANT)?;
    // A template may put white space between its generation prompt and the content.
    let lead = before_answer.strip_prefix(prompted.as_str()).unwrap_or("");

    let dialogue = [user, (Role::Assistant, ASSISTANT), (Role::User, LATER)];
    let continued = template.render(&dialogue, false)?;
    let (_, rest) = around(&continued, ASSISTANT)?;
    let (between, after_later) = around(rest, LATER)?;
    let before_later_user = between
        .strip_prefix(after_assistant)
        .context("an assistant's turn ends differently once the dialogue goes on")?;
    ensure!(after_later == after_user, "a later user's turn ends differently from the first");

    let pieces = Pieces {
        before_first_user: before_first_user.to_owned(),
        after_user: after_user.to_owned(),
        generation_prompt: format!("{generation_prompt}{lead}"),
        after_assistant: after_assistant.to_owned(),
        before_later_user: before_later_user.to_owned(),
        between_users: between_users(template, after_user),
        system: system_pieces(template),
        trim: [
            trim_of(template, Role::System).unwrap_or(Trim::Keep),
            trim_of(template, Role::User)?,
            trim_of(template, Role::Assistant)?,
        ],
    };
    Ok(pieces)
}

/// What stands before and after the only occurrence of `probe`.
fn around<'a>(text: &'a str, probe: &str) -> Result<(&'a str, &'a str)> {
    let (before, after) =
        text.split_once(probe).with_context(|| format!("a content is missing from {text:?}"))?;
    ensure!(!after.contains(probe), "a content appears twice in {text:?}");
    Ok((before, after))
}

fn between_users(template: &ChatTemplate, after_user: &str) -> Option<String> {
    let text = template.render(&[(Role::User, USER), (Role::User, LATER)], false).ok()?;
    let (_, rest) = around(&text, USER).ok()?;
    let (between, _) = around(rest, LATER).ok()?;
    between.strip_prefix(after_user).map(str::to_owned)
}

fn system_pieces(template: &ChatTemplate) -> Option<SystemPieces> {
    let text = template.render(&[(Role::System, SYSTEM), (Role::User, USER)], false).ok()?;
    let (before, rest) = around(&text, SYSTEM).ok()?;
    let (before_user, _) = around(rest, USER).ok()?;
    Some(SystemPieces { before: before.to_owned(), before_user: before_user.to_owned() })
}

/// What happens to white space around the contents of `role`, outside the last turn.
fn trim_of(template: &ChatTemplate, role: Role) -> Result<Trim> {
    let render = |content: &str| -> Result<String> {
        let probe = |of: Role, text: &'static str| (of, text);
        let later = probe(Role::User, LATER);
        let messages: Vec<(Role, &str)> = match role {
            Role::System => vec![(role, content), later],
            Role::User => vec![(role, content)],
            Role::Assistant => vec![probe(Role::User, USER), (role, content), later],
        };
        template.render(&messages, false)
    };
    let plain = render(ASSISTANT)?;
    let spaced = format!(" \n{ASSISTANT}\n ");
    let with_spaces = render(&spaced)?;
    Trim::ALL
        .into_iter()
        .find(|trim| plain.replacen(ASSISTANT, trim.apply(&spaced), 1) == with_spaces)
        .with_context(|| format!("the template rewrites the contents of {} messages", role.as_str()))
}

impl Pieces {
    fn jinja(&self) -> String {
        let [system_trim, user_trim, assistant_trim] = self.trim.map(Trim::expression);
        let system = match &self.system {
            Some(pieces) => format!(
                "    {{%- if not loop.first -%}}{{{{ raise_exception('A system message must come first') }}}}{{%- endif -%}}\n\
                 \x20   {{{{- {} + ({system_trim}) -}}}}\n",
                quoted(&pieces.before)
            ),
            None => "    {{- raise_exception('System messages are not supported') -}}\n".to_owned(),
        };
        let after_system = match &self.system {
            Some(pieces) => format!("{{{{- {} -}}}}", quoted(&pieces.before_user)),
            None => "{{- raise_exception('System messages are not supported') -}}".to_owned(),
        };
        let between_users = match &self.between_users {
            Some(between) => format!("{{{{- {} -}}}}", quoted(between)),
            None => "{{- raise_exception('Roles must alternate') -}}".to_owned(),
        };
        format!(
            "{{#- Every assistant turn is generation prompt + content + end of turn, so that earlier turns stay\n\
             \x20   as they were. Written by bayesteach from the model's own template, for system, user and\n\
             \x20   assistant messages; it knows no tools. -#}}\n\
             {{%- for message in messages -%}}\n\
             \x20 {{%- if message.role == 'system' -%}}\n\
             {system}\
             \x20 {{%- elif message.role == 'user' -%}}\n\
             \x20   {{%- if loop.first -%}}{{{{- {first} -}}}}\n\
             \x20   {{%- elif loop.previtem.role == 'system' -%}}{after_system}\n\
             \x20   {{%- elif loop.previtem.role == 'assistant' -%}}{{{{- {later} -}}}}\n\
             \x20   {{%- else -%}}{between_users}\n\
             \x20   {{%- endif -%}}\n\
             \x20   {{{{- ({user_trim}) + {after_user} -}}}}\n\
             \x20 {{%- elif message.role == 'assistant' and not loop.first and loop.previtem.role == 'user' -%}}\n\
             \x20   {{{{- {prompt} + ({assistant_trim}) + {after_assistant} -}}}}\n\
             \x20 {{%- else -%}}\n\
             \x20   {{{{- raise_exception('An assistant message must follow a user message') -}}}}\n\
             \x20 {{%- endif -%}}\n\
             {{%- endfor -%}}\n\
             {{%- if add_generation_prompt -%}}{{{{- {prompt} -}}}}{{%- endif -%}}\n",
            first = quoted(&self.before_first_user),
            later = quoted(&self.before_later_user),
            after_user = quoted(&self.after_user),
            prompt = quoted(&self.generation_prompt),
            after_assistant = quoted(&self.after_assistant),
        )
    }
}

/// A Jinja string literal.
pub(super) fn quoted(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n").replace('\r', "\\r");
    format!("'{}'", escaped.replace('\t', "\\t"))
}

/// The synthesised template must prompt for a first answer exactly as the model's own does, also when another
/// program renders it.
fn check(native: &ChatTemplate, source: &str) -> Result<()> {
    let elsewhere = native.elsewhere(source)?;
    let user = (Role::User, " How\ndo you 'do'? ");
    let system = (Role::System, "Be\tbrief. ");
    for messages in [vec![user], vec![system, user], vec![user, user]] {
        if let Ok(expected) = native.render(&messages, true) {
            let rendered = elsewhere.render(&messages, true)?;
            ensure!(
                rendered == expected,
                "the per-turn variant of the chat template renders {rendered:?} where the model's own renders \
                 {expected:?}"
            );
        }
    }
    Ok(())
}
