//! Rules about the whole repository: who may use whom, who may touch what, and that the documented defaults are the
//! program's.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const MODULES: [&str; 20] = [
    "cli", "config", "device", "episode", "error", "eval", "export", "files", "hub", "import", "metrics",
    "model", "ops", "report", "rng", "session", "teacher", "tokens", "train", "world",
];

/// What a module may use besides `error`, `files` and `rng`, which stand below everything.
fn allowed(module: &str) -> &'static [&'static str] {
    match module {
        "metrics" | "tokens" => &["episode"],
        "world" => &["episode"],
        "teacher" => &["world", "episode", "metrics"],
        "model" => &["ops", "device"],
        "ops" => &["device"],
        "eval" => &["tokens", "model", "ops", "teacher", "episode", "metrics", "device"],
        "train" => &["tokens", "model", "ops", "eval", "device", "metrics"],
        "export" => &["model", "tokens"],
        "report" => &["metrics"],
        "import" => &["world", "teacher", "episode"],
        "session" => &["tokens", "model", "eval", "world", "teacher", "episode", "metrics"],
        "config" | "cli" => &MODULES,
        _ => &[],
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// (module, path within src, code lines without comments)
fn code() -> Vec<(String, String, Vec<String>)> {
    let mut found = Vec::new();
    let src = root().join("src");
    sources(&src, &mut found);
    let mut result = Vec::new();
    for path in found {
        let within = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
        let module = within.split('/').next().unwrap().trim_end_matches(".rs").to_string();
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|l| !l.trim_start().starts_with("//")).map(String::from).collect();
        result.push((module, within, lines));
    }
    result
}

#[test]
fn modules_use_only_what_they_may() {
    for (module, path, lines) in code() {
        let may: BTreeSet<&str> =
            allowed(&module).iter().copied().chain(["error", "files", "rng", module.as_str()]).collect();
        for used in lines.iter().flat_map(|line| line.split("crate::").skip(1)) {
            let name: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let is_module = MODULES.contains(&name.as_str());
            let root_file = ["lib", "main"].contains(&module.as_str());
            assert!(!is_module || root_file || may.contains(name.as_str()), "{path} uses crate::{name}");
        }
    }
}

#[test]
fn candle_devices_and_the_environment_stay_in_their_places() {
    let without_candle = [
        "world", "teacher", "episode", "metrics", "tokens", "hub", "files", "rng", "error", "config",
        "report", "import",
    ];
    for (module, path, lines) in code() {
        let has = |text: &str| lines.iter().any(|line| line.contains(text));
        assert!(!(has("candle") && without_candle.contains(&module.as_str())), "{path} uses candle");
        assert!(
            !has("cfg(feature") || ["device", "ops"].contains(&module.as_str()),
            "{path} has cfg(feature)"
        );
        assert!(!has("env::var") || module == "cli", "{path} reads the environment");
        assert!(!has("println!"), "{path} prints past the command line's own functions");
    }
}

#[test]
fn the_reference_config_lists_every_key_with_its_default() {
    let path = root().join("configs/reference.toml");
    let text = fs::read_to_string(&path).unwrap();
    let reference = bayesteach::config::RunConfig::load(&path, &[]).unwrap();
    let minimal = tempfile::NamedTempFile::new().unwrap();
    let required =
        "[run]\nname = \"example\"\n[model]\nsource = \"data/base\"\n[teacher]\nworld = \"personality\"\n";
    fs::write(minimal.path(), required).unwrap();
    let defaults = bayesteach::config::RunConfig::load(minimal.path(), &[]).unwrap();
    assert_eq!(reference.differences(&defaults).unwrap(), []);
    // Keys without a default stand in a comment; all others must be there as they are.
    let defaults: toml::Table = toml::from_str(&defaults.to_toml().unwrap()).unwrap();
    let written: toml::Table = toml::from_str(&text).unwrap();
    for (table, keys) in &defaults {
        for key in keys.as_table().unwrap().keys() {
            assert!(written[table].get(key).is_some(), "configs/reference.toml lacks {table}.{key}");
        }
    }
    for optional in ["users", "rounds", "max_length", "revision", "epochs", "max_steps", "validation", "test"]
    {
        assert!(
            text.contains(&format!("# {optional} =")),
            "configs/reference.toml does not mention {optional}"
        );
    }
}

#[test]
fn every_shipped_config_parses() {
    for entry in fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "toml") {
            bayesteach::config::RunConfig::load(&path, &[]).unwrap();
        }
    }
}
