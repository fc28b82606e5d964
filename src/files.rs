//! Files that are written whole or not at all.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tempfile::TempDir;

use crate::error::usage;

/// Writes `bytes` to `path`: to a temporary file beside it, synced, then renamed into place.
///
/// # Errors
/// If the folder cannot be written to; then `path` is as it was.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let at = || format!("cannot write {}", path.display());
    // A device or a pipe takes the bytes as they come; a rename would put a file in its place.
    if std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
        return std::fs::write(path, bytes).with_context(at);
    }
    let dir = folder(path);
    let (mut file, _unfinished) = Unfinished::made(|| temporary_file(dir)).with_context(at)?;
    file.write_all(bytes).with_context(at)?;
    file.as_file().sync_all().with_context(at)?;
    file.persist(path).with_context(at)?;
    sync_folder(dir);
    Ok(())
}

/// A temporary file with the permissions that any new file would get.
fn temporary_file(dir: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".tmp-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir)
}

/// Fails at once where a file could not be written to `path` later, after long work.
///
/// # Errors
/// If its folder is missing or cannot be written to.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.exists() && !path.is_dir() {
        return Ok(());
    }
    let dir = folder(path);
    anyhow::ensure!(!path.is_dir(), "cannot write {}: it is a folder", path.display());
    anyhow::ensure!(dir.is_dir(), "cannot write {}: there is no folder {}", path.display(), dir.display());
    let probe = temporary_file(dir).map_err(|e| e.kind());
    probe.map(drop).map_err(|kind| anyhow::anyhow!("cannot write {}: {kind}", path.display()))
}

/// Files of a folder that a program loads a model or an adapter from.
const LOADED: [&str; 5] = [".safetensors", ".gguf", "config.json", "tokenizer.json", "chat_template.jinja"];

/// Fails where writing `outputs` would destroy something: one of the files `inputs`, by whatever path and also through
/// links, a file that models are loaded from in one of the folders `inputs`, or another output.
///
/// # Errors
/// A usage error that names both paths.
pub fn check_apart(outputs: &[&Path], inputs: &[&Path]) -> Result<()> {
    for (i, output) in outputs.iter().enumerate() {
        if outputs[..i].iter().any(|other| is_same(output, other)) {
            return Err(usage(format!("{} is named for two outputs: name two files", output.display())));
        }
        for input in inputs {
            let loaded = |name: &str| LOADED.iter().any(|end| name.ends_with(end));
            let name = output.file_name().unwrap_or_default().to_string_lossy();
            let within = input.is_dir() && output.is_file() && is_same(folder(output), input);
            if is_same(output, input) || (within && loaded(&name)) {
                return Err(usage(format!(
                    "{} would be written over {}, which is read: name another file to write",
                    output.display(),
                    if within { "a file of ".to_owned() } else { String::new() }
                        + &input.display().to_string()
                )));
            }
        }
    }
    Ok(())
}

/// Whether two paths are of one file or folder. Devices and pipes can be written to and read at once.
fn is_same(a: &Path, b: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir());
    a == b && !device(a) || !device(a) && !device(b) && same_file::is_same_file(a, b).unwrap_or(false)
}

/// Writes `value` as indented JSON with a final newline, as [`write()`] does.
///
/// # Errors
/// As [`write()`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    write(path, &bytes)
}

/// Reads JSON, with the path in the error.
///
/// # Errors
/// If the file cannot be read or is not such JSON.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

/// The folder that holds `path`.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Words of a command line as a POSIX shell takes them.
pub fn quoted(word: impl AsRef<Path>) -> String {
    let word = word.as_ref().display().to_string();
    // Nothing can be done about a NUL, which no path has.
    shlex::try_quote(&word).map(|quoted| quoted.into_owned()).unwrap_or(word)
}

/// Makes renames in `dir` durable, where the system can.
pub fn sync_folder(dir: &Path) {
    // Some systems cannot open a folder; the rename itself is atomic all the same.
    if let Ok(file) = std::fs::File::open(dir) {
        let _ = file.sync_all();
    }
}

