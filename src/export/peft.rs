//! An adapter folder for PEFT and vLLM: the adapter's two files, and beside them the tokenizer and the chat
//! template that it was trained with.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::files;
use crate::model::config::ModelConfig;
use crate::model::peft;
use crate::tokens::Pipeline;

/// Writes the adapter in `source` with its tokenizer to `out`, whole or not at all, and reads it back.
///
/// # Errors
/// If the adapter does not fit the model, or the disk fails.
pub fn export(
    source: &Path,
    base: &Path,
    model: &ModelConfig,
    pipeline: &Pipeline,
    out: &Path,
) -> Result<()> {
    let (config, adapter) = peft::read(source, model)?;
    files::write_folder(out, |dir| {
        peft::write(dir, &config, &adapter)?;
        pipeline.save_beside(base, dir)
    })?;
    let (_, written) = peft::read(out, model).context("reading back what was written")?;
    for ((name, a), b) in adapter.tensors().iter().zip(written.tensors().values()) {
        let same = a.flatten_all()?.to_vec1::<f32>()? == b.flatten_all()?.to_vec1::<f32>()?;
        ensure!(same, "{name} was not written as it was");
    }
    Ok(())
}
