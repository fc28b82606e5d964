//! `bayesteach transfer`: one model with any adapters, measured on any worlds.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use comfy_table::Cell;
use serde::Serialize;

use super::depth::{self, Depth, Subject};
use super::eval::{self, TestSet};
use super::model::{ComputeArgs, ModelArgs, Source, TemplateArgs, adapter_folder, run_of, tokens_of};
use super::table::{self, Column};
use super::train::train_file_of;
use super::{Context, Done, note, print, warn};
use crate::config::{RunConfig, storage};
use crate::error::usage;
use crate::files;
use crate::hub::Files;
use crate::metrics::{Estimate, Measure, Measures, Model};
use crate::model::decoder::Decoder;
use crate::teacher;
use crate::tokens::{Line, Pipeline, Policy, TokensConfig, read_lines};

#[derive(Args)]
pub(super) struct TransferArgs {
    /// Configs of the worlds to measure on, each with settings of its own if wanted:
    /// flights.toml::teacher.rounds=30::teacher.flights.choice={lapse=0.1}; or files of episodes, such as imported people
    #[arg(required = true, value_name = "CONFIG|EPISODES.jsonl[::KEY=VALUE]…")]
    worlds: Vec<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// A PEFT adapter, or a run that made one; may be given several times
    #[arg(long = "adapter", value_name = "DIR")]
    adapters: Vec<PathBuf>,
    /// Episodes of each world; if not given, as its config's eval.episodes says, or the whole file
    #[arg(long)]
    episodes: Option<usize>,
    /// Write all measures as JSON
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    /// For the model without an adapter
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// The file that `--out` writes.
#[derive(Serialize)]
struct TransferFile {
    format_version: u32,
    model: String,
    worlds: Vec<WorldOf>,
    rows: Vec<Row>,
}

/// A world that was measured on.
#[derive(Serialize)]
struct WorldOf {
    name: String,
    config: String,
    world: String,
    episodes: usize,
    /// The teacher's own measures, where there is a teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher: Option<Measures>,
    #[serde(skip)]
    lines: Vec<Line>,
    #[serde(skip)]
    depth: Depth,
    #[serde(skip)]
    on_too_long: Policy,
}

/// The model without an adapter, or with one.
#[derive(Serialize)]
struct Row {
    name: String,
    adapter: Option<PathBuf>,
    cells: Vec<Measured>,
}

/// One model on one world.
#[derive(Serialize)]
struct Measured {
    world: String,
    /// Episodes of users that the adapter was trained on, in a world of that name.
    episodes_of_trained_users: usize,
    /// None where the episodes cannot be measured with this model.
    #[serde(skip_serializing_if = "Option::is_none")]
    measures: Option<Measures>,
    /// Why they cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_measured: Option<String>,
}

pub(super) fn command(args: &TransferArgs, context: &Context) -> Result<Done> {
    if let Some(out) = &args.out {
        let worlds = args.worlds.iter().filter_map(|world| world.split("::").next()).map(Path::new);
        let adapters: Vec<PathBuf> = args.adapters.iter().map(|dir| adapter_folder(dir)).collect();
        let inputs =
            worlds.chain([Path::new(&args.model.source)]).chain(adapters.iter().map(PathBuf::as_path));
        files::check_apart(&[out], &inputs.collect::<Vec<_>>())?;
        files::check_writable(out)?;
    }
    let mut worlds = Vec::new();
    for world in &args.worlds {
        let is_taken = |name: &str| worlds.iter().any(|other: &WorldOf| other.name == name);
        let world = WorldOf::find(world, args.episodes, &is_taken)?;
        if is_taken(&world.name) {
            return Err(usage(format!(
                "two worlds are called {:?}: give one another run.name, or the file another name",
                world.name
            )));
        }
        worlds.push(world);
    }
    let source = Source::find(&args.model.source, None, Files::All, context)?;
    let mut rows = Vec::new();
    let ended = measure_all(args, &source, &mut worlds, &mut rows);
    // Whatever ended it, what was measured is worth its time.
    if rows.iter().any(|row| row.cells.iter().any(|cell| cell.measures.is_some())) {
        print_tables(&worlds, &rows);
        if let Some(out) = &args.out {
            let model = source.snapshot.name.clone();
            files::write_json(out, &TransferFile { format_version: 1, model, worlds, rows })?;
        }
    }
    ended?;
    Ok(Done::Finished)
}

/// Measures the model without an adapter and with each, on every world. What cannot be measured on is told and left out; it
/// is an error in the end, unless the config says to drop it.
fn measure_all(
    args: &TransferArgs,
    source: &Source,
    worlds: &mut [WorldOf],
    rows: &mut Vec<Row>,
) -> Result<()> {
    let (device, dtype) = args.compute.open("auto", "auto")?;
    let mut decoder = source.load(dtype, storage(&args.compute.quantization)?, &device)?;
    let mut failed = None;
    for adapter in std::iter::once(None).chain(args.adapters.iter().map(Some)) {
        let (name, tokens) = match adapter {
            None => ("baseline".to_string(), args.template.over(TokensConfig::default())),
            Some(dir) => {
                decoder.set_adapter(Some(&source.adapter(dir)?))?;
                (name_of(dir, rows), tokens_of(&adapter_folder(dir))?)
            }
        };
        let trained = adapter.map(|dir| trained_users(dir)).transpose()?.unwrap_or_default();
        let mut pipeline = source.pipeline(&tokens)?;
        rows.push(Row { name: name.clone(), adapter: adapter.cloned(), cells: Vec::new() });
        let model = if adapter.is_some() { Model::FineTuned } else { Model::Baseline };
        for world in worlds.iter_mut() {
            note(&format!("{name} on {}", world.name));
            pipeline = pipeline.with_too_long(world.on_too_long);
            let is_trained = |line: &&Line| user_of(line).is_some_and(|user| trained.contains(&user));
            let shared = world.lines.iter().filter(is_trained).count();
            let (measures, not_measured) =
                match TestSet::encode(&pipeline, world.lines.clone(), Path::new(&world.config)) {
                    Ok(test) => (Some(world.measure(&decoder, &pipeline, &test, model)?), None),
                    Err(error) => {
                        let why = format!("{error:#}");
                        warn(&format!("warning: {name} cannot be measured on {}: {why}", world.name));
                        if world.on_too_long == Policy::Error {
                            failed.get_or_insert(error);
                        }
                        (None, Some(why))
                    }
                };
            if shared > 0 {
                warn(&format!(
                    "warning: {shared} of {} episodes of {} are of users that {name} was trained on",
                    world.lines.len(),
                    world.name
                ));
            }
            let world = world.name.clone();
            let cell = Measured { world, episodes_of_trained_users: shared, measures, not_measured };
            if let Some(row) = rows.last_mut() {
                row.cells.push(cell);
            }
        }
    }
    match failed {
        Some(error) => Err(error.context(
            "not everything could be measured; the rest was (CONFIG::tokens.on_too_long=drop leaves episodes out that are \
             too long)",
        )),
        None => Ok(()),
    }
}

impl WorldOf {
    /// What an argument of the command line names; a file is called by its path where its own name is taken.
    fn find(argument: &str, episodes: Option<usize>, is_taken: &dyn Fn(&str) -> bool) -> Result<WorldOf> {
        let mut parts = argument.split("::");
        let path = Path::new(parts.next().unwrap_or_default());
        let settings: Vec<String> = parts.map(str::to_string).collect();
        match path.extension().is_some_and(|extension| extension == "jsonl") {
            true => {
                let world = read_world(argument, path, settings, episodes)?;
                let name = if is_taken(&world.name) { argument.to_owned() } else { world.name };
                Ok(WorldOf { name, ..world })
            }
            false => teach_world(argument, path, &settings, episodes),
        }
    }

