//! Which files may decide what the daemon runs: those that only root, or the daemon's own user, can change.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;
const EXECUTABLE: u32 = 0o111;

/// Why a file is not trusted, in words that follow its name.
pub(super) type Distrust = String;

/// Checks an executable and returns its real path, without links.
pub(super) fn executable(path: &Path) -> Result<PathBuf, Distrust> {
    let path = file(path)?;
    let mode = std::fs::metadata(&path).map_err(|error| error.to_string())?.mode();
    if mode & EXECUTABLE == 0 {
        return Err("is not executable: chmod +x it, or take it away".to_owned());
    }
    Ok(path)
}

/// Checks a file and every directory above it, and returns its real path, without links.
///
/// Who can write a directory can put another file in the place of the one that was checked.
pub(super) fn file(path: &Path) -> Result<PathBuf, Distrust> {
    if !path.is_absolute() {
        return Err("is not an absolute path".to_owned());
    }
    let path = path.canonicalize().map_err(|error| error.to_string())?;
    let metadata = std::fs::metadata(&path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is not a regular file".to_owned());
    }
    check("", &metadata, metadata.mode() & WRITABLE_BY_OTHERS != 0)?;
    for dir in path.ancestors().skip(1) {
        let metadata = std::fs::metadata(dir).map_err(|error| error.to_string())?;
        // In a sticky directory nobody can replace what is somebody else's.
        let writable = metadata.mode() & WRITABLE_BY_OTHERS != 0 && metadata.mode() & STICKY == 0;
        check(&format!("is in {}, which ", dir.display()), &metadata, writable)?;
    }
    Ok(path)
}

fn check(what: &str, metadata: &Metadata, writable: bool) -> Result<(), Distrust> {
    let uid = rustix::process::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != uid {
        return Err(format!("{what}belongs to user {}: chown it to root", metadata.uid()));
    }
    if writable {
        return Err(format!("{what}others may write (mode {:04o}): chmod go-w it", metadata.mode() & 0o7777));
    }
    Ok(())
}
