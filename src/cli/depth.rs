//! Looking into the episodes that were measured: held-out option sets, stated beliefs, interactive dialogues. Shared by
//! `eval`, `run` and `transfer`.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use comfy_table::Cell;

use super::eval::{Measured, TOKENS_AT_ONCE, TestSet, measure};
use super::progress::Progress;
use super::table::{self, Column};
use super::teach::{self, Origin};
use super::{note, print};
use crate::config::RunConfig;
use crate::eval::{
    Chosen, EvalConfig, InDepth, Looking, TESTS, interact, learnt_from_sets, look_into, replies, users,
};
use crate::metrics::{
    BeliefProbe, Estimate, EvalFile, Fitted, FittedReasoner, Interactive, Measure, Measures, Model,
    Prediction, Replies, Sensitivity, SensitivityAt, summarise, summarise_teacher,
};
use crate::model::decoder::Decoder;
use crate::rng;
use crate::teacher::{Domain, Explained, Kind, Replayer, fit_reasoner};
use crate::tokens::{Line, Pipeline};
use crate::world::World;

/// What is looked into, and who taught the episodes.
pub(super) struct Depth {
    pub eval: EvalConfig,
    pub origin: Option<Origin>,
    /// The keys of `[eval]` that the user gave, who is told where they mean nothing.
    asked: BTreeSet<String>,
    /// Whether the user says who taught, so that anything else is a mistake; what merely lies beside the episodes may be
    /// of another version, or of a world whose file has moved.
    insists: bool,
    /// The world that the episodes are of, once they have been seen to be.
    world: Option<World>,
}

/// A model and the episodes that it is measured on.
pub(super) struct Subject<'a> {
    pub decoder: &'a Decoder,
    pub pipeline: &'a Pipeline,
    pub test: &'a TestSet,
}

impl Depth {
    /// As the command line and the config that it names say, and what lies beside the episodes.
    pub(super) fn of(measured: &Measured, config: Option<&RunConfig>) -> Result<Self> {
        let asked = RunConfig::eval_keys(measured.config.as_deref(), &measured.set)?;
        match config {
            Some(config) => Self::of_run(config, &measured.episodes, asked),
            None => {
                let origin = teach::origin(&measured.episodes)?;
                let eval = RunConfig::eval_settings(&measured.set)?;
                Ok(Self { eval, origin, asked, insists: false, world: None })
            }
        }
    }

    /// As a run's config says, or what lies beside the episodes where it names no teacher.
    pub(super) fn of_run(
        config: &RunConfig,
        episodes: &std::path::Path,
        asked: BTreeSet<String>,
    ) -> Result<Self> {
        match Self::of_teacher(config, asked.clone()) {
            Some(depth) => Ok(depth),
            None => {
                let origin = teach::origin(episodes)?;
                Ok(Self { eval: config.eval.clone(), origin, asked, insists: false, world: None })
            }
        }
    }

    /// As a config with a teacher says; none where it has none.
    pub(super) fn of_teacher(config: &RunConfig, asked: BTreeSet<String>) -> Option<Self> {
        let teacher = config.teacher.clone()?;
        let origin = Some(Origin { teacher, seed: config.run.seed });
        Some(Self { eval: config.eval.clone(), origin, asked, insists: true, world: None })
    }

    /// Makes sure that the first of the episodes is what its teacher teaches, before anything is measured; and says what
    /// was asked for and means nothing here.
    pub(super) fn prepare(&mut self, lines: &[Line]) -> Result<()> {
        if let Some(kind) =
            self.origin.as_ref().map(|origin| origin.teacher.kind).filter(|k| *k != Kind::Bayes)
        {
            let oracle = matches!(kind, Kind::Oracle | Kind::NoisyOracle);
            let why = if oracle { ", who knows what the user will answer (so its entropy is 0)" } else { "" };
            note(&format!(
                "what is measured against the teacher is measured against {:?}{why}, not against exact inference; for that \
                 use the episodes of the same config with teacher.kind = \"bayes\"",
                kind.name()
            ));
        }
        let why = match self.world_of(lines) {
            Ok(Ok(world)) => {
                self.tell(&|key| obstacle(key, &world).map(String::from));
                self.world = Some(world);
                return Ok(());
            }
            Ok(Err(why)) => why,
            Err(error) if self.insists => return Err(error),
            Err(error) => {
                let why = format!("{error:#}");
                if !KEYS.iter().any(|key| self.is_asked(key)) {
                    note(&format!("the dialogues alone are measured: {why}"));
                }
                why
            }
        };
        self.tell(&|_| Some(why.clone()));
        Ok(())
    }

