//! `bayesteach eval`, and the measuring stages of other commands.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::slice;

use anyhow::{Context as _, Result};

use super::depth::{self, Depth, Subject};
use super::model::{ComputeArgs, ModelArgs, Source, adapter_folder, tokens_of};
use super::output::manner;
use super::progress::Progress;
use super::table::{self, Column};
use super::{Context, Done, note, print, print_json};
use crate::config::{RunConfig, storage};
use crate::eval::predictions;
use crate::files;
use crate::hub::Files;
use crate::metrics::{EvalFile, Model, PredictedEpisode, Prediction};
use crate::model::decoder::Decoder;
use crate::tokens::{EncodedSet, Line, Pipeline, Sequence, TokensConfig, fingerprint, read_lines};
use crate::world::World;

/// Tokens that go through the model at a time while measuring.
pub(super) const TOKENS_AT_ONCE: usize = 8192;

/// Where the results go, besides standard output.
pub(super) struct Outputs {
    /// The measures.
    pub measures: Option<PathBuf>,
    /// Every prediction.
    pub predictions: Option<PathBuf>,
}

impl Measured {
    /// The config that says who taught, if one is named.
    fn load_config(&self) -> Result<Option<RunConfig>> {
        self.config.as_ref().map(|path| RunConfig::load(path, &self.set)).transpose()
    }

    /// How the episodes become tokens: as the adapter was trained, else as the config says, and the settings on top.
    fn tokens(&self, adapter: Option<&Path>, config: Option<&RunConfig>) -> Result<TokensConfig> {
        let own = match (adapter, config) {
            (Some(dir), _) => tokens_of(&adapter_folder(dir))?,
            (None, Some(config)) => config.tokens.clone(),
            (None, None) => TokensConfig::default(),
        };
        RunConfig::tokens_settings(own, &self.set)
    }
}

impl Outputs {
    /// Refuses to write over what is read.
    fn check_apart(&self, model: &ModelArgs, adapter: Option<&Path>, measured: &Measured) -> Result<()> {
        let outputs = [&self.measures, &self.predictions].into_iter().flatten().map(PathBuf::as_path);
        let adapter = adapter.map(adapter_folder);
        let inputs = [
            Some(measured.episodes.as_path()),
            measured.config.as_deref(),
            Some(Path::new(&model.source)),
            adapter.as_deref(),
        ];
        files::check_apart(&outputs.collect::<Vec<_>>(), &inputs.into_iter().flatten().collect::<Vec<_>>())
    }
}

/// What to measure on.
pub(super) struct Measured {
    /// An episode file.
    pub episodes: PathBuf,
    /// The config that it is from, and settings on top of it.
    pub config: Option<PathBuf>,
    pub set: Vec<String>,
}

pub(super) fn command(
    model: &ModelArgs,
    adapter: Option<&Path>,
    measured: &Measured,
    outputs: &Outputs,
    compute: &ComputeArgs,
    context: &Context,
) -> Result<Done> {
    outputs.check_apart(model, adapter, measured)?;
    for out in [&outputs.measures, &outputs.predictions].into_iter().flatten() {
        files::check_writable(out)?;
    }
    let config = measured.load_config()?;
    let mut depth = Depth::of(measured, config.as_ref())?;
    let lines = read_lines(&measured.episodes)?;
    depth.prepare(&lines)?;
    let source = Source::find(&model.source, None, Files::All, context)?;
    let tokens = measured.tokens(adapter, config.as_ref())?;
    let pipeline = source.pipeline(&tokens)?;
    let test = TestSet::encode(&pipeline, lines, &measured.episodes)?;
    let (device, dtype) = compute.open("auto", "auto")?;
    let decoder = source.load_adapted(adapter, dtype, storage(&compute.quantization)?, &device)?;
    let which = if adapter.is_some() { Model::FineTuned } else { Model::Baseline };
    let subject = Subject { decoder: &decoder, pipeline: &pipeline, test: &test };
    let (file, predictions) = depth.measure("eval", which, &subject)?;
    match manner().json {
        true => print_json(&file)?,
        false => print_tables(&file),
    }
    if let Some(out) = &outputs.predictions {
        let all: Vec<usize> = (0..test.lines.len()).collect();
        write_predicted(out, &test.predicted(&all, which, &predictions))?;
    }
    if let Some(out) = &outputs.measures {
        files::write_json(out, &file)?;
    }
    Ok(Done::Finished)
}

/// The models measured, as columns of the tables.
pub(super) fn columns(file: &EvalFile) -> Vec<Column<'_>> {
    let models = [("baseline", file.baseline.as_ref()), ("fine-tuned", file.fine_tuned.as_ref())];
    let measured = models.into_iter().filter_map(|(title, m)| m.map(|measures| Column { title, measures }));
    let teacher = file.has_teacher().then_some(Column { title: "teacher", measures: &file.teacher });
    measured.chain(teacher).collect()
}

/// Prints the tables.
pub(super) fn print_tables(file: &EvalFile) {
    let columns = columns(file);
    print(&format!("\n{} answers in {} episodes\n", file.teacher.answers, file.episodes));
    print(&table::overall(&columns));
    print("\nby the number of earlier answers that bear on the answer\n");
    print(&table::by_observations("earlier answers", &columns));
    depth::print_tables(&columns);
    let beliefs = of_beliefs(&columns);
    if let Some(first) = beliefs.first() {
        let reports = first.measures.answers;
        print(&format!("\n{reports} reported beliefs, which are in none of the measures above\n"));
        print(&table::overall(&beliefs));
        print("");
        print(&table::by_belief(&beliefs));
    }
}

