//! A declared world of choice: features, their levels, and what users care about.

use std::sync::Arc;

use minijinja::context;
use toml::Spanned;

use super::file::{ChoiceTable, FeatureTable, Levels, TextTable, WorldFile};
use super::mistake::{Mistake, mistake};
use super::{check_options, check_users, is_identifier, place_text_mistake, templates};
use crate::world::choice::{
    Attribute, ChoiceParts, ChoiceRule, ChoiceWorld, PUBLISHED_ROUNDS, PUBLISHED_WEIGHTS, SupposedRule,
    preference_grid,
};
use crate::world::joint::MOST_HYPOTHESES;
use crate::world::text::render;
use crate::world::{Factor, Weights};

pub(super) fn world(
    name: String,
    file: &WorldFile,
    table: &Spanned<ChoiceTable>,
) -> Result<ChoiceWorld, Mistake> {
    if let Some(stray) = file.factors.first() {
        return mistake(
            stray,
            "[[factors]] belong to a world with [[questions]]; here users differ by their weights",
        );
    }
    if let Some(stray) = &file.questionnaire {
        return mistake(stray, "[questionnaire] belongs to a world with [[questions]]");
    }
    let choice = table.get_ref();
    let of_features = file.features.iter().filter_map(|feature| feature.get_ref().weight.as_ref());
    if let Some(stray) = of_features.map(Spanned::span).chain(choice.after.as_ref().map(Spanned::span)).next()
    {
        let message = "this belongs to a world that has [[questions]] and [[factors]] too".into();
        return Err(Mistake { span: Some(stray), message });
    }
    if choice.text.is_some() {
        return mistake(
            table,
            "choice.text belongs to a world with [[questions]]; here [text] has the templates",
        );
    }
    let attributes = attributes(file, table)?;
    let (factor, weights) =
        if file.hypotheses.is_empty() { grid(file, choice)? } else { listed(file, choice, &attributes)? };
    check_users(file, std::slice::from_ref(&factor))?;
    let rounds = file.rounds.as_ref().map(|rounds| *rounds.get_ref());
    let text = ("text", &file.text);
    of_weights(OfWeights { name, rounds, file, table, attributes, factor, weights, text })
}

/// What a world of choice is made of once it is known how its users weigh the features.
pub(super) struct OfWeights<'a> {
    pub(super) name: String,
    pub(super) rounds: Option<usize>,
    pub(super) file: &'a WorldFile,
    pub(super) table: &'a Spanned<ChoiceTable>,
    pub(super) attributes: Vec<Attribute>,
    pub(super) factor: Factor,
    pub(super) weights: Weights,
    /// The templates, and what their table is called.
    pub(super) text: (&'a str, &'a TextTable),
}

pub(super) fn of_weights(parts: OfWeights<'_>) -> Result<ChoiceWorld, Mistake> {
    let OfWeights { name, rounds, file, table, attributes, factor, weights, text: (text_table, text) } =
        parts;
    let choice = table.get_ref();
    let users = rule(choice)?;
    let supposed = supposed(choice, users)?;
    let labels: Arc<[String]> = match &choice.labels {
        Some(labels) => {
            check_options(labels)?;
            labels.get_ref().as_slice().into()
        }
        None => ["1", "2", "3"].map(String::from).into(),
    };
    let Some(question) = &text.question else {
        return mistake(
            table,
            format!("{text_table}.question is missing: it says how a round's options read"),
        );
    };
    ChoiceWorld::new(ChoiceParts {
        name,
        rounds: rounds.unwrap_or(PUBLISHED_ROUNDS),
        attributes,
        factor,
        weights,
        population: file.population.as_ref().map(|population| *population.get_ref()),
        labels,
        users,
        supposed,
        question: question.get_ref(),
        text: templates(text),
        option: "an option".into(),
    })
    .map_err(|wrong| place_text_mistake(text_table, text, wrong))
}

/// The features.
pub(super) fn attributes(file: &WorldFile, table: &Spanned<ChoiceTable>) -> Result<Vec<Attribute>, Mistake> {
    if file.features.is_empty() {
        return mistake(table, "[choice] needs [[features]]");
    }
    let mut attributes: Vec<Attribute> = Vec::new();
    for feature in &file.features {
        let attribute = attribute(feature.get_ref())?;
        if ["label", "text"].contains(&attribute.name.as_str()) {
            return mistake(&feature.get_ref().name, "templates call something else `label` and `text`");
        }
        if attributes.iter().any(|other| other.name == attribute.name) {
            return mistake(
                &feature.get_ref().name,
                format!("the feature {} is there twice", attribute.name),
            );
        }
        attributes.push(attribute);
    }
    Ok(attributes)
}

fn rule(choice: &ChoiceTable) -> Result<ChoiceRule, Mistake> {
    let Some(rule) = &choice.rule else { return Ok(ChoiceRule::default()) };
    match rule.get_ref().validate("choice.rule") {
        Ok(()) => Ok(*rule.get_ref()),
        Err(error) => mistake(rule, error.to_string()),
    }
}

fn supposed(choice: &ChoiceTable, users: ChoiceRule) -> Result<ChoiceRule, Mistake> {
    let Some(supposed) = &choice.teacher_likelihood else { return Ok(SupposedRule::Matched.rule(users)) };
    let rule = supposed.get_ref().rule(users);
    match rule.validate("choice.teacher_likelihood") {
        Ok(()) => Ok(rule),
        Err(error) => mistake(supposed, error.to_string()),
    }
}

