//! Opening a model for a command: its files, its shape, its tokenizer and its weights.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::{DType, Device};
use clap::Args;

use super::Context;
use super::output::size;
use crate::config::{CONFIG_FILE, RunConfig};
use crate::device::{self, available_memory};
use crate::error::usage;
use crate::files::TemporaryFolder;
use crate::hub::{self, Files, Snapshot};
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::gguf::{GgufFile, Sizes, is_gguf};
use crate::model::loading::{Weights, weight_files};
use crate::model::{memory, peft};
use crate::ops::weight::Storage;
use crate::tokens::{self, ModelLimits, Pipeline, TemplateChoice, TokensConfig};

#[derive(Args)]
pub(super) struct ModelArgs {
    /// A folder laid out like a hub snapshot, a GGUF file, or a hub id (org/name, org/name@revision)
    #[arg(long = "model", value_name = "SOURCE")]
    pub source: String,
}

#[derive(Args, Default)]
pub(super) struct TemplateArgs {
    /// A chat template to use instead of the model's own: "plain", or a Jinja file
    #[arg(long, value_name = "TEMPLATE")]
    template: Option<String>,
}

impl TemplateArgs {
    /// `tokens`, with the template that was asked for, if one was.
    pub(super) fn over(&self, tokens: TokensConfig) -> TokensConfig {
        match &self.template {
            Some(template) => TokensConfig { template: template.clone().into(), ..tokens },
            None => tokens,
        }
    }

    pub(super) fn is_given(&self) -> bool {
        self.template.is_some()
    }
}

#[derive(Args)]
pub(super) struct ComputeArgs {
    /// auto, cpu, cuda:0 or metal
    #[arg(long)]
    pub device: Option<String>,
    /// auto (f32 on the CPU, bf16 on GPUs), f32 or bf16
    #[arg(long)]
    pub dtype: Option<String>,
    /// How the linears' weights are kept: none (as --dtype), bf16, q8_0 or q4_k
    #[arg(long, default_value = "none")]
    pub quantization: String,
}

impl ComputeArgs {
    /// The device and dtype asked for, or these.
    pub(super) fn open(&self, device: &str, dtype: &str) -> Result<(Device, DType)> {
        let device = device::open(self.device.as_deref().unwrap_or(device))?;
        let dtype = device::dtype(self.dtype.as_deref().unwrap_or(dtype), &device)?;
        Ok((device, dtype))
    }
}

/// A model's files and shape, before its weights are loaded.
pub(super) struct Source {
    pub snapshot: Snapshot,
    pub config: ModelConfig,
    gguf: Option<Unpacked>,
}

/// A GGUF file, and the folder of what it says in the hub's files. The folder goes with it.
struct Unpacked {
    file: PathBuf,
    storage: Storage,
    sizes: Sizes,
    _folder: TemporaryFolder,
}

impl Source {
    pub(super) fn find(
        source: &str,
        revision: Option<&str>,
        files: Files,
        context: &Context,
    ) -> Result<Self> {
        let path = Path::new(source);
        if is_gguf(path) && !path.is_dir() {
            ensure!(path.is_file(), usage(format!("{source}: there is no such file")));
            ensure!(
                revision.is_none(),
                usage(format!("model.revision is set, but {source} is a file, which has no revisions"))
            );
            return Self::of_gguf(path, files);
        }
        ensure!(
            !path.is_file(),
            usage(format!(
                "{source} is a file, and no GGUF file: a model is a folder laid out like a hub snapshot, a GGUF file, or a \
                 hub id (org/name, org/name@revision)"
            ))
        );
        let snapshot = hub::resolve(source, revision, files, &context.hub)?;
        let config = ModelConfig::load(&snapshot.dir)?;
        Ok(Self { snapshot, config, gguf: None })
    }