    /// Whether the user asks for what a key of `[eval]` measures.
    fn is_asked(&self, key: &str) -> bool {
        let eval = &self.eval;
        let is_wanted = match key {
            "held_out_sets" => eval.held_out_sets > 0,
            "probes" => eval.probes > 0,
            "interactive" => eval.interactive,
            "sensitivity" => eval.sensitivity > 0,
            "reasoner" => eval.reasoner,
            _ => false,
        };
        is_wanted && self.asked.contains(key)
    }

    /// Names in one note the keys that were asked for and that something stands against.
    fn tell(&self, obstacle: &dyn Fn(&str) -> Option<String>) {
        let mut by_reason: Vec<(String, Vec<String>)> = Vec::new();
        for key in KEYS.into_iter().filter(|key| self.is_asked(key)) {
            let Some(why) = obstacle(key) else { continue };
            let key = format!("eval.{key}");
            match by_reason.iter_mut().find(|(known, _)| *known == why) {
                Some((_, keys)) => keys.push(key),
                None => by_reason.push((why, vec![key])),
            }
        }
        if !by_reason.is_empty() {
            let told = by_reason.iter().map(|(why, keys)| format!("{}: {why}", keys.join(", ")));
            note(&format!("not measured: {}", told.collect::<Vec<_>>().join("; ")));
        }
    }

    /// Measures a model on all answers, and looks into episodes; with the predictions of all answers.
    pub(super) fn measure(
        &self,
        title: &'static str,
        model: Model,
        subject: &Subject,
    ) -> Result<(EvalFile, Vec<Prediction>)> {
        let predictions = measure(title, subject.decoder, &subject.test.sequences)?;
        let mut file = subject.test.measured(model, &predictions)?;
        self.look_into(&mut file, model, subject, &predictions)?;
        Ok((if subject.test.has_teacher() { file } else { file.without_teacher() }, predictions))
    }

    /// What the results are a function of, beside model and episodes.
    pub(super) fn fingerprint(&self) -> String {
        // How many episodes are measured and stored, the episodes say themselves.
        let eval = EvalConfig { episodes: 0, examples: 0, ..self.eval.clone() };
        format!("{eval:?} {:?}", self.origin.as_ref().map(|origin| origin.seed))
    }

    /// Adds to a model's measures what the episodes show when looked into; `predictions` are those of all their answers.
    fn look_into(
        &self,
        file: &mut EvalFile,
        model: Model,
        subject: &Subject,
        predictions: &[Prediction],
    ) -> Result<()> {
        if self.eval.generate > 0 {
            let replies = self.generate(subject, predictions)?;
            set(file, model, |measures| measures.replies = replies.map(Box::new));
        }
        let (Some(origin), Some(world)) = (&self.origin, &self.world) else { return Ok(()) };
        let (indices, chosen) = self.chosen(subject.test);
        let replayer = Replayer::new(&origin.teacher, world, origin.seed);
        let looking = Looking {
            config: &self.eval,
            decoder: subject.decoder,
            pipeline: subject.pipeline,
            replayer: &replayer,
            tokens_at_once: TOKENS_AT_ONCE,
        };
        let asks_sets = self.eval.held_out_sets > 0 && obstacle("held_out_sets", world).is_none();
        if asks_sets || (self.eval.probes > 0 && obstacle("probes", world).is_none()) {
            let progress = Progress::new("look into", 0, chosen.len() as u64);
            let found = look_into(looking, &chosen, &|done| progress.at(done as u64, "episodes"))?;
            progress.finish();
            add_found(file, model, &found)?;
        }
        if self.eval.interactive {
            let progress = Progress::new("interact", 0, chosen.len() as u64);
            let own = interact(looking, &chosen, &|done| progress.at(done as u64, "episodes"))?;
            progress.finish();
            let ranges = subject.test.ranges();
            let as_taught: Vec<Prediction> =
                indices.iter().flat_map(|&i| predictions[ranges[i].clone()].iter().cloned()).collect();
            let interactive = Some(Box::new(Interactive::new(&own, &as_taught)?));
            set(file, model, |measures| measures.interactive = interactive);
        }
        if self.eval.sensitivity > 0 && obstacle("sensitivity", world).is_none() {
            let progress = Progress::new("informativity", 0, chosen.len() as u64);
            let learnt = learnt_from_sets(looking, &chosen, &|done| progress.at(done as u64, "episodes"))?;
            progress.finish();
            if learnt.is_empty() {
                note("no option set was chosen from: the dialogues with them are too long for the model");
            } else {
                let sensitivity = Some(Box::new(Sensitivity::new(TESTS, &learnt)?));
                set(file, model, |measures| measures.sensitivity = sensitivity);
            }
        }
        if self.eval.reasoner && obstacle("reasoner", world).is_none() {
            let reasoner = explain(&replayer, subject.test, predictions)?;
            set(file, model, |measures| measures.reasoner = reasoner.map(Box::new));
        }
        Ok(())
    }

