//! What episodes showed that were looked into: plots and tables of it, for the page.

use super::chart::{Line, LineChart, Look, Plot, Point, value};
use super::page::{Drawing, Group, Numbers, numbers_of, with_error};
use super::plots::{extent, lines, measured};
use super::scale::Axis;
use super::style::Who;
use crate::metrics::{
    BeliefProbe, CorrelationsAt, Estimate, EvalFile, Fitted, FittedReasoner, GainBin, Interactive, Measure,
    Measures, Replies, Sensitivity, SensitivityAt,
};

/// A part of the measures of all that have it.
fn part<'a, T>(eval: &'a EvalFile, of: impl Fn(&'a Measures) -> Option<&'a T>) -> Vec<(Who, &'a T)> {
    measured(eval).into_iter().filter_map(|(who, measures)| Some((who, of(measures)?))).collect()
}

fn held_out(eval: &EvalFile) -> Vec<(Who, &Measures)> {
    part(eval, |measures| measures.held_out.as_deref())
}

fn probes(eval: &EvalFile) -> Vec<(Who, &BeliefProbe)> {
    part(eval, |measures| measures.probe.as_deref())
}

fn interactive(eval: &EvalFile) -> Vec<(Who, &Interactive)> {
    part(eval, |measures| measures.interactive.as_deref())
}

/// The plots that there is something for.
pub(super) fn plots(eval: &EvalFile) -> Vec<Plot> {
    let mut plots = Vec::new();
    let mut plot = |name, title, x_label, y_label, lines: Vec<Line>| {
        if !lines.is_empty() {
            let y = Axis::linear(extent(&lines));
            plots.push(
                LineChart { name, title, x_label, y_label, x_names: None, y, lines, wide: false }.draw(),
            );
        }
    };
    let sets = held_out(eval);
    for (name, title, y_label, measure) in [
        ("held-out-accuracy", "Accuracy on held-out sets", "accuracy", Measure::Accuracy),
        ("held-out-kl", "KL from the teacher on held-out sets", "KL (nats)", Measure::Kl),
        ("held-out-agreement", "Agreement on held-out sets", "agreement", Measure::Agreement),
        ("held-out-entropy", "Entropy on held-out sets", "entropy (nats)", Measure::Entropy),
    ] {
        plot(name, title, "rounds observed", y_label, lines(&sets, measure));
    }
    let stated: Vec<(Who, &Measures)> =
        probes(eval).into_iter().map(|(who, probe)| (who, probe.reports.as_ref())).collect();
    let observed = "earlier answers that bear on the belief";
    plot("stated-kl", "KL of stated beliefs", observed, "KL (nats)", lines(&stated, Measure::Kl));
    let correlation = |(who, probe): (Who, &BeliefProbe)| {
        let point = |at: &CorrelationsAt| {
            let Estimate { value, standard_error } = at.correlations.with_truth?;
            let tip = format!(" ({} earlier answers, {} reports)", at.observations, at.reports);
            Some(Point::mean(at.observations as f64, value, standard_error, tip))
        };
        let points: Vec<Point> = probe.by_observations.iter().filter_map(point).collect();
        let line = Line { who, name: who.name().to_string(), points, look: Look::Band };
        (!line.points.is_empty()).then_some(line)
    };
    let correlations = probes(eval).into_iter().filter_map(correlation).collect();
    plot("stated-correlation", "Stated level and true level", observed, "correlation", correlations);
    let own: Vec<(Who, &Measures)> =
        interactive(eval).into_iter().map(|(who, of)| (who, of.own.as_ref())).collect();
    let mut accuracy = lines(&own, Measure::Accuracy);
    for (who, of) in interactive(eval) {
        let taught = lines(&[(who, of.as_taught.as_ref())], Measure::Accuracy);
        accuracy.extend(taught.into_iter().map(|line| Line {
            name: format!("{}, as taught", line.name),
            look: Look::Plain,
            ..line
        }));
    }
    let title = "Accuracy by its own recommendations";
    plot("interactive-accuracy", title, "earlier answers", "accuracy", accuracy);
    let told = "gain from the choice (nats)";
    let learnt = |last: bool| sensitivity_lines(&sensitivity(eval), last);
    plot("sensitivity-first", "Learnt from the first round", told, "learnt (nats)", learnt(false));
    plot("sensitivity-later", "Learnt from a later round", told, "learnt (nats)", learnt(true));
    plots
}

