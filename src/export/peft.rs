//! An adapter folder for PEFT and vLLM: the adapter's two files, and beside them the tokenizer and the chat
//! template that it was trained with.

use std::path::Path;

use anyhow::{Context as _, Result};
use candle_core::DType;

use super::card::Kind;
use super::{Exported, Subject, ensure_same, python};
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
             model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({}), {})",
            base(subject),
            python(path)
        )
    };
    let notes = match subject.gguf {
        Some(file) => vec![format!(
            "the base is the GGUF file {}, which transformers reads with the package gguf; the model that it was made of can \
             be named in its place",
            file.display()
        )],
        None => Vec::new(),
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
        subject.card.write(dir, kind, &load("."), &notes)
    })?;
    Ok(Exported { load: load(&out.display().to_string()), notes })
}

/// What transformers wants to be told of the base.
fn base(subject: &Subject) -> String {
    match (subject.gguf, &subject.card.revision) {
        (Some(file), _) => {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let folder = files::folder(file).display().to_string();
            format!("{}, gguf_file={}", python(&folder), python(&name))
        }
        (None, Some(revision)) => format!("{}, revision={}", python(subject.base_name), python(revision)),
        (None, None) => python(subject.base_name),
    }
}
