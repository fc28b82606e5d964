//! The table of results: baseline beside fine-tuned beside teacher.

use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::metrics::{Measure, Measures};

/// A column of the table.
pub(super) struct Column<'a> {
    pub title: &'a str,
    pub measures: &'a Measures,
}

/// A row of the table of all answers.
enum Row {
    Mean(Measure),
    CalibrationError,
}

const OVERALL: [Row; 10] = [
    Row::Mean(Measure::Accuracy),
    Row::Mean(Measure::Agreement),
    Row::Mean(Measure::AgreementWhenClear),
    Row::Mean(Measure::Kl),
    Row::Mean(Measure::ExcessLogLoss),
    Row::Mean(Measure::Entropy),
    Row::Mean(Measure::TopProbability),
    Row::Mean(Measure::OptionMass),
    Row::CalibrationError,
    Row::Mean(Measure::Brier),
];

const BY_OBSERVATIONS: [(&str, Measure); 5] = [
    ("accuracy", Measure::Accuracy),
    ("agreement", Measure::Agreement),
    ("KL", Measure::Kl),
    ("entropy", Measure::Entropy),
    ("top mass", Measure::TopProbability),
];

const BY_BELIEF: [(&str, Measure); 3] =
    [("accuracy", Measure::Accuracy), ("KL", Measure::Kl), ("entropy", Measure::Entropy)];

/// The measures overall, a row each, with standard errors over users.
pub(super) fn overall(columns: &[Column]) -> String {
    let mut table = new_table(std::iter::once("").chain(columns.iter().map(|c| c.title)));
    for row in OVERALL {
        let (title, values): (&str, Vec<Cell>) = match row {
            Row::Mean(measure) => {
                let cell =
                    |c: &Column| with_error(c.measures.get(measure), c.measures.standard_error(measure));
                (measure.title(), columns.iter().map(cell).collect())
            }
            Row::CalibrationError => {
                ("calibration error", columns.iter().map(|c| number(c.measures.ece)).collect())
            }
        };
        table.add_row(std::iter::once(Cell::new(title)).chain(values));
    }
    table.to_string()
}

/// The measures by number of observations, or of what `title` says: a row each of measure and model, a column a number.
pub(super) fn by_observations(title: &str, columns: &[Column]) -> String {
    let Some(first) = columns.first() else { return String::new() };
    let numbers: Vec<usize> = first.measures.by_observations.iter().map(|at| at.observations).collect();
    let titles = numbers.iter().map(ToString::to_string);
    let mut table = new_table([title.to_string(), String::new()].into_iter().chain(titles));
    let counts = first.measures.by_observations.iter().map(|at| integer(at.answers));
    table.add_row([Cell::new("answers"), Cell::new("")].into_iter().chain(counts));
    for (name, measure) in BY_OBSERVATIONS {
        let says_something = |c: &&Column| c.measures.get(measure).is_some();
        for (i, column) in columns.iter().filter(says_something).enumerate() {
            let at = |n: &usize| column.measures.by_observations.iter().find(|m| m.observations == *n);
            let values = numbers.iter().map(|n| number(at(n).and_then(|m| m.get(measure))));
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
        let says_something = |c: &&Column| c.measures.get(measure).is_some();
        for (i, column) in columns.iter().filter(says_something).enumerate() {
            let of = |name: &&str| column.measures.by_belief.iter().find(|m| m.belief == *name);
            let values = names.iter().map(|belief| number(of(belief).and_then(|m| m.get(measure))));
            let name = if i == 0 { name } else { "" };
            table.add_row([Cell::new(name), Cell::new(column.title)].into_iter().chain(values));
        }
    }
    table.to_string()
}

pub(super) fn new_table<T: Into<Cell>>(titles: impl Iterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(titles);
    table
}

pub(super) fn number(value: Option<f64>) -> Cell {
    Cell::new(value.map_or("-".to_string(), format_number)).set_alignment(CellAlignment::Right)
}

pub(super) fn with_error(value: Option<f64>, error: Option<f64>) -> Cell {
    let text = match (value, error) {
        // As many digits as the value has.
        (Some(v), Some(e)) => match format_number(v) {
            v if v.len() > 5 && e < 1.0 => format!("{v} ± {e:.4}"),
            v => format!("{v} ± {e:.3}"),
        },
        (value, _) => value.map_or("-".to_string(), format_number),
    };
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// Three digits after the point, four where the value is small.
pub(super) fn format_number(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { format!("{value:.4}") } else { format!("{value:.3}") }
}

pub(super) fn integer(value: usize) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}
