//! Opening a live dialogue for a command: the world of a config or run, and the model that takes part.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::Context;
use super::model::{ComputeArgs, Source, adapter_folder, template_found, tokens_of};
use super::train;
use crate::config::{CONFIG_FILE, RunConfig, storage};
use crate::episode::{self, Episode};
use crate::error::usage;
use crate::files;
use crate::hub::Files;
use crate::session::Predictor;

/// A model that takes part in a dialogue.
#[derive(Args)]
pub(super) struct PartnerArgs {
    /// A folder laid out like a hub snapshot, or a hub id; a run's own base if not given
    #[arg(long = "model", value_name = "SOURCE")]
    pub source: Option<String>,
    /// A PEFT adapter; a run's own if not given
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// A run directory, or a config file.
pub(super) struct Place {
    pub config: RunConfig,
    /// The adapter that the run made, if it has one.
    pub adapter: Option<PathBuf>,
}

impl Place {
    /// Reads the config, with `--set` applied.
    pub(super) fn read(path: &Path, set: &[String]) -> Result<Self> {
        if !path.is_dir() {
            return Ok(Self { config: RunConfig::load(path, set)?, adapter: None });
        }
        let file = path.join(CONFIG_FILE);
        ensure!(
            file.is_file(),
            usage(format!("{} is no run directory: it has no {CONFIG_FILE}", path.display()))
        );
        let adapter = adapter_folder(path);
        let adapter = (adapter != path).then_some(adapter);
        Ok(Self { config: RunConfig::load(&file, set)?, adapter })
    }

    /// Whether there is a model without anybody naming one: that of a run which has trained its adapter.
    pub(super) fn has_model(&self) -> bool {
        self.adapter.is_some() && self.config.model.is_some()
    }

    /// The commit of `model` that the run began with, wherever its revision points now.
    fn trained_revision(&self, model: &str) -> Result<Option<String>> {
        let Some(adapter) = &self.adapter else { return Ok(None) };
        let trained = train::base_of_run(adapter)?.filter(|base| base.name == model);
        Ok(trained.and_then(|base| base.revision))
    }

    /// Loads the model that `args` name, or else the run's own with its adapter.
    pub(super) fn predictor(&self, args: &PartnerArgs, context: &Context) -> Result<Predictor> {
        let (source, revision) = match (&args.source, &self.config.model) {
            (Some(source), _) => (source.as_str(), None),
            (None, Some(own)) => {
                (own.source.as_str(), self.trained_revision(&own.source)?.or(own.revision.clone()))
            }
            (None, None) => {
                return Err(usage("no model is named: give --model, or a config with [model] source"));
            }
        };
        let source = Source::find(source, revision.as_deref(), Files::All, context)?;
        // A model named here may come without an adapter; a run's own comes with it.
        let own = self.adapter.as_ref().filter(|_| args.source.is_none());
        let adapter = args.adapter.as_ref().or(own);
        // What --set says is in the place's config already.
        let tokens = match (&args.adapter, own) {
            (Some(dir), _) => tokens_of(&adapter_folder(dir))?,
            (None, Some(dir)) => template_found(self.config.tokens.clone(), dir),
            (None, None) => self.config.tokens.clone(),
        };
        let pipeline = source.pipeline(&tokens)?;
        let (device, dtype) = match (&self.config.model, args.source.is_none()) {
            (Some(own), true) => args.compute.open("auto", &own.dtype)?,
            _ => args.compute.open("auto", "auto")?,
        };
        let storage = storage(&args.compute.quantization)?;
        let decoder = source.load_adapted(adapter.map(PathBuf::as_path), dtype, storage, &device)?;
        Ok(Predictor::new(pipeline, decoder))
    }
}

/// Appends what `make` gives as the `n`th (from 0) episode of a file, which is written whole; the episodes that are in it
/// then.
pub(super) fn append_episode(path: &Path, make: impl FnOnce(usize) -> Option<Episode>) -> Result<usize> {
    let mut episodes = if path.exists() { episode::read(path)? } else { Vec::new() };
    let Some(new) = make(episodes.len()) else {
        return Err(usage("nothing was answered yet, so there is nothing to save"));
    };
    ensure!(
        episodes.iter().all(|old| old.world == new.world),
        usage(format!(
            "{} has episodes of another world than {}: name another file",
            path.display(),
            new.world
        ))
    );
    episodes.push(new);
    let mut bytes = Vec::new();
    for episode in &episodes {
        episode::write_line(&mut bytes, episode)?;
    }
    files::write(path, &bytes).with_context(|| "the answers are not saved")?;
    Ok(episodes.len())
}
