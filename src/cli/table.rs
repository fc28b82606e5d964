//! The table of results: baseline beside fine-tuned beside teacher.

use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::metrics::{Measures, MeasuresAt, MeasuresOf};

/// A column of the table.
pub(super) struct Column<'a> {
    pub title: &'a str,
    pub measures: &'a Measures,
}

type Measure = (&'static str, fn(&Measures) -> Option<f64>);
type MeasureAt = (&'static str, fn(&MeasuresAt) -> Option<f64>);

const OVERALL: [Measure; 8] = [
    ("accuracy", |m| m.accuracy),
    ("agreement with the teacher", |m| Some(m.agreement)),
    ("KL from the teacher (nats)", |m| Some(m.kl)),
    ("entropy (nats)", |m| Some(m.entropy)),
    ("mass on the top option", |m| Some(m.top_probability)),
    ("mass on the options", |m| Some(m.option_mass)),
    ("calibration error", |m| m.ece),
    ("Brier score", |m| m.brier),
];

type MeasureOf = (&'static str, fn(&MeasuresOf) -> Option<f64>);

const BY_BELIEF: [MeasureOf; 3] =
    [("accuracy", |m| m.accuracy), ("KL", |m| Some(m.kl)), ("entropy", |m| Some(m.entropy))];

const BY_OBSERVATIONS: [MeasureAt; 4] = [
    ("accuracy", |m| m.accuracy),
    ("KL", |m| Some(m.kl)),
    ("entropy", |m| Some(m.entropy)),
    ("top mass", |m| Some(m.top_probability)),
];

/// The measures overall, a row each.
pub(super) fn overall(columns: &[Column]) -> String {
    let mut table = new_table(std::iter::once("").chain(columns.iter().map(|c| c.title)));
    for (name, measure) in OVERALL {
        let values = columns.iter().map(|c| number(measure(c.measures)));
        table.add_row(std::iter::once(Cell::new(name)).chain(values));
    }
    table.to_string()
}

/// The measures by number of observations: a row each of measure and model, a column a number.
pub(super) fn by_observations(columns: &[Column]) -> String {
    let Some(first) = columns.first() else { return String::new() };
    let numbers: Vec<usize> = first.measures.by_observations.iter().map(|at| at.observations).collect();
    let titles = numbers.iter().map(ToString::to_string);
    let mut table = new_table(["earlier answers".to_string(), String::new()].into_iter().chain(titles));
    let counts = first.measures.by_observations.iter().map(|at| integer(at.answers));
    table.add_row([Cell::new("answers"), Cell::new("")].into_iter().chain(counts));
    for (name, measure) in BY_OBSERVATIONS {
        for (i, column) in columns.iter().enumerate() {
            let at = |n: &usize| column.measures.by_observations.iter().find(|m| m.observations == *n);
            let values = numbers.iter().map(|n| number(at(n).and_then(measure)));
            let name = if i == 0 { name } else { "" };
            table.add_row([Cell::new(name), Cell::new(column.title)].into_iter().chain(values));
        }
    }
    table.to_string()
}

/// The measures of reported beliefs by what they are about: a row each of measure and model, a column a belief.
pub(super) fn by_belief(columns: &[Column]) -> String {
    let Some(first) = columns.first() else { return String::new() };
    let names: Vec<&str> = first.measures.by_belief.iter().map(|of| of.belief.as_str()).collect();
    let mut table = new_table(["belief", ""].into_iter().chain(names.iter().copied()));
    let counts = first.measures.by_belief.iter().map(|of| integer(of.answers));
    table.add_row([Cell::new("answers"), Cell::new("")].into_iter().chain(counts));
    for (name, measure) in BY_BELIEF {
        for (i, column) in columns.iter().enumerate() {
            let of = |name: &&str| column.measures.by_belief.iter().find(|m| m.belief == *name);
            let values = names.iter().map(|belief| number(of(belief).and_then(measure)));
            let name = if i == 0 { name } else { "" };
            table.add_row([Cell::new(name), Cell::new(column.title)].into_iter().chain(values));
        }
    }
    table.to_string()
}

fn new_table<T: Into<Cell>>(titles: impl Iterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(titles);
    table
}

fn number(value: Option<f64>) -> Cell {
    let text = match value {
        Some(v) if v != 0.0 && v.abs() < 0.01 => format!("{v:.4}"),
        Some(v) => format!("{v:.3}"),
        None => "-".to_string(),
    };
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn integer(value: usize) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}
