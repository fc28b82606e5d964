//! Files that appear whole or not at all.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::NamedTempFile;

const PREFIX: &str = ".teach-";
const SUFFIX: &str = ".tmp";

/// Removes what an earlier run left unfinished because it was killed.
pub(super) fn remove_leftovers(dir: &Path) -> Result<()> {
    let context = || format!("cannot tidy up {}", dir.display());
    for entry in std::fs::read_dir(dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        if ours {
            std::fs::remove_file(entry.path()).with_context(context)?;
        }
    }
    Ok(())
}

/// A file under construction beside its destination, removed when dropped before [`finish`](Self::finish).
pub(super) struct PendingFile {
    out: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl PendingFile {
    pub(super) fn create(path: PathBuf) -> Result<PendingFile> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(SUFFIX);
        #[cfg(unix)]
        {
            // As an ordinary file: the umask takes away what the user does not want to give.
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
        Ok(PendingFile { out: BufWriter::with_capacity(1 << 20, file), path })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Everything is on the disk, under a temporary name.
    pub(super) fn flush(&mut self) -> Result<()> {
        let flushed = self.out.flush().and_then(|()| self.out.get_ref().as_file().sync_all());
        flushed.with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Gives a flushed file its name.
    pub(super) fn finish(mut self) -> Result<()> {
        self.flush()?;
        let file = self.out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.persist(&self.path).with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(())
    }
}

/// Makes the renames in a folder last, where the system can.
pub(super) fn sync_folder(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    std::fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("cannot write to {}", dir.display()))?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}
