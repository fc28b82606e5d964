//! `bayesteach logits`: a model's logits for given tokens, to check against other programs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use serde::Deserialize;

use super::model::{ComputeArgs, ModelArgs, Source, adapter_folder};
use super::{Context, Done};
use crate::config::storage;
use crate::episode;
use crate::files;
use crate::hub::Files;
use crate::model::decoder::{Keep, Tokens};
use crate::model::tensors;

#[derive(Deserialize)]
struct Line {
    input_ids: Vec<u32>,
}

pub(super) fn command(
    model: &ModelArgs,
    adapter: Option<&Path>,
    input: &Path,
    out: &Path,
    compute: &ComputeArgs,
    context: &Context,
) -> Result<Done> {
    let adapter_files = adapter.map(adapter_folder);
    let inputs = [Some(input), Some(Path::new(&model.source)), adapter_files.as_deref()];
    files::check_apart(&[out], &inputs.into_iter().flatten().collect::<Vec<_>>())?;
    files::check_writable(out)?;
    let source = Source::find(&model.source, None, Files::Weights, context)?;
    let vocabulary = source.config.vocab_size;
    let mut lines = Vec::new();
    episode::for_each_line(input, |text| {
        let line: Line = serde_json::from_str(text)?;
        ensure!(!line.input_ids.is_empty(), "input_ids is empty");
        let beyond = line.input_ids.iter().find(|&&id| id as usize >= vocabulary);
        ensure!(
            beyond.is_none(),
            "token id {} is beyond the vocabulary of {vocabulary}",
            beyond.unwrap_or(&0)
        );
        lines.push(line.input_ids);
        Ok(())
    })?;
    ensure!(!lines.is_empty(), "{}: no lines in it", input.display());
    let (device, dtype) = compute.open("cpu", "f32")?;
    let decoder = source.load_adapted(adapter, dtype, storage(&compute.quantization)?, &device)?;
    let mut logits = BTreeMap::new();
    for (i, input_ids) in lines.iter().enumerate() {
        let positions: Vec<u32> = (0..input_ids.len() as u32).collect();
        let boundaries = [0, input_ids.len() as u32];
        let tokens = Tokens { input_ids, positions: &positions, boundaries: &boundaries };
        let (hidden, _) = decoder.forward(&decoder.run(tokens, None)?, Keep::Nothing)?;
        let rows = decoder.logits(&hidden)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        logits.insert(i.to_string(), rows);
    }
    tensors::write(out, &logits)?;
    Ok(Done::Finished)
}