/// The sections of the page; empty where there is nothing.
pub(super) fn groups(eval: &EvalFile, plots: &[Plot]) -> Vec<Group> {
    let named = |prefix: &str| -> Vec<Drawing> {
        Drawing::all(&plots.iter().filter(|plot| plot.name.starts_with(prefix)).collect::<Vec<_>>())
    };
    let sets = held_out(eval);
    let group = |id, title, about| Group {
        id,
        title,
        about,
        plots: Vec::new(),
        side: None,
        small: Vec::new(),
        table: None,
    };
    vec![
        Group {
            plots: named("held-out-"),
            table: (!sets.is_empty()).then(|| numbers_of("rounds observed", &sets)),
            ..group(
                "held-out",
                "Held-out option sets",
                "The same option sets for all users, asked after each round on copies of the dialogue. Nobody tells \
                 whether an answer was right.",
            )
        },
        Group {
            plots: named("stated-"),
            side: probe_table(&probes(eval)),
            ..group(
                "stated",
                "Stated beliefs",
                "What is believed of the user, asked for on copies of the dialogue, and what one would choose who believed \
                 it and inferred exactly.",
            )
        },
        Group {
            plots: named("interactive-"),
            side: interactive_table(&interactive(eval)),
            ..group(
                "interactive",
                "Interactive dialogues",
                "The same episodes with the model's own recommendations in the dialogue, where those as taught have the \
                 teacher's.",
            )
        },
        Group {
            side: reasoner_table(&part(eval, |measures| measures.reasoner.as_deref())),
            ..group(
                "reasoner",
                "The reasoner behind the answers",
                "What explains the answers best among reasoners who forget, trust answers too little or too much, and \
                 sharpen what they predict; with 95 % intervals over users. Exact inference has 1 for discount, weight \
                 and temperature, and no lapses.",
            )
        },
        Group {
            plots: named("sensitivity-"),
            side: sensitivity_table(&sensitivity(eval)),
            ..group(
                "sensitivity",
                "Sensitivity to informativity",
                "What is learnt from the user's choice from an option set, by how much the choice tells: by how much it \
                 raises the log-probability of what is true of the user. Learning is measured as the rise of the \
                 log-probability of the user's choices on held-out sets. Bands are 95 % intervals over users.",
            )
        },
        Group {
            side: replies_table(&part(eval, |measures| measures.replies.as_deref())),
            ..group(
                "replies",
                "Replies written out",
                "What the model writes by itself, read as a user would. A reply that says no option, or several, counts as \
                 wrong.",
            )
        },
    ]
}

fn sensitivity(eval: &EvalFile) -> Vec<(Who, &Sensitivity)> {
    part(eval, |measures| measures.sensitivity.as_deref())
}

/// What a row of a table says of one model.
type Told<'a, T> = &'a dyn Fn(&T) -> Option<String>;

/// A table of one row a quantity and one column a model; none without models.
fn table<T>(all: &[(Who, &T)], rows: &[(&str, Told<T>)]) -> Option<Numbers> {
    if all.is_empty() {
        return None;
    }
    let row = |(title, of): &(&str, Told<T>)| {
        let cells: Vec<Option<String>> = all.iter().map(|(_, one)| of(one)).collect();
        let told = cells.iter().any(Option::is_some);
        let cells = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".into()));
        told.then(|| std::iter::once((*title).to_string()).chain(cells).collect::<Vec<String>>())
    };
    let columns = std::iter::once(String::new()).chain(all.iter().map(|(who, _)| who.name().to_string()));
    Some(Numbers { columns: columns.collect(), rows: rows.iter().filter_map(row).collect() })
}

fn told(estimate: Option<Estimate>) -> Option<String> {
    estimate.map(|estimate| with_error(estimate.value, estimate.standard_error))
}

fn mean(measures: &Measures, measure: Measure) -> Option<String> {
    Some(with_error(measures.get(measure)?, measures.standard_error(measure)))
}

fn probe_table(all: &[(Who, &BeliefProbe)]) -> Option<Numbers> {
    table(
        all,
        &[
            ("KL from the teacher", &|p| mean(&p.reports, Measure::Kl)),
            ("correlation with the teacher's mean level", &|p| told(p.all.with_teacher)),
            ("correlation with the true level", &|p| told(p.all.with_truth)),
            ("accuracy of acting", &|p| mean(&p.acting.as_ref()?.direct, Measure::Accuracy)),
            ("accuracy of acting on what is stated", &|p| {
                mean(&p.acting.as_ref()?.stated, Measure::Accuracy)
            }),
            ("gap between the two", &|p| told(p.acting.as_ref()?.accuracy_gap)),
            ("agreement of the two", &|p| told(p.acting.as_ref()?.agreement)),
            ("KL between the two", &|p| told(p.acting.as_ref()?.kl)),
        ],
    )
}

