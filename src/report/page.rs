//! `report.html`: one page that needs nothing else.

use std::path::Path;

use anyhow::{Context as _, Result};
use minijinja::{AutoEscape, Environment, Value as Safe};
use serde::Serialize;
use serde_json::Value;

use super::chart::{Answer, Plot, value};
use super::depth;
use super::plots::{Plots, measured, measured_beliefs};
use super::run::Run;
use super::style::{self, Who};
use crate::files;
use crate::metrics::{
    EvalFile, MarginBin, Measure, Measures, PredictedAnswer, PredictedEpisode, ReliabilityBin,
};

/// The page's name within a run.
pub const REPORT_FILE: &str = "report.html";
/// The folder of the plots within a run, an SVG file each.
pub const PLOTS_FOLDER: &str = "plots";

const TEMPLATE: &str = include_str!("report.html");

/// Writes `report.html` and `plots/` into a run directory, from the files that are there.
///
/// The same files give the same bytes.
///
/// # Errors
/// If this is no run directory, one of its files is damaged, or the disk fails.
pub fn write(run_dir: &Path) -> Result<()> {
    let run = Run::read(run_dir)?;
    let plots = Plots::of(&run);
    let page = render(&run, &plots)?;
    let style = style::SHAPES.trim().replace('\n', "") + &style::light();
    files::write_folder(&run_dir.join(PLOTS_FOLDER), |dir| {
        for plot in plots.all() {
            let text = plot.svg.file(&plot.title, &style);
            files::write(&dir.join(plot.name).with_extension("svg"), text.as_bytes())?;
        }
        Ok(())
    })?;
    files::write(&run_dir.join(REPORT_FILE), page.as_bytes())
}

/// All that the template shows. What is a [`Safe`] is markup made here; everything else is escaped.
#[derive(Serialize)]
struct Page {
    name: String,
    version: &'static str,
    subtitle: String,
    shapes: Safe,
    light: Safe,
    dark: Safe,
    sections: Vec<Section>,
    cards: Vec<Card>,
    findings: Vec<Finding>,
    table: Table,
    /// Of the reported beliefs.
    beliefs: Table,
    beliefs_by_name: Option<Numbers>,
    beliefs_plots: Vec<Drawing>,
    groups: Vec<Group>,
    episodes: Vec<Episode>,
    facts: Vec<Facts>,
    config: String,
    glossary: Vec<Fact>,
}

#[derive(Serialize)]
struct Section {
    id: &'static str,
    title: &'static str,
}

#[derive(Serialize)]
struct Card {
    title: &'static str,
    value: String,
    error: Option<String>,
    others: Vec<Fact>,
}

#[derive(Serialize)]
struct Finding {
    kind: &'static str,
    text: String,
}

