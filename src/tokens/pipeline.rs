//! From episodes to sequences: render once, encode once, find the supervised tokens.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, anyhow, ensure};
use rayon::prelude::*;

use super::label::LabelFinder;
use super::line::{Line, for_each_line};
use super::render::{Rendered, Renderer, Variant};
use super::sequence::{AnswerInfo, Sequence, SoftTarget};
use super::template::{ChatTemplate, NamedToken, named_tokens, read_tokenizer_config};
use super::tokenizer::{Bos, Encoded, Tokenizer};
use super::{Policy, TemplateChoice, TokensConfig};
use crate::episode::{self, Episode, Role};
use crate::error::usage;

/// What the model says about the sequences it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelLimits {
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// The rows of the embedding table.
    pub vocab_size: usize,
}

/// The tokenizer and chat template of a model, with the settings of `[tokens]`.
#[derive(Clone, Debug)]
pub struct Pipeline {
    tokenizer: Tokenizer,
    renderer: Renderer,
    max_length: usize,
    vocab_size: usize,
    on_too_long: Policy,
    on_untrainable: Policy,
    format_trains: bool,
}

/// Sequences, and what was left out of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EncodedSet {
    /// In the order of the episodes.
    pub sequences: Vec<Sequence>,
    /// Episodes left out on request.
    pub dropped: Dropped,
}

/// The ids of the episodes that were left out, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Longer than `max_length`.
    pub too_long: Vec<String>,
    /// Nothing to train on, or options that cannot be told apart.
    pub untrainable: Vec<String>,
}

/// An episode between its text and its sequence: all that `inspect` shows.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedEpisode {
    /// The text, and where the assistant's messages stand in it.
    pub rendered: Rendered,
    /// For every token of the sequence, the bytes of the text that it stands for.
    pub offsets: Vec<(usize, usize)>,
    /// Where the beginning-of-sequence token comes from.
    pub bos: Bos,
    /// What is trained.
    pub sequence: Sequence,
}

impl Dropped {
    /// How many episodes were left out.
    pub fn len(&self) -> usize {
        self.too_long.len() + self.untrainable.len()
    }

