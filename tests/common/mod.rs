//! What the end-to-end tests share: a place of their own with a tiny base model, and the binary.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "each test uses a part of it"
)]

pub mod gguf;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bayesteach::model::config::ModelConfig;
use bayesteach::model::decoder::Decoder;
use bayesteach::model::tensors;
use candle_core::{DType, Device};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A temporary folder with a tiny base model in `base`; commands run in it.
pub struct Place {
    dir: TempDir,
}

/// What a command left.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// 30 users of 2 short questionnaires: 43 episodes to train on, so 11 steps of 4 are an epoch.
const CONFIG: &str = r#"
[run]
name = "a"
seed = 5
[model]
source = "base"
[teacher]
world = "personality"
rounds = 4
users = 30
episodes_per_user = 2
[lora]
r = 2
alpha = 4.0
dropout = 0.1
[schedule]
kind = "constant"
[optimizer]
lr = 1e-2
[train]
max_steps = 6
batch_size = 4
micro_batch_tokens = 200
save_every = 2
eval_every = 2
keep_last = 0
"#;

impl Place {
    pub fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        make_base(&place.path("base"));
        place.write("c.toml", CONFIG);
        place
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// The binary with these words, cut at white space.
    pub fn command(&self, words: &str) -> Command {
        self.command_of(&words.split_whitespace().collect::<Vec<_>>())
    }

    pub fn command_of(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bayesteach"));
        command.args(words);
        self.at_home(&mut command);
        command
    }

    /// Lets a command run here, offline, on two threads.
    pub fn at_home(&self, command: &mut Command) {
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", self.path("hub")).env("RAYON_NUM_THREADS", "2");
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "RUST_BACKTRACE"] {
            command.env_remove(name);
        }
    }

    pub fn run(&self, words: &str) -> Done {
        self.command(words).output().unwrap().into()
    }

    /// Runs a command that must succeed, and returns its standard output.
    pub fn ok(&self, words: &str) -> String {
        let done = self.run(words);
        assert_eq!(done.code, Some(0), "{words}: {}", done.stderr);
        done.stdout
    }

    /// Runs a command that must fail with this code and one clear error that says all of `parts`.
    pub fn fails(&self, words: &str, code: i32, parts: &[&str]) {
        self.run(words).is_error(words, code, parts);
    }

    /// The files below a folder, by relative path.
    pub fn files(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let root = self.path(folder);
        let mut files = BTreeMap::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_string();
                    files.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
        files
    }

    /// Every path below a folder that is there, sorted.
    pub fn names(&self, folder: &str) -> Vec<String> {
        if self.path(folder).is_dir() { self.files(folder).into_keys().collect() } else { Vec::new() }
    }

    /// The steps of the checkpoints of a run.
    pub fn checkpoints(&self, run: &str) -> Vec<usize> {
        bayesteach::train::checkpoint::list(&self.path(&format!("runs/{run}"))).unwrap()
    }

    pub fn json(&self, path: &str) -> Value {
        bayesteach::files::read_json(&self.path(path)).unwrap()
    }
}

impl Done {
    /// One clear error: this exit code, one `error:` line, all of `parts` in it, no panic.
    pub fn is_error(&self, what: &str, code: i32, parts: &[&str]) {
        let Self { stderr, .. } = self;
        assert_eq!(self.code, Some(code), "{what}: {stderr}\n{}", self.stdout);
        let errors = stderr.lines().filter(|line| line.starts_with("error")).count();
        assert_eq!(errors, 1, "{what}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("stack backtrace"), "{what}: {stderr}");
        let error = &stderr[stderr.find("error").unwrap()..];
        for part in parts {
            assert!(error.contains(part), "{what}: the error does not say {part:?}: {error}");
        }
    }
}

/// A Llama of two layers with the tokenizer of the shipped base and random weights.
fn make_base(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(repository("data/base").join(name), dir.join(name)).unwrap();
    }
    let mut config: Value = bayesteach::files::read_json(&repository("data/base/config.json")).unwrap();
    let sizes = [
        ("hidden_size", 32),
        ("intermediate_size", 48),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("head_dim", 8),
    ];
    for (key, size) in sizes {
        config[key] = json!(size);
    }
    bayesteach::files::write_json(&dir.join("config.json"), &config).unwrap();
    let config = ModelConfig::load(dir).unwrap();
    let model = Decoder::random(&config, 1, DType::F32, &Device::Cpu).unwrap();
    tensors::write(&dir.join("model.safetensors"), &model.parameters()).unwrap();
}
