//! Worlds of two stages: some questions first, then choices of options by preferences that follow from what the questions
//! were about. Flights for a personality are one of them; a declared world may be another.

use super::choice::ChoiceWorld;
use super::items::ItemWorld;
use super::{Factor, Likelihood, Question, Reward};
use crate::rng::Stream;

/// A world of two stages; see the module's documentation.
#[derive(Clone, Debug)]
pub struct StagedWorld {
    name: String,
    rounds: usize,
    population: Option<usize>,
    factors: Vec<Factor>,
    /// The factor that choices bear on.
    factor: usize,
    n_items: usize,
    items: ItemWorld,
    choices: ChoiceWorld,
}

/// All that makes up a world of two stages.
pub(super) struct StagedParts {
    pub(super) name: String,
    /// Of both stages; the items and the choices' own number where absent.
    pub(super) rounds: Option<usize>,
    /// As many people, drawn from the prior; every combination of hypotheses once where absent.
    pub(super) population: Option<usize>,
    /// The factor of `items` that the hypotheses of `choices` are.
    pub(super) factor: usize,
    /// How many items come before the choices.
    pub(super) n_items: usize,
    pub(super) items: ItemWorld,
    pub(super) choices: ChoiceWorld,
}

impl StagedWorld {
    pub(super) fn new(parts: StagedParts) -> StagedWorld {
        StagedWorld {
            name: parts.name,
            rounds: parts.rounds.unwrap_or(parts.n_items + parts.choices.default_rounds()),
            population: parts.population,
            factors: parts.items.factors().to_vec(),
            factor: parts.factor,
            n_items: parts.n_items,
            items: parts.items,
            choices: parts.choices,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn population(&self) -> Option<usize> {
        self.population
    }

    pub(super) fn factors(&self) -> &[Factor] {
        &self.factors
    }

    pub(super) fn default_rounds(&self) -> usize {
        self.rounds
    }

    pub(super) fn questions(&self, rounds: usize, draws: &mut Stream) -> Vec<Question> {
        let mut questions = self.items.questions(self.n_items.min(rounds), draws);
        let first = questions.len() + 1;
        questions.extend((first..=rounds).map(|place| self.option_set(place, draws)));
        questions
    }

    /// The questionnaire that comes first.
    pub(super) fn items(&self) -> &ItemWorld {
        &self.items
    }

    /// Rounds of items.
    pub(super) fn bank_rounds(&self) -> usize {
        self.n_items
    }

    /// Whether answers, as the teacher supposes them, can only rule hypotheses out.
    pub(super) fn answers_only_rule_out(&self) -> bool {
        self.choices.answers_only_rule_out() && (self.n_items == 0 || self.items.answers_only_rule_out())
    }

    /// As [`ChoiceWorld::best_question`]; `is_better` is shown the factor too.
    pub(super) fn best_question(
        &self,
        place: usize,
        candidates: usize,
        draws: &mut Stream,
        is_better: &mut dyn FnMut(&Likelihood, usize) -> bool,
    ) -> Question {
        let mut is_better = |likelihood: &Likelihood| is_better(likelihood, self.factor);
        let question = self.choices.best_question(place, candidates, draws, &mut is_better);
        Question { factor: self.factor, ..question }
    }

    /// Options alone, to be asked at a place (from 1) of an episode.
    pub(super) fn option_set(&self, place: usize, draws: &mut Stream) -> Question {
        Question { factor: self.factor, ..self.choices.question(place, draws) }
    }

    /// As [`ChoiceWorld::read_question`], or an item of the questionnaire.
    pub(super) fn read_question(&self, message: &str, place: usize) -> Option<Question> {
        let options = self.choices.read_question(message, place);
        let options = options.map(|question| Question { factor: self.factor, ..question });
        options.or_else(|| self.items.read_question(message, place))
    }

    fn has_options(question: &Question) -> bool {
        matches!(question.reward, Reward::Linear { .. })
    }

    pub(super) fn opening(&self, first: &Question) -> String {
        if Self::has_options(first) {
            self.choices.texts().opening(&first.text)
        } else {
            self.items.texts().opening(&first.text)
        }
    }

    pub(super) fn reply(&self, question: &Question, label: &str) -> (String, usize) {
        if Self::has_options(question) {
            self.choices.texts().reply(label)
        } else {
            self.items.texts().reply(label)
        }
    }

    /// The next question, with the second stage's opening where it begins.
    pub(super) fn going_on(&self, before: &Question, next: &Question) -> String {
        match (Self::has_options(before), Self::has_options(next)) {
            (false, true) => self.choices.texts().opening(&next.text),
            _ => next.text.clone(),
        }
    }

    pub(super) fn feedback(&self, question: &Question, said: usize, truth: usize, next: &Question) -> String {
        let labels = &question.labels;
        match (Self::has_options(question), Self::has_options(next)) {
            (true, _) => self.choices.feedback(question, said, truth, &next.text),
            (false, false) => self.items.texts().feedback(labels, said, truth, &[], &next.text),
            (false, true) => {
                let first = self.going_on(question, next);
                self.items.texts().feedback(labels, said, truth, &[], &first)
            }
        }
    }
}
