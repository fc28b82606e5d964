//! `bayesteach export`: what other programs load.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::model::{Source, adapter_folder, run_of, tokens_of};
use super::{Context, Done, print};
use crate::error::usage;
use crate::export::peft::export;
use crate::hub::Files;
use crate::model::peft;

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
    let (base, revision) = match (model, &run) {
        (Some(base), _) => (base.to_string(), None),
        (None, Some(run)) => {
            let table = run.model()?;
            (table.source.clone(), table.revision.clone())
        }
        (None, None) => {
            let config: peft::PeftConfig = crate::files::read_json(&adapter_dir.join(peft::CONFIG_FILE))
                .context("this is neither an adapter, nor a checkpoint, nor a finished run of an adapter")?;
            let Some(base) = config.base_model_name_or_path else {
                return Err(usage("the adapter does not name its base model: name it with --model"));
            };
            (base, config.revision)
        }
    };
    let base = Source::find(&base, revision.as_deref(), Files::Tokenizer, context)
        .context("the base model, whose tokenizer goes beside the adapter (--model names another place)")?;
    let pipeline = base.pipeline(&tokens_of(&adapter_dir)?)?;
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
