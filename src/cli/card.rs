//! What a model card says about a run: data, teacher, loss, measures, config.

use std::path::Path;

use anyhow::Result;
use toml::{Table, Value};

use super::eval::{columns, of_beliefs};
use super::model::{Source, run_folder};
use super::{table, train};
use crate::config::RunConfig;
use crate::export::card::Card;
use crate::metrics::{EVAL_FILE, EvalFile};

/// The card of what `folder` holds: all that `run` says, or only what the folder and the base are called.
pub(super) fn card(folder: &Path, base: &Source, run: Option<&RunConfig>) -> Result<Card> {
    let name = match run {
        Some(run) => run.run.name.clone(),
        None => {
            let full = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
            full.file_name().map_or_else(|| "adapter".into(), |name| name.to_string_lossy().into_owned())
        }
    };
    let snapshot = &base.snapshot;
    let mut card = Card {
        title: name,
        base: snapshot.name.clone(),
        base_on_hub: snapshot.revision.is_some(),
        revision: snapshot.revision.clone(),
        ..Card::default()
    };
    if let Some(run) = run {
        let config = run.to_toml()?;
        card.facts = facts(&toml::from_str(&config)?);
        card.config = Some(config);
        card.evaluation = evaluation(folder)?;
    }
    Ok(card)
}

/// A config's main lines.
fn facts(config: &Table) -> Vec<(String, String)> {
    let get = |table: &str, key: &str| config.get(table).and_then(|t| t.get(key)).map(text);
    let list = |table: &str, keys: &[&str]| {
        let given = keys.iter().filter_map(|key| Some(format!("{key} = {}", get(table, key)?)));
        Some(given.collect::<Vec<_>>().join(", ")).filter(|line| !line.is_empty())
    };
    let rows = [
        (
            "data",
            get("data", "train")
                .or_else(|| list("teacher", &["world", "users", "episodes_per_user", "rounds"])),
        ),
        ("teacher", list("teacher", &["kind", "decision", "targets", "evidence"])),
        ("loss", list("loss", &["kind", "support", "format_weight"])),
        ("adapter", list("lora", &["r", "alpha", "dropout", "target_modules", "use_rslora"])),
        ("training", list("train", &["max_steps", "batch_size"])),
        ("optimizer", list("optimizer", &["lr", "betas", "weight_decay", "max_grad_norm"])),
    ];
    rows.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))).collect()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The run's tables of measures, if it is this very adapter that was measured.
fn evaluation(folder: &Path) -> Result<Option<String>> {
    // Where the run lies now, not where its config says: that may be relative to another working directory.
    let Some(run) = run_folder(folder)? else { return Ok(None) };
    let Ok(file) = EvalFile::read(&run.join(EVAL_FILE)) else {
        return Ok(None);
    };
    if file.adapter.is_none() || file.adapter != train::fingerprint_of_adapter(folder).ok() {
        return Ok(None);
    }
    let columns = columns(&file);
    let beliefs = of_beliefs(&columns);
    let beliefs = match beliefs.first() {
        Some(first) => format!(
            "\n\n{} reported beliefs, which are in none of the measures above:\n\n{}",
            first.measures.answers,
            table::overall(&beliefs)
        ),
        None => String::new(),
    };
    Ok(Some(format!(
        "{} answers in {} episodes that training never saw.\n\n{}\n\nBy the number of earlier answers that bear on the \
         answer:\n\n{}{beliefs}",
        file.teacher.answers,
        file.episodes,
        table::overall(&columns),
        table::by_observations("earlier answers", &columns)
    )))
}
