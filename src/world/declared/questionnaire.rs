//! A declared questionnaire: factors, questions, tables and graded responses.

use std::sync::Arc;

use toml::{Spanned, Value};

use super::file::{GradedTable, QuestionTable, QuestionnaireTable, Rows, WorldFile};
use super::mistake::{Mistake, mistake};
use super::{check_options, check_users, distribution, last_table, place_text_mistake, prior, templates};
use crate::world::attribute::MOST_LEVELS;
use crate::world::graded::{GradedItem, graded_response};
use crate::world::items::{ItemParts, ItemWorld, ItemWorldParts, Order};
use crate::world::joint::{Joint, MOST_HYPOTHESES};
use crate::world::{Attribute, Factor, Likelihood, Reward};

/// What can be true of a user in one respect.
pub(super) struct Respect {
    pub(super) name: String,
    pub(super) values: Vec<String>,
    /// Where all values are numbers.
    pub(super) numbers: Option<Vec<f64>>,
}

pub(super) fn world(name: String, file: &WorldFile) -> Result<ItemWorld, Mistake> {
    if let Some(stray) = file.features.first() {
        return mistake(stray, "[[features]] belong to a world with [choice]");
    }
    if let Some(stray) = file.hypotheses.first() {
        return mistake(
            stray,
            "[[hypotheses]] belong to a world with [choice]; here users differ by [[factors]]",
        );
    }
    let (respects, factors) = factors(file)?;
    let (world, _) = of_factors(name, file, &respects, &factors, &[])?;
    Ok(world)
}

/// The questions, and how factors are joined that a question bears on together, or something else: `together`.
pub(super) fn of_factors(
    name: String,
    file: &WorldFile,
    respects: &[Respect],
    factors: &[Factor],
    together: &[usize],
) -> Result<(ItemWorld, Joint), Mistake> {
    let nothing = QuestionnaireTable::default();
    let common = file.questionnaire.as_ref().map_or(&nothing, |table| table.get_ref());
    let (lapse, teacher_lapse) = lapses(common)?;

    let bears_on = file.questions.iter().map(|q| bears_on(q, respects)).collect::<Result<Vec<_>, _>>()?;
    let also = (!together.is_empty()).then_some(together);
    let joint =
        Joint::new(factors, bears_on.iter().map(Vec::as_slice).chain(also)).map_err(|message| Mistake {
            span: last_table(file),
            message: format!("questions that bear on several factors: {message}"),
        })?;
    check_users(file, &joint.factors)?;

    let mut label_lists: Vec<Arc<[String]>> = Vec::new();
    let mut items = Vec::new();
    for (question, on) in file.questions.iter().zip(&bears_on) {
        let asked = question.get_ref();
        let options = asked.options.as_ref().or(common.options.as_ref());
        let Some(options) = options else {
            return mistake(question, "the question has no options, and [questionnaire] has none for all");
        };
        check_options(options)?;
        let labels = match label_lists.iter().find(|list| list[..] == options.get_ref()[..]) {
            Some(labels) => Arc::clone(labels),
            None => {
                let labels: Arc<[String]> = options.get_ref().as_slice().into();
                label_lists.push(Arc::clone(&labels));
                labels
            }
        };
        let factor = joint.group(on[0]);
        let hypotheses = joint.factors[factor].prior.len();
        if hypotheses.saturating_mul(labels.len()) > 16 * MOST_HYPOTHESES {
            return mistake(
                question,
                format!("{hypotheses} hypotheses × {} options are too many", labels.len()),
            );
        }
        let (log_probs, graded) = match (&asked.table, &asked.graded) {
            (Some(table), None) => (table_rows(table, on, respects, &joint, factor, labels.len())?, None),
            (None, Some(graded)) => {
                let model = graded_model(question, graded, common, on, respects, labels.len())?;
                let hypotheses = 0..joint.factors[factor].prior.len();
                let rows = hypotheses.clone().flat_map(|h| model.answers(&joint, h)).collect();
                (rows, model.of_one_level(&joint, hypotheses, teacher_lapse))
            }
            _ => return mistake(question, "a question needs either `table` or `graded`"),
        };
        let likelihood = Likelihood::from_log_probs(labels.len(), log_probs);
        let behaviour = Arc::new(likelihood.clone().with_lapse(lapse));
        let ordered = asked.ordered.unwrap_or(common.ordered || asked.graded.is_some());
        items.push(ItemParts {
            text: asked.text.clone(),
            labels,
            group: on[0],
            factor,
            likelihood: if teacher_lapse == lapse {
                Arc::clone(&behaviour)
            } else {
                Arc::new(likelihood.with_lapse(teacher_lapse))
            },
            behaviour,
            reward: if ordered { Reward::Nearness } else { Reward::Match },
            graded,
        });
    }
    // Groups are numbered without gaps, in the order of the factors.
    let mut groups: Vec<usize> = items.iter().map(|item| item.group).collect();
    groups.sort_unstable();
    groups.dedup();
    items.iter_mut().for_each(|item| item.group = groups.partition_point(|g| *g < item.group));

    // How many are asked: in two stages, those before the choices.
    let asked = file.choice.as_ref().map_or(&file.rounds, |choice| &choice.get_ref().after);
    if let (Some(asked), true) = (asked, common.order != Order::Independent)
        && *asked.get_ref() > items.len()
    {
        let wanted = match file.choice {
            Some(_) => format!("choices come after {} questions", asked.get_ref()),
            None => format!("rounds is {}", asked.get_ref()),
        };
        let message = format!(
            "{wanted}, but there are {} questions, and only in the order \"independent\" may one come again",
            items.len()
        );
        return mistake(asked, message);
    }
    let attributes = attributes(respects, &joint);
    let world = ItemWorld::new(ItemWorldParts {
        name,
        rounds: asked.as_ref().map(|asked| *asked.get_ref()),
        population: file.population.as_ref().map(|population| *population.get_ref()),
        order: common.order,
        factors: joint.factors.clone(),
        attributes,
        items,
        question: file.text.question.as_ref().map_or("{{ text }}", |question| question.get_ref()),
        text: templates(&file.text),
    })
    .map_err(|wrong| place_text_mistake("text", &file.text, wrong))?;
    check_texts(file, &world)?;
    Ok((world, joint))
}

