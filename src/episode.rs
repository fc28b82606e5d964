//! The episode: one dialogue with the teacher's predictive distribution at every answer, as plain data.
//!
//! The file format is JSON Lines, format version 1 (one episode a line). Reading validates, so that
//! everything downstream can rely on what [`Episode::validate`] promises.

mod lines;

use std::io::Write;
use std::path::Path;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

pub(crate) use lines::parse_json;
pub use lines::{Problem, for_each_line, refuse, scan, scan_in_parallel};

use crate::error::Problems;

/// The version written and understood.
pub const FORMAT_VERSION: u32 = 1;

/// One dialogue between a (simulated) user and the assistant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Episode {
    /// Always [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Unique within a file, such as `flights-000417-3`.
    pub id: String,
    /// The world's name, or anything for data of one's own.
    #[serde(default)]
    pub world: String,
    /// Who the user is; episodes of one user stay in one split.
    #[serde(default)]
    pub user: String,
    /// The dialogue.
    pub messages: Vec<Message>,
}

/// One message of the dialogue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The text.
    pub content: String,
    /// On assistant messages that carry a supervised answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions before the dialogue.
    System,
    /// The user.
    User,
    /// The assistant: the model that is taught.
    Assistant,
}

impl Role {
    /// The name that chat templates use.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A supervised answer within an assistant message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Byte offset in `content` where the option's label begins.
    pub start: usize,
    /// The labels.
    pub options: Vec<String>,
    /// What is trained: the teacher's predictive distribution over the options, or what stands in for it.
    pub probs: Vec<f64>,
    /// The teacher's predictive distribution, where `probs` is something else (one option for certain, say): what
    /// models are measured against.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictive: Option<Vec<f64>>,
    /// Index of the option that stands in `content`.
    pub said: usize,
    /// Index of what the user really chose, where known.
    pub truth: Option<usize>,
    /// Weight in the loss.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: f64,
    /// How many earlier answers bear on this one; all earlier ones of the episode (but reports of beliefs) where
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observations: Option<usize>,
    /// What this answer reports a belief about, such as `price` or `extraversion`; absent where it predicts or
    /// recommends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub belief: Option<String>,
}

fn one() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(weight: &f64) -> bool {
    *weight == 1.0
}

impl Episode {
    /// Every answer with its observation count, in order.
    pub fn answers(&self) -> impl Iterator<Item = (&Answer, usize)> {
        let mut earlier = 0;
        self.messages.iter().filter_map(|m| m.answer.as_ref()).map(move |answer| {
            let observations = answer.observations.unwrap_or(earlier);
            // Nobody tells whether a reported belief was right.
            earlier += usize::from(answer.belief.is_none());
            (answer, observations)
        })
    }

    /// Checks all that the rest of the program relies on.
    ///
    /// # Errors
    /// Names the messages and what is wrong with them.
    pub fn validate(&self) -> Result<()> {
        self.problems().into_result()
    }

    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        problems.unless(self.format_version == FORMAT_VERSION, || {
            format!("format_version is {}, this program reads {FORMAT_VERSION}", self.format_version)
        });
        problems.unless(!self.messages.is_empty(), || "the dialogue is empty".into());
        for (i, message) in self.messages.iter().enumerate() {
            if let Some(answer) = &message.answer {
                problems.unless(message.role == Role::Assistant, || {
                    format!("message {i} has an answer but is not the assistant's")
                });
                problems.of(&format!("answer of message {i}"), answer.problems(&message.content));
            }
        }
        problems
    }
}

impl Answer {
    /// What the teacher believed, whatever is trained.
    pub fn predictive(&self) -> &[f64] {
        self.predictive.as_ref().unwrap_or(&self.probs)
    }

    fn problems(&self, content: &str) -> Problems {
        let mut problems = Problems::default();
        let n = self.options.len();
        problems.unless(n >= 2, || format!("an answer needs at least 2 options, this one has {n}"));
        check_distribution("probs", &self.probs, n, &mut problems);
        if let Some(predictive) = &self.predictive {
            check_distribution("predictive", predictive, n, &mut problems);
        }
        if let Some(truth) = self.truth {
            problems.unless(truth < n, || format!("truth is {truth} but there are {n} options"));
        }
        problems.unless(self.weight.is_finite() && self.weight >= 0.0, || {
            format!("weight {} must be finite and not negative", self.weight)
        });
        let named = self.belief.as_deref() != Some("");
        problems.unless(named, || "belief must say what it is about, or be left out".into());
        for (i, option) in self.options.iter().enumerate() {
            problems.unless(!option.is_empty(), || format!("option {i} is empty"));
            if let Some(j) = self.options[..i].iter().position(|o| o == option) {
                problems.unless(false, || format!("options {j} and {i} are both {option:?}"));
            }
        }
        match self.options.get(self.said) {
            None => problems.unless(false, || format!("said is {} but there are {n} options", self.said)),
            Some(label) => {
                let there = content.get(self.start..).is_some_and(|rest| rest.starts_with(label.as_str()));
                problems.unless(there, || {
                    format!("the label {label:?} (said) is not at byte {} of {content:?}", self.start)
                });
            }
        }
        problems
    }
}

