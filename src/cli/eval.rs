//! `bayesteach eval`, and the measuring stages of other commands.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::model::{ComputeArgs, ModelArgs, Source, adapter_folder, tokens_of};
use super::progress::Progress;
use super::table::{self, Column};
use super::{Context, Done, note, print};
use crate::eval::predictions;
use crate::files;
use crate::hub::Files;
use crate::metrics::{Measures, Prediction, summarise, summarise_teacher};
use crate::model::decoder::Decoder;
use crate::tokens::{EncodedSet, Sequence, TokensConfig, read_lines};

/// `eval.json`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct EvalFile {
    pub format_version: u32,
    pub episodes: usize,
    pub answers: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Measures>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuned: Option<Measures>,
    pub teacher: Measures,
    /// What was measured on, so that a stage whose output is there can be skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<String>,
    /// Which adapter was measured, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

impl EvalFile {
    /// The models measured, as columns of the table.
    pub(super) fn columns(&self) -> Vec<Column<'_>> {
        let models = [("baseline", self.baseline.as_ref()), ("fine-tuned", self.fine_tuned.as_ref())];
        let measured =
            models.into_iter().filter_map(|(title, m)| m.map(|measures| Column { title, measures }));
        measured.chain([Column { title: "teacher", measures: &self.teacher }]).collect()
    }

    /// Prints the tables.
    pub(super) fn print(&self) {
        print(&format!("\n{} answers in {} episodes\n", self.teacher.answers, self.episodes));
        print(&table::overall(&self.columns()));
        print("\nby the number of earlier answers that bear on the answer\n");
        print(&table::by_observations(&self.columns()));
        let beliefs: Vec<Column> = (self.columns().iter())
            .filter_map(|c| Some(Column { title: c.title, measures: c.measures.beliefs.as_deref()? }))
            .collect();
        if let Some(first) = beliefs.first() {
            print(&format!(
                "\n{} reported beliefs, which are in none of the measures above\n",
                first.measures.answers
            ));
            print(&table::overall(&beliefs));
            print("");
            print(&table::by_belief(&beliefs));
        }
    }
}

/// Tokens that go through the model at a time while measuring.
const TOKENS_AT_ONCE: usize = 8192;

pub(super) fn command(
    model: &ModelArgs,
    adapter: Option<&Path>,
    episodes: &Path,
    out: Option<&Path>,
    compute: &ComputeArgs,
    context: &Context,
) -> Result<Done> {
    out.map_or(Ok(()), files::check_writable)?;
    let source = Source::find(&model.source, None, Files::All, context)?;
    let lines = read_lines(episodes)?;
    let tokens = match adapter {
        Some(dir) => tokens_of(&adapter_folder(dir))?,
        None => TokensConfig::default(),
    };
    let encoded = source.pipeline(&tokens)?.encode_all(&lines)?;
    tell_dropped(&encoded);
    let (device, dtype) = compute.open("auto", "auto")?;
    let mut decoder = source.load(dtype, &device)?;
    if let Some(dir) = adapter {
        decoder.set_adapter(Some(&source.adapter(dir)?))?;
    }
    let predictions = measure("eval", &decoder, &encoded.sequences)?;
    let measures = summarise(&predictions)?;
    let (baseline, fine_tuned) =
        if adapter.is_some() { (None, Some(measures)) } else { (Some(measures), None) };
    let file = EvalFile {
        format_version: 1,
        episodes: encoded.sequences.len(),
        answers: predictions.len(),
        baseline,
        fine_tuned,
        teacher: summarise_teacher(&predictions)?,
        inputs: None,
        adapter: None,
    };
    file.print();
    if let Some(out) = out {
        files::write_json(out, &file)?;
    }
    Ok(Done::Finished)
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
