//! `RunConfig`: the sum of the modules' own settings, read from TOML with `--set key=value` on top.
//!
//! Every key has one default, in the struct that owns it; `configs/reference.toml` lists them all. An unknown key
//! is an error that names the nearest known one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::error::{usage, with_nearest_key};
use crate::eval::EvalConfig;
use crate::model::config::ModelConfig;
use crate::model::gradients::Trainable;
use crate::model::lora::LoraConfig;
use crate::model::prefix::PrefixConfig;
use crate::ops::weight::Storage;
use crate::teacher::{SplitConfig, TeacherConfig};
use crate::tokens::TokensConfig;
use crate::train::config::{LossConfig, OptimizerConfig, ScheduleConfig, TrainConfig};

/// A whole config file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// What the run is called, and where it lives.
    pub run: RunTable,
    /// The base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelTable>,
    /// The world and its teacher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherConfig>,
    /// Episode files of one's own, instead of a teacher's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataTable>,
    /// How a teacher's episodes are divided.
    #[serde(default)]
    pub split: SplitConfig,
    /// How episodes become tokens.
    #[serde(default)]
    pub tokens: TokensConfig,
    /// The adapter.
    #[serde(default)]
    pub lora: LoraConfig,
    /// `[prefix]`: a soft prompt to train in place of LoRA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<PrefixConfig>,
    /// The loss.
    #[serde(default)]
    pub loss: LossConfig,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate's course.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// The training loop.
    #[serde(default)]
    pub train: TrainConfig,
    /// What is measured.
    #[serde(default)]
    pub eval: EvalConfig,
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunTable {
    /// The run directory is `dir/name`.
    pub name: String,
    /// Where run directories are.
    #[serde(default = "default_dir")]
    pub dir: PathBuf,
    /// Everything random is a function of it.
    #[serde(default)]
    pub seed: u64,
    /// `auto`, `cpu`, `cuda:0` or `metal`.
    #[serde(default = "auto")]
    pub device: String,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelTable {
    /// A folder laid out like a hub snapshot, or a hub id (`org/name`, `org/name@revision`).
    pub source: String,
    /// The hub revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// `auto` (f32 on the CPU, bf16 on GPUs), `f32` or `bf16`.
    #[serde(default = "auto")]
    pub dtype: String,
    /// How the linears' frozen weights are kept: `none` (in the dtype of weights), `bf16`, `q8_0` or `q4_k`.
    #[serde(default = "none", skip_serializing_if = "is_none")]
    pub quantization: String,
    /// Whether the weights are the snapshot's, or drawn at random to train a small model from the start.
    #[serde(default)]
    pub init: Init,
}

/// Where a model's weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// The snapshot's.
    #[default]
    Pretrained,
    /// Drawn from the seed.
    Random,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataTable {
    /// Episodes to train on.
    pub train: PathBuf,
    /// Episodes to choose checkpoints by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Episodes to measure on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
}

fn default_dir() -> PathBuf {
    "runs".into()
}

fn none() -> String {
    "none".into()
}

fn is_none(quantization: &str) -> bool {
    quantization == "none"
}

impl ModelTable {
    /// How the linears' frozen weights are kept.
    ///
    /// # Errors
    /// For an unknown name.
    pub fn storage(&self) -> Result<Storage> {
        storage(&self.quantization)
    }
}

/// The storage of that name.
///
/// # Errors
/// For an unknown name.
pub fn storage(name: &str) -> Result<Storage> {
    Storage::parse(name).ok_or_else(|| {
        let known = Storage::NAMES.map(|(name, _)| name).join(", ");
        usage(format!("unknown quantization {name:?}: there are {known}"))
    })
}

fn auto() -> String {
    "auto".into()
}

impl RunConfig {
    /// Reads a config file and applies `key=value` settings to it.
    ///
    /// # Errors
    /// A usage error for a missing file, wrong TOML, an unknown key (with the nearest known one) or a value out of
    /// range.
    pub fn load(path: &Path, settings: &[String]) -> Result<Self> {
        let at = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| usage(format!("cannot read {at}: {e}")))?;
        Self::parse(&text, &at.to_string(), settings)
    }

    /// As [`RunConfig::load`], from a text; `at` is what errors call it.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn parse(text: &str, at: &str, settings: &[String]) -> Result<Self> {
        let mut table: Table = toml::from_str(text).map_err(|e| usage(format!("{at}: {e}")))?;
        for setting in settings {
            apply(&mut table, setting)?;
        }
        let parsed = if settings.is_empty() {
            toml::from_str(text) // keeps line numbers for the error
        } else {
            table.try_into()
        };
        let mut config: Self = parsed.map_err(|e| {
            let with =
                if settings.is_empty() { String::new() } else { format!(" with {}", settings.join(" ")) };
            usage(format!("{at}{with}: {}", with_nearest_key(&e.to_string())))
        })?;
        if config.prefix.is_some() && config.train.weights == Trainable::Lora {
            config.train.weights = Trainable::Prefix;
        }
        config.validate()?;
        Ok(config)
    }

    /// The `[eval]` that `key=value` settings make of the defaults.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn eval_settings(settings: &[String]) -> Result<EvalConfig> {
        Ok(Self::parse("[run]\nname = \"eval\"", "eval", settings)?.eval)
    }

    /// The keys of `[eval]` that a config file, if there is one, and settings on top of it give themselves.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn eval_keys(path: Option<&Path>, settings: &[String]) -> Result<BTreeSet<String>> {
        let mut table = Table::new();
        if let Some(path) = path {
            let at = path.display();
            let text = std::fs::read_to_string(path).map_err(|e| usage(format!("cannot read {at}: {e}")))?;
            table = toml::from_str(&text).map_err(|e| usage(format!("{at}: {e}")))?;
        }
        for setting in settings {
            apply(&mut table, setting)?;
        }
        let eval = table.get("eval").and_then(Value::as_table);
        Ok(eval.map(|eval| eval.keys().cloned().collect()).unwrap_or_default())
    }

    /// `[tokens]` with the settings that are of it applied, for a command without a config of its own.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn tokens_settings(tokens: TokensConfig, settings: &[String]) -> Result<TokensConfig> {
        let own: Vec<String> =
            settings.iter().filter(|s| s.trim_start().starts_with("tokens")).cloned().collect();
        if own.is_empty() {
            return Ok(tokens);
        }
        let mut base: Table = toml::from_str("[run]\nname = \"tokens\"")?;
        base.insert("tokens".into(), toml::Value::try_from(tokens)?);
        Ok(Self::parse(&toml::to_string(&base)?, "tokens", &own)?.tokens)
    }

    /// The resolved config of a run that has been started.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn stored(run_dir: &Path) -> Result<Self> {
        Self::load(&run_dir.join(CONFIG_FILE), &[])
    }

    /// As TOML.
    ///
    /// # Errors
    /// If a value has no TOML form.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }

    /// The run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.run.dir.join(&self.run.name)
    }

    /// `[model]`, for a command that needs it.
    ///
    /// # Errors
    /// A usage error if it is missing.
    pub fn model(&self) -> Result<&ModelTable> {
        self.model.as_ref().ok_or_else(|| usage("[model] is missing: it needs at least `source = \"…\"`"))
    }

    /// `[teacher]`, for a command that needs it.
    ///
    /// # Errors
    /// A usage error if it is missing.
    pub fn teacher(&self) -> Result<&TeacherConfig> {
        self.teacher.as_ref().ok_or_else(|| usage("[teacher] is missing: it needs at least `world = \"…\"`"))
    }

    fn validate(&self) -> Result<()> {
        let name = &self.run.name;
        let plain = !name.is_empty() && !name.contains(['/', '\\']) && name != "." && name != "..";
        if !plain {
            return Err(usage(format!("run.name is {name:?}, it must be a plain folder name")));
        }
        if self.teacher.is_some() && self.data.is_some() {
            return Err(usage("[teacher] and [data] are both given: keep one"));
        }
        if let Some(teacher) = &self.teacher {
            teacher.validate()?;
        }
        self.split.validate()?;
        self.lora.validate()?;
        self.check_trained()?;
        self.loss.validate()?;
        self.optimizer.validate()?;
        self.eval.validate()?;
        self.train.validate()
    }

    /// What is trained is said once: LoRA, a soft prompt or all weights.
    fn check_trained(&self) -> Result<()> {
        let Some(prefix) = &self.prefix else {
            if self.train.weights == Trainable::Prefix {
                return Err(usage("train.weights = \"prefix\" needs [prefix] with its length"));
            }
            return Ok(());
        };
        if self.train.weights == Trainable::All {
            return Err(usage(
                "[prefix] trains a soft prompt beside a frozen model: it does not go with train.weights = \"all\"",
            ));
        }
        if self.lora != LoraConfig::default() {
            return Err(usage("[lora] and [prefix] are both given: keep one"));
        }
        prefix.validate()
    }

    /// Parameters of the adapter on this model; none where all weights are trained.
    pub fn adapter_parameters(&self, model: &ModelConfig) -> Option<usize> {
        match self.train.weights {
            Trainable::Lora => Some(self.lora.parameter_count(model)),
            Trainable::Prefix => self.prefix.as_ref().map(|prefix| prefix.parameter_count(model)),
            Trainable::All => None,
        }
    }

    /// How many embeddings of a soft prompt stand before each sequence.
    pub fn prefix_len(&self) -> usize {
        self.prefix.as_ref().map_or(0, |prefix| prefix.length)
    }

    /// Every key whose value differs from `other`'s, as (`table.key`, ours, theirs).
    ///
    /// # Errors
    /// If a value has no TOML form.
    pub fn differences(&self, other: &Self) -> Result<Vec<(String, String, String)>> {
        let (ours, theirs) = (Value::try_from(self)?, Value::try_from(other)?);
        let mut found = Vec::new();
        compare("", Some(&ours), Some(&theirs), &mut found);
        Ok(found)
    }
}

