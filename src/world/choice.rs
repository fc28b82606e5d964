//! Worlds of choice: each round the user takes one of some options, by a fixed, hidden preference that is linear in
//! the options' features. Flights and hotels are two of them; a declared world may be another.
//!
//! A hypothesis is a vector of weights, one a feature; the reward of an option is the weighted sum of its features.
//! Rewards that differ by less than a billionth are equal, and the lowest index among equals is taken: for levels in
//! tenths and weights in halves that is exact. How a user chooses, given the rewards, is a [`ChoiceRule`].

use std::sync::Arc;

use anyhow::Context as _;
use minijinja::context;
use serde::{Deserialize, Serialize};

use super::attribute::{self, MOST_LEVELS};
use super::likelihood::EQUAL;
use super::text::{Feature, Template, TextMistake, TextTemplates, Texts, describe_option};
use super::{Factor, Likelihood, PLACE, Question, Reward, Weights};
use crate::error::usage;
use crate::rng::Stream;

/// How a user chooses among options of known reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChoiceRule {
    /// The option of highest reward.
    #[default]
    Deterministic,
    /// The option of highest reward, but with this probability any option, all equally probable.
    Lapse(f64),
    /// Each option with a probability proportional to exp(beta · reward), with this beta.
    Softmax(f64),
}

impl ChoiceRule {
    /// Checks the probability or the beta; `key` is where it stands.
    ///
    /// # Errors
    /// Names the key, its value and what is possible.
    pub fn validate(self, key: &str) -> anyhow::Result<()> {
        match self {
            ChoiceRule::Lapse(lapse) if !(0.0..=1.0).contains(&lapse) => {
                Err(usage(format!("{key}.lapse is {lapse}, it must be a probability")))
            }
            ChoiceRule::Softmax(beta) if !(beta > 0.0 && beta <= 1e6) => {
                Err(usage(format!("{key}.softmax is {beta}, it must be above 0 and at most 1000000")))
            }
            _ => Ok(()),
        }
    }

    /// The probability of each option under each hypothesis; `features` are one option's after the other's.
    fn likelihood(self, options: usize, weights: &Weights, features: &[f64]) -> Likelihood {
        let hypotheses = weights.hypotheses();
        let rewards: Vec<Vec<f64>> =
            features.chunks_exact(weights.dimensions).map(|option| rewards(weights, option)).collect();
        if let ChoiceRule::Softmax(beta) = self {
            let mut log_probs = Vec::with_capacity(hypotheses * options);
            for h in 0..hypotheses {
                let row = log_probs.len();
                log_probs.extend(rewards.iter().map(|of_option| beta * of_option[h]));
                let highest = log_probs[row..].iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = log_probs[row..].iter().map(|p| (p - highest).exp()).sum();
                let log_sum = highest + sum.ln();
                log_probs[row..].iter_mut().for_each(|p| *p -= log_sum);
            }
            return Likelihood::from_log_probs(options, log_probs);
        }
        let choices = Likelihood::Choice { options, choices: first_highest_of_each(&rewards) };
        match self {
            ChoiceRule::Lapse(lapse) => choices.with_lapse(lapse),
            _ => choices,
        }
    }
}

/// The reward of one option under every hypothesis.
///
/// All hypotheses at once: hundreds of candidate sets a question are gone through by this.
fn rewards(weights: &Weights, option: &[f64]) -> Vec<f64> {
    let mut rewards = vec![0.0; weights.hypotheses()];
    for (d, x) in option.iter().enumerate() {
        rewards.iter_mut().zip(weights.column(d)).for_each(|(reward, weight)| *reward += weight * x);
    }
    rewards
}

/// As [`first_highest`](super::likelihood::first_highest), for every hypothesis; `rewards` are those of one option
/// after the other.
fn first_highest_of_each(rewards: &[Vec<f64>]) -> Vec<u8> {
    let mut best = rewards[0].clone();
    let mut choices = vec![0_u8; best.len()];
    for (i, rewards) in rewards.iter().enumerate().skip(1) {
        for ((best, choice), reward) in best.iter_mut().zip(&mut choices).zip(rewards) {
            let is_higher = *reward > *best + EQUAL;
            *choice = if is_higher { i as u8 } else { *choice };
            *best = if is_higher { *reward } else { *best };
        }
    }
    choices
}

