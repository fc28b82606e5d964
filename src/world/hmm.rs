//! Mixtures of hidden Markov models: the latent concepts of GINC (Xie et al. 2022, arXiv 2111.02080).
//!
//! **Generator.** A hidden state is a pair (value, slot). Every concept has its own slot transitions, a convex mix of
//! random permutations with sharply different weights; the value transitions are shared by all concepts and mostly
//! stay. The joint transition is their product. A state emits, for certain, the token that a memory (value × slot →
//! token) holds for it; slot 0 holds the delimiter `/`, the other cells uniform tokens. Start distributions are
//! nearly uniform. Concepts are a function of `teacher.hmm.seed` alone: runs of different `run.seed` share them.
//!
//! **Users** are concepts, drawn uniformly from the mixture that the teacher knows, or, with `unseen`, from as many
//! others that it does not know.
//!
//! **Documents** are plain sequences: one turn of the dialogue a token, as in [`coins`](super::coins).
//! **Prompts** are examples of `example_length` tokens. Each starts at a uniform value and a slot that stays the
//! same for the episode (never 0); all but the last token are given, and the last is to be predicted: one turn of the
//! dialogue an example. Between examples stands the delimiter, which the model of the concept would hardly write there:
//! the mismatch that the paper is about. So there are two exact teachers: one takes the prompt for a document of its
//! mixture, delimiters included; the other knows how prompts are made, and starts again at each delimiter.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::hidden_markov::HiddenMarkov;
use super::process::{LETTERS, Outcome, Query};
use crate::error::usage;
use crate::rng::{Stream, stream};

/// The token between examples.
pub const DELIMITER: usize = 0;

/// Random permutations in a transition matrix.
const PERMUTATIONS: usize = 10;

/// Their weights are softmax(u / this) for u uniform.
const PERMUTATION_TEMPERATURE: f64 = 0.1;

/// Start probabilities are softmax(u / this).
const START_TEMPERATURE: f64 = 10.0;

/// `[teacher.hmm]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HmmConfig {
    /// Which concepts are drawn.
    pub seed: u64,
    /// Concepts in the mixture.
    pub concepts: usize,
    /// Values of a hidden state.
    pub values: usize,
    /// Slots of a hidden state.
    pub slots: usize,
    /// Tokens, the delimiter included; each is a single character.
    pub vocabulary: usize,
    /// How much of the value transitions is the identity.
    pub stay: f64,
    /// How much of every transition is uniform over the states. At 0, as published, transitions that no permutation
    /// makes are impossible, and a teacher whose assumption is wrong (`unseen`, or prompts taken for documents) may
    /// find a symbol impossible that comes; it then ignores it, and `teacher.json` counts it.
    pub smoothing: f64,
    /// What an episode is.
    pub format: Format,
    /// Tokens in an example of a prompt.
    pub example_length: usize,
    /// What the teacher takes an episode for.
    pub inference: Inference,
    /// Whether users have concepts that the teacher does not know.
    pub unseen: bool,
}

impl Default for HmmConfig {
    fn default() -> HmmConfig {
        HmmConfig {
            seed: 0,
            concepts: 5,
            values: 10,
            slots: 10,
            vocabulary: 50,
            stay: 0.9,
            smoothing: 0.0,
            format: Format::Documents,
            example_length: 5,
            inference: Inference::PretrainingMixture,
            unseen: false,
        }
    }
}

/// What an episode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A sequence of tokens.
    Documents,
    /// Examples, joined by delimiters.
    Prompts,
}

/// What the teacher takes an episode for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inference {
    /// A document of one of the concepts, delimiters included.
    PretrainingMixture,
    /// A prompt: it starts again at each delimiter, at a uniform value and the episode's slot.
    PromptAware,
}

impl HmmConfig {
    /// Checks the config.
    ///
    /// # Errors
    /// Names the key, its value and what is possible.
    pub fn validate(&self) -> Result<()> {
        let within = |key: &str, value: usize, low: usize, high: usize| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            Err(usage(format!("teacher.hmm.{key} is {value}, {low} to {high} are possible")))
        };
        // At most 50 transition tables (100 with unseen concepts) of 400 × 400 numbers: 128 MB.
        within("concepts", self.concepts, 1, 50)?;
        within("values", self.values, 1, 20)?;
        within("slots", self.slots, 2, 20)?;
        // The delimiter and characters that are one token in any tokenizer.
        within("vocabulary", self.vocabulary, 3, characters().len())?;
        within("example_length", self.example_length, 2, 1000)?;
        for (key, fraction) in [("stay", self.stay), ("smoothing", self.smoothing)] {
            if !(0.0..=1.0).contains(&fraction) {
                return Err(usage(format!("teacher.hmm.{key} is {fraction}, it must be from 0 to 1")));
            }
        }
        if self.format == Format::Documents && self.inference == Inference::PromptAware {
            return Err(usage(
                "teacher.hmm.inference = \"prompt-aware\" needs teacher.hmm.format = \"prompts\"",
            ));
        }
        Ok(())
    }
}

