//! Uploading a folder to the hub: the calls that Python's `huggingface_hub` makes for `upload_folder`.
//!
//! The repository is created where it is not there; the hub says of each file whether it goes into the commit or, being
//! large or binary, into Git LFS; large ones are uploaded first, and one commit then names all. So the repository changes
//! in one step or not at all.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use ureq::http::Response;
use ureq::{Agent, Body};

use super::{HubSettings, is_plain};
use crate::error::usage;

const HUB: &str = "https://huggingface.co";

/// The branch that is written to.
const BRANCH: &str = "main";

/// What one upload may hold; larger files need the hub's multipart protocol.
const LARGEST_FILE: u64 = 5_000_000_000;

/// How many bytes of a file the hub is shown when it decides how to store it.
const SAMPLE: usize = 512;

/// Where a folder goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// `org/name`
    pub id: String,
    /// Whether a repository that is created here is for its owner alone.
    pub private: bool,
    /// The commit's message.
    pub message: String,
}

/// A file of the folder.
struct File {
    name: String,
    path: PathBuf,
    size: u64,
    sha256: String,
    sample: Vec<u8>,
}

/// Uploads the files that lie in `folder` (not those in folders within it, nor hidden ones), but for those named in
/// `without`. Returns the address of the commit. `progress` is told what is going on.
///
/// # Errors
/// A usage error without a token, offline, or where the destination is no repository's name; else if the folder cannot be
/// read, or the hub refuses or cannot be reached.
pub fn push(
    folder: &Path,
    without: &[&str],
    to: &Destination,
    settings: &HubSettings,
    progress: &dyn Fn(&str),
) -> Result<String> {
    let token = check(to, settings)?;
    let files = files(folder, without)?;
    let config =
        Agent::config_builder().http_status_as_error(false).timeout_connect(Some(Duration::from_secs(30)));
    let hub = Hub {
        agent: config.build().new_agent(),
        endpoint: settings.endpoint.as_deref().unwrap_or(HUB).trim_end_matches('/').to_owned(),
        token,
        id: &to.id,
    };
    hub.create(to.private, progress)?;
    let is_large = hub.ask_modes(&files)?;
    let large: Vec<&File> =
        files.iter().zip(&is_large).filter(|(_, large)| **large).map(|(file, _)| file).collect();
    hub.upload_large(&large, progress)?;
    progress(&format!("committing {} files", files.len()));
    hub.commit(&files, &is_large, &to.message)
}

/// The token, where nothing stands in the way of an upload as far as that can be told without the hub.
///
/// # Errors
/// As [`push`], before anything is read.
pub fn check<'a>(to: &Destination, settings: &'a HubSettings) -> Result<&'a str> {
    ensure!(
        is_plain(&to.id) && to.id.split('/').count() == 2,
        usage(format!("{:?} is not a repository such as your-name/your-adapter", to.id))
    );
    ensure!(!settings.offline, usage("HF_HUB_OFFLINE forbids to reach the hub: unset it to upload"));
    settings.check_token()?;
    settings.token.as_deref().ok_or_else(|| {
        usage(
            "there is no token, so the hub cannot know who you are: make one with write access in the hub's settings, then \
             set HF_TOKEN or log in with `hf auth login`",
        )
    })
}

fn files(folder: &Path, without: &[&str]) -> Result<Vec<File>> {
    let at = || format!("cannot read {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(at)? {
        let entry = entry.with_context(at)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !entry.path().is_file() || name.starts_with('.') || without.contains(&name.as_str()) {
            continue;
        }
        ensure!(
            is_plain(&name),
            usage(format!("{}: rename {name:?}, the hub takes plain names", folder.display()))
        );
        files.push(File::read(name, entry.path())?);
    }
    ensure!(!files.is_empty(), usage(format!("{} has no files to upload", folder.display())));
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

impl File {
    fn read(name: String, path: PathBuf) -> Result<Self> {
        let at = || format!("cannot read {}", path.display());
        let mut file = std::fs::File::open(&path).with_context(at)?;
        let (mut hasher, mut sample, mut size) = (Sha256::new(), Vec::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut buffer).with_context(at)?;
            if n == 0 {
                break;
            }
            let room = SAMPLE.saturating_sub(sample.len());
            sample.extend_from_slice(&buffer[..n.min(room)]);
            hasher.update(&buffer[..n]);
            size += n as u64;
        }
        ensure!(
            size <= LARGEST_FILE,
            usage(format!(
                "{} has {size} bytes: files of up to {LARGEST_FILE} can be uploaded here",
                path.display()
            ))
        );
        let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { name, path, size, sha256, sample })
    }
}

