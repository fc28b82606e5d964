//! What a page that follows runs shows: how far each is, and their courses in common plots.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::chart::{Line, Look, value};
use super::compare::{Compared, Comparison, Estimate, names};
use super::page::REPORT_FILE;
use super::plots::{Chart, course, draw};
use super::run::Run;
use super::style::{self, RUNS, Who};
use super::svg::escape;
use crate::metrics::Measure;

/// The page around what [`live`] gives; it asks for it anew every two seconds.
pub fn live_page() -> String {
    let page = include_str!("live.html");
    page.replace("/*shapes*/", style::SHAPES)
        .replace("/*light*/", &style::light())
        .replace("/*dark*/", &style::dark())
}

/// How many runs can be told apart in one plot.
pub const LIVE_RUNS: usize = RUNS;

/// The part of the page that changes, as HTML. A run that cannot be read yet says why.
pub fn live(runs: &[PathBuf]) -> String {
    let read: Vec<Result<Run, String>> =
        runs.iter().map(|dir| Run::read(dir).map_err(|error| format!("{error:#}"))).collect();
    let names = names(runs);
    let rows: Vec<String> = (0..runs.len()).map(|i| row(i, &runs[i], &names[i], read[i].as_ref())).collect();
    let titles = ["run", "state", "step", "loss", "validation KL", "tokens/s", "result", "dialogue"];
    let head: String = titles.iter().map(|title| format!("<th scope=\"col\">{title}</th>")).collect();
    let table = format!(
        "<div class=\"panel\"><table><thead><tr>{head}</tr></thead><tbody>{}</tbody></table></div>",
        rows.concat()
    );
    let figures: String = charts(&read, &names).iter().map(|svg| format!("<figure>{svg}</figure>")).collect();
    format!("{table}<div class=\"grid\">{figures}</div>{}", comparison(runs, &read))
}

/// The runs that were measured, side by side, where there are several.
fn comparison(runs: &[PathBuf], read: &[Result<Run, String>]) -> String {
    let is_measured = |run: &Result<Run, String>| run.as_ref().is_ok_and(Run::is_measured);
    let measured: Vec<PathBuf> =
        runs.iter().zip(read).filter(|(_, run)| is_measured(run)).map(|(dir, _)| dir.clone()).collect();
    if measured.len() < 2 {
        return String::new();
    }
    let title = "<h2>Side by side</h2>";
    let comparison = match Comparison::read(&measured) {
        Ok(comparison) => comparison,
        Err(error) => return format!("{title}<p class=\"soft\">{}</p>", escape(&format!("{error:#}"))),
    };
    let columns = comparison.columns();
    let head: String =
        columns.iter().map(|c| format!("<th scope=\"col\">{}</th>", escape(&c.name))).collect();
    let mut rows = String::new();
    for measure in Measure::ALL {
        if columns.iter().any(|c| c.get(measure).is_some()) {
            let cell = |c: &&Compared| format!("<td>{}</td>", c.get(measure).map_or("–".into(), told));
            let cells: String = columns.iter().map(cell).collect();
            rows += &format!("<tr><th scope=\"row\">{}</th>{cells}</tr>", escape(measure.title()));
        }
    }
    format!(
        "{title}<p class=\"soft\">{} answers in {} episodes of {} users, which training never saw; 95 % intervals over \
         users.</p><div class=\"panel\"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>",
        comparison.answers, comparison.episodes, comparison.users
    )
}

/// A mean with its interval.
fn told(estimate: Estimate) -> String {
    let interval = estimate.interval.map_or(String::new(), |[low, high]| {
        format!(" <span class=\"soft\">[{}, {}]</span>", value(low), value(high))
    });
    value(estimate.mean) + &interval
}

