//! `predictions.jsonl`: episodes with what teacher and models predicted at every answer, to be looked at.

use serde::{Deserialize, Serialize};

use super::eval_file::Model;
use super::prediction::Prediction;
use crate::episode::{Episode, Role};

/// The file's name within a run: a few of the episodes that were measured, one a line.
pub const PREDICTIONS_FILE: &str = "predictions.jsonl";

/// An episode with the predictions of its answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictedEpisode {
    /// Always 1.
    pub format_version: u32,
    /// The episode's id.
    pub id: String,
    /// The world's name.
    pub world: String,
    /// Who the user is.
    pub user: String,
    /// The dialogue.
    pub messages: Vec<PredictedMessage>,
}

/// A message of the dialogue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictedMessage {
    /// Who speaks.
    pub role: Role,
    /// The text.
    pub content: String,
    /// On messages whose answer was predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<PredictedAnswer>,
}

/// What was predicted at an answer, renormalised over the options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PredictedAnswer {
    /// How many earlier answers bear on it.
    pub observations: usize,
    /// What it reports a belief about; absent where it predicts or recommends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub belief: Option<String>,
    /// The labels.
    pub options: Vec<String>,
    /// Index of what stands in the message.
    pub said: usize,
    /// Index of what the user really chose, where known.
    pub truth: Option<usize>,
    /// The teacher's distribution.
    pub teacher: Vec<f64>,
    /// The base model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Vec<f64>>,
    /// The base model's with the adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuned: Option<Vec<f64>>,
}

impl PredictedEpisode {
    /// An episode with the predictions of its answers, in order; none of an answer of weight 0, which is not
    /// predicted.
    pub fn new(episode: &Episode, model: Model, predictions: &[Prediction]) -> Self {
        let mut predictions = predictions.iter();
        let mut round = 0;
        let messages = episode.messages.iter().map(|message| {
            let answer = message.answer.as_ref().and_then(|answer| {
                let observations = answer.observations.unwrap_or(round);
                round += usize::from(answer.belief.is_none());
                let probs = if answer.weight > 0.0 { predictions.next()?.probs() } else { return None };
                let (baseline, fine_tuned) = match model {
                    Model::Baseline => (Some(probs), None),
                    Model::FineTuned => (None, Some(probs)),
                };
                Some(PredictedAnswer {
                    observations,
                    belief: answer.belief.clone(),
                    options: answer.options.clone(),
                    said: answer.said,
                    truth: answer.truth,
                    teacher: answer.predictive().to_vec(),
                    baseline,
                    fine_tuned,
                })
            });
            PredictedMessage { role: message.role, content: message.content.clone(), answer }
        });
        Self {
            format_version: 1,
            id: episode.id.clone(),
            world: episode.world.clone(),
            user: episode.user.clone(),
            messages: messages.collect(),
        }
    }

    /// The answers that were predicted, in order.
    pub fn answers(&self) -> impl Iterator<Item = &PredictedAnswer> {
        self.messages.iter().filter_map(|message| message.answer.as_ref())
    }

    /// Takes over the baseline's predictions from the same episode as it was measured before.
    pub fn take_baseline(&mut self, before: &Self) {
        let answers = self.messages.iter_mut().filter_map(|message| message.answer.as_mut());
        for (answer, before) in answers.zip(before.answers()) {
            answer.baseline.clone_from(&before.baseline);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn predictions_stand_at_their_answers() {
        let episode: Episode = serde_json::from_str(
            r#"{"format_version": 1, "id": "e", "user": "u", "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "b", "answer":
             {"start": 0, "options": ["a", "b"], "probs": [0.5, 0.5], "said": 1, "truth": 0, "weight": 0}},
            {"role": "user", "content": "a. ?"},
            {"role": "assistant", "content": "a", "answer":
             {"start": 0, "options": ["a", "b"], "probs": [0.75, 0.25], "said": 0, "truth": null}}]}"#,
        )
        .unwrap();
        let predict = |p: f64| [Prediction::new(&[p.ln(), (1.0 - p).ln()], &[0.75, 0.25], None, 1).unwrap()];
        let before = PredictedEpisode::new(&episode, Model::Baseline, &predict(0.5));
        let mut after = PredictedEpisode::new(&episode, Model::FineTuned, &predict(0.75));
        after.take_baseline(&before);
        let answers: Vec<&PredictedAnswer> = after.answers().collect();
        assert_eq!(answers.len(), 1, "the answer of weight 0 was not predicted");
        assert!(after.messages[1].answer.is_none() && answers[0].observations == 1);
        let (baseline, fine_tuned) =
            (answers[0].baseline.as_ref().unwrap(), answers[0].fine_tuned.as_ref().unwrap());
        assert!((baseline[0] - 0.5).abs() < 1e-12 && (fine_tuned[0] - 0.75).abs() < 1e-12);
        let line = serde_json::to_string(&after).unwrap();
        assert_eq!(serde_json::from_str::<PredictedEpisode>(&line).unwrap(), after);
    }
}
