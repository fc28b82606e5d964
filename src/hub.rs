//! Where a model's files are: a folder, or a snapshot in the hub's cache, downloaded if need be.
//!
//! The cache is laid out as Python's `huggingface_hub` does, so that both share it. A complete snapshot in the
//! cache is used as it is, without asking the hub for a newer one: name a revision for another. One that may lack files
//! (other programs download what they need and no more) is completed.

mod progress;
mod silence;

pub mod push;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::error::usage;
use progress::Download;
use silence::{Pulse, within};

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
    /// Whether downloads show their progress (on standard error).
    pub progress: bool,
    /// How long the hub may say nothing before a download is given up.
    pub silence: Duration,
}

impl HubSettings {
    /// Refuses a token that cannot stand in a request, without showing it.
    ///
    /// # Errors
    /// A usage error.
    fn check_token(&self) -> Result<()> {
        let is_sound = |token: &String| token.chars().all(|c| c.is_ascii_graphic());
        ensure!(
            self.token.as_ref().is_none_or(is_sound),
            usage(
                "the hub's token (HF_TOKEN, or the file that `hf auth login` wrote) has characters that no token has, such \
                 as a space or a line break: set it again"
            )
        );
        Ok(())
    }
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
    /// Whether the tokenizer is needed.
    pub fn has_tokenizer(self) -> bool {
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
        if settings.offline || !model.may_lack_files(&snapshot, files, settings) {
            return Ok(snapshot);
        }
        // Where the hub cannot be reached, what is there is enough.
        let commit = HubModel { revision: snapshot.revision.clone().unwrap_or_default(), ..model };
        return Ok(commit.download(files, settings).unwrap_or(snapshot));
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

    /// Whether the hub may have small files of this snapshot that the cache has not, as far as the cache can tell.
    fn may_lack_files(&self, snapshot: &Snapshot, files: Files, settings: &HubSettings) -> bool {
        let known_absent = self.absent(snapshot.revision.as_deref().unwrap_or_default(), settings);
        let lacks = |name: &str| !snapshot.dir.join(name).is_file() && !known_absent.join(name).is_file();
        let config = snapshot.dir.join("tokenizer_config.json");
        let has_template =
            || std::fs::read_to_string(config).is_ok_and(|text| text.contains("\"chat_template\""));
        let lacks_template = || lacks("chat_template.jinja") && !has_template();
        // Without these a dialogue reads otherwise; nothing else is worth a request at every start.
        files.has_tokenizer() && (lacks("tokenizer_config.json") || lacks_template())
    }

    /// Where the cache keeps, as empty files, the names of files that a commit does not have.
    fn absent(&self, commit: &str, settings: &HubSettings) -> PathBuf {
        settings.cache.join(self.repo(&self.revision).folder_name()).join(".no_exist").join(commit)
    }

    /// One file into the cache: continued where an earlier download stopped, and whole in the end.
    fn fetch(
        &self,
        api: &Api,
        cache: &Cache,
        commit: &str,
        name: &str,
        settings: &HubSettings,
    ) -> Result<PathBuf> {
        let explain = |error: ApiError| explain(self, settings, &error);
        let cached = cache.repo(self.repo(commit));
        let there = cached.pointer_path(commit).join(name);
        if there.is_file() {
            return Ok(there);
        }
        let url = api.repo(self.repo(commit)).url(name);
        let asked = api.clone();
        let known = self.ask(settings, name, move |_| asked.metadata(&url))?.map_err(explain)?;
        let part = cached.blob_path(known.etag()).with_extension("part");
        // What is as long as the whole is not continued: the hub would refuse.
        if std::fs::metadata(&part).is_ok_and(|part| part.len() >= known.size() as u64) {
            std::fs::remove_file(&part).with_context(|| format!("cannot remove {}", part.display()))?;
        }
        let (repo, quiet, file) = (api.repo(self.repo(commit)), !settings.progress, name.to_owned());
        let path = self
            .ask(settings, name, move |pulse| {
                repo.download_with_progress(&file, Download::new(quiet, pulse))
            })?
            .map_err(explain)?;
        let size = std::fs::metadata(&path).map_or(0, |file| file.len());
        if size != known.size() as u64 {
            let blob = cached.blob_path(known.etag());
            std::fs::remove_file(&blob).or_else(|_| std::fs::remove_file(&path)).with_context(|| {
                format!("cannot remove {}, which was not downloaded whole", blob.display())
            })?;
            bail!(
                "{}: {name} came with {size} bytes of {}, and was removed again: try once more",
                self.describe(),
                known.size()
            );
        }
        Ok(path)
    }

    /// What the hub answers, unless it says nothing for too long.
    fn ask<T: Send + 'static>(
        &self,
        settings: &HubSettings,
        what: &str,
        work: impl FnOnce(Pulse) -> T + Send + 'static,
    ) -> Result<T> {
        within(settings.silence, work).with_context(|| {
            format!(
                "the download of {} stalled: nothing came for {} s ({what}). Check the network; the same command again goes \
                 on where it stopped",
                self.describe(),
                settings.silence.as_secs_f64()
            )
        })
    }