    /// Whether none was left out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a well-formed episode cannot be used, so that it may be dropped.
#[derive(Debug)]
struct Unusable {
    too_long: bool,
    message: String,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Unusable {}

fn untrainable(error: &anyhow::Error) -> anyhow::Error {
    anyhow::Error::new(Unusable { too_long: false, message: format!("{error:#}") })
}

impl Pipeline {
    /// Loads tokenizer and template from a model's folder.
    ///
    /// # Errors
    /// If a file is missing or damaged, the template is refused, or the settings do not fit the model.
    pub fn load(folder: &Path, config: &TokensConfig, limits: ModelLimits) -> Result<Self> {
        let tokenizer = Tokenizer::load(folder)?;
        let path = match &config.template {
            TemplateChoice::Path(path) => Some(path.as_path()),
            TemplateChoice::Auto | TemplateChoice::Strict | TemplateChoice::Plain => None,
        };
        let template = match config.template {
            TemplateChoice::Plain => ChatTemplate::plain(folder, &config.date)?,
            _ => ChatTemplate::load(folder, path, &config.date)?,
        };
        let renderer = Renderer::new(template, config.template == TemplateChoice::Strict)
            .with_context(|| format!("chat template of {}", path.unwrap_or(folder).display()))?;
        check_tokens(folder, &tokenizer, &renderer, limits.vocab_size)
            .with_context(|| format!("tokenizer of {}", folder.display()))?;
        let max_length = config.max_length.unwrap_or(limits.max_position_embeddings);
        ensure!(max_length > 0, usage("tokens.max_length must be at least 1"));
        ensure!(
            max_length <= limits.max_position_embeddings,
            usage(format!(
                "tokens.max_length ({max_length}) is more than the model's max_position_embeddings ({})",
                limits.max_position_embeddings
            ))
        );
        Ok(Self {
            tokenizer,
            renderer,
            max_length,
            vocab_size: limits.vocab_size,
            on_too_long: config.on_too_long,
            on_untrainable: config.on_untrainable,
            format_trains: false,
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How dialogues are rendered.
    pub fn renderer(&self) -> &Renderer {
        &self.renderer
    }

    /// The longest sequence in tokens.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Encodes every line, in parallel; the order is that of the lines.
    ///
    /// # Errors
    /// If an episode is malformed or cannot be used and the settings do not say to drop it; names the first such
    /// episode. Also if nothing is left.
    pub fn encode_all(&self, lines: &[Line]) -> Result<EncodedSet> {
        let encoded: Vec<Result<Sequence>> = lines.par_iter().map(|line| self.encode_line(line)).collect();
        let mut set = EncodedSet::default();
        for (line, encoded) in lines.iter().zip(encoded) {
            self.put(&mut set, line.id(), encoded)?;
        }
        self.check_any(set)
    }

    /// Reads an episode file and encodes its lines as they are read, so that the dialogues never are in memory all at once.
    ///
    /// # Errors
    /// If the file cannot be read, or a line is wrong; else as [`encode_all`](Self::encode_all). Names the file.
    pub fn encode_file(&self, path: &Path) -> Result<EncodedSet> {
        let mut set = Ok(EncodedSet::default());
        let failed = AtomicBool::new(false);
        // What comes behind an unusable episode is still read: a wrong line comes first.
        let encode = |line: Line| (!failed.load(Ordering::Relaxed)).then(|| self.encode_line(&line));
        let problems = for_each_line(path, encode, |_, id, encoded| {
            if let (Ok(into), Some(encoded)) = (&mut set, encoded)
                && let Err(error) = self.put(into, id, encoded)
            {
                failed.store(true, Ordering::Relaxed);
                set = Err(error);
            }
        })?;
        episode::refuse(path, &problems)?;
        set.and_then(|set| self.check_any(set)).with_context(|| path.display().to_string())
    }

    /// Puts an encoded line into a set, or among what was dropped where the settings say so.
    fn put(&self, set: &mut EncodedSet, id: &str, encoded: Result<Sequence>) -> Result<()> {
        let error = match encoded {
            Ok(sequence) => {
                set.sequences.push(sequence);
                return Ok(());
            }
            Err(error) => error,
        };
        match error.downcast_ref::<Unusable>().map(|unusable| unusable.too_long) {
            Some(true) if self.on_too_long == Policy::Drop => set.dropped.too_long.push(id.to_owned()),
            Some(false) if self.on_untrainable == Policy::Drop => {
                set.dropped.untrainable.push(id.to_owned());
            }
            _ => return Err(error),
        }
        Ok(())
    }

    /// Refuses a set that everything was dropped of.
    fn check_any(&self, set: EncodedSet) -> Result<EncodedSet> {
        ensure!(
            !set.sequences.is_empty(),
            "nothing is left of {} episodes: {} are longer than {} tokens and {} cannot be trained on",
            set.dropped.len(),
            set.dropped.too_long.len(),
            self.max_length,
            set.dropped.untrainable.len()
        );
        Ok(set)
    }

    /// Encodes one line of an episode file.
    ///
    /// # Errors
    /// If it cannot be used; names the episode.
    pub fn encode_line(&self, line: &Line) -> Result<Sequence> {
        match line {
            Line::Episode(episode) => Ok(self.encode(episode)?.sequence),
            Line::Tokenised(sequence) => {
                self.check(sequence).with_context(|| format!("sequence {:?}", sequence.id))?;
                Ok(sequence.clone())
            }
        }
    }

    /// Encodes one episode.
    ///
    /// # Errors
    /// If it cannot be used; names the episode.
    pub fn encode(&self, episode: &Episode) -> Result<EncodedEpisode> {
        self.encode_inner(episode).with_context(|| format!("episode {:?}", episode.id))
    }

    /// As [`encode`](Self::encode), none where the episode is too long.
    ///
    /// # Errors
    /// If it cannot be used for another reason; names the episode.
    pub fn encode_fitting(&self, episode: &Episode) -> Result<Option<Sequence>> {
        match self.encode(episode) {
            Ok(encoded) => Ok(Some(encoded.sequence)),
            Err(error) if error.downcast_ref::<Unusable>().is_some_and(|unusable| unusable.too_long) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn encode_inner(&self, episode: &Episode) -> Result<EncodedEpisode> {
        let rendered = self.renderer.render(&episode.messages)?;
        let encoded = self.tokenizer.encode(&rendered.text)?;
        let bos = self.tokenizer.bos(&encoded.ids)?;
        self.check_length(encoded.ids.len() + prefix(bos).len())?;

        let mut finder = LabelFinder::new(&self.tokenizer, &rendered.text, &encoded);
        let mut targets = Vec::with_capacity(episode.answers().count());
        let labels = rendered.turns.iter().filter_map(|turn| Some((turn.message, turn.label.as_ref()?)));
        for ((answer, observations), (message, label)) in episode.answers().zip(labels) {
            let found = finder
                .find(label, &answer.options, answer.said)
                .map_err(|error| untrainable(&error.context(format!("answer of message {message}"))))?;
            let position = (found.index + prefix(bos).len()).checked_sub(1);
            targets.push(SoftTarget {
                position: position.context("the answer begins the text: nothing comes before it")? as u32,
                token_ids: found.token_ids,
                probs: answer.probs.clone(),
                predictive: answer.predictive.clone(),
                weight: answer.weight as f32,
                answer: Some(AnswerInfo { said: answer.said, truth: answer.truth, observations }),
                belief: answer.belief.clone(),
            });
        }

        let format_positions = self.format_positions(&rendered, &encoded, prefix(bos).len(), &targets);
        let Encoded { ids, offsets } = encoded;
        let sequence = Sequence {
            id: episode.id.clone(),
            user: episode.user.clone(),
            input_ids: [prefix(bos), ids].concat(),
            targets,
            format_positions,
        };
        self.check(&sequence)?;
        let offsets = prefix(bos).iter().map(|_| (0, 0)).chain(offsets).collect();
        Ok(EncodedEpisode { rendered, offsets, bos, sequence })
    }

    /// The ids that lead to the assistant's next message.
    ///
    /// # Errors
    /// If the template refuses the dialogue.
    pub fn prompt(&self, messages: &[(Role, &str)]) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(&self.renderer.prompt(messages)?)?.ids;
        Ok([prefix(self.tokenizer.bos(&ids)?), ids].concat())
    }

    /// Positions whose next token belongs to the assistant's messages, their ends of turn included, and is not
    /// supervised.
    fn format_positions(
        &self,
        rendered: &Rendered,
        encoded: &Encoded,
        shift: usize,
        targets: &[SoftTarget],
    ) -> Vec<u32> {
        let mut positions = Vec::new();
        for turn in &rendered.turns {
            let content = encoded.touching(&turn.content);
            // Llama 2 has a space between the content and its end of turn.
            let is_space = |i: &usize| {
                let (start, end) = encoded.offsets[*i];
                !self.tokenizer.is_added(encoded.ids[*i]) && rendered.text[start..end].trim().is_empty()
            };
            let spaces = (content.end..encoded.ids.len()).take_while(is_space).count();
            let end_of_turn = content.end + spaces;
            let ends = encoded.ids.get(end_of_turn).is_some_and(|&id| self.tokenizer.is_added(id));
            let last = if ends { end_of_turn + 1 } else { content.end };
            positions
                .extend((content.start..last).filter_map(|i| (i + shift).checked_sub(1)).map(|p| p as u32));
        }
        positions.retain(|p| targets.binary_search_by_key(p, |t| t.position).is_err());
        positions.shrink_to_fit();
        positions
    }

    fn check_length(&self, length: usize) -> Result<()> {
        if length <= self.max_length {
            return Ok(());
        }
        let message = format!(
            "{length} tokens, more than {}: raise tokens.max_length as far as the model allows, shorten the episode, \
             or set tokens.on_too_long = \"drop\"",
            self.max_length
        );
        Err(anyhow::Error::new(Unusable { too_long: true, message }))
    }

    fn check(&self, sequence: &Sequence) -> Result<()> {
        self.check_length(sequence.len())?;
        let format_trains = self.format_trains && !sequence.format_positions.is_empty();
        if !format_trains && !sequence.targets.iter().any(|target| target.weight > 0.0) {
            return Err(untrainable(&anyhow!(
                "there is nothing to train on: no answer has a weight above 0 (tokens.on_untrainable = \"drop\" leaves \
                 such episodes out)"
            )));
        }
        sequence
            .validate(Some(self.vocab_size))
            .context("the tokens do not fit the model (is this tokenizer the model's own?)")
    }

    /// Writes the tokenizer's files beside an adapter, with the template in use: `tokenizer.json`,
    /// `tokenizer_config.json`, `special_tokens_map.json` where the model has one, `chat_template.jinja`.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn save_beside(&self, model_folder: &Path, folder: &Path) -> Result<()> {
        for name in ["tokenizer.json", "special_tokens_map.json"] {
            let (from, to) = (model_folder.join(name), folder.join(name));
            if from.exists() {
                std::fs::copy(&from, &to)
                    .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
            }
        }
        let template = self.renderer.portable_template();
        let mut config = read_tokenizer_config(model_folder)?;
        if let Some(config) = config.as_object_mut() {
            // Programs differ in which of the two places they read.
            config.insert("chat_template".to_owned(), template.clone().into());
            write(&folder.join("tokenizer_config.json"), &(serde_json::to_string_pretty(config)? + "\n"))?;
        }
        write(&folder.join("chat_template.jinja"), &template)
    }

    /// Says whether the assistant's other tokens are trained too (`loss.format_weight`), so that an episode without
    /// answers has something to train on.
    #[must_use]
    pub fn with_format_training(self, format_trains: bool) -> Self {
        Self { format_trains, ..self }
    }

    /// What becomes of episodes that are too long.
    #[must_use]
    pub fn with_too_long(self, on_too_long: Policy) -> Self {
        Self { on_too_long, ..self }
    }

    /// How dialogues are rendered, by name.
    pub fn variant(&self) -> Variant {
        self.renderer.variant()
    }
}

/// Refuses a tokenizer without the tokens that the model's own files name and a dialogue needs, or with such as the model
/// has no embedding for. Templates that write their marks as plain text, as some models have it, are left alone.
fn check_tokens(folder: &Path, tokenizer: &Tokenizer, renderer: &Renderer, vocab_size: usize) -> Result<()> {
    // What a template writes is seen in what it makes of a dialogue: its text also speaks of tools and images.
    let dialogue = [(Role::User, "a"), (Role::Assistant, "b"), (Role::User, "c")];
    let text = renderer.prompt(&dialogue).unwrap_or_default();
    let ids = tokenizer.encode(&text)?.ids;
    for NamedToken { token, key, special } in named_tokens(&read_tokenizer_config(folder)?) {
        let written = text.contains(&token);
        if token.is_empty() || !written && !["bos_token", "eos_token"].contains(&key.as_str()) {
            continue;
        }
        let uses = if written { ", and which the chat template writes" } else { "" };
        let id = tokenizer.id(&token);
        ensure!(
            id.is_some_and(|id| !(written && special) || ids.contains(&id)),
            "{token:?}, which tokenizer_config.json names ({key}){uses}, is no token of tokenizer.json: dialogues would be \
             cut as the model never saw them. Take both files from the same model, or save the tokenizer again with the \
             token in it; or choose a chat template that does without (`--template`, `tokens.template`)"
        );
        check_row(&token, id.unwrap_or(0), vocab_size)?;
    }
    ids.iter().try_for_each(|&id| check_row(&tokenizer.text(id), id, vocab_size))
}

fn check_row(token: &str, id: u32, vocab_size: usize) -> Result<()> {
    ensure!(
        (id as usize) < vocab_size,
        "{token:?} has the id {id}, but the model has embeddings of {vocab_size} tokens: either the tokenizer is another \
         model's, or a token was added and the embeddings were not resized (model.resize_token_embeddings in transformers, \
         then save both again)"
    );
    Ok(())
}

/// The ids to put before the text.
fn prefix(bos: Bos) -> Vec<u32> {
    match bos {
        Bos::Tokenizer(id) => vec![id],
        Bos::Template(_) | Bos::None => Vec::new(),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
