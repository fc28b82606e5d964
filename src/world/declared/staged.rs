//! A declared world in two stages: questions, then choices among options, with weights that follow from the factors.

use std::collections::BTreeMap;

use minijinja::{Environment, Expression, UndefinedBehavior, Value};
use toml::Spanned;

use super::choice::{OfWeights, attributes, of_weights};
use super::file::{ChoiceTable, WorldFile};
use super::mistake::{Mistake, mistake};
use super::questionnaire::{Respect, factors, of_factors};
use crate::world::items::Order;
use crate::world::joint::Joint;
use crate::world::staged::{StagedParts, StagedWorld};
use crate::world::{Weights, choice::PUBLISHED_ROUNDS};

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
    let (respects, factors) = factors(file)?;
    let attributes = attributes(file, table)?;

    let environment = environment();
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
    let (items, joint) = of_factors(name.clone(), file, &respects, &factors, &together)?;

    let order = file.questionnaire.as_ref().map(|table| table.get_ref().order).unwrap_or_default();
    let after = match &choice.after {
        Some(after) if *after.get_ref() > file.questions.len() && order != Order::Independent => {
            return mistake(
                after,
                format!(
                    "choices come after {} questions, but there are {}, and only in the order \"independent\" may one come \
                     again",
                    after.get_ref(),
                    file.questions.len()
                ),
            );
        }
        Some(after) => *after.get_ref(),
        None => file.questions.len(),
    };
    let factor = joint.group(*first);
    let mut cells = Vec::new();
    for hypothesis in 0..joint.factors[factor].prior.len() {
        for formula in &formulas {
            cells.push(formula.at(&respects, &joint, hypothesis)?);
        }
    }
    let choices = of_weights(OfWeights {
        name: name.clone(),
        rounds: Some(PUBLISHED_ROUNDS),
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

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment
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
                    let known = respects.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ");
                    return mistake(source, format!("weight: {name:?} is no factor; there are: {known}"));
                }
            }
        }
        Ok(Formula { source, expression, on })
    }

    /// The weight under a hypothesis of the group that its factors are in.
    fn at(&self, respects: &[Respect], joint: &Joint, hypothesis: usize) -> Result<f64, Mistake> {
        let value = |&factor: &usize| {
            let (respect, value) = (&respects[factor], joint.value(factor, hypothesis));
            let value = match &respect.numbers {
                Some(numbers) => Value::from(numbers[value]),
                None => Value::from(respect.values[value].as_str()),
            };
            (respect.name.as_str(), value)
        };
        let values: BTreeMap<&str, Value> = self.on.iter().map(value).collect();
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