/// What the teacher supposes about how users choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SupposedRule {
    /// What is true.
    #[default]
    Matched,
    /// As [`ChoiceRule::Deterministic`]: the likelihood is an indicator.
    Deterministic,
    /// As [`ChoiceRule::Lapse`].
    Lapse(f64),
    /// As [`ChoiceRule::Softmax`].
    Softmax(f64),
}

impl SupposedRule {
    /// The rule that the teacher supposes where users follow `truth`.
    pub fn rule(self, truth: ChoiceRule) -> ChoiceRule {
        match self {
            SupposedRule::Matched => truth,
            SupposedRule::Deterministic => ChoiceRule::Deterministic,
            SupposedRule::Lapse(lapse) => ChoiceRule::Lapse(lapse),
            SupposedRule::Softmax(beta) => ChoiceRule::Softmax(beta),
        }
    }
}

/// What an option is described by.
#[derive(Clone, Debug)]
pub(super) struct Attribute {
    /// By which a template finds the level's text, such as `departure_time`.
    pub(super) name: String,
    /// Before the level's text where nothing else is said, such as `departure time`.
    pub(super) label: String,
    /// How each level reads.
    pub(super) levels: Vec<String>,
    /// What each level counts for in the reward.
    pub(super) values: Vec<f64>,
}

impl Attribute {
    /// Levels that are evenly spaced from 0 to 1.
    pub(super) fn even(label: &str, levels: Vec<String>) -> Attribute {
        let last = (levels.len() - 1) as f64;
        let values = (0..levels.len()).map(|level| level as f64 / last).collect();
        Attribute { name: label.replace(' ', "_"), label: label.into(), levels, values }
    }
}

/// All that makes up a world of choice.
pub(super) struct ChoiceParts<'a> {
    pub(super) name: String,
    pub(super) rounds: usize,
    pub(super) attributes: Vec<Attribute>,
    /// What can be true of a user: one factor, one row of weights a hypothesis.
    pub(super) factor: Factor,
    pub(super) weights: Weights,
    /// As many people, drawn from the prior; every hypothesis once where absent.
    pub(super) population: Option<usize>,
    /// Of the options of a round, at most 256.
    pub(super) labels: Arc<[String]>,
    pub(super) users: ChoiceRule,
    pub(super) supposed: ChoiceRule,
    /// `options`, each with `label`, `text` and the features' names.
    pub(super) question: &'a str,
    pub(super) text: TextTemplates<'a>,
    /// What an option is called where a belief is asked for, such as `a flight`.
    pub(super) option: String,
}

/// A world of choice; see the module's documentation.
#[derive(Clone, Debug)]
pub struct ChoiceWorld {
    name: String,
    rounds: usize,
    population: Option<usize>,
    attributes: Vec<Attribute>,
    factors: [Factor; 1],
    weights: Arc<Weights>,
    labels: Arc<[String]>,
    users: ChoiceRule,
    supposed: ChoiceRule,
    question: Template,
    texts: Texts,
    option: String,
}