#[derive(Serialize)]
struct Table {
    about: String,
    columns: Vec<&'static str>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    title: &'static str,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    value: String,
    error: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Group {
    pub id: &'static str,
    pub title: &'static str,
    pub about: &'static str,
    pub plots: Vec<Drawing>,
    /// Beside a single plot.
    pub side: Option<Numbers>,
    pub small: Vec<Drawing>,
    /// Below, folded away.
    pub table: Option<Numbers>,
}

#[derive(Serialize)]
pub(super) struct Drawing {
    svg: Safe,
    wide: bool,
}

impl Drawing {
    pub(super) fn all(plots: &[&Plot]) -> Vec<Drawing> {
        let drawing = |plot: &&Plot| Drawing {
            svg: Safe::from_safe_string(plot.svg.inline(&plot.title)),
            wide: plot.wide,
        };
        plots.iter().map(drawing).collect()
    }
}

#[derive(Serialize)]
pub(super) struct Numbers {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

#[derive(Serialize)]
struct Episode {
    id: String,
    about: String,
    turns: Vec<Turn>,
}

/// The messages up to an answer, and what was predicted there.
#[derive(Default, Serialize)]
struct Turn {
    messages: Vec<Said>,
    bars: Option<Safe>,
    facts: String,
}

#[derive(Serialize)]
struct Said {
    role: &'static str,
    text: String,
}

#[derive(Serialize)]
struct Facts {
    title: &'static str,
    rows: Vec<Fact>,
}

#[derive(Serialize)]
struct Fact {
    name: String,
    value: String,
}

fn render(run: &Run, plots: &Plots) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("report.html", TEMPLATE).context("the report's template")?;
    let page = page(run, plots);
    let template = environment.get_template("report.html").context("the report's template")?;
    template.render(minijinja::value::Serde(&page)).context("cannot make the report")
}

fn page(run: &Run, plots: &Plots) -> Page {
    let eval = run.eval.as_ref();
    let groups = groups(eval, plots);
    let episodes: Vec<Episode> = run.examples.iter().map(episode).collect();
    let mut sections: Vec<Section> = Vec::new();
    if eval.is_some() {
        sections.push(Section { id: "measures", title: "Measures" });
    }
    if eval.is_some_and(|eval| eval.teacher.beliefs.is_some()) {
        sections.push(Section { id: "beliefs", title: "Reported beliefs" });
    }
    sections.extend(groups.iter().map(|group| Section { id: group.id, title: group.title }));
    if !episodes.is_empty() {
        sections.push(Section { id: "episodes", title: "Episodes" });
    }
    sections.push(Section { id: "run", title: "What was run" });
    sections.push(Section { id: "reading", title: "How to read it" });
    Page {
        name: run.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        subtitle: subtitle(run),
        shapes: Safe::from_safe_string(style::SHAPES.to_string()),
        light: Safe::from_safe_string(style::light()),
        dark: Safe::from_safe_string(style::dark()),
        sections,
        cards: eval.map(cards).unwrap_or_default(),
        findings: findings(eval),
        table: table(eval),
        beliefs: beliefs(eval),
        beliefs_by_name: eval.and_then(beliefs_by_name),
        beliefs_plots: Drawing::all(&plots.beliefs.iter().collect::<Vec<_>>()),
        groups,
        episodes,
        facts: facts(run),
        config: run.config.clone(),
        glossary: glossary(),
    }
}

fn subtitle(run: &Run) -> String {
    let about = |key: &str| run.about.get(key).and_then(Value::as_str);
    let mut parts: Vec<String> = about("model").map(str::to_string).into_iter().collect();
    if let Some(world) = run.teacher.as_ref().and_then(|t| t.get("world")).and_then(Value::as_str) {
        let kind = run.teacher.as_ref().and_then(|t| t.get("kind")).and_then(Value::as_str);
        let teacher = match kind {
            None | Some("bayes") => "exact".to_string(),
            Some(rival) => rival.replace('-', " "),
        };
        parts.push(format!("taught by the {teacher} teacher of {world}"));
    }
    if let Some((steps, _)) = run.course("loss").last() {
        parts.push(format!("{steps} steps"));
    }
    if let (Some(device), Some(dtype)) = (about("device"), about("dtype")) {
        parts.push(format!("{device}, {dtype}"));
    }
    parts.join(" · ")
}

/// What stands in the cards on top.
const CARDS: [(&str, Measure); 4] = [
    ("accuracy", Measure::Accuracy),
    ("agreement if clear", Measure::AgreementWhenClear),
    ("KL to the teacher (nats)", Measure::Kl),
    ("entropy (nats)", Measure::Entropy),
];

fn cards(eval: &EvalFile) -> Vec<Card> {
    let Some((_, main)) = eval.main() else { return Vec::new() };
    let others = |of: &dyn Fn(&Measures) -> Option<f64>| -> Vec<Fact> {
        let told = |(who, m): (Who, &Measures)| {
            let differs = !std::ptr::eq(m, main);
            let shown = of(m).filter(|_| differs)?;
            Some(Fact { name: who.name().into(), value: value(shown) })
        };
        measured(eval).into_iter().filter_map(told).collect()
    };
    let mut cards: Vec<Card> = Vec::new();
    for (title, measure) in CARDS {
        if let Some(mean) = main.get(measure) {
            let error = main.standard_error(measure).map(|e| error_of(mean, e));
            cards.push(Card { title, value: value(mean), error, others: others(&|m| m.get(measure)) });
        }
    }
    if let Some(ece) = main.ece {
        let title = "calibration error";
        cards.push(Card { title, value: value(ece), error: None, others: others(&|m| m.ece) });
    }
    cards
}

/// A standard error with the digits that its value shows.
fn error_of(mean: f64, error: f64) -> String {
    let shown = value(mean);
    let decimals = shown.split('.').nth(1).map_or(3, str::len);
    if shown.contains('e') { value(error) } else { format!("{error:.decimals$}") }
}

/// An entropy below this part of the teacher's is told as a collapse.
const COLLAPSE: f64 = 0.8;

fn findings(eval: Option<&EvalFile>) -> Vec<Finding> {
    let Some((eval, (who, main))) = eval.and_then(|e| Some((e, e.main()?))) else {
        return vec![Finding {
            kind: "note",
            text: "Nothing has been measured yet; `bayesteach run` does it.".into(),
        }];
    };
    let mut findings = Vec::new();
    let mut tell = |kind, text| findings.push(Finding { kind, text });
    let baseline = eval.baseline.as_ref().filter(|_| eval.fine_tuned.is_some());
    if let Some(kl) = main.get(Measure::Kl) {
        let before = baseline.and_then(|m| m.get(Measure::Kl));
        let better = before.is_some_and(|before| kl < before);
        let before =
            before.map_or(String::new(), |before| format!(", {} before the training", value(before)));
        let text = format!(
            "Over {} answers of {} users the {who} model is {} nats from the teacher{before}.",
            main.answers,
            main.users,
            value(kl)
        );
        tell(if better { "good" } else { "note" }, text);
    }
    if let (Some(own), Some(teacher)) = (main.get(Measure::Entropy), eval.teacher.get(Measure::Entropy)) {
        let (own_told, teacher_told) = (value(own), value(teacher));
        if own < COLLAPSE * teacher {
            let text = format!(
                "Its predictions are narrower than the teacher's: an entropy of {own_told} nats where the teacher has \
                 {teacher_told}. Training on single answers does this (logit collapse); a KL to the teacher's whole \
                 distribution does not."
            );
            tell("warn", text);
        } else {
            tell(
                "good",
                format!(
                    "It is about as uncertain as the teacher: {own_told} nats of entropy beside {teacher_told}. No collapse."
                ),
            );
        }
    }
    if let (Some(ece), Some(expected)) = (main.ece, main.ece_expected) {
        let calibrated = ece <= 2.0 * expected;
        let text = format!(
            "Its calibration error is {}; perfect calibration would score about {} on as many answers.",
            value(ece),
            value(expected)
        );
        tell(if calibrated { "good" } else { "warn" }, text);
    }
    if main.users < 2 {
        tell(
            "note",
            "There are no standard errors: the answers are of one user, or the episodes do not say whose."
                .into(),
        );
    }
    findings
}

fn table(eval: Option<&EvalFile>) -> Table {
    let Some(eval) = eval else {
        return Table { about: String::new(), columns: Vec::new(), rows: Vec::new() };
    };
    let about = format!(
        "{} answers in {} episodes of {} users; ± is one standard error over users.",
        eval.teacher.answers, eval.episodes, eval.teacher.users
    );
    table_of(about, &measured(eval))
}

/// The same of the reported beliefs alone.
fn beliefs(eval: Option<&EvalFile>) -> Table {
    let Some((eval, teacher)) = eval.and_then(|eval| Some((eval, eval.teacher.beliefs.as_deref()?))) else {
        return Table { about: String::new(), columns: Vec::new(), rows: Vec::new() };
    };
    let about = format!(
        "{} reports of what is believed of the user, on a scale, in {} episodes of {} users. They are in none of the \
         other measures and plots.",
        teacher.answers, eval.episodes, teacher.users
    );
    table_of(about, &measured_beliefs(eval))
}

/// The reported beliefs by what they are about.
fn beliefs_by_name(eval: &EvalFile) -> Option<Numbers> {
    let all = measured_beliefs(eval);
    let of = &eval.teacher.beliefs.as_deref()?.by_belief;
    let mut rows = vec![vec!["reports".to_string(), String::new()]];
    rows[0].extend(of.iter().map(|of| of.answers.to_string()));
    for measure in [Measure::Accuracy, Measure::Agreement, Measure::Kl, Measure::Entropy] {
        for (who, m) in all.iter().filter(|(_, m)| m.get(measure).is_some()) {
            let mut row = vec![measure.title().to_string(), who.name().to_string()];
            row.extend(of.iter().map(|of| {
                let same = m.by_belief.iter().find(|other| other.belief == of.belief);
                same.and_then(|same| same.get(measure)).map_or("–".to_string(), value)
            }));
            rows.push(row);
        }
    }
    let titles = ["belief".to_string(), String::new()];
    Some(Numbers {
        columns: titles.into_iter().chain(of.iter().map(|of| of.belief.replace('_', " "))).collect(),
        rows,
    })
}

fn table_of(about: String, all: &[(Who, &Measures)]) -> Table {
    let row = |measure: Measure| {
        let cell = |(_, m): &(Who, &Measures)| match m.get(measure) {
            Some(mean) => {
                let error = m.standard_error(measure).map(|e| error_of(mean, e));
                Cell { value: value(mean), error }
            }
            None => Cell { value: "–".into(), error: None },
        };
        Row { title: measure.title(), cells: all.iter().map(cell).collect() }
    };
    let is_known = |measure: &Measure| all.iter().any(|(_, m)| m.get(*measure).is_some());
    let mut rows: Vec<Row> = Measure::ALL.into_iter().filter(is_known).map(row).collect();
    let mut plain = |title, of: fn(&Measures) -> Option<f64>| {
        let told = |(_, m): &(Who, &Measures)| of(m).map_or("–".to_string(), value);
        if all.iter().any(|(_, m)| of(m).is_some()) {
            let cells = all.iter().map(|m| Cell { value: told(m), error: None });
            rows.push(Row { title, cells: cells.collect() });
        }
    };
    plain("correlation of entropies", |m| m.entropy_correlation);
    plain("calibration error (ECE)", |m| m.ece);
    plain("… if perfectly calibrated", |m| m.ece_expected);
    Table { about, columns: all.iter().map(|(who, _)| who.name()).collect(), rows }
}

fn groups(eval: Option<&EvalFile>, plots: &Plots) -> Vec<Group> {
    let (small, wide): (Vec<&Plot>, Vec<&Plot>) =
        plots.choices.iter().partition(|plot| plot.name != "agreement-by-margin");
    let all = |plots: &[Plot]| Drawing::all(&plots.iter().collect::<Vec<_>>());
    let mut groups = vec![
        Group {
            id: "observations",
            title: "Learning from answers",
            about: "How predictions change with the number of earlier answers that bear on the answer. Bands are 95 % \
                    intervals over users.",
            plots: all(&plots.by_observations),
            side: None,
            small: Vec::new(),
            table: eval.map(numbers),
        },
        Group {
            id: "training",
            title: "Training",
            about: "Training batches as they came (means with their range, where there are many), and the validation \
                    episodes.",
            plots: all(&plots.training),
            side: None,
            small: Vec::new(),
            table: None,
        },
        Group {
            id: "calibration",
            title: "Calibration",
            about: "Answers by the probability that was given to the most probable option. On the dotted line it comes \
                    true exactly as often as predicted; below it is over-confidence.",
            plots: all(&plots.calibration),
            side: eval.and_then(|eval| eval.main()).map(|(_, main)| bins(main)),
            small: Vec::new(),
            table: None,
        },
        Group {
            id: "choices",
            title: "Choices",
            about: "How often the most probable option is the teacher's, by how clear the teacher's choice is: at \
                    near-ties two perfect predictors differ too. The tables show which options are taken for which, in \
                    percent of each row.",
            plots: Drawing::all(&wide),
            side: eval.and_then(margins),
            small: Drawing::all(&small),
            table: None,
        },
    ];
    groups.extend(eval.map(|eval| depth::groups(eval, &plots.depth)).unwrap_or_default());
    let is_empty = |group: &Group| group.plots.is_empty() && group.small.is_empty() && group.side.is_none();
    groups.into_iter().filter(|group| !is_empty(group)).collect()
}

/// The learning curves as a table.
fn numbers(eval: &EvalFile) -> Numbers {
    numbers_of("earlier answers", &measured(eval))
}

/// Measures by number of observations, or of what `title` says.
pub(super) fn numbers_of(title: &str, all: &[(Who, &Measures)]) -> Numbers {
    let Some((_, last)) = all.last() else { return Numbers { columns: Vec::new(), rows: Vec::new() } };
    let measures =
        [Measure::Accuracy, Measure::Agreement, Measure::Kl, Measure::Entropy, Measure::TopProbability];
    let observations: Vec<usize> = last.by_observations.iter().map(|at| at.observations).collect();
    let mut rows = vec![["answers".to_string(), String::new()].into_iter().collect::<Vec<_>>()];
    rows[0].extend(last.by_observations.iter().map(|at| at.answers.to_string()));
    for measure in measures {
        for (who, m) in all.iter().filter(|(_, m)| m.get(measure).is_some()) {
            let cell = |n: &usize| {
                let at = m.by_observations.iter().find(|at| at.observations == *n);
                at.and_then(|at| at.get(measure)).map_or("–".to_string(), value)
            };
            let titles = [measure.title().to_string(), who.name().to_string()];
            rows.push(titles.into_iter().chain(observations.iter().map(cell)).collect());
        }
    }
    let titles = [title.to_string(), String::new()];
    Numbers {
        columns: titles.into_iter().chain(observations.iter().map(ToString::to_string)).collect(),
        rows,
    }
}

/// The bins of a reliability diagram.
fn bins(measures: &Measures) -> Numbers {
    let row = |bin: &ReliabilityBin| {
        let range = format!("{:.2} – {:.2}", bin.from, bin.to);
        let accuracy = with_error(bin.accuracy, bin.standard_error);
        vec![range, bin.answers.to_string(), value(bin.top_probability), accuracy]
    };
    let columns = ["mass on the top option", "answers", "its mean", "the truth"];
    let rows = measures.reliability.iter().map(row).collect();
    Numbers { columns: columns.map(str::to_string).into(), rows }
}

/// Agreement by the teacher's margin, of each model.
fn margins(eval: &EvalFile) -> Option<Numbers> {
    let models: Vec<(Who, &Measures)> =
        measured(eval).into_iter().filter(|(_, m)| !m.agreement_by_margin.is_empty()).collect();
    let row = |bin: &MarginBin| {
        let agreement = |(_, m): &(Who, &Measures)| {
            let same = m.agreement_by_margin.iter().find(|other| other.from == bin.from);
            same.map_or("–".to_string(), |b| with_error(b.agreement, b.standard_error))
        };
        let range = [format!("{:.2} – {:.2}", bin.from, bin.to), bin.answers.to_string()];
        range.into_iter().chain(models.iter().map(agreement)).collect()
    };
    let titles = ["teacher's lead", "answers"].into_iter().chain(models.iter().map(|(who, _)| who.name()));
    let rows = models.first()?.1.agreement_by_margin.iter().map(row).collect();
    Some(Numbers { columns: titles.map(str::to_string).collect(), rows })
}

pub(super) fn with_error(mean: f64, error: Option<f64>) -> String {
    error.map_or_else(|| value(mean), |error| format!("{} ± {}", value(mean), error_of(mean, error)))
}

fn episode(episode: &PredictedEpisode) -> Episode {
    let answers: Vec<&PredictedAnswer> = episode.answers().collect();
    let mut about: Vec<String> = Vec::new();
    if !episode.user.is_empty() {
        about.push(format!("user {}", episode.user));
    }
    about.push(format!("{} answers", answers.len()));
    let mean_kl = |of: fn(&PredictedAnswer) -> Option<&Vec<f64>>| {
        let kls: Option<Vec<f64>> = answers.iter().map(|a| Some(kl(&a.teacher, of(a)?))).collect();
        kls.filter(|kls| !kls.is_empty()).map(|kls| kls.iter().sum::<f64>() / kls.len() as f64)
    };
    for (name, kl) in
        [("baseline", mean_kl(|a| a.baseline.as_ref())), ("fine-tuned", mean_kl(|a| a.fine_tuned.as_ref()))]
    {
        about.extend(kl.map(|kl| format!("KL {} ({name})", value(kl))));
    }
    Episode { id: episode.id.clone(), about: about.join(" · "), turns: turns(episode) }
}

fn turns(episode: &PredictedEpisode) -> Vec<Turn> {
    let mut turns = vec![Turn::default()];
    for message in &episode.messages {
        if turns.last().is_some_and(|turn| turn.bars.is_some()) {
            turns.push(Turn::default());
        }
        let Some(turn) = turns.last_mut() else { continue };
        turn.messages.push(Said { role: message.role.as_str(), text: message.content.clone() });
        if let Some(answer) = &message.answer {
            turn.bars = Some(Safe::from_safe_string(bars(answer)));
            turn.facts = answer_facts(answer);
        }
    }
    turns
}

fn bars(answer: &PredictedAnswer) -> String {
    let drawing = Answer {
        options: &answer.options,
        teacher: &answer.teacher,
        baseline: answer.baseline.as_deref(),
        fine_tuned: answer.fine_tuned.as_deref(),
        truth: answer.truth,
    };
    drawing.draw().inline("what teacher and models predict")
}

fn answer_facts(answer: &PredictedAnswer) -> String {
    let models = [(&answer.baseline, "baseline"), (&answer.fine_tuned, "fine-tuned")];
    let kls = models
        .into_iter()
        .filter_map(|(probs, name)| Some(format!("{} {name}", value(kl(&answer.teacher, probs.as_ref()?)))));
    let belief = answer.belief.iter().map(|of| format!("belief about {of} · ")).collect::<String>();
    format!("{belief}{} earlier · KL {}", answer.observations, kls.collect::<Vec<_>>().join(", "))
}

/// KL(teacher ‖ model), of distributions that were written down with all their digits.
fn kl(teacher: &[f64], model: &[f64]) -> f64 {
    let terms = teacher.iter().zip(model).filter(|(t, _)| **t > 0.0);
    terms.map(|(t, m)| t * (t / m.max(f64::MIN_POSITIVE)).ln()).sum::<f64>().max(0.0)
}

fn facts(run: &Run) -> Vec<Facts> {
    let mut rows = flat("", &run.about);
    rows.extend(run.best.iter().flat_map(|best| flat("best checkpoint", best)));
    if let Some(eval) = &run.eval {
        let fingerprints =
            [("episodes measured", &eval.episodes_fingerprint), ("adapter measured", &eval.adapter)];
        for (name, fingerprint) in fingerprints {
            let told = fingerprint.iter().map(|f| Fact { name: name.into(), value: f.clone() });
            rows.extend(told);
        }
    }
    let teacher = run.teacher.as_ref().map(|teacher| flat("", teacher)).unwrap_or_default();
    vec![
        Facts { title: "run.json", rows },
        Facts { title: "teacher.json, over all episodes drawn", rows: teacher },
    ]
}

/// The plain values of a JSON object by their path; lists are left out.
fn flat(path: &str, json: &Value) -> Vec<Fact> {
    match json {
        Value::Object(map) => {
            let within = |key: &String| {
                let key = key.replace('_', " ");
                if path.is_empty() { key } else { format!("{path}: {key}") }
            };
            map.iter().flat_map(|(key, json)| flat(&within(key), json)).collect()
        }
        Value::Null | Value::Array(_) => Vec::new(),
        Value::String(text) => vec![Fact { name: path.into(), value: text.clone() }],
        Value::Number(number) => {
            let told = match number.as_f64() {
                Some(float) if number.is_f64() => value(float),
                _ => number.to_string(),
            };
            vec![Fact { name: path.into(), value: told }]
        }
        Value::Bool(truth) => vec![Fact { name: path.into(), value: truth.to_string() }],
    }
}

fn glossary() -> Vec<Fact> {
    let told = [
        (
            "accuracy",
            "How often the most probable option is what the user then answered. The teacher's is the best that \
                      can be expected of anyone who knows the population and has read the same dialogue.",
        ),
        (
            "agreement",
            "How often the most probable option is the teacher's. Near-ties are left out of “beyond near-ties”: \
                       there the teacher's lead is at most .05.",
        ),
        (
            "KL",
            "Kullback–Leibler divergence from the model's distribution over the options to the teacher's, in nats: 0 \
                where they are the same.",
        ),
        (
            "log loss above the teacher's",
            "How much less probability, as a logarithm, the model gave to what the user \
                                          really answered. Its expectation is the KL.",
        ),
        (
            "entropy",
            "How uncertain the predictions are. Much less than the teacher's is over-confidence: a collapse of \
                     the logits onto one option.",
        ),
        (
            "calibration error",
            "The mean distance between the mass on the top option and how often it was the truth, over \
                               15 bins. A finite sample never scores 0; what perfect calibration would score is given \
                               beside it.",
        ),
        (
            "Brier score",
            "Squared distance between the prediction and what was answered, summed over options.",
        ),
        (
            "earlier answers",
            "Answers before this one that bear on it: all of the user's, or in a questionnaire those on \
                             the same trait. Publications count accuracy at round i (i − 1 earlier answers) or after it (i).",
        ),
        (
            "±, bands, whiskers",
            "± is one standard error, bands and whiskers are 95 % intervals (1.96 standard errors). \
                                Answers of one user depend on each other, so errors are over users.",
        ),
    ];
    told.map(|(name, value)| Fact { name: name.into(), value: value.into() }).into()
}