    /// The world that the episodes are of, if the first of them is what its teacher teaches; or why they cannot be looked
    /// into.
    fn world_of(&self, lines: &[Line]) -> Result<Result<World, String>> {
        let Some(origin) = &self.origin else {
            return Ok(Err(
                "nothing says who taught the episodes (eval --config CONFIG does, or inputs.json beside \
                           them)"
                    .into(),
            ));
        };
        let world = match origin.teacher.build()? {
            Domain::Grid(world) => world,
            Domain::Process(process) => {
                return Ok(Err(format!(
                    "the users of the {} world are drawn, not listed, so its dialogues are measured as they are",
                    process.name()
                )));
            }
        };
        origin.teacher.validate()?;
        let first = lines.iter().find_map(|line| match line {
            Line::Episode(episode) => Some(episode),
            Line::Tokenised(_) => None,
        });
        let Some(first) = first else {
            return Ok(Err("the episodes are tokens without their dialogues".into()));
        };
        Replayer::new(&origin.teacher, &world, origin.seed).replay(first)?;
        Ok(Ok(world))
    }

    /// Replies written out by the model.
    fn generate(&self, subject: &Subject, predictions: &[Prediction]) -> Result<Option<Replies>> {
        let (test, ranges) = (subject.test, subject.test.ranges());
        let users = users(&test.sequences);
        let indices = self.eval.choose_generated(test.sequences.len());
        let progress = Progress::new("generate", 0, indices.len() as u64);
        let mut all = Vec::new();
        for (done, &i) in indices.iter().enumerate() {
            if let Line::Episode(episode) = &test.lines[i] {
                let predictions = &predictions[ranges[i].clone()];
                let written = replies(subject.decoder, subject.pipeline, users[i], episode, predictions);
                all.extend(written.with_context(|| format!("episode {:?}", episode.id))?);
            }
            progress.at(done as u64 + 1, "episodes");
        }
        progress.finish();
        if all.is_empty() { Ok(None) } else { Replies::new(&all).map(Some) }
    }

    /// The episodes to look into, with their indices among those measured.
    fn chosen<'a>(&self, test: &'a TestSet) -> (Vec<usize>, Vec<Chosen<'a>>) {
        let users = users(&test.sequences);
        let one = |i: usize| match &test.lines[i] {
            Line::Episode(episode) => {
                Some((i, Chosen { user: users[i], episode, sequence: &test.sequences[i] }))
            }
            Line::Tokenised(_) => None,
        };
        self.eval.choose_in_depth(test.sequences.len()).into_iter().filter_map(one).unzip()
    }
}

/// The keys of `[eval]` that need to know who taught.
const KEYS: [&str; 5] = ["held_out_sets", "probes", "interactive", "sensitivity", "reasoner"];

/// Why what a key of `[eval]` measures cannot be measured in a world; none where it can.
fn obstacle(key: &str, world: &World) -> Option<&'static str> {
    match key {
        "held_out_sets" | "sensitivity" if !world.has_option_sets() => {
            Some("this world has no option sets to be drawn freely")
        }
        "sensitivity" | "reasoner" if !world.has_exact_teacher() => {
            Some("no exact teacher exists for this world")
        }
        "probes" if world.attributes().is_empty() => {
            Some("users of this world have no levels to be asked for")
        }
        _ => None,
    }
}