impl ChoiceWorld {
    /// The error names the template that is wrong.
    pub(super) fn new(parts: ChoiceParts<'_>) -> Result<ChoiceWorld, TextMistake> {
        let labels = parts.labels;
        let attributes = &parts.attributes;
        let features: Vec<Feature<'_>> =
            attributes.iter().map(|a| Feature { name: &a.name, label: &a.label }).collect();
        // Slot 0 is the place in the episode, then the features of one option after the other.
        let slots = 1 + labels.len() * attributes.len();
        let question = Template::new(parts.question, slots, |slot| {
            let option = |(i, label): (usize, &String)| {
                describe_option(label, &features, |a| slot(1 + i * features.len() + a))
            };
            let options: Vec<_> = labels.iter().enumerate().map(option).collect();
            context! { place => slot(0), options => options }
        })
        .map_err(|message| TextMistake { key: "question", message })?;
        // Options that differ in what somebody cares about must not read alike.
        for (i, label) in labels.iter().enumerate() {
            let missing = |a: &usize| {
                let matters = parts.weights.column(*a).iter().any(|weight| *weight != 0.0);
                matters && question.count(1 + i * attributes.len() + a) == 0
            };
            if let Some(a) = (0..attributes.len()).find(missing) {
                let message = format!(
                    "the template leaves out the {} of option {label}, which users care about: options that differ in it \
                     alone would read alike",
                    attributes[a].name
                );
                return Err(TextMistake { key: "question", message });
            }
        }
        Ok(ChoiceWorld {
            texts: Texts::new(parts.text, std::iter::once(&labels), &features)?,
            name: parts.name,
            rounds: parts.rounds,
            population: parts.population,
            attributes: parts.attributes,
            factors: [parts.factor],
            weights: Arc::new(parts.weights),
            labels,
            users: parts.users,
            supposed: parts.supposed,
            question,
            option: parts.option,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn default_rounds(&self) -> usize {
        self.rounds
    }

    pub(super) fn population(&self) -> Option<usize> {
        self.population
    }

    pub(super) fn factors(&self) -> &[Factor] {
        &self.factors
    }

    pub(super) fn texts(&self) -> &Texts {
        &self.texts
    }

    /// The user's message after an answer to a question of this world: what is true, then the next question.
    pub(super) fn feedback(&self, question: &Question, said: usize, truth: usize, next: &str) -> String {
        let levels = self.attributes.iter().zip(&question.levels[truth]);
        let chosen: Vec<&str> = levels.map(|(attribute, &level)| attribute.levels[level].as_str()).collect();
        self.texts.feedback(&question.labels, said, truth, &chosen, next)
    }

    /// Draws an option set for each round, every level with equal probability and independently.
    pub(super) fn questions(&self, rounds: usize, draws: &mut Stream) -> Vec<Question> {
        (1..=rounds).map(|place| self.question(place, draws)).collect()
    }

    /// Draws an option set to be asked at a place (from 1) of an episode.
    pub(super) fn question(&self, place: usize, draws: &mut Stream) -> Question {
        let levels = self.draw_levels(draws);
        let supposed = self.likelihood(self.supposed, &self.features(&levels));
        self.question_of(place, &levels, supposed)
    }

    /// The question of a place about options given as text: `price: $730, duration: …` in the order of the features,
    /// with or without a heading such as `Flight 1: `.
    ///
    /// # Errors
    /// Names the option and what in it was not understood.
    pub(super) fn question_of_text(&self, place: usize, options: &[String]) -> anyhow::Result<Question> {
        anyhow::ensure!(
            options.len() == self.labels.len(),
            "{} options, where the {} world has {}",
            options.len(),
            self.name,
            self.labels.len()
        );
        let levels: Vec<Vec<usize>> = (options.iter().enumerate())
            .map(|(i, text)| self.levels_of(text).with_context(|| format!("option {i} ({text:?})")))
            .collect::<anyhow::Result<_>>()?;
        let supposed = self.likelihood(self.supposed, &self.features(&levels));
        Ok(self.question_of(place, &levels, supposed))
    }

    /// The level of each feature in the text of one option.
    fn levels_of(&self, text: &str) -> anyhow::Result<Vec<usize>> {
        let head = |a: &Attribute| format!("{}: ", a.label);
        let first = head(&self.attributes[0]);
        let at = text.find(&first).with_context(|| format!("it does not say {first:?}"))?;
        let heading = text[..at].trim_end();
        let is_heading = heading.is_empty() || heading.ends_with(':');
        anyhow::ensure!(is_heading, "{heading:?} stands before the {}", self.attributes[0].label);
        let mut rest = &text[at..];
        let mut levels = Vec::with_capacity(self.attributes.len());
        for (i, attribute) in self.attributes.iter().enumerate() {
            let label = &attribute.label;
            rest = rest.strip_prefix(&head(attribute)).with_context(|| format!("where is its {label}?"))?;
            // Some levels read with commas in them.
            let end = self.attributes.get(i + 1).and_then(|next| rest.find(&format!(", {}", head(next))));
            let (value, after) = rest.split_at(end.unwrap_or(rest.len()));
            rest = after.strip_prefix(", ").unwrap_or(after);
            let value = value.trim();
            let reads = |level: &String| {
                level == value || (level == "none" && value.strip_prefix("no ") == Some(label.as_str()))
            };
            let level = attribute.levels.iter().position(reads);
            levels.push(
                level.with_context(|| {
                    format!("{label} {value:?} is none of {}", attribute.levels.join(" · "))
                })?,
            );
        }
        Ok(levels)
    }

    /// Draws option sets and keeps the last that is better than those before. Only this one becomes text.
    pub(super) fn best_question(
        &self,
        place: usize,
        candidates: usize,
        draws: &mut Stream,
        is_better: &mut dyn FnMut(&Likelihood) -> bool,
    ) -> Question {
        let mut best = self.draw_levels(draws);
        let mut supposed = self.likelihood(self.supposed, &self.features(&best));
        is_better(&supposed);
        for _ in 1..candidates {
            let levels = self.draw_levels(draws);
            let candidate = self.likelihood(self.supposed, &self.features(&levels));
            if is_better(&candidate) {
                (best, supposed) = (levels, candidate);
            }
        }
        self.question_of(place, &best, supposed)
    }

    /// Whether answers, as the teacher supposes them, can only rule hypotheses out.
    pub(super) fn answers_only_rule_out(&self) -> bool {
        match self.supposed {
            ChoiceRule::Deterministic => true,
            ChoiceRule::Lapse(lapse) => lapse == 0.0 || lapse == 1.0,
            ChoiceRule::Softmax(_) => false,
        }
    }

    /// How each feature is weighed: a level for each different weight. A feature that all weigh alike is left out, and
    /// so is one with too many weights.
    pub(super) fn user_attributes(&self) -> Vec<attribute::Attribute> {
        let attribute = |(d, feature): (usize, &Attribute)| {
            let column = self.weights.column(d);
            let mut weights = column.to_vec();
            weights.sort_by(f64::total_cmp);
            // 0 and -0 are one weight.
            weights.dedup_by(|a, b| a == b);
            let levels = weights.len();
            let level = |weight: &f64| weights.partition_point(|w| w < weight) as u8;
            (2..=MOST_LEVELS).contains(&levels).then(|| attribute::Attribute {
                ask: ask(&self.option, feature, &weights),
                name: feature.name.clone(),
                factor: 0,
                levels,
                level_of: column.iter().map(level).collect(),
                values: attribute::numbered(levels),
                ordered: true,
            })
        };
        self.attributes.iter().enumerate().filter_map(attribute).collect()
    }

    /// The question that stands at the end of a message, as that of a place (from 1) of the episode. None if there is none,
    /// or its text does not say every feature.
    pub(super) fn read_question(&self, message: &str, place: usize) -> Option<Question> {
        let k = self.attributes.len();
        let place_text = place.to_string();
        let mut values = vec![vec![place_text.as_str()]];
        for i in 0..self.labels.len() * k {
            values.push(self.attributes[i % k].levels.iter().map(String::as_str).collect());
        }
        let read = |at| self.question.read(&message[at..], &values);
        let found = self.question.beginnings(message).find_map(read)?;
        let levels: Vec<usize> = found.into_iter().skip(1).collect::<Option<_>>()?;
        let levels: Vec<Vec<usize>> = levels.chunks_exact(k).map(<[usize]>::to_vec).collect();
        let supposed = self.likelihood(self.supposed, &self.features(&levels));
        Some(self.question_of(place, &levels, supposed))
    }

    /// The level of each feature of each option, (options, features).
    fn draw_levels(&self, draws: &mut Stream) -> Vec<Vec<usize>> {
        let option = |_| self.attributes.iter().map(|a| draws.below(a.levels.len())).collect();
        self.labels.iter().map(option).collect()
    }

    /// What the levels count for, one option after the other.
    fn features(&self, levels: &[Vec<usize>]) -> Vec<f64> {
        let of = |option: &Vec<usize>| -> Vec<f64> {
            self.attributes.iter().zip(option).map(|(a, &level)| a.values[level]).collect()
        };
        levels.iter().flat_map(of).collect()
    }

    fn likelihood(&self, rule: ChoiceRule, features: &[f64]) -> Likelihood {
        rule.likelihood(self.labels.len(), &self.weights, features)
    }

    /// The question of an option set, given as the level of each feature of each option, and of the likelihood that the
    /// teacher supposes.
    fn question_of(&self, place: usize, levels: &[Vec<usize>], supposed: Likelihood) -> Question {
        let k = self.attributes.len();
        let features = self.features(levels);
        let supposed = Arc::new(supposed);
        let behaviour = if self.users == self.supposed {
            Arc::clone(&supposed)
        } else {
            Arc::new(self.likelihood(self.users, &features))
        };
        let text_at = |place: &str| {
            self.question.fill(|slot| match slot.checked_sub(1) {
                None => place,
                Some(i) => &self.attributes[i % k].levels[levels[i / k][i % k]],
            })
        };
        Question {
            text: text_at(&place.to_string()),
            placed: (self.question.count(0) > 0).then(|| text_at(PLACE).into()),
            labels: Arc::clone(&self.labels),
            factor: 0,
            likelihood: supposed,
            behaviour,
            reward: Reward::Linear { weights: Arc::clone(&self.weights), features },
            levels: levels.into(),
        }
    }
}

/// How a belief about the weight of a feature is asked for; `weights` are the different ones, in ascending order.
fn ask(option: &str, feature: &Attribute, weights: &[f64]) -> String {
    let by_value = |a: &usize, b: &usize| feature.values[*a].total_cmp(&feature.values[*b]);
    let end = |level: Option<usize>| level.map_or("", |level| feature.levels[level].as_str());
    let (low, high) =
        (end((0..feature.levels.len()).min_by(by_value)), end((0..feature.levels.len()).max_by(by_value)));
    let last = weights.len() - 1;
    let meaning = |level: usize| {
        let strength = if (level == 0) == (weights[level] < 0.0) { "strongly" } else { "slightly" };
        match weights[level] {
            0.0 => "I do not mind".to_owned(),
            w if w < 0.0 => format!("I {strength} prefer the low end ({low})"),
            _ => format!("I {strength} prefer the high end ({high})"),
        }
    };
    let indifferent = (1..last).find(|&level| weights[level] == 0.0);
    let between = indifferent.map_or(String::new(), |level| format!("{} that I do not mind, ", level + 1));
    format!(
        "How do you think I feel about the {} of {option}, on a scale from 1 to {levels}? 1 means that {}, {between}and \
         {levels} that {}. Reply with the number only.",
        feature.label,
        meaning(0),
        meaning(last),
        levels = weights.len(),
    )
}

/// All vectors of `features` weights out of `choices`, the last feature varying fastest, but the one of zeros: who
/// cares about nothing cannot be learned about.
pub(super) fn preference_grid(choices: &[Vec<f64>]) -> Weights {
    let vectors: usize = choices.iter().map(Vec::len).product();
    let mut cells = Vec::with_capacity(vectors * choices.len());
    for vector in 0..vectors {
        let mut rest = vector;
        let mut row: Vec<f64> = (choices.iter().rev())
            .map(|weights| {
                let weight = weights[rest % weights.len()];
                rest /= weights.len();
                weight
            })
            .collect();
        if row.iter().any(|w| *w != 0.0) {
            row.reverse();
            cells.extend(row);
        }
    }
    Weights::new(choices.len(), cells)
}

/// The weights of the published users: dislike, mild dislike, indifference, mild liking, liking.
pub(super) const PUBLISHED_WEIGHTS: [f64; 5] = [-1.0, -0.5, 0.0, 0.5, 1.0];

/// What a published world of choice says of itself; flights and hotels differ in the noun alone.
pub(super) struct Published<'a> {
    pub(super) name: &'static str,
    /// Such as `flight`.
    pub(super) noun: &'static str,
    /// Such as `for my trips`.
    pub(super) purpose: &'static str,
    pub(super) features: Vec<Attribute>,
    pub(super) users: ChoiceRule,
    pub(super) supposed: SupposedRule,
    /// What can be true of a user, where it is not a vector of the published weights.
    pub(super) hypotheses: Option<(Factor, Weights)>,
    pub(super) key: &'a str,
}

/// The published number of rounds.
pub(super) const PUBLISHED_ROUNDS: usize = 5;

/// Options to choose from in a published round.
const PUBLISHED_OPTIONS: usize = 3;

/// Builds a world in the published words.
///
/// # Errors
/// If features are too few or repeated, or a rule has an impossible number.
pub(super) fn published(world: Published<'_>) -> anyhow::Result<ChoiceWorld> {
    let Published { name, noun, purpose, features, users, supposed, hypotheses, key } = world;
    if features.len() < 2 {
        return Err(usage(format!("{key}.features has {} features, at least 2 are needed", features.len())));
    }
    if let Some(i) = (1..features.len()).find(|&i| features[..i].iter().any(|f| f.name == features[i].name)) {
        return Err(usage(format!("{key}.features names {:?} twice", features[i].name)));
    }
    users.validate(&format!("{key}.choice"))?;
    let supposed = supposed.rule(users);
    supposed.validate(&format!("{key}.teacher_likelihood"))?;

    let (factor, weights) = hypotheses.unwrap_or_else(|| {
        let weights = preference_grid(&vec![PUBLISHED_WEIGHTS.to_vec(); features.len()]);
        let hypotheses = weights.hypotheses();
        let prior = vec![1.0 / hypotheses as f64; hypotheses];
        (Factor { name: "preferences".into(), prior }, weights)
    });
    let title: String = noun[..1].to_uppercase() + &noun[1..];
    let opening = format!(
        "Help me select the best {noun}s {purpose}. I have specific preferences for what I like and dislike in a \
         {noun}, and these preferences remain the same. You need to figure out my preferences and select the best \
         {noun}s for me. Use your best judgment if you are unsure. Do not say you need more information.\n\n\
         {{{{ question }}}}"
    );
    let question = format!(
        "Which {noun} is the best option?\n{{% for option in options %}}\n{title} {{{{ option.label }}}}:\n\
         {{{{ option.text }}}}\n{{% endfor %}}"
    );
    let reply = format!("The best option is {title} {{{{ label }}}}.");
    let feedback = format!(
        "Your option {title} {{{{ said }}}} is {{% if said == truth %}}correct.{{% else %}}incorrect. I prefer \
         {title} {{{{ truth }}}}.{{% endif %}}{{{{ '\\n\\n' }}}}{{{{ question }}}}"
    );
    ChoiceWorld::new(ChoiceParts {
        name: name.into(),
        rounds: PUBLISHED_ROUNDS,
        attributes: features,
        factor,
        weights,
        population: None,
        labels: (1..=PUBLISHED_OPTIONS).map(|i| i.to_string()).collect(),
        users,
        supposed,
        question: &question,
        text: TextTemplates { opening: &opening, reply: &reply, feedback: &feedback },
        option: format!("a {noun}"),
    })
    .map_err(|mistake| anyhow::anyhow!("the text of {name}, {}: {}", mistake.key, mistake.message))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn halves(features: usize) -> Weights {
        preference_grid(&vec![PUBLISHED_WEIGHTS.to_vec(); features])
    }

    #[test]
    fn no_user_is_without_preference_and_none_is_there_twice() {
        let weights = halves(3);
        let mut rows: Vec<Vec<i32>> =
            weights.cells.chunks(3).map(|row| row.iter().map(|w| (w * 2.0) as i32).collect()).collect();
        assert!(rows.iter().all(|row| row.iter().any(|w| *w != 0) && row.iter().all(|w| w.abs() <= 2)));
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), 124);
    }

