//! Where a model's files are: a folder, or a snapshot in the hub's cache, downloaded if need be.
//!
//! The cache is laid out as Python's `huggingface_hub` does, so that both share it. A complete snapshot in the
//! cache is used as it is, without asking the hub for a newer one: name a revision for another.

pub mod push;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::error::usage;

/// How to reach the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSettings {
    /// The cache folder, which holds one folder a model.
    pub cache: PathBuf,
    /// The token that opens gated and private models.
    pub token: Option<String>,
    /// Whether to use only what is in the cache.
    pub offline: bool,
    /// Another address than the hub's own.
    pub endpoint: Option<String>,
    /// Whether downloads show a progress bar (on standard error).
    pub progress: bool,
}

/// A model's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder.
    pub dir: PathBuf,
    /// What the model is called: the hub id, or the folder as given.
    pub name: String,
    /// The commit of a hub model.
    pub revision: Option<String>,
}

/// Which files are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// Config alone.
    Config,
    /// Config and tokenizer.
    Tokenizer,
    /// Config and weights.
    Weights,
    /// Config, tokenizer and weights.
    All,
}

impl Files {
    fn has_tokenizer(self) -> bool {
        matches!(self, Self::Tokenizer | Self::All)
    }

    fn has_weights(self) -> bool {
        matches!(self, Self::Weights | Self::All)
    }
}

const WEIGHTS: &str = "model.safetensors";
const WEIGHTS_INDEX: &str = "model.safetensors.index.json";
/// Downloaded where the model has them.
const SMALL_FILES: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
];

/// Finds the files of `source`: a folder, or a hub id such as `org/name` or `org/name@revision`.
///
/// # Errors
/// If there is neither, or a needed file is missing, the hub refuses or cannot be reached.
pub fn resolve(
    source: &str,
    revision: Option<&str>,
    files: Files,
    settings: &HubSettings,
) -> Result<Snapshot> {
    let folder = Path::new(source);
    if folder.is_dir() {
        ensure!(
            revision.is_none(),
            usage(format!("model.revision is set, but {source} is a folder, which has no revisions"))
        );
        require(folder, files).with_context(|| format!("model {source}"))?;
        return Ok(Snapshot { dir: folder.to_owned(), name: source.to_owned(), revision: None });
    }
    let model = HubModel::parse(source, revision)?;
    if let Some(snapshot) = model.cached(settings).filter(|snapshot| require(&snapshot.dir, files).is_ok()) {
        return Ok(snapshot);
    }
    ensure!(
        !settings.offline,
        "{} is not (completely) in the cache {}, and HF_HUB_OFFLINE forbids to download it: unset it, or download the \
         model first",
        model.describe(),
        settings.cache.display()
    );
    let snapshot = model.download(files, settings)?;
    require(&snapshot.dir, files).with_context(|| format!("model {source}"))?;
    Ok(snapshot)
}

/// Checks that a folder has what is needed, every shard included.
fn require(folder: &Path, files: Files) -> Result<()> {
    let tokenizer = files.has_tokenizer().then_some("tokenizer.json");
    for name in std::iter::once("config.json").chain(tokenizer) {
        ensure!(folder.join(name).is_file(), "{} has no {name}", folder.display());
    }
    if !files.has_weights() || folder.join(WEIGHTS).is_file() {
        return Ok(());
    }
    let index = folder.join(WEIGHTS_INDEX);
    ensure!(
        index.is_file(),
        "{} has neither {WEIGHTS} nor {WEIGHTS_INDEX}: weights in other formats must be converted first",
        folder.display()
    );
    for shard in shards(&index)? {
        ensure!(folder.join(&shard).is_file(), "{} has no {shard}, which its index names", folder.display());
    }
    Ok(())
}

/// The files that an index of sharded weights names, in order.
fn shards(index: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(index).with_context(|| format!("cannot read {}", index.display()))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not valid JSON", index.display()))?;
    let map = json.get("weight_map").and_then(|map| map.as_object());
    let map = map.with_context(|| format!("{} has no weight_map", index.display()))?;
    let mut shards: Vec<String> =
        map.values().filter_map(|shard| shard.as_str()).map(str::to_owned).collect();
    shards.sort();
    shards.dedup();
    ensure!(!shards.is_empty(), "{}: weight_map is empty", index.display());
    for shard in &shards {
        ensure!(is_plain(shard), "{} names a file outside its folder: {shard:?}", index.display());
    }
    Ok(shards)
}