fn attribute(feature: &FeatureTable) -> Result<Attribute, Mistake> {
    let name = feature.name.get_ref();
    if !is_identifier(name) {
        let message = format!(
            "a feature is called {name:?}: letters, digits and _ are possible, so that templates can"
        );
        return mistake(&feature.name, message);
    }
    let levels = match feature.levels.get_ref() {
        Levels::List(texts) => texts.clone(),
        Levels::Range(range) => {
            if !range.from.is_finite() || !range.to.is_finite() || !(2..=1000).contains(&range.count) {
                return mistake(
                    &feature.levels,
                    "a range goes from a number to a number in 2 to 1000 levels",
                );
            }
            let level = |i: usize| {
                let number = range.from + (range.to - range.from) * i as f64 / (range.count - 1) as f64;
                // Without the digits that rounding leaves behind.
                let level = format!("{:.6}", number);
                let level = level.trim_end_matches('0').trim_end_matches('.');
                render(&range.text, context! { level => level })
            };
            let texts: Result<Vec<String>, String> = (0..range.count).map(level).collect();
            match texts {
                Ok(texts) => texts,
                Err(message) => return mistake(&feature.levels, format!("levels.text: {message}")),
            }
        }
    };
    if levels.len() < 2 {
        return mistake(&feature.levels, "a feature needs at least 2 levels");
    }
    if let Some(i) = (1..levels.len()).find(|&i| levels[..i].contains(&levels[i])) {
        return mistake(&feature.levels, format!("two levels read {:?}", levels[i]));
    }
    let label = feature.label.clone().unwrap_or_else(|| name.replace('_', " "));
    let mut attribute = Attribute::even(&label, levels);
    attribute.name.clone_from(name);
    if let Some(values) = &feature.values {
        if values.get_ref().len() != attribute.levels.len()
            || !values.get_ref().iter().all(|v| (-1e6..=1e6).contains(v))
        {
            let message =
                format!("{} levels need as many values, of at most a million", attribute.levels.len());
            return mistake(values, message);
        }
        attribute.values.clone_from(values.get_ref());
    }
    Ok(attribute)
}

/// Every combination of the weights, all equally probable, but the one of zeros.
fn grid(file: &WorldFile, choice: &ChoiceTable) -> Result<(Factor, Weights), Mistake> {
    let mut of_features = Vec::new();
    for feature in &file.features {
        let given = feature.get_ref().weights.as_ref().or(choice.weights.as_ref());
        if let Some(weights) = given {
            let list = weights.get_ref();
            let twice = |i: usize| list[..i].contains(&list[i]);
            if list.is_empty() || !list.iter().all(|w| (-1e6..=1e6).contains(w)) || (0..list.len()).any(twice)
            {
                return mistake(weights, "weights must be different numbers of at most a million");
            }
        }
        of_features.push(given.map_or(PUBLISHED_WEIGHTS.to_vec(), |weights| weights.get_ref().clone()));
    }
    let vectors = of_features.iter().map(Vec::len).fold(1, usize::saturating_mul);
    if vectors > MOST_HYPOTHESES {
        let message = format!("{vectors} combinations of weights, at most {MOST_HYPOTHESES} are possible");
        return mistake(&file.features[0], message);
    }
    let weights = preference_grid(&of_features);
    let hypotheses = weights.hypotheses();
    if hypotheses == 0 {
        return mistake(
            &file.features[0],
            "no feature has a weight other than 0: nobody cares about anything",
        );
    }
    let prior = vec![1.0 / hypotheses as f64; hypotheses];
    Ok((Factor { name: "preferences".into(), prior }, weights))
}

/// The weights of `[[hypotheses]]`.
fn listed(
    file: &WorldFile,
    choice: &ChoiceTable,
    attributes: &[Attribute],
) -> Result<(Factor, Weights), Mistake> {
    let of_features = file.features.iter().map(|feature| &feature.get_ref().weights);
    if let Some(stray) = of_features.chain([&choice.weights]).flatten().next() {
        return mistake(stray, "a world with [[hypotheses]] has its weights there");
    }
    let given = file.hypotheses.iter().filter(|h| h.get_ref().prior.is_some()).count();
    let mut prior = Vec::new();
    let mut cells = Vec::new();
    for (i, hypothesis) in file.hypotheses.iter().enumerate() {
        let table = hypothesis.get_ref();
        let name = table.name.get_ref();
        if file.hypotheses[..i].iter().any(|other| other.get_ref().name.get_ref() == name) {
            return mistake(&table.name, format!("the hypothesis {name:?} is there twice"));
        }
        prior.push(match &table.prior {
            Some(p) if (0.0..=1.0).contains(p.get_ref()) => *p.get_ref(),
            Some(p) => return mistake(p, format!("{} is not a probability", p.get_ref())),
            None if given > 0 => {
                return mistake(hypothesis, "other hypotheses have a prior, this one needs one too");
            }
            None => 1.0 / file.hypotheses.len() as f64,
        });
        for (feature, weight) in &table.weights {
            let name = feature.get_ref();
            if !attributes.iter().any(|a| a.name == *name) {
                return mistake(feature, format!("weights.{name}: there is no such feature"));
            }
            if !(-1e6..=1e6).contains(weight) {
                let message = format!("weights.{name} is {weight}, it must be a number of at most a million");
                return mistake(feature, message);
            }
        }
        cells.extend(attributes.iter().map(|attribute| {
            let own = table.weights.iter().find(|(feature, _)| *feature.get_ref() == attribute.name);
            own.map_or(0.0, |(_, weight)| *weight)
        }));
    }
    let sum: f64 = prior.iter().sum();
    if (sum - 1.0).abs() > 1e-6 {
        return mistake(&file.hypotheses[0], format!("the priors of the hypotheses sum to {sum}, not to 1"));
    }
    prior.iter_mut().for_each(|p| *p /= sum);
    let weights = Weights::new(attributes.len(), cells);
    Ok((Factor { name: "preferences".into(), prior }, weights))
}