/// Makes a folder whole or not at all: `fill` writes into a new folder beside `path`, which is then synced and
/// renamed to `path`, taking the place of what was there.
///
/// # Errors
/// If `fill` fails or the disk does; then `path` is as it was.
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = folder(path);
    let at = || format!("cannot write {}", path.display());
    std::fs::create_dir_all(parent).with_context(at)?;
    let new = TemporaryFolder::within(parent).with_context(at)?;
    fill(new.path())?;
    for entry in std::fs::read_dir(new.path()).with_context(at)? {
        let file = std::fs::File::open(entry.with_context(at)?.path()).with_context(at)?;
        file.sync_all().with_context(at)?;
    }
    sync_folder(new.path());
    make_readable(new.path()).with_context(at)?;
    let TemporaryFolder { dir: new, unfinished } = new;
    // Who ends the process waits until the new folder stands.
    let mut swap = all_unfinished();
    // A folder cannot be renamed over one with files in it; the old one steps aside until the new one stands.
    let old = if path.exists() {
        let aside = tempfile::Builder::new().prefix(".tmp-").tempdir_in(parent).with_context(at)?;
        std::fs::rename(path, aside.path().join("old")).with_context(at)?;
        Some(aside)
    } else {
        None
    };
    if let Err(error) = std::fs::rename(new.path(), path) {
        if let Some(aside) = &old {
            let _ = std::fs::rename(aside.path().join("old"), path);
        }
        return Err(error).with_context(at);
    }
    let _ = new.keep();
    let _unfinished = old.as_ref().map(|aside| Unfinished::among(&mut swap, aside.path()));
    drop(swap);
    drop(unfinished);
    sync_folder(parent);
    drop(old);
    Ok(())
}

/// What is there only while this process works on it: removed where the process ends by [`abandon`].
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn all_unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Unfinished(PathBuf);

impl Unfinished {
    /// A new file or folder, which is never there without being known of.
    fn made<T: AsRef<Path>>(make: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<(T, Self)> {
        let mut all = all_unfinished();
        let made = make()?;
        let unfinished = Self::among(&mut all, made.as_ref());
        Ok((made, unfinished))
    }

    fn among(all: &mut BTreeSet<PathBuf>, path: &Path) -> Self {
        all.insert(path.to_path_buf());
        Self(path.to_path_buf())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        all_unfinished().remove(&self.0);
    }
}

/// Removes what is not whole, for a process that is about to end at once: nothing is finished any more from here on.
pub fn abandon() {
    let all = all_unfinished();
    for path in all.iter() {
        // The thread that writes there may put another file into the folder meanwhile.
        for _ in 0..100 {
            let _ = std::fs::remove_dir_all(path).or_else(|_| std::fs::remove_file(path));
            if std::fs::symlink_metadata(path).is_err() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    std::mem::forget(all);
}

/// A folder that goes with its owner, also where the user ends the process.
#[derive(Debug)]
pub struct TemporaryFolder {
    // Removed before it is forgotten.
    dir: TempDir,
    unfinished: Unfinished,
}

impl TemporaryFolder {
    /// A new one where the system keeps temporary files.
    ///
    /// # Errors
    /// If the system cannot make one.
    pub fn new() -> Result<Self> {
        let made = Unfinished::made(|| tempfile::Builder::new().prefix("bayesteach-").tempdir());
        let (dir, unfinished) = made.context("cannot make a temporary folder")?;
        Ok(Self { dir, unfinished })
    }

    fn within(parent: &Path) -> std::io::Result<Self> {
        let (dir, unfinished) =
            Unfinished::made(|| tempfile::Builder::new().prefix(".tmp-").tempdir_in(parent))?;
        Ok(Self { dir, unfinished })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Temporary folders are private; what is kept gets the usual permissions.
#[cfg(unix)]
fn make_readable(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_readable(_dir: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let target = dir.path().join("checkpoint");
        write_folder(&target, |d| write(&d.join("a"), b"1")).expect("the first write works");
        let failed = write_folder(&target, |d| {
            write(&d.join("a"), b"2")?;
            anyhow::bail!("the disk is full")
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(target.join("a")).expect("still there"), b"1");
        write_folder(&target, |d| write(&d.join("b"), b"3")).expect("replacing works");
        assert!(!target.join("a").exists() && target.join("b").exists());
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
    }
}
