//! A batch: several sequences as one flat run of tokens, with the targets flat as well.

use super::sequence::{Sequence, SoftTarget};

/// A flat run of `N` tokens in `S` sequences with `M` targets. There is no padding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `(N)` the tokens of all sequences, one after the other.
    pub input_ids: Vec<u32>,
    /// `(N)` the place of every token within its sequence.
    pub positions: Vec<u32>,
    /// `(S + 1)` where the sequences begin, and `N`.
    pub boundaries: Vec<u32>,
    /// `(M)` ascending: the tokens whose next-token distribution is trained.
    pub target_rows: Vec<u32>,
    /// `(M + 1)` where the options of every target begin, and their number in all.
    pub option_boundaries: Vec<u32>,
    /// The options' tokens.
    pub target_ids: Vec<u32>,
    /// The options' probabilities.
    pub target_probs: Vec<f32>,
    /// `(M)` weights in the loss, all above 0.
    pub weights: Vec<f32>,
    /// `(M)` true for a supervised answer, false for another token of the assistant's messages.
    pub is_answer: Vec<bool>,
    /// `(S)` the index of each sequence in the data set.
    pub sequences: Vec<usize>,
}

/// What the targets of a batch are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TargetKind {
    /// Train the option that was said (of tokenised sequences, the most probable) instead of the distribution.
    pub ce: bool,
    /// Weight of ordinary cross-entropy on the other tokens of the assistant's messages; 0 leaves them out.
    pub format_weight: f32,
    /// What the weights of predictions and recommendations are multiplied by.
    pub action_weight: f32,
    /// What the weights of reported beliefs are multiplied by.
    pub belief_weight: f32,
}

impl Default for TargetKind {
    /// Every answer's whole distribution.
    fn default() -> Self {
        Self { ce: false, format_weight: 0.0, action_weight: 1.0, belief_weight: 1.0 }
    }
}

impl TargetKind {
    /// An answer's weight in the loss; 0 leaves it out.
    pub fn weight_of(&self, target: &SoftTarget) -> f32 {
        let factor = if target.belief.is_some() { self.belief_weight } else { self.action_weight };
        factor * target.weight
    }
}

impl Batch {
    /// Lays out sequences, each with its index in the data set. Targets of weight 0 are left out.
    pub fn new(sequences: &[(usize, &Sequence)], kind: TargetKind) -> Self {
        let mut batch = Self { boundaries: vec![0], option_boundaries: vec![0], ..Self::default() };
        for (index, sequence) in sequences {
            let first_row = batch.input_ids.len() as u32;
            batch.input_ids.extend(&sequence.input_ids);
            batch.positions.extend(0..sequence.len() as u32);
            batch.boundaries.push(batch.input_ids.len() as u32);
            batch.sequences.push(*index);

            let mut targets: Vec<(u32, Option<&SoftTarget>)> = sequence
                .targets
                .iter()
                .filter(|t| kind.weight_of(t) > 0.0)
                .map(|t| (t.position, Some(t)))
                .collect();
            if kind.format_weight > 0.0 {
                targets.extend(sequence.format_positions.iter().map(|&position| (position, None)));
                targets.sort_by_key(|(position, _)| *position);
            }
            for (position, target) in targets {
                batch.target_rows.push(first_row + position);
                match target {
                    Some(target) => batch.push_answer(target, &kind),
                    None => batch.push_format(sequence.input_ids[position as usize + 1], kind.format_weight),
                }
            }
        }
        batch
    }

    fn push_answer(&mut self, target: &SoftTarget, kind: &TargetKind) {
        if kind.ce {
            let mut one_hot = vec![0.0; target.token_ids.len()];
            one_hot[target.one_hot()] = 1.0;
            self.push_options(&target.token_ids, &one_hot);
        } else {
            self.push_options(&target.token_ids, &target.probs);
        }
        self.weights.push(kind.weight_of(target));
        self.is_answer.push(true);
    }

    fn push_format(&mut self, next: u32, weight: f32) {
        self.push_options(&[next], &[1.0]);
        self.weights.push(weight);
        self.is_answer.push(false);
    }

    fn push_options(&mut self, ids: &[u32], probs: &[f64]) {
        self.target_ids.extend(ids);
        self.target_probs.extend(probs.iter().map(|&p| p as f32));
        self.option_boundaries.push(self.target_ids.len() as u32);
    }

    /// The number of tokens, `N`.
    pub fn tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// The number of targets, `M`.
    pub fn targets(&self) -> usize {
        self.target_rows.len()
    }
}