fn set(file: &mut EvalFile, model: Model, change: impl FnOnce(&mut Measures)) {
    if let Some(measures) = file.measures_mut(model) {
        change(measures);
    }
}

/// Hypotheses times answers that a reasoner is fitted to at most: beyond it, some episodes speak for all.
const MOST_CELLS: usize = 20_000_000;

/// The reasoner that explains the predictions best.
fn explain(
    replayer: &Replayer,
    test: &TestSet,
    predictions: &[Prediction],
) -> Result<Option<FittedReasoner>> {
    let (users, ranges) = (users(&test.sequences), test.ranges());
    let hypotheses: usize = replayer.world().factors().iter().map(|factor| factor.prior.len()).sum();
    let mut order: Vec<usize> = (0..test.lines.len()).collect();
    // Files go by users, whose first are alike.
    rng::stream(0, "eval/reasoner", 0).shuffle(&mut order);
    let mut cells = 0;
    let mut within = |i: &usize| {
        cells += hypotheses * ranges[*i].len();
        cells <= MOST_CELLS
    };
    let taken = order.iter().position(|i| !within(i)).unwrap_or(order.len()).max(1);
    if taken < order.len() {
        note(&format!(
            "the reasoner is fitted to {taken} of {} episodes, drawn at random: more would take long with {hypotheses} \
             hypotheses",
            order.len()
        ));
        order.truncate(taken);
    }
    // In the order of the file, so that sums are those of before where all are taken.
    order.sort_unstable();
    let mut replays = Vec::new();
    for i in order {
        let Line::Episode(episode) = &test.lines[i] else { continue };
        replays.push((i, replayer.replay(episode)?));
    }
    let explained: Vec<Explained> = (replays.iter())
        .map(|(i, replay)| Explained {
            user: users[*i],
            replay,
            predictions: &predictions[ranges[*i].clone()],
        })
        .collect();
    if explained.is_empty() {
        return Ok(None);
    }
    fit_reasoner(replayer.world(), replayer.expected_change(), &explained).map(Some)
}

fn add_found(file: &mut EvalFile, model: Model, found: &InDepth) -> Result<()> {
    if found.too_long > 0 {
        note(&format!(
            "{} questions aside were not asked: the dialogues with them are longer than tokens.max_length or than the \
             model takes",
            found.too_long
        ));
    }
    if !found.held_out.is_empty() {
        let measures = summarise(&found.held_out)?;
        set(file, model, |all| all.held_out = Some(Box::new(measures)));
        file.teacher.held_out = Some(Box::new(summarise_teacher(&found.held_out)?));
    }
    if !found.reports.is_empty() {
        let probe = BeliefProbe::new(&found.reports, &found.acted)?;
        set(file, model, |all| all.probe = Some(Box::new(probe)));
        let teachers: Vec<Prediction> = found.reports.iter().map(Prediction::of_teacher).collect();
        file.teacher.probe = Some(Box::new(BeliefProbe::new(&teachers, &found.teacher_acted)?));
    }
    Ok(())
}

/// Whether there is anything that [`print_tables`] prints.
pub(super) fn has_tables(columns: &[Column]) -> bool {
    columns.iter().any(|Column { measures: m, .. }| {
        let parts = [m.held_out.is_some(), m.probe.is_some(), m.interactive.is_some(), m.reasoner.is_some()];
        parts.contains(&true) || m.sensitivity.is_some() || m.replies.is_some()
    })
}

/// Prints what episodes showed when looked into.
pub(super) fn print_tables(columns: &[Column]) {
    let held_out = part(columns, |measures| measures.held_out.as_deref());
    if let Some(first) = held_out.first() {
        print(&format!(
            "\n{} answers to held-out option sets, asked after each round without feedback\n",
            first.measures.answers
        ));
        print(&table::overall(&held_out));
        print("");
        print(&table::by_observations("rounds", &held_out));
    }
    print_probes(columns);
    print_interactive(columns);
    print_reasoners(columns);
    print_sensitivity(columns);
    print_replies(columns);
}

/// The columns with a part of their measures; none that have no such part.
fn part<'a>(columns: &[Column<'a>], of: impl Fn(&'a Measures) -> Option<&'a Measures>) -> Vec<Column<'a>> {
    columns.iter().filter_map(|c| Some(Column { title: c.title, measures: of(c.measures)? })).collect()
}