/// Questions that expect other answers read differently.
fn check_texts(file: &WorldFile, world: &ItemWorld) -> Result<(), Mistake> {
    let Some((first, second)) = world.confusable() else { return Ok(()) };
    let text = |i: usize| &file.questions[i].get_ref().text;
    match &file.text.question {
        Some(template) if text(first) != text(second) => mistake(
            template,
            format!(
                "text.question: the template gives questions {} and {} the same text, so that nobody can tell which is \
                 asked; it has to insert `text`",
                first + 1,
                second + 1
            ),
        ),
        _ => mistake(
            &file.questions[second],
            format!(
                "question {} reads like question {}, {:?}, but expects other answers: nobody can tell which is asked",
                second + 1,
                first + 1,
                text(first)
            ),
        ),
    }
}

/// The factors as declared.
pub(super) fn factors(file: &WorldFile) -> Result<(Vec<Respect>, Vec<Factor>), Mistake> {
    let (mut respects, mut factors): (Vec<Respect>, Vec<Factor>) = (Vec::new(), Vec::new());
    for table in &file.factors {
        let factor = table.get_ref();
        let name = factor.name.get_ref();
        if name.trim().is_empty() || respects.iter().any(|r| r.name == *name) {
            return mistake(&factor.name, format!("a factor's name is empty or there twice: {name:?}"));
        }
        let mut values = Vec::new();
        let mut numbers = Some(Vec::new());
        for value in factor.values.get_ref() {
            let (text, number) = match value {
                Value::String(text) => (text.clone(), None),
                Value::Integer(number) => (number.to_string(), Some(*number as f64)),
                Value::Float(number) if number.is_finite() => (number.to_string(), Some(*number)),
                other => return mistake(&factor.values, format!("{other} is neither a name nor a number")),
            };
            if values.contains(&text) {
                return mistake(&factor.values, format!("the value {text} is there twice"));
            }
            values.push(text);
            numbers = numbers.zip(number).map(|(mut numbers, number)| {
                numbers.push(number);
                numbers
            });
        }
        if !(1..=MOST_HYPOTHESES).contains(&values.len()) {
            return mistake(&factor.values, format!("a factor needs 1 to {MOST_HYPOTHESES} values"));
        }
        factors.push(Factor { name: name.clone(), prior: prior(factor.prior.as_ref(), values.len())? });
        respects.push(Respect { name: name.clone(), values, numbers });
    }
    if respects.is_empty() {
        return mistake(&file.questions[0], "there are [[questions]] but no [[factors]] for them to bear on");
    }
    Ok((respects, factors))
}

