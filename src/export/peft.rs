//! An adapter folder for PEFT and vLLM: the adapter's two files, and beside them the tokenizer and the chat
//! template that it was trained with.

use std::path::Path;

use anyhow::{Context as _, Result};
use candle_core::DType;

use super::card::Kind;
use super::{Exported, Subject, ensure_same};
use crate::files;
use crate::model::adapter::Adapter;
use crate::model::peft;

/// Writes the adapter with its tokenizer to `out`, whole or not at all, its tensors as `dtype` (f32 or bf16).
///
/// # Errors
/// If there is no adapter, it does not fit the model, the disk fails, or what was written is not what was meant.
pub fn export(subject: &Subject, dtype: DType, out: &Path) -> Result<Exported> {
    let adapted = subject.adapted()?;
    let mut adapter: Adapter = adapted.adapter.clone();
    let kind = match &mut adapter {
        Adapter::Lora(lora) => {
            for module in lora.modules.values_mut() {
                module.a = module.a.to_dtype(dtype)?;
                module.b = module.b.to_dtype(dtype)?;
            }
            Kind::Peft
        }
        Adapter::Prefix(prefix) => {
            prefix.embeddings = prefix.embeddings.to_dtype(dtype)?;
            Kind::PeftPrompt
        }
    };
    let load = |path: &str| {
        format!(
            "from peft import PeftModel; from transformers import AutoModelForCausalLM\n\
             model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({:?}), {path:?})",
            subject.base_name
        )
    };
    files::write_folder(out, |dir| {
        peft::write(dir, &adapted.config, &adapter)?;
        if let Some(pipeline) = subject.pipeline {
            pipeline.save_beside(subject.base, dir)?;
        }
        let (_, written) = peft::read(dir, subject.model).context("reading back what was written")?;
        for ((name, a), b) in adapter.tensors().iter().zip(written.tensors().values()) {
            ensure_same(name, a, b)?;
        }
        subject.card.write(dir, kind, &load("."), &[])
    })?;
    Ok(Exported { load: load(&out.display().to_string()), notes: Vec::new() })
}