/// Whether a path of the hub stays within its folder.
fn is_plain(path: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    path.chars().all(allowed) && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

struct HubModel {
    id: String,
    revision: String,
}

impl HubModel {
    fn parse(source: &str, revision: Option<&str>) -> Result<Self> {
        let (id, inline) = match source.split_once('@') {
            Some((id, inline)) => (id, Some(inline)),
            None => (source, None),
        };
        ensure!(
            is_plain(id) && id.split('/').count() == 2,
            usage(format!(
                "{source:?} is neither an existing folder nor a hub id such as org/name or org/name@revision"
            ))
        );
        if let (Some(inline), Some(revision)) = (inline, revision) {
            ensure!(
                inline == revision,
                usage(format!(
                    "{source:?} names the revision {inline:?}, and model.revision names {revision:?}"
                ))
            );
        }
        let revision = inline.or(revision).unwrap_or("main");
        ensure!(is_plain(revision), usage(format!("{revision:?} is not a revision")));
        Ok(Self { id: id.to_owned(), revision: revision.to_owned() })
    }

    fn describe(&self) -> String {
        format!("{} (revision {})", self.id, self.revision)
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, revision.to_owned())
    }

    /// The snapshot in the cache, complete or not: by branch or tag, or by the commit itself.
    fn cached(&self, settings: &HubSettings) -> Option<Snapshot> {
        let folder = settings.cache.join(self.repo(&self.revision).folder_name());
        let reference = std::fs::read_to_string(folder.join("refs").join(&self.revision)).ok();
        let commit = reference.map_or_else(|| self.revision.clone(), |commit| commit.trim().to_owned());
        let dir = folder.join("snapshots").join(&commit);
        let found = !commit.is_empty() && dir.is_dir();
        found.then(|| Snapshot { dir, name: self.id.clone(), revision: Some(commit) })
    }

    fn download(&self, files: Files, settings: &HubSettings) -> Result<Snapshot> {
        let explain = |error: ApiError| explain(self, settings, &error);
        let cache = Cache::new(settings.cache.clone());
        let mut builder = ApiBuilder::from_cache(cache.clone())
            .with_token(settings.token.clone())
            .with_progress(settings.progress)
            .with_retries(3);
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        let api: Api = builder.build().map_err(explain)?;
        let info = api.repo(self.repo(&self.revision)).info().map_err(explain)?;

        // Files are asked for by commit, so that all are of the same one, whatever is pushed meanwhile.
        let repo = api.repo(self.repo(&info.sha));
        let has = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);
        for name in SMALL_FILES.into_iter().filter(|name| has(name)) {
            repo.get(name).map_err(explain)?;
        }
        if files.has_weights() && has(WEIGHTS) {
            repo.get(WEIGHTS).map_err(explain)?;
        } else if files.has_weights() && has(WEIGHTS_INDEX) {
            for shard in shards(&repo.get(WEIGHTS_INDEX).map_err(explain)?)? {
                repo.get(&shard).map_err(explain)?;
            }
        }
        cache
            .repo(self.repo(&self.revision))
            .create_ref(&info.sha)
            .with_context(|| format!("cannot write to the cache {}", settings.cache.display()))?;
        match self.cached(settings) {
            Some(snapshot) => Ok(snapshot),
            None => bail!("{} has none of the files of a model", self.describe()),
        }
    }
}

/// What a failed request means to the user.
fn explain(model: &HubModel, settings: &HubSettings, error: &ApiError) -> anyhow::Error {
    let text = error.to_string();
    let name = model.describe();
    // The status is in a type of the HTTP library, which is not ours to name.
    let message = if text.contains("status: 401") || text.contains("status: 403") {
        let token = match &settings.token {
            Some(_) => {
                "your token does not open it: accept its conditions on its page on the hub with the account of \
                        the token, and see that the token may read gated models"
            }
            None => {
                "there is no token: accept its conditions on its page on the hub, then set HF_TOKEN or log in with \
                     `hf auth login`"
            }
        };
        format!("{name} is gated or private, or does not exist, and {token}")
    } else if text.contains("status: 404") {
        format!("{name} is not on the hub (and there is no such folder): check the spelling and the revision")
    } else if text.contains("status: 429") {
        format!("the hub refuses more requests for now: wait, or set HF_TOKEN to be allowed more ({name})")
    } else if let ApiError::IoError(_) = error {
        format!("cannot write {name} into the cache {}: {text}", settings.cache.display())
    } else if let ApiError::LockAcquisition(_) = error {
        format!("another program is downloading {name}: wait for it to finish ({text})")
    } else {
        format!(
            "cannot download {name} (and there is no folder of that name): {text}. Check the network, or name a folder that has the model's files; a started \
             download continues where it stopped"
        )
    };
    anyhow::Error::msg(message)
}
