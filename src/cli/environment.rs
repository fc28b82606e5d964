//! The environment variables that the program reads: those of Hugging Face's own tools.

use std::path::PathBuf;
use std::time::Duration;

use crate::hub::HubSettings;

/// How long the hub may say nothing, unless the environment says otherwise.
const SILENCE: Duration = Duration::from_secs(60);

/// Cache, token, offline mode and endpoint, from where `huggingface_hub` looks for them.
pub(super) fn hub_settings() -> HubSettings {
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let home = var("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
        let cache = var("XDG_CACHE_HOME").map(PathBuf::from);
        let user = || PathBuf::from(var("HOME").or_else(|| var("USERPROFILE")).unwrap_or_default());
        cache.unwrap_or_else(|| user().join(".cache")).join("huggingface")
    });
    let token_file = var("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
    let token = var("HF_TOKEN")
        .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
        .or_else(|| std::fs::read_to_string(token_file).ok())
        .map(|token| token.trim().to_owned());
    let offline = var("HF_HUB_OFFLINE")
        .is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.trim().to_lowercase().as_str()));
    HubSettings {
        cache: var("HF_HUB_CACHE")
            .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
            .map_or_else(|| home.join("hub"), PathBuf::from),
        token: token.filter(|token| !token.is_empty()),
        offline,
        endpoint: var("HF_ENDPOINT"),
        progress: true,
        silence: var("HF_HUB_DOWNLOAD_TIMEOUT")
            .and_then(|seconds| seconds.trim().parse().ok())
            .map_or(SILENCE, Duration::from_secs),
    }
}