struct Hub<'a> {
    agent: Agent,
    endpoint: String,
    token: &'a str,
    id: &'a str,
}

impl Hub<'_> {
    fn create(&self, private: bool, progress: &dyn Fn(&str)) -> Result<()> {
        let (organization, name) = self.id.split_once('/').unwrap_or(("", self.id));
        let body = json!({"name": name, "organization": organization, "type": "model", "private": private});
        let what = format!("create {}", self.id);
        let mut response = self.post(&format!("{}/api/repos/create", self.endpoint), &body, &what)?;
        match response.status().as_u16() {
            200..=299 => {
                let kind = if private { "private" } else { "public" };
                progress(&format!("created {} ({kind})", self.id));
                Ok(())
            }
            // It is there already, as public or private as it is.
            409 => Ok(()),
            _ => Err(self.refused(&what, &mut response)),
        }
    }

    /// Whether each file goes into LFS.
    fn ask_modes(&self, files: &[File]) -> Result<Vec<bool>> {
        let described: Vec<Value> = files
            .iter()
            .map(|file| json!({"path": file.name, "size": file.size, "sample": BASE64.encode(&file.sample)}))
            .collect();
        let url = format!("{}/api/models/{}/preupload/{BRANCH}", self.endpoint, self.id);
        let told = self.json(
            self.post(&url, &json!({"files": described}), "ask how to store the files")?,
            "preupload",
        )?;
        let mode_of = |file: &File| {
            let all = told["files"].as_array();
            let own = all.and_then(|all| all.iter().find(|one| one["path"] == file.name.as_str()));
            let own = own.with_context(|| format!("the hub does not say how to store {}", file.name))?;
            ensure!(
                own["shouldIgnore"] != true,
                "the repository's .gitignore leaves {} out: change it there, or take the file out of the folder",
                file.name
            );
            match own["uploadMode"].as_str() {
                // An empty file cannot be an LFS object.
                Some("lfs") => Ok(file.size > 0),
                Some("regular") => Ok(false),
                other => bail!("the hub wants {} stored in an unknown way: {other:?}", file.name),
            }
        };
        files.iter().map(mode_of).collect()
    }

    fn upload_large(&self, files: &[&File], progress: &dyn Fn(&str)) -> Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        let objects: Vec<Value> =
            files.iter().map(|file| json!({"oid": file.sha256, "size": file.size})).collect();
        let body = json!({
            "operation": "upload", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256",
            "ref": {"name": BRANCH},
        });
        let url = format!("{}/{}.git/info/lfs/objects/batch", self.endpoint, self.id);
        let kind = "application/vnd.git-lfs+json";
        let request = self.agent.post(&url).header("Authorization", &self.bearer());
        let sent = request.header("Accept", kind).header("Content-Type", kind).send(body.to_string());
        let response = sent.map_err(|e| self.unreachable("ask where to upload", &e))?;
        let told = self.json(response, "the LFS batch")?;
        for file in files {
            let all = told["objects"].as_array();
            let own = all.and_then(|all| all.iter().find(|one| one["oid"] == file.sha256.as_str()));
            let own = own.with_context(|| format!("the hub does not say where to upload {}", file.name))?;
            if let Some(message) = own["error"]["message"].as_str() {
                bail!("the hub does not take {}: {message}", file.name);
            }
            match own["actions"]["upload"]["href"].as_str() {
                Some(href) => {
                    progress(&format!("uploading {} ({:.1} MB)", file.name, file.size as f64 / 1e6));
                    self.upload(file, href, &own["actions"]["upload"]["header"])?;
                    self.verify(file, &own["actions"]["verify"])?;
                }
                // The hub has these bytes already.
                None => progress(&format!("{} is there already", file.name)),
            }
        }
        Ok(())
    }

    /// The address is signed, and another server's: it gets no token.
    fn upload(&self, file: &File, href: &str, header: &Value) -> Result<()> {
        ensure!(
            header["chunk_size"].is_null(),
            "the hub wants {} in parts, which this program cannot do: upload it with `hf upload`",
            file.name
        );
        let body = std::fs::File::open(&file.path)
            .with_context(|| format!("cannot read {}", file.path.display()))?;
        let what = format!("upload {}", file.name);
        let mut request = self.agent.put(href);
        for (name, value) in header.as_object().into_iter().flatten() {
            if let Some(value) = value.as_str() {
                request = request.header(name, value);
            }
        }
        let mut response = request.send(body).map_err(|e| self.unreachable(&what, &e))?;
        if response.status().is_success() { Ok(()) } else { Err(self.refused(&what, &mut response)) }
    }

    fn verify(&self, file: &File, action: &Value) -> Result<()> {
        let Some(href) = action["href"].as_str() else { return Ok(()) };
        let what = format!("check {}", file.name);
        let mut request = self.agent.post(href);
        if href.starts_with(&format!("{}/", self.endpoint)) {
            request = request.header("Authorization", &self.bearer());
        }
        let body = json!({"oid": file.sha256, "size": file.size});
        let mut response = request.send_json(&body).map_err(|e| self.unreachable(&what, &e))?;
        if response.status().is_success() { Ok(()) } else { Err(self.refused(&what, &mut response)) }
    }

    fn commit(&self, files: &[File], is_large: &[bool], message: &str) -> Result<String> {
        let mut lines = vec![json!({"key": "header", "value": {"summary": message, "description": ""}})];
        for (file, is_large) in files.iter().zip(is_large) {
            lines.push(if *is_large {
                json!({"key": "lfsFile", "value": {
                    "path": file.name, "algo": "sha256", "oid": file.sha256, "size": file.size,
                }})
            } else {
                let bytes = std::fs::read(&file.path)
                    .with_context(|| format!("cannot read {}", file.path.display()))?;
                json!({"key": "file", "value": {
                    "content": BASE64.encode(bytes), "path": file.name, "encoding": "base64",
                }})
            });
        }
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let url = format!("{}/api/models/{}/commit/{BRANCH}", self.endpoint, self.id);
        let request = self.agent.post(&url).header("Authorization", &self.bearer());
        let sent = request.header("Content-Type", "application/x-ndjson").send(body);
        let told = self.json(sent.map_err(|e| self.unreachable("commit", &e))?, "the commit")?;
        let url = told["commitUrl"].as_str().map(str::to_owned);
        Ok(url.unwrap_or_else(|| format!("{}/{}", self.endpoint, self.id)))
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn post(&self, url: &str, body: &Value, what: &str) -> Result<Response<Body>> {
        let request = self.agent.post(url).header("Authorization", &self.bearer());
        request.send_json(body).map_err(|e| self.unreachable(what, &e))
    }

    /// The JSON of a response that must be a success.
    fn json(&self, mut response: Response<Body>, what: &str) -> Result<Value> {
        if !response.status().is_success() {
            return Err(self.refused(what, &mut response));
        }
        let text = response.body_mut().read_to_string();
        let text = text.map_err(|e| self.unreachable(what, &e))?;
        serde_json::from_str(&text).with_context(|| format!("the hub's answer to {what} is not JSON"))
    }

    /// What a refusal means to the user; the token is in none of it.
    fn refused(&self, what: &str, response: &mut Response<Body>) -> anyhow::Error {
        let status = response.status();
        let text = response.body_mut().read_to_string().unwrap_or_default();
        let told = serde_json::from_str::<Value>(&text).ok();
        let told = told.as_ref().and_then(|json| json["error"].as_str()).unwrap_or(text.trim());
        let told: String = told.chars().filter(|c| !c.is_control()).take(300).collect();
        let advice = match status.as_u16() {
            401 => ": the token is not valid (any more): make a new one and set HF_TOKEN",
            403 => ": the token may not write there: it needs write access, and to the owner's repositories",
            404 => ": there is no such repository for this token",
            413 => ": the hub takes no commit of this size",
            429 => ": too many requests for now: wait a while",
            _ => "",
        };
        anyhow!("the hub refuses ({what}, {}): {status}{advice} ({told})", self.id)
    }

    fn unreachable(&self, what: &str, error: &ureq::Error) -> anyhow::Error {
        anyhow!("cannot reach the hub at {} ({what}): {error}; nothing was committed", self.endpoint)
    }
}
