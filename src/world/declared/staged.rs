//! A declared world in two stages: questions, then choices among options, with weights that follow from the factors.

use std::collections::BTreeMap;

use minijinja::{Environment, Expression, Value};
use toml::Spanned;

use super::choice::{OfWeights, attributes, of_weights};
use super::file::{ChoiceTable, WorldFile};
use super::is_identifier;
use super::mistake::{Mistake, mistake};
use super::questionnaire::{Respect, factors, known, of_factors};
use crate::world::Weights;
use crate::world::joint::Joint;
use crate::world::staged::{StagedParts, StagedWorld};
use crate::world::text::environment;

pub(super) fn world(
    name: String,
    file: &WorldFile,
    table: &Spanned<ChoiceTable>,
) -> Result<StagedWorld, Mistake> {
    if let Some(stray) = file.hypotheses.first() {
        return mistake(stray, "[[hypotheses]] belong to a world without [[factors]]");
    }
    let choice = table.get_ref();
    let given = file.features.iter().map(|feature| &feature.get_ref().weights);
    if let Some(stray) = given.chain([&choice.weights]).flatten().next() {
        return mistake(
            stray,
            "in a world with [[questions]] each feature has one `weight`, which follows from the factors",
        );
    }
    let Some(text) = &choice.text else {
        return mistake(
            table,
            "[choice.text] is missing: the templates of the choices, where [text] has those of the questions",
        );
    };
    check_names(file)?;
    let (respects, factors) = factors(file)?;
    let attributes = attributes(file, table)?;

    let environment =
        environment().map_err(|error| Mistake { span: Some(table.span()), message: error.to_string() })?;
    let formulas: Vec<Formula<'_>> = (file.features.iter())
        .map(|feature| match &feature.get_ref().weight {
            Some(weight) => Formula::new(weight, &environment, &respects),
            None => mistake(feature, "the feature needs a `weight`, such as \"0.5 * intellect\""),
        })
        .collect::<Result<_, _>>()?;
    let mut together: Vec<usize> = formulas.iter().flat_map(|formula| formula.on.iter().copied()).collect();
    together.sort_unstable();
    together.dedup();
    let Some(first) = together.first() else {
        return mistake(
            &file.features[0],
            "no feature has a weight that follows from a factor: nothing can be learnt",
        );
    };
    // As a mistake of the weights, where they alone are too much.
    if let Err(message) = Joint::new(&factors, std::iter::once(together.as_slice())) {
        return mistake(&file.features[0], format!("weights that follow from many factors: {message}"));
    }
    let (items, joint) = of_factors(name.clone(), file, &respects, &factors, &together)?;

    let after = items.default_rounds();
    if let Some(rounds) = file.rounds.as_ref().filter(|rounds| *rounds.get_ref() <= after) {
        let message = format!(
            "rounds is {}, but {after} questions come first: nothing is ever chosen",
            rounds.get_ref()
        );
        return mistake(rounds, message);
    }
    let factor = joint.group(*first);
    // (features, hypotheses)
    let columns: Vec<Vec<f64>> = (formulas.iter())
        .map(|formula| formula.weights(&respects, &joint, joint.factors[factor].prior.len()))
        .collect::<Result<_, _>>()?;
    let cells = (0..columns[0].len()).flat_map(|h| columns.iter().map(move |column| column[h])).collect();
    let choices = of_weights(OfWeights {
        name: name.clone(),
        rounds: None,
        file,
        table,
        factor: joint.factors[factor].clone(),
        weights: Weights::new(attributes.len(), cells),
        attributes,
        text: ("choice.text", text),
    })?;
    Ok(StagedWorld::new(StagedParts {
        name,
        rounds: file.rounds.as_ref().map(|rounds| *rounds.get_ref()),
        population: file.population.as_ref().map(|population| *population.get_ref()),
        factor,
        n_items: after,
        items,
        choices,
    }))
}

/// Expressions can name the factors.
fn check_names(file: &WorldFile) -> Result<(), Mistake> {
    const WORDS: [&str; 13] =
        ["true", "false", "none", "True", "False", "None", "not", "and", "or", "in", "is", "if", "else"];
    for factor in &file.factors {
        let name = &factor.get_ref().name;
        if !is_identifier(name.get_ref()) || WORDS.contains(&name.get_ref().as_str()) {
            let message = format!(
                "the factor is called {:?}: with [choice], letters, digits and _ are possible, and no word that means \
                 something in an expression, so that a `weight` can name it",
                name.get_ref()
            );
            return mistake(name, message);
        }
    }
    Ok(())
}

/// How a feature's weight follows from the factors.
struct Formula<'a> {
    source: &'a Spanned<String>,
    expression: Expression<'a, 'a>,
    /// The factors that it names.
    on: Vec<usize>,
}

impl<'a> Formula<'a> {
    fn new(
        source: &'a Spanned<String>,
        environment: &'a Environment<'static>,
        respects: &[Respect],
    ) -> Result<Formula<'a>, Mistake> {
        let expression = match environment.compile_expression(source.get_ref()) {
            Ok(expression) => expression,
            Err(error) => return mistake(source, format!("weight: {error}")),
        };
        let mut on = Vec::new();
        let mut names: Vec<String> = expression.undeclared_variables(false).into_iter().collect();
        names.sort_unstable();
        for name in names {
            match respects.iter().position(|respect| respect.name == name) {
                Some(factor) => on.push(factor),
                None => {
                    let known = known(respects);
                    return mistake(source, format!("weight: {name:?} is no factor; there are: {known}"));
                }
            }
        }
        Ok(Formula { source, expression, on })
    }

    /// The weight under each hypothesis of the group that its factors are in.
    fn weights(&self, respects: &[Respect], joint: &Joint, hypotheses: usize) -> Result<Vec<f64>, Mistake> {
        let mut known: BTreeMap<Vec<usize>, f64> = BTreeMap::new();
        let mut weights = Vec::with_capacity(hypotheses);
        for hypothesis in 0..hypotheses {
            let values: Vec<usize> = self.on.iter().map(|&factor| joint.value(factor, hypothesis)).collect();
            let weight = match known.get(&values) {
                Some(weight) => *weight,
                None => {
                    let weight = self.at(respects, &values)?;
                    known.insert(values, weight);
                    weight
                }
            };
            weights.push(weight);
        }
        if let (false, Some(first)) = (self.on.is_empty(), weights.first())
            && weights.iter().all(|weight| weight == first)
        {
            return mistake(
                self.source,
                format!("the weight is {first} for everybody, whatever it follows from"),
            );
        }
        Ok(weights)
    }

    /// The weight where the factors that it names have certain values.
    fn at(&self, respects: &[Respect], values: &[usize]) -> Result<f64, Mistake> {
        let value = |(&factor, &value): (&usize, &usize)| {
            let respect = &respects[factor];
            let value = match &respect.numbers {
                Some(numbers) => Value::from(numbers[value]),
                None => Value::from(respect.values[value].as_str()),
            };
            (respect.name.as_str(), value)
        };
        let values: BTreeMap<&str, Value> = self.on.iter().zip(values).map(value).collect();
        let shown = || {
            let all: Vec<String> = values.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            all.join(", ")
        };
        let weight = match self.expression.eval(&values) {
            Ok(weight) => weight,
            Err(error) => return mistake(self.source, format!("weight where {}: {error}", shown())),
        };
        match f64::try_from(weight.clone()) {
            Ok(weight) if (-1e6..=1e6).contains(&weight) => Ok(weight),
            _ => mistake(
                self.source,
                format!("weight where {}: {weight} is not a number of at most a million", shown()),
            ),
        }
    }
}
