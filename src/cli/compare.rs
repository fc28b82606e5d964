//! `bayesteach compare`: runs side by side.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use comfy_table::{Cell, CellAlignment};

use super::table::{format_number, new_table};
use super::{Done, print};
use crate::metrics::{Measure, PAIRED};
use crate::report::{Compared, Comparison, Estimate};

/// The measures told by number of observations.
const BY_OBSERVATIONS: [Measure; 3] = [Measure::Accuracy, Measure::Kl, Measure::Entropy];

type Aside = fn(&Compared) -> Option<&Compared>;

/// What was measured besides the dialogues' answers.
const ASIDES: [(&str, Aside); 3] = [
    ("option sets asked after each round without feedback", |c| c.held_out.as_deref()),
    ("with its own recommendations in the dialogue", |c| c.interactive.as_deref()),
    ("beliefs stated on copies of the dialogue", |c| c.stated.as_deref()),
];

pub(super) fn command(runs: &[PathBuf], pool: bool, json: bool) -> Result<Done> {
    let comparison = if pool { Comparison::pooled(runs)? } else { Comparison::read(runs)? };
    if json {
        print(&serde_json::to_string_pretty(&comparison)?);
        return Ok(Done::Finished);
    }
    let Comparison { episodes, answers, users, seeds, .. } = &comparison;
    let pooled = if pool { format!(" ({seeds} seeds pooled)") } else { String::new() };
    print(&format!(
        "{answers} answers in {episodes} episodes of {users} users{pooled}, with 95 % intervals over users\n"
    ));
    let columns = comparison.columns();
    print(&overall(&columns));
    print("\nby the number of earlier answers that bear on the answer\n");
    print(&by_observations(&columns));
    for (title, of) in ASIDES {
        let aside: Vec<&Compared> = columns.iter().filter_map(|column| of(column)).collect();
        if !aside.is_empty() {
            print(&format!("\n{title}\n"));
            print(&overall(&aside));
            print(&by_observations(&aside));
        }
    }
    if columns.iter().any(|column| !column.findings.is_empty()) {
        print("\nfound out about the model\n");
        print(&findings(&columns));
    }
    if comparison.runs.iter().any(|run| !run.differences.is_empty()) {
        print(&format!("\nless {}, on the same answers\n", comparison.runs[0].name));
        print(&differences(&comparison));
    }
    Ok(Done::Finished)
}

/// A row a measure, and one for each seed where there are several.
fn differences(comparison: &Comparison) -> String {
    let runs = &comparison.runs[1..];
    let mut table = new_table(std::iter::once("").chain(runs.iter().map(|run| run.name.as_str())));
    for measure in PAIRED {
        let of = |run: &'_ Compared| run.differences.iter().position(|d| d.estimate.measure == measure);
        let told =
            |run: &Compared| of(run).map_or("-".into(), |i| with_interval(run.differences[i].estimate));
        if runs.iter().any(|run| of(run).is_some()) {
            table.add_row(
                std::iter::once(Cell::new(measure.title())).chain(runs.iter().map(|run| right(told(run)))),
            );
            for seed in 0..if comparison.seeds > 1 { comparison.seeds } else { 0 } {
                let told = |run: &Compared| {
                    let value = of(run).and_then(|i| run.differences[i].by_seed.get(seed));
                    right(value.map_or("-".into(), |value| format_number(*value)))
                };
                table.add_row(
                    std::iter::once(Cell::new(format!("  seed {}", seed + 1))).chain(runs.iter().map(told)),
                );
            }
        }
    }
    table.to_string()
}

/// A row a finding.
fn findings(columns: &[&Compared]) -> String {
    let mut titles: Vec<&str> = columns.iter().flat_map(|c| &c.findings).map(|f| f.title).collect();
    let mut seen = BTreeSet::new();
    titles.retain(|title| seen.insert(*title));
    let told: Vec<&&Compared> = columns.iter().filter(|c| !c.findings.is_empty()).collect();
    let mut table = new_table(std::iter::once("").chain(told.iter().map(|c| c.name.as_str())));
    for title in titles {
        let of = |column: &&&Compared| {
            let finding = column.findings.iter().find(|f| f.title == title);
            right(finding.map_or("-".into(), |f| number_with_interval(f.value, f.interval)))
        };
        table.add_row(std::iter::once(Cell::new(title)).chain(told.iter().map(of)));
    }
    table.to_string()
}

fn overall(columns: &[&Compared]) -> String {
    let mut table = new_table(std::iter::once("").chain(columns.iter().map(|c| c.name.as_str())));
    for measure in Measure::ALL {
        if columns.iter().any(|c| c.get(measure).is_some()) {
            let cells = columns.iter().map(|c| right(c.get(measure).map_or("-".into(), with_interval)));
            table.add_row(std::iter::once(Cell::new(measure.title())).chain(cells));
        }
    }
    let cells = columns.iter().map(|c| right(c.ece.map_or("-".into(), format_number)));
    table.add_row(std::iter::once(Cell::new("calibration error")).chain(cells));
    table.to_string()
}

fn by_observations(columns: &[&Compared]) -> String {
    let Some(last) = columns.last() else { return String::new() };
    let numbers: Vec<usize> = last.by_observations.iter().map(|at| at.observations).collect();
    let titles = numbers.iter().map(ToString::to_string);
    let mut table = new_table(["earlier answers".to_string(), String::new()].into_iter().chain(titles));
    for measure in BY_OBSERVATIONS {
        let told = columns.iter().filter(|c| c.get(measure).is_some());
        for (i, column) in told.enumerate() {
            let at = |n: &usize| column.by_observations.iter().find(|at| at.observations == *n)?.get(measure);
            let cells = numbers.iter().map(|n| right(at(n).map_or("-".into(), |e| format_number(e.mean))));
            let title = if i == 0 { measure.title() } else { "" };
            table.add_row([Cell::new(title), Cell::new(&column.name)].into_iter().chain(cells));
        }
    }
    table.to_string()
}

fn with_interval(estimate: Estimate) -> String {
    number_with_interval(estimate.mean, estimate.interval)
}

fn number_with_interval(value: f64, interval: Option<[f64; 2]>) -> String {
    let value = format_number(value);
    interval.map_or(value.clone(), |[low, high]| {
        format!("{value} [{}, {}]", format_number(low), format_number(high))
    })
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}