fn row(number: usize, dir: &Path, name: &str, run: Result<&Run, &String>) -> String {
    let cells = match run {
        Err(error) => {
            let (name, error) = (escape(&dir.display().to_string()), escape(error));
            return format!(
                "<tr><th scope=\"row\">{name}</th><td colspan=\"7\" class=\"soft\">{error}</td></tr>"
            );
        }
        Ok(run) => {
            let last = |name: &str| run.course(name).last().map(|(_, value)| *value);
            let told = |name: &str| last(name).map_or("–".to_string(), value);
            let step = run.course("loss").last().map_or(0.0, |(step, _)| *step);
            let steps = run.max_steps().map_or(String::new(), |steps| format!(" of {steps}"));
            let result = if dir.join(REPORT_FILE).is_file() {
                format!("<a href=\"/report/{number}\">report</a>")
            } else {
                "–".to_string()
            };
            let dialogue = if run.has_teacher() {
                format!("<a href=\"/belief/{number}\">what they believe of you</a>")
            } else {
                "–".to_string()
            };
            [
                state(dir, run, step).to_string(),
                format!("{step:.0}{steps}"),
                told("loss"),
                told("validation_kl"),
                last("tokens_per_second").map_or("–".to_string(), |speed| format!("{speed:.0}")),
                result,
                dialogue,
            ]
        }
    };
    let name = escape(name);
    let cells: String = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
    format!("<tr><th scope=\"row\">{name}</th>{cells}</tr>")
}

/// Whether a run is being written to, or what it came to.
fn state(dir: &Path, run: &Run, step: f64) -> &'static str {
    if run.is_measured() {
        return "finished";
    }
    if run.max_steps().is_some_and(|steps| step >= steps as f64) && has_result(dir) {
        return "trained";
    }
    let written = std::fs::metadata(dir.join("metrics.jsonl")).and_then(|m| m.modified()).ok();
    let age = written.and_then(|time| SystemTime::now().duration_since(time).ok());
    match age {
        Some(age) if age.as_secs() < 60 => "running",
        // Early, because it no longer got better, or because someone interrupted it.
        Some(_) if has_result(dir) => "stopped",
        Some(_) => "no step for a minute",
        None => "not begun",
    }
}

/// Whether what was trained is there, which is written when training ends.
fn has_result(dir: &Path) -> bool {
    dir.join("adapter").is_dir() || dir.join("model").is_dir()
}

/// The end of a name, which is where paths differ, as far as a legend has room.
fn ending(name: &str) -> String {
    let length = name.chars().count();
    if length <= LEGEND {
        return name.to_owned();
    }
    std::iter::once('…').chain(name.chars().skip(length + 1 - LEGEND)).collect()
}

/// Characters in a legend.
const LEGEND: usize = 18;

fn charts(runs: &[Result<Run, String>], names: &[String]) -> Vec<String> {
    let wanted = [
        ("loss", "Loss", "loss (nats, logarithmic)", true, Look::Course),
        ("validation_kl", "Validation KL from the teacher", "KL (nats, logarithmic)", true, Look::Whiskers),
        ("validation_entropy", "Validation entropy", "entropy (nats)", false, Look::Whiskers),
        ("validation_accuracy", "Validation accuracy", "accuracy", false, Look::Whiskers),
        ("grad_norm", "Gradient norm before clipping", "norm (logarithmic)", true, Look::Course),
        ("tokens_per_second", "Speed (tokens per second)", "", false, Look::Course),
    ];
    let chart =
        |(name, title, y_label, log, look): (&'static str, &'static str, &'static str, bool, Look)| {
            let numbered = runs.iter().enumerate().filter_map(|(i, run)| Some((i, run.as_ref().ok()?)));
            let lines: Vec<Line> = numbered
                .map(|(i, run)| {
                    let short = ending(&names[i]);
                    course(run, name, Who::Run(i % RUNS), &short, look).without_band(look == Look::Whiskers)
                })
                .collect();
            draw(Chart { name, title, y_label, log }, lines).map(|plot| plot.svg.inline(&plot.title))
        };
    wanted.into_iter().filter_map(chart).collect()
}
