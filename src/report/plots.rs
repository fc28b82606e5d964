//! Which plots a run gives.

use super::chart::{HALF_WIDTH, Line, LineChart, Look, Plot, Point, Reliability, Shades, reliability};
use super::depth;
use super::run::Run;
use super::scale::Axis;
use super::style::Who;
use crate::metrics::{EvalFile, Measure, Measures, MeasuresAt};

/// The plots of a run, by section of the page.
pub(super) struct Plots {
    pub by_observations: Vec<Plot>,
    /// Of the reported beliefs alone.
    pub beliefs: Vec<Plot>,
    pub training: Vec<Plot>,
    pub calibration: Vec<Plot>,
    pub choices: Vec<Plot>,
    /// Of the episodes that were looked into.
    pub depth: Vec<Plot>,
}

impl Plots {
    pub(super) fn of(run: &Run) -> Self {
        let eval = run.eval.as_ref();
        Self {
            by_observations: eval.map(by_observations).unwrap_or_default(),
            beliefs: eval.map(beliefs).unwrap_or_default(),
            training: training(run),
            calibration: eval.map(calibration).unwrap_or_default(),
            choices: eval.map(choices).unwrap_or_default(),
            depth: eval.map(depth::plots).unwrap_or_default(),
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Plot> {
        let sections = [
            &self.by_observations,
            &self.beliefs,
            &self.training,
            &self.calibration,
            &self.choices,
            &self.depth,
        ];
        sections.into_iter().flatten()
    }
}

/// Who was measured, the teacher last where there is one.
pub(super) fn measured(eval: &EvalFile) -> Vec<(Who, &Measures)> {
    let models = [(Who::Baseline, eval.baseline.as_ref()), (Who::FineTuned, eval.fine_tuned.as_ref())];
    let mut all: Vec<(Who, &Measures)> = models.into_iter().filter_map(|(who, m)| Some((who, m?))).collect();
    if eval.has_teacher() {
        all.push((Who::Teacher, &eval.teacher));
    }
    all
}

/// The ends of all intervals, and the values.
pub(super) fn extent(lines: &[Line]) -> impl Iterator<Item = f64> {
    let points = lines.iter().flat_map(|line| &line.points);
    points.flat_map(|p| [p.y, p.interval.map_or(p.y, |i| i.0), p.interval.map_or(p.y, |i| i.1)])
}

/// The reported beliefs of those who were measured.
pub(super) fn measured_beliefs(eval: &EvalFile) -> Vec<(Who, &Measures)> {
    measured(eval).into_iter().filter_map(|(who, m)| Some((who, m.beliefs.as_deref()?))).collect()
}

/// A measure by the number of observations, a line for each that was measured.
pub(super) fn lines(all: &[(Who, &Measures)], measure: Measure) -> Vec<Line> {
    let line = |&(who, m): &(Who, &Measures)| {
        let point = |at: &MeasuresAt| {
            let tip = format!(" ({} earlier answers, {} answers)", at.observations, at.answers);
            let (x, y) = (at.observations as f64, at.get(measure)?);
            Some(Point::mean(x, y, at.standard_error(measure), tip))
        };
        let points: Vec<Point> = m.by_observations.iter().filter_map(point).collect();
        let name = who.name().to_string();
        (!points.is_empty()).then_some(Line { who, name, points, look: Look::Band })
    };
    all.iter().filter_map(line).collect()
}

/// How reported beliefs follow the evidence.
fn beliefs(eval: &EvalFile) -> Vec<Plot> {
    let wanted = [
        ("beliefs-accuracy", "Reported beliefs: accuracy", "accuracy", Measure::Accuracy),
        ("beliefs-kl", "Reported beliefs: KL from the teacher", "KL (nats)", Measure::Kl),
    ];
    let all = measured_beliefs(eval);
    let plot = |(name, title, y_label, measure)| {
        let lines = lines(&all, measure);
        let y = Axis::linear(extent(&lines));
        let x_label = "earlier answers that bear on what is reported";
        let chart = LineChart { name, title, x_label, y_label, x_names: None, y, lines, wide: false };
        (!chart.lines.is_empty()).then(|| chart.draw())
    };
    wanted.into_iter().filter_map(plot).collect()
}

fn by_observations(eval: &EvalFile) -> Vec<Plot> {
    let all = measured(eval);
    let lines = |measure: Measure| lines(&all, measure);
    let mut plots = Vec::new();
    let mut plot = |name, title, y_label, y: Axis, lines: Vec<Line>| {
        if !lines.is_empty() {
            let x_label = "earlier answers that bear on the answer";
            plots.push(
                LineChart { name, title, x_label, y_label, x_names: None, y, lines, wide: false }.draw(),
            );
        }
    };
    let accuracy = lines(Measure::Accuracy);
    plot("accuracy", "Accuracy", "accuracy", Axis::linear(extent(&accuracy)), accuracy);
    let mut kl = lines(Measure::Kl);
    // Where the lower end of an interval is below zero, a logarithmic axis ends at a tenth of the value.
    for point in kl.iter_mut().flat_map(|line| &mut line.points) {
        point.interval = point.interval.map(|(low, high)| (low.max(point.y / 10.0), high));
    }
    plot("kl", "KL from the teacher", "KL (nats, logarithmic)", Axis::log(extent(&kl)), kl);
    let entropy = lines(Measure::Entropy);
    plot("entropy", "Entropy of the predictions", "entropy (nats)", Axis::linear(extent(&entropy)), entropy);
    let top = lines(Measure::TopProbability);
    plot("top-probability", "Mass on the top option", "probability", Axis::linear(extent(&top)), top);
    plots.extend(by_round(eval));
    plots
}

/// Accuracy by round, where that is something else than by observations.
fn by_round(eval: &EvalFile) -> Option<Plot> {
    if eval.teacher.by_round.len() == eval.teacher.by_observations.len() {
        return None;
    }
    let line = |(who, m): (Who, &Measures)| {
        let points = m.by_round.iter().map(|r| {
            let after = r.accuracy_after.map_or(String::new(), |a| format!(", after it {a:.3}"));
            let tip = format!(" (at round {}{after})", r.round);
            Point::mean(r.round as f64, r.accuracy_at, r.standard_error_at, tip)
        });
        Line { who, name: who.name().to_string(), points: points.collect(), look: Look::Band }
    };
    let lines: Vec<Line> = measured(eval).into_iter().map(line).filter(|l| !l.points.is_empty()).collect();
    let chart = LineChart {
        name: "accuracy-by-round",
        title: "Accuracy at each round",
        x_label: "round of the episode",
        y_label: "accuracy",
        x_names: None,
        y: Axis::linear(extent(&lines)),
        lines,
        wide: true,
    };
    (!chart.lines.is_empty()).then(|| chart.draw())
}

/// More points than this are averaged, with the range that they had as a band.
const POINTS: usize = 240;

/// The course of one number over the steps.
pub(super) fn course(run: &Run, name: &str, who: Who, legend: &str, look: Look) -> Line {
    let logged = run.course(name);
    let points = logged.chunks(logged.len().div_ceil(POINTS).max(1)).map(|chunk| {
        let n = chunk.len() as f64;
        let (x, y) = chunk.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
        let low = chunk.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let high = chunk.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
        let interval = (chunk.len() > 1).then_some((low, high));
        Point { x, y, interval, tip: format!(" (step {x:.0})") }
    });
    Line { who, name: legend.to_string(), points: points.collect(), look }
}

fn training(run: &Run) -> Vec<Plot> {
    let mut plots = Vec::new();
    let mut plot = |name, title, y_label, log: bool, lines: Vec<Line>| {
        plots.extend(draw(Chart { name, title, y_label, log }, lines));
    };
    let batches = |name: &str| course(run, name, Who::Training, "training batches", Look::Course);
    let validation = |name: &str, legend: &str| {
        course(run, name, Who::FineTuned, legend, Look::Whiskers).without_band(true)
    };
    let (loss, kl) = (run.course("loss"), run.course("kl"));
    let same =
        kl.len() == loss.len() && loss.iter().zip(kl).all(|(l, k)| (l.1 - k.1).abs() <= 1e-3 * l.1.abs());
    if !same {
        plot("loss", "Loss", "loss (nats, logarithmic)", true, vec![batches("loss")]);
    }
    let title = if same { "Loss: KL from the teacher" } else { "KL from the teacher" };
    let lines = vec![batches("kl"), validation("validation_kl_vocabulary", "validation")];
    plot("training-kl", title, "KL over the vocabulary (nats, log.)", true, lines);
    let teacher = course(run, "validation_entropy_teacher", Who::Teacher, "teacher", Look::Plain);
    let lines = vec![validation("validation_entropy", "validation"), teacher];
    plot("training-entropy", "Entropy while training", "entropy (nats)", false, lines);
    plot("learning-rate", "Learning rate", "learning rate", false, vec![batches("lr")]);
    plot(
        "grad-norm",
        "Gradient norm before clipping",
        "norm (logarithmic)",
        true,
        vec![batches("grad_norm")],
    );
    plots
}

impl Line {
    /// Without the ranges of averaged points, if asked for.
    pub(super) fn without_band(mut self, without: bool) -> Self {
        if without {
            self.points.iter_mut().for_each(|point| point.interval = None);
        }
        self
    }
}

/// A plot of something over the steps.
pub(super) struct Chart {
    pub name: &'static str,
    pub title: &'static str,
    pub y_label: &'static str,
    /// Whether the values are of many magnitudes.
    pub log: bool,
}

/// The plot of those lines that have points; none where none has.
pub(super) fn draw(chart: Chart, lines: Vec<Line>) -> Option<Plot> {
    let lines: Vec<Line> = lines.into_iter().filter(|line| !line.points.is_empty()).collect();
    let positive = extent(&lines).all(|v| v > 0.0);
    let y = if chart.log && positive { Axis::log(extent(&lines)) } else { Axis::linear(extent(&lines)) };
    let Chart { name, title, y_label, .. } = chart;
    let chart = LineChart { name, title, x_label: "step", y_label, x_names: None, y, lines, wide: false };
    (!chart.lines.is_empty()).then(|| chart.draw())
}

fn calibration(eval: &EvalFile) -> Vec<Plot> {
    let series = |(who, m): (Who, &Measures)| {
        let point = |bin: &crate::metrics::ReliabilityBin| {
            let interval = bin.standard_error.map(|e| {
                let half = HALF_WIDTH * e;
                ((bin.accuracy - half).max(0.0), (bin.accuracy + half).min(1.0))
            });
            let tip = format!(" at confidence {:.3} ({} answers)", bin.top_probability, bin.answers);
            Point { x: bin.top_probability, y: bin.accuracy, interval, tip }
        };
        let points: Vec<Point> = m.reliability.iter().map(point).collect();
        let counts = m.reliability.iter().map(|bin| (bin.from, bin.to, bin.answers)).collect();
        let line = Line { who, name: who.name().to_string(), points, look: Look::Whiskers };
        (!m.reliability.is_empty()).then_some(Reliability { line, counts })
    };
    let all: Vec<Reliability> = measured(eval).into_iter().filter_map(series).collect();
    let title = "Reliability: does it come true as often as predicted?";
    if all.is_empty() { Vec::new() } else { vec![reliability(title, all)] }
}

fn choices(eval: &EvalFile) -> Vec<Plot> {
    let mut plots: Vec<Plot> = agreement_by_margin(eval).into_iter().collect();
    let labels = eval.options.clone().unwrap_or_default();
    let tables = [
        ("baseline-truth", "Baseline against truth", eval.baseline.as_ref(), false),
        ("fine-tuned-truth", "Fine-tuned against truth", eval.fine_tuned.as_ref(), false),
        ("teacher-truth", "Teacher against truth", Some(&eval.teacher), false),
        ("baseline-teacher", "Baseline against teacher", eval.baseline.as_ref(), true),
        ("fine-tuned-teacher", "Fine-tuned against teacher", eval.fine_tuned.as_ref(), true),
    ];
    for (name, title, measures, by_teacher) in tables {
        let Some(measures) = measures else { continue };
        let counts = if by_teacher { &measures.confusion.teacher } else { &measures.confusion.truth };
        if counts.is_empty() {
            continue;
        }
        let row_label = if by_teacher { "teacher's top option" } else { "what the user answered" };
        let shades =
            Shades { name, title, row_label, column_label: "its top option", labels: &labels, counts };
        plots.push(shades.draw());
    }
    plots
}

fn agreement_by_margin(eval: &EvalFile) -> Option<Plot> {
    let models = measured(eval).into_iter().filter(|(who, _)| *who != Who::Teacher);
    let models: Vec<(Who, &Measures)> = models.collect();
    let mut ranges: Vec<(f64, f64)> =
        models.iter().flat_map(|(_, m)| m.agreement_by_margin.iter().map(|b| (b.from, b.to))).collect();
    ranges.sort_by(|a, b| a.0.total_cmp(&b.0));
    ranges.dedup();
    let names: Vec<String> =
        ranges.iter().map(|(from, to)| format!("{}–{}", short(*from), short(*to))).collect();
    let line = |&(who, m): &(Who, &Measures)| {
        let point = |bin: &crate::metrics::MarginBin| {
            let x = ranges.iter().position(|range| *range == (bin.from, bin.to))? as f64;
            let tip = format!(" (margin {} to {}, {} answers)", bin.from, bin.to, bin.answers);
            let interval = bin.standard_error.map(|e| {
                ((bin.agreement - HALF_WIDTH * e).max(0.0), (bin.agreement + HALF_WIDTH * e).min(1.0))
            });
            Some(Point { x, y: bin.agreement, interval, tip })
        };
        let points = m.agreement_by_margin.iter().filter_map(point).collect();
        Line { who, name: who.name().to_string(), points, look: Look::Whiskers }
    };
    let chart = LineChart {
        name: "agreement-by-margin",
        title: "Agreement with the teacher by its margin",
        x_label: "lead of the teacher's top option over its second",
        y_label: "agreement",
        x_names: Some(&names),
        y: Axis::fixed(0.0, 1.0),
        lines: models.iter().map(line).collect(),
        wide: false,
    };
    (!ranges.is_empty()).then(|| chart.draw())
}

/// 0.05 as .05
fn short(value: f64) -> String {
    let text = format!("{value}");
    text.strip_prefix("0.").map_or_else(|| text.clone(), |rest| format!(".{rest}"))
}
