//! The chat template that comes with a model, rendered as it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use minijinja::{Environment, Value};

use super::jinja::{FixedDate, environment};
use crate::episode::Role;
use crate::error::usage;

/// A chat template, ready to render dialogues.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    constants: BTreeMap<String, Value>,
    special_tokens: SpecialTokens,
    date: FixedDate,
}

const PLAIN: &str = "\
{% for message in messages %}\
{% if message.role == 'assistant' %}Assistant: {{ message.content }}{{ eos_token | default('', true) }}\
{% else %}{{ message.role | capitalize }}: {{ message.content }}{% endif %}{{ '\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}Assistant: {% endif %}";

/// The special tokens that `tokenizer_config.json` names, such as `bos_token` and `eos_token`, by key.
pub type SpecialTokens = BTreeMap<String, String>;

impl ChatTemplate {
    /// Compiles `source`. `date`, written like `26 Jul 2024`, is the day it prints, if it prints one.
    ///
    /// # Errors
    /// If the template is not valid Jinja or the date is not a date.
    pub fn new(source: &str, special_tokens: &SpecialTokens, date: &str) -> Result<Self> {
        Self::compile(source, special_tokens, FixedDate::parse(date)?)
    }

    fn compile(source: &str, special_tokens: &SpecialTokens, date: FixedDate) -> Result<Self> {
        let tokens = special_tokens.iter().map(|(key, token)| (key.clone(), Value::from(token.as_str())));
        let mut constants: BTreeMap<String, Value> = tokens.collect();
        for absent in ["tools", "documents"] {
            constants.insert(absent.to_owned(), Value::from(()));
        }
        constants.insert("enable_thinking".to_owned(), Value::from(false));
        constants.insert("date_string".to_owned(), Value::from(date.to_text()));
        Ok(Self {
            environment: environment(source, date)?,
            source: source.to_owned(),
            constants,
            special_tokens: special_tokens.clone(),
            date,
        })
    }

    /// Reads the template of a model's folder: `chat_template.jinja`, else the `chat_template` in
    /// `tokenizer_config.json` (of several named ones, `default`). `path` takes another file instead.
    ///
    /// # Errors
    /// If there is no template, or it cannot be read or compiled.
    pub fn load(folder: &Path, path: Option<&Path>, date: &str) -> Result<Self> {
        let config = read_tokenizer_config(folder)?;
        let source = match path {
            Some(path) => {
                read_template(path).map_err(|error| usage(format!("tokens.template: {error:#}")))?
            }
            None => find_template(folder, &config)?,
        };
        Self::new(&source, &special_tokens(&config), date)
            .with_context(|| format!("chat template of {}", path.unwrap_or(folder).display()))
    }

    /// The plain template, with the special tokens of a model's folder: a line `User: …` or `Assistant: …` a message, and
    /// the model's own end of text behind what the assistant says.
    ///
    /// # Errors
    /// If `tokenizer_config.json` or the date cannot be read.
    pub fn plain(folder: &Path, date: &str) -> Result<Self> {
        Self::new(PLAIN, &special_tokens(&read_tokenizer_config(folder)?), date)
    }

    /// The Jinja text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders the messages, and the opening of the assistant's next one where `add_generation_prompt`.
    ///
    /// # Errors
    /// If the template refuses the dialogue or fails.
    pub fn render(&self, messages: &[(Role, &str)], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(|(role, content)| message(*role, content)).collect();
        self.render_values(&messages, add_generation_prompt)
    }