/// The same columns for the reported beliefs alone; none where there are no reports.
pub(super) fn of_beliefs<'a>(columns: &[Column<'a>]) -> Vec<Column<'a>> {
    let of = |c: &Column<'a>| Some(Column { title: c.title, measures: c.measures.beliefs.as_deref()? });
    columns.iter().filter_map(of).collect()
}

/// Episodes to measure on, as they are and as the model sees them.
pub(super) struct TestSet {
    pub lines: Vec<Line>,
    pub sequences: Vec<Sequence>,
}

impl TestSet {
    /// Encodes episodes, and says how many were dropped.
    pub(super) fn encode(pipeline: &Pipeline, lines: Vec<Line>, file: &Path) -> Result<Self> {
        let encoded = pipeline.encode_all(&lines).with_context(|| file.display().to_string())?;
        tell_dropped(&encoded);
        // Sequences are in the order of the lines, without the dropped ones.
        let mut kept = encoded.sequences.iter().map(|sequence| sequence.id.as_str()).peekable();
        let is_kept = |line: &Line| kept.next_if(|id| *id == line.id()).is_some();
        Ok(Self { lines: lines.into_iter().filter(is_kept).collect(), sequences: encoded.sequences })
    }

    /// The measures of a model's predictions of all answers.
    pub(super) fn measured(&self, model: Model, predictions: &[Prediction]) -> Result<EvalFile> {
        let file = EvalFile::new(model, self.sequences.len(), predictions)?;
        Ok(EvalFile { options: self.options(), episodes_fingerprint: Some(self.fingerprint()?), ..file })
    }

    /// Some of the episodes with the predictions of their answers. What was tokenised elsewhere has no text to show.
    pub(super) fn predicted(
        &self,
        chosen: &[usize],
        model: Model,
        predictions: &[Prediction],
    ) -> Vec<PredictedEpisode> {
        let ranges = self.ranges();
        let of = |&i: &usize| match &self.lines[i] {
            Line::Episode(episode) => {
                Some(PredictedEpisode::new(episode, model, &predictions[ranges[i].clone()]))
            }
            Line::Tokenised(_) => None,
        };
        chosen.iter().filter_map(of).collect()
    }

    /// Where the predictions of each sequence's answers stand among those of all.
    pub(super) fn ranges(&self) -> Vec<Range<usize>> {
        let answers = |s: &Sequence| s.targets.iter().filter(|target| target.weight > 0.0).count();
        let mut first = 0;
        let mut ranges = Vec::with_capacity(self.sequences.len());
        for sequence in &self.sequences {
            ranges.push(first..first + answers(sequence));
            first += answers(sequence);
        }
        ranges
    }

    /// Whether a teacher stands behind the distributions: the shop has none, and gives every option the same
    /// probability where no other kind of teacher was asked for.
    pub(super) fn has_teacher(&self) -> bool {
        let is_guess = |line: &Line| match line {
            Line::Episode(episode) if episode.world == World::SHOP => {
                let even = |p: &[f64]| p.iter().all(|q| (q * p.len() as f64 - 1.0).abs() < 1e-9);
                episode.answers().all(|(answer, _)| even(answer.predictive()))
            }
            _ => false,
        };
        !self.lines.iter().all(is_guess)
    }

    /// The option labels, if all answers but reports of beliefs have the same ones.
    fn options(&self) -> Option<Vec<String>> {
        let mut common: Option<&Vec<String>> = None;
        for line in &self.lines {
            let Line::Episode(episode) = line else { return None };
            for (answer, _) in episode.answers().filter(|(answer, _)| answer.belief.is_none()) {
                if *common.get_or_insert(&answer.options) != &answer.options {
                    return None;
                }
            }
        }
        common.cloned()
    }

    /// Of the episodes themselves, whatever the model and its tokens.
    fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for line in &self.lines {
            match line {
                Line::Episode(episode) => hasher.update(&serde_json::to_vec(episode)?).update(b"\n"),
                Line::Tokenised(sequence) => hasher.update(fingerprint(slice::from_ref(sequence)).as_bytes()),
            };
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// Writes episodes with predictions, one a line.
pub(super) fn write_predicted(path: &Path, episodes: &[PredictedEpisode]) -> Result<()> {
    let mut text = Vec::new();
    for episode in episodes {
        serde_json::to_writer(&mut text, episode)?;
        text.push(b'\n');
    }
    files::write(path, &text)
}

/// A model's predictions, with a progress bar.
pub(super) fn measure(
    title: &'static str,
    decoder: &Decoder,
    sequences: &[Sequence],
) -> Result<Vec<Prediction>> {
    let progress = Progress::new(title, 0, sequences.len() as u64);
    let result =
        predictions(decoder, sequences, TOKENS_AT_ONCE, &|done| progress.at(done as u64, "episodes"));
    progress.finish();
    result
}

/// Says how many episodes were left out on request.
pub(super) fn tell_dropped(encoded: &EncodedSet) {
    let dropped = &encoded.dropped;
    if !dropped.is_empty() {
        note(&format!(
            "{} episodes were dropped: {} too long, {} with nothing to train on",
            dropped.len(),
            dropped.too_long.len(),
            dropped.untrainable.len()
        ));
    }
}