/// The factors as declared, whatever was joined; those of a single value or of too many are left out.
fn attributes(respects: &[Respect], joint: &Joint) -> Vec<Attribute> {
    let attribute = |(f, respect): (usize, &Respect)| {
        let (group, levels) = (joint.group(f), respect.values.len());
        let hypotheses = 0..joint.factors[group].prior.len();
        let name = respect.name.replace('_', " ");
        let meaning: Vec<String> =
            respect.values.iter().enumerate().map(|(i, value)| format!("{} means {value}", i + 1)).collect();
        (2..=MOST_LEVELS).contains(&levels).then(|| Attribute {
            name: respect.name.clone(),
            factor: group,
            levels,
            level_of: hypotheses.map(|h| joint.value(f, h) as u8).collect(),
            values: respect.values.clone(),
            ordered: respect.numbers.is_some(),
            ask: format!(
                "What do you think my {name} is, from 1 to {levels}? {}. Reply with the number only.",
                meaning.join(", ")
            ),
        })
    };
    respects.iter().enumerate().filter_map(attribute).collect()
}

/// The users' lapse and the one that the teacher supposes.
fn lapses(common: &QuestionnaireTable) -> Result<(f64, f64), Mistake> {
    for lapse in [&common.lapse, &common.teacher_lapse].into_iter().flatten() {
        if !(0.0..=1.0).contains(lapse.get_ref()) {
            return mistake(lapse, format!("{} is not a probability", lapse.get_ref()));
        }
    }
    let lapse = common.lapse.as_ref().map_or(0.0, |lapse| *lapse.get_ref());
    Ok((lapse, common.teacher_lapse.as_ref().map_or(lapse, |lapse| *lapse.get_ref())))
}

/// What the factors are called, for whoever named another.
pub(super) fn known(respects: &[Respect]) -> String {
    respects.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The factors that a question bears on, the first of which also decides when it is asked.
fn bears_on(question: &Spanned<QuestionTable>, respects: &[Respect]) -> Result<Vec<usize>, Mistake> {
    let asked = question.get_ref();
    let index = |name: &str| respects.iter().position(|r| r.name == name);
    let mut on = Vec::new();
    if let Some(names) = &asked.on {
        let list = match names.get_ref() {
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        };
        for name in &list {
            match name.as_str().and_then(index) {
                Some(factor) if !on.contains(&factor) => on.push(factor),
                Some(_) => return mistake(names, format!("{name} is there twice")),
                None => {
                    return mistake(names, format!("{name} is no factor; there are: {}", known(respects)));
                }
            }
        }
    }
    for (name, loading) in asked.graded.iter().flat_map(|graded| &graded.get_ref().loadings) {
        let Some(factor) = index(name) else {
            return mistake(
                loading,
                format!("loadings.{name}: no such factor; there are: {}", known(respects)),
            );
        };
        if !loading.get_ref().is_finite() {
            return mistake(
                loading,
                format!("loadings.{name} is {}, it must be a number", loading.get_ref()),
            );
        }
        if !on.contains(&factor) {
            on.push(factor);
        }
    }
    if on.is_empty() && respects.len() == 1 {
        on.push(0);
    }
    if on.is_empty() {
        return mistake(
            question,
            format!("say what the question bears on: `on = …`, one of {}", known(respects)),
        );
    }
    Ok(on)
}

/// The log-probabilities of a table under every hypothesis of the group that its factors are in.
fn table_rows(
    table: &Spanned<Rows>,
    on: &[usize],
    respects: &[Respect],
    joint: &Joint,
    group: usize,
    options: usize,
) -> Result<Vec<f64>, Mistake> {
    // (values of the factors in `on`, the last one's varying fastest; options)
    let mut rows = Vec::new();
    flatten(table, on, respects, options, &mut rows)?;
    let row_of = |hypothesis: usize| {
        on.iter().fold(0, |row, &f| row * respects[f].values.len() + joint.value(f, hypothesis))
    };
    let hypotheses = joint.factors[group].prior.len();
    Ok((0..hypotheses).flat_map(|h| rows[row_of(h)].iter().map(|p| p.ln())).collect())
}

fn flatten(
    table: &Spanned<Rows>,
    on: &[usize],
    respects: &[Respect],
    options: usize,
    rows: &mut Vec<Vec<f64>>,
) -> Result<(), Mistake> {
    match (table.get_ref(), on) {
        (Rows::Probs(probs), []) => {
            if probs.len() != options {
                return mistake(table, format!("{} probabilities for {options} options", probs.len()));
            }
            rows.push(distribution(&Spanned::new(table.span(), probs.clone()), "table")?);
        }
        (Rows::ByValue(by_value), [factor, rest @ ..]) => {
            let respect = &respects[*factor];
            if let Some((stray, row)) = by_value.iter().find(|(value, _)| !respect.values.contains(value)) {
                let known = respect.values.join(", ");
                return mistake(
                    row,
                    format!("{stray:?} is no value of {}; there are: {known}", respect.name),
                );
            }
            for value in &respect.values {
                match by_value.iter().find(|(named, _)| named == value) {
                    Some((_, row)) => flatten(row, rest, respects, options, rows)?,
                    None => {
                        return mistake(
                            table,
                            format!("the table lacks {value:?}, a value of {}", respect.name),
                        );
                    }
                }
            }
        }
        (Rows::Probs(_), [factor, ..]) => {
            let respect = &respects[*factor];
            let example = format!("{{ \"{}\" = […], … }}", respect.values[0]);
            return mistake(table, format!("expected one row for each value of {}: {example}", respect.name));
        }
        (Rows::ByValue(_), []) => {
            return mistake(
                table,
                "expected a list of probabilities: the question bears on no further factor",
            );
        }
    }
    Ok(())
}

/// A graded response on the weighted sum of some factors' values.
struct GradedModel<'a> {
    slope: f64,
    thresholds: &'a [f64],
    reversed: bool,
    /// Each factor, its loading and its values.
    weighted: Vec<(usize, f64, &'a [f64])>,
}

impl GradedModel<'_> {
    /// The log-probabilities of the answers under a hypothesis of the group that the factors are in.
    fn answers(&self, joint: &Joint, hypothesis: usize) -> Vec<f64> {
        let weighted = self.weighted.iter();
        let level =
            weighted.map(|(f, loading, numbers)| loading * numbers[joint.value(*f, hypothesis)]).sum();
        let mut answers = graded_response(self.slope, self.thresholds, level);
        if self.reversed {
            answers.reverse();
        }
        answers
    }

    /// Where it is a function of one factor alone.
    fn of_one_level(
        &self,
        joint: &Joint,
        hypotheses: std::ops::Range<usize>,
        lapse: f64,
    ) -> Option<GradedItem> {
        let [(factor, loading, numbers)] = self.weighted[..] else { return None };
        Some(GradedItem {
            slope: self.slope,
            thresholds: self.thresholds.into(),
            loading,
            lapse,
            levels: hypotheses.map(|h| numbers[joint.value(factor, h)]).collect(),
        })
    }
}