    /// Refuses a repository of GGUF files before anything is downloaded.
    fn check_files(&self, files: Files, names: &[&str]) -> Result<()> {
        let has = |name: &str| names.contains(&name);
        let lacks = [
            (!has("config.json"), "config.json"),
            (files.has_tokenizer() && !has("tokenizer.json"), "tokenizer.json"),
            (files.has_weights() && !has(WEIGHTS) && !has(WEIGHTS_INDEX), WEIGHTS),
        ];
        let lacks: Vec<&str> = lacks.iter().filter(|(lacks, _)| *lacks).map(|(_, name)| *name).collect();
        let ggufs: Vec<&str> =
            names.iter().filter(|name| name.to_lowercase().ends_with(".gguf")).copied().collect();
        let (Some(first), false) = (ggufs.first(), lacks.is_empty()) else { return Ok(()) };
        bail!(
            "{} has GGUF files ({first}{}), and no {}: download the one that you want, with `hf download {} {first}` for \
             example, and give its path as the model",
            self.describe(),
            if ggufs.len() > 1 { format!(" and {} more", ggufs.len() - 1) } else { String::new() },
            lacks.join(", no "),
            self.id
        )
    }

    fn download(&self, files: Files, settings: &HubSettings) -> Result<Snapshot> {
        settings.check_token()?;
        let explain = |error: ApiError| explain(self, settings, &error);
        let cache = Cache::new(settings.cache.clone());
        let mut builder =
            ApiBuilder::from_cache(cache.clone()).with_token(settings.token.clone()).with_retries(3);
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        let api: Api = builder.build().map_err(explain)?;
        let repo = api.repo(self.repo(&self.revision));
        let info = self.ask(settings, "its list of files", move |_| repo.info())?.map_err(explain)?;

        // Files are asked for by commit, so that all are of the same one, whatever is pushed meanwhile.
        let fetch = |name: &str| self.fetch(&api, &cache, &info.sha, name, settings);
        let has = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);
        self.check_files(
            files,
            &info.siblings.iter().map(|file| file.rfilename.as_str()).collect::<Vec<_>>(),
        )?;
        let absent = self.absent(&info.sha, settings);
        for name in SMALL_FILES {
            if has(name) {
                fetch(name)?;
            } else if std::fs::create_dir_all(&absent).is_ok() {
                // So that nobody asks again; the cache works without.
                let _ = std::fs::write(absent.join(name), "");
            }
        }
        if files.has_weights() && has(WEIGHTS) {
            fetch(WEIGHTS)?;
        } else if files.has_weights() && has(WEIGHTS_INDEX) {
            for shard in shards(&fetch(WEIGHTS_INDEX)?)? {
                fetch(&shard)?;
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