fn interactive_table(all: &[(Who, &Interactive)]) -> Option<Numbers> {
    table(
        all,
        &[
            ("accuracy, interactive", &|i| mean(&i.own, Measure::Accuracy)),
            ("accuracy, as taught", &|i| mean(&i.as_taught, Measure::Accuracy)),
            ("gap", &|i| told(i.accuracy_gap)),
            ("KL, interactive", &|i| mean(&i.own, Measure::Kl)),
            ("KL, as taught", &|i| mean(&i.as_taught, Measure::Kl)),
            ("gap", &|i| told(i.kl_gap)),
        ],
    )
}

fn reasoner_table(all: &[(Who, &FittedReasoner)]) -> Option<Numbers> {
    let fitted = |fitted: Fitted| match (fitted.low, fitted.high) {
        (Some(low), Some(high)) => format!("{} ({} to {})", value(fitted.value), value(low), value(high)),
        _ => value(fitted.value),
    };
    table(
        all,
        &[
            ("discount of past answers", &|r| Some(fitted(r.discount))),
            ("weight of an answer", &|r| r.evidence_weight.map(fitted)),
            ("weight of the prior", &|r| r.prior_weight.map(fitted)),
            ("lapses supposed of users", &|r| r.lapse.map(fitted)),
            ("temperature", &|r| Some(fitted(r.temperature))),
            ("KL from it (nats)", &|r| told(Some(r.kl))),
            ("KL from exact inference (nats)", &|r| told(Some(r.kl_exact))),
        ],
    )
}

/// What was learnt from sets of similar gain by each model, and by the teacher; in the first moment, or in the last of
/// several.
fn sensitivity_lines(all: &[(Who, &Sensitivity)], last: bool) -> Vec<Line> {
    let moment = |sensitivity: &'_ Sensitivity| match (sensitivity.by_rounds.as_slice(), last) {
        ([first, ..], false) => Some(first.clone()),
        ([_, .., later], true) => Some(later.clone()),
        _ => None,
    };
    let line = |who: Who, at: &SensitivityAt, of: fn(&GainBin) -> Estimate| {
        let point = |bin: &GainBin| {
            let Estimate { value, standard_error } = of(bin);
            let tip = format!(" (after {} rounds, {} sets)", at.rounds, bin.sets);
            Point::mean(bin.gain, value, standard_error, tip)
        };
        let points = at.bins.iter().map(point).collect();
        Line { who, name: who.name().to_string(), points, look: Look::Band }
    };
    let moments: Vec<(Who, SensitivityAt)> =
        all.iter().filter_map(|(who, sensitivity)| Some((*who, moment(sensitivity)?))).collect();
    let models = moments.iter().map(|(who, at)| line(*who, at, |bin| bin.own));
    let teacher = moments.first().map(|(_, at)| line(Who::Teacher, at, |bin| bin.teacher));
    models.chain(teacher).collect()
}

fn sensitivity_table(all: &[(Who, &Sensitivity)]) -> Option<Numbers> {
    let (_, first) = all.first()?;
    let mut columns = vec!["slope on the gain".to_string()];
    columns.extend(all.iter().map(|(who, _)| who.name().to_string()));
    columns.push("teacher".into());
    let dash = || "–".to_string();
    let mut rows = Vec::new();
    for at in &first.by_rounds {
        let same = |sensitivity: &'_ Sensitivity| {
            sensitivity.by_rounds.iter().find(|b| b.rounds == at.rounds).cloned()
        };
        type Slope = fn(SensitivityAt) -> Option<Estimate>;
        let slopes: [(&str, Slope, Option<Estimate>); 2] = [
            ("", |at| at.slope, at.teacher_slope),
            (", expected", |at| at.slope_expected, at.teacher_slope_expected),
        ];
        for (name, own, teacher) in slopes {
            let mut row = vec![format!("after {} rounds{name}", at.rounds)];
            row.extend(all.iter().map(|(_, s)| told(same(s).and_then(own)).unwrap_or_else(dash)));
            row.push(told(teacher).unwrap_or_else(dash));
            rows.push(row);
        }
    }
    Some(Numbers { columns, rows })
}

fn replies_table(all: &[(Who, &Replies)]) -> Option<Numbers> {
    table(
        all,
        &[
            ("replies", &|r| Some(r.replies.to_string())),
            ("say no option, or several", &|r| Some(r.parse_failures.to_string())),
            ("in the words of the dialogue", &|r| told(r.as_asked)),
            ("in other words", &|r| told(r.otherwise)),
            ("came to no end", &|r| told(r.unended)),
            ("accuracy", &|r| told(r.accuracy)),
            ("agreement with the teacher", &|r| told(r.agreement)),
            ("as the labels' probabilities say", &|r| told(r.as_scored)),
        ],
    )
}
