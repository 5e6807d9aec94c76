//! The identity on disk: a key and its certificate, never one without the other.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use ring::signature::{Ed25519KeyPair, KeyPair};
use zeroize::Zeroizing;

use super::dir::{self, DirError, Make};

/// The private key, PKCS#8 in DER.
const KEY_FILE: &str = "identity.key";
/// The certificate, X.509 in DER.
const CERTIFICATE_FILE: &str = "identity.crt";
/// Bytes in the largest key or certificate that is read.
const BYTES_MAX: u64 = 64 * 1024;

/// A member's key and the certificate that carries its public half.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// X.509 in DER.
    pub certificate: Vec<u8>,
    /// PKCS#8 in DER; wiped from memory when dropped.
    pub key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Identity {
    /// Writes no byte of the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Reads the identity from a state directory; `None` when there is no key.
///
/// A rotation that was cut short after its key was in place is finished.
///
/// # Errors
/// [`DirError`] when a file is open to others or damaged, or when certificate and key do not belong together. A key
/// is never given up for that: it is what the others know this member by.
pub fn load_identity(dir: &Path) -> Result<Option<Identity>, DirError> {
    let key_path = dir.join(KEY_FILE);
    let Some(key) = read(&key_path)?.map(Zeroizing::new) else { return Ok(None) };
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key).map_err(|_| DirError::Identity {
        path: key_path,
        reason: "is not an Ed25519 key in PKCS#8: put the right one back, or delete it and join again",
    })?;
    let public = pair.public_key().as_ref();
    let path = dir.join(CERTIFICATE_FILE);
    let belongs = |certificate: &Vec<u8>| certificate.windows(public.len()).any(|window| window == public);
    if let Some(certificate) = read(&path)?.filter(belongs) {
        return Ok(Some(Identity { certificate, key }));
    }
    let staged = staged(&path);
    if let Some(certificate) = read(&staged)?.filter(belongs) {
        rename(&staged, &path)?;
        dir::sync_dir(dir)?;
        return Ok(Some(Identity { certificate, key }));
    }
    Err(DirError::Identity {
        path,
        reason: "is missing or belongs to another key: put the right one back, or run `collective gencert`",
    })
}

/// Writes the identity to a state directory. On return it survives a crash.
///
/// Both files are written under other names first. Renaming the key is the moment the new identity is there; a
/// certificate left behind by a crash is found by [`load_identity`].
///
/// # Errors
/// [`DirError::Io`]; the identity that was there is there still.
pub fn save_identity(dir: &Path, identity: &Identity) -> Result<(), DirError> {
    let key_path = dir.join(KEY_FILE);
    let certificate_path = dir.join(CERTIFICATE_FILE);
    write(&staged(&certificate_path), &identity.certificate)?;
    write(&staged(&key_path), &identity.key)?;
    dir::sync_dir(dir)?;
    rename(&staged(&key_path), &key_path)?;
    dir::sync_dir(dir)?;
    rename(&staged(&certificate_path), &certificate_path)?;
    dir::sync_dir(dir)
}

/// Where a file is before it takes its name.
fn staged(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, DirError> {
    let Some(file) = dir::open_private(path, Make::Never)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(|error| DirError::io(path, error))?;
    Ok(Some(bytes))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), DirError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(DirError::io(path, error)),
        _ => {}
    }
    let write_all = |mut file: File| file.write_all(bytes).and_then(|()| file.sync_all());
    match dir::open_private(path, Make::New)? {
        Some(file) => write_all(file).map_err(|error| DirError::io(path, error)),
        None => Ok(()), // A file that is to be made is never missing.
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), DirError> {
    std::fs::rename(from, to).map_err(|error| DirError::io(to, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn identity() -> Identity {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("ring makes Ed25519 keys");
        let certificate = rcgen::CertificateParams::new(vec!["mgt1".to_owned()]).expect("a name").self_signed(&key);
        Identity {
            certificate: certificate.expect("a certificate").der().to_vec(),
            key: Zeroizing::new(key.serialize_der()),
        }
    }

    fn temporary() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn an_identity_reads_back_and_is_private() {
        let dir = temporary();
        assert_eq!(load_identity(dir.path()), Ok(None));
        let identity = identity();
        assert_eq!(save_identity(dir.path(), &identity), Ok(()));
        assert_eq!(load_identity(dir.path()), Ok(Some(identity)));
        for file in [KEY_FILE, CERTIFICATE_FILE] {
            assert_eq!(std::fs::metadata(dir.path().join(file)).expect("is there").mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("is there").count(), 2);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = temporary();
        save_identity(dir.path(), &identity()).expect("can be written");
        let key = dir.path().join(KEY_FILE);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("own file");
        assert!(matches!(load_identity(dir.path()), Err(DirError::TooOpen { mode: 0o644, .. })));
    }

    #[test]
    fn a_rotation_cut_short_at_any_step_leaves_one_whole_identity() {
        let (old, new) = (identity(), identity());
        // The steps of `save_identity`, each as the last one before the crash.
        for (step, expected) in [(0, &old), (1, &old), (2, &old), (3, &new), (4, &new)] {
            let dir = temporary();
            save_identity(dir.path(), &old).expect("can be written");
            let (key, certificate) = (dir.path().join(KEY_FILE), dir.path().join(CERTIFICATE_FILE));
            let steps: [&dyn Fn() -> Result<(), DirError>; 4] = [
                &|| write(&staged(&certificate), &new.certificate),
                &|| write(&staged(&key), &new.key),
                &|| rename(&staged(&key), &key),
                &|| rename(&staged(&certificate), &certificate),
            ];
            steps[..step].iter().for_each(|step| step().expect("can be done"));
            assert_eq!(load_identity(dir.path()).as_ref(), Ok(&Some(expected.clone())), "step {step}");
            assert_eq!(save_identity(dir.path(), &new), Ok(()), "step {step}");
            assert_eq!(load_identity(dir.path()), Ok(Some(new.clone())), "step {step}");
        }
    }

    #[test]
    fn a_key_without_its_certificate_is_an_error_and_never_a_new_identity() {
        let dir = temporary();
        save_identity(dir.path(), &identity()).expect("can be written");
        write(&dir.path().join(CERTIFICATE_FILE), &identity().certificate).expect("can be written");
        assert!(matches!(load_identity(dir.path()), Err(DirError::Identity { .. })));
        std::fs::remove_file(dir.path().join(CERTIFICATE_FILE)).expect("is there");
        assert!(matches!(load_identity(dir.path()), Err(DirError::Identity { .. })));
    }

    #[test]
    fn a_garbled_key_is_an_error() {
        let dir = temporary();
        for garbage in [&b""[..], b"garbage", &[0x30; 100_000]] {
            write(&dir.path().join(KEY_FILE), garbage).expect("can be written");
            assert!(matches!(load_identity(dir.path()), Err(DirError::Identity { .. })));
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(format!("{:?}", identity()), "Identity { .. }");
    }
}
