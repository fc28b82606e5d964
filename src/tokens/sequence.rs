//! A sequence: token ids with soft targets.

use anyhow::Result;

use crate::episode::check_distribution;
use crate::error::Problems;

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

impl Sequence {
    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Bytes of memory that it takes, about.
    pub fn bytes(&self) -> usize {
        let of_target = |target: &SoftTarget| {
            let predictive = target.predictive.as_ref().map_or(0, Vec::len);
            size_of::<SoftTarget>() + 4 * target.token_ids.len() + 8 * (target.probs.len() + predictive)
        };
        size_of::<Self>()
            + self.id.len()
            + self.user.len()
            + 4 * (self.input_ids.len() + self.format_positions.len())
            + self.targets.iter().map(of_target).sum::<usize>()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// Checks all that batches rely on; with `vocab_size`, also that every id is below it.
    ///
    /// # Errors
    /// Names the targets and what is wrong with them.
    pub fn validate(&self, vocab_size: Option<usize>) -> Result<()> {
        let mut problems = Problems::default();
        self.find_problems(vocab_size, &mut problems);
        problems.into_result()
    }

    pub(super) fn find_problems(&self, vocab_size: Option<usize>, problems: &mut Problems) {
        problems.unless(!self.input_ids.is_empty(), || "input_ids is empty".into());
        problems.unless(!self.targets.is_empty() || !self.format_positions.is_empty(), || {
            "targets is empty: there is nothing to train on".into()
        });
        check_ids("input_ids", &self.input_ids, vocab_size, problems);
        for (i, target) in self.targets.iter().enumerate() {
            problems.of(&format!("target {i}"), target.problems(self.len(), vocab_size));
            problems.unless(i == 0 || self.targets[i - 1].position < target.position, || {
                format!("two targets have the position {}", target.position)
            });
        }
    }
}

impl SoftTarget {
    fn problems(&self, length: usize, vocab_size: Option<usize>) -> Problems {
        let mut problems = Problems::default();
        problems.unless((self.position as usize) < length, || {
            let last = length.saturating_sub(1);
            format!("position {} is beyond the last of {length} tokens, {last}", self.position)
        });
        problems.unless(!self.token_ids.is_empty(), || "token_ids is empty".into());
        problems.unless(self.token_ids.len() == self.probs.len(), || {
            format!("{} token_ids but {} probs", self.token_ids.len(), self.probs.len())
        });
        check_ids("token_ids", &self.token_ids, vocab_size, &mut problems);
        for (i, id) in self.token_ids.iter().enumerate() {
            problems.unless(!self.token_ids[..i].contains(id), || format!("token id {id} appears twice"));
        }
        check_distribution("probs", &self.probs, self.probs.len(), &mut problems);
        problems.unless(self.weight.is_finite() && self.weight >= 0.0, || {
            format!("weight {} must be finite and not negative", self.weight)
        });
        problems
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

fn check_ids(name: &str, ids: &[u32], vocab_size: Option<usize>, problems: &mut Problems) {
    let Some(size) = vocab_size else { return };
    if let Some(outside) = ids.iter().find(|&&id| id as usize >= size) {
        problems
            .unless(false, || format!("{name}: token id {outside} is not below the vocabulary size {size}"));
    }
}
