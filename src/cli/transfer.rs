//! `bayesteach transfer`: one model with any adapters, measured on any worlds.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use comfy_table::Cell;
use serde::Serialize;

use super::eval::{TestSet, measure};
use super::model::{ComputeArgs, ModelArgs, Source, TemplateArgs, adapter_folder, run_of, tokens_of};
use super::table;
use super::train::file_has_lines;
use super::{Context, Done, note, print, teach, warn};
use crate::config::{RunConfig, storage};
use crate::error::usage;
use crate::files;
use crate::hub::Files;
use crate::metrics::{Measure, Measures, Model};
use crate::tokens::{Line, TokensConfig, read_lines};

#[derive(Args)]
pub(super) struct TransferArgs {
    /// Configs of the worlds to measure on, each with settings of its own if wanted:
    /// flights.toml::teacher.rounds=30::teacher.flights.choice={lapse=0.1}
    #[arg(required = true, value_name = "CONFIG[::KEY=VALUE]…")]
    worlds: Vec<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// A PEFT adapter, or a run that made one; may be given several times
    #[arg(long = "adapter", value_name = "DIR")]
    adapters: Vec<PathBuf>,
    /// Episodes of each world; if not given, as its config's eval.episodes says
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
    /// The teacher's own measures.
    #[serde(skip_serializing_if = "Option::is_none")]
    teacher: Option<Measures>,
    #[serde(skip)]
    lines: Vec<Line>,
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
    measures: Measures,
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
        let world = teach_world(world, args.episodes)?;
        if worlds.iter().any(|other: &WorldOf| other.name == world.name) {
            return Err(usage(format!("two worlds are called {:?}: give one another run.name", world.name)));
        }
        worlds.push(world);
    }
    let source = Source::find(&args.model.source, None, Files::All, context)?;
    let (device, dtype) = args.compute.open("auto", "auto")?;
    let mut decoder = source.load(dtype, storage(&args.compute.quantization)?, &device)?;
    let mut rows = Vec::new();
    for adapter in std::iter::once(None).chain(args.adapters.iter().map(Some)) {
        let (name, tokens) = match adapter {
            None => ("baseline".to_string(), args.template.over(TokensConfig::default())),
            Some(dir) => {
                decoder.set_adapter(Some(&source.adapter(dir)?))?;
                (name_of(dir, &rows), tokens_of(&adapter_folder(dir))?)
            }
        };
        let trained = adapter.map(|dir| trained_users(dir)).transpose()?.unwrap_or_default();
        let pipeline = source.pipeline(&tokens)?;
        let model = if adapter.is_some() { Model::FineTuned } else { Model::Baseline };
        let mut cells = Vec::new();
        for world in &mut worlds {
            note(&format!("{name} on {}", world.name));
            let test = TestSet::encode(&pipeline, world.lines.clone(), Path::new(&world.config))?;
            let mut file = test.measured(model, &measure("measure", &decoder, &test.sequences)?)?;
            let measures = file.measures_mut(model).cloned().context("the model was measured")?;
            world.teacher = Some(file.teacher);
            let is_trained = |line: &&Line| user_of(line).is_some_and(|user| trained.contains(&user));
            let shared = world.lines.iter().filter(is_trained).count();
            if shared > 0 {
                warn(&format!(
                    "warning: {shared} of {} episodes of {} are of users that {name} was trained on",
                    world.lines.len(),
                    world.name
                ));
            }
            let world = world.name.clone();
            cells.push(Measured { world, episodes_of_trained_users: shared, measures });
        }
        rows.push(Row { name, adapter: adapter.cloned(), cells });
    }
    print_tables(&worlds, &rows);
    if let Some(out) = &args.out {
        let model = source.snapshot.name.clone();
        files::write_json(out, &TransferFile { format_version: 1, model, worlds, rows })?;
    }
    Ok(Done::Finished)
}

/// Draws a world's episodes and keeps some of its test part: of users that a run of the same config does not train on.
fn teach_world(argument: &str, episodes: Option<usize>) -> Result<WorldOf> {
    let mut parts = argument.split("::");
    let path = parts.next().unwrap_or_default();
    let settings: Vec<String> = parts.map(str::to_string).collect();
    let mut config = RunConfig::load(Path::new(path), &settings)?;
    if let Some(episodes) = episodes {
        config.eval.episodes = episodes;
    }
    // The last part of the key; a number may have a point of its own.
    let shown = |setting: &String| match setting.split_once('=') {
        Some((key, value)) => format!("{}={value}", key.rsplit('.').next().unwrap_or(key).trim()),
        None => setting.clone(),
    };
    let name: Vec<String> =
        std::iter::once(config.run.name.clone()).chain(settings.iter().map(shown)).collect();
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let dir = teach::folder(&config, folder.path())?;
    let parts = ["test.jsonl", "validation.jsonl", "train.jsonl"].map(|name| dir.join(name));
    let Some(file) = parts.iter().find(|file| file_has_lines(file).unwrap_or(false)) else {
        return Err(usage(format!("{path}: no episodes were drawn")));
    };
    let lines = config.eval.choose(read_lines(file)?);
    let world = match lines.first() {
        Some(Line::Episode(episode)) => episode.world.clone(),
        _ => String::new(),
    };
    let (name, config) = (name.join(" "), argument.to_string());
    Ok(WorldOf { name, config, world, episodes: lines.len(), teacher: None, lines })
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

/// The world and user of every episode that an adapter's run was trained on; none where that is not known.
fn trained_users(adapter: &Path) -> Result<HashSet<(String, String)>> {
    let Some(run) = run_of(&adapter_folder(adapter))? else { return Ok(HashSet::new()) };
    let (train, _, _) = super::train::episode_files(&run);
    // A run may have been moved, and its episodes with it or not.
    let beside = adapter_folder(adapter).join("../episodes/train.jsonl");
    let Some(file) = [train, beside].into_iter().find(|file| file.is_file()) else {
        return Ok(HashSet::new());
    };
    Ok(read_lines(&file)?.iter().filter_map(user_of).collect())
}

fn user_of(line: &Line) -> Option<(String, String)> {
    match line {
        Line::Episode(episode) if !episode.user.is_empty() => {
            Some((episode.world.clone(), episode.user.clone()))
        }
        _ => None,
    }
}

/// A table a measure: models down, worlds across, the teachers last.
fn print_tables(worlds: &[WorldOf], rows: &[Row]) {
    const MEASURES: [Measure; 5] = [
        Measure::Accuracy,
        Measure::AgreementWhenClear,
        Measure::Kl,
        Measure::ExcessLogLoss,
        Measure::TopProbability,
    ];
    for measure in MEASURES {
        let titles = std::iter::once(measure.title()).chain(worlds.iter().map(|w| w.name.as_str()));
        let mut table = table::new_table(titles);
        let cell = |m: &Measures| table::with_error(m.get(measure), m.standard_error(measure));
        for row in rows {
            let cells = row.cells.iter().map(|measured| cell(&measured.measures));
            table.add_row(std::iter::once(Cell::new(&row.name)).chain(cells));
        }
        if !measure.is_against_teacher() {
            let none = || table::with_error(None, None);
            let cells = worlds.iter().map(|world| world.teacher.as_ref().map_or_else(none, cell));
            table.add_row(std::iter::once(Cell::new("teacher")).chain(cells));
        }
        print(&format!("\n{table}"));
    }
}