    fn of_gguf(path: &Path, files: Files) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let at = || path.display().to_string();
        let folder = TemporaryFolder::new()?;
        let write = |name: &str, value: &serde_json::Value| {
            crate::files::write_json(&folder.path().join(name), value)
        };
        write("config.json", &file.config_json()?)?;
        if files.has_tokenizer() {
            let tokenizer = tokens::gguf::tokenizer_files(&file.metadata()).with_context(at)?;
            write("tokenizer.json", &tokenizer.tokenizer)?;
            write("tokenizer_config.json", &tokenizer.config)?;
        }
        let config = ModelConfig::load(folder.path()).with_context(at)?;
        let dir = folder.path().to_path_buf();
        let snapshot = Snapshot { dir, name: path.display().to_string(), revision: None };
        let gguf = Unpacked {
            file: path.to_path_buf(),
            storage: file.storage(),
            sizes: file.sizes(),
            _folder: folder,
        };
        Ok(Self { snapshot, config, gguf: Some(gguf) })
    }

    /// The GGUF file, where the model is one.
    pub(super) fn gguf(&self) -> Option<&Path> {
        self.gguf.as_ref().map(|gguf| gguf.file.as_path())
    }

    /// How to name this very model on the command line.
    pub(super) fn hint(&self) -> String {
        let Snapshot { name, revision, .. } = &self.snapshot;
        revision.as_ref().map_or_else(|| name.clone(), |revision| format!("{name}@{revision}"))
    }

    /// The files of the weights.
    pub(super) fn weight_files(&self) -> Result<Vec<PathBuf>> {
        match &self.gguf {
            Some(gguf) => Ok(vec![gguf.file.clone()]),
            None => weight_files(self.dir()),
        }
    }

    /// How linears are kept where the config asks for `storage`: a GGUF file's blocks stay as they are.
    pub(super) fn storage(&self, storage: Storage) -> Storage {
        match (&self.gguf, storage) {
            (Some(gguf), Storage::Dense) => gguf.storage,
            _ => storage,
        }
    }

    /// Bytes of the weights where the config asks for `storage` and all else is in `dtype`.
    pub(super) fn weight_bytes(&self, dtype: DType, storage: Storage) -> usize {
        match (&self.gguf, storage) {
            (Some(gguf), Storage::Dense) => gguf.sizes.bytes(dtype),
            _ => memory::weights(&self.config, dtype, storage),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.snapshot.dir
    }

    pub(super) fn pipeline(&self, tokens: &TokensConfig) -> Result<Pipeline> {
        self.pipeline_behind(0, tokens)
    }

    /// For sequences that stand behind a soft prompt of `prefix` embeddings.
    pub(super) fn pipeline_behind(&self, prefix: usize, tokens: &TokensConfig) -> Result<Pipeline> {
        let room = self.config.max_position_embeddings.saturating_sub(prefix);
        if room == 0 {
            return Err(usage(format!(
                "prefix.length = {prefix} leaves no room for tokens: the model has {} positions",
                self.config.max_position_embeddings
            )));
        }
        let limits = ModelLimits { max_position_embeddings: room, vocab_size: self.config.vocab_size };
        Pipeline::load(self.dir(), tokens, limits)
    }

    pub(super) fn load(&self, dtype: DType, storage: Storage, device: &Device) -> Result<Decoder> {
        let load = || -> Result<Decoder> {
            let weights = match &self.gguf {
                Some(gguf) => Weights::of_gguf(GgufFile::open(&gguf.file)?, &self.config, dtype, device)?,
                None => Weights::open(self.dir(), &self.config, dtype, device)?,
            };
            self.ensure_room(self.weight_bytes(dtype, storage) as u64, dtype, device)?;
            Decoder::new(&weights.stored_as(storage), &self.config)
        };
        load().with_context(|| format!("cannot load {}", self.snapshot.name))
    }

    /// Refuses weights for which there is no room, before the system swaps or ends the program.
    fn ensure_room(&self, needed: u64, dtype: DType, device: &Device) -> Result<()> {
        let Some(free) = available_memory(device) else { return Ok(()) };
        let lengths = self.weight_files()?.into_iter().map(|file| Ok(file.metadata()?.len()));
        let on_disk = lengths.sum::<Result<u64>>()?;
        // Weights that cannot be in the files are another mistake, which is told when they are read.
        const WIDEST: u64 = 8;
        if needed <= free || on_disk.saturating_mul(WIDEST) < needed {
            return Ok(());
        }
        let smaller = Storage::NAMES
            .into_iter()
            .map(|(name, storage)| (name, self.weight_bytes(dtype, storage) as u64))
            .filter(|(_, bytes)| *bytes < needed && *bytes <= free)
            .map(|(name, bytes)| format!("{name} takes {}", size(bytes)))
            .reduce(|list, item| format!("{list}, {item}"));
        let way_out = match smaller {
            Some(list) => format!("quantised weights fit (--quantization, model.quantization): {list}"),
            None => {
                "quantised weights would not fit either: a smaller model, or a larger machine".to_string()
            }
        };
        bail!(
            "its weights take {}, and {} are free on {}. Is it in memory already, for another command (a run, a view, a \
             chat)? Its copy goes when that one ends. Otherwise {way_out}",
            size(needed),
            size(free),
            device::name(device)
        )
    }

    /// The model with the values of an adapter, if one is given, in its linears.
    pub(super) fn load_adapted(
        &self,
        adapter: Option<&Path>,
        dtype: DType,
        storage: Storage,
        device: &Device,
    ) -> Result<Decoder> {
        let mut decoder = self.load(dtype, storage, device)?;
        if let Some(dir) = adapter {
            decoder.set_adapter(Some(&self.adapter(dir)?))?;
        }
        Ok(decoder)
    }

    pub(super) fn adapter(&self, dir: &Path) -> Result<Adapter> {
        Ok(peft::read(&adapter_folder(dir), &self.config)?.1)
    }
}