    /// Measures a model as `eval` does; its teacher is taken from the first that is measured.
    fn measure(
        &mut self,
        decoder: &Decoder,
        pipeline: &Pipeline,
        test: &TestSet,
        model: Model,
    ) -> Result<Measures> {
        let (mut file, _) = self.depth.measure("measure", model, &Subject { decoder, pipeline, test })?;
        let measures = file.measures_mut(model).cloned().context("the model was measured")?;
        if file.has_teacher() {
            self.teacher.get_or_insert(file.teacher);
        }
        Ok(measures)
    }
}

/// A world's name in the tables: a config's or a file's, and the settings on top of it.
fn name_with(name: &str, settings: &[String]) -> String {
    // The last part of the key; a number may have a point of its own.
    let shown = |setting: &String| match setting.split_once('=') {
        Some((key, value)) => format!("{}={value}", key.rsplit('.').next().unwrap_or(key).trim()),
        None => setting.clone(),
    };
    let all: Vec<String> = std::iter::once(name.to_owned()).chain(settings.iter().map(shown)).collect();
    all.join(" ")
}

/// The episodes of a file: people who were imported, or what was taught before.
fn read_world(
    argument: &str,
    path: &Path,
    settings: Vec<String>,
    episodes: Option<usize>,
) -> Result<WorldOf> {
    let is_possible =
        |s: &&String| s.trim_start().starts_with("eval.") || s.trim_start().starts_with("tokens.on_too_long");
    if let Some(wrong) = settings.iter().find(|setting| !is_possible(setting)) {
        return Err(usage(format!(
            "{}: {wrong:?} cannot be set for episodes that are there already, only eval.… and tokens.on_too_long can",
            path.display()
        )));
    }
    let on_too_long = RunConfig::tokens_settings(TokensConfig::default(), &settings)?.on_too_long;
    let stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let name = name_with(&stem, &settings);
    let mut depth = Depth::of(&eval::Measured { episodes: path.into(), config: None, set: settings }, None)?;
    if let Some(episodes) = episodes {
        depth.eval.episodes = episodes;
    }
    let lines = depth.eval.choose(read_lines(path)?);
    depth.prepare(&lines)?;
    let world = lines.iter().find_map(|line| match line {
        Line::Episode(episode) => Some(episode.world.clone()),
        Line::Tokenised(_) => None,
    });
    Ok(WorldOf {
        name,
        config: argument.to_string(),
        world: world.unwrap_or_default(),
        episodes: lines.len(),
        teacher: None,
        lines,
        depth,
        on_too_long,
    })
}

/// Draws a world's episodes, some of its test part: of users that a run of the same config does not train on.
fn teach_world(argument: &str, path: &Path, settings: &[String], episodes: Option<usize>) -> Result<WorldOf> {
    let asked = RunConfig::eval_keys(Some(path), settings)?;
    let mut config = RunConfig::load(path, settings)?;
    if let Some(episodes) = episodes {
        config.eval.episodes = episodes;
    }
    let choose = |numbers: Vec<usize>| config.eval.choose(numbers);
    let taught = teacher::teach_some(config.teacher()?, &config.split, config.run.seed, &choose)?;
    let world = match taught.first() {
        Some(episode) => episode.world.clone(),
        None => return Err(usage(format!("{}: no episodes were drawn", path.display()))),
    };
    let lines: Vec<Line> = taught.into_iter().map(Line::Episode).collect();
    let mut depth = Depth::of_teacher(&config, asked).context("the config has a teacher")?;
    depth.prepare(&lines)?;
    Ok(WorldOf {
        name: name_with(&config.run.name, settings),
        config: argument.to_string(),
        world,
        episodes: lines.len(),
        teacher: None,
        lines,
        depth,
        on_too_long: config.tokens.on_too_long,
    })
}

/// What an adapter is called in the table: as its run, or its folder; with a number where that is taken.
fn name_of(dir: &Path, rows: &[Row]) -> String {
    let run = run_of(&adapter_folder(dir)).ok().flatten().map(|run| run.run.name);
    let folder = || dir.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = run.or_else(folder).unwrap_or_else(|| dir.display().to_string());
    let taken = |name: &str| rows.iter().any(|row| row.name == name);
    let mut numbered = name.clone();
    for number in 2.. {
        if !taken(&numbered) {
            break;
        }
        numbered = format!("{name} {number}");
    }
    numbered
}

/// Whose an episode is: its world, its user, and the beginning of its id, since users of other origin may have the same name.
type Whose = (String, String, String);

/// Whose the episodes are that an adapter's run was trained on; none where that is not known.
fn trained_users(adapter: &Path) -> Result<HashSet<Whose>> {
    let Some(file) = train_file_of(&adapter_folder(adapter))? else { return Ok(HashSet::new()) };
    Ok(read_lines(&file)?.iter().filter_map(user_of).collect())
}

fn user_of(line: &Line) -> Option<Whose> {
    match line {
        Line::Episode(episode) if !episode.user.is_empty() => {
            let begins = episode.id.rsplit_once('-').map_or("", |(begins, _)| begins);
            Some((episode.world.clone(), episode.user.clone(), begins.to_owned()))
        }
        _ => None,
    }
}

/// A table a measure: models down, worlds across, the teachers last. Then for each world what its episodes showed when
/// looked into.
fn print_tables(worlds: &[WorldOf], rows: &[Row]) {
    const MEASURES: [Measure; 5] = [
        Measure::Accuracy,
        Measure::AgreementWhenClear,
        Measure::Kl,
        Measure::ExcessLogLoss,
        Measure::TopProbability,
    ];
    for measure in MEASURES {
        let of = |m: &Measures| {
            let (value, standard_error) = (m.get(measure)?, m.standard_error(measure));
            Some(Estimate { value, standard_error })
        };
        print_table(measure.title(), worlds, rows, !measure.is_against_teacher(), &of);
    }
    for measure in [Measure::Accuracy, Measure::Kl] {
        let of = |m: &Measures| {
            let last = m.held_out.as_deref()?.by_observations.last()?;
            Some(Estimate { value: last.get(measure)?, standard_error: last.standard_error(measure) })
        };
        if rows.iter().flat_map(|row| &row.cells).any(|cell| cell.measures.as_ref().and_then(of).is_some()) {
            let title = format!("{}, held-out sets after the last round", measure.title());
            print_table(&title, worlds, rows, !measure.is_against_teacher(), &of);
        }
    }
    for (i, world) in worlds.iter().enumerate() {
        let models = rows.iter().filter_map(|row| {
            let measures = row.cells.get(i)?.measures.as_ref()?;
            Some(Column { title: &row.name, measures })
        });
        let teacher = world.teacher.iter().map(|measures| Column { title: "teacher", measures });
        let columns: Vec<Column> = models.chain(teacher).collect();
        if depth::has_tables(&columns) {
            print(&format!("\n{}", world.name));
            depth::print_tables(&columns);
        }
    }
}

fn print_table(
    title: &str,
    worlds: &[WorldOf],
    rows: &[Row],
    has_teacher: bool,
    of: &dyn Fn(&Measures) -> Option<Estimate>,
) {
    let mut table = table::new_table(std::iter::once(title).chain(worlds.iter().map(|w| w.name.as_str())));
    let cell = |measures: Option<&Measures>| {
        let estimate = measures.and_then(of);
        table::with_error(estimate.map(|e| e.value), estimate.and_then(|e| e.standard_error))
    };
    for row in rows {
        // The last row may have ended early.
        let cells = (0..worlds.len()).map(|i| cell(row.cells.get(i).and_then(|c| c.measures.as_ref())));
        table.add_row(std::iter::once(Cell::new(&row.name)).chain(cells));
    }
    if has_teacher {
        let cells = worlds.iter().map(|world| cell(world.teacher.as_ref()));
        table.add_row(std::iter::once(Cell::new("teacher")).chain(cells));
    }
    print(&format!("\n{table}"));
}