fn estimate(estimate: Option<Estimate>) -> Cell {
    table::with_error(estimate.map(|e| e.value), estimate.and_then(|e| e.standard_error))
}

fn mean(measures: &Measures, measure: Measure) -> Option<Estimate> {
    let value = measures.get(measure)?;
    Some(Estimate { value, standard_error: measures.standard_error(measure) })
}

fn print_probes(columns: &[Column]) {
    let probes: Vec<(&str, &BeliefProbe)> =
        columns.iter().filter_map(|c| Some((c.title, c.measures.probe.as_deref()?))).collect();
    let Some((_, first)) = probes.first() else { return };
    print(&format!("\n{} beliefs stated on copies of the dialogues\n", first.reports.answers));
    let reports = part(columns, |measures| measures.probe.as_deref().map(|probe| probe.reports.as_ref()));
    print(&table::overall(&reports));
    print("");
    print(&table::by_observations("earlier answers", &reports));
    let mut table = table::new_table(std::iter::once("").chain(probes.iter().map(|(title, _)| *title)));
    type Of = fn(&BeliefProbe) -> Option<Estimate>;
    let rows: [(&str, Of); 7] = [
        ("correlation with the teacher's mean level", |p| p.all.with_teacher),
        ("correlation with the true level", |p| p.all.with_truth),
        ("accuracy of acting", |p| mean(&p.acting.as_ref()?.direct, Measure::Accuracy)),
        ("accuracy of acting on the stated beliefs", |p| mean(&p.acting.as_ref()?.stated, Measure::Accuracy)),
        ("gap between the two", |p| p.acting.as_ref()?.accuracy_gap),
        ("agreement of the two", |p| p.acting.as_ref()?.agreement),
        ("KL between the two (nats)", |p| p.acting.as_ref()?.kl),
    ];
    for (title, of) in rows {
        table.add_row(
            std::iter::once(Cell::new(title)).chain(probes.iter().map(|(_, probe)| estimate(of(probe)))),
        );
    }
    print("");
    print(&table.to_string());
}

fn print_interactive(columns: &[Column]) {
    let all: Vec<(&str, &Interactive)> =
        columns.iter().filter_map(|c| Some((c.title, c.measures.interactive.as_deref()?))).collect();
    let Some((_, first)) = all.first() else { return };
    print(&format!(
        "\n{} answers where the dialogue holds the model's own recommendations, beside the same as taught\n",
        first.own.answers
    ));
    for (title, interactive) in all {
        let beside = [
            Column { title: "interactive", measures: &interactive.own },
            Column { title: "as taught", measures: &interactive.as_taught },
        ];
        let gap = |estimate: Option<Estimate>| match estimate {
            Some(Estimate { value, standard_error: Some(error) }) => format!("{value:+.4} ± {error:.4}"),
            Some(Estimate { value, .. }) => format!("{value:+.4}"),
            None => "-".into(),
        };
        print(&format!(
            "{title}: accuracy {}, KL {} nats by its own recommendations\n",
            gap(interactive.accuracy_gap),
            gap(interactive.kl_gap)
        ));
        print(&table::by_observations("earlier answers", &beside));
        print("");
    }
}

fn print_reasoners(columns: &[Column]) {
    let all: Vec<(&str, &FittedReasoner)> =
        columns.iter().filter_map(|c| Some((c.title, c.measures.reasoner.as_deref()?))).collect();
    let Some((_, first)) = all.first() else { return };
    print(&format!(
        "\nthe reasoner that explains {} answers best, with 95 % intervals (exact inference: 1, 1, 0 and 1)\n",
        first.answers
    ));
    let mut table = table::new_table(std::iter::once("").chain(all.iter().map(|(title, _)| *title)));
    type Of = fn(&FittedReasoner) -> Option<Fitted>;
    let rows: [(&str, Of); 4] = [
        ("discount of past answers", |r| Some(r.discount)),
        ("weight of an answer (one over the prior's)", |r| r.evidence_weight),
        ("lapses supposed of users", |r| r.lapse),
        ("temperature", |r| Some(r.temperature)),
    ];
    for (title, of) in rows {
        if all.iter().any(|(_, reasoner)| of(reasoner).is_some()) {
            let cells = all.iter().map(|(_, reasoner)| Cell::new(of(reasoner).map_or("-".into(), told)));
            table.add_row(std::iter::once(Cell::new(title)).chain(cells));
        }
    }
    type Kl = fn(&FittedReasoner) -> Estimate;
    let unexplained: [(&str, Kl); 2] =
        [("KL from it (nats)", |r| r.kl), ("KL from exact inference (nats)", |r| r.kl_exact)];
    for (title, of) in unexplained {
        let cells = all.iter().map(|(_, reasoner)| estimate(Some(of(reasoner))));
        table.add_row(std::iter::once(Cell::new(title)).chain(cells));
    }
    print(&table.to_string());
}

