//! `bayesteach export`: what other programs load.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use candle_core::DType;
use clap::{Args, ValueEnum};

use super::card::card;
use super::model::{Source, TemplateArgs, adapter_folder, run_of, tokens_of};
use super::output::size;
use super::progress::Progress;
use super::train::{self, TrainedOn};
use super::{Context, Done, note, print};
use crate::config::RunConfig;
use crate::error::usage;
use crate::export::{Adapted, Exported, Subject, gguf, merged, mlx};
use crate::files;
use crate::hub::Files;
use crate::model::gguf::{GgufFile, is_gguf};
use crate::model::peft::{self, PeftConfig};
use crate::ops::weight::Storage;
use crate::tokens::TokensConfig;

#[derive(Args)]
pub(super) struct ExportArgs {
    /// A run directory, a checkpoint, or a PEFT adapter; for gguf also a whole model's folder
    source: PathBuf,
    /// The base model, where the source does not say it
    #[arg(long, value_name = "SOURCE")]
    model: Option<String>,
    /// The format
    #[arg(long, value_enum)]
    format: Format,
    /// The folder to write; it must not exist yet
    #[arg(long)]
    out: PathBuf,
    /// How an adapter's tensors are stored (peft, mlx): f32 unless given
    #[arg(long, value_enum)]
    dtype: Option<AdapterDtype>,
    /// How matrices are stored (gguf): q8_0 unless given
    #[arg(long, value_enum, ignore_case = true)]
    quantization: Option<Quantization>,
    /// The largest file of weights (merged), such as 5GB, which it is unless given, or 500MB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_shard_size: Option<u64>,
    /// llama.cpp's name for how text is cut into words (gguf), where the tokenizer's own rule is none of its
    #[arg(long, value_name = "NAME")]
    pre_tokenizer: Option<String>,
    /// Leave tokenizer and chat template out, for programs that pass token ids
    #[arg(long)]
    without_tokenizer: bool,
    #[command(flatten)]
    template: TemplateArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A PEFT adapter, with the tokenizer and the chat template it was trained with
    Peft,
    /// The whole model with the adapter merged into it, laid out as the base
    Merged,
    /// The adapter for llama.cpp, to be loaded beside the base
    GgufLora,
    /// The whole model for llama.cpp
    Gguf,
    /// The adapter for mlx-lm
    Mlx,
}

#[derive(Clone, Copy, ValueEnum)]
enum AdapterDtype {
    F32,
    Bf16,
}

#[derive(Clone, Copy, ValueEnum)]
enum Quantization {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_k")]
    Q4K,
}

impl From<Quantization> for gguf::Quantization {
    fn from(quantization: Quantization) -> Self {
        match quantization {
            Quantization::F32 => Self::F32,
            Quantization::F16 => Self::F16,
            Quantization::Bf16 => Self::Bf16,
            Quantization::Q8_0 => Self::Q8_0,
            Quantization::Q4K => Self::Q4K,
        }
    }
}

impl ExportArgs {
    /// `--format peft` and nothing else.
    fn peft(source: &Path, out: &Path) -> Self {
        Self {
            source: source.to_path_buf(),
            model: None,
            format: Format::Peft,
            out: out.to_path_buf(),
            dtype: None,
            quantization: None,
            max_shard_size: None,
            pre_tokenizer: None,
            without_tokenizer: false,
            template: TemplateArgs::default(),
        }
    }

    /// Refuses options that the format has no use for.
    fn check(&self) -> Result<()> {
        use Format::{Gguf, Merged, Mlx, Peft};
        for (given, option, formats) in [
            (self.dtype.is_some(), "--dtype", &[Peft, Mlx][..]),
            (self.quantization.is_some(), "--quantization", &[Gguf]),
            (self.max_shard_size.is_some(), "--max-shard-size", &[Merged]),
            (self.pre_tokenizer.is_some(), "--pre-tokenizer", &[Gguf]),
        ] {
            if given && !formats.contains(&self.format) {
                let names: Vec<String> =
                    formats.iter().filter_map(|f| Some(f.to_possible_value()?.get_name().into())).collect();
                return Err(usage(format!("{option} is for --format {} only", names.join(" and "))));
            }
        }
        for (given, option) in
            [(self.pre_tokenizer.is_some(), "--pre-tokenizer"), (self.template.is_given(), "--template")]
        {
            if self.without_tokenizer && given {
                return Err(usage(format!("{option} and --without-tokenizer contradict each other")));
            }
        }
        if self.out.exists() {
            let out = self.out.display();
            return Err(usage(format!("{out} exists already: name a new folder with --out")));
        }
        Ok(())
    }