/// What tokens look like: the delimiter, then letters and digits.
fn characters() -> Vec<char> {
    let lower = LETTERS.iter().map(char::to_ascii_lowercase);
    ['/'].into_iter().chain(LETTERS).chain(lower).chain('0'..='9').collect()
}

/// `/, A to Z and a to w`
fn spell_characters(characters: &[char]) -> String {
    let kinds: [fn(&char) -> bool; 3] =
        [char::is_ascii_uppercase, char::is_ascii_lowercase, char::is_ascii_digit];
    let of_kind = |kind: fn(&char) -> bool| -> Option<String> {
        let mut of_kind = characters.iter().filter(|c| kind(c));
        let first = of_kind.next()?;
        Some(of_kind.next_back().map_or(first.to_string(), |last| format!("{first} to {last}")))
    };
    let mut parts = vec!["/".to_owned()];
    parts.extend(kinds.into_iter().filter_map(of_kind));
    let last = parts.pop().unwrap_or_default();
    format!("{} and {last}", parts.join(", "))
}

/// The world of hidden Markov models; see the module's documentation.
#[derive(Clone, Debug)]
pub struct Hmm {
    config: HmmConfig,
    /// Those of the mixture, then (with `unseen`) those of the users.
    concepts: Vec<Arc<HiddenMarkov>>,
    pub(super) labels: Arc<[String]>,
}

/// A user's concept, and where an episode of it stands.
#[derive(Clone, Debug)]
pub struct HiddenSource {
    /// Index of the concept.
    pub concept: usize,
    /// The slot at which the examples of this episode's prompt start.
    pub slot: usize,
    /// The state that emits next.
    state: usize,
}

impl Hmm {
    /// Draws the concepts.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn new(config: &HmmConfig) -> Result<Hmm> {
        config.validate()?;
        let shared = &mut stream(config.seed, "world.hmm.shared", 0);
        let mut value_transition = mix_of_permutations(config.values, shared);
        for (from, row) in value_transition.iter_mut().enumerate() {
            row.iter_mut().for_each(|p| *p *= 1.0 - config.stay);
            row[from] += config.stay;
        }
        let states = config.values * config.slots;
        let emission: Vec<Vec<f64>> = (0..states)
            .map(|state| {
                let slot = state % config.slots;
                let token = if slot == 0 { DELIMITER } else { 1 + shared.below(config.vocabulary - 1) };
                (0..config.vocabulary).map(|t| if t == token { 1.0 } else { 0.0 }).collect()
            })
            .collect();
        let concept = |index: usize| {
            let draws = &mut stream(config.seed, "world.hmm.concept", index as u64);
            let slot_transition = mix_of_permutations(config.slots, draws);
            let start = softmax_of_uniforms(states, START_TEMPERATURE, draws);
            let product = |from: usize| -> Vec<f64> {
                let (value, slot) = (from / config.slots, from % config.slots);
                let smooth = |p: f64| (1.0 - config.smoothing) * p + config.smoothing / states as f64;
                let of_value =
                    |p: &f64| slot_transition[slot].iter().map(|q| smooth(p * q)).collect::<Vec<_>>();
                value_transition[value].iter().flat_map(of_value).collect()
            };
            Arc::new(HiddenMarkov::new(start, &(0..states).map(product).collect::<Vec<_>>(), &emission))
        };
        let count = if config.unseen { 2 * config.concepts } else { config.concepts };
        let labels = characters()[..config.vocabulary].iter().map(char::to_string).collect();
        Ok(Hmm { config: config.clone(), concepts: (0..count).map(concept).collect(), labels })
    }

    /// The settings.
    pub fn config(&self) -> &HmmConfig {
        &self.config
    }

    /// The concepts that the teacher knows.
    pub fn mixture(&self) -> &[Arc<HiddenMarkov>] {
        &self.concepts[..self.config.concepts]
    }

    /// The concept of a source.
    pub fn concept(&self, source: &HiddenSource) -> &Arc<HiddenMarkov> {
        &self.concepts[source.concept]
    }

    /// The distribution of the first state of an example: a uniform value, and this slot.
    pub fn example_start(&self, slot: usize) -> Vec<f64> {
        let HmmConfig { values, slots, .. } = self.config;
        (0..values * slots).map(|s| if s % slots == slot { 1.0 / values as f64 } else { 0.0 }).collect()
    }

    pub(super) fn source(&self, user: &mut Stream, episode: &mut Stream) -> HiddenSource {
        let unseen = if self.config.unseen { self.config.concepts } else { 0 };
        let concept = unseen + user.below(self.config.concepts);
        let slot = 1 + episode.below(self.config.slots - 1);
        let state = match self.config.format {
            Format::Documents => self.concepts[concept].draw_start(episode),
            Format::Prompts => episode.below(self.config.values) * self.config.slots + slot,
        };
        HiddenSource { concept, slot, state }
    }

    /// Draws what is asked next, and what comes.
    pub(super) fn step(&self, at: &mut HiddenSource, draws: &mut Stream) -> (Query, Outcome) {
        let concept = self.concept(at);
        let mut emit = |state: &mut usize| {
            let symbol = concept.draw_symbol(*state, draws);
            *state = concept.draw_next(*state, draws);
            symbol
        };
        match self.config.format {
            Format::Documents => {
                let symbol = emit(&mut at.state);
                (Query::Next, Outcome::symbol(symbol))
            }
            Format::Prompts => {
                let given = (1..self.config.example_length).map(|_| emit(&mut at.state)).collect();
                let symbol = emit(&mut at.state);
                at.state = draws.below(self.config.values) * self.config.slots + at.slot;
                (Query::Example { given }, Outcome::symbol(symbol))
            }
        }
    }

    pub(super) fn default_rounds(&self) -> usize {
        match self.config.format {
            Format::Documents => 100,
            Format::Prompts => 20,
        }
    }

    pub(super) fn opening(&self) -> String {
        let characters = spell_characters(&characters()[..self.config.vocabulary]);
        match self.config.format {
            Format::Documents => format!(
                "A hidden process writes one character after another: {characters}. Predict every character. Reply \
                 with the character only."
            ),
            Format::Prompts => format!(
                "A hidden process writes lines of {} characters: {characters}. I show you each line but for its last \
                 character. Predict that one. Reply with the character only.",
                self.config.example_length
            ),
        }
    }

    /// The given characters of an example.
    pub(super) fn line(&self, given: &[usize]) -> String {
        given.iter().map(|&symbol| self.labels[symbol].as_str()).collect::<Vec<_>>().join(" ")
    }
}

