//! Files that are written whole or not at all.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

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
    let mut file = temporary_file(dir).with_context(at)?;
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
    let new = tempfile::Builder::new().prefix(".tmp-").tempdir_in(parent).with_context(at)?;
    fill(new.path())?;
    for entry in std::fs::read_dir(new.path()).with_context(at)? {
        let file = std::fs::File::open(entry.with_context(at)?.path()).with_context(at)?;
        file.sync_all().with_context(at)?;
    }
    sync_folder(new.path());
    make_readable(new.path()).with_context(at)?;
    // A folder cannot be renamed over one with files in it; the old one steps aside until the new one stands.
    let old = if path.exists() {
        let aside = tempfile::Builder::new().prefix(".tmp-").tempdir_in(parent).with_context(at)?;
        std::fs::rename(path, aside.path().join("old")).with_context(at)?;
        Some(aside)
    } else {
        None
    };
    let new = new.keep();
    std::fs::rename(&new, path).with_context(at)?;
    sync_folder(parent);
    drop(old);
    Ok(())
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