    fn files(&self) -> Files {
        match (self.needs_weights(), self.without_tokenizer) {
            (true, false) => Files::All,
            (true, true) => Files::Weights,
            (false, false) => Files::Tokenizer,
            (false, true) => Files::Config,
        }
    }

    fn needs_weights(&self) -> bool {
        matches!(self.format, Format::Merged | Format::Gguf)
    }
}

/// `5GB` and the like.
fn parse_size(text: &str) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    let units = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("B", 1.0)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((upper.strip_suffix(name)?, unit)))
        .unwrap_or((&upper, 1.0));
    let size =
        number.trim().parse::<f64>().ok().map(|n| n * unit).filter(|size| *size >= 1.0 && *size < 1e18);
    size.map(|size| size as u64).ok_or_else(|| format!("{text:?} is not a size such as 5GB or 500MB"))
}

pub(super) fn command(args: &ExportArgs, context: &Context) -> Result<Done> {
    args.check()?;
    if args.source.is_file() {
        return Err(usage(format!(
            "{} is a file: export takes the folder of a run, of a checkpoint, of a PEFT adapter or of a whole model{}",
            args.source.display(),
            if is_gguf(&args.source) { " (a GGUF file is what llama.cpp loads already)" } else { "" }
        )));
    }
    let exported = match model_folder(&args.source) {
        Some(folder) => export_model(args, &folder, context)?,
        None => export_adapter(args, context)?,
    };
    print(&format!("wrote {}, read it back and compared it with what was meant", args.out.display()));
    for text in &exported.notes {
        note(&format!("note: {text}"));
    }
    print(&format!("load it with:\n{}", exported.load));
    Ok(Done::Finished)
}

/// Writes an adapter with its model card into `out`, as `--format peft` does.
pub(super) fn adapter_with_card(source: &Path, out: &Path, context: &Context) -> Result<()> {
    export_adapter(&ExportArgs::peft(source, out), context).map(drop)
}

/// The folder of a whole model that the source stands for: its own, or that of a run that trained all weights.
fn model_folder(source: &Path) -> Option<PathBuf> {
    let is_model = |dir: &Path| dir.join("config.json").is_file() && !dir.join(peft::CONFIG_FILE).exists();
    let trained = source.join("model");
    if is_model(source) {
        Some(source.to_path_buf())
    } else if !adapter_folder(source).join(peft::CONFIG_FILE).exists() && is_model(&trained) {
        Some(trained)
    } else {
        None
    }
}

fn export_model(args: &ExportArgs, folder: &Path, context: &Context) -> Result<Exported> {
    if args.format != Format::Gguf {
        let source = args.source.display();
        return Err(usage(format!(
            "{source} is a whole model, without an adapter: it can be exported as gguf only"
        )));
    }
    if args.model.is_some() {
        return Err(usage(format!("{} is a whole model: --model is for adapters", args.source.display())));
    }
    let model = Source::find(&folder.to_string_lossy(), None, args.files(), context)?;
    let run = run_of(folder)?;
    let tokens = run.as_ref().map_or_else(TokensConfig::default, |run| run.tokens.clone());
    write(args, folder, &model, run.as_ref(), None, &args.template.over(tokens))
}

fn export_adapter(args: &ExportArgs, context: &Context) -> Result<Exported> {
    let folder = adapter_folder(&args.source);
    let run = run_of(&folder)?;
    let trained = train::base_of_run(&folder)?;
    let (base, revision) = base_of(args, &folder, trained.as_ref())?;
    let base = Source::find(&base, revision.as_deref(), args.files(), context).context(
        "the base model (--model names another place, --without-tokenizer does without its tokenizer)",
    )?;
    if let (Some(file), true) = (base.gguf(), args.needs_weights()) {
        note(&format!(
            "note: the base {} is a GGUF file: the adapter is added to what its weights stand for{}. --model names the model that \
             it was made of, if that is at hand",
            file.display(),
            match args.format {
                Format::Merged =>
                    ", in f16 where those are blocks (--format gguf --quantization f32 rounds nothing)",
                _ => "",
            }
        ));
    }
    let (mut config, adapter) = peft::read(&folder, &base.config).with_context(|| {
        format!("the adapter in {} does not go with the base {}", folder.display(), base.snapshot.name)
    })?;
    if args.format != Format::Peft {
        // Before the base is read.
        adapter.lora()?;
    }
    let trained_on = config.base().0.filter(|name| *name != base.snapshot.name);
    if let (Some(trained_on), Some(given)) = (trained_on, &args.model) {
        note(&format!(
            "note: the adapter says that its base is {trained_on:?}; it is exported for {given:?}"
        ));
        config.set_base(&base.snapshot.name, base.snapshot.revision.as_deref());
    }
    if base.snapshot.revision.is_none() {
        note(&format!(
            "note: the model card names the base by its place on this machine, {:?}: others want a hub id there",
            base.snapshot.name
        ));
    }
    if let (Some(run), true) = (&run, args.needs_weights()) {
        train::check_base(&folder, run, &base, context)?;
        let table = run.model()?;
        if table.storage()? != Storage::Dense {
            note(&format!(
                "note: the adapter was trained on the base in {}; it is merged into the base as it is, which computes \
                 slightly differently",
                table.quantization
            ));
        }
    }
    let tokens = args.template.over(tokens_of(&folder)?);
    write(args, &folder, &base, run.as_ref(), Some(&Adapted { config, adapter }), &tokens)
}