/// A convex mix of random permutation matrices.
fn mix_of_permutations(size: usize, draws: &mut Stream) -> Vec<Vec<f64>> {
    let weights = softmax_of_uniforms(PERMUTATIONS, PERMUTATION_TEMPERATURE, draws);
    let mut matrix = vec![vec![0.0; size]; size];
    for weight in weights {
        let mut permutation: Vec<usize> = (0..size).collect();
        draws.shuffle(&mut permutation);
        permutation.iter().enumerate().for_each(|(from, &to)| matrix[from][to] += weight);
    }
    matrix
}

/// softmax(u / temperature) for uniform u.
fn softmax_of_uniforms(size: usize, temperature: f64, draws: &mut Stream) -> Vec<f64> {
    let weights: Vec<f64> = (0..size).map(|_| ((draws.uniform() - 0.5) / temperature).exp()).collect();
    super::chain::normalise(&weights)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// The published generator: 100 states, all rows distributions, slot 0 emits the delimiter, values mostly stay.
    #[test]
    fn concepts_as_published() {
        let world = Hmm::new(&HmmConfig { unseen: true, ..HmmConfig::default() }).unwrap();
        assert_eq!((world.concepts.len(), world.mixture().len()), (10, 5));
        for model in &world.concepts {
            assert_eq!((model.states(), model.symbols()), (100, 50));
            let delimiters: Vec<usize> = model.emitters(DELIMITER).iter().map(|(state, _)| *state).collect();
            assert_eq!(delimiters, (0..10).map(|value| 10 * value).collect::<Vec<_>>());
            for state in 0..100 {
                let row = model.transition(state);
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                let stays: f64 = row[state / 10 * 10..][..10].iter().sum();
                assert!((0.9 - 1e-12..=1.0 + 1e-12).contains(&stays));
            }
            let (low, high) =
                model.start().iter().fold((1.0_f64, 0.0_f64), |(l, h), p| (l.min(*p), h.max(*p)));
            assert!(high / low < 0.1_f64.exp() + 1e-12);
        }
        // The memory is shared, the slot transitions are not.
        let [one, two] = [&world.concepts[0], &world.concepts[7]];
        assert!((0..50).all(|symbol| one.emitters(symbol) == two.emitters(symbol)));
        assert_ne!(one.transition(3), two.transition(3));
    }

    #[test]
    fn bad_settings_are_refused() {
        let message = |toml: &str| {
            let config: HmmConfig = toml::from_str(toml).unwrap();
            Hmm::new(&config).unwrap_err().to_string()
        };
        assert!(message("vocabulary = 100").contains("3 to 63"));
        assert!(message("slots = 1").contains("slots is 1"));
        assert!(message("stay = 1.5").contains("stay is 1.5"));
        assert!(message("smoothing = -0.1").contains("smoothing is -0.1"));
        assert!(message("stay = nan").contains("stay is NaN"));
        assert!(message("inference = \"prompt-aware\"").contains("prompts"));
        assert!(message("format = \"prompts\"\nexample_length = 1").contains("example_length"));
    }
}
