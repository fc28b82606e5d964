//! A sequence: token ids with soft targets.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::episode::{self, Episode, FORMAT_VERSION};

/// One episode as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// The episode's id.
    pub id: String,
    /// Who the user is; empty where that is not known.
    pub user: String,
    /// The tokens.
    pub input_ids: Vec<u32>,
    /// What is trained, by position.
    pub targets: Vec<SoftTarget>,
    /// Positions whose next token is one of the assistant's other tokens: of its messages' contents and their
    /// end of turn, without the supervised ones.
    pub format_positions: Vec<u32>,
}

/// A distribution over the token that follows a position. The model sees tokens `0..=position`.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftTarget {
    /// Index of the token whose next-token distribution is trained.
    pub position: u32,
    /// The tokens that have probability.
    pub token_ids: Vec<u32>,
    /// Their probabilities, which sum to 1.
    pub probs: Vec<f64>,
    /// What a model is measured against, where that is not what is trained.
    pub predictive: Option<Vec<f64>>,
    /// Weight in the loss.
    pub weight: f32,
    /// Where the target comes from an episode: what the answer was.
    pub answer: Option<AnswerInfo>,
    /// What the answer reports a belief about; none where it predicts or recommends.
    pub belief: Option<String>,
}

/// What is known about the answer behind a target; options are indexed as in [`SoftTarget::token_ids`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerInfo {
    /// The option that stands in the text.
    pub said: usize,
    /// The option that the user chose, where known.
    pub truth: Option<usize>,
    /// How many earlier answers bear on this one.
    pub observations: usize,
}

/// One line of an episode file.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// A dialogue, which is still to be encoded.
    Episode(Episode),
    /// A sequence that was tokenised elsewhere.
    Tokenised(Sequence),
}

impl Line {
    /// The episode's id, or the one given to a tokenised line.
    pub fn id(&self) -> &str {
        match self {
            Self::Episode(episode) => &episode.id,
            Self::Tokenised(sequence) => &sequence.id,
        }
    }
}

/// Reads and validates a file of episodes, of tokenised sequences, or of both.
///
/// # Errors
/// Names the file, the line and the problem.
pub fn read_lines(path: &Path) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    episode::for_each_line(path, |text| {
        lines.push(parse_line(text, lines.len() + 1)?);
        Ok(())
    })?;
    ensure!(!lines.is_empty(), "{}: no episodes in it", path.display());
    Ok(lines)
}

#[derive(Deserialize)]
struct Kind {
    input_ids: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenisedLine {
    format_version: u32,
    id: Option<String>,
    #[serde(default)]
    user: String,
    input_ids: Vec<u32>,
    targets: Vec<TokenisedTarget>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenisedTarget {
    position: u32,
    token_ids: Vec<u32>,
    probs: Vec<f64>,
    #[serde(default = "one")]
    weight: f32,
}

fn one() -> f32 {
    1.0
}

/// One line; `number` names a tokenised sequence that has no id.
fn parse_line(text: &str, number: usize) -> Result<Line> {
    let tokenised = text.contains("\"input_ids\"") && serde_json::from_str::<Kind>(text)?.input_ids.is_some();
    if !tokenised {
        let episode: Episode = serde_json::from_str(text)?;
        episode.validate().with_context(|| format!("episode {:?}", episode.id))?;
        return Ok(Line::Episode(episode));
    }
    let line: TokenisedLine = serde_json::from_str(text)?;
    ensure!(
        line.format_version == FORMAT_VERSION,
        "format_version is {}, this program reads {FORMAT_VERSION}",
        line.format_version
    );
    let mut targets: Vec<SoftTarget> = line
        .targets
        .into_iter()
        .map(|t| SoftTarget {
            position: t.position,
            token_ids: t.token_ids,
            probs: t.probs,
            predictive: None,
            weight: t.weight,
            answer: None,
            belief: None,
        })
        .collect();
    targets.sort_by_key(|t| t.position);
    let id = line.id.unwrap_or_else(|| format!("tokenised-{number}"));
    let (user, input_ids) = (line.user, line.input_ids);
    let sequence = Sequence { id, user, input_ids, targets, format_positions: Vec::new() };
    sequence.validate(None).with_context(|| format!("sequence {:?}", sequence.id))?;
    Ok(Line::Tokenised(sequence))
}

impl Sequence {
    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// Checks all that batches rely on; with `vocab_size`, also that every id is below it.
    ///
    /// # Errors
    /// Names the target and what is wrong with it.
    pub fn validate(&self, vocab_size: Option<usize>) -> Result<()> {
        ensure!(!self.input_ids.is_empty(), "input_ids is empty");
        ensure!(
            !self.targets.is_empty() || !self.format_positions.is_empty(),
            "targets is empty: there is nothing to train on"
        );
        check_ids(&self.input_ids, vocab_size).context("input_ids")?;
        for (i, target) in self.targets.iter().enumerate() {
            target.validate(self.len(), vocab_size).with_context(|| format!("target {i}"))?;
            ensure!(
                i == 0 || self.targets[i - 1].position < target.position,
                "two targets have the position {}",
                target.position
            );
        }
        Ok(())
    }
}

impl SoftTarget {
    fn validate(&self, length: usize, vocab_size: Option<usize>) -> Result<()> {
        ensure!(
            (self.position as usize) < length,
            "position {} is beyond the last of {length} tokens, {}",
            self.position,
            length - 1
        );
        ensure!(!self.token_ids.is_empty(), "token_ids is empty");
        ensure!(
            self.token_ids.len() == self.probs.len(),
            "{} token_ids but {} probs",
            self.token_ids.len(),
            self.probs.len()
        );
        check_ids(&self.token_ids, vocab_size).context("token_ids")?;
        for (i, id) in self.token_ids.iter().enumerate() {
            ensure!(!self.token_ids[..i].contains(id), "token id {id} appears twice");
        }
        ensure!(
            self.probs.iter().all(|p| p.is_finite() && *p >= 0.0),
            "probs {:?} must be finite and not negative",
            self.probs
        );
        let sum: f64 = self.probs.iter().sum();
        ensure!((sum - 1.0).abs() <= 1e-6, "probs sum to {sum}, not to 1");
        ensure!(
            self.weight.is_finite() && self.weight >= 0.0,
            "weight {} must be finite and not negative",
            self.weight
        );
        Ok(())
    }

    /// What a model is measured against.
    pub fn predictive(&self) -> &[f64] {
        self.predictive.as_ref().unwrap_or(&self.probs)
    }

    /// Index of the option that cross-entropy trains: what was said, or else the most probable (the first of
    /// equals).
    pub fn one_hot(&self) -> usize {
        match self.answer {
            Some(answer) => answer.said,
            None => (1..self.probs.len()).fold(
                0,
                |best, i| {
                    if self.probs[i] > self.probs[best] { i } else { best }
                },
            ),
        }
    }
}

fn check_ids(ids: &[u32], vocab_size: Option<usize>) -> Result<()> {
    if let Some(size) = vocab_size {
        let outside = ids.iter().find(|&&id| id as usize >= size);
        ensure!(
            outside.is_none(),
            "token id {} is not below the vocabulary size {size}",
            outside.unwrap_or(&0)
        );
    }
    Ok(())
}