/// A parameter with its interval.
fn told(fitted: Fitted) -> String {
    let value = table::format_number(fitted.value);
    match (fitted.low, fitted.high) {
        (Some(low), Some(high)) => {
            format!("{value} ({} to {})", table::format_number(low), table::format_number(high))
        }
        _ if fitted.at_limit => format!("{value} (the limit)"),
        _ => format!("{value} (not determined)"),
    }
}

fn print_sensitivity(columns: &[Column]) {
    let all: Vec<(&str, &Sensitivity)> =
        columns.iter().filter_map(|c| Some((c.title, c.measures.sensitivity.as_deref()?))).collect();
    for (title, sensitivity) in all {
        print(&format!(
            "\n{title}: what is learnt from option sets that tell more or less, as the rise of the log-probability of the \
             user's choices on {} held-out sets (nats)\n",
            sensitivity.tests
        ));
        for at in &sensitivity.by_rounds {
            print(&sensitivity_table(at));
            let slopes = [
                ("slope on what a set tells", at.slope, at.teacher_slope),
                ("slope on what it was expected to tell", at.slope_expected, at.teacher_slope_expected),
            ];
            let mut table = table::new_table(["", title, "teacher"].into_iter());
            for (name, own, teacher) in slopes {
                table.add_row([Cell::new(name), estimate(own), estimate(teacher)]);
            }
            table.add_row([
                Cell::new("correlation with the teacher"),
                estimate(at.correlation),
                Cell::new(""),
            ]);
            print("");
            print(&table.to_string());
            print("");
        }
    }
}

fn sensitivity_table(at: &SensitivityAt) -> String {
    let after = format!("after {} rounds, sets that tell (nats)", at.rounds);
    let gains = at.bins.iter().map(|bin| table::format_number(bin.gain));
    let mut table = table::new_table(std::iter::once(after).chain(gains));
    type Of = fn(&crate::metrics::GainBin) -> Estimate;
    let rows: [(&str, Of); 4] = [
        ("learnt", |bin| bin.own),
        ("learnt by the teacher", |bin| bin.teacher),
        ("accuracy then", |bin| bin.own_accuracy),
        ("the teacher's", |bin| bin.teacher_accuracy),
    ];
    for (name, of) in rows {
        let cells = at.bins.iter().map(|bin| estimate(Some(of(bin))));
        table.add_row(std::iter::once(Cell::new(name)).chain(cells));
    }
    table.to_string()
}

fn print_replies(columns: &[Column]) {
    let all: Vec<(&str, &Replies)> =
        columns.iter().filter_map(|c| Some((c.title, c.measures.replies.as_deref()?))).collect();
    let Some((_, first)) = all.first() else { return };
    print(&format!("\n{} replies written out freely and read as a user would\n", first.replies));
    let mut table = table::new_table(std::iter::once("").chain(all.iter().map(|(title, _)| *title)));
    let failures = all.iter().map(|(_, replies)| table::integer(replies.parse_failures));
    table.add_row(std::iter::once(Cell::new("say no option, or several")).chain(failures));
    type Of = fn(&Replies) -> Option<Estimate>;
    let rows: [(&str, Of); 6] = [
        ("in the words of the dialogue", |r| r.as_asked),
        ("in other words", |r| r.otherwise),
        ("came to no end", |r| r.unended),
        ("accuracy", |r| r.accuracy),
        ("agreement with the teacher", |r| r.agreement),
        ("as the labels' probabilities say", |r| r.as_scored),
    ];
    for (name, of) in rows {
        let cells = all.iter().map(|(_, replies)| estimate(of(replies)));
        table.add_row(std::iter::once(Cell::new(name)).chain(cells));
    }
    print(&table.to_string());
}
