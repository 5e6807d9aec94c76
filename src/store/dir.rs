//! The state directory: who may read it, and which daemon has it.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// The mode of the state directory: nobody else may even list it.
const DIR_MODE: u32 = 0o700;
/// The mode of every file in it.
const FILE_MODE: u32 = 0o600;
/// The bits of a mode that let anybody but the owner in.
const OTHERS: u32 = 0o077;
const LOCK_FILE: &str = "lock";

/// Why the state directory or a file in it cannot be used. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirError {
    /// Others may read or write it: what it holds can no longer be trusted to be secret.
    #[error("{} has mode {mode:04o}, at most {wanted:04o} is safe: chmod {wanted:o} {}", path.display(), path.display())]
    TooOpen {
        /// The file or directory.
        path: PathBuf,
        /// The mode it has.
        mode: u32,
        /// The mode it should have.
        wanted: u32,
    },
    /// It belongs to somebody else.
    #[error("{} belongs to user {owner}, not to user {uid} who runs this: chown {uid} {}", path.display(), path.display())]
    ForeignOwner {
        /// The file or directory.
        path: PathBuf,
        /// The user it belongs to.
        owner: u32,
        /// The user of this process.
        uid: u32,
    },
    /// It is a link, a pipe or something else.
    #[error("{} is not a {wanted}", path.display())]
    WrongKind {
        /// The path.
        path: PathBuf,
        /// `directory` or `file`.
        wanted: &'static str,
    },
    /// Another daemon has it.
    #[error(
        "{} is in use by {}: stop it, or give this one its own --state-dir",
        path.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that has it, if it said so.
        pid: Option<u32>,
    },
    /// A file of the identity is damaged, or its other half is missing.
    #[error("{} {reason}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: &'static str,
    },
    /// The system refused.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

impl DirError {
    pub(super) fn io(path: &Path, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        Self::Io { path: path.to_owned(), reason: error.to_string() }
    }
}

/// A state directory that this process has to itself until this value is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// The kernel drops the lock with the file, however the process ends.
    _lock: File,
}

impl StateDir {
    /// Opens a state directory, making it when it is missing, and takes its lock.
    ///
    /// # Errors
    /// [`DirError`] when it is open to others, belongs to somebody else, or another daemon has it.
    pub fn open(path: &Path) -> Result<Self, DirError> {
        make_dir(path)?;
        let lock = lock(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes the directory unless it is there, and checks it.
fn make_dir(path: &Path) -> Result<(), DirError> {
    let fails = |error| DirError::io(path, error);
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(path.parent().unwrap_or(path)).map_err(fails)?;
    match DirBuilder::new().mode(DIR_MODE).create(path) {
        // The umask may have taken bits away; it must not decide what the daemon can do.
        Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(DIR_MODE)).map_err(fails)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(fails(error)),
    }
    let metadata = std::fs::metadata(path).map_err(fails)?;
    if !metadata.is_dir() {
        return Err(DirError::WrongKind { path: path.to_owned(), wanted: "directory" });
    }
    check_private(path, &metadata, DIR_MODE)
}

/// Refuses what others own, read or write.
fn check_private(path: &Path, metadata: &Metadata, wanted: u32) -> Result<(), DirError> {
    let uid = rustix::process::geteuid().as_raw();
    if metadata.uid() != uid {
        return Err(DirError::ForeignOwner { path: path.to_owned(), owner: metadata.uid(), uid });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(DirError::TooOpen { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

/// What to do about a file that is missing, or there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Make {
    /// Opens what is there.
    Never,
    /// Makes it if it is missing.
    IfMissing,
    /// Makes it anew; what is there is in the way.
    New,
}

/// Opens a private file for reading and writing; follows no link. `None` when it is missing and not to be made.
pub(super) fn open_private(path: &Path, make: Make) -> Result<Option<File>, DirError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(make == Make::IfMissing)
        .create_new(make == Make::New)
        .mode(FILE_MODE)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path);
    let file = match file {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && make == Make::Never => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Err(DirError::WrongKind { path: path.to_owned(), wanted: "file" });
        }
        Err(error) => return Err(DirError::io(path, error)),
    };
    let metadata = file.metadata().map_err(|error| DirError::io(path, error))?;
    if !metadata.is_file() {
        return Err(DirError::WrongKind { path: path.to_owned(), wanted: "file" });
    }
    if make == Make::New {
        file.set_permissions(Permissions::from_mode(FILE_MODE)).map_err(|error| DirError::io(path, error))?;
    }
    check_private(path, &metadata, FILE_MODE)?;
    Ok(Some(file))
}

/// Makes names in a directory durable: what was made, renamed or removed in it.
pub(super) fn sync_dir(path: &Path) -> Result<(), DirError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| DirError::io(path, error))
}

/// Takes the lock and writes this process's id into it, for whoever comes next.
fn lock(dir: &Path) -> Result<File, DirError> {
    let path = dir.join(LOCK_FILE);
    let Some(mut file) = open_private(&path, Make::IfMissing)? else {
        return Err(DirError::io(&path, io::Error::from(io::ErrorKind::NotFound)));
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // The holder's id only helps the reader; without it the refusal stands all the same.
            let pid = (&file).take(20).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(DirError::InUse { path: dir.to_owned(), pid });
        }
        Err(error) => return Err(DirError::io(&path, error)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| DirError::io(&path, error))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("is there").mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("own file");
    }

    #[test]
    fn a_new_state_directory_is_private() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let path = temporary.path().join("a/b");
        let dir = StateDir::open(&path).expect("can be made");
        assert_eq!(dir.path(), path);
        assert_eq!((mode(&path), mode(&path.join("lock"))), (0o700, 0o600));
    }

    #[test]
    fn a_directory_that_others_may_read_is_refused() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        for open in [0o750, 0o705, 0o777] {
            chmod(temporary.path(), open);
            let error = StateDir::open(temporary.path()).expect_err("too open");
            assert!(matches!(&error, DirError::TooOpen { mode, .. } if *mode == open), "{error}");
            assert!(error.to_string().contains("chmod 700"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let path = temporary.path().join("file");
        drop(open_private(&path, Make::New).expect("can be made"));
        chmod(&path, 0o640);
        let error = open_private(&path, Make::Never).expect_err("too open");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn links_and_pipes_are_no_files_of_ours() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let link = temporary.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).expect("can be made");
        assert!(matches!(open_private(&link, Make::IfMissing), Err(DirError::WrongKind { .. })));
        let file = temporary.path().join("file");
        std::fs::write(&file, "").expect("can be made");
        assert!(matches!(make_dir(&file), Err(DirError::WrongKind { .. })));
    }

    #[test]
    fn what_belongs_to_somebody_else_is_refused() {
        // /proc/1 belongs to root; when root runs the tests there is nobody to be refused but a changed owner.
        let temporary = tempfile::tempdir().expect("a temporary directory");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(temporary.path(), Some(12345), None).expect("root may");
            assert!(matches!(make_dir(temporary.path()), Err(DirError::ForeignOwner { owner: 12345, uid: 0, .. })));
        } else {
            assert!(matches!(make_dir(Path::new("/proc/1")), Err(DirError::ForeignOwner { owner: 0, .. })));
        }
    }

    #[test]
    fn a_second_daemon_is_refused_by_the_first_ones_number_and_admitted_after_it() {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        let path = temporary.path().join("state");
        let first = StateDir::open(&path).expect("free");
        let error = StateDir::open(&path).expect_err("taken");
        assert_eq!(error, DirError::InUse { path: path.clone(), pid: Some(std::process::id()) });
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        assert!(StateDir::open(&path).is_ok());
    }
}