/// The resolved config's name within a run.
pub const CONFIG_FILE: &str = "config.toml";

fn compare(path: &str, a: Option<&Value>, b: Option<&Value>, found: &mut Vec<(String, String, String)>) {
    let tables = (a.and_then(Value::as_table), b.and_then(Value::as_table));
    if tables.0.is_some() || tables.1.is_some() {
        let empty = Table::new();
        let (a, b) = (tables.0.unwrap_or(&empty), tables.1.unwrap_or(&empty));
        let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            compare(&path, a.get(key), b.get(key), found);
        }
    } else if a != b {
        let show = |v: Option<&Value>| v.map_or("(not set)".to_string(), ToString::to_string);
        found.push((path.to_string(), show(a), show(b)));
    }
}

/// Applies one `table.key=value`; the value is TOML, or else a string.
fn apply(table: &mut Table, setting: &str) -> Result<()> {
    let Some((key, value)) = setting.split_once('=') else {
        return Err(usage(format!("--set {setting}: expected key=value, such as train.max_steps=100")));
    };
    let value = value.trim();
    let parsed =
        toml::from_str::<Table>(&format!("value = {value}")).ok().and_then(|mut t| t.remove("value"));
    let value = parsed.unwrap_or_else(|| Value::String(value.to_string()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().unwrap_or_default();
    let mut at = table;
    for part in parts {
        let next = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        at = next
            .as_table_mut()
            .ok_or_else(|| usage(format!("--set {setting}: {part} is a value, not a table")))?;
    }
    at.insert(last.to_string(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, settings: &[&str]) -> Result<RunConfig> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text)?;
        RunConfig::load(&path, &settings.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn error(text: &str, settings: &[&str]) -> String {
        let error = load(text, settings).expect_err("this config is wrong");
        assert!(error.downcast_ref::<crate::error::UsageError>().is_some());
        error.to_string()
    }

    const MINIMAL: &str = "[run]\nname = \"a\"\n[teacher]\nworld = \"flights\"\n";

    #[test]
    fn settings_are_toml_or_strings() {
        let sets = [
            "train.max_steps=7",
            "run.dir=elsewhere/runs",
            "optimizer.betas=[0.8, 0.9]",
            "lora.use_rslora=true",
        ];
        let config = load(MINIMAL, &sets).expect("a valid config");
        assert_eq!(config.train.max_steps, Some(7));
        assert_eq!(config.run.dir, Path::new("elsewhere/runs"));
        assert_eq!(config.optimizer.betas, [0.8, 0.9]);
        assert!(config.lora.use_rslora);
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let message = error(&format!("{MINIMAL}[optimizer]\nlearning_rte = 1.0\nlr = 2.0"), &[]);
        assert!(message.contains("learning_rte") && message.contains("line 6"), "{message}");
        assert!(error(MINIMAL, &["train.max_step=3"]).contains("did you mean `max_steps`?"));
        assert!(error(MINIMAL, &["trian.max_steps=3"]).contains("did you mean `train`?"));
        assert!(error(MINIMAL, &["loss.kind=kll"]).contains("did you mean `kl`?"));
    }

    #[test]
    fn values_out_of_range_are_named() {
        assert!(error(MINIMAL, &["optimizer.lr=-1"]).contains("optimizer.lr"));
        assert!(error(MINIMAL, &["lora.dropout=1.0"]).contains("lora.dropout"));
        assert!(error(MINIMAL, &["lora.target_modules=[\"lm_head\"]"]).contains("lm_head"));
        assert!(error(MINIMAL, &["run.name=a/b"]).contains("run.name"));
        assert!(error(MINIMAL, &["train.epochs=1", "train.max_steps=1"]).contains("keep one"));
        assert!(error(MINIMAL, &["nonsense"]).contains("key=value"));
    }

    #[test]
    fn differences_are_named() {
        let (a, b) = (load(MINIMAL, &[]).expect("valid"), load(MINIMAL, &["lora.r=4"]).expect("valid"));
        assert_eq!(a.differences(&b).expect("both are TOML"), [("lora.r".into(), "16".into(), "4".into())]);
        assert!(a.differences(&a).expect("both are TOML").is_empty());
        let again = load(&a.to_toml().expect("a config has a TOML form"), &[]).expect("which parses");
        assert_eq!(again, a);
    }
}