    /// [`Self::render`] of messages made by [`message`], which are cheap to share between renderings.
    pub(super) fn render_values(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String> {
        let mut context = self.constants.clone();
        context.insert("messages".to_owned(), Value::from(messages.to_vec()));
        context.insert("add_generation_prompt".to_owned(), Value::from(add_generation_prompt));
        let template = self.environment.get_template("chat")?;
        template.render(Value::from(context)).map_err(|error| match error.detail() {
            Some(detail) => {
                anyhow!("the chat template fails in line {}: {detail}", error.line().unwrap_or(0))
            }
            None => anyhow!("the chat template fails: {error}"),
        })
    }

    /// A template with other text and everything else alike.
    pub(super) fn with_source(&self, source: &str) -> Result<Self> {
        Self::compile(source, &self.special_tokens, self.date)
    }

    /// How a program renders `source` that knows nothing of this one's settings: on another day, and without
    /// `enable_thinking` and `date_string`.
    pub(super) fn elsewhere(&self, source: &str) -> Result<Self> {
        let mut other = Self::compile(source, &self.special_tokens, FixedDate::parse("3 Nov 2031")?)?;
        other.constants.remove("enable_thinking");
        other.constants.remove("date_string");
        Ok(other)
    }

    /// The day that the template prints, as `date_string`.
    pub(super) fn date(&self) -> String {
        self.date.to_text()
    }
}

/// A message as templates see it.
pub(super) fn message(role: Role, content: &str) -> Value {
    minijinja::context! { role => role.as_str(), content => content }
}

/// `tokenizer_config.json`, or nothing where a model has none.
pub(super) fn read_tokenizer_config(folder: &Path) -> Result<serde_json::Value> {
    let path = folder.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(serde_json::Value::Null);
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not valid JSON", path.display()))
}

/// The special tokens of a `tokenizer_config.json`: a string, or an object with `content`.
pub(super) fn special_tokens(config: &serde_json::Value) -> SpecialTokens {
    let mut tokens = SpecialTokens::new();
    for (key, value) in config.as_object().into_iter().flatten() {
        let token = value.as_str().or_else(|| value.get("content").and_then(|content| content.as_str()));
        if let (true, Some(token)) = (key.ends_with("_token"), token) {
            tokens.insert(key.clone(), token.to_owned());
        }
    }
    tokens
}

/// A token that a `tokenizer_config.json` names.
pub(super) struct NamedToken {
    pub(super) token: String,
    /// Where it is named.
    pub(super) key: String,
    /// Whether it is more than text that happens to have a token of its own.
    pub(super) special: bool,
}

/// All tokens that a `tokenizer_config.json` names.
pub(super) fn named_tokens(config: &serde_json::Value) -> Vec<NamedToken> {
    let content =
        |value: &serde_json::Value| value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned);
    let named = |key: &str, token, special| NamedToken { token, key: key.to_owned(), special };
    let mut all: Vec<NamedToken> =
        special_tokens(config).into_iter().map(|(key, token)| named(&key, token, true)).collect();
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        let list = config[key].as_array().into_iter().flatten();
        all.extend(list.filter_map(content).map(|token| named(key, token, true)));
    }
    let added = config["added_tokens_decoder"].as_object().into_iter().flatten();
    all.extend(added.filter_map(|(_, value)| {
        Some(named("added_tokens_decoder", content(value)?, value["special"] == true))
    }));
    all
}

fn read_template(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read the chat template {}", path.display()))
}

fn find_template(folder: &Path, config: &serde_json::Value) -> Result<String> {
    let file: PathBuf = folder.join("chat_template.jinja");
    if file.exists() {
        return read_template(&file);
    }
    match config.get("chat_template") {
        Some(serde_json::Value::String(source)) => Ok(source.clone()),
        Some(serde_json::Value::Array(named)) => named
            .iter()
            .find(|entry| entry.get("name").and_then(|name| name.as_str()) == Some("default"))
            .and_then(|entry| entry.get("template").and_then(|template| template.as_str()))
            .map(str::to_owned)
            .with_context(|| {
                format!(
                    "{}: none of its named chat templates is \"default\": put the one to use into a file and name it \
                     with `--template` (where a command takes --set or a config: tokens.template)",
                    folder.join("tokenizer_config.json").display()
                )
            }),
        Some(serde_json::Value::Null) | None => bail!(
            "{} has no chat template (base checkpoints often have none): use the instruction-tuned model, or \
             choose a plain one with `--template plain`, or one of your own with `--template FILE.jinja` (where a command \
             takes --set or a config: tokens.template)",
            folder.display()
        ),
        Some(_) => bail!(
            "{}: chat_template is neither text nor a list of named templates",
            folder.join("tokenizer_config.json").display()
        ),
    }
}