    #[test]
    fn equals_go_to_the_lowest_index() {
        // Weights -1 and ½: rewards -.5, -.5, -1 and then -1, -.5, -.5.
        let weights = Weights::new(2, vec![-1.0, 0.5]);
        let choice = |features: [f64; 6]| {
            ChoiceRule::Deterministic.likelihood(3, &weights, &features).most_probable(0)
        };
        assert_eq!(choice([0.5, 0.0, 1.0, 1.0, 1.0, 0.0]), 0);
        assert_eq!(choice([1.0, 0.0, 1.0, 1.0, 0.5, 0.0]), 1);
    }

    /// Integer arithmetic in twentieths (levels in tenths, weights in halves), over random option sets.
    #[test]
    fn choices_are_those_of_integer_arithmetic() {
        let mut draws = crate::rng::stream(1, "test", 0);
        let weights = halves(4);
        for _ in 0..200 {
            let tenths: Vec<i64> = (0..12).map(|_| draws.below(11) as i64).collect();
            let features: Vec<f64> = tenths.iter().map(|&t| t as f64 / 10.0).collect();
            let likelihood = ChoiceRule::Deterministic.likelihood(3, &weights, &features);
            for h in 0..624 {
                let row = weights.row(h).iter().map(|w| (w * 2.0) as i64);
                let rewards: Vec<i64> =
                    tenths.chunks(4).map(|o| row.clone().zip(o).map(|(w, x)| w * x).sum()).collect();
                let best = rewards.iter().max().unwrap();
                let first = rewards.iter().position(|r| r == best).unwrap();
                assert_eq!(likelihood.most_probable(h), first);
            }
        }
    }

    /// exp(2·1) / (exp(2·1) + exp(2·½) + exp(0)) and so on, by hand.
    #[test]
    fn softmax_by_hand() {
        let weights = Weights::new(1, vec![1.0, -0.5]);
        let likelihood = ChoiceRule::Softmax(2.0).likelihood(3, &weights, &[1.0, 0.5, 0.0]);
        for (option, (p, q)) in
            [(0.66524, 0.18632), (0.24473, 0.30720), (0.09003, 0.50648)].into_iter().enumerate()
        {
            assert!((likelihood.log_prob(0, option).exp() - p).abs() < 1e-5);
            assert!((likelihood.log_prob(1, option).exp() - q).abs() < 1e-5);
        }
        let sharp = ChoiceRule::Softmax(1e6).likelihood(3, &weights, &[1.0, 0.5, 0.0]);
        assert!((sharp.log_prob(0, 0)).abs() < 1e-12 && sharp.log_prob(0, 1).is_finite());
    }
}