/// The base's name and revision: as asked for, as it was when the run began, or as the adapter says.
fn base_of(
    args: &ExportArgs,
    folder: &Path,
    trained: Option<&TrainedOn>,
) -> Result<(String, Option<String>)> {
    let trained = trained.filter(|base| args.model.as_ref().is_none_or(|model| *model == base.name));
    if let Some(base) = trained {
        return Ok((base.name.clone(), base.revision.clone()));
    }
    if let Some(model) = &args.model {
        return Ok((model.clone(), None));
    }
    let config: PeftConfig = files::read_json(&folder.join(peft::CONFIG_FILE))
        .context("this is neither an adapter, nor a checkpoint, nor a finished run of an adapter")?;
    let (Some(base), revision) = config.base() else {
        return Err(usage("the adapter does not name its base model: name it with --model"));
    };
    Ok((base.to_string(), revision.map(ToString::to_string)))
}

fn write(
    args: &ExportArgs,
    folder: &Path,
    base: &Source,
    run: Option<&RunConfig>,
    adapter: Option<&Adapted>,
    tokens: &TokensConfig,
) -> Result<Exported> {
    let pipeline = if args.without_tokenizer { None } else { Some(base.pipeline(tokens)?) };
    let card = card(folder, base, run)?;
    let subject = Subject {
        base: base.dir(),
        base_name: &base.snapshot.name,
        gguf: base.gguf(),
        model: &base.config,
        adapter,
        pipeline: pipeline.as_ref(),
        card: &card,
    };
    let dtype = match args.dtype {
        Some(AdapterDtype::Bf16) => DType::BF16,
        Some(AdapterDtype::F32) | None => DType::F32,
    };
    check_space(args, base)?;
    let progress = Progress::new("export", 0, 1);
    let tell = |done: usize, total: usize| progress.of(done as u64, total as u64, "tensors");
    let out = &args.out;
    let exported = match args.format {
        Format::Peft => crate::export::peft::export(&subject, dtype, out),
        Format::Mlx => mlx::export(&subject, dtype, out),
        Format::GgufLora => gguf::lora::export(&subject, out),
        Format::Merged => {
            let size = args.max_shard_size.unwrap_or(merged::MAX_SHARD_SIZE);
            merged::export(&subject, size, out, &tell)
        }
        Format::Gguf => {
            let quantization = args.quantization.unwrap_or(Quantization::Q8_0).into();
            let options = gguf::Options { quantization, pre_tokenizer: args.pre_tokenizer.as_deref() };
            gguf::export(&subject, options, out, &tell)
        }
    };
    progress.finish();
    exported
}

/// Refuses before long work what the disk has no room for.
fn check_space(args: &ExportArgs, base: &Source) -> Result<()> {
    let weights = match (args.format, args.quantization.unwrap_or(Quantization::Q8_0)) {
        (Format::Merged, _) => match base.gguf() {
            Some(file) => {
                let bits = GgufFile::open(file)?.float_dtype().bitsize();
                (base.config.parameter_count() * bits / 8) as u64
            }
            None => {
                let files = base.weight_files()?;
                files.iter().map(|file| std::fs::metadata(file).map_or(0, |m| m.len())).sum::<u64>()
            }
        },
        (Format::Gguf, quantization) => {
            let bytes = match quantization {
                Quantization::F32 => 4.0,
                Quantization::F16 | Quantization::Bf16 => 2.0,
                Quantization::Q8_0 => 1.06,
                Quantization::Q4K => 0.56,
            };
            (base.config.parameter_count() as f64 * bytes) as u64
        }
        _ => return Ok(()),
    };
    let nearest = args.out.ancestors().skip(1).find(|dir| dir.is_dir());
    let nearest = nearest.filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let free = fs4::available_space(nearest)
        .with_context(|| format!("cannot tell the free space at {}", nearest.display()))?;
    ensure!(
        free >= weights,
        "the export needs about {} at {}, where {} are free",
        size(weights),
        nearest.display(),
        size(free)
    );
    Ok(())
}
