//! `bayesteach export`: what other programs load.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::model::{Source, adapter_folder};
use super::{Context, Done, print};
use crate::config::{CONFIG_FILE, RunConfig};
use crate::error::usage;
use crate::export::peft::export;
use crate::hub::Files;
use crate::model::peft;
use crate::tokens::TokensConfig;

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Format {
    /// A PEFT adapter, with the tokenizer and the chat template it was trained with
    Peft,
}

pub(super) fn command(
    source: &Path,
    model: Option<&str>,
    format: Format,
    out: &Path,
    context: &Context,
) -> Result<Done> {
    if out.exists() {
        return Err(usage(format!("{} exists already: name a new folder with --out", out.display())));
    }
    let adapter_dir = adapter_folder(source);
    let run = run_of(&adapter_dir)?;
    let (base, revision, tokens) = match (model, &run) {
        (Some(base), _) => (base.to_string(), None, run.as_ref().map(|r| r.tokens.clone())),
        (None, Some(run)) => {
            let table = run.model()?;
            (table.source.clone(), table.revision.clone(), Some(run.tokens.clone()))
        }
        (None, None) => {
            let config: peft::PeftConfig = crate::files::read_json(&adapter_dir.join(peft::CONFIG_FILE))?;
            let Some(base) = config.base_model_name_or_path else {
                return Err(usage("the adapter does not name its base model: name it with --model"));
            };
            (base, config.revision, None)
        }
    };
    let base = Source::find(&base, revision.as_deref(), Files::Tokenizer, context)
        .context("the base model, whose tokenizer goes beside the adapter (--model names another place)")?;
    let pipeline = base.pipeline(&tokens.unwrap_or_else(TokensConfig::default))?;
    match format {
        Format::Peft => export(&adapter_dir, base.dir(), &base.config, &pipeline, out)?,
    }
    print(&format!("wrote {}", out.display()));
    print(&format!(
        "load it in Python: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({:?}), {:?})",
        base.snapshot.name,
        out.display().to_string()
    ));
    Ok(Done::Finished)
}

/// The config of the run that an adapter folder or a checkpoint belongs to.
fn run_of(adapter: &Path) -> Result<Option<RunConfig>> {
    if !adapter.is_dir() {
        bail!("{}: there is no such folder", adapter.display());
    }
    let full: PathBuf =
        adapter.canonicalize().with_context(|| format!("cannot open {}", adapter.display()))?;
    let run = full.ancestors().skip(1).take(2).find(|dir| dir.join(CONFIG_FILE).is_file());
    run.map(RunConfig::stored).transpose()
}