/// How an adapter's episodes became tokens: as its run says, or with the template that lies beside it.
pub(super) fn tokens_of(adapter: &Path) -> Result<TokensConfig> {
    if let Some(run) = run_of(adapter)? {
        return Ok(template_found(run.tokens, adapter));
    }
    let template = template_beside(adapter).unwrap_or(TemplateChoice::Auto);
    Ok(TokensConfig { template, ..TokensConfig::default() })
}

/// The same, where a template that was named from another working directory lies beside the adapter too.
pub(super) fn template_found(tokens: TokensConfig, adapter: &Path) -> TokensConfig {
    let is_lost = matches!(&tokens.template, TemplateChoice::Path(path) if !path.exists());
    match template_beside(adapter).filter(|_| is_lost) {
        Some(template) => TokensConfig { template, ..tokens },
        None => tokens,
    }
}

fn template_beside(adapter: &Path) -> Option<TemplateChoice> {
    let template = adapter.join("chat_template.jinja");
    template.is_file().then_some(TemplateChoice::Path(template))
}

/// The config of the run that an adapter folder or a checkpoint belongs to.
pub(super) fn run_of(adapter: &Path) -> Result<Option<RunConfig>> {
    run_folder(adapter)?.map(|dir| RunConfig::stored(&dir)).transpose()
}

/// The run directory that an adapter folder or a checkpoint lies in.
pub(super) fn run_folder(adapter: &Path) -> Result<Option<PathBuf>> {
    if !adapter.is_dir() {
        bail!("{}: there is no such folder", adapter.display());
    }
    let full = adapter.canonicalize().with_context(|| format!("cannot open {}", adapter.display()))?;
    let run = full.ancestors().skip(1).take(2).find(|dir| dir.join(CONFIG_FILE).is_file());
    Ok(run.map(Path::to_path_buf))
}

/// A run directory stands for the adapter that it made.
pub(super) fn adapter_folder(dir: &Path) -> PathBuf {
    let within = dir.join("adapter");
    if !dir.join(peft::CONFIG_FILE).exists() && within.join(peft::CONFIG_FILE).exists() {
        return within;
    }
    dir.to_path_buf()
}