/// Checks that there is a probability for each of so many options.
pub(crate) fn check_distribution(name: &str, probs: &[f64], options: usize, problems: &mut Problems) {
    problems.unless(probs.len() == options, || format!("{options} options but {} {name}", probs.len()));
    if !probs.iter().all(|p| p.is_finite() && *p >= 0.0) {
        return problems.unless(false, || format!("{name} {probs:?} must be finite and not negative"));
    }
    let sum: f64 = probs.iter().sum();
    problems.unless((sum - 1.0).abs() <= 1e-6, || format!("{name} sum to {sum}, not to 1"));
}

/// Reads and validates an episode file.
///
/// # Errors
/// Names the file, the line and the problem.
pub fn read(path: &Path) -> Result<Vec<Episode>> {
    let mut episodes = Vec::new();
    let problems = scan_in_parallel(
        path,
        |_, line| parse(line),
        |_, episode| {
            episodes.push(episode);
            Ok(())
        },
    )?;
    refuse(path, &problems)?;
    ensure!(!episodes.is_empty(), "{}: no episodes in it", path.display());
    Ok(episodes)
}

/// The episode of one line, or all that is wrong with it.
pub(crate) fn parse(line: &str) -> Result<Episode, Vec<String>> {
    let episode: Episode = parse_json(line)?;
    let mut problems = Problems::default();
    problems.of(&format!("episode {:?}", episode.id), episode.problems());
    let problems = problems.into_vec();
    if problems.is_empty() { Ok(episode) } else { Err(problems) }
}

/// Writes one episode as a line.
///
/// # Errors
/// If writing fails.
pub fn write_line(out: &mut impl Write, episode: &Episode) -> Result<()> {
    serde_json::to_writer(&mut *out, episode)?;
    out.write_all(b"\n")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn episode() -> Episode {
        serde_json::from_str(
            r#"{"format_version": 1, "id": "flights-000417-3", "world": "flights", "user": "417", "messages": [
            {"role": "user", "content": "Help me"},
            {"role": "assistant", "content": "The best option is Flight 3.", "answer":
             {"start": 26, "options": ["1", "2", "3"], "probs": [0.11, 0.27, 0.62], "said": 2, "truth": 0}}]}"#,
        )
        .expect("the example of the format's documentation parses")
    }

    #[test]
    fn round_trip() {
        let mut line = Vec::new();
        write_line(&mut line, &episode()).expect("a Vec can be written");
        let read: Episode = serde_json::from_slice(&line).expect("what was written can be read");
        assert_eq!(read, episode());
        read.validate().expect("the example is valid");
    }

    #[test]
    fn each_defect_is_named() {
        let defect = |change: fn(&mut Episode), expected: &str| {
            let mut e = episode();
            change(&mut e);
            let message = format!("{:#}", e.validate().expect_err("a defect must be found"));
            assert!(message.contains(expected), "{message:?} does not say {expected:?}");
        };
        fn answer(e: &mut Episode) -> &mut Answer {
            e.messages[1].answer.as_mut().expect("message 1 has an answer")
        }
        defect(|e| e.format_version = 2, "format_version");
        defect(|e| e.messages.clear(), "empty");
        defect(|e| e.messages[1].role = Role::User, "not the assistant's");
        defect(|e| answer(e).probs[0] = 0.2, "sum to");
        defect(|e| answer(e).probs[0] = f64::NAN, "finite");
        defect(|e| answer(e).predictive = Some(vec![0.5, 0.5]), "3 options but 2 predictive");
        defect(|e| answer(e).predictive = Some(vec![0.5, 0.6, 0.0]), "predictive sum to");
        defect(|e| answer(e).start = 25, "not at byte 25");
        defect(|e| answer(e).start = 4000, "not at byte 4000");
        defect(|e| answer(e).said = 3, "said is 3");
        defect(|e| answer(e).truth = Some(9), "truth is 9");
        defect(|e| answer(e).options[1] = "1".into(), "are both");
        defect(|e| answer(e).options.truncate(1), "at least 2 options");
        defect(|e| answer(e).weight = -1.0, "weight");
        defect(|e| answer(e).belief = Some(String::new()), "belief");
    }
}