/// Checks a graded response.
fn graded_model<'a>(
    question: &Spanned<QuestionTable>,
    graded: &'a Spanned<GradedTable>,
    common: &'a QuestionnaireTable,
    on: &[usize],
    respects: &'a [Respect],
    options: usize,
) -> Result<GradedModel<'a>, Mistake> {
    let model = graded.get_ref();
    let slope = match model.slope.as_ref().or(common.slope.as_ref()) {
        Some(slope) if *slope.get_ref() > 0.0 && slope.get_ref().is_finite() => *slope.get_ref(),
        Some(slope) => {
            return mistake(slope, format!("the slope is {}, it must be above 0", slope.get_ref()));
        }
        None => return mistake(question, "a graded response needs a `slope`, here or in [questionnaire]"),
    };
    let Some(thresholds) = model.thresholds.as_ref().or(common.thresholds.as_ref()) else {
        return mistake(question, "a graded response needs `thresholds`, here or in [questionnaire]");
    };
    let steps = thresholds.get_ref();
    if steps.len() + 1 != options {
        return mistake(
            thresholds,
            format!("{} thresholds for {options} options: one fewer is needed", steps.len()),
        );
    }
    if !steps.iter().all(|t| t.is_finite()) || !steps.windows(2).all(|pair| pair[0] < pair[1]) {
        return mistake(thresholds, "thresholds must be numbers in ascending order");
    }
    let mut weighted = Vec::new();
    for &factor in on {
        let respect = &respects[factor];
        let Some(numbers) = &respect.numbers else {
            return mistake(graded, format!("the values of {} are not all numbers", respect.name));
        };
        let loading = model.loadings.get(&respect.name).map_or(1.0, |loading| *loading.get_ref());
        weighted.push((factor, loading, numbers.as_slice()));
    }
    Ok(GradedModel { slope, thresholds: steps, reversed: model.reversed, weighted })
}
